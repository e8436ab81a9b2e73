//! Explores every interleaving of two live processes, an outage and a change of the server's clock.
//! Not explored together: an outage, and a clock that is set back by about the time that the outage
//! lasts, which hides it from the server.
//!
//! The judge and the other process renew their leases with the timing of
//! [`keep_renewed`](super::keep_renewed). Requests and replies take up to a tick, or as long as the
//! network holds them. The judge may send its statement at any time. The property: no live process
//! is judged.
//!
//! Times of rows are relative to the server's clock, so the number of states is finite.

use std::collections::{HashSet, VecDeque};

use super::{ATTEMPT_TIMEOUT, RENEWALS, RETRIES};

/// Duration of a lease in ticks.
const LEASE: i32 = 16;
const INTERVAL: i32 = LEASE / RENEWALS as i32;
const TIMEOUT: i32 = INTERVAL * ATTEMPT_TIMEOUT as i32;
// Rounded up.
const RETRY: i32 = (INTERVAL + RETRIES as i32 - 1) / RETRIES as i32;
/// A longer time between two renewals is a gap.
const MAX_GAP: i32 = LEASE / 4;
/// Maximum time of a request or a reply in a network that works: less than a tick. Other steps may
/// come before it.
const MAX_DELAY: i32 = 0;
/// Changes of the server's clock.
const JUMPS: [i32; 4] = [MAX_GAP, LEASE, 3 * LEASE, -LEASE];

/// How a process judges others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Every sweep ends every expired lease, the own one too.
    Always,
    /// The process remembers its renewals, and sends the statement if there was no gap for a lease.
    HealthOfTheProcess,
    /// The statement checks the own row.
    SteadyInTheDatabase,
}

/// A row of the table of leases. Times are relative to the server's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Row {
    expires_in: i32,
    steady_for: i32,
}

impl Row {
    const NEW: Self = Self { expires_in: LEASE, steady_for: 0 };

    fn renew(&mut self) {
        if !self.is_fresh() {
            self.steady_for = 0;
        }
        self.expires_in = LEASE;
    }

    /// Returns `true` if the last renewal was not a gap ago. One in the future is not fresh: the
    /// clock was set back, and the age of the renewal is unknown.
    fn is_fresh(self) -> bool {
        (LEASE - MAX_GAP..=LEASE).contains(&self.expires_in)
    }

    fn is_expired(self) -> bool {
        self.expires_in <= 0
    }

    fn may_judge(self) -> bool {
        self.is_fresh() && self.steady_for >= LEASE
    }

    /// Lets the server's clock advance. Times that no rule distinguishes become equal.
    fn advance(&mut self, ticks: i32) {
        self.expires_in = (self.expires_in - ticks).max(0);
        self.steady_for = (self.steady_for + ticks).min(LEASE);
    }
}

/// A statement on its way to the server or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Message {
    stage: Stage,
    /// Time since the statement was sent.
    age: i32,
    /// Time for which a working network has had the request or the reply.
    in_network: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    Request,
    Reply,
    /// The connection is dead, and the process does not know.
    Lost,
}

impl Message {
    const SENT: Self = Self { stage: Stage::Request, age: 0, in_network: 0 };

    fn advance(&mut self, is_up: bool) {
        self.age = (self.age + 1).min(TIMEOUT);
        self.in_network += i32::from(is_up && self.stage != Stage::Lost);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Process {
    row: Row,
    /// Time until the next attempt. Unused while there is one.
    sleeps: i32,
    attempt: Option<Message>,
    /// A request that the process gave up and that the network may still deliver.
    late: Option<Message>,
    /// For [`Rule::HealthOfTheProcess`]: time since the last renewal, and since the first one after
    /// which there was no gap. Both are `LEASE` if that was a lease ago or longer.
    last_renewal: i32,
    healthy_for: i32,
}

impl Process {
    fn new(phase: i32) -> Self {
        Self { row: Row::NEW, sleeps: phase, attempt: None, late: None, last_renewal: LEASE, healthy_for: 0 }
    }

    fn renewed(&mut self) {
        if self.last_renewal >= LEASE {
            self.healthy_for = 0;
        }
        self.last_renewal = 0;
    }

    fn fail(&mut self, is_late: bool) {
        self.late = self.attempt.take().filter(|message| is_late && message.stage == Stage::Request);
        (self.sleeps, self.last_renewal) = (RETRY, LEASE);
    }

    fn is_healthy(&self) -> bool {
        self.last_renewal < LEASE && self.healthy_for >= LEASE
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Network {
    Up,
    /// Connections are closed and refused.
    Refuses,
    /// Messages are held. Afterwards they are delivered, or all of them are lost.
    Holds,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    judge: Process,
    other: Process,
    judgement: Option<Message>,
    network: Network,
    may_have_outage: bool,
    had_outage: bool,
    had_jump: bool,
}

impl State {
    fn is_up(&self) -> bool {
        self.network == Network::Up
    }

    /// Returns the states that may follow.
    fn successors(&self, rule: Rule) -> Vec<Self> {
        let mut next = Vec::new();
        next.extend(self.renewal_steps(|state| &mut state.judge));
        next.extend(self.renewal_steps(|state| &mut state.other));
        let may_send = rule != Rule::HealthOfTheProcess || self.judge.is_healthy();
        if self.judgement.is_none() && may_send && self.network != Network::Refuses {
            next.push(Self { judgement: Some(Message::SENT), ..*self });
        }
        if self.judgement.is_some() && self.is_up() {
            next.push(Self { judgement: None, ..*self }); // `violates` checks its effect
        }
        next.extend(self.disturbances());
        next.extend(self.tick());
        for state in &mut next {
            state.forget(rule);
        }
        next
    }

    /// Sets what no rule looks at to one value.
    fn forget(&mut self, rule: Rule) {
        let forget = |process: &mut Process| (process.last_renewal, process.healthy_for) = (0, 0);
        self.other.row.steady_for = 0;
        forget(&mut self.other);
        if rule != Rule::HealthOfTheProcess {
            forget(&mut self.judge);
        }
        if rule != Rule::SteadyInTheDatabase {
            self.judge.row.steady_for = 0;
        }
    }

    /// The steps of the loop that renews one of the leases.
    fn renewal_steps(&self, select: fn(&mut Self) -> &mut Process) -> Vec<Self> {
        let mut next = Vec::new();
        let mut step = |change: &dyn Fn(&mut Process)| {
            let mut state = *self;
            change(select(&mut state));
            next.push(state);
        };
        let process = *select(&mut { *self });
        match process.attempt {
            None if process.sleeps > 0 => {}
            None if self.network == Network::Refuses => step(&|process| process.fail(false)),
            None => step(&|process| process.attempt = Some(Message::SENT)),
            Some(message) if message.age >= TIMEOUT => step(&|process| process.fail(true)),
            Some(Message { stage: Stage::Request, age, .. }) if self.is_up() => step(&|process| {
                process.row.renew();
                process.attempt = Some(Message { stage: Stage::Reply, age, in_network: 0 });
            }),
            Some(Message { stage: Stage::Reply, age, .. }) if self.is_up() => step(&|process| {
                process.renewed();
                (process.attempt, process.sleeps) = (None, (INTERVAL - age).max(0));
            }),
            Some(_) => {}
        }
        if process.late.is_some() && self.is_up() {
            step(&|process| {
                process.row.renew();
                process.late = None;
            });
        }
        next
    }

    fn disturbances(&self) -> Vec<Self> {
        let mut next = Vec::new();
        match self.network {
            Network::Up if self.had_outage => {}
            Network::Up => {
                next.push(Self { network: Network::Holds, had_outage: true, ..*self });
                let mut refuses = Self { network: Network::Refuses, had_outage: true, judgement: None, ..*self };
                for process in [&mut refuses.judge, &mut refuses.other] {
                    if process.attempt.is_some() {
                        process.fail(false);
                    }
                }
                next.push(refuses);
            }
            Network::Refuses => next.push(Self { network: Network::Up, ..*self }),
            Network::Holds => {
                next.push(Self { network: Network::Up, ..*self });
                let mut lost = Self { network: Network::Up, judgement: None, ..*self };
                for process in [&mut lost.judge, &mut lost.other] {
                    process.late = None;
                    process.attempt = process.attempt.map(|message| Message { stage: Stage::Lost, ..message });
                }
                next.push(lost);
            }
        }
        if !self.had_jump {
            for ticks in JUMPS.into_iter().filter(|ticks| *ticks > 0 || !self.may_have_outage) {
                let mut jumped = Self { had_jump: true, ..*self };
                jumped.judge.row.advance(ticks);
                jumped.other.row.advance(ticks);
                next.push(jumped);
            }
        }
        next
    }

    /// Lets time pass, unless something is due now.
    fn tick(&self) -> Option<Self> {
        let is_overdue =
            |message: &Option<Message>| message.is_some_and(|message| self.is_up() && message.in_network >= MAX_DELAY);
        let is_due = |process: &Process| {
            let is_awake = process.attempt.is_none() && process.sleeps == 0;
            let has_timed_out = process.attempt.is_some_and(|message| message.age >= TIMEOUT);
            is_awake || has_timed_out || is_overdue(&process.attempt) || is_overdue(&process.late)
        };
        if is_due(&self.judge) || is_due(&self.other) || is_overdue(&self.judgement) {
            return None;
        }
        let mut next = *self;
        for process in [&mut next.judge, &mut next.other] {
            process.row.advance(1);
            match &mut process.attempt {
                Some(message) => message.advance(self.is_up()),
                None => process.sleeps -= 1,
            }
            process.last_renewal = (process.last_renewal + 1).min(LEASE);
            process.healthy_for = (process.healthy_for + 1).min(LEASE);
        }
        for message in [&mut next.judge.late, &mut next.other.late, &mut next.judgement].into_iter().flatten() {
            message.advance(self.is_up());
        }
        Some(next)
    }

    /// Returns `true` if the statement of the judge, executed now, would end the lease of a live
    /// process.
    fn violates(&self, rule: Rule) -> bool {
        let is_executed = self.judgement.is_some() && self.is_up();
        is_executed
            && match rule {
                Rule::Always => self.other.row.is_expired() || self.judge.row.is_expired(),
                Rule::HealthOfTheProcess => self.other.row.is_expired(),
                Rule::SteadyInTheDatabase => self.other.row.is_expired() && self.judge.row.may_judge(),
            }
    }
}

/// Returns a state in which a live process is judged, if there is one, and the number of states.
fn explore(rule: Rule, may_have_outage: bool, may_jump: bool) -> (Option<State>, usize) {
    let (had_outage, had_jump) = (!may_have_outage, !may_jump);
    let mut seen = HashSet::new();
    let mut queue = VecDeque::new();
    for (one, other) in (0..=INTERVAL).flat_map(|one| (0..=INTERVAL).map(move |other| (one, other))) {
        let (judge, other) = (Process::new(one), Process::new(other));
        let (judgement, network) = (None, Network::Up);
        let mut state = State { judge, other, judgement, network, may_have_outage, had_outage, had_jump };
        state.forget(rule);
        queue.push_back(state);
    }
    seen.extend(queue.iter().copied());
    while let Some(state) = queue.pop_front() {
        if state.violates(rule) {
            return (Some(state), seen.len());
        }
        for next in state.successors(rule) {
            if seen.insert(next) {
                queue.push_back(next);
            }
        }
    }
    (None, seen.len())
}

#[test]
fn no_live_process_is_judged_in_any_interleaving() {
    for (may_have_outage, may_jump) in [(true, false), (false, true), (true, true)] {
        let (violation, states) = explore(Rule::SteadyInTheDatabase, may_have_outage, may_jump);
        println!("outage {may_have_outage}, changed clock {may_jump}: {states} states");
        assert!(violation.is_none(), "{violation:#?}");
    }
}

#[test]
fn unconditional_judgement_ends_live_leases_after_an_outage() {
    let (violation, _) = explore(Rule::Always, true, false);
    assert!(violation.is_some_and(|state| state.had_outage));
}

/// The check and the statement are not atomic, and the process does not see the server's clock.
#[test]
fn health_known_only_to_the_process_is_not_enough() {
    for (may_have_outage, may_jump) in [(true, false), (false, true)] {
        assert!(explore(Rule::HealthOfTheProcess, may_have_outage, may_jump).0.is_some());
    }
}

#[test]
fn judge_becomes_steady_and_ends_the_lease_of_a_crashed_process() {
    let (mut judge, mut crashed) = (Row::NEW, Row::NEW);
    let mut judged_after = None;
    for tick in 1..=3 * LEASE {
        judge.advance(1);
        crashed.advance(1);
        if tick % INTERVAL == 0 {
            judge.renew();
        }
        if judged_after.is_none() && crashed.is_expired() && judge.may_judge() {
            judged_after = Some(tick);
        }
    }
    assert_eq!(judged_after, Some(LEASE));
}
