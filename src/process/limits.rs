//! When a job is asked to stop, and when its process is killed.

use std::time::Duration;

use tokio::time::Instant;

use super::error::KilledBy;

/// Multiple of the memory limit at which a process is killed without a grace period: within the
/// grace period, a process that allocates without end could take all memory of the machine.
const MEMORY_CEILING: u64 = 2;

/// The limits of one job, and how far they were enforced. A pure state machine: time, memory and
/// wishes of the caller are arguments.
#[derive(Debug)]
pub(super) struct Limits {
    /// Time from which the grace period and the timeout count.
    started: Instant,
    grace: Duration,
    max_memory: Option<u64>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// The job was asked to stop, and has time until the instant. Without one, the clock cannot
    /// represent the end of the grace period.
    Asked(KilledBy, Option<Instant>),
    Killed,
}

/// What the driver sees at one instant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Observation {
    pub(super) now: Instant,
    /// Maximum time that the job may run.
    pub(super) timeout: Option<Duration>,
    /// The caller does not want the result any longer.
    pub(super) is_cancelled: bool,
    /// The pool's shutdown has timed out.
    pub(super) is_halted: bool,
    /// Memory in use, if it was sampled.
    pub(super) memory: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    None,
    /// Ask the job to stop. Returned at most once.
    Ask,
    /// Kill the process, for this reason. Returned at most once.
    Kill(KilledBy),
}

impl Limits {
    pub(super) fn new(started: Instant, grace: Duration, max_memory: Option<u64>) -> Self {
        Self { started, grace, max_memory, state: State::Running }
    }

    /// Returns what the driver must do now.
    pub(super) fn observe(&mut self, observation: Observation) -> Action {
        let Observation { now, is_halted, memory, .. } = observation;
        let over_ceiling =
            self.max_memory.zip(memory).is_some_and(|(max, used)| used > max.saturating_mul(MEMORY_CEILING));
        let by = match self.state {
            State::Killed => return Action::None,
            _ if over_ceiling => KilledBy::Memory,
            State::Asked(by, _) if is_halted => by,
            _ if is_halted => KilledBy::Cancelled,
            State::Asked(by, Some(until)) if now >= until => by,
            State::Asked(..) => return Action::None,
            State::Running => {
                let Some(by) = self.exceeded(observation) else { return Action::None };
                self.state = State::Asked(by, now.checked_add(self.grace));
                if !self.grace.is_zero() {
                    return Action::Ask;
                }
                by
            }
        };
        self.state = State::Killed;
        Action::Kill(by)
    }

    /// Returns when the driver must observe again at the latest, if nothing else happens.
    pub(super) fn next_observation(&self, timeout: Option<Duration>) -> Option<Instant> {
        match self.state {
            State::Running => timeout.and_then(|timeout| self.started.checked_add(timeout)),
            State::Asked(_, until) => until,
            State::Killed => None,
        }
    }

    fn exceeded(&self, observation: Observation) -> Option<KilledBy> {
        let Observation { now, timeout, is_cancelled, memory, .. } = observation;
        let runs_too_long = timeout.is_some_and(|timeout| now.saturating_duration_since(self.started) >= timeout);
        let uses_too_much = self.max_memory.zip(memory).is_some_and(|(max, used)| used > max);
        if uses_too_much {
            Some(KilledBy::Memory)
        } else if runs_too_long {
            Some(KilledBy::Timeout)
        } else {
            is_cancelled.then_some(KilledBy::Cancelled)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GRACE: Duration = Duration::from_millis(50);

    fn limits(max_memory: Option<u64>) -> (Limits, Observation) {
        let now = Instant::now();
        let quiet = Observation { now, timeout: None, is_cancelled: false, is_halted: false, memory: None };
        (Limits::new(now, GRACE, max_memory), quiet)
    }

    #[test]
    fn timeout_asks_and_kills_after_the_grace_period() {
        let (mut limits, quiet) = limits(None);
        let at = |after: u64| {
            let now = quiet.now + Duration::from_millis(after);
            Observation { now, timeout: Some(Duration::from_millis(100)), ..quiet }
        };
        assert_eq!(limits.next_observation(at(0).timeout), Some(at(100).now));
        let actions = [0, 99, 100, 149, 150, 999].map(|after| limits.observe(at(after)));
        let none = Action::None;
        assert_eq!(actions, [none, none, Action::Ask, none, Action::Kill(KilledBy::Timeout), none]);
    }

    #[test]
    fn timeout_may_be_set_while_the_job_runs() {
        let (mut limits, quiet) = limits(None);
        let now = quiet.now + Duration::from_millis(500);
        assert_eq!(limits.observe(Observation { now, ..quiet }), Action::None);
        assert_eq!(limits.observe(Observation { now, timeout: Some(GRACE), ..quiet }), Action::Ask);
    }

    #[test]
    fn first_reason_remains_the_reason() {
        let (mut limits, quiet) = limits(Some(100));
        assert_eq!(limits.observe(Observation { memory: Some(101), is_cancelled: true, ..quiet }), Action::Ask);
        let later = Observation { now: quiet.now + GRACE, is_cancelled: true, ..quiet };
        assert_eq!(limits.observe(later), Action::Kill(KilledBy::Memory));
    }

    #[test]
    fn twice_the_memory_is_killed_without_grace() {
        let (mut limits, quiet) = limits(Some(100));
        assert_eq!(limits.observe(Observation { memory: Some(100), ..quiet }), Action::None);
        assert_eq!(limits.observe(Observation { memory: Some(201), ..quiet }), Action::Kill(KilledBy::Memory));
    }

    #[test]
    fn halted_pool_kills_without_grace() {
        let (mut limits, quiet) = limits(None);
        assert_eq!(limits.observe(Observation { is_halted: true, ..quiet }), Action::Kill(KilledBy::Cancelled));
    }

    #[test]
    fn no_grace_period_kills_at_once() {
        let (_, quiet) = limits(None);
        let mut limits = Limits::new(quiet.now, Duration::ZERO, None);
        assert_eq!(limits.observe(Observation { is_cancelled: true, ..quiet }), Action::Kill(KilledBy::Cancelled));
    }

    proptest! {
        #[test]
        fn every_limit_is_enforced_once_and_in_time(
            steps in prop::collection::vec((0_u64..40, any::<bool>(), 0_u64..150), 1..60),
            timeout in prop::option::of(0_u64..400),
        ) {
            let (mut limits, quiet) = limits(Some(100));
            let timeout = timeout.map(Duration::from_millis);
            let (mut now, mut asked, mut killed) = (quiet.now, None, false);
            for (step, is_cancelled, memory) in steps {
                now += Duration::from_millis(step);
                let is_due = asked.is_some_and(|asked| now >= asked + GRACE);
                match limits.observe(Observation { now, timeout, is_cancelled, memory: Some(memory), ..quiet }) {
                    Action::Ask => {
                        prop_assert!(asked.is_none() && !killed);
                        asked = Some(now);
                    }
                    Action::Kill(_) => {
                        prop_assert!(is_due && !killed);
                        killed = true;
                    }
                    Action::None => {
                        prop_assert!(killed || !is_due);
                        let wanted = !is_cancelled && memory <= 100 && timeout.is_none_or(|timeout| now < quiet.now + timeout);
                        prop_assert!(asked.is_some() || wanted);
                    }
                }
            }
        }
    }
}
