//! PgBouncer between the store and the server.

use tower_offload::Background;
use tower_offload_tasks::SqlStore;

use super::{
    databases::OnServer,
    programs::PgBouncer,
    support::{Note, accept, address, jobs, open_error, tasks, text, until_ok},
};

#[tokio::test(flavor = "multi_thread")]
async fn tasks_and_jobs_work_through_a_proxy_that_pools_sessions() {
    let Some(database) = OnServer::fresh().await else { return };
    let Some(bouncer) = PgBouncer::start(address(&database.url()), "session", "") else { return };
    let url = database.url().replace(address(&database.url()), &bouncer.address());
    until_ok(async || SqlStore::open(&url).await?.close().await).await; // PgBouncer is still starting
    let (tasks, background) = (tasks(&url).await, Background::default());
    accept(&tasks, &background).await.unwrap();
    let jobs = jobs(&tasks).await;
    let id = jobs.enqueue(Note).await.unwrap().id();
    let mut job = tasks.subscribe(id).await.unwrap().unwrap();
    while job.changed().await.unwrap().is_some() {}
    let _ = jobs.shutdown(super::support::LONG).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_that_pools_transactions_is_refused_with_the_remedy() {
    let Some(database) = OnServer::fresh().await else { return };
    for mode in ["transaction", "statement"] {
        let Some(bouncer) = PgBouncer::start(address(&database.url()), mode, "") else { return };
        let url = database.url().replace(address(&database.url()), &bouncer.address());
        let error = until_ok(async || {
            let error = open_error(&url).await;
            if error.is_unavailable() { Err(error) } else { Ok(error) } // PgBouncer is still starting
        });
        let error = text(&error.await);
        assert!(error.contains("pool_mode = session") && error.contains(&bouncer.address()), "{mode}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parameter_that_a_proxy_rejects_is_named_with_the_remedy() {
    let Some(database) = OnServer::fresh().await else { return };
    let Some(bouncer) = PgBouncer::start(address(&database.url()), "session", "") else { return };
    let url = database.url().replace(address(&database.url()), &bouncer.address());
    until_ok(async || SqlStore::open(&url).await?.close().await).await;
    let separator = if url.contains('?') { '&' } else { '?' };
    let error = text(&open_error(&format!("{url}{separator}options=-c%20search_path%3Dapp")).await);
    assert!(error.contains("options") && error.contains("ignore_startup_parameters"), "{error}");
}
