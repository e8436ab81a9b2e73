//! The one place that names `Mutex`, `Condvar` and atomics, so that loom can stand in for them.

#[cfg(not(tower_offload_loom))]
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicU8, Ordering},
};

#[cfg(tower_offload_loom)]
pub(crate) use loom::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicU8, Ordering},
};

/// Locks, and recovers from poison: every critical section of this crate leaves a valid state behind.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
