//! What the operating system has to do for the measurement. With `unsafe`: no crate here wraps these.
#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, which counts allocations while it is told to.
///
/// One that always counts makes all threads write to the same memory for each allocation. At two million calls a second
/// that is a good part of a call, and more of it for whoever allocates more.
#[derive(Debug)]
pub(crate) struct Counting;

impl Counting {
    /// Starts counting at 0.
    pub(crate) fn start() {
        ALLOCATIONS.store(0, Relaxed);
        COUNTS.store(true, Relaxed);
    }

    /// Stops, and returns how many there were on all threads; one that grew or shrank is one more.
    pub(crate) fn stop() -> u64 {
        COUNTS.store(false, Relaxed);
        ALLOCATIONS.load(Relaxed)
    }

    fn count() {
        if COUNTS.load(Relaxed) {
            ALLOCATIONS.fetch_add(1, Relaxed);
        }
    }
}

// SAFETY: every method hands its arguments to the system's allocator and returns what that says.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller's promises are those of this method.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller's promises are those of this method.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count();
        // SAFETY: the caller's promises are those of this method, and all memory of ours is the system's.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are those of this method, and all memory of ours is the system's.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// The cores that this thread may use. Empty where threads cannot be pinned.
#[cfg(target_os = "linux")]
pub(crate) fn cores() -> Vec<usize> {
    // SAFETY: all zeroes is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid, exclusive place for an answer of this size. 0 is the calling thread.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) } != 0 {
        return Vec::new();
    }
    let size = usize::try_from(libc::CPU_SETSIZE).unwrap_or_default();
    // SAFETY: the numbers are less than the size of the set.
    (0..size).filter(|core| unsafe { libc::CPU_ISSET(*core, &set) }).collect()
}

/// This thread, and those it starts from now on, run on that core alone.
#[cfg(target_os = "linux")]
pub(crate) fn pin(core: usize) -> io::Result<()> {
    if core >= usize::try_from(libc::CPU_SETSIZE).unwrap_or_default() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all zeroes is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the number is less than the size of the set.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: `set` is initialised and only read. 0 is the calling thread.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn cores() -> Vec<usize> {
    Vec::new()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn pin(_: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The CPU time of all threads of this process so far. None where the system does not tell.
#[cfg(unix)]
#[allow(dead_code, reason = "hops are timed by the wall; the benchmark of responses has this file, too")]
pub(crate) fn cpu_time() -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid, exclusive place for the answer.
    if unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) } != 0 {
        return None;
    }
    Some(Duration::new(time.tv_sec.try_into().ok()?, time.tv_nsec.try_into().ok()?))
}

#[cfg(not(unix))]
#[allow(dead_code, reason = "as above")]
pub(crate) fn cpu_time() -> Option<Duration> {
    None
}
