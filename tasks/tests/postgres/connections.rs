//! Connections that cannot be made or replaced, and sessions that the server ends.

use std::time::Duration;

use sqlx::PgConnection;
use tower_offload::Background;
use tower_offload_tasks::{SqlStore, TaskStore, Tasks, Timestamp, store::Process};

use super::{
    databases::OnServer,
    support::{accept, address, execute, text, until_ok},
};

/// A role that a test can lock out. It is dropped by [`end`](Self::end).
struct LockedOut {
    name: String,
    admin: PgConnection,
}

impl LockedOut {
    /// Creates a role, and returns the URL with which it connects.
    async fn create(database: &OnServer) -> (Self, String) {
        let (name, mut admin) = (format!("{}_role", database.name), database.connect().await);
        execute(&mut admin, format!("CREATE ROLE {name} SUPERUSER LOGIN")).await;
        let url = database.url();
        let url = format!("postgres://{name}@{}/{}", address(&url), database.name);
        (Self { name, admin }, url)
    }

    /// Refuses new connections of the role.
    async fn lock_out(&mut self) {
        execute(&mut self.admin, format!("ALTER ROLE {} NOLOGIN", self.name)).await;
    }

    async fn let_in(&mut self) {
        execute(&mut self.admin, format!("ALTER ROLE {} LOGIN", self.name)).await;
    }

    async fn terminate_connections(&mut self) {
        let end =
            format!("SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE usename = '{}'", self.name);
        execute(&mut self.admin, end).await;
    }

    async fn end(mut self) {
        self.terminate_connections().await;
        execute(&mut self.admin, format!("REASSIGN OWNED BY {0} TO CURRENT_USER; DROP ROLE {0}", self.name)).await;
    }
}

#[tokio::test]
async fn lease_is_renewed_if_its_old_connection_cannot_be_replaced() {
    let Some(database) = OnServer::fresh().await else { return };
    let (mut role, url) = LockedOut::create(&database).await;
    let store = SqlStore::open(&url).await.unwrap();
    let lease = store.begin(&Process::new("test", Timestamp::default())).await.unwrap();
    role.lock_out().await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31 * 60)).await; // connections are replaced after 30 minutes
    tokio::time::resume();
    for _ in 0..2 {
        assert!(store.renew(lease.epoch).await.unwrap());
    }
    role.let_in().await;
    assert!(store.renew(lease.epoch).await.unwrap());
    store.close().await.unwrap();
    role.end().await;
}

/// No record of the batch is the cause, so none of them is tried alone.
#[tokio::test(flavor = "multi_thread")]
async fn refused_login_makes_the_store_unavailable() {
    let Some(database) = OnServer::fresh().await else { return };
    let (mut role, url) = LockedOut::create(&database).await;
    let (tasks, background) = (Tasks::new(SqlStore::open(&url).await.unwrap()), Background::default());
    accept(&tasks, &background).await.unwrap();
    role.lock_out().await;
    role.terminate_connections().await;
    let _ = accept(&tasks, &background).await; // on the connection that was used last
    let store = tasks.store::<SqlStore>().unwrap();
    let error = store.begin(&Process::new("test", Timestamp::default())).await.unwrap_err();
    assert!(error.is_unavailable() && text(&error).contains("not permitted to log in"), "{}", text(&error));
    role.let_in().await;
    until_ok(async || accept(&tasks, &background).await).await;
    store.close().await.unwrap();
    role.end().await;
}

/// The process was stopped within a transaction for longer than the server permits.
#[tokio::test]
async fn session_that_was_ended_in_a_transaction_is_unavailable() {
    let Some(database) = OnServer::fresh().await else { return };
    for code in ["25P03", "25P04"] {
        let store = SqlStore::open(&database.url()).await.unwrap();
        let raise = format!(
            "CREATE OR REPLACE FUNCTION ended() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE EXCEPTION 'ended' USING ERRCODE = '{code}'; END $$;
             CREATE OR REPLACE TRIGGER ended BEFORE INSERT ON tower_offload_process EXECUTE FUNCTION ended()"
        );
        execute(&mut database.connect().await, raise).await;
        let error = store.begin(&Process::new("test", Timestamp::default())).await.unwrap_err();
        assert!(error.is_unavailable(), "{}", text(&error));
    }
}
