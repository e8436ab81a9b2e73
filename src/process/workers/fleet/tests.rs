use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const TIMEOUTS: Timeouts = Timeouts { start: Duration::from_secs(10), drain: Duration::from_secs(15) };

/// Returns all actions that are due.
fn actions(fleet: &mut Fleet, now: Instant) -> Vec<Action> {
    std::iter::from_fn(|| fleet.next(now)).collect()
}

/// Returns a fleet whose workers, 1 to `workers`, are ready.
fn ready(workers: usize, now: Instant) -> Fleet {
    let mut fleet = Fleet::new(workers, TIMEOUTS);
    let started = actions(&mut fleet, now);
    assert_eq!(started, (1..=workers as Id).map(Action::Start).collect::<Vec<_>>());
    assert!((1..=workers as Id).all(|id| fleet.on_ready(id, now)));
    assert_eq!(actions(&mut fleet, now), []);
    fleet
}

fn died(restart_in: Option<Duration>, fails_reload: bool) -> End {
    End::Died { restart_in, fails_reload }
}

/// Begins a reload, whose first worker has this id. Returns the time at which that one is stable.
fn reload_until_stable(fleet: &mut Fleet, id: Id, now: Instant) -> Instant {
    fleet.reload();
    assert_eq!(actions(fleet, now), [Action::Start(id)]);
    fleet.on_ready(id, now);
    let stable = now + STABLE_AFTER;
    assert_eq!((actions(fleet, now), fleet.next_deadline()), (vec![], Some(stable)));
    stable
}

#[test]
fn reload_drains_workers_once_the_first_new_one_is_stable() {
    let mut fleet = ready(3, Instant::now());
    let now = reload_until_stable(&mut fleet, 4, Instant::now());
    assert_eq!(actions(&mut fleet, now), [Action::Drain(1), Action::Start(5)]);
    assert_eq!(fleet.on_ended(1, now), End::Expected);
    fleet.on_ready(5, now);
    assert_eq!(actions(&mut fleet, now), [Action::Drain(2), Action::Start(6)]);
    fleet.on_ready(6, now);
    assert_eq!(actions(&mut fleet, now), [Action::Drain(3), Action::ReportReloaded]);
    assert_eq!([2, 3].map(|id| fleet.on_ended(id, now)), [End::Expected; 2]);
    assert_eq!((fleet.ready(), fleet.next_deadline()), (3, None));
}

#[test]
fn reloads_during_a_reload_are_combined() {
    let now = Instant::now();
    let mut fleet = ready(1, now);
    let stable = reload_until_stable(&mut fleet, 2, now);
    fleet.reload();
    fleet.reload();
    assert_eq!(actions(&mut fleet, stable), [Action::Drain(1)], "the slot has two workers");
    fleet.on_ended(1, stable);
    assert_eq!(actions(&mut fleet, stable), [Action::Start(3)]);
    fleet.on_ready(3, stable);
    assert_eq!(actions(&mut fleet, stable), [], "the first worker of the last reload");
    assert_eq!(actions(&mut fleet, stable + STABLE_AFTER), [Action::Drain(2), Action::ReportReloaded]);
}

#[test]
fn failed_reload_keeps_the_old_workers() {
    let now = Instant::now();
    let mut fleet = ready(2, now);
    fleet.reload();
    assert_eq!(actions(&mut fleet, now), [Action::Start(3)]);
    assert_eq!(fleet.on_ended(3, now), End::ReloadFailed);
    assert_eq!((actions(&mut fleet, now), fleet.ready()), (vec![], 2));
    fleet.reload();
    assert_eq!(actions(&mut fleet, now), [Action::Start(4)]);
    let late = now + TIMEOUTS.start;
    assert_eq!(actions(&mut fleet, late), [Action::Kill(4, KillReason::StartTimeout)]);
    assert_eq!(fleet.on_ended(4, late), End::ReloadFailed);
}

#[test]
fn reload_to_a_version_that_dies_keeps_the_old_workers() {
    let mut fleet = ready(3, Instant::now());
    let stable = reload_until_stable(&mut fleet, 4, Instant::now());
    let died_at = stable - Duration::from_millis(1);
    assert_eq!(fleet.on_ended(4, died_at), died(None, true));
    assert_eq!((actions(&mut fleet, stable), fleet.ready()), (vec![], 3));
}

#[test]
fn successors_leave_when_the_reload_fails() {
    for is_ready in [false, true] {
        let mut fleet = ready(3, Instant::now());
        let now = reload_until_stable(&mut fleet, 4, Instant::now());
        assert_eq!(actions(&mut fleet, now), [Action::Drain(1), Action::Start(5)]);
        assert_eq!(fleet.on_ended(3, now), died(Some(Duration::ZERO), false));
        assert_eq!(actions(&mut fleet, now), [Action::Start(6)]);
        if is_ready {
            fleet.on_ready(5, now); // before its predecessor was asked to drain
        }
        fleet.on_ready(6, now);
        assert_eq!(fleet.on_ended(6, now), died(Some(MIN_BACKOFF), true));
        assert_eq!((actions(&mut fleet, now), fleet.ready()), (vec![Action::Drain(5)], 2));
    }
}

#[test]
fn reload_fails_once() {
    let mut fleet = ready(3, Instant::now());
    let now = reload_until_stable(&mut fleet, 4, Instant::now());
    assert_eq!(actions(&mut fleet, now), [Action::Drain(1), Action::Start(5)]);
    fleet.on_ended(3, now);
    assert_eq!(actions(&mut fleet, now), [Action::Start(6)]);
    fleet.on_ready(6, now);
    assert_eq!(fleet.on_ended(6, now), died(Some(MIN_BACKOFF), true));
    assert_eq!(fleet.on_ended(5, now), End::Expected);
}

#[test]
fn next_reload_waits_for_the_back_off() {
    let now = Instant::now();
    let mut fleet = ready(1, now);
    for id in [2, 3] {
        fleet.reload();
        assert_eq!(actions(&mut fleet, now), [Action::Start(id)]);
        fleet.on_ready(id, now);
        // The worker before it was not asked to drain yet.
        assert_eq!(fleet.on_ended(id, now), died(None, true));
        assert_eq!((actions(&mut fleet, now), fleet.ready(), fleet.next_deadline()), (vec![], 1, None));
    }
    fleet.reload();
    let retry_at = now + MIN_BACKOFF;
    assert_eq!((actions(&mut fleet, now), fleet.next_deadline()), (vec![], Some(retry_at)));
    assert_eq!(actions(&mut fleet, retry_at), [Action::Start(4)]);
}

#[test]
fn old_worker_that_dies_does_not_end_the_reload() {
    let now = Instant::now();
    let mut fleet = ready(2, now);
    fleet.reload();
    assert_eq!(actions(&mut fleet, now), [Action::Start(3)]);
    assert_eq!(fleet.on_ended(2, now), died(Some(Duration::ZERO), false));
    assert_eq!(actions(&mut fleet, now), [Action::Start(4)]);
    fleet.on_ready(3, now);
    fleet.on_ready(4, now);
    assert_eq!(actions(&mut fleet, now), []);
    assert_eq!(actions(&mut fleet, now + STABLE_AFTER), [Action::Drain(1), Action::ReportReloaded]);
}

#[test]
fn old_worker_that_dies_beside_its_successor_is_replaced() {
    let now = Instant::now();
    let mut fleet = ready(2, now);
    let stable = reload_until_stable(&mut fleet, 3, now);
    assert_eq!(fleet.on_ended(1, now), died(None, false));
    assert_eq!((actions(&mut fleet, now), fleet.ready()), (vec![], 2));
    assert_eq!(actions(&mut fleet, stable), [Action::Start(4)]);
}

#[test]
fn first_start_that_fails_stops_the_supervisor() {
    let now = Instant::now();
    let mut fleet = Fleet::new(3, TIMEOUTS);
    actions(&mut fleet, now);
    fleet.on_ready(1, now);
    assert_eq!(fleet.on_ended(2, now), End::FirstStartFailed);
    assert_eq!(actions(&mut fleet, now), [Action::Kill(3, KillReason::Halted), Action::Drain(1)]);
    assert_eq!((fleet.on_ended(1, now), fleet.on_ended(3, now)), (End::Expected, End::Expected));
    assert!(fleet.is_done());
}

#[test]
fn start_that_times_out_is_not_repeated_before_its_end() {
    let now = Instant::now();
    let mut fleet = ready(1, now);
    fleet.on_ended(1, now);
    assert_eq!(actions(&mut fleet, now), [Action::Start(2)]);
    let late = now + TIMEOUTS.start;
    assert_eq!(actions(&mut fleet, late), [Action::Kill(2, KillReason::StartTimeout)]);
    assert_eq!(fleet.next_deadline(), None);
    let retry_in = MIN_BACKOFF;
    assert_eq!(fleet.on_ended(2, late), End::StartFailed { retry_in });
    assert_eq!(fleet.next_deadline(), Some(late + retry_in));
}

#[test]
fn dead_worker_is_restarted_at_once_and_then_backs_off() {
    let mut now = Instant::now();
    let mut fleet = ready(1, now);
    let mut delays = Vec::new();
    for id in 1..12 {
        let End::Died { restart_in: Some(restart_in), fails_reload: false } = fleet.on_ended(id, now) else {
            panic!("it was ready")
        };
        delays.push(restart_in.as_millis());
        assert_eq!(fleet.next_deadline(), Some(now + restart_in));
        now += restart_in;
        assert_eq!(actions(&mut fleet, now), [Action::Start(id + 1)]);
        fleet.on_ready(id + 1, now);
    }
    assert_eq!(delays, [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
    now += STABLE_AFTER;
    assert_eq!(fleet.on_ended(12, now), died(Some(Duration::ZERO), false));
}

#[test]
fn worker_that_does_not_drain_is_killed() {
    let now = Instant::now();
    let mut fleet = ready(1, now);
    fleet.stop(now);
    assert_eq!(actions(&mut fleet, now), [Action::Drain(1)]);
    assert_eq!(fleet.next_deadline(), Some(now + TIMEOUTS.drain));
    assert_eq!(actions(&mut fleet, now + TIMEOUTS.drain), [Action::Kill(1, KillReason::DrainTimeout)]);
    assert!(!fleet.is_done());
    assert_eq!(fleet.on_ended(1, now), End::Expected);
    assert!(fleet.is_done());
}

#[test]
fn second_stop_kills() {
    let now = Instant::now();
    let mut fleet = ready(2, now);
    fleet.stop(now);
    assert_eq!(actions(&mut fleet, now), [Action::Drain(1), Action::Drain(2)]);
    fleet.stop(now + REPEATED_WITHIN - Duration::from_millis(1));
    assert_eq!(actions(&mut fleet, now), [], "the signal was sent twice at once");
    fleet.stop(now + REPEATED_WITHIN);
    let killed = [1, 2].map(|id| Action::Kill(id, KillReason::Halted));
    assert_eq!(actions(&mut fleet, now), killed);
}

#[test]
fn first_stop_after_a_failed_start_kills_no_ready_worker() {
    let now = Instant::now();
    let mut fleet = Fleet::new(2, TIMEOUTS);
    actions(&mut fleet, now);
    fleet.on_ready(1, now);
    assert_eq!(fleet.on_ended(2, now), End::FirstStartFailed);
    assert_eq!(actions(&mut fleet, now), [Action::Drain(1)]);
    fleet.stop(now);
    assert_eq!(actions(&mut fleet, now), []);
    fleet.stop(now + REPEATED_WITHIN);
    assert_eq!(actions(&mut fleet, now), [Action::Kill(1, KillReason::Halted)]);
}

#[derive(Debug, Clone)]
enum Step {
    Ready(usize),
    End(usize),
    Reload,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<usize>().prop_map(Step::Ready),
        2 => any::<usize>().prop_map(Step::End),
        1 => Just(Step::Reload),
        2 => (0_u64..20_000).prop_map(Step::Wait),
    ]
}

/// What the processes of a fleet do, as its supervisor sees them.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Process {
    Starting,
    Ready,
    Draining(Instant),
    Killed,
}

proptest! {
    #[test]
    fn reloads_never_lower_the_number_of_ready_workers(
        workers in 1_usize..5,
        steps in prop::collection::vec(step(), 0..150),
    ) {
        let mut now = Instant::now();
        let mut fleet = ready(workers, now);
        let mut processes: BTreeMap<Id, Process> = (1..=workers as Id).map(|id| (id, Process::Ready)).collect();
        // The least number of slots with a ready worker, which only deaths lower. For a second of a
        // reload, one slot has two.
        let mut least = workers;
        // The last reload has failed.
        let mut has_failed = false;
        // The latest generation that had a stable worker.
        let mut stable = 0;
        let recover = std::iter::repeat_n(Step::Wait(20_000), 2 * workers).chain(
            std::iter::repeat_n([Step::Ready(0), Step::Wait(20_000)], 3 * workers).flatten(),
        );
        for step in steps.into_iter().chain(recover) {
            match step {
                Step::Reload => {
                    fleet.reload();
                    has_failed = false;
                }
                Step::Wait(ms) => now += Duration::from_millis(ms),
                Step::Ready(index) => {
                    let starting: Vec<_> =
                        processes.iter().filter(|it| *it.1 == Process::Starting).map(|it| *it.0).collect();
                    if !starting.is_empty() {
                        let id = starting[index % starting.len()];
                        prop_assert!(fleet.on_ready(id, now));
                        processes.insert(id, Process::Ready);
                    }
                }
                Step::End(index) => {
                    let ids: Vec<_> = processes.keys().copied().collect();
                    if !ids.is_empty() {
                        let id = ids[index % ids.len()];
                        let was = processes.remove(&id).unwrap();
                        let end = fleet.on_ended(id, now);
                        prop_assert_eq!(matches!(end, End::Died { .. }), was == Process::Ready);
                        prop_assert!(end != End::FirstStartFailed);
                        has_failed |= matches!(end, End::Died { fails_reload: true, .. });
                        has_failed |= end == End::ReloadFailed && !fleet.is_reloading;
                        least -= usize::from(was == Process::Ready && least > 0);
                    }
                }
            }
            for member in &fleet.members {
                if matches!(member.state, State::Ready { since } if now >= since + STABLE_AFTER) {
                    stable = stable.max(member.generation);
                }
            }
            while let Some(action) = fleet.next(now) {
                match action {
                    Action::Start(id) => prop_assert!(processes.insert(id, Process::Starting).is_none()),
                    Action::Drain(id) if has_failed => {
                        processes.insert(id, Process::Draining(now));
                        let slot = fleet.members.iter().find(|member| member.id == id).unwrap().slot;
                        prop_assert!(fleet.of(slot).any(|old| old.id < id && old.is_ready()), "an old worker drains");
                    }
                    Action::Drain(id) => {
                        prop_assert_eq!(processes.insert(id, Process::Draining(now)), Some(Process::Ready));
                        let generation = fleet.members.iter().find(|member| member.id == id).unwrap().generation;
                        prop_assert!(generation < stable, "no later version has lasted for a second");
                    }
                    Action::Kill(id, _) => {
                        prop_assert!(processes.insert(id, Process::Killed) != Some(Process::Killed));
                        processes.remove(&id); // A killed process ends.
                        let end = fleet.on_ended(id, now);
                        has_failed |= end == End::ReloadFailed && !fleet.is_reloading;
                    }
                    Action::ReportReloaded => {}
                }
            }
            prop_assert!(fleet.next_deadline().is_none_or(|at| at > now), "the supervisor spins");
            let serving = (0..workers).filter(|slot| fleet.of(*slot).any(Member::is_ready)).count();
            least = least.max(serving);
            let count = |state| processes.values().filter(|process| **process == state).count();
            prop_assert_eq!(fleet.ready(), count(Process::Ready));
            prop_assert!(serving >= least, "{serving} of {least} slots have a ready worker");
            let is_late = |process: &Process| matches!(process, Process::Draining(since) if now >= *since + TIMEOUTS.drain);
            prop_assert!(!processes.values().any(is_late));
            prop_assert!((0..workers).all(|slot| fleet.of(slot).count() <= 2));
            prop_assert_eq!(processes.len(), fleet.members.len());
        }
    }

    #[test]
    fn version_that_dies_within_a_second_replaces_no_worker(
        workers in 1_usize..6,
        lives in prop::collection::vec((0_u64..10_000, 0_u64..1000), 1..20),
    ) {
        let mut now = Instant::now();
        let mut fleet = ready(workers, now);
        for (start, life) in lives {
            now += MAX_BACKOFF;
            fleet.reload();
            let id = fleet.next_id;
            prop_assert_eq!(actions(&mut fleet, now), [Action::Start(id)]);
            now += Duration::from_millis(start);
            fleet.on_ready(id, now);
            prop_assert_eq!(actions(&mut fleet, now), []);
            now += Duration::from_millis(life);
            prop_assert_eq!(actions(&mut fleet, now), []);
            prop_assert_eq!(fleet.on_ended(id, now), died(None, true));
            prop_assert_eq!((actions(&mut fleet, now), fleet.ready()), (vec![], workers));
        }
    }

    #[test]
    fn fleet_recovers_from_any_deaths(workers in 1_usize..5, deaths in prop::collection::vec(any::<bool>(), 0..60)) {
        let mut now = Instant::now();
        let mut fleet = ready(workers, now);
        for is_ready in deaths {
            let id = fleet.members.iter().find(|member| member.is_ready() == is_ready).map(|member| member.id);
            if let Some(id) = id {
                fleet.on_ended(id, now);
            }
            now += Duration::from_millis(300);
            actions(&mut fleet, now);
        }
        fleet.reload();
        for _ in 0..4 * workers {
            now += MAX_BACKOFF;
            let starting: Vec<_> = fleet.members.iter().filter(|it| it.is_starting()).map(|it| it.id).collect();
            starting.into_iter().for_each(|id| _ = fleet.on_ready(id, now));
            for action in actions(&mut fleet, now) {
                if let Action::Drain(id) | Action::Kill(id, _) = action {
                    fleet.on_ended(id, now);
                }
            }
        }
        prop_assert_eq!((fleet.ready(), fleet.members.len(), fleet.is_reloading), (workers, workers, false));
    }
}
