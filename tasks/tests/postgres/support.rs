//! Tasks and jobs that the tests of this binary share.

use std::{convert::Infallible, error::Error, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use tower_offload::Background;
use tower_offload_tasks::{
    AcceptError, SqlStore, StoreError, Tasks,
    jobs::{Job, Jobs},
};

/// A timeout that no passing test reaches.
pub(crate) const LONG: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Serialize, Deserialize)]
pub(crate) struct Note;

impl Job for Note {
    const KIND: &'static str = "note";
}

pub(crate) async fn tasks(url: &str) -> Tasks {
    let tasks = Tasks::new(SqlStore::open(url).await.unwrap());
    tasks.start().await.unwrap();
    tasks
}

pub(crate) async fn jobs(tasks: &Tasks) -> Jobs {
    let work = |_: Note, _| async { Ok::<_, Infallible>(()) };
    Jobs::builder(tasks).worker(LONG, work).start().await.unwrap()
}

/// Accepts a task that ends at once.
pub(crate) async fn accept(tasks: &Tasks, background: &Background) -> Result<(), AcceptError> {
    tasks.track("note").spawn(background, |_| async { Ok::<_, Infallible>(()) }).await.map(drop)
}

/// Repeats `attempt` until it succeeds.
pub(crate) async fn until_ok<T, E: std::fmt::Debug>(mut attempt: impl AsyncFnMut() -> Result<T, E>) -> T {
    let start = Instant::now();
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) if start.elapsed() > LONG => panic!("no success within {LONG:?}: {error:?}"),
            Err(_) => sleep(POLL_INTERVAL).await,
        }
    }
}

/// Returns the text of an error with all its causes.
pub(crate) fn text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

pub(crate) async fn open_error(url: &str) -> StoreError {
    match SqlStore::open(url).await {
        Ok(_) => panic!("{url} was opened"),
        Err(error) => error,
    }
}

/// Returns the `host:port` of a URL.
pub(crate) fn address(url: &str) -> &str {
    url.split_once('@').unwrap().1.split(['/', '?']).next().unwrap()
}

/// Forwards connections to a server.
pub(crate) async fn forward(listener: TcpListener, server: String) {
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        let server = server.clone();
        tokio::spawn(async move {
            if let Ok(mut server) = TcpStream::connect(server).await {
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}

pub(crate) async fn execute(connection: &mut sqlx::PgConnection, statements: impl Into<String>) {
    let statements = sqlx::AssertSqlSafe(statements.into());
    sqlx::raw_sql(statements).execute(connection).await.unwrap();
}
