//! Which workers there are, and which must be started, drained and killed.

use std::time::Duration;

use tokio::time::Instant;

use super::event::KillReason;

/// Delay of the second restart of a slot in a row. It doubles with each further one.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A worker that was ready for this long is stable. It ends the back-off of its slot, and lets the
/// reload to its generation continue, which a worker that dies earlier ends.
const STABLE_AFTER: Duration = Duration::from_secs(1);
/// A request to end that comes within this time after the first is part of it: `timeout` and
/// systemd signal a process twice, and the system may deliver SIGTERM and SIGINT at once.
const REPEATED_WITHIN: Duration = Duration::from_secs(1);

/// Number of a worker. Numbers are not used again.
pub(super) type Id = u64;

/// How long workers may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// From the start until a worker is ready.
    pub(super) start: Duration,
    /// From the request to drain until a worker is killed.
    pub(super) drain: Duration,
}

/// The workers of a supervisor. A pure state machine: time and ends of processes are arguments, and
/// [`next`](Self::next) returns what the supervisor must do.
#[derive(Debug)]
pub(super) struct Fleet {
    slots: Vec<Slot>,
    members: Vec<Member>,
    timeouts: Timeouts,
    phase: Phase,
    /// Number of requested reloads. A worker has the number at its start.
    generation: u64,
    /// The latest generation that has had a stable worker. Workers of later ones replace no others.
    stable_generation: u64,
    /// Workers of an earlier generation are being replaced.
    is_reloading: bool,
    /// Time of the first request to end.
    stop_requested: Option<Instant>,
    next_id: Id,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Phase {
    /// Some slot has never had a ready worker. A start that fails ends the supervisor.
    Starting,
    Serving,
    /// The first start has failed: workers that start are killed, and ready ones drain.
    Failed,
    /// Workers drain, and none is started.
    Stopping,
    /// Workers are killed.
    Halted,
}

/// A place for a worker that serves. During a reload and a drain it has two workers.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    has_been_ready: bool,
    /// Restarts in a row that did not last.
    failures: u32,
    /// No worker is started before this time.
    retry_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    id: Id,
    slot: usize,
    generation: u64,
    has_been_ready: bool,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Starting { since: Instant },
    Ready { since: Instant },
    Draining { since: Instant },
    Killed,
}

impl Member {
    fn is_starting(&self) -> bool {
        matches!(self.state, State::Starting { .. })
    }

    fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready { .. })
    }
}

/// Next step of the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Start(Id),
    Drain(Id),
    Kill(Id, KillReason),
    /// Report that every slot has a worker of the latest generation.
    ReportReloaded,
}

/// Meaning of the end of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It had been asked to end, or was killed after it had been ready.
    Expected,
    /// It was ready and ended by itself. Another one starts after this time, unless the other
    /// worker of its slot continues. `fails_reload` if the reload ends because of it.
    Died { restart_in: Option<Duration>, fails_reload: bool },
    /// It was never ready. Another one starts after this time.
    StartFailed { retry_in: Duration },
    /// It was never ready, and the supervisor ends because of it.
    FirstStartFailed,
    /// It was never ready, and the reload ends because of it.
    ReloadFailed,
}

impl Fleet {
    pub(super) fn new(workers: usize, timeouts: Timeouts) -> Self {
        Self {
            slots: vec![Slot::default(); workers],
            members: Vec::new(),
            timeouts,
            phase: Phase::Starting,
            generation: 0,
            stable_generation: 0,
            is_reloading: false,
            stop_requested: None,
            next_id: 1,
        }
    }

    /// Returns the next action, which the caller must perform before it asks again. `None` means
    /// that nothing is due.
    pub(super) fn next(&mut self, now: Instant) -> Option<Action> {
        self.find_stable(now);
        self.next_kill(now)
            .or_else(|| self.next_drain(now))
            .or_else(|| self.next_start(now))
            .or_else(|| self.end_reload().then_some(Action::ReportReloaded))
    }

    /// Records the generation of workers that have become stable.
    fn find_stable(&mut self, now: Instant) {
        let is_stable = |member: &&Member| match member.state {
            State::Ready { since } => now.saturating_duration_since(since) >= STABLE_AFTER,
            _ => false,
        };
        let stable = self.members.iter().filter(is_stable).map(|member| member.generation).max();
        self.stable_generation = self.stable_generation.max(stable.unwrap_or(0));
    }

    /// Returns `true` if a worker is ready and none of its generation has been stable.
    fn is_unproven(&self, member: &Member) -> bool {
        member.is_ready() && member.generation > self.stable_generation
    }

    fn next_kill(&mut self, now: Instant) -> Option<Action> {
        let Self { members, timeouts, phase, .. } = self;
        let is_over = |since: Instant, timeout| now.saturating_duration_since(since) >= timeout;
        members.iter_mut().find_map(|member| {
            let reason = match member.state {
                State::Killed => return None,
                _ if *phase == Phase::Halted => KillReason::Halted,
                State::Starting { .. } if *phase == Phase::Failed => KillReason::Halted,
                State::Starting { since } if is_over(since, timeouts.start) => KillReason::StartTimeout,
                State::Draining { since } if is_over(since, timeouts.drain) => KillReason::DrainTimeout,
                _ => return None,
            };
            member.state = State::Killed;
            Some(Action::Kill(member.id, reason))
        })
    }

    fn next_drain(&mut self, now: Instant) -> Option<Action> {
        let is_replaced = |old: &Member| {
            let is_newer =
                |new: &Member| new.slot == old.slot && new.id > old.id && new.is_ready() && !self.is_unproven(new);
            old.is_ready() && self.is_reloading && self.members.iter().any(is_newer)
        };
        // The reload has failed before the old worker of the slot was asked to end.
        let is_surplus = |new: &Member| {
            let is_older = |old: &Member| old.slot == new.slot && old.id < new.id && old.is_ready();
            (new.is_starting() || new.is_ready()) && !self.is_reloading && self.members.iter().any(is_older)
        };
        // A worker that is starting may accept connections before the supervisor sees it ready.
        let is_stopped = |member: &Member| self.is_stopping() && (member.is_starting() || member.is_ready());
        let leaves = |member: &Member| is_replaced(member) || is_surplus(member) || is_stopped(member);
        let index = self.members.iter().position(leaves)?;
        let member = &mut self.members[index];
        member.state = State::Draining { since: now };
        Some(Action::Drain(member.id))
    }

    fn next_start(&mut self, now: Instant) -> Option<Action> {
        if self.is_stopping() {
            return None;
        }
        let slot = (0..self.slots.len()).find(|slot| self.is_due(*slot, now)).or_else(|| self.next_to_replace(now))?;
        let id = self.next_id;
        self.next_id += 1;
        let state = State::Starting { since: now };
        self.members.push(Member { id, slot, generation: self.generation, has_been_ready: false, state });
        Some(Action::Start(id))
    }

    /// Returns `true` if a slot has no worker that serves or is about to, and does not back off.
    fn is_due(&self, slot: usize, now: Instant) -> bool {
        self.is_vacant(slot) && self.may_start(slot, now)
    }

    /// Returns `true` if a slot does not back off.
    fn may_start(&self, slot: usize, now: Instant) -> bool {
        self.slots[slot].retry_at.is_none_or(|at| now >= at)
    }

    /// Returns `true` if a slot has no worker, except one that leaves after it was ready. The
    /// back-off of one that was never ready begins with its end.
    fn is_vacant(&self, slot: usize) -> bool {
        self.of(slot).all(|member| member.has_been_ready && !member.is_ready())
    }

    /// Returns the next slot whose worker is to be replaced by the reload.
    fn next_to_replace(&self, now: Instant) -> Option<usize> {
        (0..self.slots.len()).find(|slot| self.is_to_replace(*slot) && self.may_start(*slot, now))
    }

    /// Returns `true` if the worker of a slot is the next to be replaced by the reload, unless the
    /// slot backs off: one at a time, the second one only after the first new worker is stable, and
    /// only if the previous worker of the slot is gone.
    fn is_to_replace(&self, slot: usize) -> bool {
        let is_old = |member: &Member| member.is_ready() && member.generation < self.generation;
        self.is_reloading
            && self.phase == Phase::Serving
            && self.members.iter().all(|member| member.has_been_ready && !self.is_unproven(member))
            && self.of(slot).count() == 1
            && self.of(slot).all(is_old)
    }

    /// Ends a reload that has replaced every worker.
    fn end_reload(&mut self) -> bool {
        let is_new = |member: &Member| member.generation == self.generation;
        let is_replaced = |slot| {
            let mut ready = self.of(slot).filter(|member| member.is_ready()).peekable();
            ready.peek().is_some() && ready.all(is_new)
        };
        let is_done = self.is_reloading && !self.is_stopping() && (0..self.slots.len()).all(is_replaced);
        self.is_reloading &= !is_done;
        is_done
    }

    /// Returns when [`next`](Self::next) must be called again, if nothing else happens.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let ends = self.members.iter().filter_map(|member| match member.state {
            State::Starting { since } => since.checked_add(self.timeouts.start),
            State::Draining { since } => since.checked_add(self.timeouts.drain),
            State::Ready { since } if self.is_reloading && self.is_unproven(member) => since.checked_add(STABLE_AFTER),
            State::Ready { .. } | State::Killed => None,
        });
        let waits = |slot: &usize| !self.is_stopping() && (self.is_vacant(*slot) || self.is_to_replace(*slot));
        let starts = (0..self.slots.len()).filter(waits).filter_map(|slot| self.slots[slot].retry_at);
        ends.chain(starts).min()
    }

    /// Records that a worker is ready. Returns `false` if it is not starting: it was ready
    /// before, or was asked to end.
    pub(super) fn on_ready(&mut self, id: Id, now: Instant) -> bool {
        let Some(member) = self.members.iter_mut().find(|member| member.id == id && member.is_starting()) else {
            return false;
        };
        (member.state, member.has_been_ready) = (State::Ready { since: now }, true);
        self.slots[member.slot].has_been_ready = true;
        if self.phase == Phase::Starting && self.slots.iter().all(|slot| slot.has_been_ready) {
            self.phase = Phase::Serving;
        }
        true
    }

    /// Records that a worker has ended, or could not be started.
    pub(super) fn on_ended(&mut self, id: Id, now: Instant) -> End {
        let Some(index) = self.members.iter().position(|member| member.id == id) else { return End::Expected };
        let member = self.members.remove(index);
        let was_asked = matches!(member.state, State::Draining { .. });
        if self.is_stopping() || was_asked {
            return End::Expected;
        }
        if !member.has_been_ready {
            if self.phase == Phase::Starting {
                self.phase = Phase::Failed;
                return End::FirstStartFailed;
            }
            // The worker that it should have replaced continues.
            if self.of(member.slot).any(Member::is_ready) {
                if !self.is_reloading {
                    return End::Expected; // the reload has already failed
                }
                self.is_reloading = member.generation < self.generation;
                return End::ReloadFailed;
            }
            return End::StartFailed { retry_in: self.back_off(member.slot, MIN_BACKOFF, now) };
        }
        match member.state {
            State::Ready { since } => {
                let is_stable = now.saturating_duration_since(since) >= STABLE_AFTER;
                if is_stable {
                    self.slots[member.slot].failures = 0;
                }
                // The reload is about to start the same version in the other slots.
                let fails_reload = self.is_reloading && !is_stable && member.generation == self.generation;
                self.is_reloading &= !fails_reload;
                let delay = self.back_off(member.slot, Duration::ZERO, now);
                let is_replaced = !self.of(member.slot).any(Member::is_ready);
                End::Died { restart_in: is_replaced.then_some(delay), fails_reload }
            }
            _ => End::Expected,
        }
    }

    /// Returns the delay until the slot starts a worker again, `first` if it has not failed before.
    fn back_off(&mut self, slot: usize, first: Duration, now: Instant) -> Duration {
        let slot = &mut self.slots[slot];
        let doubled = |failures: u32| MIN_BACKOFF.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX));
        let delay = slot.failures.checked_sub(1).map_or(first, doubled).min(MAX_BACKOFF);
        slot.failures = slot.failures.saturating_add(1);
        slot.retry_at = now.checked_add(delay);
        delay
    }

    /// Replaces the workers, once all are ready. Reloads that have not begun are combined.
    pub(super) fn reload(&mut self) {
        if !self.is_stopping() {
            self.generation += 1;
            self.is_reloading = true;
        }
    }

    /// Drains all workers and starts none. A second request kills them.
    pub(super) fn stop(&mut self, now: Instant) {
        match self.stop_requested {
            None => {
                self.stop_requested = Some(now);
                if !self.is_stopping() {
                    self.phase = Phase::Stopping;
                }
            }
            Some(first) if now.saturating_duration_since(first) < REPEATED_WITHIN => {}
            Some(_) => self.phase = Phase::Halted,
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.phase >= Phase::Failed
    }

    /// Returns `true` if the supervisor has stopped and no worker is left.
    pub(super) fn is_done(&self) -> bool {
        self.is_stopping() && self.members.is_empty()
    }

    /// Returns the number of workers that are ready.
    pub(super) fn ready(&self) -> usize {
        self.members.iter().filter(|member| member.is_ready()).count()
    }

    fn of(&self, slot: usize) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| member.slot == slot)
    }
}

#[cfg(test)]
mod tests;
