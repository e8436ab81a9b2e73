use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio::sync::Notify;

use super::river::Claim;
use crate::{
    TaskId,
    sync::{Mutex, lock},
};

/// The jobs whose work goes on in this process.
///
/// Invariant: a job is in here from before its work can begin until it has really ended, whoever waits for that; so there are never two
/// copies of one job's work in a process, also if River, after a lost lease, hands it out again.
#[derive(Clone, Default)]
pub(super) struct Jobs(Arc<Inner>);

#[derive(Default)]
struct Inner {
    jobs: Mutex<State>,
    left: Notify,
}

#[derive(Default)]
struct State {
    alive: HashMap<i64, TaskId>,
    /// Those that have ended, and whose end River may still have to write.
    settling: HashSet<i64>,
}

/// One of them, until it is dropped.
pub(super) struct Alive {
    jobs: Jobs,
    river_id: i64,
}

impl Jobs {
    /// `None` if it is there.
    pub(super) fn enter(&self, river_id: i64, id: TaskId) -> Option<Alive> {
        let mut jobs = lock(&self.0.jobs);
        if jobs.alive.contains_key(&river_id) {
            return None;
        }
        jobs.alive.insert(river_id, id);
        Some(Alive { jobs: self.clone(), river_id })
    }

    /// Of those that River's table has running here, the ones that nothing is known of. What has ended is forgotten once it is not among them.
    pub(super) fn unknown(&self, running: &[Claim]) -> HashSet<Claim> {
        let mut jobs = lock(&self.0.jobs);
        let ids: HashSet<_> = running.iter().map(|claim| claim.river_id).collect();
        jobs.settling.retain(|id| ids.contains(id));
        let is_known = |id| jobs.alive.contains_key(id) || jobs.settling.contains(id);
        running.iter().filter(|claim| !is_known(&claim.river_id)).copied().collect()
    }

    pub(super) fn ids(&self) -> Vec<TaskId> {
        lock(&self.0.jobs).alive.values().copied().collect()
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.0.jobs).alive.len()
    }

    /// Returns when there is none.
    pub(super) async fn empty(&self) {
        loop {
            let mut left = std::pin::pin!(self.0.left.notified());
            left.as_mut().enable(); // before the look: one that leaves between the two is not missed
            if self.len() == 0 {
                return;
            }
            left.await;
        }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        {
            let mut jobs = lock(&self.jobs.0.jobs);
            jobs.alive.remove(&self.river_id);
            jobs.settling.insert(self.river_id);
        }
        self.jobs.0.left.notify_waiters();
    }
}
