//! Wakes the callers of completed calls, many at a time.
//!
//! Waking a task from a thread outside its runtime is a system call if the runtime sleeps, which is
//! a third of the cost of a call at hundreds of concurrent calls. Workers therefore put wakers into
//! a list for each runtime. Only the first waker in the list costs a wake-up: that of a task in the
//! runtime, the [`WakeTask`], which wakes the others from within.
//!
//! # Which callers are batched
//!
//! A batched wake-up must not be much later than a direct one. The wake task runs when the tasks of
//! its runtime do, so only tasks are batched, and only by their own runtime:
//!
//! * The caller is a task that awaits the call where it made it ([`CallerWaker::is_maker`]), and
//!   its waker has the vtable of the wake task's waker. A caller that blocks its thread, or wraps
//!   wakers, has another one.
//! * The wake task was polled before, so some thread drives the runtime.
//!
//! Two kinds of callers cannot be distinguished from these: a `LocalSet` that a task drives while
//! it blocks its thread, and a task that makes calls inside another runtime that it has entered.
//! For them, a worker that stops using a list drains it, and a [`Watchdog`] thread drains lists
//! that stay full while all workers are busy. Such a caller waits for a millisecond or two.

#[cfg(all(test, tower_offload_loom))]
mod loom;

use std::{
    mem,
    pin::Pin,
    ptr,
    sync::Arc,
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use tokio::runtime::{Handle, Id};

use super::{call::CallerWaker, watchdog::Watchdog};
use crate::{
    panic::ignore_panic,
    sync::{Mutex, lock},
};

/// Number of lists that the wake task takes before it yields to the tasks that it has woken.
const MAX_LISTS_PER_POLL: usize = 4;

/// Period at which the watchdog polls. A waker stays in a list for at most two periods, about ten
/// times as long as it takes to wake a sleeping runtime.
const WATCHDOG_INTERVAL: Duration = Duration::from_millis(1);

/// Number of periods without any batched waker after which the watchdog exits. A pool that becomes
/// busy again spawns a new thread.
const MAX_IDLE_INTERVALS: u32 = 100;

/// The wake lists of one pool.
#[derive(Debug)]
pub(super) struct WakeBatcher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// One list for each runtime in which calls were made.
    lists: Mutex<Vec<(Id, Arc<WakeList>)>>,
    watchdog: Watchdog,
}

impl Shared {
    fn lists(&self) -> Vec<Arc<WakeList>> {
        lock(&self.lists).iter().map(|(_, list)| list.clone()).collect()
    }
}

impl WakeBatcher {
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared { lists: Mutex::new(Vec::new()), watchdog: Watchdog::new() }))
    }

    /// Returns the list of `runtime`. The first call for a runtime spawns its wake task.
    pub(super) fn list(&self, runtime: &Handle) -> Arc<WakeList> {
        let id = runtime.id();
        let list = {
            let mut lists = lock(&self.0.lists);
            if let Some((_, list)) = lists.iter().find(|(known, _)| *known == id) {
                return list.clone();
            }
            lists.retain(|(_, list)| !list.is_task_dropped());
            let list = Arc::new(WakeList::default());
            lists.push((id, list.clone()));
            list
        };
        // The hooks of the runtime are user code. Without a task, the list passes callers on at
        // once.
        ignore_panic(|| drop(runtime.spawn(WakeTask::new(list.clone()))));
        list
    }

    /// Wakes the caller, or adds it to the list. See [`WakeList::push`]. Returns `true` if a task
    /// was woken.
    #[inline]
    pub(super) fn wake(&self, list: &WakeList, caller: CallerWaker, is_last: bool) -> bool {
        let pushed = list.push(caller, is_last);
        if matches!(pushed, Wake::None) {
            return false;
        }
        self.perform(list, pushed);
        true
    }

    fn perform(&self, list: &WakeList, pushed: Wake) {
        let was_empty = matches!(pushed, Wake::Task(_));
        pushed.perform();
        if was_empty && self.0.watchdog.must_spawn() {
            let shared = self.0.clone();
            let thread = thread::Builder::new().name("offload-wakeups".to_owned());
            if thread.spawn(move || run_watchdog(&shared)).is_err() {
                // Without a watchdog, no waker may stay in a list.
                self.0.watchdog.try_exit(|| true);
                list.drain().perform();
            }
        }
    }
}

impl Drop for WakeBatcher {
    fn drop(&mut self) {
        for (_, list) in lock(&self.0.lists).drain(..) {
            if let Some(task) = list.close() {
                task.wake();
            }
        }
    }
}

/// Wakers of one runtime that the wake task is about to wake.
///
/// Invariant: every waker in the list is woken. The thread that makes the list nonempty wakes the
/// wake task, and the wake task waits only after it has found the list empty, both under the lock.
/// A wake task that is dropped takes all wakers with it.
#[derive(Debug, Default)]
pub(super) struct WakeList(Mutex<ListState>);

#[derive(Debug, Default)]
struct ListState {
    wakers: Vec<Waker>,
    /// Number of times that `wakers` was taken.
    generation: u64,
    /// `generation` when the watchdog last polled, if the list was nonempty then.
    stale_generation: Option<u64>,
    /// Waker of the wake task. `None` until it is polled, and after it was dropped.
    task: Option<Waker>,
    /// `true` once no waker will be added.
    is_closed: bool,
    /// `true` once the wake task was dropped.
    is_task_dropped: bool,
}

impl ListState {
    fn take(&mut self) -> Vec<Waker> {
        self.generation += 1;
        mem::take(&mut self.wakers)
    }
}

/// Wake-ups that must be performed after the lock is released.
#[derive(Debug)]
#[must_use = "these wakers must be woken"]
enum Wake {
    /// None: the wake task is on its way.
    None,
    /// The wake task, because the list is no longer empty.
    Task(Waker),
    /// A caller that is not batched.
    Caller(Waker),
    /// All callers that were in the list.
    All(Vec<Waker>),
}

impl Wake {
    /// Wakes. A panic of one waker, which may be user code, affects neither the others nor the
    /// thread.
    fn perform(self) {
        let wake = |waker: Waker| ignore_panic(|| waker.wake());
        match self {
            Self::None => {}
            Self::Task(waker) | Self::Caller(waker) => wake(waker),
            Self::All(wakers) => wakers.into_iter().for_each(wake),
        }
    }
}

impl WakeList {
    /// Adds the caller to the list if it can be batched. With `is_last`, no other caller is
    /// expected soon: a caller that finds the list empty is then woken directly, which is faster.
    fn push(&self, caller: CallerWaker, is_last: bool) -> Wake {
        let CallerWaker { waker, is_maker } = caller;
        let mut list = lock(&self.0);
        let ListState { wakers, task, .. } = &mut *list;
        let task = match task {
            Some(task) if is_maker && ptr::eq(task.vtable(), waker.vtable()) => task,
            _ => return Wake::Caller(waker),
        };
        if wakers.is_empty() && is_last {
            return Wake::Caller(waker);
        }
        wakers.push(waker);
        if wakers.len() == 1 { Wake::Task(task.clone()) } else { Wake::None }
    }

    /// Wakes all callers in the list without the wake task.
    pub(super) fn wake_all(&self) {
        self.drain().perform();
    }

    fn drain(&self) -> Wake {
        let mut list = lock(&self.0);
        if list.wakers.is_empty() { Wake::None } else { Wake::All(list.take()) }
    }

    /// Drains the list if it was nonempty at the last poll and was not taken since. Also returns
    /// the generation of the list.
    fn drain_stale(&self) -> (Wake, u64) {
        let mut list = lock(&self.0);
        if list.wakers.is_empty() {
            list.stale_generation = None;
        } else if list.stale_generation == Some(list.generation) {
            return (Wake::All(list.take()), list.generation);
        } else {
            list.stale_generation = Some(list.generation);
        }
        (Wake::None, list.generation)
    }

    fn is_empty(&self) -> bool {
        lock(&self.0).wakers.is_empty()
    }

    fn is_task_dropped(&self) -> bool {
        lock(&self.0).is_task_dropped
    }

    /// Marks the list as closed. Returns the waker of the wake task, which then exits.
    fn close(&self) -> Option<Waker> {
        let mut list = lock(&self.0);
        list.is_closed = true;
        list.task.clone()
    }

    /// Swaps the list with `wakers`, which is empty. If that leaves `wakers` empty, the wake task
    /// is woken for the next waker, or the result is `Ready` because there will be none.
    fn poll_take(&self, cx: &mut Context<'_>, wakers: &mut Vec<Waker>) -> Poll<()> {
        let mut list = lock(&self.0);
        mem::swap(&mut list.wakers, wakers);
        if !wakers.is_empty() {
            list.generation += 1;
            return Poll::Pending;
        }
        if list.is_closed {
            return Poll::Ready(());
        }
        if !list.task.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            list.task = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Records that the wake task is dropped, and returns the wakers that it takes with it.
    fn on_task_drop(&self) -> Vec<Waker> {
        let mut list = lock(&self.0);
        list.is_task_dropped = true;
        list.task = None;
        list.take()
    }
}

/// Task that wakes callers from within their runtime. It lives as long as the pool and the runtime.
#[derive(Debug)]
struct WakeTask {
    list: Arc<WakeList>,
    /// Empty between polls. Kept for its allocation.
    wakers: Vec<Waker>,
}

impl WakeTask {
    fn new(list: Arc<WakeList>) -> Self {
        Self { list, wakers: Vec::new() }
    }
}

impl Future for WakeTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        for _ in 0..MAX_LISTS_PER_POLL {
            let closed = this.list.poll_take(cx, &mut this.wakers);
            if this.wakers.is_empty() {
                return closed;
            }
            this.wakers.drain(..).for_each(Waker::wake);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for WakeTask {
    fn drop(&mut self) {
        self.list.on_task_drop().into_iter().for_each(Waker::wake);
    }
}

/// Runs on the watchdog's thread, until the pool is dropped or the watchdog exits.
fn run_watchdog(shared: &Arc<Shared>) {
    let (mut generations, mut idle_intervals) = (0, 0);
    while Arc::strong_count(shared) > 1 {
        thread::sleep(WATCHDOG_INTERVAL);
        let before = mem::take(&mut generations);
        for list in shared.lists() {
            let (stale, generation) = list.drain_stale();
            stale.perform();
            generations += generation;
        }
        idle_intervals = if generations == before { idle_intervals + 1 } else { 0 };
        let all_empty = || shared.lists().iter().all(|list| list.is_empty());
        if idle_intervals >= MAX_IDLE_INTERVALS && shared.watchdog.try_exit(all_empty) {
            return;
        }
    }
}
