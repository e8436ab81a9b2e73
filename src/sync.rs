//! Locks, atomics and parking for the whole crate. Loom replaces them in models.

#[cfg(not(tower_offload_loom))]
pub(crate) use std::{
    hint::spin_loop,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence},
    },
    thread,
};

#[cfg(tower_offload_loom)]
pub(crate) use loom::{
    hint::spin_loop,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence},
    },
    thread,
};

#[cfg(all(feature = "blocking-detector", tower_offload_loom))]
pub(crate) use loom::sync::atomic::AtomicPtr;
#[cfg(all(feature = "blocking-detector", not(tower_offload_loom)))]
pub(crate) use std::sync::atomic::AtomicPtr;

#[cfg(tower_offload_loom)]
pub(crate) use loom::cell::UnsafeCell;

/// A cell with the interface of loom's, which reports concurrent access.
#[cfg(not(tower_offload_loom))]
#[derive(Debug, Default)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(tower_offload_loom))]
impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    #[inline]
    pub(crate) fn with_mut<R>(&self, access: impl FnOnce(*mut T) -> R) -> R {
        access(self.0.get())
    }
}

/// Locks a mutex and ignores poisoning. Every critical section of this crate leaves a valid state
/// behind, even if it unwinds.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Returns the value of a mutex that nothing else refers to, without locking it. Ignores poisoning,
/// like [`lock`].
#[cfg(feature = "after-response")]
pub(crate) fn get_mut<T>(mutex: &mut Mutex<T>) -> &mut T {
    mutex.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Stores `value` in a flag that many threads read. Writes only if that changes it, because a write
/// takes the cache line from all of them.
#[inline]
pub(crate) fn set_flag(flag: &AtomicBool, value: bool, ordering: Ordering) {
    if flag.load(Ordering::Relaxed) != value {
        flag.store(value, ordering);
    }
}

/// Parks the thread until it is unparked or `timeout` has passed. Loom has no time: there, the
/// thread parks until it is unparked.
#[cfg(not(tower_offload_loom))]
pub(crate) fn park_timeout(timeout: std::time::Duration) {
    thread::park_timeout(timeout);
}

#[cfg(tower_offload_loom)]
pub(crate) fn park_timeout(_: std::time::Duration) {
    thread::park();
}

/// Aligns a value to cache lines of its own, so that writes to it do not slow down readers of
/// neighbouring fields. The alignment is two lines of 64 bytes, since processors prefetch pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

impl<T> std::ops::Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
