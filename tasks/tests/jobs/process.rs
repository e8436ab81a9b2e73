//! Jobs whose work runs in processes, which are really killed.

use std::{
    fmt, fs,
    io::{Read, Write},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
};
use tower_offload::{
    Background,
    process::{self, Context, ProcessPool, ProcessPoolBuilder, Work},
};
use tower_offload_tasks::{
    Reason, SqlStore, TaskState, Tasks,
    jobs::{Backoff, Job, Jobs, JobsBuilder, OrEnqueue},
};
use tower_offload_tests::eventually;

use super::support::{LONG, SHORT, TestDatabase, ended, on_each_database, record, until};

on_each_database! {
    process_reports_progress_and_the_result
    failure_says_how_the_work_ended
    attempt_over_its_timeout_is_killed
    attempt_that_uses_too_much_memory_is_killed
    work_that_was_not_passed_to_init_is_an_error_at_start
    killed_process_fails_its_attempt_only
    cancelled_job_ends_with_its_process
    work_that_returns_after_a_cancellation_has_succeeded
    shutdown_ends_the_process_and_requeues_its_job
    shutdown_of_the_pool_does_not_count
    full_pool_of_processes_does_not_count
    job_that_waits_for_a_process_has_not_started
    job_runs_in_a_process_without_the_queue
    process_enforces_the_timeout_of_a_job_without_the_queue
    killed_program_leaves_no_process_and_its_job_is_recovered
}

/// The `main` of worker processes. In an ordinary test run it returns at once.
#[test]
fn process_worker() {
    process::init::<InProcess>();
}

/// What a process is told to do. The ports are those of a [`Meeting`].
#[derive(Debug, Clone, Serialize, Deserialize)]
enum InProcess {
    Fail,
    Panic,
    Abort,
    Exit,
    /// Return the process id.
    Return,
    /// Report progress, and return once the test has closed the connection.
    Hold(u16),
    /// Return once the job is cancelled.
    UntilCancelled(u16),
    Loop,
    /// Allocate without end.
    Leak,
}

impl Job for InProcess {
    const KIND: &'static str = "in-process";
    const MAX_ATTEMPTS: u16 = 2;
}

/// An error with a type of its own, which becomes the class of the failure.
#[derive(Debug, Serialize, Deserialize)]
struct OutOfPaper {
    sheets: u32,
}

impl fmt::Display for OutOfPaper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sheets are left", self.sheets)
    }
}

impl Work for InProcess {
    const KIND: &'static str = <Self as Job>::KIND;
    type Output = u32;
    type Error = OutOfPaper;

    fn run(self, context: &Context) -> Result<u32, OutOfPaper> {
        match self {
            Self::Fail => return Err(OutOfPaper { sheets: 2 }),
            Self::Panic => panic!("as requested"),
            Self::Abort => std::process::abort(),
            Self::Exit => std::process::exit(3),
            Self::Return => {}
            Self::Hold(port) => {
                context.progress(0.5, "halfway");
                let _ = enter(port).read(&mut [0]);
            }
            Self::UntilCancelled(port) => {
                let _connection = enter(port);
                while !context.is_cancelled() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Self::Loop => loop {
                std::hint::spin_loop();
            },
            Self::Leak => loop {
                std::mem::forget(std::hint::black_box(vec![1_u8; 4 << 20]));
            },
        }
        Ok(std::process::id())
    }
}

fn enter(port: u16) -> std::net::TcpStream {
    let mut connection = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    connection.write_all(&std::process::id().to_le_bytes()).unwrap();
    connection
}

/// A port on which work reports its process.
struct Meeting(TcpListener);

impl Meeting {
    async fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    /// Waits until work has started. It continues when the connection is dropped.
    async fn entered(&self) -> (TcpStream, u32) {
        let entered = async {
            let (mut connection, _) = self.0.accept().await.unwrap();
            let process_id = connection.read_u32_le().await.unwrap();
            (connection, process_id)
        };
        tokio::time::timeout(LONG, entered).await.expect("the work does not start")
    }
}

fn is_alive(process_id: u32) -> bool {
    // A process that has not been reaped remains as a zombie.
    fs::read_to_string(format!("/proc/{process_id}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn kill(process_id: u32) {
    assert!(Command::new("kill").args(["-9", &process_id.to_string()]).status().unwrap().success());
}

/// A pool with one process and a short grace period.
fn pool() -> ProcessPoolBuilder {
    ProcessPool::builder().processes(1).grace(SHORT).arguments(["process::process_worker", "--exact", "--nocapture"])
}

fn builder(tasks: &Tasks, pool: &ProcessPool, timeout: Duration) -> JobsBuilder {
    let builder = Jobs::builder(tasks).backoff(Backoff::fixed(Duration::ZERO));
    builder.process_worker::<InProcess>(pool.clone(), timeout)
}

async fn start(database: &TestDatabase, pool: &ProcessPool) -> (Tasks, Jobs) {
    let tasks = database.tasks().await;
    let jobs = builder(&tasks, pool, LONG).start().await.unwrap();
    (tasks, jobs)
}

async fn process_reports_progress_and_the_result(database: TestDatabase) {
    let (pool, meeting) = (pool().build().unwrap(), Meeting::new().await);
    let (tasks, jobs) = start(&database, &pool).await;
    let id = jobs.enqueue(InProcess::Hold(meeting.port())).await.unwrap().id();
    let (held, process_id) = meeting.entered().await;
    let halfway = until(&tasks, id, |record| record.progress.is_some()).await;
    let seen = (halfway.state, halfway.progress, halfway.message.as_deref());
    assert_eq!(seen, (TaskState::Running, Some(0.5), Some("halfway")));
    drop(held);
    let ended = ended(&tasks, id).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 1));
    assert_eq!(ended.result.unwrap().parse::<u32>().unwrap(), process_id);
    assert_ne!(process_id, std::process::id());
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn failure_says_how_the_work_ended(database: TestDatabase) {
    let pool = pool().build().unwrap();
    let (tasks, jobs) = start(&database, &pool).await;
    let expected = [
        (InProcess::Fail, std::any::type_name::<OutOfPaper>(), "2 sheets are left"),
        (InProcess::Panic, "panic", "as requested"),
        (InProcess::Abort, "crash", "the process was killed by signal 6"),
        (InProcess::Exit, "exit", "the process exited with status 3 before the job ended"),
    ];
    let mut ids = Vec::new();
    for (job, ..) in &expected {
        ids.push(jobs.enqueue(job.clone()).await.unwrap().id());
    }
    for ((_, class, message), id) in expected.into_iter().zip(ids) {
        let ended = ended(&tasks, id).await;
        assert_eq!((ended.state, ended.attempt), (TaskState::Failed, 2));
        let failure = ended.failure.unwrap();
        assert_eq!((failure.class.as_str(), failure.message.as_str()), (class, message));
    }
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn attempt_over_its_timeout_is_killed(database: TestDatabase) {
    let pool = pool().build().unwrap();
    let tasks = database.tasks().await;
    let jobs = builder(&tasks, &pool, SHORT).start().await.unwrap();
    let id = jobs.enqueue(InProcess::Loop).await.unwrap().id();
    let ended = ended(&tasks, id).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::TimedOut, 2));
    let failure = ended.failure.unwrap();
    assert_eq!(failure.class, "timeout");
    assert_eq!(failure.message, "the process was killed at the timeout of the job");
    assert_eq!(pool.stats().killed_by_timeout, 2);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn attempt_that_uses_too_much_memory_is_killed(database: TestDatabase) {
    let pool = pool().max_memory(100 << 20).build().unwrap();
    let (tasks, jobs) = start(&database, &pool).await;
    let id = jobs.enqueue(InProcess::Leak).await.unwrap().id();
    let ended = ended(&tasks, id).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::Failed, 2));
    let failure = ended.failure.unwrap();
    assert_eq!(failure.class, "memory");
    assert_eq!(failure.message, "the process was killed because it used too much memory");
    assert_eq!(pool.stats().killed_by_memory, 2);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// Otherwise a faulty deployment would use up the attempts of the jobs that wait.
async fn work_that_was_not_passed_to_init_is_an_error_at_start(database: TestDatabase) {
    #[derive(Serialize, Deserialize)]
    struct Forgotten;
    impl Job for Forgotten {
        const KIND: &'static str = "forgotten";
    }
    impl Work for Forgotten {
        const KIND: &'static str = <Self as Job>::KIND;
        type Output = ();
        type Error = String;
        fn run(self, _: &Context) -> Result<(), String> {
            Ok(())
        }
    }
    let (tasks, pool) = (database.tasks().await, pool().build().unwrap());
    let builder = Jobs::builder(&tasks).process_worker::<Forgotten>(pool, LONG);
    let error = builder.start().await.expect_err("its jobs would fail");
    assert!(error.is_invalid() && error.to_string().contains("\"forgotten\""), "{error}");
}

async fn killed_process_fails_its_attempt_only(database: TestDatabase) {
    let (pool, meeting) = (pool().build().unwrap(), Meeting::new().await);
    let (tasks, jobs) = start(&database, &pool).await;
    let twice = jobs.enqueue(InProcess::Hold(meeting.port())).await.unwrap().id();
    for _ in 0..2 {
        kill(meeting.entered().await.1);
    }
    let failed = ended(&tasks, twice).await;
    assert_eq!((failed.state, failed.attempt), (TaskState::Failed, 2));
    let failure = failed.failure.unwrap();
    assert_eq!((&*failure.class, &*failure.message), ("crash", "the process was killed by signal 9"));

    let once = jobs.enqueue(InProcess::Hold(meeting.port())).await.unwrap().id();
    kill(meeting.entered().await.1);
    drop(meeting.entered().await);
    let succeeded = ended(&tasks, once).await;
    assert_eq!((succeeded.state, succeeded.attempt), (TaskState::Succeeded, 2));
    assert_eq!((pool.stats().crashed, jobs.stats().retried), (3, 2));
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn cancelled_job_ends_with_its_process(database: TestDatabase) {
    let (pool, meeting) = (pool().build().unwrap(), Meeting::new().await);
    let (tasks, jobs) = start(&database, &pool).await;
    let id = jobs.enqueue(InProcess::Hold(meeting.port())).await.unwrap().id();
    let (_held, process_id) = meeting.entered().await;
    tasks.cancel(id).await.unwrap();
    let ended = ended(&tasks, id).await;
    assert!(!is_alive(process_id), "a job whose process works is running");
    assert_eq!((ended.state, ended.reason, ended.attempt), (TaskState::Cancelled, Some(Reason::Requested), 1));
    assert_eq!(pool.stats().killed_by_cancel, 1);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn work_that_returns_after_a_cancellation_has_succeeded(database: TestDatabase) {
    let (pool, meeting) = (pool().grace(LONG).build().unwrap(), Meeting::new().await);
    let (tasks, jobs) = start(&database, &pool).await;
    let id = jobs.enqueue(InProcess::UntilCancelled(meeting.port())).await.unwrap().id();
    let (_held, process_id) = meeting.entered().await;
    tasks.cancel(id).await.unwrap();
    assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
    assert!(is_alive(process_id), "the process runs further jobs");
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn shutdown_ends_the_process_and_requeues_its_job(database: TestDatabase) {
    let (pool, meeting) = (pool().build().unwrap(), Meeting::new().await);
    let (tasks, jobs) = start(&database, &pool).await;
    let id = jobs.enqueue(InProcess::Hold(meeting.port())).await.unwrap().id();
    let (_held, process_id) = meeting.entered().await;
    let report = jobs.shutdown(Duration::from_secs(5)).await;
    assert!(report.is_clean(), "{report}");
    assert!(!is_alive(process_id), "another machine may start the job now");
    let requeued = record(&tasks, id).await;
    assert_eq!((requeued.state, requeued.attempt), (TaskState::Queued, 0));
}

async fn shutdown_of_the_pool_does_not_count(database: TestDatabase) {
    let (pool, meeting) = (pool().build().unwrap(), Meeting::new().await);
    let (tasks, jobs) = start(&database, &pool).await;
    let id = jobs.enqueue(InProcess::Hold(meeting.port())).await.unwrap().id();
    let _held = meeting.entered().await;
    let _ = pool.shutdown(Duration::ZERO).await;
    let requeued = until(&tasks, id, |record| record.state == TaskState::Queued).await;
    assert_eq!((requeued.attempt, requeued.failure), (0, None));
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn full_pool_of_processes_does_not_count(database: TestDatabase) {
    let (pool, meeting) = (pool().queue_capacity(1).build().unwrap(), Meeting::new().await);
    let tasks = database.tasks().await;
    // More than the pool can run.
    let jobs = builder(&tasks, &pool, LONG).queue("default", 8).start().await.unwrap();
    let held = jobs.enqueue(InProcess::Hold(meeting.port())).await.unwrap().id();
    let (connection, _) = meeting.entered().await;
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(jobs.enqueue(InProcess::Return).max_attempts(1).await.unwrap().id());
    }
    eventually("the pool has rejected jobs", async || jobs.stats().returned >= 2).await;
    drop(connection);
    for id in others.into_iter().chain([held]) {
        let ended = ended(&tasks, id).await;
        assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 1));
    }
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn job_that_waits_for_a_process_has_not_started(database: TestDatabase) {
    let (pool, meeting) = (pool().build().unwrap(), Meeting::new().await);
    let other = pool.run(InProcess::Hold(meeting.port()));
    let (held, _) = meeting.entered().await;
    let (tasks, jobs) = start(&database, &pool).await;
    let id = jobs.enqueue(InProcess::Return).await.unwrap().id();
    let waiting = "SELECT count(*) FROM river_job JOIN tower_offload_task AS task ON task.river_id = river_job.id \
                   WHERE river_job.state = 'running' AND task.state = 0";
    eventually("the job is claimed and shown as queued", async || database.number(waiting).await == 1).await;
    assert_eq!((jobs.running(), jobs.stats().waiting), (0, 1));
    tasks.cancel(id).await.unwrap();
    let cancelled = ended(&tasks, id).await;
    assert_eq!((cancelled.state, cancelled.started_at), (TaskState::Cancelled, None));
    drop(held);
    assert!(other.await.is_ok());
    let next = jobs.enqueue(InProcess::Return).await.unwrap().id();
    assert_eq!(ended(&tasks, next).await.state, TaskState::Succeeded);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn job_runs_in_a_process_without_the_queue(database: TestDatabase) {
    let (pool, meeting) = (pool().build().unwrap(), Meeting::new().await);
    let (tasks, jobs) = start(&database, &pool).await;
    let background = Background::default();
    let here = background.task("here").or_enqueue(jobs.enqueue(InProcess::Return)).await.unwrap();
    let succeeded = ended(&tasks, here.id()).await;
    let process_id = succeeded.result.unwrap().parse::<u32>().unwrap();
    assert!(succeeded.state == TaskState::Succeeded && process_id != std::process::id());

    let held = background.task("here").or_enqueue(jobs.enqueue(InProcess::Hold(meeting.port()))).await.unwrap();
    let (_held, process_id) = meeting.entered().await;
    tasks.cancel(held.id()).await.unwrap();
    assert_eq!(ended(&tasks, held.id()).await.state, TaskState::Cancelled);
    eventually("the process is killed", async || !is_alive(process_id)).await;
    assert_eq!(database.number("SELECT count(*) FROM river_job").await, 0);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// What the work returns within the grace period is its result.
async fn process_enforces_the_timeout_of_a_job_without_the_queue(database: TestDatabase) {
    let (pool, meeting) = (pool().grace(LONG).build().unwrap(), Meeting::new().await);
    let tasks = database.tasks().await;
    let jobs = builder(&tasks, &pool, SHORT).start().await.unwrap();
    let background = Background::default();
    let until_asked = InProcess::UntilCancelled(meeting.port());
    let here = background.task("here").or_enqueue(jobs.enqueue(until_asked)).await.unwrap();
    assert_eq!(ended(&tasks, here.id()).await.state, TaskState::Succeeded);
    assert_eq!(database.number("SELECT count(*) FROM river_job").await, 0);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

const DATABASE: &str = "JOBS_TEST_DATABASE";
const PORT: &str = "JOBS_TEST_PORT";
/// Lease of the processes on Postgres.
const LEASE: Duration = Duration::from_secs(1);

/// A program that enqueues a job, runs it in a process, and waits.
#[test]
#[ignore = "run by another test"]
fn program() {
    let (Ok(database), Ok(port)) = (std::env::var(DATABASE), std::env::var(PORT)) else { return };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let tasks = Tasks::new(SqlStore::open_with_lease(&database, LEASE).await.unwrap());
        let jobs = builder(&tasks, &pool().build().unwrap(), LONG).start().await.unwrap();
        let _ = jobs.enqueue(InProcess::Hold(port.parse().unwrap())).await.unwrap();
        std::future::pending::<()>().await;
    });
}

/// Killed with SIGKILL when it is dropped, also when its test fails.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn killed_program_leaves_no_process_and_its_job_is_recovered(database: TestDatabase) {
    let meeting = Meeting::new().await;
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["process::program", "--exact", "--ignored", "--nocapture"]).stdout(Stdio::null());
    command.env(DATABASE, database.url()).env(PORT, meeting.port().to_string());
    let program = Program(command.spawn().unwrap());
    let (_held, process_id) = meeting.entered().await;
    eventually("the job is shown as running", async || {
        database.number("SELECT count(*) FROM tower_offload_task WHERE state = 1").await == 1
    })
    .await;
    drop(program);
    eventually("its process ends", async || !is_alive(process_id)).await;

    let pool = pool().build().unwrap();
    let tasks = Tasks::new(SqlStore::open_with_lease(&database.url(), LEASE).await.unwrap());
    let jobs = builder(&tasks, &pool, LONG).start().await.unwrap();
    drop(meeting.entered().await);
    eventually("the job has succeeded", async || {
        database.number("SELECT count(*) FROM river_job WHERE state = 'completed' AND attempt = 2").await == 1
    })
    .await;
    assert_eq!(jobs.stats().recovered, 1);
    assert!(jobs.shutdown(LONG).await.is_clean());
}
