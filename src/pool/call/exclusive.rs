use std::{
    cell::UnsafeCell,
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

use crate::sync::{AtomicBool, Ordering};

/// A value that one thread at a time accesses, because the state of its call says which one.
///
/// It is a lock that makes the compiler check that. Unlike a mutex it cannot wait, so that it needs
/// one read-modify-write per access.
#[derive(Debug)]
pub(super) struct Exclusive<T> {
    is_locked: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `lock` gives one thread at a time access to the value.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for Exclusive<T> {}

impl<T> Exclusive<T> {
    /// Initializes everything but the value. Returns the place of the value.
    ///
    /// # Safety
    ///
    /// `this` must be valid for writes. The value must be initialized before the first use.
    #[allow(unsafe_code)]
    #[inline]
    pub(super) unsafe fn init(this: *mut Self) -> *mut T {
        // SAFETY: That is the contract of this function as well.
        unsafe {
            (&raw mut (*this).is_locked).write(AtomicBool::new(false));
            UnsafeCell::raw_get(&raw const (*this).value)
        }
    }

    /// Gives access to the value until the result is dropped.
    ///
    /// # Panics
    ///
    /// Panics if another thread has access, which the state of the call rules out.
    #[inline]
    pub(super) fn lock(&self) -> ExclusiveGuard<'_, T> {
        self.try_lock().expect("two threads access the future of a call")
    }

    /// Like `lock`, but returns `None` if another thread has access.
    #[inline]
    pub(super) fn try_lock(&self) -> Option<ExclusiveGuard<'_, T>> {
        (!self.is_locked.swap(true, Ordering::Acquire)).then(|| ExclusiveGuard(self, PhantomData))
    }
}

/// Access to the value of an [`Exclusive`]. It stays on its thread.
pub(super) struct ExclusiveGuard<'a, T>(&'a Exclusive<T>, PhantomData<*mut T>);

impl<T> Deref for ExclusiveGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: There is one guard at a time.
        #[allow(unsafe_code)]
        unsafe {
            &*self.0.value.get()
        }
    }
}

impl<T> DerefMut for ExclusiveGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: There is one guard at a time, and it is borrowed exclusively.
        #[allow(unsafe_code)]
        unsafe {
            &mut *self.0.value.get()
        }
    }
}

impl<T> Drop for ExclusiveGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.0.is_locked.store(false, Ordering::Release);
    }
}
