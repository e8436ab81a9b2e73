use std::{
    cell::Cell,
    pin::pin,
    sync::{
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    task::{Context, Poll, Waker},
    thread::sleep,
};

use super::*;
use crate::pool::{
    CallOptions, QueuePermit,
    call::{Context as CallContext, OnCallerDrop, spawn, spawn_in_place},
    permits::PermitKind,
    queue_permit::Admitted,
    time::PoolTime,
};

const LIMITS: Limits = Limits { min: 1, max: 1 };

/// Returns a pool of one thread, and a counter of the threads that it has started.
fn pool() -> (Arc<PoolHandle>, Arc<AtomicUsize>) {
    let started = Arc::new(AtomicUsize::new(0));
    let counter = started.clone();
    let config = WorkerConfig {
        limits: LIMITS,
        keep_alive: None,
        queue_policy: QueuePolicy::Fifo,
        is_borrowed: false,
        spin: false,
        stall_timeout: Duration::from_secs(10),
        spawn_error: CallError::Closed,
    };
    let executor = move |worker: Worker| {
        counter.fetch_add(1, SeqCst);
        std::thread::Builder::new().spawn(move || worker.run()).map(drop)
    };
    (WorkerPool::create(Admission::new("test", 8), config, executor), started)
}

fn admitted(pool: &Arc<PoolHandle>) -> Admitted {
    let (pool, options): (Arc<dyn Pool>, _) = (pool.clone(), CallOptions::default());
    let queue_permit = QueuePermit::try_acquire(&pool, options, PermitKind::Exempt).expect("the queue has room");
    Admitted { queue_permit, layer_permit: None, options }
}

fn until(condition: impl Fn() -> bool) {
    for _ in 0..30_000 {
        if condition() {
            return;
        }
        sleep(Duration::from_millis(1));
    }
    panic!("nothing happens");
}

#[test]
fn only_workers_make_progress() {
    let (pool, _) = pool();
    let metrics = pool.admission().metrics();
    let (release, released) = mpsc::channel::<()>();
    let context = CallContext::capture;
    let blocked = spawn(admitted(&pool), context(), OnCallerDrop::Cancel, async move { released.recv().is_err() });
    until(|| metrics.stats().active == 1);
    let before = metrics.observe();
    let leaves = spawn(admitted(&pool), context(), OnCallerDrop::Cancel, async {});
    let queued = spawn(admitted(&pool), context(), OnCallerDrop::Cancel, async {});
    drop(leaves);
    let mut in_place = spawn_in_place(admitted(&pool), context(), OnCallerDrop::Cancel, async {});
    let mut cx = std::task::Context::from_waker(Waker::noop());
    assert!(matches!(Pin::new(&mut in_place).poll(&mut cx), Poll::Ready(Ok(()))));
    let after = metrics.observe();
    assert_eq!((before.progress, before.queued), (after.progress, after.queued - 1));
    drop(release);
    until(|| metrics.in_flight() == 0);
    assert_ne!(metrics.observe().progress, before.progress);
    drop((blocked, queued));
}

#[test]
fn calls_that_are_woken_during_a_shutdown_start_no_threads() {
    const WAKES: usize = 20;
    let (pool, started) = pool();
    let (waker, woken) = mpsc::channel();
    let mut polls = 0;
    let work = std::future::poll_fn(move |cx: &mut Context<'_>| {
        polls += 1;
        let _ = waker.send(cx.waker().clone());
        if polls > WAKES { Poll::Ready(()) } else { Poll::Pending }
    });
    let call = spawn(admitted(&pool), CallContext::capture(), OnCallerDrop::Cancel, work);
    let mut waker = woken.recv().expect("the first poll");
    pool.workers.close();
    for _ in 0..WAKES {
        // A worker that has waited in vain exits, and the next wake-up starts another one.
        let scheduler = &pool.workers.scheduler;
        until(|| scheduler.has_idle_worker() || scheduler.workers() == 0);
        waker.wake();
        waker = woken.recv().expect("another poll");
    }
    until(|| pool.workers.scheduler.workers() == 0);
    assert!(pin!(call).poll(&mut Context::from_waker(Waker::noop())).is_ready());
    assert!(started.load(SeqCst) < WAKES / 2, "{} threads", started.load(SeqCst));
}

#[test]
fn rejected_calls_look_at_the_queue_once_per_millisecond() {
    const MILLISECOND: PoolTime = 1_000_000;
    let (recent, found) = (RecentWait::default(), Cell::new(0));
    let get = |now| {
        recent.get(now, || {
            found.set(found.get() + 1);
            Duration::from_micros(1999 + 1000 * found.get())
        })
    };
    let day = 86_400_000 * MILLISECOND;
    assert_eq!([day, day + 1, day + MILLISECOND - 1].map(get), [Duration::from_millis(2); 3]);
    assert_eq!([day + MILLISECOND, day + MILLISECOND].map(get), [Duration::from_millis(3); 2]);
    assert_eq!(recent.get(day + 2 * MILLISECOND, || Duration::MAX), Duration::from_millis(u32::MAX.into()));
    assert_eq!(found.get(), 2);
}
