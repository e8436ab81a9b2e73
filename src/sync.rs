//! The one place that names locks, atomics and parking, so that loom can stand in for them.

#[cfg(not(tower_offload_loom))]
pub(crate) use std::{
    hint::spin_loop,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    thread,
};

#[cfg(tower_offload_loom)]
pub(crate) use loom::{
    hint::spin_loop,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    thread,
};

/// Locks, and recovers from poison: every critical section of this crate leaves a valid state behind.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Parks for at most so long. Loom knows no time: there it parks until it is woken.
#[cfg(not(tower_offload_loom))]
pub(crate) fn park_timeout(at_most: std::time::Duration) {
    thread::park_timeout(at_most);
}

#[cfg(tower_offload_loom)]
pub(crate) fn park_timeout(_: std::time::Duration) {
    thread::park();
}
