use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use loom::thread;

use super::{Action, Class, Dequeued, Limits, Linger, QueueItem, Scheduler, WakeUp, WorkerState};
use crate::pool::{Priority, watchdog::Watchdog};

impl QueueItem for u32 {
    fn queued_at(&self) -> tokio::time::Instant {
        tokio::time::Instant::now()
    }
}

fn scheduler(min: usize, max: usize) -> Arc<Scheduler<u32>> {
    Arc::new(Scheduler::new(Limits { min, max }, false))
}

/// Runs entries like a worker, and spawns the workers that the scheduler asks for.
fn work(
    scheduler: &Arc<Scheduler<u32>>,
    mut worker: WorkerState<u32>,
    keep_alive: Option<Duration>,
    run: &Arc<dyn Fn(u32) + Send + Sync>,
) {
    loop {
        match scheduler.next(&mut worker, keep_alive != Some(Duration::ZERO)) {
            Action::Run(Dequeued { item, spawn_worker, .. }) => {
                if spawn_worker {
                    let (scheduler, run) = (scheduler.clone(), run.clone());
                    thread::spawn(move || work(&scheduler, WorkerState::notified(), keep_alive, &run));
                }
                run(item);
            }
            Action::Search => scheduler.search(&mut worker),
            Action::Park if scheduler.park(&mut worker, keep_alive) => {}
            Action::Park | Action::Exit => return,
        }
    }
}

/// Two threads push the entries 1 and 2. A thread whose push asks for a worker becomes that worker.
/// `woken` selects the entries that bypass the inbox.
fn entries_pushed_by_two_threads_run_once(woken: fn(u32) -> bool) {
    loom::model(move || {
        let scheduler = scheduler(0, 1);
        let ran = Arc::new(AtomicU32::new(0));
        let run: Arc<dyn Fn(u32) + Send + Sync> = Arc::new({
            let ran = ran.clone();
            move |item| _ = ran.fetch_add(item, Ordering::SeqCst)
        });
        let push = |item: u32| {
            let (scheduler, run) = (scheduler.clone(), run.clone());
            move || {
                if scheduler.push(item, Class::of(Priority::Normal, woken(item))) == WakeUp::Spawn {
                    work(&scheduler, WorkerState::notified(), Some(Duration::ZERO), &run);
                }
            }
        };
        let other = thread::spawn(push(2));
        push(1)();
        other.join().unwrap();
        assert_eq!(ran.load(Ordering::SeqCst), 3);
        assert_eq!(scheduler.workers(), 0);
    });
}

#[test]
fn a_new_and_a_woken_call_run_once_without_a_minimum() {
    entries_pushed_by_two_threads_run_once(|item| item == 2);
}

#[test]
fn new_calls_run_once_without_a_minimum() {
    entries_pushed_by_two_threads_run_once(|_| false);
}

/// The only worker, this thread, is busy with an entry that has opened the inbox. It closes the
/// inbox when it exits.
#[test]
fn entry_pushed_while_the_inbox_closes_is_run() {
    loom::model(|| {
        let (scheduler, mut worker) = (scheduler(0, 1), WorkerState::busy());
        assert!(scheduler.add_worker());
        assert_eq!(scheduler.push(1, Class::of(Priority::Normal, false)), WakeUp::None);
        assert!(matches!(scheduler.next(&mut worker, false), Action::Run(_)));
        let ran = Arc::new(AtomicU32::new(0));
        let run: Arc<dyn Fn(u32) + Send + Sync> = Arc::new({
            let ran = ran.clone();
            move |item| _ = ran.fetch_add(item, Ordering::SeqCst)
        });
        let submitter = thread::spawn({
            let (scheduler, run) = (scheduler.clone(), run.clone());
            move || {
                if scheduler.push(2, Class::of(Priority::Normal, false)) == WakeUp::Spawn {
                    work(&scheduler, WorkerState::notified(), Some(Duration::ZERO), &run);
                }
            }
        });
        work(&scheduler, worker, Some(Duration::ZERO), &run);
        submitter.join().unwrap();
        assert_eq!(ran.load(Ordering::SeqCst), 2);
        assert_eq!(scheduler.workers(), 0);
    });
}

/// The scheduler is closed only after the entries have run. Loom reports a lost wake-up as a
/// deadlock. `woken` selects the entries that bypass the inbox.
fn entries_run_without_further_wake_ups(workers: usize, entries: u32, woken: fn(u32) -> bool) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(move || {
        let scheduler = scheduler(workers, workers);
        let done = Arc::new(loom::sync::Notify::new());
        let remaining = Arc::new(AtomicU32::new(entries));
        let run: Arc<dyn Fn(u32) + Send + Sync> = Arc::new({
            let done = done.clone();
            move |item| {
                assert!(item < entries);
                if remaining.fetch_sub(1, Ordering::SeqCst) == 1 {
                    done.notify();
                }
            }
        });
        let threads: Vec<_> = (0..workers)
            .map(|_| {
                assert!(scheduler.add_worker());
                let (scheduler, run) = (scheduler.clone(), run.clone());
                thread::spawn(move || work(&scheduler, WorkerState::busy(), None, &run))
            })
            .collect();
        for item in 0..entries {
            assert_ne!(scheduler.push(item, Class::of(Priority::Normal, woken(item))), WakeUp::Spawn);
        }
        done.wait();
        scheduler.close();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(scheduler.workers(), 0);
    });
}

#[test]
fn entry_pushed_while_the_only_worker_parks_is_run() {
    entries_run_without_further_wake_ups(1, 2, |item| item == 0);
}

#[test]
fn entry_in_the_inbox_while_the_only_worker_parks_is_run() {
    entries_run_without_further_wake_ups(1, 2, |_| false);
}

/// Covers the idle stack, chained wake-ups and the search.
#[test]
fn two_workers_share_two_entries_and_lose_no_wake_up() {
    entries_run_without_further_wake_ups(2, 2, |item| item == 0);
}

#[test]
fn entry_pushed_after_close_gets_a_worker() {
    loom::model(|| {
        let scheduler = scheduler(1, 1);
        assert!(scheduler.add_worker());
        let ran = Arc::new(AtomicU32::new(0));
        let run: Arc<dyn Fn(u32) + Send + Sync> = Arc::new({
            let ran = ran.clone();
            move |item| _ = ran.fetch_add(item, Ordering::SeqCst)
        });
        let worker = {
            let (scheduler, run) = (scheduler.clone(), run.clone());
            thread::spawn(move || work(&scheduler, WorkerState::busy(), None, &run))
        };
        scheduler.close();
        let spawn_worker = scheduler.push(5, Class::of(Priority::Normal, true)) == WakeUp::Spawn;
        worker.join().unwrap();
        if spawn_worker {
            work(&scheduler, WorkerState::notified(), None, &run);
        }
        assert_eq!(ran.load(Ordering::SeqCst), 5);
    });
}

/// The worker lingers until the entry or the second call of `close` wakes it. Loom reports a lost
/// wake-up as a deadlock, since it has no time.
#[test]
fn entry_pushed_while_a_worker_lingers_is_run() {
    loom::model(|| {
        let scheduler = scheduler(1, 1);
        assert!(scheduler.add_worker());
        scheduler.close();
        let ran = Arc::new(AtomicU32::new(0));
        let run: Arc<dyn Fn(u32) + Send + Sync> = Arc::new({
            let ran = ran.clone();
            move |item| _ = ran.fetch_add(item, Ordering::SeqCst)
        });
        let worker = {
            let (scheduler, run, ran) = (scheduler.clone(), run.clone(), ran.clone());
            thread::spawn(move || {
                let mut worker = WorkerState::busy();
                loop {
                    match scheduler.next(&mut worker, true) {
                        Action::Run(Dequeued { item, .. }) => run(item),
                        _ => match scheduler.linger(&mut worker, Duration::MAX, || ran.load(Ordering::SeqCst) == 0) {
                            Linger::Woken => {}
                            Linger::TimedOut | Linger::MustExit => return,
                        },
                    }
                }
            })
        };
        let spawn_worker = scheduler.push(5, Class::of(Priority::Normal, true)) == WakeUp::Spawn;
        if spawn_worker {
            work(&scheduler, WorkerState::notified(), None, &run);
        }
        scheduler.close();
        worker.join().unwrap();
        assert_eq!(ran.load(Ordering::SeqCst), 5);
        assert_eq!(scheduler.workers(), 0);
    });
}

/// The only worker is busy with an entry that has opened the inbox. Either the watchdog sees the
/// next entry before it exits, or the submitter sees that there is no watchdog.
fn entry_pushed_while_the_watchdog_exits_is_watched(woken: bool) {
    loom::model(move || {
        let (scheduler, watchdog) = (scheduler(1, 1), Arc::new(Watchdog::new()));
        assert!(scheduler.add_worker());
        assert_eq!(scheduler.push(0, Class::of(Priority::Normal, false)), WakeUp::None);
        assert!(matches!(scheduler.next(&mut WorkerState::busy(), true), Action::Run(_)));
        assert!(watchdog.must_spawn());
        let submitter = thread::spawn({
            let (scheduler, watchdog) = (scheduler.clone(), watchdog.clone());
            move || {
                assert_eq!(scheduler.push(1, Class::of(Priority::Normal, woken)), WakeUp::None);
                !watchdog.is_running() && watchdog.must_spawn()
            }
        });
        let exited = watchdog.try_exit(|| scheduler.is_empty());
        let is_watched = !exited || submitter.join().unwrap();
        assert!(is_watched);
    });
}

#[test]
fn entry_in_the_inbox_while_the_watchdog_exits_is_watched() {
    entry_pushed_while_the_watchdog_exits_is_watched(false);
}

#[test]
fn woken_entry_while_the_watchdog_exits_is_watched() {
    entry_pushed_while_the_watchdog_exits_is_watched(true);
}
