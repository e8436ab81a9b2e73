//! Completion callbacks: each runs once, at the right time, and chains of tasks do not recurse.
#![allow(clippy::unwrap_used)]

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use tokio::{runtime::Runtime, sync::oneshot};

use super::Completion;
use crate::{
    Background, ThreadPool,
    background::{Reservation, TaskBody},
    pool::{Inline, Pool},
};

/// Longer than any passing test takes.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(5);

fn with_threads(threads: usize) -> Background {
    let pool = ThreadPool::builder().threads(threads).build().unwrap();
    Background::builder().pool(pool).on_failure(|_| ()).build()
}

/// Returns a background whose pool is shut down.
fn with_closed_pool() -> Background {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    Runtime::new().unwrap().block_on(pool.shutdown(LONG));
    Background::builder().pool(pool).on_failure(|_| ()).build()
}

/// Receives the completion of one task. The sender is part of the callback, so the channel is
/// disconnected once the callback has run or was dropped.
struct CompletionReceiver(mpsc::Receiver<Completion>);

impl CompletionReceiver {
    /// Waits for the completion, and asserts that there is no second one.
    #[track_caller]
    fn recv(self) -> Completion {
        let completion = self.0.recv_timeout(LONG).expect("the callback runs");
        assert_eq!(self.0.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected), "it runs once");
        completion
    }

    #[track_caller]
    fn assert_pending(&self) {
        assert_eq!(self.0.try_recv(), Err(mpsc::TryRecvError::Empty));
    }
}

fn reserve(background: &Background) -> (Reservation, CompletionReceiver) {
    let (sender, receiver) = mpsc::channel();
    let inner = background.clone();
    let reservation = background.reserve("").unwrap().on_completion(move |completion| {
        inner.stats(); // deadlocks if the callback runs under the lock
        sender.send(completion).unwrap();
    });
    (reservation, CompletionReceiver(receiver))
}

/// Returns a closure that signals its start and then blocks until the sender is dropped.
fn blocked() -> (TaskBody, oneshot::Receiver<()>, mpsc::Sender<()>) {
    let (release, released) = mpsc::channel::<()>();
    let (start, started) = oneshot::channel();
    let work = move || {
        start.send(()).unwrap();
        let _ = released.recv();
    };
    (TaskBody::from_closure(work), started, release)
}

/// Returns a future that signals its first poll and never completes.
fn endless() -> (TaskBody, oneshot::Receiver<()>) {
    let (start, started) = oneshot::channel();
    let work = async move {
        start.send(()).unwrap();
        std::future::pending::<()>().await;
    };
    (TaskBody::from_future(work), started)
}

fn panics() {
    panic!("in a task");
}

#[test]
fn finished_work_completes_or_fails() {
    let runtime = Runtime::new().unwrap();
    let _entered = runtime.enter();
    let background = with_threads(1);
    let bodies = [
        (TaskBody::from_closure(|| ()), Completion::Completed),
        (TaskBody::from_closure(|| Err("no")), Completion::Failed),
        (TaskBody::from_closure(panics), Completion::Failed),
        (TaskBody::from_future(async {}), Completion::Completed),
        (TaskBody::from_future(async { Err::<(), _>("no") }), Completion::Failed),
        (TaskBody::from_future(async { panics() }), Completion::Failed),
    ];
    for (body, expected) in bodies {
        let (reservation, completion) = reserve(&background);
        reservation.submit(body);
        assert_eq!(completion.recv(), expected);
    }
}

#[test]
fn callbacks_run_in_order_even_if_the_first_panics() {
    let background = with_threads(1);
    let (sender, completions) = mpsc::channel();
    let (first, second) = (sender.clone(), sender);
    let reservation = background.reserve("").unwrap();
    let reservation = reservation.on_completion(move |completion| {
        first.send((1, completion)).unwrap();
        panics();
    });
    drop(reservation.on_completion(move |completion| second.send((2, completion)).unwrap()));
    assert_eq!(completions.iter().collect::<Vec<_>>(), [(1, Completion::Skipped), (2, Completion::Skipped)]);
}

#[test]
fn a_dropped_reservation_is_skipped_unless_it_was_cancelled() {
    let background = with_threads(1);
    let (skipped, completion) = reserve(&background);
    drop(skipped);
    assert_eq!(completion.recv(), Completion::Skipped);

    let (dropped, completion) = reserve(&background);
    assert!(background.cancel_id(dropped.id()) && !background.cancel_id(dropped.id()));
    completion.assert_pending();
    drop(dropped);
    assert_eq!(completion.recv(), Completion::Cancelled);

    let (submitted, completion) = reserve(&background);
    assert!(submitted.handle().cancel());
    completion.assert_pending();
    submitted.spawn_blocking(panics);
    assert_eq!(completion.recv(), Completion::Cancelled);
    assert_eq!(background.cancel(""), 0);
    let stats = background.stats();
    assert_eq!((stats.skipped, stats.cancelled, stats.failed), (1, 2, 0));
}

#[test]
fn a_callback_added_after_the_cancellation_still_runs() {
    let background = with_threads(1);
    let reservation = background.reserve("late").unwrap();
    assert_eq!(background.cancel("late"), 1);
    let (sender, receiver) = mpsc::channel();
    reservation.on_completion(move |completion| sender.send(completion).unwrap()).spawn_blocking(panics);
    assert_eq!(CompletionReceiver(receiver).recv(), Completion::Cancelled);
}

#[test]
fn cancelled_queued_work_completes_at_once() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let background = Background::builder().pool(pool).max_running(1).build();
    let (running, running_completion) = reserve(&background);
    let (body, started, release) = blocked();
    running.submit(body);
    started.blocking_recv().unwrap();
    let (queued, completion) = reserve(&background);
    assert!(queued.spawn_blocking(panics).cancel());
    assert_eq!(completion.recv(), Completion::Cancelled);
    drop(release);
    assert_eq!(running_completion.recv(), Completion::Completed);
}

/// A callback may free what the work has used.
#[test]
fn cancelled_queued_work_is_dropped_before_its_callback_runs() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let background = Background::builder().pool(pool).max_running(1).build();
    let (running, _completion) = reserve(&background);
    let (body, started, _release) = blocked();
    running.submit(body);
    started.blocking_recv().unwrap();
    let used = Arc::new(());
    let (in_work, weak) = (used.clone(), Arc::downgrade(&used));
    drop(used);
    let (sender, receiver) = mpsc::channel();
    let queued = background.reserve("").unwrap();
    let queued = queued.on_completion(move |_| sender.send(weak.strong_count()).unwrap());
    assert!(queued.spawn_blocking(move || drop(in_work)).cancel());
    assert_eq!(receiver.recv_timeout(LONG), Ok(0));
}

#[test]
fn cancelled_running_work_completes_when_it_ends() {
    let runtime = Runtime::new().unwrap();
    let _entered = runtime.enter();
    let background = with_threads(1);
    let (reservation, completion) = reserve(&background);
    let (body, started, release) = blocked();
    let task = reservation.submit(body);
    started.blocking_recv().unwrap();
    assert!(task.cancel());
    completion.assert_pending();
    drop(release);
    assert_eq!(completion.recv(), Completion::Cancelled);

    let (reservation, completion) = reserve(&background);
    let (body, started) = endless();
    let task = reservation.submit(body);
    started.blocking_recv().unwrap();
    assert!(task.cancel());
    assert_eq!(completion.recv(), Completion::Cancelled);
}

#[test]
fn a_closure_completes_at_its_timeout_while_it_runs() {
    let runtime = Runtime::new().unwrap();
    let _entered = runtime.enter();
    let background = with_threads(2);
    let (reservation, completion) = reserve(&background);
    let (body, _started, release) = blocked();
    reservation.timeout(SHORT).submit(body);
    assert_eq!(completion.recv(), Completion::TimedOut);
    assert_eq!(background.stats().running, 1, "the closure keeps its permit");

    let (reservation, completion) = reserve(&background);
    let (body, _started) = endless();
    reservation.timeout(SHORT).submit(body);
    assert_eq!(completion.recv(), Completion::TimedOut);
    drop(release);
}

#[test]
fn a_default_timeout_yields_to_the_timeout_of_the_task() {
    let runtime = Runtime::new().unwrap();
    let _entered = runtime.enter();
    let background = with_threads(1);
    let limited = background.task("").timeout(SHORT).reserve().unwrap().default_timeout(LONG);
    let unlimited = background.task("").reserve().unwrap().default_timeout(SHORT);
    for reservation in [limited, unlimited] {
        let (sender, receiver) = mpsc::channel();
        let (body, _started) = endless();
        reservation.on_completion(move |completion| sender.send(completion).unwrap()).submit(body);
        assert_eq!(CompletionReceiver(receiver).recv(), Completion::TimedOut);
    }
}

#[test]
fn a_task_whose_runtime_shuts_down_while_it_runs_is_lost() {
    let runtime = Runtime::new().unwrap();
    let background = with_threads(1);
    let completion = runtime.block_on(async {
        let (reservation, completion) = reserve(&background);
        let (body, started) = endless();
        reservation.on_runtime().submit(body);
        started.await.unwrap();
        completion
    });
    drop(runtime);
    assert_eq!(completion.recv(), Completion::Lost);
}

#[test]
fn a_task_whose_runtime_is_gone_at_its_start_uses_the_pool() {
    for (background, expected) in [(with_threads(1), Completion::Completed), (with_closed_pool(), Completion::Refused)]
    {
        let runtime = Runtime::new().unwrap();
        let (reservation, completion) = {
            let _entered = runtime.enter();
            reserve(&background)
        };
        drop(runtime);
        reservation.on_runtime().submit(TaskBody::from_future(async {}));
        assert_eq!(completion.recv(), expected);
    }
}

#[tokio::test]
async fn a_timed_out_shutdown_completes_every_task_as_cancelled() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let background = Background::builder().pool(pool).max_running(3).build();
    let (running, running_completion) = reserve(&background);
    let (body, started, release) = blocked();
    running.submit(body);
    started.await.unwrap();
    let (body, started) = endless();
    let (polled, polled_completion) = reserve(&background);
    polled.on_runtime().submit(body);
    started.await.unwrap();
    let (dispatched, dispatched_completion) = reserve(&background);
    dispatched.spawn_blocking(panics);
    let (queued, queued_completion) = reserve(&background);
    queued.spawn_blocking(panics);
    let (reserved, reserved_completion) = reserve(&background);

    assert_eq!(background.shutdown(Duration::ZERO).await.still_running.len(), 2);
    for completion in [running_completion, polled_completion, dispatched_completion, queued_completion] {
        assert_eq!(completion.recv(), Completion::Cancelled);
    }
    reserved_completion.assert_pending();
    reserved.spawn_blocking(panics);
    assert_eq!(reserved_completion.recv(), Completion::Cancelled);
    drop(release);
}

#[test]
fn a_panicking_callback_does_not_affect_other_tasks() {
    let background = with_threads(1);
    background.reserve("").unwrap().on_completion(|_| panics()).spawn_blocking(|| ());
    drop(background.reserve("").unwrap().on_completion(|_| panics()));
    let (reservation, completion) = reserve(&background);
    reservation.spawn_blocking(|| ());
    assert_eq!(completion.recv(), Completion::Completed);
}

const CHAIN_LENGTH: usize = 1000;

/// Reservations, each of which is submitted by the completion callback of the previous one.
#[derive(Clone)]
struct Chain {
    remaining: Arc<Mutex<VecDeque<Reservation>>>,
    /// Receives the completion of each task, and the stack address of its callback.
    sender: mpsc::Sender<(Completion, usize)>,
}

impl Chain {
    fn new(background: &Background) -> (Self, mpsc::Receiver<(Completion, usize)>) {
        let reservations = (0..CHAIN_LENGTH).map(|_| background.reserve("").unwrap()).collect();
        let (sender, receiver) = mpsc::channel();
        (Self { remaining: Arc::new(Mutex::new(reservations)), sender }, receiver)
    }

    fn submit_next(self) {
        let next = self.remaining.lock().unwrap().pop_front();
        let Some(reservation) = next else { return };
        let callback = move |completion| {
            self.sender.send((completion, stack_address())).unwrap();
            self.submit_next();
        };
        reservation.on_completion(callback).spawn_blocking(|| ());
    }
}

fn stack_address() -> usize {
    let local = 0_u8;
    std::ptr::from_ref(&local).addr()
}

/// Waits for all completions of a chain. Returns the size of the stack that its callbacks used.
fn stack_size(receiver: &mpsc::Receiver<(Completion, usize)>, expected: Completion) -> usize {
    let callbacks: Vec<_> = (0..CHAIN_LENGTH).map(|_| receiver.recv_timeout(LONG).unwrap()).collect();
    assert!(callbacks.iter().all(|(completion, _)| *completion == expected));
    assert!(receiver.recv_timeout(LONG).is_err(), "each callback runs once");
    let addresses = || callbacks.iter().map(|(_, address)| *address);
    addresses().max().unwrap() - addresses().min().unwrap()
}

/// Enough for a few stack frames, but not for one per task.
const MAX_STACK_SIZE: usize = 64 * CHAIN_LENGTH;

#[test]
fn a_chain_of_tasks_runs_to_its_end_during_a_shutdown() {
    let runtime = Runtime::new().unwrap();
    let background = with_threads(2);
    let (chain, receiver) = Chain::new(&background);
    chain.submit_next();
    assert!(runtime.block_on(background.shutdown(LONG)).is_clean());
    assert_eq!(background.stats().completed, CHAIN_LENGTH as u64);
    stack_size(&receiver, Completion::Completed);
}

#[test]
fn a_chain_on_an_inline_pool_does_not_recurse() {
    let (chain, receiver) = Chain::new(&Background::new(Inline::new()));
    chain.submit_next();
    assert!(stack_size(&receiver, Completion::Completed) < MAX_STACK_SIZE);
}

#[test]
fn a_chain_that_the_pool_refuses_does_not_recurse() {
    let (chain, receiver) = Chain::new(&with_closed_pool());
    chain.submit_next();
    assert!(stack_size(&receiver, Completion::Refused) < MAX_STACK_SIZE);
}

#[test]
fn a_cancelled_chain_does_not_recurse() {
    let background = with_threads(1);
    let runtime = Runtime::new().unwrap();
    let (first, first_completion) = reserve(&background);
    let (chain, receiver) = Chain::new(&background);
    let report = runtime.block_on(background.shutdown(Duration::ZERO));
    assert_eq!(report.cancelled, 1 + CHAIN_LENGTH as u64);
    drop(first);
    assert_eq!(first_completion.recv(), Completion::Cancelled);
    chain.submit_next();
    assert!(stack_size(&receiver, Completion::Cancelled) < MAX_STACK_SIZE);
}

#[test]
fn a_queue_that_the_pool_refuses_does_not_recurse() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let background = Background::builder().pool(pool.clone()).max_running(1).on_failure(|_| ()).build();
    let (running, _completion) = reserve(&background);
    let (body, started, release) = blocked();
    running.submit(body);
    started.blocking_recv().unwrap();
    let (sender, receiver) = mpsc::channel();
    for _ in 0..CHAIN_LENGTH {
        let sender = sender.clone();
        let callback = move |completion| sender.send((completion, stack_address())).unwrap();
        background.reserve("").unwrap().on_completion(callback).spawn_blocking(panics);
    }
    drop(sender);
    Runtime::new().unwrap().block_on(pool.shutdown(Duration::ZERO));
    drop(release);
    assert!(stack_size(&receiver, Completion::Refused) < MAX_STACK_SIZE);
}
