use std::collections::{BTreeMap, VecDeque};

use tokio::time::Instant;

use super::{Stats, error::Kind};

/// Who has a place, who waits, who runs. Pure: the work `W` and the controls `C` are handed in and out, never looked into.
#[derive(Debug)]
pub(super) struct State<W, C> {
    capacity: usize,
    max_running: usize,
    phase: Phase,
    tasks: BTreeMap<u64, Entry<C>>,
    /// Work that waits for a permit, oldest first.
    queue: VecDeque<(u64, W)>,
    permits_taken: usize,
    /// How much else is waited for.
    held: usize,
    tally: Tally,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Open,
    /// Only running tasks may register.
    Closed,
    /// Nothing starts any more.
    Halted,
}

#[derive(Debug)]
struct Entry<C> {
    control: C,
    stage: Stage,
    /// When the stage began, up to the permit: the wait for a thread belongs to the wait.
    since: Instant,
    cancelled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A place without work.
    Reserved,
    /// In the queue.
    Queued,
    /// It has a permit and was handed over, but its code has not begun.
    Dispatched,
    Running,
}

/// What became of tasks so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) cancelled: u64,
    pub(super) completed: u64,
    pub(super) failed: u64,
    pub(super) rejected: u64,
    pub(super) skipped: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Cancelled,
    Completed,
    Failed,
}

/// What a cancellation met.
#[derive(Debug)]
pub(super) enum Met<W, C> {
    /// Nothing: the task was over.
    Gone,
    /// A task that had no permit. It is over, and its place free.
    Pending { work: Option<W>, idle: bool },
    /// One that has. It is over when it says so.
    Permitted(C),
}

/// What a halt took away, and what it has to leave.
#[derive(Debug)]
pub(super) struct Halt<W, C> {
    pub(super) dropped: Vec<W>,
    /// Of tasks that have a permit and did not begin: they never will.
    pub(super) unbegun: Vec<C>,
    /// With the time at which each began.
    pub(super) running: Vec<(C, Instant)>,
}

impl<W, C: Clone> State<W, C> {
    pub(super) fn new(capacity: usize, max_running: usize) -> Self {
        Self {
            capacity,
            max_running,
            phase: Phase::Open,
            tasks: BTreeMap::new(),
            queue: VecDeque::new(),
            permits_taken: 0,
            held: 0,
            tally: Tally::default(),
        }
    }

    /// Takes a place. `inside` says that a running task asks, whose registrations belong to the drain it is part of.
    pub(super) fn reserve(&mut self, id: u64, control: C, inside: bool, now: Instant) -> Result<(), Kind> {
        let taken = match self.phase {
            Phase::Closed if !inside => Err(Kind::Closed),
            Phase::Halted => Err(Kind::Closed),
            Phase::Open | Phase::Closed if self.tasks.len() >= self.capacity => Err(Kind::Full),
            Phase::Open | Phase::Closed => Ok(()),
        };
        match taken {
            Ok(()) => {
                self.tasks.insert(id, Entry { control, stage: Stage::Reserved, since: now, cancelled: false });
            }
            Err(_) => self.tally.rejected += 1,
        }
        taken
    }

    /// Gives a reserved place its work, or the work back if the place was taken away meanwhile.
    pub(super) fn enqueue(&mut self, id: u64, work: W, now: Instant) -> Result<(), W> {
        match self.tasks.get_mut(&id) {
            Some(entry) if entry.stage == Stage::Reserved => {
                (entry.stage, entry.since) = (Stage::Queued, now);
                self.queue.push_back((id, work));
                Ok(())
            }
            _ => Err(work),
        }
    }

    /// Takes a permit for the work that waits longest, if there is one of each.
    pub(super) fn dispatch(&mut self) -> Option<W> {
        if self.permits_taken >= self.max_running {
            return None;
        }
        let (id, work) = self.queue.pop_front()?;
        if let Some(entry) = self.tasks.get_mut(&id) {
            entry.stage = Stage::Dispatched;
            self.permits_taken += 1;
        }
        Some(work)
    }

    /// The task's code is about to run: since when it waited, or `None` if it must not run.
    pub(super) fn begin(&mut self, id: u64, now: Instant) -> Option<Instant> {
        let entry = self.tasks.get_mut(&id).filter(|entry| entry.stage == Stage::Dispatched && !entry.cancelled)?;
        entry.stage = Stage::Running;
        Some(std::mem::replace(&mut entry.since, now))
    }

    /// Frees the place of a task and its permit. `true` if nothing is left.
    pub(super) fn end(&mut self, id: u64, ended: Ended) -> bool {
        if let Some(entry) = self.tasks.remove(&id) {
            if matches!(entry.stage, Stage::Dispatched | Stage::Running) {
                self.permits_taken -= 1;
            }
            *match ended {
                Ended::Cancelled => &mut self.tally.cancelled,
                Ended::Completed => &mut self.tally.completed,
                Ended::Failed => &mut self.tally.failed,
            } += 1;
        }
        self.is_idle()
    }

    pub(super) fn hold(&mut self) {
        self.held += 1;
    }

    /// `true` if that was the last that is waited for.
    pub(super) fn release(&mut self) -> bool {
        self.held -= 1;
        self.is_idle()
    }

    /// Frees a reserved place that got no work. `false` if it was taken away before.
    pub(super) fn skip(&mut self, id: u64) -> bool {
        let is_reserved = self.tasks.get(&id).is_some_and(|entry| entry.stage == Stage::Reserved);
        if is_reserved {
            self.tasks.remove(&id);
            self.tally.skipped += 1;
        }
        is_reserved
    }

    pub(super) fn cancel(&mut self, id: u64) -> Met<W, C> {
        let Some(entry) = self.tasks.get_mut(&id) else { return Met::Gone };
        if matches!(entry.stage, Stage::Dispatched | Stage::Running) {
            entry.cancelled = true;
            return Met::Permitted(entry.control.clone());
        }
        let place = self.queue.iter().position(|(queued, _)| *queued == id);
        let work = place.and_then(|place| self.queue.remove(place)).map(|(_, work)| work);
        let idle = self.end(id, Ended::Cancelled);
        Met::Pending { work, idle }
    }

    pub(super) fn close(&mut self) {
        self.phase = self.phase.max(Phase::Closed);
    }

    /// Ends everything that has not begun, and lets nothing begin.
    pub(super) fn halt(&mut self) -> Halt<W, C> {
        self.phase = Phase::Halted;
        let dropped = self.queue.drain(..).map(|(_, work)| work).collect();
        let (mut unbegun, mut running) = (Vec::new(), Vec::new());
        let mut pending = Vec::new();
        for (id, entry) in &self.tasks {
            match entry.stage {
                Stage::Running => running.push((entry.control.clone(), entry.since)),
                Stage::Dispatched => unbegun.push(entry.control.clone()),
                Stage::Queued | Stage::Reserved => {}
            }
            if entry.stage != Stage::Running {
                pending.push(*id);
            }
        }
        for id in pending {
            self.end(id, Ended::Cancelled);
        }
        Halt { dropped, unbegun, running }
    }

    /// The ids of the tasks whose control says so.
    pub(super) fn find(&self, is_wanted: impl Fn(&C) -> bool) -> Vec<u64> {
        self.tasks.iter().filter(|(_, entry)| is_wanted(&entry.control)).map(|(id, _)| *id).collect()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.held == 0
    }

    pub(super) fn is_closed(&self) -> bool {
        self.phase > Phase::Open
    }

    pub(super) fn tally(&self) -> Tally {
        self.tally
    }

    pub(super) fn stats(&self) -> Stats {
        let Tally { cancelled, completed, failed, rejected, skipped } = self.tally;
        let (queued, running) = (self.queue.len(), self.permits_taken);
        let reserved = self.tasks.len() - queued - running;
        Stats { cancelled, completed, failed, queued, rejected, reserved, running, skipped }
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
