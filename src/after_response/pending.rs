use std::{borrow::Cow, collections::VecDeque};

use tokio::runtime::Handle;

use crate::background::Background;

/// Hooks `H` and tasks `T` of one request, and the rules of their order.
///
/// The driver takes the registrations out, newest hook first. It puts the selected tasks back as
/// `ready`, and the dispatcher starts them in the order of registration, each as soon as no more
/// tasks run than it allows.
///
/// Pure except for `context`, which is only stored. At most one thread drives and at most one
/// dispatches. A thread that stops doing so has seen under the same lock that nothing is left to
/// do.
#[derive(Debug)]
pub(super) struct Pending<H, T> {
    hooks: Vec<H>,
    tasks: Vec<T>,
    /// Selected tasks, each with the number of tasks that may run when it has started.
    ready: VecDeque<(T, usize)>,
    /// Number of started tasks that have not ended.
    running: usize,
    /// Set by a failed task that stops the later ones. Never cleared.
    stopped: bool,
    /// `true` while a thread takes registrations out.
    driving: bool,
    /// Prevents recursion: a task that ends at once must not start the next one on its own stack.
    dispatching: bool,
    /// Names and ids of the named tasks that have not ended.
    names: Vec<(Cow<'static, str>, u64)>,
    context: Option<SpawnContext>,
}

/// Runtime and background of the first registration. Hooks run there.
#[derive(Debug, Clone)]
pub(super) struct SpawnContext {
    pub(super) runtime: Option<Handle>,
    pub(super) background: Background,
}

impl<H, T> Pending<H, T> {
    pub(super) fn push_hook(&mut self, hook: H) {
        self.hooks.push(hook);
    }

    pub(super) fn push_task(&mut self, task: T) {
        self.tasks.push(task);
    }

    pub(super) fn push_name(&mut self, name: Cow<'static, str>, id: u64) {
        self.names.push((name, id));
    }

    /// Returns the ids of the tasks with this name, and removes the unstarted ones.
    pub(super) fn remove_by_name(&mut self, name: &str, id: impl Fn(&T) -> u64) -> (Vec<u64>, Vec<T>) {
        let ids: Vec<_> = self.names.iter().filter(|(other, _)| other == name).map(|(_, id)| *id).collect();
        let is_named = |task: &T| ids.contains(&id(task));
        let (mut removed, tasks): (Vec<_>, _) = std::mem::take(&mut self.tasks).into_iter().partition(is_named);
        let (waiting, ready): (VecDeque<_>, _) =
            std::mem::take(&mut self.ready).into_iter().partition(|(task, _)| is_named(task));
        (self.tasks, self.ready) = (tasks, ready);
        removed.extend(waiting.into_iter().map(|(task, _)| task));
        removed.iter().for_each(|task| self.unindex(id(task)));
        (ids, removed)
    }

    /// Removes a task that ended or never starts from the name index.
    pub(super) fn unindex(&mut self, id: u64) {
        self.names.retain(|(_, other)| *other != id);
    }

    /// Stores the context of the first registration.
    pub(super) fn set_context(&mut self, context: impl FnOnce() -> SpawnContext) {
        self.context.get_or_insert_with(context);
    }

    pub(super) fn context(&self) -> Option<SpawnContext> {
        self.context.clone()
    }

    /// Makes this thread the one that drives. Returns `false` if another thread drives: it will see
    /// the new registrations.
    pub(super) fn begin_driving(&mut self) -> bool {
        !std::mem::replace(&mut self.driving, true)
    }

    /// Takes the new registrations: hooks newest first, tasks oldest first. Returns `None`, and
    /// stops driving, if there are none.
    pub(super) fn take(&mut self) -> Option<(impl Iterator<Item = H> + use<H, T>, Vec<T>)> {
        let (hooks, tasks) = (std::mem::take(&mut self.hooks), std::mem::take(&mut self.tasks));
        self.driving = !(hooks.is_empty() && tasks.is_empty());
        self.driving.then(|| (hooks.into_iter().rev(), tasks))
    }

    /// Adds a selected task. Returns it if a failed task has stopped the later ones.
    pub(super) fn push_ready(&mut self, task: T, concurrent: usize) -> Option<T> {
        if self.stopped {
            return Some(task);
        }
        self.ready.push_back((task, concurrent));
        None
    }

    /// Makes this thread the one that dispatches. Returns `false` if another thread dispatches: it
    /// will see the ready tasks.
    pub(super) fn begin_dispatching(&mut self) -> bool {
        !std::mem::replace(&mut self.dispatching, true)
    }

    /// Returns a task that the caller must start. Returns `None`, and stops dispatching, if no task
    /// may start now.
    pub(super) fn next_task(&mut self) -> Option<T> {
        let may_start = self.ready.front().is_some_and(|(_, concurrent)| self.running < *concurrent);
        let next = if may_start { self.ready.pop_front() } else { None };
        self.running += usize::from(next.is_some());
        self.dispatching = next.is_some();
        next.map(|(task, _)| task)
    }

    /// Records that a task ended. With `stop`, also removes the ready tasks, which must not start,
    /// and returns them.
    #[must_use]
    pub(super) fn finish_task(&mut self, stop: bool) -> VecDeque<(T, usize)> {
        self.running -= 1;
        self.stopped |= stop;
        if stop { std::mem::take(&mut self.ready) } else { VecDeque::new() }
    }
}

impl<H, T> Default for Pending<H, T> {
    fn default() -> Self {
        Self {
            hooks: Vec::new(),
            tasks: Vec::new(),
            ready: VecDeque::new(),
            running: 0,
            stopped: false,
            driving: false,
            dispatching: false,
            names: Vec::new(),
            context: None,
        }
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
