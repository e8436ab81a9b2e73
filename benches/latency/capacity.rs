//! How many jobs a second the machine can do through a server.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{runtime, task::JoinSet, time};

use crate::latency::{
    BoxError,
    client::{Answer, Client, Order},
    generator, server,
    stop::Stop,
};

/// Closed loop: some callers who order the next job when the last is done, so that the server always has work and never a
/// queue. The first fifth of the time warms up.
pub(crate) fn measure(address: SocketAddr, duration: Duration, stop: &Stop) -> Result<f64, BoxError> {
    generator::urgently(|| {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            tokio::select! {
                jobs = count(address, duration) => jobs,
                () = stop.wanted() => Err("interrupted".into()),
            }
        })
    })
}

async fn count(address: SocketAddr, duration: Duration) -> Result<f64, BoxError> {
    let callers = 4 * server::cores();
    let client = Arc::new(Client::new(address, callers));
    let done = Arc::new(AtomicU64::new(0));
    let counting = Arc::new(AtomicBool::new(false));
    let mut loops = JoinSet::new();
    for _ in 0..callers {
        let (client, done, counting) = (client.clone(), done.clone(), counting.clone());
        loops.spawn(async move {
            while let Ok(Answer::Success) = client.send(&Order::get("/job")).await {
                done.fetch_add(u64::from(counting.load(Ordering::Relaxed)), Ordering::Relaxed);
            }
        });
    }
    time::sleep(duration / 5).await;
    counting.store(true, Ordering::Relaxed);
    let start = time::Instant::now();
    time::sleep(duration * 4 / 5).await;
    let jobs = done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    if loops.len() == callers && jobs > 0.0 && loops.try_join_next().is_none() {
        Ok(jobs)
    } else {
        Err("the server failed while its capacity was measured".into())
    }
}
