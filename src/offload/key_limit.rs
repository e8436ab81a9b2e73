use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    sync::Arc,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    panic::ignore_panic,
    pool::CallKey,
    sync::{Mutex, lock},
};

/// Capacity that an empty table keeps.
const MAX_IDLE_CAPACITY: usize = 64;

/// Limits the calls in flight of each key. Only keys with calls that are in flight, or wait for a
/// permit of their key, are stored.
pub(super) struct KeyLimit {
    calls: usize,
    keys: Mutex<HashMap<CallKey, Users>>,
}

/// The permits of one key.
struct Users {
    semaphore: Arc<Semaphore>,
    /// Number of [`KeyPermit`]s that exist. Written under the lock.
    count: usize,
}

/// A permit of a key, or a wait for one.
pub(super) struct KeyPermit {
    limit: Arc<KeyLimit>,
    key: CallKey,
    /// `None` during the wait.
    permit: Option<OwnedSemaphorePermit>,
}

impl KeyLimit {
    pub(super) fn new(calls: usize) -> Arc<Self> {
        Arc::new(Self { calls: calls.min(Semaphore::MAX_PERMITS), keys: Mutex::default() })
    }

    /// Acquires a permit if the key has one left.
    pub(super) fn try_acquire(self: &Arc<Self>, key: CallKey) -> Option<KeyPermit> {
        let (mut user, semaphore) = self.enter(key);
        user.permit = semaphore.try_acquire_owned().ok();
        user.permit.is_some().then_some(user)
    }

    /// Waits for a permit of the key, in order of arrival.
    pub(super) async fn acquire(self: &Arc<Self>, key: CallKey) -> KeyPermit {
        let (mut user, semaphore) = self.enter(key);
        user.permit = semaphore.acquire_owned().await.ok(); // It is never closed.
        user
    }

    fn enter(self: &Arc<Self>, key: CallKey) -> (KeyPermit, Arc<Semaphore>) {
        let mut keys = lock(&self.keys);
        let new = || Users { semaphore: Arc::new(Semaphore::new(self.calls)), count: 0 };
        let users = keys.entry(key).or_insert_with(new);
        users.count += 1;
        (KeyPermit { limit: self.clone(), key, permit: None }, users.semaphore.clone())
    }
}

impl Drop for KeyPermit {
    fn drop(&mut self) {
        // Wakes the next call of the key that waits. Its waker is user code.
        let permit = self.permit.take();
        ignore_panic(|| drop(permit));
        let mut keys = lock(&self.limit.keys);
        if let Entry::Occupied(mut users) = keys.entry(self.key) {
            users.get_mut().count -= 1;
            if users.get().count == 0 {
                users.remove();
            }
        }
        if keys.is_empty() && keys.capacity() > MAX_IDLE_CAPACITY {
            *keys = HashMap::new();
        }
    }
}

impl fmt::Debug for KeyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyLimit").field("calls", &self.calls).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    #[test]
    fn key_without_calls_is_forgotten() {
        let limit = KeyLimit::new(1);
        let first = limit.try_acquire(CallKey::new(&1)).expect("one permit");
        assert!(limit.try_acquire(CallKey::new(&1)).is_none());
        // So few that no two of their random hashes are equal, except once in some thousand runs.
        let others: Vec<_> = (2..1000).map(|key| limit.try_acquire(CallKey::new(&key))).collect();
        assert!(others.iter().all(Option::is_some));
        drop(others);
        assert_eq!(lock(&limit.keys).len(), 1);
        drop(first);
        assert!(lock(&limit.keys).capacity() <= MAX_IDLE_CAPACITY);
    }

    #[test]
    fn cancelled_wait_leaves_the_permit_to_the_next() {
        let limit = KeyLimit::new(1);
        let key = CallKey::new(&"key");
        let first = limit.try_acquire(key);
        let mut cx = Context::from_waker(Waker::noop());
        let mut third = pin!(limit.acquire(key));
        {
            let mut second = pin!(limit.acquire(key));
            assert!(second.as_mut().poll(&mut cx).is_pending());
            assert!(third.as_mut().poll(&mut cx).is_pending());
        }
        drop(first);
        let Poll::Ready(third) = third.poll(&mut cx) else { panic!("the permit is lost") };
        assert!(third.permit.is_some());
        drop(third);
        assert!(lock(&limit.keys).is_empty());
    }
}
