//! Counts allocated bytes with a global allocator, and therefore contains a single test.
#![allow(clippy::unwrap_used)]

use std::{
    alloc::System,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use futures_util::FutureExt;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::runtime::Runtime;
use tower::{Layer, Service};
use tower_offload::{
    CallError, OffloadLayer, ThreadPool,
    offload::service_fn_blocking,
    pool::{Pool, Rayon, TokioBlocking},
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CALLS: usize = 100_000;
/// The maximum number of bytes that runtimes and threads allocate during a test, for queues, names
/// and thread-locals.
const MAX_STRAY: isize = 64 * 1024;

/// Returns the number of live bytes. Signed, because a thread may be freeing earlier allocations.
fn live() -> isize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as isize - stats.bytes_deallocated as isize
}

/// Counts its drops.
struct Request {
    drops: Arc<AtomicUsize>,
    _body: [u64; 32],
}

impl Drop for Request {
    fn drop(&mut self) {
        self.drops.fetch_add(1, SeqCst);
    }
}

/// Makes calls while the pool's only thread is blocked, and cancels them all: `queued` of them wait
/// in the queue, and the others are rejected. Returns when the pool is idle and everything is
/// freed.
async fn burst(pool: &Arc<dyn Pool>, queued: usize) {
    let (ran, drops) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let ran_too = ran.clone();
    let mut service =
        OffloadLayer::new(pool.clone()).reject_with(Err).layer(service_fn_blocking(move |request: Request| {
            ran_too.fetch_add(1, SeqCst);
            drop(request);
            Ok::<_, CallError>(())
        }));
    let (entered, inside) = tokio::sync::oneshot::channel();
    let (release, released) = mpsc::channel::<()>();
    let held = pool.run(move || {
        entered.send(()).unwrap();
        let _ = released.recv();
    });
    inside.await.unwrap();

    let before = live();
    let (mut waiting, mut refused) = (Vec::with_capacity(queued), 0);
    for number in 0..CALLS {
        let request = Request { drops: drops.clone(), _body: [0; 32] };
        let mut call = if number % 2 == 0 {
            service.call(request).boxed()
        } else {
            let ran = ran.clone();
            pool.run(move || {
                ran.fetch_add(1, SeqCst);
                drop(request);
            })
            .boxed()
        };
        match futures_util::poll!(&mut call) {
            std::task::Poll::Pending => waiting.push(call),
            std::task::Poll::Ready(answer) => {
                assert_eq!(answer, Err(CallError::Overloaded));
                refused += 1;
            }
        }
    }
    assert_eq!((waiting.len(), refused), (queued, CALLS - queued));
    assert_eq!(drops.load(SeqCst), refused);
    let full = live() - before;
    drop(waiting);
    assert_eq!(drops.load(SeqCst), CALLS, "unstarted calls are dropped with their callers");
    let cancelled = live() - before;

    drop(release);
    held.await.unwrap();
    let stats = || pool.admission().stats();
    let idle = async {
        while stats().permits_in_use > 0 || stats().active > 0 {
            tokio::task::yield_now().await;
        }
        pool.run(|| ()).await.unwrap(); // Earlier entries have left the queue.
        while live() - before > MAX_STRAY {
            tokio::time::sleep(Duration::from_millis(1)).await; // A thread that parks frees the last of it.
        }
    };
    tokio::time::timeout(Duration::from_secs(60), idle).await.expect("memory is not freed");
    drop(service);
    assert_eq!((ran.load(SeqCst), drops.load(SeqCst)), (0, CALLS));
    assert_eq!((stats().in_flight, stats().queued), (0, 0));
    let kept = live() - before;
    let name = pool.admission().name();
    println!("{name}: {full} bytes for {queued} queued calls, {cancelled} after cancellation, {kept} when idle");
}

/// Returns a pool of each kind with one thread.
fn pools(runtime: &Runtime, queue_capacity: usize) -> Vec<Arc<dyn Pool>> {
    let _inside = runtime.enter();
    let rayon = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    vec![
        Arc::new(ThreadPool::builder().threads(1).queue_capacity(queue_capacity).build().unwrap()),
        Arc::new(Rayon::builder(rayon).queue_capacity(queue_capacity).build()),
        Arc::new(TokioBlocking::builder(1).queue_capacity(queue_capacity).build()),
    ]
}

#[test]
fn calls_cancelled_in_the_queue_free_everything() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for capacity in [CALLS, 1000] {
        let pools = pools(&runtime, capacity); // Kept until the end, because threads that exit free memory at any time.
        for pool in &pools {
            runtime.block_on(async {
                for _ in 0..2 {
                    burst(pool, capacity).await;
                }
            });
        }
    }
}
