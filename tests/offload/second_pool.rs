//! Calls that release what other calls wait for.

use std::{
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use tower_offload::{ThreadPool, pool::Pool};

use crate::support::{eventually, soon};

/// Connections that calls acquire and release, blocking their threads like r2d2 does.
#[derive(Default)]
struct Connections {
    free: Mutex<usize>,
    released: Condvar,
}

impl Connections {
    fn acquire(&self) {
        let free = self.free.lock().unwrap();
        let timeout = Duration::from_secs(60);
        let (mut free, waited) = self.released.wait_timeout_while(free, timeout, |free| *free == 0).unwrap();
        assert!(!waited.timed_out(), "no connection was released");
        *free -= 1;
    }

    fn release(&self) {
        *self.free.lock().unwrap() += 1;
        self.released.notify_one();
    }
}

/// Every thread of the first pool blocks in `acquire`, and its queue is full of more such calls. A
/// call that releases a connection would wait behind them forever.
#[tokio::test]
async fn second_pool_releases_what_the_first_waits_for() {
    let pool = ThreadPool::builder().threads(2).queue_capacity(4).build().unwrap();
    let releases = ThreadPool::builder().name("releases").threads(1).build().unwrap();
    let connections = Arc::new(Connections::default());
    let acquire = || {
        let connections = connections.clone();
        pool.run(move || connections.acquire())
    };
    let mut acquired = vec![acquire(), acquire()];
    eventually(|| pool.stats().active == 2).await;
    acquired.extend((0..4).map(|_| acquire()));
    assert_eq!((pool.stats().active, pool.stats().queued), (2, 4));
    for _ in 0..acquired.len() {
        let connections = connections.clone();
        soon(releases.run(move || connections.release())).await.unwrap();
    }
    for result in soon(join_all(acquired)).await {
        result.unwrap();
    }
    assert_eq!((pool.stats().permits_in_use, pool.stats().queued), (0, 0));
}
