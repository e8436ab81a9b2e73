use std::{collections::HashMap, sync::Arc};

use tokio::sync::Notify;

use crate::{
    sync::{Mutex, lock},
    tasks::TaskId,
};

/// The jobs whose work goes on in this process.
///
/// Invariant: a job is in here from before its work can begin until it has really ended, whoever waits for that; so there are never two
/// copies of one job's work in a process, also if River, after a lost lease, hands it out again.
#[derive(Clone, Default)]
pub(super) struct Jobs(Arc<Inner>);

#[derive(Default)]
struct Inner {
    alive: Mutex<HashMap<i64, TaskId>>,
    left: Notify,
}

/// One of them, until it is dropped.
pub(super) struct Alive {
    jobs: Jobs,
    river_id: i64,
}

impl Jobs {
    /// `None` if it is there.
    pub(super) fn enter(&self, river_id: i64, id: TaskId) -> Option<Alive> {
        let mut alive = lock(&self.0.alive);
        if alive.contains_key(&river_id) {
            return None;
        }
        alive.insert(river_id, id);
        Some(Alive { jobs: self.clone(), river_id })
    }

    pub(super) fn ids(&self) -> Vec<TaskId> {
        lock(&self.0.alive).values().copied().collect()
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.0.alive).len()
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
        lock(&self.jobs.0.alive).remove(&self.river_id);
        self.jobs.0.left.notify_waiters();
    }
}
