//! Following jobs, and the delays between enqueueing, starting, ending and hearing of the end.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use tower_offload_tasks::TaskState;
use tower_offload_tests::eventually;

use super::support::{Act, ActAsync, LONG, TestDatabase, TestWorkers, ended, on_each_database, start_when_free};

on_each_database! {
    end_of_a_job_reaches_its_followers_at_once
    followers_of_one_job_share_a_look
}

/// Without the signal, a follower polls after half a second.
async fn end_of_a_job_reaches_its_followers_at_once(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    let mut delays = Vec::new();
    for number in 0..20 {
        let id = jobs.enqueue(ActAsync(Act::Return(json!(number)))).await.unwrap().id();
        let begun = Instant::now();
        let mut subscription = tasks.subscribe(id).await.unwrap().unwrap();
        while subscription.changed().await.unwrap().is_some() {}
        assert_eq!(subscription.record().state, TaskState::Succeeded);
        delays.push(begun.elapsed());
    }
    // A busy machine may delay some of the jobs.
    let at_once = delays.iter().filter(|delay| **delay < Duration::from_millis(500)).count();
    assert!(at_once >= 5, "{delays:?}");
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn followers_of_one_job_share_a_look(database: TestDatabase) {
    follow(database, Duration::from_secs(2), Duration::from_secs(3), 50).await;
}

/// The server may count transactions up to 10 s late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn thousand_followers_cost_less_than_ten_transactions_a_second() {
    let Some(server) = crate::databases::OnServer::fresh().await else { return };
    follow(TestDatabase::Postgres(server), Duration::from_secs(15), Duration::from_secs(20), 10).await;
}

async fn follow(database: TestDatabase, settle: Duration, period: Duration, max_per_second: i64) {
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    let id = jobs.enqueue(Act::Return(json!(1))).delay(LONG).await.unwrap().id();
    let mut followers = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let mut subscription = tasks.subscribe(id).await.unwrap().unwrap();
        followers.spawn(async move {
            while subscription.changed().await.unwrap().is_some() {}
            subscription.record().state
        });
    }
    if let TestDatabase::Postgres(_) = &database {
        const TRANSACTIONS: &str =
            "SELECT (xact_commit + xact_rollback)::bigint FROM pg_stat_database WHERE datname = current_database()";
        tokio::time::sleep(settle).await;
        let before = database.number(TRANSACTIONS).await;
        tokio::time::sleep(period).await;
        let per_second = (database.number(TRANSACTIONS).await - before) / i64::try_from(period.as_secs()).unwrap();
        println!("1000 followers: {per_second} transactions per second of all kinds");
        assert!(per_second < max_per_second, "{per_second} transactions per second");
    }
    tasks.cancel(id).await.unwrap();
    while let Some(state) = followers.join_next().await {
        assert_eq!(state.unwrap(), TaskState::Cancelled);
    }
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// Prints the delays, which the documentation of the module states.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn delays() {
    let mut databases = vec![TestDatabase::Sqlite(crate::databases::OnFile::fresh())];
    databases.extend(crate::databases::OnServer::fresh().await.map(TestDatabase::Postgres));
    for database in databases {
        let tasks = database.tasks().await;
        let (begins, mut begun) = tokio::sync::mpsc::unbounded_channel();
        let work = move |_: ActAsync, _| {
            begins.send(Instant::now()).unwrap();
            async { Ok::<_, std::convert::Infallible>(()) }
        };
        let jobs = tower_offload_tasks::jobs::Jobs::builder(&tasks).worker(LONG, work).start().await.unwrap();
        let (mut to_begin, mut to_follower) = (Vec::new(), Vec::new());
        for _ in 0..300 {
            let enqueued = Instant::now();
            let id = jobs.enqueue(ActAsync(Act::Hold)).await.unwrap().id();
            let accepted = Instant::now();
            let mut subscription = tasks.subscribe(id).await.unwrap().unwrap();
            let begin = begun.recv().await.unwrap();
            while subscription.changed().await.unwrap().is_some() {}
            to_begin.push((begin.duration_since(enqueued), begin.duration_since(accepted)));
            to_follower.push(begin.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let percentile = |mut delays: Vec<Duration>| {
            delays.sort_unstable();
            [50, 90, 99].map(|percent| delays[delays.len() * percent / 100])
        };
        println!("{}:", if matches!(database, TestDatabase::Sqlite(_)) { "SQLite" } else { "Postgres" });
        println!("  enqueue to begin:  {:?}", percentile(to_begin.iter().map(|delays| delays.0).collect()));
        println!("  accepted to begin: {:?}", percentile(to_begin.iter().map(|delays| delays.1).collect()));
        println!("  end to follower:   {:?}", percentile(to_follower));
        assert!(jobs.shutdown(LONG).await.is_clean());
    }
}

/// Prints how many empty jobs are worked per second at a concurrency of 2, or of `CONCURRENCY`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn drain() {
    const JOBS: usize = 2000;
    let concurrency = std::env::var("CONCURRENCY").map_or(2, |text| text.parse().unwrap());
    let mut databases = vec![TestDatabase::Sqlite(crate::databases::OnFile::fresh())];
    databases.extend(crate::databases::OnServer::fresh().await.map(TestDatabase::Postgres));
    for database in databases {
        let tasks = database.tasks().await;
        let enqueuer = tower_offload_tasks::jobs::Jobs::builder(&tasks).start().await.unwrap();
        let mut last = None;
        for _ in 0..JOBS / 200 {
            let batch = (0..200).map(|_| async { enqueuer.enqueue(ActAsync(Act::Hold)).await.unwrap().id() });
            last = futures_util::future::join_all(batch).await.pop();
        }
        assert!(enqueuer.shutdown(LONG).await.is_clean());
        drop(enqueuer);
        let begun = Instant::now();
        let builder = || {
            tower_offload_tasks::jobs::Jobs::builder(&tasks)
                .concurrency(concurrency)
                .worker(LONG, |_: ActAsync, _| async { Ok::<_, std::convert::Infallible>(()) })
        };
        let jobs = start_when_free(builder).await.unwrap();
        let open = "SELECT count(*) FROM river_job WHERE state <> 'completed'";
        eventually("all jobs are completed", async || database.number(open).await == 0).await;
        let rate = JOBS as f64 / begun.elapsed().as_secs_f64();
        println!(
            "{}: {rate:.0} jobs/s",
            if matches!(database, TestDatabase::Sqlite(_)) { "SQLite" } else { "Postgres" }
        );
        ended(&tasks, last.unwrap()).await;
        assert!(jobs.shutdown(LONG).await.is_clean());
    }
}
