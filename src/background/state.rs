use std::collections::BTreeMap;

use tokio::time::Instant;

use super::{
    Completion, SubmitError,
    sequence::{SequenceKey, Sequences},
};

/// State machine of a background: reserved tasks, queued work, sequences, run permits and closing.
///
/// It is pure. Ids and times are arguments; the work `W` and the task headers `H` are stored and
/// returned, never inspected.
#[derive(Debug)]
pub(super) struct State<W, H> {
    limits: Limits,
    phase: Phase,
    /// Every task that is not complete.
    tasks: BTreeMap<u64, Entry<H>>,
    /// The number of entries in stage `AwaitingResponse`. At most `max_awaiting_response`.
    awaiting_response: usize,
    /// Work that waits for a run permit, oldest first, with the id of its task: one element per
    /// entry in stage `Queued`, which has the number.
    queue: BTreeMap<u64, (u64, W)>,
    /// Work of the entries in stage `InSequence`. Of the entries of one sequence, at most one is in
    /// stage `Queued`, `Dispatched` or `Running`: the head, for which the others wait.
    sequences: Sequences<W>,
    /// The number of the next work that is submitted.
    next_number: u64,
    /// The number of entries in stage `Dispatched` or `Running`. At most `max_running`.
    permits_in_use: usize,
    /// The counters since creation. The gauges in it stay zero.
    totals: BackgroundStats,
}

/// Bounds of a [`State`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bounds the tasks that may be admitted while they wait for nothing but the background. A
    /// response that ends adds its tasks even beyond this limit, since they were admitted before.
    pub(super) max_tasks: usize,
    pub(super) max_awaiting_response: usize,
    pub(super) max_running: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Open,
    /// Only running tasks may add tasks.
    Closed,
    /// The shutdown timed out: no task may be added or start.
    Halted,
}

#[derive(Debug)]
struct Entry<H> {
    header: H,
    sequence: Option<SequenceKey>,
    stage: Stage,
    /// The time of the reservation, then of queueing, then of the start. It does not change when
    /// the task is dispatched, so that the time until a thread is free counts as time in the queue.
    since: Instant,
    /// Set by a cancellation in stage `Dispatched` or `Running`. A cancelled task never starts.
    cancelled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Admitted, and waiting for the end of a response, which a client can delay.
    AwaitingResponse,
    /// Admitted, without work.
    Reserved,
    /// Waiting for an earlier task of its sequence.
    InSequence {
        /// The number of the work in the sequence.
        number: u64,
    },
    /// Waiting for a run permit.
    Queued {
        /// The number of the work in the queue.
        number: u64,
    },
    /// The task owns a run permit and was handed to a pool or runtime, but its code has not
    /// started.
    Dispatched,
    /// The code of the task has started.
    Running,
}

/// Counters and gauges of a [`Background`](super::Background), in the order of a task's life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackgroundStats {
    /// Total number of tasks that were rejected: the background or their sequence was full, or the
    /// background was closed.
    pub rejected: u64,
    /// Current number of tasks that wait for the end of a response.
    pub awaiting_response: usize,
    /// Current number of reservations outside of a response that have no work yet.
    pub reserved: usize,
    /// Total number of tasks that were skipped: the reservation was dropped without work, or the
    /// response did not meet the condition of the task.
    pub skipped: u64,
    /// Current number of tasks that wait for an earlier task of their
    /// [sequence](super::TaskBuilder::sequence).
    pub in_sequence: usize,
    /// Current number of tasks that wait for a run permit.
    pub queued: usize,
    /// Current number of run permits in use.
    pub running: usize,
    /// Total number of tasks that were cancelled, before or after they started.
    pub cancelled: u64,
    /// Total number of tasks that returned an error, panicked, timed out or could not be run.
    pub failed: u64,
    /// Total number of tasks that succeeded.
    pub completed: u64,
    /// Total number of polls of tasks on a runtime that took longer than the [blocking
    /// threshold](super::BackgroundBuilder::blocking_threshold).
    pub blocked_polls: u64,
}

/// Properties of a task that decide whether it is admitted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Admit {
    /// `true` if a running task of this background adds the task, which is allowed until the state
    /// is halted.
    pub(super) is_nested: bool,
    /// `true` if the task waits for the end of a response.
    pub(super) awaits_response: bool,
    pub(super) sequence: Option<SequenceKey>,
}

/// The stage in which a cancellation found its task.
#[derive(Debug)]
pub(super) enum Cancel<W, H> {
    /// The task is complete or never existed. Nothing changed.
    Complete,
    /// The task had no run permit and was removed. `work` must be dropped outside the lock. No
    /// dispatch is due: if another task was queued instead, the removed one was in the queue.
    Removed { work: Option<W> },
    /// The task has a run permit. The caller must abort it. It stays in the state until it reports
    /// its completion.
    Abort(H),
}

/// Result of [`State::halt`].
#[derive(Debug)]
pub(super) struct Halt<W, H> {
    /// Queued work. Must be dropped outside the lock.
    pub(super) queued: Vec<W>,
    /// Tasks that have a run permit and have not started. They can no longer start.
    pub(super) dispatched: Vec<H>,
    /// Tasks that have started, each with the time of its start.
    pub(super) running: Vec<(H, Instant)>,
}

impl<W, H: Clone> State<W, H> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            phase: Phase::Open,
            tasks: BTreeMap::new(),
            awaiting_response: 0,
            queue: BTreeMap::new(),
            sequences: Sequences::new(),
            next_number: 0,
            permits_in_use: 0,
            totals: BackgroundStats::default(),
        }
    }

    /// Admits a task without work.
    pub(super) fn reserve(&mut self, id: u64, header: H, admit: Admit, now: Instant) -> Result<(), SubmitError> {
        let Admit { is_nested, awaits_response, sequence } = admit;
        let admitted = match self.phase {
            Phase::Closed if !is_nested => Err(SubmitError::CLOSED),
            Phase::Halted => Err(SubmitError::CLOSED),
            Phase::Open | Phase::Closed => self.check_room(awaits_response, sequence),
        };
        match admitted {
            Ok(()) => {
                let stage = if awaits_response { Stage::AwaitingResponse } else { Stage::Reserved };
                self.insert(id, Entry { header, sequence, stage, since: now, cancelled: false });
            }
            Err(_) => self.totals.rejected += 1,
        }
        admitted
    }

    /// Adds a task without work to a sequence, and removes it from an earlier one. Has no effect on
    /// a task that was removed.
    ///
    /// If the sequence is full, the task is removed and counted as rejected.
    pub(super) fn join(&mut self, id: u64, key: SequenceKey) -> Result<(), SubmitError> {
        if !self.is_reserved(id) {
            return Ok(());
        }
        let Some(entry) = self.remove(id) else { return Ok(()) };
        let awaits_response = entry.stage == Stage::AwaitingResponse;
        match self.check_room(awaits_response, Some(key)) {
            Err(error) if error == SubmitError::SEQUENCE_FULL => {
                self.totals.rejected += 1;
                Err(error)
            }
            // It is admitted even if responses that ended have filled the background since.
            Ok(()) | Err(_) => {
                self.insert(id, Entry { sequence: Some(key), ..entry });
                Ok(())
            }
        }
    }

    /// Returns an error if there is no room for one more task.
    ///
    /// A sequence that has as many tasks as places are left gets no more, like a key in the queue
    /// of a pool (`pool::shares`). One sequence therefore fills at most half of the background.
    fn check_room(&self, awaits_response: bool, sequence: Option<SequenceKey>) -> Result<(), SubmitError> {
        let Limits { max_tasks, max_awaiting_response, .. } = self.limits;
        let mut left = max_tasks.saturating_sub(self.tasks.len() - self.awaiting_response);
        if left == 0 {
            return Err(SubmitError::FULL);
        }
        if awaits_response {
            left = left.min(max_awaiting_response.saturating_sub(self.awaiting_response));
        }
        if left == 0 {
            return Err(SubmitError::TOO_MANY_AWAITING);
        }
        match sequence {
            Some(key) if self.sequences.members(key) >= left => Err(SubmitError::SEQUENCE_FULL),
            _ => Ok(()),
        }
    }

    fn insert(&mut self, id: u64, entry: Entry<H>) {
        self.awaiting_response += usize::from(entry.stage == Stage::AwaitingResponse);
        if let Some(key) = entry.sequence {
            self.sequences.join(key);
        }
        self.tasks.insert(id, entry);
    }

    /// Removes a task, and releases its run permit and its sequence.
    fn remove(&mut self, id: u64) -> Option<Entry<H>> {
        let entry = self.tasks.remove(&id)?;
        match entry.stage {
            Stage::AwaitingResponse => self.awaiting_response -= 1,
            Stage::Dispatched | Stage::Running => self.permits_in_use -= 1,
            Stage::Reserved | Stage::InSequence { .. } | Stage::Queued { .. } => {}
        }
        if let Some(key) = entry.sequence {
            if matches!(entry.stage, Stage::Queued { .. } | Stage::Dispatched | Stage::Running) {
                self.advance(key);
            }
            self.sequences.leave(key);
        }
        Some(entry)
    }

    /// Queues the next task of a sequence whose head is removed. It keeps its place by the time of
    /// its submission.
    ///
    /// If the queue was empty, the head had a run permit, whose release is followed by a dispatch.
    fn advance(&mut self, key: SequenceKey) {
        if let Some((number, (id, work))) = self.sequences.advance(key) {
            if let Some(entry) = self.tasks.get_mut(&id) {
                entry.stage = Stage::Queued { number };
            }
            self.queue.insert(number, (id, work));
        }
    }

    /// Records that the response that a task waited for has ended.
    pub(super) fn end_response(&mut self, id: u64) {
        if let Some(entry) = self.tasks.get_mut(&id).filter(|entry| entry.stage == Stage::AwaitingResponse) {
            entry.stage = Stage::Reserved;
            self.awaiting_response -= 1;
        }
    }

    /// Queues the work of a reserved task, which takes its place in its sequence now. Returns the
    /// work if the task was cancelled in between.
    pub(super) fn enqueue(&mut self, id: u64, work: W, now: Instant) -> Result<(), W> {
        self.end_response(id);
        match self.tasks.get_mut(&id) {
            Some(entry) if entry.stage == Stage::Reserved => {
                let number = self.next_number;
                self.next_number += 1;
                let head = match entry.sequence {
                    Some(key) => self.sequences.push(key, number, id, work),
                    None => Some(work),
                };
                entry.since = now;
                match head {
                    Some(work) => {
                        entry.stage = Stage::Queued { number };
                        self.queue.insert(number, (id, work));
                    }
                    None => entry.stage = Stage::InSequence { number },
                }
                Ok(())
            }
            _ => Err(work),
        }
    }

    /// Acquires a run permit for the oldest queued task, and returns its work.
    pub(super) fn dispatch(&mut self) -> Option<W> {
        if self.permits_in_use >= self.limits.max_running {
            return None;
        }
        let (_, (id, work)) = self.queue.pop_first()?;
        if let Some(entry) = self.tasks.get_mut(&id) {
            entry.stage = Stage::Dispatched;
            self.permits_in_use += 1;
        }
        Some(work)
    }

    /// Marks a dispatched task as running, and returns the time since which it was queued. Returns
    /// `None` if the task must not run, because it was cancelled or the state is halted.
    pub(super) fn start(&mut self, id: u64, now: Instant) -> Option<Instant> {
        let entry = self.tasks.get_mut(&id).filter(|entry| entry.stage == Stage::Dispatched && !entry.cancelled)?;
        entry.stage = Stage::Running;
        Some(std::mem::replace(&mut entry.since, now))
    }

    /// Removes a task, releases its run permit and its sequence, and counts its completion. Has no
    /// effect if the task was removed before.
    pub(super) fn finish(&mut self, id: u64, completion: Completion) {
        if self.remove(id).is_none() {
            return;
        }
        *match completion {
            Completion::Skipped => &mut self.totals.skipped,
            Completion::Cancelled => &mut self.totals.cancelled,
            Completion::Completed => &mut self.totals.completed,
            Completion::Refused | Completion::TimedOut | Completion::Failed | Completion::Lost => {
                &mut self.totals.failed
            }
        } += 1;
    }

    /// Removes a task that is still reserved. Returns `false` if it was cancelled before.
    pub(super) fn skip(&mut self, id: u64) -> bool {
        let is_reserved = self.is_reserved(id);
        if is_reserved {
            self.finish(id, Completion::Skipped);
        }
        is_reserved
    }

    /// Returns `true` if the task has no work yet.
    fn is_reserved(&self, id: u64) -> bool {
        let stage = self.tasks.get(&id).map(|entry| entry.stage);
        matches!(stage, Some(Stage::AwaitingResponse | Stage::Reserved))
    }

    pub(super) fn cancel(&mut self, id: u64) -> Cancel<W, H> {
        let Some(entry) = self.tasks.get_mut(&id) else { return Cancel::Complete };
        let work = match entry.stage {
            Stage::Dispatched | Stage::Running => {
                entry.cancelled = true;
                return Cancel::Abort(entry.header.clone());
            }
            Stage::Queued { number } => self.queue.remove(&number).map(|(_, work)| work),
            Stage::InSequence { number } => entry.sequence.and_then(|key| self.sequences.remove(key, number)),
            Stage::AwaitingResponse | Stage::Reserved => None,
        };
        self.finish(id, Completion::Cancelled);
        Cancel::Removed { work }
    }

    /// Rejects new tasks, except those that a running task adds.
    pub(super) fn close(&mut self) {
        self.phase = self.phase.max(Phase::Closed);
    }

    /// Rejects every new task, and removes all tasks that have not started, as cancelled.
    pub(super) fn halt(&mut self) -> Halt<W, H> {
        self.phase = Phase::Halted;
        let mut queue = std::mem::take(&mut self.queue);
        queue.extend(self.sequences.take_waiting());
        let mut halt = Halt {
            queued: queue.into_values().map(|(_, work)| work).collect(),
            dispatched: Vec::new(),
            running: Vec::new(),
        };
        let mut not_started = Vec::new();
        for (id, entry) in &self.tasks {
            match entry.stage {
                Stage::Running => {
                    halt.running.push((entry.header.clone(), entry.since));
                    continue;
                }
                Stage::Dispatched => halt.dispatched.push(entry.header.clone()),
                Stage::AwaitingResponse | Stage::Reserved | Stage::InSequence { .. } | Stage::Queued { .. } => {}
            }
            not_started.push(*id);
        }
        for id in not_started {
            self.finish(id, Completion::Cancelled);
        }
        halt
    }

    /// Returns the ids of the tasks whose header matches.
    pub(super) fn find(&self, matches: impl Fn(&H) -> bool) -> Vec<u64> {
        self.tasks.iter().filter(|(_, entry)| matches(&entry.header)).map(|(id, _)| *id).collect()
    }

    /// Returns `true` if every task is complete.
    pub(super) fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.phase > Phase::Open
    }

    pub(super) fn stats(&self) -> BackgroundStats {
        let (awaiting_response, in_sequence) = (self.awaiting_response, self.sequences.waiting());
        let (queued, running) = (self.queue.len(), self.permits_in_use);
        let reserved = self.tasks.len() - awaiting_response - in_sequence - queued - running;
        BackgroundStats { awaiting_response, reserved, in_sequence, queued, running, ..self.totals }
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
