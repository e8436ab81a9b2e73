use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::outcome::End;
use crate::{
    TaskId,
    sync::{Mutex, lock},
};

/// The jobs that this process has claimed, from the claim until their end is written.
///
/// A job is entered before its work starts, and at most once. So a job never runs twice at once in
/// a process, even if it is claimed again after a lost lease.
#[derive(Clone, Default)]
pub(super) struct RunningJobs(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    /// Notified when a job changes its phase or is removed.
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// By River's id.
    entries: HashMap<i64, Entry>,
    /// Claims that no attempt was working on at the last check.
    unknown: HashSet<Claim>,
    /// Claims that are written back because no attempt was working on them. If their reply arrives
    /// late after all, their jobs must not start.
    given_back: HashMap<Claim, Instant>,
    /// Number of attempts that have ended and count.
    ended: usize,
    /// Number of attempts that do not count.
    returned: usize,
}

struct Entry {
    claim: Claim,
    id: TaskId,
    phase: Phase,
    /// The time of the change to [`Phase::Ended`].
    ended_at: Option<Instant>,
    /// The end of the attempt, once it is reported to River.
    end: Option<End>,
    /// How many times the database still showed the job as running although it has ended.
    late: u32,
    cancel_request: Arc<CancelRequest>,
}

impl Entry {
    fn set_phase(&mut self, phase: Phase) {
        self.phase = phase;
        if phase == Phase::Ended {
            self.ended_at.get_or_insert_with(Instant::now);
        }
    }
}

/// A request of this process to cancel a running job. It is stored before it is made here.
#[derive(Default)]
pub(super) struct CancelRequest {
    is_made: AtomicBool,
    /// Notified when the request is made. At most one task waits.
    made: Notify,
}

impl CancelRequest {
    fn make(&self) {
        self.is_made.store(true, Relaxed);
        self.made.notify_one();
    }

    pub(super) fn is_made(&self) -> bool {
        self.is_made.load(Relaxed)
    }

    /// Completes when the request is made.
    pub(super) async fn made(&self) {
        while !self.is_made() {
            self.made.notified().await;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The work has not started.
    Waiting,
    Running,
    /// The work has returned, or will never start. River may still have to write the end.
    Ended,
}

/// A claim of a job: River's table shows the job as running in this process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Claim {
    pub(super) river_id: i64,
    pub(super) attempt: i16,
    /// Time of the claim by the database's clock. It distinguishes two claims with the same number
    /// of attempts: a claim that is handed back does not count.
    pub(super) attempted_at: i64,
    /// The client that has claimed the job.
    pub(super) client: Arc<str>,
}

/// Number of checks in which the database may show a job as running that has ended. River writes an
/// end within milliseconds.
pub(super) const MAX_LATE_CHECKS: u32 = 2;
/// How long a claim that was written back is remembered. A reply cannot be later than that: every
/// query has a shorter timeout.
const GIVEN_BACK_TTL: Duration = Duration::from_secs(3600);

/// Entry of a job. Dropping it marks the work as ended.
pub(super) struct RunningJob {
    jobs: RunningJobs,
    claim: Claim,
    pub(super) cancel_request: Arc<CancelRequest>,
}

/// Result of [`RunningJobs::enter`].
pub(super) enum Entered {
    /// The work may start.
    New(RunningJob),
    /// An earlier attempt of the job is still running here.
    StillRunning,
    /// The claim was written back, so another process may be running the job.
    GivenBack,
}

impl RunningJobs {
    pub(super) fn enter(&self, claim: &Claim, id: TaskId) -> Entered {
        let mut state = lock(&self.0.state);
        if state.given_back.contains_key(claim) {
            return Entered::GivenBack;
        }
        // The end of an earlier attempt may be written and not removed yet.
        if state.entries.get(&claim.river_id).is_some_and(|entry| entry.phase != Phase::Ended) {
            return Entered::StillRunning;
        }
        let cancel_request = Arc::<CancelRequest>::default();
        let job = RunningJob { jobs: self.clone(), claim: claim.clone(), cancel_request: cancel_request.clone() };
        let entry = Entry {
            claim: claim.clone(),
            id,
            phase: Phase::Waiting,
            ended_at: None,
            end: None,
            late: 0,
            cancel_request,
        };
        state.entries.insert(claim.river_id, entry);
        Entered::New(job)
    }

    /// Cancels the attempt of a job that has not ended, if there is one in this process.
    pub(super) fn cancel(&self, river_id: i64) {
        let request = {
            let state = lock(&self.0.state);
            let running = state.entries.get(&river_id).filter(|entry| entry.phase != Phase::Ended);
            running.map(|entry| entry.cancel_request.clone())
        };
        if let Some(request) = request {
            request.make();
        }
    }

    /// Records how an attempt ended, before River writes it.
    pub(super) fn set_end(&self, end: End) {
        self.change(|state| {
            if end.is_refunded() {
                state.returned += 1;
            } else {
                state.ended += 1;
            }
            if let Some(entry) = state.entries.get_mut(&end.claim.river_id).filter(|entry| entry.claim == end.claim) {
                entry.set_phase(Phase::Ended);
                entry.end = Some(end);
            }
        });
    }

    /// Removes a job whose end River has written, and returns the end. The attempt of `claim` may
    /// have been reduced, so it is not compared.
    pub(super) fn written_by_river(&self, claim: &Claim) -> Option<End> {
        let mut end = None;
        self.change(|state| {
            let is_same = |entry: &Entry| entry.end.is_some() && entry.claim.attempted_at == claim.attempted_at;
            if state.entries.get(&claim.river_id).is_some_and(is_same) {
                end = state.entries.remove(&claim.river_id).and_then(|entry| entry.end);
            }
        });
        end
    }

    /// Returns `true` if jobs of a client have not ended, or if an end is not known to be written.
    pub(super) fn has_claims_of(&self, client: &str) -> bool {
        lock(&self.0.state).entries.values().any(|entry| &*entry.claim.client == client)
    }

    /// Returns the clients that have claimed these jobs.
    pub(super) fn clients(&self) -> HashSet<Arc<str>> {
        lock(&self.0.state).entries.values().map(|entry| entry.claim.client.clone()).collect()
    }

    /// Returns how many attempts have ended, and how many of those do not count.
    pub(super) fn totals(&self) -> (usize, usize) {
        let state = lock(&self.0.state);
        (state.ended, state.returned)
    }

    /// Returns the claims that no attempt was working on at the last check and none is working on
    /// now. Their reply was lost: the time between a claim and its attempt is much shorter than
    /// between two checks. From now on they cannot be entered.
    pub(super) fn give_back(&self, claims: &[Claim]) -> Vec<Claim> {
        let mut state = lock(&self.0.state);
        let is_known = |claim: &&Claim| state.entries.get(&claim.river_id).is_some_and(|entry| entry.claim == **claim);
        let unknown: HashSet<_> = claims.iter().filter(|claim| !is_known(claim)).cloned().collect();
        let previous = std::mem::replace(&mut state.unknown, unknown);
        let lost: Vec<_> = previous.intersection(&state.unknown).cloned().collect();
        let now = Instant::now();
        state.given_back.retain(|_, since| now.duration_since(*since) < GIVEN_BACK_TTL);
        state.given_back.extend(lost.iter().map(|claim| (claim.clone(), now)));
        lost
    }

    /// Removes the jobs that have ended and are not among the claims: River has written their ends.
    /// Returns those ends that more than `max_checks` checks have shown as not written.
    ///
    /// `claims` must include the claims of all [`clients`](Self::clients).
    pub(super) fn late_ends(&self, claims: &[Claim], max_checks: u32) -> Vec<End> {
        let claims: HashSet<_> = claims.iter().collect();
        let mut late = Vec::new();
        self.change(|state| {
            state.entries.retain(|_, entry| entry.phase != Phase::Ended || claims.contains(&entry.claim));
            for entry in state.entries.values_mut().filter(|entry| entry.phase == Phase::Ended) {
                entry.late += 1;
                late.extend(entry.end.clone().filter(|_| entry.late > max_checks));
            }
        });
        late
    }

    /// Returns the jobs whose work is running, with their claims.
    pub(super) fn running(&self) -> Vec<(Claim, TaskId)> {
        let state = lock(&self.0.state);
        let running = state.entries.values().filter(|entry| entry.phase == Phase::Running);
        running.map(|entry| (entry.claim.clone(), entry.id)).collect()
    }

    /// Returns the jobs whose work has ended and whose end is not written.
    pub(super) fn unwritten(&self) -> Vec<TaskId> {
        let state = lock(&self.0.state);
        state.entries.values().filter(|entry| entry.phase == Phase::Ended).map(|entry| entry.id).collect()
    }

    /// Returns the number of jobs whose work ended at least `age` ago and whose end is not written.
    #[cfg(feature = "metrics")]
    pub(super) fn unwritten_for(&self, age: Duration) -> usize {
        let state = lock(&self.0.state);
        state.entries.values().filter(|entry| entry.ended_at.is_some_and(|at| at.elapsed() >= age)).count()
    }

    /// Returns `true` if every job has ended and every end is known to be written.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0.state).entries.is_empty()
    }

    /// Returns `true` if no work is running or about to start.
    pub(super) fn has_ended(&self) -> bool {
        lock(&self.0.state).entries.values().all(|entry| entry.phase == Phase::Ended)
    }

    /// Returns the number of jobs whose work is running.
    pub(super) fn len(&self) -> usize {
        self.count(Phase::Running)
    }

    /// Returns the number of jobs whose work has not started.
    pub(super) fn waiting(&self) -> usize {
        self.count(Phase::Waiting)
    }

    fn count(&self, phase: Phase) -> usize {
        lock(&self.0.state).entries.values().filter(|entry| entry.phase == phase).count()
    }

    /// Waits until no work is running or about to start.
    pub(super) async fn ended(&self) {
        loop {
            let mut changed = pin!(self.0.changed.notified());
            changed.as_mut().enable(); // before the check, so that no change is missed
            if self.has_ended() {
                return;
            }
            changed.await;
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.0.state));
        self.0.changed.notify_waiters();
    }

    fn set_phase(&self, claim: &Claim, phase: Phase) {
        self.change(|state| {
            if let Some(entry) = state.entries.get_mut(&claim.river_id).filter(|entry| entry.claim == *claim) {
                entry.set_phase(phase);
            }
        });
    }
}

impl RunningJob {
    /// Marks the work as running.
    pub(super) fn begin(&self) {
        self.jobs.set_phase(&self.claim, Phase::Running);
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        self.jobs.set_phase(&self.claim, Phase::Ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;

    fn claim(attempted_at: i64) -> Claim {
        Claim { river_id: 1, attempt: 1, attempted_at, client: "to-a".into() }
    }

    fn id() -> TaskId {
        TaskId::generate(Timestamp::default()).expect("random numbers")
    }

    #[test]
    fn claim_that_was_given_back_cannot_be_entered_late() {
        let jobs = RunningJobs::default();
        assert!(jobs.give_back(&[claim(1)]).is_empty(), "it was seen once");
        assert_eq!(jobs.give_back(&[claim(1)]), [claim(1)]);
        assert!(matches!(jobs.enter(&claim(1), id()), Entered::GivenBack));
        // The same attempt number, since a claim that is given back does not count.
        assert!(matches!(jobs.enter(&claim(2), id()), Entered::New(_)));
    }

    #[test]
    fn claim_that_is_entered_is_not_given_back() {
        let jobs = RunningJobs::default();
        assert!(jobs.give_back(&[claim(1)]).is_empty());
        let entered = jobs.enter(&claim(1), id());
        assert!(matches!(entered, Entered::New(_)));
        assert!(jobs.give_back(&[claim(1)]).is_empty());
        drop(entered);
        assert!(jobs.give_back(&[claim(1)]).is_empty(), "its end is not written yet");
        assert_eq!(jobs.unwritten().len(), 1);
    }

    fn end() -> End {
        End { claim: claim(1), id: id(), ..End::of_claim(claim(1)) }
    }

    #[test]
    fn end_is_late_once_more_checks_show_its_claim() {
        let jobs = RunningJobs::default();
        let entered = jobs.enter(&claim(1), id());
        jobs.set_end(end());
        drop(entered);
        let late = [1, 2, 3].map(|_| jobs.late_ends(&[claim(1)], 2).len());
        assert_eq!(late, [0, 0, 1]);
        assert!(jobs.late_ends(&[claim(2)], 2).is_empty() && jobs.is_empty(), "River has written it");
    }

    #[cfg(feature = "metrics")]
    #[tokio::test(start_paused = true)]
    async fn end_counts_as_unwritten_from_its_age_on() {
        let (jobs, age) = (RunningJobs::default(), Duration::from_secs(10));
        let entered = jobs.enter(&claim(1), id());
        tokio::time::advance(age).await;
        jobs.set_end(end());
        tokio::time::advance(age / 2).await;
        drop(entered);
        assert_eq!((jobs.unwritten().len(), jobs.unwritten_for(age)), (1, 0));
        tokio::time::advance(age / 2).await;
        assert_eq!(jobs.unwritten_for(age), 1, "since the end, not since the drop");
        assert!(jobs.written_by_river(&claim(1)).is_some());
        assert_eq!(jobs.unwritten_for(age), 0);
    }

    #[test]
    fn end_of_another_claim_is_not_written_by_river() {
        let jobs = RunningJobs::default();
        let _entered = jobs.enter(&claim(1), id());
        assert!(jobs.written_by_river(&claim(1)).is_none(), "it has not ended");
        jobs.set_end(end());
        assert!(jobs.written_by_river(&claim(2)).is_none());
        assert!(jobs.written_by_river(&claim(1)).is_some() && jobs.is_empty());
    }

    #[test]
    fn job_is_not_entered_twice_at_once() {
        let jobs = RunningJobs::default();
        let first = jobs.enter(&claim(1), id());
        assert!(matches!(jobs.enter(&claim(2), id()), Entered::StillRunning));
        drop(first);
        assert!(matches!(jobs.enter(&claim(2), id()), Entered::New(_)));
    }
}
