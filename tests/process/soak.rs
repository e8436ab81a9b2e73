//! Many jobs, of which some loop forever, allocate without end, or crash.
//!
//! The pool is in a program of its own: its memory, descriptors and children are not those of
//! other tests, and it is killed in the end. The long form takes about a minute:
//!
//! `cargo test -p tower-offload-tests --test process soak -- --ignored --nocapture`

use std::{
    collections::{BTreeMap, HashMap},
    env,
    fs::{self, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tower_offload::process::{Context, KilledBy, ProcessPool, RunError, Work};

use crate::support::{PATIENCE, block_signals, builder, eventually, kill, segfault};

const PROCESSES: usize = 2;
/// Tasks that each submit one job after the other.
const CALLERS: usize = 8;
const TIMEOUT: Duration = Duration::from_millis(100);
const GRACE: Duration = Duration::from_millis(50);
const MAX_MEMORY: usize = 128 << 20;
/// Memory that a hostile job allocates at most, so that a failure spares the machine.
const ENOUGH_MEMORY: usize = 2 << 30;
const MIB: usize = 1 << 20;
/// Memory that the program may gain, in KiB. Allocators do not return all of it.
const MAX_GROWTH: u64 = 16 * 1024;

/// Environment variables of the program: the number of jobs, the distance of two hostile ones, and
/// the file of the log.
const JOBS: &str = "PROCESS_SOAK_JOBS";
const EVERY: &str = "PROCESS_SOAK_EVERY";
const LOG: &str = "PROCESS_SOAK_LOG";
/// Line that the program prints when it waits to be killed.
const WAITING: &str = "waiting to be killed";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Conduct {
    Good,
    Loop,
    Allocate,
    Crash,
}

impl Conduct {
    /// One job of `every` is hostile, in each way in turn.
    fn of(id: usize, every: usize) -> Self {
        match (id % every == every / 2, id / every % 3) {
            (false, _) => Self::Good,
            (true, 0) => Self::Loop,
            (true, 1) => Self::Allocate,
            (true, _) => Self::Crash,
        }
    }

    fn expected(self, id: usize) -> Result<usize, RunError<()>> {
        let by = match self {
            Self::Good => return Ok(id),
            Self::Loop => KilledBy::Timeout,
            Self::Allocate => KilledBy::Memory,
            Self::Crash => KilledBy::Crash(11),
        };
        Err(RunError::Killed { by })
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    id: usize,
    conduct: Conduct,
    log: PathBuf,
}

impl Work for Job {
    const KIND: &'static str = "soak";
    type Output = usize;
    type Error = ();

    fn run(self, _: &Context) -> Result<usize, ()> {
        self.log(Event::Started);
        match self.conduct {
            Conduct::Good => Ok(self.id),
            Conduct::Loop => {
                block_signals();
                loop {
                    std::hint::spin_loop();
                }
            }
            Conduct::Allocate => {
                let mut memory = Vec::new();
                while memory.len() < ENOUGH_MEMORY / MIB {
                    memory.push(vec![1_u8; MIB]);
                    if memory.len() == MAX_MEMORY / MIB {
                        self.log(Event::OverLimit);
                    }
                }
                loop {
                    std::hint::black_box(&memory);
                }
            }
            Conduct::Crash => segfault(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Started,
    OverLimit,
}

impl Job {
    /// Appends a line: whatever happens to the process afterwards, it stays, and no other one
    /// overwrites it.
    fn log(&self, event: Event) {
        let line = format!("{} {event:?} {}\n", self.id, now().as_nanos());
        let mut file = OpenOptions::new().append(true).open(&self.log).unwrap();
        assert_eq!(file.write(line.as_bytes()).unwrap(), line.len());
    }
}

/// The lines of one job in the log.
#[derive(Debug, Default)]
struct Logged {
    starts: usize,
    started: Option<Duration>,
    over_limit: Option<Duration>,
}

fn read_log(path: &Path) -> HashMap<usize, Logged> {
    let mut jobs = HashMap::<usize, Logged>::new();
    for line in fs::read_to_string(path).unwrap().lines() {
        let [id, event, nanos] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let job = jobs.entry(id.parse().unwrap()).or_default();
        let at = Some(Duration::from_nanos(nanos.parse().unwrap()));
        if event == "Started" {
            (job.starts, job.started) = (job.starts + 1, at);
        } else {
            job.over_limit = at;
        }
    }
    jobs
}

/// The wall clock, which the processes share.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// The end of a job, as its caller sees it.
struct Ended {
    id: usize,
    at: Duration,
    result: Result<usize, RunError<()>>,
}

/// Runs jobs up to a number, from several tasks. `next` is the number of the first one.
async fn run_jobs(pool: &ProcessPool, log: &Path, every: usize, next: &Arc<AtomicUsize>, end: usize) -> Vec<Ended> {
    let callers = (0..CALLERS).map(|_| {
        let (pool, log, next) = (pool.clone(), log.to_owned(), next.clone());
        tokio::spawn(async move {
            let mut jobs = Vec::new();
            while let Ok(id) = next.fetch_update(SeqCst, SeqCst, |id| (id < end).then_some(id + 1)) {
                let conduct = Conduct::of(id, every);
                let job = pool.run(Job { id, conduct, log: log.clone() });
                let job = if conduct == Conduct::Loop { job.timeout(TIMEOUT) } else { job };
                let result = tokio::time::timeout(PATIENCE, job).await;
                let result = result.unwrap_or_else(|_| panic!("job {id} has no answer: {conduct:?}"));
                jobs.push(Ended { id, at: now(), result });
            }
            jobs
        })
    });
    let mut jobs = Vec::new();
    for caller in callers.collect::<Vec<_>>() {
        jobs.extend(caller.await.unwrap());
    }
    jobs
}

/// The program. It prints a summary, and fails if something is wrong.
#[test]
#[ignore = "run by the other tests"]
fn program() {
    let Ok(log) = env::var(LOG) else { return };
    let (jobs, every, log) = (variable::<usize>(JOBS), variable(EVERY), PathBuf::from(log));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let pool = pool();
        // The first ones fill caches and pools of memory.
        let next = Arc::new(AtomicUsize::new(0));
        let mut ended = run_jobs(&pool, &log, every, &next, jobs / 3).await;
        settle(&pool).await;
        let (memory, descriptors) = (resident_kib(), descriptors());
        ended.extend(run_jobs(&pool, &log, every, &next, jobs).await);
        settle(&pool).await;
        let memory_after = resident_kib();
        println!("\nmemory of the program: {memory} KiB after a third of the jobs, {memory_after} KiB after all");
        eventually("no descriptor is left open", || self::descriptors() <= descriptors).await;
        report(jobs, every, &log, &ended);
        println!("zombies: {}, children: {}", children(true), children(false));
        assert_eq!(children(true), 0);
        assert!(memory_after < memory + MAX_GROWTH);
        assert!(pool.shutdown(PATIENCE).await.is_empty());
        assert_eq!(children(false), 0);

        let pool = self::pool();
        let _endless = [jobs, jobs + 1].map(|id| pool.run(Job { id, conduct: Conduct::Loop, log: log.clone() }));
        eventually("both jobs run beside a spare", || (pool.stats().busy, pool.stats().idle) == (2, 1)).await;
        println!("{WAITING}");
        std::future::pending::<()>().await;
    });
}

fn variable<T: FromStr>(name: &str) -> T {
    env::var(name).unwrap().parse().ok().unwrap()
}

fn pool() -> ProcessPool {
    builder().processes(PROCESSES).max_memory(MAX_MEMORY as u64).grace(GRACE).build().unwrap()
}

/// Waits until the pool is complete and idle.
async fn settle(pool: &ProcessPool) {
    eventually("the pool is complete", || {
        let stats = pool.stats();
        (stats.idle, stats.alive) == (PROCESSES + 1, PROCESSES as u64 + 1)
    })
    .await;
}

fn report(jobs: usize, every: usize, log: &Path, ended: &[Ended]) {
    let mut log = read_log(log);
    let (mut wrong, mut ran_once) = (Vec::new(), 0);
    // By the reason of the end: the number of jobs, and the longest time from the end of the limit
    // and of the grace period to the answer. A crash has neither.
    let mut late = BTreeMap::<&str, (usize, Duration)>::new();
    for Ended { id, at, result } in ended {
        let (conduct, logged) = (Conduct::of(*id, every), log.remove(id).unwrap_or_default());
        ran_once += usize::from(logged.starts == 1);
        // On a busy machine, a timeout may pass before the job begins.
        let is_late = conduct == Conduct::Loop && logged.starts == 0;
        if *result != conduct.expected(*id) || (logged.starts != 1 && !is_late) {
            wrong.push(format!("job {id}, {conduct:?}, started {} times: {result:?}", logged.starts));
        }
        let (reason, due) = match conduct {
            Conduct::Good => continue,
            Conduct::Loop => ("timeout", logged.started.map(|started| started + TIMEOUT + GRACE)),
            Conduct::Allocate => ("memory", logged.over_limit.map(|exceeded| exceeded + GRACE)),
            Conduct::Crash => ("crash", logged.started),
        };
        let (count, longest) = late.entry(reason).or_default();
        *count += 1;
        *longest = due.map_or(*longest, |due| at.saturating_sub(due).max(*longest));
    }
    let hostile = late.values().map(|(count, _)| count).sum::<usize>();
    println!("{jobs} jobs, {hostile} hostile; ran exactly once: {ran_once}; not as expected: {}", wrong.len());
    for (reason, (count, longest)) in late {
        println!("ended by {reason}: {count}, at most {longest:.1?} after the limit and the grace period");
    }
    assert_eq!((wrong, ended.len()), (Vec::new(), jobs));
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Number of children of this process: zombies, or all.
fn children(only_zombies: bool) -> usize {
    let this = std::process::id().to_string();
    let is_child = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name, which may contain anything: the state and the parent.
        let (state, parent) = stat.rsplit_once(") ")?.1.split_once(' ')?;
        Some(parent.split(' ').next() == Some(&*this) && (state == "Z" || !only_zombies))
    };
    processes().filter(|pid| is_child(*pid) == Some(true)).count()
}

/// Number of processes of the pools of a program, by the marker in their environment.
fn workers_of(program: u32) -> usize {
    let marker = format!("TOWER_OFFLOAD_PROCESS={program}:");
    let is_worker = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(marker.as_bytes()))
    };
    processes().filter(is_worker).count()
}

async fn soak(jobs: usize, every: usize) {
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("soak-{jobs}-{}", std::process::id()));
    fs::write(&log, "").unwrap();
    let mut program = Command::new(env::current_exe().unwrap())
        .args(["soak::program", "--exact", "--ignored", "--nocapture"])
        .env(JOBS, jobs.to_string())
        .env(EVERY, every.to_string())
        .env(LOG, &log)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut is_waiting = false;
    for line in BufReader::new(program.stdout.take().unwrap()).lines().map_while(Result::ok) {
        is_waiting = line == WAITING;
        if is_waiting {
            break;
        }
        println!("{line}");
    }
    let workers = workers_of(program.id());
    kill(program.id());
    program.wait().unwrap();
    assert!(is_waiting, "the program has failed");
    assert_eq!(workers, PROCESSES + 1);
    eventually("no process outlives the program", || workers_of(program.id()) == 0).await;
    fs::remove_file(&log).unwrap();
}

#[tokio::test]
async fn hostile_jobs_cost_only_themselves() {
    soak(300, 20).await;
}

#[tokio::test]
#[ignore = "takes about a minute"]
async fn ten_thousand_jobs() {
    soak(10_000, 100).await;
}
