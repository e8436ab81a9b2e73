use std::thread;

use super::{
    builder::ThreadPoolBuilder,
    thread_pool::ThreadPool,
    thread_setup::{NICENESS_RANGE, niceness},
};

/// Steps of the nice value from the thread that detects the budget to the threads of the pool. A
/// thread of the runtime then has nine times the weight of one of the pool (sched(7)).
const NICENESS_STEP: i32 = 10;

/// The cores that this program may use, shared by a tokio runtime and a pool that computes.
///
/// ```no_run
/// use tokio::runtime::Builder;
/// use tower_offload::{ThreadPool, pool::CpuBudget};
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let budget = CpuBudget::detect();
///     let cpu = budget.pool().build()?;
///     let mut runtime = Builder::new_multi_thread();
///     runtime.worker_threads(budget.runtime_workers()).enable_all().build()?.block_on(serve(cpu))
/// }
/// # async fn serve(_: ThreadPool) -> Result<(), Box<dyn std::error::Error>> { Ok(()) }
/// ```
///
/// # Sizes
///
/// | cores | workers of the runtime | threads of the pool |
/// |---|---|---|
/// | n | n | n, with a nice value that is 10 higher |
///
/// Together these are twice as many threads as cores, so that either can use every core while the
/// other is idle. While both have work, the nice value lets the runtime have a core first (Linux
/// only).
///
/// # When to use it
///
/// Use it if a server computes on a pool and also answers short requests. Without it,
/// `#[tokio::main]` and [`ThreadPool::cpu`] start the same numbers of threads, because both also
/// ask for the available parallelism, but their threads have the same nice value.
///
/// Give the program one pool that computes. Each further one, such as the global pool of rayon,
/// starts as many threads again. A pool of threads that wait ([`ThreadPool::blocking`]) does not
/// count.
///
/// # CPU limits of containers
///
/// A CPU limit is a quota: the time that all threads together may use in a period of 100 ms. Once
/// they have used it, no thread of the program runs until the next period, and no nice value helps.
/// So a pool must not have more threads than the quota has cores: with two busy threads and the
/// time of one core, the program stands still for half of each period.
///
/// A quota is rounded down. A pool that is busy all the time then uses the whole cores of the
/// quota, and the runtime needs the rest: give the container a limit of 2.5 rather than of 2. With
/// whole cores (a cpuset, such as that of the static CPU manager of Kubernetes) nothing has to wait
/// for a period, and the nice value works as on a machine without a limit.
///
/// Short requests beside jobs of 5 ms, at 130 % of the capacity of one core (medians of 3 rounds
/// on 2 cores; method and all rows: `benches/README.md`, `latency --scene quota`):
///
/// | limit | workers + threads | p99, ms | throttled periods, of 55 |
/// |---|---|---|---|
/// | time of one core | 1 + 1 | 3.3 | 52 |
/// | time of one core | 2 + 1 | 0.30 | 41 |
/// | time of one core | 1 + 2 | 49 | 55 |
/// | time of one core | 2 + 2 | 49 | 55 |
/// | time of 1.5 cores | 1 + 1 | 0.26 | 0 |
/// | one core | 1 + 1 | 1.2 | |
/// | one core | 1 + 1, nice value 10 | 0.72 | |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuBudget {
    cores: usize,
}

impl CpuBudget {
    /// Detects the cores that the program may use.
    ///
    /// That is [`available_parallelism`](thread::available_parallelism): on Linux, the cores of the
    /// calling thread's affinity, such as that of a cpuset, or the CPU quota of its control groups
    /// (v1 or v2) if that is less. A quota is rounded down to whole cores, and is at least 1.
    pub fn detect() -> Self {
        Self::of(thread::available_parallelism().map_or(1, usize::from))
    }

    /// Uses a given number of cores instead, at least 1: for example the CPU request of a container
    /// whose limit is higher, so that it can use idle cores of its host for a short time.
    pub fn of(cores: usize) -> Self {
        Self { cores: cores.max(1) }
    }

    /// Returns the number of cores.
    pub fn cores(self) -> usize {
        self.cores
    }

    /// Returns the number of workers for the runtime: one per core, so that handlers can use all of
    /// them while the pool is idle.
    pub fn runtime_workers(self) -> usize {
        self.cores
    }

    /// Returns the builder of a pool for work that computes: named `cpu`, with one thread per core,
    /// and a nice value 10 above that of the calling thread, at most 19.
    ///
    /// Threads that the work starts inherit the nice value: see
    /// [`niceness`](ThreadPoolBuilder::niceness).
    pub fn pool(self) -> ThreadPoolBuilder {
        let niceness = niceness().saturating_add(NICENESS_STEP).min(*NICENESS_RANGE.end());
        ThreadPool::builder().name("cpu").threads(self.cores).niceness(niceness)
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use super::*;

    #[test]
    fn runtime_and_pool_have_a_thread_per_core() {
        for (given, cores) in [(0, 1), (1, 1), (2, 2), (3, 3), (64, 64)] {
            let budget = CpuBudget::of(given);
            assert_eq!((budget.cores(), budget.runtime_workers()), (cores, cores));
            assert_eq!(budget.pool().build().unwrap().threads(), cores);
        }
        assert_eq!(CpuBudget::detect().cores(), thread::available_parallelism().unwrap().get());
    }

    #[cfg(target_os = "linux")]
    mod linux {
        use std::{fs, path::Path, process::Command};

        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

        use super::*;

        #[test]
        fn affinity_limits_the_budget() {
            // Its own thread, because the affinity is that of the calling thread.
            let cores = thread::spawn(|| {
                let allowed = sched_getaffinity(None).unwrap();
                let first = (0..CpuSet::MAX_CPU).find(|core| allowed.is_set(*core)).unwrap();
                let mut one = CpuSet::new();
                one.set(first);
                sched_setaffinity(None, &one).unwrap();
                CpuBudget::detect().cores()
            });
            assert_eq!(cores.join().unwrap(), 1);
        }

        #[tokio::test]
        async fn threads_of_the_pool_are_nicer_than_the_caller() {
            use crate::pool::Pool;
            let expected = (niceness() + NICENESS_STEP).min(19);
            let pool = CpuBudget::of(1).pool().build().unwrap();
            assert_eq!(pool.run(niceness).await, Ok(expected));
        }

        #[test]
        fn pool_of_a_program_with_the_highest_nice_value_is_built() {
            let threads = thread::spawn(|| {
                rustix::process::setpriority_process(None, 15).unwrap();
                CpuBudget::of(1).pool().build().unwrap().threads()
            });
            assert_eq!(threads.join().unwrap(), 1);
        }

        /// Prints the budget of a process in a control group. Run by the next test.
        #[test]
        #[ignore = "a part of another test"]
        fn print_cores() {
            println!("cores: {}", CpuBudget::detect().cores());
        }

        /// Needs permission to create a control group; without it, nothing is tested.
        #[test]
        fn quota_limits_the_budget_and_is_rounded_down() {
            let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
            let root = Path::new(if is_v2 { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/cpu" });
            let group = root.join(format!("tower-offload-test-{}", std::process::id()));
            let set_quota = |quota: u32| {
                if is_v2 {
                    fs::write(group.join("cpu.max"), format!("{quota} 100000"))
                } else {
                    fs::write(group.join("cpu.cfs_period_us"), "100000")?;
                    fs::write(group.join("cpu.cfs_quota_us"), quota.to_string())
                }
            };
            if fs::create_dir(&group).is_err() {
                return;
            }
            let cores_with = |quota: u32| {
                set_quota(quota).ok()?;
                let script = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", group.display());
                let mut command = Command::new("sh");
                command.args(["-c", &script]).arg(std::env::current_exe().unwrap());
                command.args(["print_cores", "--ignored", "--nocapture"]);
                let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
                Some(output.split("cores: ").nth(1)?.lines().next()?.to_owned())
            };
            let cores = [50_000, 100_000, 199_000].map(cores_with);
            fs::remove_dir(&group).unwrap();
            assert!(cores.iter().flatten().all(|cores| cores == "1"), "{cores:?}");
        }
    }
}
