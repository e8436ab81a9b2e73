use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::Arc,
};

use tokio::sync::Notify;

use crate::{
    TaskId,
    sync::{Mutex, lock},
};

/// The jobs whose work is running in this process.
///
/// A job is entered before its work starts and removed after its work has ended. So a job never
/// runs twice at once in a process, even if River claims it again after a lost lease.
#[derive(Clone, Default)]
pub(super) struct RunningJobs(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    /// Notified when a job is removed.
    removed: Notify,
}

#[derive(Default)]
struct State {
    /// Jobs whose work has not ended, by River's id.
    running: HashMap<i64, TaskId>,
    /// Jobs whose work has ended, and that River may still have to complete in its table.
    completing: HashSet<i64>,
}

/// A job that River's table shows as running in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Claim {
    pub(super) river_id: i64,
    pub(super) attempt: i16,
}

/// Entry of a running job. Dropping it removes the job.
pub(super) struct RunningJob {
    jobs: RunningJobs,
    river_id: i64,
}

impl RunningJobs {
    /// Enters a job. Returns `None` if it is running already.
    pub(super) fn enter(&self, river_id: i64, id: TaskId) -> Option<RunningJob> {
        let mut state = lock(&self.0.state);
        if state.running.contains_key(&river_id) {
            return None;
        }
        state.running.insert(river_id, id);
        Some(RunningJob { jobs: self.clone(), river_id })
    }

    /// Returns the claims whose jobs are not running here. `claims` are all claims of this process.
    ///
    /// Jobs that have ended count as running until River has completed them, that is, until they
    /// are no longer among the claims.
    pub(super) fn unknown(&self, claims: &[Claim]) -> HashSet<Claim> {
        let mut state = lock(&self.0.state);
        let ids: HashSet<_> = claims.iter().map(|claim| claim.river_id).collect();
        state.completing.retain(|id| ids.contains(id));
        let is_known = |id| state.running.contains_key(id) || state.completing.contains(id);
        claims.iter().filter(|claim| !is_known(&claim.river_id)).copied().collect()
    }

    pub(super) fn ids(&self) -> Vec<TaskId> {
        lock(&self.0.state).running.values().copied().collect()
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.0.state).running.len()
    }

    /// Waits until no job is running.
    pub(super) async fn empty(&self) {
        loop {
            let mut removed = pin!(self.0.removed.notified());
            removed.as_mut().enable(); // before the check, so that no removal is missed
            if self.len() == 0 {
                return;
            }
            removed.await;
        }
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        {
            let mut state = lock(&self.jobs.0.state);
            state.running.remove(&self.river_id);
            state.completing.insert(self.river_id);
        }
        self.jobs.0.removed.notify_waiters();
    }
}
