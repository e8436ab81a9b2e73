use std::{borrow::Cow, collections::VecDeque};

use tokio::runtime::Handle;

use crate::background::Background;

/// What is to be run after a response: hooks `H`, and tasks `T` with the rules of their order. Pure but for `home`, which
/// it only keeps.
///
/// First all that was registered is taken out, newest hooks first; the tasks that are wanted come back as `ready`, and are given
/// out in the order of their registration, each as soon as no more run than it allows.
///
/// Invariants: at most one thread is `driving` and at most one `dispatching`, and whoever stops doing so has seen, under the
/// same lock, that there is nothing left for it to do.
#[derive(Debug)]
pub(super) struct Pending<H, T> {
    hooks: Vec<H>,
    tasks: Vec<T>,
    ready: VecDeque<(T, usize)>,
    running: usize,
    /// Set by a failed task that is to end all; never cleared.
    stopped: bool,
    /// Set while somebody takes out what was registered and judges it.
    driving: bool,
    /// Set while somebody starts tasks: one that is over at once must not start the next on top of its own stack.
    dispatching: bool,
    /// Of the tasks that have one and are not over.
    names: Vec<(Cow<'static, str>, u64)>,
    home: Option<Home>,
}

/// Where hooks run and tasks are judged: where the first of them was registered.
#[derive(Debug, Clone)]
pub(super) struct Home {
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

    /// The tasks of that name, and of these what has not started, which now never will.
    pub(super) fn withdraw(&mut self, name: &str, id: impl Fn(&T) -> u64) -> (Vec<u64>, Vec<T>) {
        let ids: Vec<_> = self.names.iter().filter(|(other, _)| other == name).map(|(_, id)| *id).collect();
        let is_named = |task: &T| ids.contains(&id(task));
        let (mut withdrawn, tasks): (Vec<_>, _) = std::mem::take(&mut self.tasks).into_iter().partition(is_named);
        let (waiting, ready): (VecDeque<_>, _) =
            std::mem::take(&mut self.ready).into_iter().partition(|(task, _)| is_named(task));
        (self.tasks, self.ready) = (tasks, ready);
        withdrawn.extend(waiting.into_iter().map(|(task, _)| task));
        withdrawn.iter().for_each(|task| self.forget(id(task)));
        (ids, withdrawn)
    }

    /// The task is over, or never starts: nobody can mean it by its name any more.
    pub(super) fn forget(&mut self, id: u64) {
        self.names.retain(|(_, other)| *other != id);
    }

    pub(super) fn set_home(&mut self, home: impl FnOnce() -> Home) {
        self.home.get_or_insert_with(home);
    }

    pub(super) fn home(&self) -> Option<Home> {
        self.home.clone()
    }

    /// `false` if somebody does it, who will see what is new.
    pub(super) fn begin_driving(&mut self) -> bool {
        !std::mem::replace(&mut self.driving, true)
    }

    /// What was registered since: the hooks newest first, the tasks oldest first. `None` ends the driving.
    pub(super) fn take(&mut self) -> Option<(impl Iterator<Item = H> + use<H, T>, Vec<T>)> {
        let (hooks, tasks) = (std::mem::take(&mut self.hooks), std::mem::take(&mut self.tasks));
        self.driving = !(hooks.is_empty() && tasks.is_empty());
        self.driving.then(|| (hooks.into_iter().rev(), tasks))
    }

    /// A task that is to run, once no more than `concurrent` run with it. Given back if none may start any more.
    pub(super) fn push_ready(&mut self, task: T, concurrent: usize) -> Option<T> {
        if self.stopped {
            return Some(task);
        }
        self.ready.push_back((task, concurrent));
        None
    }

    /// `false` if somebody does it, who will see what is ready.
    pub(super) fn begin_dispatching(&mut self) -> bool {
        !std::mem::replace(&mut self.dispatching, true)
    }

    /// The task to start now. `None` ends the dispatching.
    pub(super) fn next(&mut self) -> Option<T> {
        let may_start = self.ready.front().is_some_and(|(_, concurrent)| self.running < *concurrent);
        let next = if may_start { self.ready.pop_front() } else { None };
        self.running += usize::from(next.is_some());
        self.dispatching = next.is_some();
        next.map(|(task, _)| task)
    }

    /// A task is over; `stop` if none may start any more: then these never will.
    #[must_use]
    pub(super) fn over(&mut self, stop: bool) -> VecDeque<(T, usize)> {
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
            home: None,
        }
    }
}

#[cfg(test)]
mod tests;
