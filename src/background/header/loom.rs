use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use loom::thread::{self, JoinHandle};

use super::{AbortSlot, Claimed, CompletionClaim};

#[derive(Debug, PartialEq, Eq)]
enum Action {
    Runtime,
    Pool,
}

/// A task that ends up on the pool, and the number of times it was aborted there.
#[derive(Clone)]
struct Task {
    slot: Arc<AbortSlot<Action>>,
    aborts: Arc<AtomicUsize>,
}

impl Task {
    fn new() -> Self {
        Self { slot: Arc::new(AbortSlot::new()), aborts: Arc::default() }
    }

    /// Performs the action that a method of the slot returned.
    fn perform(&self, action: Option<Action>) {
        if action == Some(Action::Pool) {
            self.aborts.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Calls a method of the slot on another thread.
    fn spawn(&self, method: fn(&AbortSlot<Action>) -> Option<Action>) -> JoinHandle<()> {
        let task = self.clone();
        thread::spawn(move || task.perform(method(&task.slot)))
    }

    fn aborts(&self) -> usize {
        self.aborts.load(Ordering::SeqCst)
    }
}

#[test]
fn a_task_cancelled_while_it_moves_is_aborted_once() {
    loom::model(|| {
        let task = Task::new();
        let canceller = task.spawn(AbortSlot::cancel);
        task.perform(task.slot.replace(Action::Pool));
        canceller.join().unwrap();
        assert_eq!(task.aborts(), 1);
        assert!(task.slot.is_cancelled() && task.slot.take().is_none());
    });
}

/// The runtime shuts down, so the task moves to the pool while its spawner records it as being on
/// the runtime.
#[test]
fn a_cancelled_task_that_moves_to_the_pool_is_aborted_there() {
    loom::model(|| {
        let task = Task::new();
        let canceller = task.spawn(AbortSlot::cancel);
        let spawner = task.spawn(|slot| slot.set_if_empty(Action::Runtime));
        task.perform(task.slot.replace(Action::Pool));
        canceller.join().unwrap();
        spawner.join().unwrap();
        assert_eq!(task.aborts(), 1);
        assert!(task.slot.take().is_none(), "an aborted task leaves no action behind");
    });
}

#[test]
fn a_task_that_moved_to_the_pool_can_be_aborted_later() {
    loom::model(|| {
        let task = Task::new();
        let spawner = task.spawn(|slot| {
            assert!(slot.set_if_empty(Action::Runtime).is_none());
            None
        });
        assert!(task.slot.replace(Action::Pool).is_none());
        spawner.join().unwrap();
        assert_eq!(task.slot.cancel(), Some(Action::Pool));
    });
}

/// The call on the pool finishes, and takes the action, while the task is recorded and cancelled.
#[test]
fn the_action_of_a_finishing_task_is_taken_once() {
    loom::model(|| {
        let task = Task::new();
        let finisher = task.spawn(AbortSlot::take);
        let canceller = task.spawn(AbortSlot::cancel);
        task.perform(task.slot.replace(Action::Pool));
        finisher.join().unwrap();
        canceller.join().unwrap();
        assert_eq!(task.aborts(), 1);
        assert!(task.slot.take().is_none());
    });
}

#[test]
fn code_begins_unless_its_timer_saw_that_it_had_not() {
    loom::model(|| {
        let claim = Arc::new(CompletionClaim::new());
        let timer = thread::spawn({
            let claim = claim.clone();
            move || claim.claim()
        });
        let begins = claim.begin();
        let task = claim.claim();
        let timer = timer.join().unwrap();
        assert!(task.is_some() ^ timer.is_some(), "one of them reports");
        match timer {
            Some(Claimed { has_begun }) => assert_eq!(has_begun, begins),
            None => assert!(begins),
        }
    });
}
