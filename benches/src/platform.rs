//! The services of the operating system that the measurements need.
//!
//! Pinning, priorities and the usage of the cores are supported on Linux only. On other systems,
//! benchmarks leave out the parts that need them.
#![allow(unsafe_code, reason = "a global allocator and a system call that no crate here wraps")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
};

pub use self::imp::{cores, cpu_time, grow_file_table, pin, raise_priority};

/// A control group that limits the processor time of this process, as containers are limited.
#[derive(Debug)]
pub struct CpuQuota(PathBuf);

impl CpuQuota {
    /// Length of a period, in microseconds: the default of Linux and of container runtimes.
    const PERIOD: u32 = 100_000;

    /// Moves this process to a group of its own, with the time of `cores`. Must be called before
    /// the first thread starts.
    ///
    /// # Errors
    ///
    /// Returns an error without permission, or if there is no controller for processor time.
    pub fn enter(cores: f64) -> io::Result<Self> {
        let group = Self(Self::path(std::process::id()));
        fs::create_dir(&group.0)?;
        let period = Self::PERIOD;
        let quota = (f64::from(period) * cores).round();
        if Self::is_v2() {
            fs::write(group.0.join("cpu.max"), format!("{quota} {period}"))?;
        } else {
            fs::write(group.0.join("cpu.cfs_period_us"), period.to_string())?;
            fs::write(group.0.join("cpu.cfs_quota_us"), quota.to_string())?;
        }
        fs::write(group.0.join("cgroup.procs"), "0")?;
        Ok(group)
    }

    /// Returns the number of periods in which the group has used its time and had to wait.
    pub fn throttled_periods(&self) -> Option<u64> {
        let stat = fs::read_to_string(self.0.join("cpu.stat")).ok()?;
        stat.lines().find_map(|line| line.strip_prefix("nr_throttled "))?.parse().ok()
    }

    /// Removes the group of a process that has ended, if it had one.
    pub fn remove(process: u32) {
        let _ = fs::remove_dir(Self::path(process));
    }

    fn is_v2() -> bool {
        fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
            .is_ok_and(|it| it.split(' ').any(|it| it.trim() == "cpu"))
    }

    fn path(process: u32) -> PathBuf {
        let root = if Self::is_v2() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/cpu" };
        Path::new(root).join(format!("tower-offload-bench-{process}"))
    }
}

static IS_COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, which counts allocations between [`start`](Self::start) and
/// [`stop`](Self::stop).
///
/// An allocator that always counts makes all threads write to the same memory. At two million calls
/// a second that is a large part of a call, most of all for variants that allocate more.
#[derive(Debug)]
pub struct CountingAllocator;

impl CountingAllocator {
    /// Starts counting at 0.
    pub fn start() {
        ALLOCATIONS.store(0, Relaxed);
        IS_COUNTING.store(true, Relaxed);
    }

    /// Stops counting and returns the number of allocations and reallocations of all threads.
    pub fn stop() -> u64 {
        IS_COUNTING.store(false, Relaxed);
        ALLOCATIONS.load(Relaxed)
    }

    fn count() {
        if IS_COUNTING.load(Relaxed) {
            ALLOCATIONS.fetch_add(1, Relaxed);
        }
    }
}

// SAFETY: every method passes its arguments to the system's allocator and returns its result.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count();
        // SAFETY: the caller keeps the contract, which is the same; the system allocated `memory`.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract, which is the same; the system allocated `memory`.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Returns the number of threads that can run at once.
pub fn parallelism() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Returns the system and the architecture, such as `Linux 6.18.0, x86_64`.
pub fn system() -> String {
    let (name, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    match fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(release) => format!("Linux {}, {arch}", release.trim()),
        Err(_) => format!("{name}, {arch}"),
    }
}

/// The CPU time used since boot, by all processes and by this one, in ticks of the kernel.
#[derive(Debug, Clone, Copy)]
pub struct CpuUsage {
    all: u64,
    busy: u64,
    /// Time of this process and of its children that have ended.
    ours: u64,
}

impl CpuUsage {
    /// Returns the usage until now, or `None` if there is no `/proc`.
    pub fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        // user, nice, system, idle, iowait, irq, softirq, steal. The guest times are part of user.
        let times = numbers(stat.lines().next()?, 1, 8);
        let all = times.iter().sum();
        let busy = all - times.get(3)? - times.get(4)?;
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name, in brackets, may contain anything. Fields 12 to 15 after it are the user and
        // system time of all threads, and of all children that have ended.
        let (_, fields) = stat.rsplit_once(')')?;
        Some(Self { all, busy, ours: numbers(fields, 11, 4).iter().sum() })
    }

    /// Returns the share of all cores that other processes and the hypervisor used, in percent.
    pub fn others_pct_since(self, earlier: Self) -> f64 {
        let others = (self.busy - earlier.busy).saturating_sub(self.ours - earlier.ours);
        100.0 * others as f64 / (self.all - earlier.all).max(1) as f64
    }
}

fn numbers(fields: &str, skip: usize, take: usize) -> Vec<u64> {
    fields.split_whitespace().skip(skip).take(take).map_while(|it| it.parse().ok()).collect()
}

#[cfg(target_os = "linux")]
mod imp {
    use std::{io, time::Duration};

    use rustix::{
        process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit},
        thread::{CpuSet, sched_getaffinity, sched_setaffinity},
        time::{ClockId, clock_gettime},
    };

    const MAX_DESCRIPTORS: u64 = 16_000;

    /// Returns the cores that this thread may use; empty if threads cannot be pinned.
    pub fn cores() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
    }

    /// Pins this thread, and the threads that it starts from now on, to `core`.
    pub fn pin(core: usize) -> io::Result<()> {
        let mut set = CpuSet::new();
        set.set(core);
        Ok(sched_setaffinity(None, &set)?)
    }

    /// Returns the CPU time of all threads of this process, if the system reports it.
    pub fn cpu_time() -> Option<Duration> {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Some(Duration::new(time.tv_sec.try_into().ok()?, time.tv_nsec.try_into().ok()?))
    }

    /// Makes room for many file descriptors and returns their number.
    ///
    /// Must be called before the first thread starts. When the file table of a process with threads
    /// grows, the kernel waits for all cores (`synchronize_rcu`), which stalls `accept` for 1 to 4
    /// s if they are busy.
    pub fn grow_file_table() -> usize {
        let limit = getrlimit(Resource::Nofile);
        let wanted = MAX_DESCRIPTORS.min(limit.maximum.unwrap_or(MAX_DESCRIPTORS));
        let mut count = limit.current.unwrap_or(MAX_DESCRIPTORS);
        if count < wanted && setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit }).is_ok() {
            count = wanted;
        }
        let count = i32::try_from(count.min(MAX_DESCRIPTORS)).unwrap_or(256);
        // Dropping the highest descriptor closes it; the table keeps its size.
        drop(rustix::io::fcntl_dupfd_cloexec(io::stdin(), count - 1));
        usize::try_from(count).unwrap_or(256)
    }

    /// Raises the calling thread above all ordinary threads and returns the priority that it got.
    /// Threads and processes that it starts are ordinary again.
    ///
    /// The load generator replaces clients on other machines. At ordinary priority it would wait
    /// for the very cores whose load it measures.
    pub fn raise_priority() -> &'static str {
        let parameters = libc::sched_param { sched_priority: 1 };
        let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
        // SAFETY: the call only reads `parameters`, which is initialised. 0 is the calling thread.
        if unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } == 0 {
            "real-time priority"
        } else if setpriority_process(None, -20).is_ok() {
            "nice -20 (no permission for real time)"
        } else {
            "normal priority (no permission for more): expect lateness"
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::{io, time::Duration};

    /// Returns nothing, since threads cannot be pinned here.
    pub fn cores() -> Vec<usize> {
        Vec::new()
    }

    /// Returns an error, since threads cannot be pinned here.
    pub fn pin(_: usize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Returns `None`.
    pub fn cpu_time() -> Option<Duration> {
        None
    }

    /// Returns a number of descriptors that all systems allow.
    pub fn grow_file_table() -> usize {
        256
    }

    /// Changes nothing.
    pub fn raise_priority() -> &'static str {
        "normal priority: expect lateness"
    }
}
