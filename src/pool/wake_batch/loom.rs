use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    task::{self, Context, Poll, Waker},
};

use loom::{sync::Notify, thread};

use super::{WakeList, Watchdog};
use crate::pool::call::CallerWaker;

/// A task of a runtime. The wakers of a runtime's tasks share one vtable, so callers and the wake
/// task have the same type here.
struct Task {
    woken: AtomicU32,
    /// Loom reports a thread that waits for this forever.
    notify: Notify,
}

impl Task {
    fn new() -> Arc<Self> {
        Arc::new(Self { woken: AtomicU32::new(0), notify: Notify::new() })
    }

    fn woken(&self) -> u32 {
        self.woken.load(SeqCst)
    }
}

impl task::Wake for Task {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, SeqCst);
        self.notify.notify();
    }
}

fn waker(caller: &Arc<Task>) -> CallerWaker {
    CallerWaker { waker: Waker::from(caller.clone()), is_maker: true }
}

/// Returns a list whose wake task was polled once.
fn driven_list(wake_task: &Arc<Task>) -> Arc<WakeList> {
    let list = Arc::new(WakeList::default());
    let waker = Waker::from(wake_task.clone());
    assert!(list.poll_take(&mut Context::from_waker(&waker), &mut Vec::new()).is_pending());
    list
}

/// Behaves like `WakeTask` until the caller was woken `count` times.
fn run_wake_task(list: &WakeList, wake_task: &Arc<Task>, caller: &Task, count: u32) {
    let (waker, mut wakers) = (Waker::from(wake_task.clone()), Vec::new());
    loop {
        let closed = list.poll_take(&mut Context::from_waker(&waker), &mut wakers);
        if wakers.is_empty() {
            if caller.woken() == count {
                return;
            }
            assert_eq!(closed, Poll::Pending);
            wake_task.notify.wait();
        }
        wakers.drain(..).for_each(Waker::wake);
    }
}

#[test]
fn callers_pushed_by_two_threads_are_woken() {
    loom::model(|| {
        let (wake_task, caller) = (Task::new(), Task::new());
        let list = driven_list(&wake_task);
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let (list, caller) = (list.clone(), caller.clone());
                thread::spawn(move || list.push(waker(&caller), false).perform())
            })
            .collect();
        run_wake_task(&list, &wake_task, &caller, 2);
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!(caller.woken(), 2);
    });
}

#[test]
fn list_drained_while_the_wake_task_runs_wakes_callers_once() {
    loom::model(|| {
        let (wake_task, caller) = (Task::new(), Task::new());
        let list = driven_list(&wake_task);
        let worker = thread::spawn({
            let (list, caller) = (list.clone(), caller.clone());
            move || {
                list.push(waker(&caller), false).perform();
                list.push(waker(&caller), false).perform();
                list.wake_all();
            }
        });
        let mut wakers = Vec::new();
        let _ = list.poll_take(&mut Context::from_waker(&Waker::from(wake_task.clone())), &mut wakers);
        wakers.into_iter().for_each(Waker::wake);
        worker.join().unwrap();
        assert_eq!(caller.woken(), 2);
    });
}

#[test]
fn dropped_wake_task_leaves_no_caller_behind() {
    loom::model(|| {
        let (wake_task, caller) = (Task::new(), Task::new());
        let list = driven_list(&wake_task);
        let worker = thread::spawn({
            let (list, caller) = (list.clone(), caller.clone());
            move || list.push(waker(&caller), false).perform()
        });
        list.on_task_drop().into_iter().for_each(Waker::wake);
        worker.join().unwrap();
        assert_eq!(caller.woken(), 1);
    });
}

/// The wake task never runs. Either the watchdog sees the list before it exits, or the worker sees
/// that there is no watchdog.
#[test]
fn list_filled_while_the_watchdog_exits_is_watched() {
    loom::model(|| {
        let (wake_task, caller) = (Task::new(), Task::new());
        let (list, watchdog) = (driven_list(&wake_task), Arc::new(Watchdog::new()));
        assert!(watchdog.must_spawn());
        let worker = thread::spawn({
            let (list, caller, watchdog) = (list.clone(), caller.clone(), watchdog.clone());
            move || {
                list.push(waker(&caller), false).perform();
                watchdog.must_spawn()
            }
        });
        let exited = watchdog.try_exit(|| list.is_empty());
        let is_watched = !exited || worker.join().unwrap();
        assert!(is_watched);
    });
}
