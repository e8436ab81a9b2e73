//! The one place that names locks, atomics and parking, so that loom can stand in for them.

#[cfg(not(tower_offload_loom))]
pub(crate) use std::{
    hint::spin_loop,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering, fence},
    },
    thread,
};

#[cfg(tower_offload_loom)]
pub(crate) use loom::{
    hint::spin_loop,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering, fence},
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

/// A value on cache lines of its own: what some threads write all the time must not slow down those who only read what
/// stands beside it. Two lines of 64 bytes, since processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

impl<T> std::ops::Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
