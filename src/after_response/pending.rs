use std::{borrow::Cow, collections::BTreeMap};

use tokio::runtime::Handle;

use crate::background::Background;

/// Hooks `H` and tasks `T` of one request, and the rules of their order.
///
/// Tasks are numbered in the order of registration. The driver takes the hooks, newest first, and
/// then selects the tasks whose condition holds, in order. It stops at a task that is undecided,
/// because its handler has not ended. The dispatcher starts the selected tasks in order, each as
/// soon as no more tasks run than it allows.
///
/// Pure except for `context`, which is only stored. At most one thread drives and at most one
/// dispatches. A thread that stops doing so has seen under the same lock that nothing is left to
/// do.
#[derive(Debug)]
pub(super) struct Pending<H, T> {
    hooks: Hooks<H>,
    /// `true` while a thread takes registrations out.
    driving: bool,
    context: Option<SpawnContext>,
    /// `None` before the first task. Boxed, because most requests have none.
    tasks: Option<Box<Tasks<T>>>,
}

/// The tasks of one request.
#[derive(Debug)]
pub(super) struct Tasks<T> {
    /// Tasks that have not started, by number, each with the number of tasks that may run when it
    /// has started.
    waiting: BTreeMap<u64, (T, usize)>,
    /// Tasks below this number are selected. Never decreases.
    selected: u64,
    /// The number of the next task.
    next_number: u64,
    /// Number of started tasks that have not ended.
    running: usize,
    /// Set by a failed task that stops the later ones. Never cleared.
    stopped: bool,
    /// Prevents recursion: a task that ends at once must not start the next one on its own stack.
    dispatching: bool,
    /// Numbers and ids of the named tasks that have not ended, by name.
    names: BTreeMap<Cow<'static, str>, BTreeMap<u64, u64>>,
}

/// Hooks, the newest first. The first one needs no allocation, because usually there is only one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hooks<H> {
    oldest: Option<H>,
    newer: Vec<H>,
}

impl<H> Hooks<H> {
    fn push(&mut self, hook: H) {
        match self.oldest {
            None => self.oldest = Some(hook),
            Some(_) => self.newer.push(hook),
        }
    }

    /// Takes the newest hook.
    pub(super) fn pop(&mut self) -> Option<H> {
        self.newer.pop().or_else(|| self.oldest.take())
    }

    fn is_empty(&self) -> bool {
        self.oldest.is_none()
    }
}

impl<H> Default for Hooks<H> {
    fn default() -> Self {
        Self { oldest: None, newer: Vec::new() }
    }
}

/// Runtime and background of the first registration. Hooks run there. Clones count references that
/// all connections share, so it is moved where possible.
#[derive(Debug, Clone)]
pub(super) struct SpawnContext {
    pub(super) runtime: Option<Handle>,
    pub(super) background: Background,
}

impl SpawnContext {
    /// Returns `true` if hooks of both contexts may run in one task.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let is_same_runtime = self.runtime.as_ref().map(Handle::id) == other.runtime.as_ref().map(Handle::id);
        is_same_runtime && self.background.is_same(&other.background)
    }
}

/// A task's position and name among the tasks of its request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TaskKey {
    number: u64,
    name: Cow<'static, str>,
}

impl<H, T> Pending<H, T> {
    pub(super) fn push_hook(&mut self, hook: H) {
        self.hooks.push(hook);
    }

    pub(super) fn tasks(&mut self) -> &mut Tasks<T> {
        self.tasks.get_or_insert_default()
    }

    /// Stores the context of the first registration.
    pub(super) fn set_context(&mut self, context: impl FnOnce() -> SpawnContext) {
        self.context.get_or_insert_with(context);
    }

    /// Returns the context, unless nothing was registered.
    pub(super) fn context(&self) -> Option<&SpawnContext> {
        self.context.as_ref()
    }

    /// Takes the context, unless nothing was registered. Nothing may be registered afterwards.
    #[cfg_attr(not(feature = "flush"), allow(dead_code, reason = "called by tracked connections"))]
    pub(super) fn take_context(&mut self) -> Option<SpawnContext> {
        self.context.take()
    }

    /// Takes the hooks if there was never a task. Nothing may be registered afterwards.
    pub(super) fn take_only_hooks(&mut self) -> Option<Hooks<H>> {
        self.tasks.is_none().then(|| std::mem::take(&mut self.hooks))
    }

    /// Makes this thread the one that drives, and takes what [`take`](Self::take) does. Returns
    /// `None` if there is nothing to do, or if another thread drives: it will see the new
    /// registrations.
    pub(super) fn begin_driving(&mut self, is_decided: impl Fn(&T) -> bool) -> Option<(Hooks<H>, u64)> {
        if self.driving { None } else { self.take(is_decided) }
    }

    /// Takes the new hooks, and returns them with the number up to which tasks may be selected
    /// after they have run: zero if there are none. Returns `None`, and stops driving, if there is
    /// nothing to do.
    pub(super) fn take(&mut self, is_decided: impl Fn(&T) -> bool) -> Option<(Hooks<H>, u64)> {
        let unselected = self.tasks.as_ref().and_then(|tasks| Some((tasks.first_unselected()?.1, tasks.next_number)));
        let bound = unselected.map_or(0, |(_, bound)| bound);
        let has_task = unselected.is_some_and(|(task, _)| is_decided(task));
        self.driving = has_task || !self.hooks.is_empty();
        self.driving.then(|| (std::mem::take(&mut self.hooks), bound))
    }
}

impl<T> Tasks<T> {
    /// Adds a task with this id and name. An empty name is no name. `task` creates it from its key.
    pub(super) fn push(
        &mut self,
        name: Cow<'static, str>,
        id: u64,
        concurrent: usize,
        task: impl FnOnce(TaskKey) -> T,
    ) {
        let number = self.next_number;
        self.next_number += 1;
        if !name.is_empty() {
            self.names.entry(name.clone()).or_default().insert(number, id);
        }
        self.waiting.insert(number, (task(TaskKey { number, name }), concurrent));
    }

    /// Returns the ids of the tasks with this name, and removes the unstarted ones.
    pub(super) fn remove_by_name(&mut self, name: &str) -> (Vec<u64>, Vec<T>) {
        let Some(named) = self.names.get_mut(name) else { return (Vec::new(), Vec::new()) };
        let ids = named.values().copied().collect();
        let mut removed = Vec::new();
        named.retain(|number, _| match self.waiting.remove(number) {
            Some((task, _)) => {
                removed.push(task);
                false
            }
            None => true,
        });
        if named.is_empty() {
            self.names.remove(name);
        }
        (ids, removed)
    }

    /// Removes a task that ended or never starts from the name index.
    pub(super) fn unindex(&mut self, key: &TaskKey) {
        if let Some(named) = self.names.get_mut(&key.name) {
            named.remove(&key.number);
            if named.is_empty() {
                self.names.remove(&key.name);
            }
        }
    }

    /// Takes the first unselected task below `bound`, unless it is undecided. Returns it with the
    /// number of tasks that may run when it has started. If its condition holds, the caller puts it
    /// back with [`select`](Self::select).
    pub(super) fn take_unselected(&mut self, bound: u64, is_decided: impl Fn(&T) -> bool) -> Option<(T, usize)> {
        let (number, task) = self.first_unselected()?;
        if number >= bound || !is_decided(task) {
            return None;
        }
        self.selected = number + 1;
        self.waiting.remove(&number)
    }

    fn first_unselected(&self) -> Option<(u64, &T)> {
        self.waiting.range(self.selected..).next().map(|(number, (task, _))| (*number, task))
    }

    /// Makes a task ready to start. Returns it if a failed task has stopped the later ones.
    pub(super) fn select(&mut self, key: &TaskKey, task: T, concurrent: usize) -> Option<T> {
        if self.stopped {
            return Some(task);
        }
        self.waiting.insert(key.number, (task, concurrent));
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
        let first = self.waiting.first_entry().filter(|first| *first.key() < self.selected);
        let next = first.filter(|first| self.running < first.get().1).map(|first| first.remove().0);
        self.running += usize::from(next.is_some());
        self.dispatching = next.is_some();
        next
    }

    /// Records that a task ended. With `stop`, also removes the selected tasks, which must not
    /// start, and returns them.
    #[must_use]
    pub(super) fn finish_task(&mut self, stop: bool) -> Vec<T> {
        self.running -= 1;
        self.stopped |= stop;
        if !stop {
            return Vec::new();
        }
        let unselected = self.waiting.split_off(&self.selected);
        std::mem::replace(&mut self.waiting, unselected).into_values().map(|(task, _)| task).collect()
    }
}

impl<H, T> Default for Pending<H, T> {
    fn default() -> Self {
        Self { hooks: Hooks::default(), driving: false, context: None, tasks: None }
    }
}

impl<T> Default for Tasks<T> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            selected: 0,
            next_number: 0,
            running: 0,
            stopped: false,
            dispatching: false,
            names: BTreeMap::new(),
        }
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
