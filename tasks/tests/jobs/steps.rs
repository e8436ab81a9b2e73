//! Steps, which run once although their job has several attempts.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc as blocking,
    },
    time::Duration,
};

use serde_json::json;
use tokio::sync::mpsc;
use tower_offload::ThreadPool;
use tower_offload_tasks::{
    Failure, SqlStore, TaskState, Tasks,
    jobs::{Backoff, Context, Jobs, JobsBuilder, StepError},
};

use super::{
    context::Work,
    databases::OnServer,
    support::{GRACE, LONG, TestDatabase, ended, on_each_database, start_when_free, until},
};

on_each_database! {
    finished_steps_run_once_across_attempts
    job_that_succeeded_runs_its_steps_again_when_it_is_retried
    step_of_a_lost_claim_is_not_stored
    shutdown_stops_a_job_before_its_next_step
    hostile_metadata_has_no_effect
    blocking_step_in_a_future_fails_before_its_work
}

fn builder(tasks: &Tasks) -> JobsBuilder {
    Jobs::builder(tasks).backoff(Backoff::fixed(Duration::ZERO))
}

/// Names of the steps that have run.
#[derive(Clone, Default)]
struct Ran(Arc<Mutex<Vec<String>>>);

impl Ran {
    fn add(&self, name: &str) {
        self.0.lock().unwrap().push(name.to_owned());
    }

    fn run(&self, name: &str) -> Result<(), Failure> {
        self.add(name);
        Ok(())
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

async fn finished_steps_run_once_across_attempts(database: TestDatabase) {
    const LARGE: u128 = u128::MAX - 1;
    let (tasks, ran) = (database.tasks().await, Ran::default());
    let steps = |ran: Ran| {
        move |step: &str, attempt| -> Result<(u128, f64, String), String> {
            ran.add(step);
            let is_lucky = step == "a" || attempt > 1;
            is_lucky.then(|| (LARGE, 1e300, "\u{e9}\"\0".to_owned())).ok_or_else(|| format!("no luck in {step}"))
        }
    };
    let (in_closure, in_future) = (steps(ran.clone()), steps(ran.clone()));
    let jobs = builder(&tasks)
        .blocking_worker(ThreadPool::blocking(1), LONG, move |_: Work, context| {
            let a = context.step("a", || in_closure("a", context.attempt()))?;
            // A step that has failed may be tried again.
            let b = context.step("b", || in_closure("b", context.attempt()));
            let b = b.or_else(|_| context.step("b", || in_closure("b", context.attempt())))?;
            Ok::<_, Failure>(a == b && a.0 == LARGE && a.2.len() == 4)
        })
        .worker(LONG, move |_: super::support::ActAsync, context| {
            let steps = in_future.clone();
            async move {
                let attempt = context.attempt();
                let a = context.step_async("a", || async { steps("a", attempt) }).await?;
                let b = context.step_async("b", || async { steps("b", attempt) }).await?;
                Ok::<_, Failure>(a == b && a.0 == LARGE && a.2.len() == 4)
            }
        })
        .start()
        .await
        .unwrap();
    let id = jobs.enqueue(Work(0)).await.unwrap().id();
    let record = ended(&tasks, id).await;
    assert_eq!((record.attempt, record.result.unwrap().as_str()), (2, "true"));
    assert_eq!(ran.take(), ["a", "b", "b", "b"]);
    let id = jobs.enqueue(super::support::ActAsync(super::support::Act::Fail)).await.unwrap().id();
    let record = ended(&tasks, id).await;
    assert_eq!((record.attempt, record.result.unwrap().as_str()), (2, "true"));
    assert_eq!(ran.take(), ["a", "b", "b"]);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn job_that_succeeded_runs_its_steps_again_when_it_is_retried(database: TestDatabase) {
    let (tasks, ran) = (database.tasks().await, Ran::default());
    let steps = ran.clone();
    let worker =
        move |_: Work, context: Context| -> Result<(), Failure> { Ok(context.step("charge", || steps.run("charge"))?) };
    let jobs = builder(&tasks).blocking_worker(ThreadPool::blocking(1), LONG, worker).start().await.unwrap();
    let id = jobs.enqueue(Work(0)).await.unwrap().id();
    assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
    tasks.retry(id).await.unwrap();
    assert_eq!((ended(&tasks, id).await.attempt, ran.take().len()), (2, 2));
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// The job is claimed again while its first attempt is between two steps.
async fn step_of_a_lost_claim_is_not_stored(database: TestDatabase) {
    let (tasks, ran) = (database.tasks().await, Ran::default());
    let (begun, mut is_begun) = mpsc::unbounded_channel();
    let (release, released) = blocking::channel::<()>();
    let released = Mutex::new(released);
    let (errors, mut error) = mpsc::unbounded_channel();
    let in_worker = ran.clone();
    let jobs = builder(&tasks)
        .blocking_worker(ThreadPool::blocking(1), LONG, move |_: Work, context| {
            let is_first = context.attempt() == 1;
            let held = context.step("a", || {
                in_worker.add("a");
                let _ = begun.send(());
                if is_first {
                    let _ = released.lock().unwrap().recv();
                }
                Ok::<_, Failure>(context.attempt())
            });
            let next = context.step("b", || in_worker.run("b"));
            if is_first {
                let lost = |error| matches!(error, StepError::Lost);
                let _ = errors
                    .send((held.as_ref().is_err_and(|error| matches!(error, StepError::Lost)), next.is_err_and(lost)));
            }
            held.map_err(Failure::from)
        })
        .start()
        .await
        .unwrap();
    let id = jobs.enqueue(Work(0)).await.unwrap().id();
    is_begun.recv().await.unwrap();
    let requeue = "UPDATE river_job SET state = 'available' WHERE state = 'running'";
    assert_eq!(database.execute(requeue).await, 1, "as if another process had recovered the job");
    release.send(()).unwrap();
    assert_eq!(error.recv().await.unwrap(), (true, true));
    assert_eq!(ran.take(), ["a"], "a step began after the job was lost");
    let record = ended(&tasks, id).await;
    assert_eq!((record.state, record.result.unwrap().as_str()), (TaskState::Succeeded, "2"));
    assert_eq!(ran.take(), ["a", "b"]);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn shutdown_stops_a_job_before_its_next_step(database: TestDatabase) {
    let (tasks, ran) = (database.tasks().await, Ran::default());
    let (begun, mut is_begun) = mpsc::unbounded_channel();
    let worker = |ran: Ran| {
        let begun = begun.clone();
        move |_: Work, context: Context| {
            for step in ["a", "b", "c"] {
                context.step(step, || {
                    ran.add(step);
                    let _ = begun.send(());
                    while step == "b" && !context.is_cancelled() {
                        std::thread::sleep(Duration::from_millis(1)); // a closure gets no notification
                    }
                    Ok::<_, Failure>(())
                })?;
            }
            Ok::<_, Failure>(context.attempt())
        }
    };
    let start = || builder(&tasks).blocking_worker(ThreadPool::blocking(1), LONG, worker(ran.clone()));
    let jobs = start().start().await.unwrap();
    let id = jobs.enqueue(Work(0)).await.unwrap().id();
    is_begun.recv().await.unwrap();
    is_begun.recv().await.unwrap();
    assert!(jobs.shutdown(GRACE).await.is_clean());
    drop(jobs);
    assert_eq!(ran.0.lock().unwrap().clone(), ["a", "b"]);
    ran.add("shutdown");
    let jobs = start_when_free(start).await.unwrap();
    let record = ended(&tasks, id).await;
    assert_eq!((record.state, record.result.unwrap().as_str()), (TaskState::Succeeded, "1"), "the attempt counts");
    assert_eq!(ran.take(), ["a", "b", "shutdown", "c"]);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn hostile_metadata_has_no_effect(database: TestDatabase) {
    let (tasks, ran) = (database.tasks().await, Ran::default());
    let in_worker = ran.clone();
    let start = || {
        let ran = in_worker.clone();
        builder(&tasks).blocking_worker(ThreadPool::blocking(1), LONG, move |_: Work, context| {
            let step = |name: &str| {
                context.step(name, || {
                    ran.add(name);
                    Ok::<_, Failure>(1)
                })
            };
            let quoted = step("a\"'$.[0]")?;
            Ok::<_, Failure>(json!([quoted, step("b")?, step("b-2").map_err(|error| Failure::from(error).message)]))
        })
    };
    let enqueuer = Jobs::builder(&tasks).start().await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(enqueuer.enqueue(Work(0)).await.unwrap().id());
    }
    assert!(enqueuer.shutdown(LONG).await.is_clean());
    drop(enqueuer);
    let metadata = [r#"[1, "a"]"#, r#"{"b": {"c": 1}, "b-2": "{"}"#, "7"];
    for (river_id, steps) in (1..).zip(metadata) {
        let merge = match database {
            TestDatabase::Sqlite(_) => format!("jsonb_patch(metadata, '{{\"tower_offload:steps\": {steps}}}')"),
            TestDatabase::Postgres(_) => format!("metadata || '{{\"tower_offload:steps\": {steps}}}'"),
        };
        let update = format!("UPDATE river_job SET metadata = {merge} WHERE id = {river_id}");
        assert_eq!(database.execute(&update).await, 1);
    }
    let jobs = start_when_free(start).await.unwrap();
    for (index, id) in ids.into_iter().enumerate() {
        let result: serde_json::Value = ended(&tasks, id).await.result.unwrap().parse().unwrap();
        assert_eq!((&result[0], &result[1]), (&json!(1), &json!(1)));
        match index {
            1 => assert!(result[2]["Err"].as_str().unwrap().contains("has another type"), "{result}"),
            _ => assert_eq!(result[2]["Ok"], 1),
        }
    }
    assert_eq!(ran.take().len(), 8);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn blocking_step_in_a_future_fails_before_its_work(database: TestDatabase) {
    let (tasks, ran) = (database.tasks().await, Ran::default());
    let in_worker = ran.clone();
    let jobs = builder(&tasks)
        .worker(LONG, move |_: Work, context| {
            let ran = in_worker.clone();
            async move { context.step("a", || ran.run("a")).map_err(Failure::from) }
        })
        .start()
        .await
        .unwrap();
    let id = jobs.enqueue(Work(0)).max_attempts(1).await.unwrap().id();
    assert_eq!(ended(&tasks, id).await.failure.unwrap().class, "panic");
    assert!(ran.take().is_empty());
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// Two processes share a database, and the first one loses its lease between two steps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_that_lost_its_lease_stores_no_step() {
    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let store =
        || async { Tasks::new(SqlStore::open_with_lease(&database.url(), Duration::from_millis(900)).await.unwrap()) };
    let (ran, first_attempts) = (Ran::default(), Arc::new(AtomicUsize::new(0)));
    let (begun, mut is_begun) = mpsc::unbounded_channel();
    let (ends, mut first_end) = mpsc::unbounded_channel();
    let (release, released) = blocking::channel::<()>();
    let released = Mutex::new(released);
    let first = store().await;
    let (in_first, attempts) = (ran.clone(), first_attempts.clone());
    let one = builder(&first)
        .blocking_worker(ThreadPool::blocking(1), LONG, move |_: Work, context| {
            attempts.fetch_add(1, Ordering::SeqCst);
            context.step("a", || in_first.run("a of one"))?;
            let b = context.step("b", || {
                in_first.add("b of one");
                let _ = begun.send(());
                let _ = released.lock().unwrap().recv();
                Ok::<_, Failure>(())
            });
            let _ = ends.send(matches!(b, Err(StepError::Lost)));
            b.map_err(Failure::from)
        })
        .start()
        .await
        .unwrap();
    let id = one.enqueue(Work(0)).await.unwrap().id();
    is_begun.recv().await.unwrap();
    let second = store().await;
    let in_second = ran.clone();
    let two = builder(&second)
        .blocking_worker(ThreadPool::blocking(1), LONG, move |_: Work, context| {
            context.step("a", || in_second.run("a of two"))?;
            context.step("b", || in_second.run("b of two"))?;
            Ok::<_, Failure>("two")
        })
        .start()
        .await
        .unwrap();
    one.stop_claiming();
    database.execute("DELETE FROM tower_offload_client WHERE id = (SELECT attempted_by[1] FROM river_job)").await;
    let record = ended(&second, id).await;
    assert_eq!(record.result.unwrap().as_str(), "\"two\"");
    release.send(()).unwrap();
    assert!(first_end.recv().await.unwrap(), "the step of the first process was stored");
    assert_eq!(ran.take(), ["a of one", "b of one", "b of two"]);
    assert_eq!(first_attempts.load(Ordering::SeqCst), 1);
    assert!(two.shutdown(LONG).await.is_clean());
    let _ = one.shutdown(LONG).await;
}

/// Processes that are killed. The test starts itself as a child.
#[cfg(target_os = "linux")]
mod killed {
    use std::{
        fs,
        io::Write,
        os::unix::process::ExitStatusExt,
        path::{Path, PathBuf},
    };

    use tokio::process::Command;

    use super::*;
    use crate::support::{kill_this_process, tasks_when_free};

    /// URL of the database of a child.
    const URL: &str = "TOWER_OFFLOAD_STEPS_TEST";
    /// The step at whose beginning a child kills itself.
    const AT: &str = "TOWER_OFFLOAD_STEPS_TEST_AT";
    /// The file that has the name of each step that has run.
    const FILE: &str = "TOWER_OFFLOAD_STEPS_TEST_FILE";
    const STEPS: u32 = 10;
    const KILLED: i32 = 9;

    on_each_database! {
        job_of_killed_processes_runs_each_step_once
    }

    fn append(file: &Path, line: &str) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(file).unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn steps(file: PathBuf, kill_at: Option<u32>) -> impl Fn(Work, Context) -> Result<u32, Failure> + Send + Sync {
        move |_, context| {
            let mut sum = 0;
            for step in 0..STEPS {
                sum += context.step(&format!("step {step}"), || {
                    if kill_at == Some(step) {
                        kill_this_process();
                    }
                    append(&file, &step.to_string());
                    Ok::<_, Failure>(step)
                })?;
            }
            Ok(sum)
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "started by `job_of_killed_processes_runs_each_step_once`"]
    async fn child() {
        let (Ok(url), Ok(at), Ok(file)) = (std::env::var(URL), std::env::var(AT), std::env::var(FILE)) else { return };
        let tasks = tasks_when_free(&url).await;
        let work = steps(file.into(), Some(at.parse().unwrap()));
        let _jobs = builder(&tasks).blocking_worker(ThreadPool::blocking(1), LONG, work).start().await.unwrap();
        tokio::time::sleep(LONG).await;
    }

    async fn job_of_killed_processes_runs_each_step_once(database: TestDatabase) {
        // On Postgres a recovery takes a third of a lease.
        let is_long = std::env::var("STEPS_LONG").is_ok();
        let kills: Vec<u32> = match database {
            TestDatabase::Postgres(_) if !is_long => vec![3, 9],
            _ => (0..STEPS).collect(),
        };
        let file = std::env::temp_dir().join(format!("tower-offload-steps-{}-{:p}", std::process::id(), &database));
        let job = {
            let tasks = tasks_when_free(&database.url()).await;
            let enqueuer = Jobs::builder(&tasks).start().await.unwrap();
            let job = enqueuer.enqueue(Work(0)).max_attempts(100).await.unwrap().id();
            assert!(enqueuer.shutdown(LONG).await.is_clean());
            assert!(tasks.shutdown(LONG).await.is_clean());
            job
        };
        for at in &kills {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "steps::killed::child", "--ignored", "--nocapture"]).kill_on_drop(true);
            child.env(URL, database.url()).env(AT, at.to_string()).env(FILE, &file);
            let output = child.output().await.unwrap();
            let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(KILLED), "{text}");
            if let TestDatabase::Postgres(_) = database {
                database.execute("DELETE FROM tower_offload_client").await;
            }
        }
        let tasks = tasks_when_free(&database.url()).await;
        let work = steps(file.clone(), None);
        let jobs = builder(&tasks).blocking_worker(ThreadPool::blocking(1), LONG, work).start().await.unwrap();
        let record = until(&tasks, job, |record| record.state.is_final()).await;
        assert_eq!((record.state, record.result.unwrap().as_str()), (TaskState::Succeeded, "45"));
        assert_eq!(record.attempt, u32::try_from(kills.len()).unwrap() + 1);
        let ran = fs::read_to_string(&file).unwrap();
        let expected: Vec<String> = (0..STEPS).map(|step| step.to_string()).collect();
        assert_eq!(ran.lines().collect::<Vec<_>>(), expected);
        fs::remove_file(file).unwrap();
        assert!(jobs.shutdown(LONG).await.is_clean());
    }
}
