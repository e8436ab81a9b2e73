use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak},
};

use tokio::sync::Notify;

use super::attempt::Attempt;
use crate::TaskId;
use crate::sync::{Mutex, lock};

/// What the attempts of this process have said and nobody has written yet.
#[derive(Default)]
pub(super) struct Clerk {
    state: Mutex<State>,
    pub(super) wake: Notify,
}

#[derive(Default)]
struct State {
    attempts: HashMap<TaskId, Weak<Attempt>>,
    news: HashSet<TaskId>,
}

/// Progress to be written: of this task, in this attempt.
pub(super) struct News {
    pub(super) id: TaskId,
    pub(super) attempt: i64,
    pub(super) progress: Option<f64>,
    pub(super) message: Option<String>,
}

impl Clerk {
    pub(super) fn begins(&self, id: TaskId, attempt: &Arc<Attempt>) {
        lock(&self.state).attempts.insert(id, Arc::downgrade(attempt));
    }

    /// It is over. What it said last, if that was not written. Nothing if another attempt of its job has begun.
    pub(super) fn ends(&self, id: TaskId, attempt: &Arc<Attempt>) -> Option<News> {
        let mut state = lock(&self.state);
        state.attempts.get(&id).filter(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(attempt)))?;
        let attempt = state.attempts.remove(&id);
        if state.news.remove(&id) { news(id, &attempt?) } else { None }
    }

    pub(super) fn told(&self, id: TaskId) {
        lock(&self.state).news.insert(id);
        self.wake.notify_one();
    }

    /// All news, once.
    pub(super) fn take(&self) -> Vec<News> {
        let mut state = lock(&self.state);
        let ids = std::mem::take(&mut state.news);
        ids.into_iter().filter_map(|id| news(id, state.attempts.get(&id)?)).collect()
    }

    /// They could not be written: once more, later.
    pub(super) fn put_back(&self, news: &[News]) {
        let mut state = lock(&self.state);
        for News { id, .. } in news {
            if state.attempts.contains_key(id) {
                state.news.insert(*id);
            }
        }
    }
}

fn news(id: TaskId, attempt: &Weak<Attempt>) -> Option<News> {
    let attempt = attempt.upgrade()?;
    let (progress, message) = attempt.told();
    Some(News { id, attempt: attempt.number(), progress, message })
}
