//! Readers that overload the database do not cost a lease.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::PgConnection;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tower_offload::Background;
use tower_offload_tasks::{SqlStore, TaskId, TaskState, TaskStore, Tasks};

use super::{
    databases::OnServer,
    support::{accept, address},
};

/// Delay of each response of the database.
const DATABASE_DELAY: Duration = Duration::from_millis(5);
const READERS: usize = 4000;

/// Forwards connections to a server, and delays all that it sends.
async fn forward_slowly(listener: TcpListener, server: String) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let server = server.clone();
        tokio::spawn(async move {
            let server = TcpStream::connect(server).await.unwrap();
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            tokio::join!(pump(from_client, to_server, Duration::ZERO), pump(from_server, to_client, DATABASE_DELAY));
        });
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let write = async move {
        while let Some((at, bytes)) = receiver.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let read = async move {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let _ = sender.send((Instant::now() + delay, buffer[..length].to_vec()));
        }
    };
    tokio::join!(read, write);
}

fn random_id() -> TaskId {
    let mut bytes = [0; TaskId::BYTES];
    getrandom::fill(&mut bytes).unwrap();
    TaskId::from_bytes(bytes)
}

/// Result of [`overload`].
struct Counts {
    read: u64,
    refused: u64,
    /// Durations of all accepts, sorted.
    accepts: Vec<Duration>,
    failed_accepts: u64,
}

/// Reads random ids with [`READERS`] tasks, while two processes hold leases and accept tasks.
/// Panics if a lease is lost.
async fn overload(database: &OnServer, lease: Duration, duration: Duration) -> Counts {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (url, slow) = (database.url(), listener.local_addr().unwrap().to_string());
    let url = url.replace(address(&url), &slow);
    tokio::spawn(forward_slowly(listener, address(&database.url()).to_owned()));
    let background = Background::default();
    let mut held = Vec::new();
    for _ in 0..2 {
        let store = SqlStore::open_with_lease(&url, lease).await.unwrap();
        let tasks = Tasks::new(store.clone());
        let never = tasks.track("held").spawn(&background, |_| std::future::pending::<Result<(), String>>());
        let id = never.await.unwrap().id();
        held.push((store, tasks, id));
    }

    let (done, read, refused) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut readers = JoinSet::new();
    for _ in 0..READERS {
        let (store, done, read, refused) = (held[0].0.clone(), done.clone(), read.clone(), refused.clone());
        readers.spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let (counter, pause) = match store.get(random_id()).await {
                    Ok(_) => (&read, Duration::ZERO),
                    Err(error) => {
                        assert!(error.is_unavailable(), "{error:?}");
                        (&refused, Duration::from_millis(100)) // a client that was refused waits longer
                    }
                };
                counter.fetch_add(1, Ordering::Relaxed);
                sleep(pause).await;
            }
        });
    }
    let (start, mut accepts, mut failed_accepts) = (Instant::now(), Vec::new(), 0);
    while start.elapsed() < duration {
        let begun = Instant::now();
        match accept(&held[0].1, &background).await {
            Ok(()) => accepts.push(begun.elapsed()),
            Err(_) => failed_accepts += 1,
        }
        sleep(Duration::from_millis(10)).await; // the pace of the accepts
    }
    done.store(true, Ordering::Relaxed);
    while readers.join_next().await.is_some() {}
    accepts.sort();

    let epochs = "SELECT count(*) FROM tower_offload_process";
    let mut connection: PgConnection = database.connect().await;
    assert_eq!(sqlx::query_scalar::<_, i64>(epochs).fetch_one(&mut connection).await.unwrap(), 2, "a lease was lost");
    for (store, _, id) in &held {
        assert_eq!(store.get(*id).await.unwrap().into_record().unwrap().state, TaskState::Running);
    }
    let (read, refused) = (read.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    Counts { read, refused, accepts, failed_accepts }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_are_refused_at_once_and_leases_are_kept() {
    let Some(database) = OnServer::fresh().await else { return };
    // Longer than the lease, which is long enough to be renewed on a busy machine.
    let counts = overload(&database, Duration::from_secs(6), Duration::from_secs(9)).await;
    assert!(counts.read > 0 && counts.refused > 0, "{} read, {} refused", counts.read, counts.refused);
    assert!(!counts.accepts.is_empty() && counts.failed_accepts == 0, "{} accepts failed", counts.failed_accepts);
}

/// Prints the duration of accepts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes 30 seconds, and its duration of accepts depends on the machine"]
async fn thirty_seconds_of_readers_keep_accepts_below_a_second() {
    let Some(database) = OnServer::fresh().await else { return };
    let counts = overload(&database, Duration::from_secs(15), Duration::from_secs(30)).await;
    let at = |percent: usize| counts.accepts[(counts.accepts.len() - 1) * percent / 100];
    let (read, refused, failed) = (counts.read, counts.refused, counts.failed_accepts);
    println!("{READERS} readers: {read} read, {refused} refused; {} accepts, {failed} failed", counts.accepts.len());
    println!("accept: p50 {:?}, p99 {:?}, maximum {:?}", at(50), at(99), at(100));
    assert!(failed == 0 && at(99) < Duration::from_secs(1));
}
