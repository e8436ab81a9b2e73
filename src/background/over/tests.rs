//! When it is told that a task is over, and that it is told once.
#![allow(clippy::unwrap_used)]

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use tokio::{runtime::Runtime, sync::oneshot};

use super::Over;
use crate::{
    Background, ThreadPool,
    background::{Reservation, work::Body},
    pool::{Inline, Pool},
};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(5);

fn on_threads(threads: usize) -> Background {
    let pool = ThreadPool::builder().threads(threads).build().unwrap();
    Background::builder().pool(pool).on_failure(|_| ()).build()
}

/// What was told of one task. Its channel ends with the callback, so the answer `Err` means: never, or not again.
struct Told(mpsc::Receiver<Over>);

impl Told {
    #[track_caller]
    fn once(self) -> Over {
        let over = self.0.recv_timeout(LONG).expect("it is told");
        assert_eq!(self.0.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected), "once");
        over
    }

    #[track_caller]
    fn not_yet(&self) {
        assert_eq!(self.0.try_recv(), Err(mpsc::TryRecvError::Empty));
    }
}

fn reserve(background: &Background) -> (Reservation, Told) {
    let (tell, told) = mpsc::channel();
    let inner = background.clone();
    let reservation = background.reserve("").unwrap().on_over(move |over| {
        inner.stats(); // would wait for ever under the lock
        tell.send(over).unwrap();
    });
    (reservation, Told(told))
}

/// A closure that says when it runs and then waits until the sender is gone.
fn held() -> (Body, oneshot::Receiver<()>, mpsc::Sender<()>) {
    let (release, released) = mpsc::channel::<()>();
    let (enter, entered) = oneshot::channel();
    let work = move || {
        enter.send(()).unwrap();
        let _ = released.recv();
    };
    (Body::of_closure(work), entered, release)
}

/// A future that says when it runs and never ends.
fn endless() -> (Body, oneshot::Receiver<()>) {
    let (enter, entered) = oneshot::channel();
    let work = async move {
        enter.send(()).unwrap();
        std::future::pending::<()>().await;
    };
    (Body::of_future(work), entered)
}

fn panics() {
    panic!("in a task");
}

#[test]
fn work_that_ends_is_completed_or_failed() {
    let runtime = Runtime::new().unwrap();
    let _inside = runtime.enter();
    let background = on_threads(1);
    let bodies = [
        (Body::of_closure(|| ()), Over::Completed),
        (Body::of_closure(|| Err("no")), Over::Failed),
        (Body::of_closure(panics), Over::Failed),
        (Body::of_future(async {}), Over::Completed),
        (Body::of_future(async { Err::<(), _>("no") }), Over::Failed),
        (Body::of_future(async { panics() }), Over::Failed),
    ];
    for (body, over) in bodies {
        let (reservation, told) = reserve(&background);
        reservation.spend(body);
        assert_eq!(told.once(), over);
    }
}

#[test]
fn two_are_told_in_the_order_in_which_they_asked_though_the_first_panics() {
    let background = on_threads(1);
    let (tell, told) = mpsc::channel();
    let (first, second) = (tell.clone(), tell);
    let reservation = background.reserve("").unwrap();
    let reservation = reservation.on_over(move |over| {
        first.send((1, over)).unwrap();
        panics();
    });
    drop(reservation.on_over(move |over| second.send((2, over)).unwrap()));
    assert_eq!(told.iter().collect::<Vec<_>>(), [(1, Over::Skipped), (2, Over::Skipped)]);
}

#[test]
fn a_reservation_that_is_dropped_is_skipped_and_one_that_was_cancelled_before_is_not() {
    let background = on_threads(1);
    let (skipped, told) = reserve(&background);
    drop(skipped);
    assert_eq!(told.once(), Over::Skipped);

    let (dropped, told) = reserve(&background);
    assert!(background.cancel_id(dropped.id()) && !background.cancel_id(dropped.id()));
    told.not_yet();
    drop(dropped);
    assert_eq!(told.once(), Over::Cancelled);

    let (spent, told) = reserve(&background);
    assert!(spent.handle().cancel());
    told.not_yet();
    spent.spend(Body::of_closure(panics));
    assert_eq!(told.once(), Over::Cancelled);
    assert_eq!(background.cancel(""), 0);
    let stats = background.stats();
    assert_eq!((stats.skipped, stats.cancelled, stats.failed), (1, 2, 0));
}

#[test]
fn a_callback_that_is_given_after_the_cancellation_is_called_all_the_same() {
    let background = on_threads(1);
    let reservation = background.reserve("late").unwrap();
    assert_eq!(background.cancel("late"), 1);
    let (tell, told) = mpsc::channel();
    reservation.on_over(move |over| tell.send(over).unwrap()).run(panics);
    assert_eq!(Told(told).once(), Over::Cancelled);
}

#[test]
fn work_that_is_cancelled_in_the_queue_is_told_at_once() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let background = Background::builder().pool(pool).max_running(1).build();
    let (holder, held_told) = reserve(&background);
    let (body, entered, release) = held();
    holder.spend(body);
    entered.blocking_recv().unwrap();
    let (queued, told) = reserve(&background);
    assert!(queued.spend(Body::of_closure(panics)).cancel());
    assert_eq!(told.once(), Over::Cancelled);
    drop(release);
    assert_eq!(held_told.once(), Over::Completed);
}

#[test]
fn work_that_is_cancelled_while_it_runs_is_over_when_it_ends() {
    let runtime = Runtime::new().unwrap();
    let _inside = runtime.enter();
    let background = on_threads(1);
    let (reservation, told) = reserve(&background);
    let (body, entered, release) = held();
    let task = reservation.spend(body);
    entered.blocking_recv().unwrap();
    assert!(task.cancel());
    told.not_yet();
    drop(release);
    assert_eq!(told.once(), Over::Cancelled);

    let (reservation, told) = reserve(&background);
    let (body, entered) = endless();
    let task = reservation.spend(body);
    entered.blocking_recv().unwrap();
    assert!(task.cancel());
    assert_eq!(told.once(), Over::Cancelled);
}

#[test]
fn a_timeout_is_told_at_once_though_the_closure_goes_on() {
    let runtime = Runtime::new().unwrap();
    let _inside = runtime.enter();
    let background = on_threads(1);
    let (reservation, told) = reserve(&background);
    let (body, _entered, release) = held();
    reservation.timeout(SHORT).spend(body);
    assert_eq!(told.once(), Over::TimedOut);
    assert_eq!(background.stats().running, 1, "it goes on");

    let (reservation, told) = reserve(&background);
    let (body, _entered) = endless();
    reservation.timeout(SHORT).spend(body);
    assert_eq!(told.once(), Over::TimedOut);
    drop(release);
}

#[test]
fn work_whose_runtime_goes_while_it_runs_is_lost() {
    let gone = Runtime::new().unwrap();
    let background = on_threads(1);
    let told = gone.block_on(async {
        let (reservation, told) = reserve(&background);
        let (body, entered) = endless();
        reservation.spend(body);
        entered.await.unwrap();
        told
    });
    drop(gone);
    assert_eq!(told.once(), Over::Lost);
}

#[test]
fn work_whose_runtime_is_gone_before_it_begins_ends_on_the_pool_or_is_refused_there() {
    for (is_shut_down, over) in [(false, Over::Completed), (true, Over::Refused)] {
        let gone = Runtime::new().unwrap();
        let pool = ThreadPool::builder().threads(1).build().unwrap();
        let background = Background::builder().pool(pool.clone()).on_failure(|_| ()).build();
        let (reservation, told) = {
            let _inside = gone.enter();
            reserve(&background)
        };
        if is_shut_down {
            gone.block_on(pool.shutdown(LONG));
        }
        drop(gone);
        reservation.spend(Body::of_future(async {}));
        assert_eq!(told.once(), over);
    }
}

#[tokio::test]
async fn at_the_deadline_of_a_drain_all_that_is_not_over_is_cancelled() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let background = Background::builder().pool(pool).max_running(3).build();
    let (running, running_told) = reserve(&background);
    let (body, entered, release) = held();
    running.spend(body);
    entered.await.unwrap();
    let (body, entered) = endless();
    let (polled, polled_told) = reserve(&background);
    polled.spend(body);
    entered.await.unwrap();
    let (without_thread, without_thread_told) = reserve(&background);
    without_thread.spend(Body::of_closure(panics));
    let (queued, queued_told) = reserve(&background);
    queued.spend(Body::of_closure(panics));
    let (reserved, reserved_told) = reserve(&background);

    assert_eq!(background.drain(Duration::ZERO).await.orphaned.len(), 2);
    for told in [running_told, polled_told, without_thread_told, queued_told] {
        assert_eq!(told.once(), Over::Cancelled);
    }
    reserved_told.not_yet();
    reserved.spend(Body::of_closure(panics));
    assert_eq!(reserved_told.once(), Over::Cancelled);
    drop(release);
}

#[test]
fn a_callback_that_panics_harms_nobody() {
    let background = on_threads(1);
    background.reserve("").unwrap().on_over(|_| panics()).run(|| ());
    drop(background.reserve("").unwrap().on_over(|_| panics()));
    let (reservation, told) = reserve(&background);
    reservation.run(|| ());
    assert_eq!(told.once(), Over::Completed);
}

// ---- chains ----

const LINKS: usize = 1000;

/// Tasks of which each begins when the one before is over.
#[derive(Clone)]
struct Chain {
    left: Arc<Mutex<VecDeque<Reservation>>>,
    /// For each that was over: what became of it, and how deep in the stack that was told.
    told: mpsc::Sender<(Over, usize)>,
}

impl Chain {
    fn start(background: &Background) -> mpsc::Receiver<(Over, usize)> {
        let reservations = (0..LINKS).map(|_| background.reserve("").unwrap()).collect();
        let (tell, told) = mpsc::channel();
        Self { left: Arc::new(Mutex::new(reservations)), told: tell }.next();
        told
    }

    fn next(self) {
        let next = self.left.lock().unwrap().pop_front();
        let Some(reservation) = next else { return };
        let link = move |over| {
            let here = 0_u8;
            self.told.send((over, std::ptr::from_ref(&here).addr())).unwrap();
            self.next();
        };
        reservation.on_over(link).spend(Body::of_closure(|| ()));
    }
}

/// What was told of a chain that ended, and over how much of the stack.
fn ended(told: &mpsc::Receiver<(Over, usize)>, over: Over) -> usize {
    let depths: Vec<_> = (0..LINKS).map(|_| told.recv_timeout(LONG).unwrap()).collect();
    assert!(depths.iter().all(|(told, _)| *told == over));
    assert!(told.recv_timeout(LONG).is_err(), "no link is told twice");
    let (first, last) = (depths.iter().map(|(_, depth)| depth).min(), depths.iter().map(|(_, depth)| depth).max());
    last.unwrap() - first.unwrap()
}

/// A few frames: not one a link.
const SHALLOW: usize = 64 * LINKS;

#[test]
fn a_chain_of_a_thousand_runs_during_a_drain() {
    let runtime = Runtime::new().unwrap();
    let background = on_threads(2);
    let told = Chain::start(&background);
    assert!(runtime.block_on(background.drain(LONG)).is_clean());
    assert_eq!(background.stats().completed, LINKS as u64, "before the drain began, and during it");
    ended(&told, Over::Completed);
}

#[test]
fn a_chain_of_a_thousand_does_not_grow_the_stack_of_a_pool_that_runs_it_in_place() {
    let told = Chain::start(&Background::new(Inline::new()));
    assert!(ended(&told, Over::Completed) < SHALLOW);
}

#[test]
fn a_chain_of_a_thousand_that_a_pool_refuses_does_not_grow_the_stack() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    Runtime::new().unwrap().block_on(pool.shutdown(LONG));
    let background = Background::builder().pool(pool).on_failure(|_| ()).build();
    let told = Chain::start(&background);
    assert!(ended(&told, Over::Refused) < SHALLOW);
}

#[test]
fn a_chain_of_a_thousand_that_was_cancelled_does_not_grow_the_stack() {
    let background = on_threads(1);
    let runtime = Runtime::new().unwrap();
    let (first, first_told) = reserve(&background);
    let reservations = (0..LINKS).map(|_| background.reserve("").unwrap()).collect();
    let (tell, told) = mpsc::channel();
    let chain = Chain { left: Arc::new(Mutex::new(reservations)), told: tell };
    assert_eq!(runtime.block_on(background.drain(Duration::ZERO)).cancelled, 1 + LINKS as u64);
    drop(first);
    assert_eq!(first_told.once(), Over::Cancelled);
    chain.next();
    assert!(ended(&told, Over::Cancelled) < SHALLOW);
}

#[test]
fn a_thousand_in_the_queue_of_a_pool_that_refuses_them_do_not_grow_the_stack() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let background = Background::builder().pool(pool.clone()).max_running(1).on_failure(|_| ()).build();
    let (holder, _told) = reserve(&background);
    let (body, entered, release) = held();
    holder.spend(body);
    entered.blocking_recv().unwrap();
    let (tell, told) = mpsc::channel();
    for _ in 0..LINKS {
        let tell = tell.clone();
        let say = move |over| {
            let here = 0_u8;
            tell.send((over, std::ptr::from_ref(&here).addr())).unwrap();
        };
        background.reserve("").unwrap().on_over(say).run(panics);
    }
    drop(tell);
    Runtime::new().unwrap().block_on(pool.shutdown(Duration::ZERO));
    drop(release);
    assert!(ended(&told, Over::Refused) < SHALLOW);
}
