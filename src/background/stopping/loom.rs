use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use loom::thread;

use super::Stopping;

/// Where a task is. Applied or not, each goes out of the world once.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    Pool,
    Runtime,
}

fn stopping() -> Arc<Stopping<Stop>> {
    Arc::new(Stopping::new())
}

/// Counts what stops the task where it is in the end.
fn apply(stop: Option<Stop>, applied: &AtomicUsize) {
    if stop == Some(Stop::Pool) {
        applied.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_cancelled_task_is_stopped_whoever_comes_first() {
    loom::model(|| {
        let (stopping, applied) = (stopping(), Arc::new(AtomicUsize::new(0)));
        let canceller = {
            let (stopping, applied) = (stopping.clone(), applied.clone());
            thread::spawn(move || apply(stopping.want(), &applied))
        };
        apply(stopping.replace(Stop::Pool), &applied);
        canceller.join().unwrap();
        assert_eq!(applied.load(Ordering::SeqCst), 1);
        assert!(stopping.is_wanted() && stopping.take().is_none());
    });
}

/// The runtime is gone, so that the task goes to the pool while its spawner still believes it to be on the runtime.
#[test]
fn a_cancelled_task_that_moves_to_the_pool_is_stopped_there() {
    loom::model(|| {
        let (stopping, applied) = (stopping(), Arc::new(AtomicUsize::new(0)));
        let canceller = {
            let (stopping, applied) = (stopping.clone(), applied.clone());
            thread::spawn(move || apply(stopping.want(), &applied))
        };
        let spawner = {
            let (stopping, applied) = (stopping.clone(), applied.clone());
            thread::spawn(move || apply(stopping.offer(Stop::Runtime), &applied))
        };
        apply(stopping.replace(Stop::Pool), &applied);
        canceller.join().unwrap();
        spawner.join().unwrap();
        assert_eq!(applied.load(Ordering::SeqCst), 1);
        assert!(stopping.take().is_none(), "nothing is kept of a task that is stopped");
    });
}

/// Not cancelled, what stops it on the pool is there for whoever cancels it later.
#[test]
fn a_task_that_moves_to_the_pool_can_be_stopped_there_later() {
    loom::model(|| {
        let stopping = stopping();
        let spawner = {
            let stopping = stopping.clone();
            thread::spawn(move || assert!(stopping.offer(Stop::Runtime).is_none()))
        };
        assert!(stopping.replace(Stop::Pool).is_none());
        spawner.join().unwrap();
        assert_eq!(stopping.want(), Some(Stop::Pool));
    });
}

/// The call ends, and says so, while it is handed over and cancelled.
#[test]
fn what_stops_a_task_that_ends_meanwhile_goes_to_one_of_them() {
    loom::model(|| {
        let (stopping, applied) = (stopping(), Arc::new(AtomicUsize::new(0)));
        let waker = {
            let (stopping, applied) = (stopping.clone(), applied.clone());
            thread::spawn(move || apply(stopping.take(), &applied))
        };
        let canceller = {
            let (stopping, applied) = (stopping.clone(), applied.clone());
            thread::spawn(move || apply(stopping.want(), &applied))
        };
        apply(stopping.replace(Stop::Pool), &applied);
        waker.join().unwrap();
        canceller.join().unwrap();
        assert_eq!(applied.load(Ordering::SeqCst), 1);
        assert!(stopping.take().is_none());
    });
}
