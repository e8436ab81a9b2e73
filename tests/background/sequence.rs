use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use tokio::sync::oneshot;
use tower_offload::{
    Background,
    background::{Completion, Reservation, cancelled},
    pool::Inline,
};
use tower_offload_tests::{PATIENCE, Random, eventually};

use crate::support::{Blocked, LONG, Log, panics, shut_down, with_failure_log, with_threads};

/// Submits a closure to a sequence that blocks until it is released, and waits until it has
/// started.
async fn block_sequence(background: &Background, key: &str) -> Blocked {
    let (release, released) = mpsc::channel::<()>();
    let (start, started) = oneshot::channel();
    let task = background.task("head").sequence(key).spawn_blocking(move || {
        start.send(()).unwrap();
        let _ = released.recv();
    });
    started.await.unwrap();
    Blocked::new(task.unwrap(), release)
}

#[tokio::test]
async fn tasks_of_a_sequence_run_in_order_and_never_overlap() {
    let background = with_threads(4).build();
    let (log, is_running) = (Log::default(), Arc::new(AtomicBool::new(false)));
    for number in 0..100 {
        let (log, is_running) = (log.clone(), is_running.clone());
        let enter = move || {
            assert!(!is_running.swap(true, SeqCst), "two tasks of a sequence overlap");
            log.add(number);
            is_running
        };
        let task = background.task("").sequence("key");
        match number % 3 {
            0 => task.spawn_blocking(move || enter().store(false, SeqCst)),
            1 => task.spawn(async move {
                let is_running = enter();
                tokio::task::yield_now().await;
                is_running.store(false, SeqCst);
            }),
            _ => task.on_runtime().spawn(async move {
                let is_running = enter();
                tokio::task::yield_now().await;
                is_running.store(false, SeqCst);
            }),
        }
        .unwrap();
    }
    assert_eq!(shut_down(&background).await.completed, 100);
    assert_eq!(log.entries(), (0..100).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_sequence_uses_one_permit_and_others_run_meanwhile() {
    let background = with_threads(2).max_running(2).build();
    let head = block_sequence(&background, "a").await;
    let log = Log::default();
    for name in ["a2", "a3"] {
        let log = log.clone();
        background.task(name).sequence("a").spawn_blocking(move || log.add(name)).unwrap();
    }
    let (sender, others) = mpsc::channel();
    for key in [Some("b"), None, Some("c")] {
        let sender = sender.clone();
        let task = background.task("other");
        let task = if let Some(key) = key { task.sequence(key) } else { task };
        task.spawn_blocking(move || sender.send(key).unwrap()).unwrap();
    }
    let ran: Vec<_> = (0..3).map(|_| others.recv_timeout(LONG).unwrap()).collect();
    assert_eq!(ran, [Some("b"), None, Some("c")]);
    assert!(log.entries().is_empty());
    let stats = background.stats();
    assert_eq!((stats.in_sequence, stats.queued), (2, 0), "{stats:?}");
    head.release();
    shut_down(&background).await;
    assert_eq!(log.entries(), ["a2", "a3"]);
}

/// A task that waits for its sequence does not lose its place to tasks that were submitted later.
#[tokio::test]
async fn the_oldest_task_that_may_run_gets_a_free_permit() {
    let background = with_threads(1).max_running(1).build();
    let head = block_sequence(&background, "a").await;
    let log = Log::default();
    for name in ["a2", "b1", "a3", "none", "b2"] {
        let entry = log.clone();
        let task = background.task(name);
        let task = if name == "none" { task } else { task.sequence(&name[..1]) };
        task.spawn_blocking(move || entry.add(name)).unwrap();
    }
    head.release();
    shut_down(&background).await;
    assert_eq!(log.entries(), ["a2", "b1", "a3", "none", "b2"]);
}

#[tokio::test]
async fn keys_of_different_types_with_equal_hashes_are_one_sequence() {
    let background = with_threads(2).max_running(2).build();
    let _head = block_sequence(&background, "7").await;
    background.task("same").sequence("7".to_owned()).spawn_blocking(|| ()).unwrap();
    assert_eq!(background.stats().in_sequence, 1);
    let (sender, ran) = mpsc::channel();
    background.task("other").sequence(7).spawn_blocking(move || sender.send(()).unwrap()).unwrap();
    assert_eq!(ran.recv_timeout(LONG), Ok(()));
}

/// However a task ends, the next one of its sequence starts.
#[tokio::test]
async fn the_end_of_a_task_releases_its_sequence() {
    let (background, _) = with_failure_log(with_threads(2));
    let sequence = |name| background.task(name).sequence("key");
    let log = Log::default();
    let add = |name: &'static str| {
        let log = log.clone();
        move || log.add(name)
    };
    let head = block_sequence(&background, "key").await;
    sequence("error").spawn_blocking(|| Err("no")).unwrap();
    sequence("after an error").spawn_blocking(add("after an error")).unwrap();
    sequence("panic").spawn_blocking(|| panics("a task")).unwrap();
    sequence("after a panic").spawn(async { panics("a future") }).unwrap();
    sequence("after two panics").spawn_blocking(add("after two panics")).unwrap();
    sequence("late").timeout(Duration::from_millis(1)).spawn(std::future::pending::<()>()).unwrap();
    sequence("after a timeout").spawn_blocking(add("after a timeout")).unwrap();
    let waiting = sequence("cancelled while it waits").spawn_blocking(|| panics("ran")).unwrap();
    let (start, started) = oneshot::channel();
    let running = async move {
        start.send(()).unwrap();
        std::future::pending::<()>().await;
    };
    let running = sequence("cancelled while it runs").spawn(running).unwrap();
    sequence("after a cancellation").spawn_blocking(add("after a cancellation")).unwrap();
    drop(sequence("skipped").reserve().unwrap());
    assert!(waiting.cancel() && !waiting.cancel());
    head.release();
    started.await.unwrap();
    assert!(running.cancel());
    let stats = shut_down(&background).await;
    assert_eq!(log.entries(), ["after an error", "after two panics", "after a timeout", "after a cancellation"]);
    assert_eq!((stats.failed, stats.cancelled, stats.skipped, stats.completed), (4, 2, 1, 5));
}

#[tokio::test]
async fn a_closure_past_its_timeout_keeps_its_sequence_until_it_returns() {
    let background = with_threads(2).max_running(2).build();
    let (proceed, proceeds) = mpsc::channel::<()>();
    let (saw_cancelled, cancellation) = oneshot::channel();
    let late = background.task("late").sequence("key").timeout(Duration::from_millis(200));
    late.spawn_blocking(move || {
        while !cancelled() {
            std::thread::yield_now();
        }
        saw_cancelled.send(()).unwrap();
        let _ = proceeds.recv();
    })
    .unwrap();
    let log = Log::default();
    let next = log.clone();
    background.task("next").sequence("key").spawn_blocking(move || next.add("next")).unwrap();
    cancellation.await.unwrap();
    let stats = background.stats();
    assert_eq!((stats.running, stats.in_sequence), (1, 1), "{stats:?}");
    assert!(log.entries().is_empty());
    drop(proceed);
    shut_down(&background).await;
    assert_eq!(log.entries(), ["next"]);
}

#[tokio::test]
async fn the_next_task_starts_after_the_completion_callbacks_of_the_last_one() {
    let background = with_threads(2).max_running(2).build();
    let log = Log::default();
    let (callback, next) = (log.clone(), log.clone());
    let first = background.task("").sequence("key").reserve().unwrap();
    let first = first.on_completion(move |completion| callback.add(format!("{completion:?}")));
    first.spawn_blocking(|| ());
    background.task("").sequence("key").spawn_blocking(move || next.add("next")).unwrap();
    shut_down(&background).await;
    assert_eq!(log.entries(), ["Completed", "next"]);
}

/// The place in a sequence is that of the submission, so a reservation delays no other task.
#[tokio::test]
async fn a_reservation_without_work_does_not_hold_its_sequence() {
    let background = with_threads(2).build();
    let log = Log::default();
    let reserve = || background.reserve("").unwrap().sequence("key").unwrap();
    let (first, second) = (reserve(), reserve());
    let submit = |reservation: Reservation, name: &'static str| {
        let log = log.clone();
        reservation.spawn_blocking(move || log.add(name))
    };
    submit(second, "second");
    eventually("the second task has run", async || log.entries() == ["second"]).await;
    submit(first, "first");
    shut_down(&background).await;
    assert_eq!(log.entries(), ["second", "first"]);
}

#[tokio::test]
async fn a_sequence_gets_at_most_half_of_the_places() {
    let background = with_threads(1).max_tasks(8).max_running(1).build();
    let head = block_sequence(&background, "a").await;
    let submit = |key: &str| background.task("").sequence(key).spawn_blocking(|| ());
    let accepted = |key: &str| std::iter::from_fn(|| submit(key).ok()).count();
    assert_eq!(accepted("a"), 3, "with the head that is half");
    let error = submit("a").unwrap_err();
    assert!(error.is_full() && !error.is_closed() && error.to_string().contains("sequence"), "{error}");
    assert_eq!((accepted("b"), accepted("c"), accepted("d"), accepted("e")), (2, 1, 1, 0));
    let other = background.reserve("").unwrap_err();
    assert!(other.is_full() && !other.to_string().contains("sequence"), "{other}");
    head.release();
    let stats = shut_down(&background).await;
    assert_eq!((stats.completed, stats.rejected), (8, 7));
}

#[tokio::test]
async fn a_reservation_that_cannot_join_its_sequence_is_rejected() {
    let background = with_threads(1).max_tasks(2).max_running(1).build();
    let head = block_sequence(&background, "a").await;
    let (sender, completions) = mpsc::channel();
    let reservation = background.reserve("").unwrap().on_completion(move |completion| sender.send(completion).unwrap());
    assert!(reservation.sequence("a").unwrap_err().is_full());
    assert_eq!(completions.try_recv(), Ok(Completion::Skipped));
    let stats = background.stats();
    assert_eq!((stats.rejected, stats.skipped, stats.reserved), (1, 0, 0));
    let moved = background.reserve("").unwrap().sequence("b").unwrap().sequence("c").unwrap();
    assert!(moved.sequence("a").is_err(), "its own place is the only one that is free");
    head.release();
    assert_eq!(shut_down(&background).await.completed, 1);
}

#[tokio::test]
async fn tasks_that_wait_for_their_sequence_are_cancelled_at_the_end_of_a_shutdown() {
    let background = with_threads(2).max_running(2).build();
    let head = block_sequence(&background, "key").await;
    let alive = Arc::new(());
    for name in ["by name", "by the shutdown", "by name"] {
        let captured = alive.clone();
        background.task(name).sequence("key").spawn_blocking(move || panics(&format!("{captured:?}"))).unwrap();
    }
    assert_eq!(background.cancel("by name"), 2);
    assert_eq!(Arc::strong_count(&alive), 2, "they are dropped at once");
    let report = background.shutdown(Duration::from_millis(1)).await;
    assert_eq!((report.cancelled, report.still_running.len()), (1, 1));
    eventually("it is dropped", async || Arc::strong_count(&alive) == 1).await;
    head.release();
    assert_eq!(shut_down(&background).await.cancelled, 4);
}

#[tokio::test]
async fn a_shutdown_waits_for_the_whole_sequence() {
    let background = with_threads(2).build();
    let head = block_sequence(&background, "key").await;
    let log = Log::default();
    let (inner, nested) = (background.clone(), log.clone());
    let submit_next = move || {
        inner.task("").sequence("key").spawn_blocking(move || nested.add("nested")).unwrap();
    };
    background.task("").sequence("key").spawn_blocking(submit_next).unwrap();
    let last = log.clone();
    background.task("").sequence("key").spawn_blocking(move || last.add("last")).unwrap();
    let mut shutdown = Box::pin(background.shutdown(LONG));
    assert!(futures_util::poll!(&mut shutdown).is_pending());
    head.release();
    assert!(shutdown.await.is_clean());
    assert_eq!(log.entries(), ["last", "nested"]);
}

/// Each task runs and ends within the submission or within the end of the one before it.
#[tokio::test]
async fn a_long_sequence_on_an_inline_pool_does_not_recurse() {
    let background = Background::builder().pool(Inline::new()).max_tasks(100_000).build();
    let log = Log::default();
    let (inner, entry) = (background.clone(), log.clone());
    let submit_all = move || {
        for number in 0..20_000 {
            let entry = entry.clone();
            inner.task("").sequence("key").spawn_blocking(move || entry.add(number)).unwrap();
        }
    };
    background.task("").sequence("key").spawn_blocking(submit_all).unwrap();
    assert_eq!(shut_down(&background).await.completed, 20_001);
    assert!(log.entries().iter().map(|entry| entry.parse::<u32>().unwrap()).is_sorted());
}

/// Threads submit, cancel and skip tasks of a few sequences, and shut the background down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_sequence_overlaps_or_gets_stuck_under_load() {
    const KEYS: usize = 3;
    const PER_THREAD: usize = 300;
    let background = with_threads(4).max_tasks(10_000).build();
    let running: Arc<[AtomicBool; KEYS]> = Arc::default();
    let order: Arc<[Mutex<Order>; KEYS]> = Arc::default();
    let ran = Arc::new(AtomicUsize::new(0));
    let runtime = tokio::runtime::Handle::current();
    let mut random = Random::new(7);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (background, running, order, ran) = (&background, &running, &order, &ran);
            let (mut random, runtime) = (random.split(), &runtime);
            scope.spawn(move || {
                let _entered = runtime.enter();
                for _ in 0..PER_THREAD {
                    let key = random.below(KEYS);
                    let (is_async, fails, yields) = (random.one_in(2), random.one_in(5), random.below(3));
                    let reservation = background.task("").sequence(key).reserve().unwrap();
                    if random.one_in(10) {
                        drop(reservation);
                        continue;
                    }
                    let (running, ran, order_of_task) = (running.clone(), ran.clone(), order.clone());
                    let mut order_of_key = order[key].lock().unwrap();
                    let number = order_of_key.submitted;
                    order_of_key.submitted += 1;
                    let enter = move || {
                        let mut order = order_of_task[key].lock().unwrap();
                        order.overlaps += usize::from(running[key].swap(true, SeqCst));
                        order.started.push(number);
                        drop(order);
                        ran.fetch_add(1, SeqCst);
                        Leave(running, key)
                    };
                    let handle = if is_async {
                        reservation.spawn(async move {
                            let _leave = enter();
                            for _ in 0..yields {
                                tokio::task::yield_now().await;
                            }
                            if fails { Err("no") } else { Ok(()) }
                        })
                    } else {
                        reservation.spawn_blocking(move || {
                            let _leave = enter();
                            (0..yields).for_each(|_| std::thread::yield_now());
                            if fails { Err("no") } else { Ok(()) }
                        })
                    };
                    drop(order_of_key);
                    if random.one_in(10) {
                        handle.cancel();
                    }
                }
            });
        }
    });
    let report = background.shutdown(PATIENCE).await;
    assert!(report.still_running.is_empty(), "{report}");
    let stats = background.stats();
    assert_eq!(stats.completed + stats.failed + stats.cancelled + stats.skipped, 4 * PER_THREAD as u64);
    assert!(stats.completed + stats.failed <= ran.load(SeqCst) as u64, "{stats:?}");
    for key in &*order {
        let Order { overlaps, ref started, .. } = *key.lock().unwrap();
        assert_eq!(overlaps, 0);
        assert!(started.is_sorted() && started.len() > PER_THREAD / 2, "{started:?}");
    }
}

/// Tasks of one sequence.
#[derive(Default)]
struct Order {
    /// The number of tasks that were submitted. Each has this number before it was submitted.
    submitted: usize,
    /// The numbers of the tasks that have started, in their order.
    started: Vec<usize>,
    /// The number of tasks that started while another one was running.
    overlaps: usize,
}

/// Marks a sequence as free, when a task returns or its future is dropped.
struct Leave(Arc<[AtomicBool; 3]>, usize);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0[self.1].store(false, SeqCst);
    }
}
