//! What workers get besides the job.

use std::{sync::Mutex, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;
use tower_offload::{Background, ThreadPool};
use tower_offload_tasks::{
    Failure, Progress, TaskId, TaskState,
    jobs::{Backoff, Context, Job, Jobs, OrEnqueue},
};

use super::support::{Act, LONG, TestDatabase, ended, on_each_database, start_when_free};

on_each_database! {
    context_describes_the_attempt
    job_that_runs_here_has_a_context
    context_does_not_keep_the_queue_alive
    missing_state_fails_the_attempt_and_names_the_remedy
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Work(pub(crate) u32);

impl Job for Work {
    const KIND: &'static str = "work";
    const MAX_ATTEMPTS: u16 = 2;
}

/// State of a test.
struct Greeting(&'static str);

/// A function of an application that knows nothing of jobs.
fn report(progress: &Progress) {
    progress.set(0.5, "halfway");
}

fn describe(context: &Context) -> serde_json::Value {
    report(context);
    assert!(context.deadline().remaining().is_some_and(|remaining| !remaining.is_zero() && remaining <= LONG));
    json!([
        context.id(),
        context.attempt(),
        context.max_attempts(),
        context.owner(),
        context.parent(),
        context.state::<Greeting>().0
    ])
}

async fn context_describes_the_attempt(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = Jobs::builder(&tasks)
        .backoff(Backoff::fixed(Duration::ZERO))
        .state(Greeting("hello"))
        .blocking_worker(ThreadPool::blocking(1), LONG, |_: Work, context| {
            if context.attempt() == 1 { Err("once more") } else { Ok(describe(&context)) }
        })
        .worker(LONG, |_: Act, context| async move {
            let enqueued = context.jobs().enqueue(Work(0)).owner("bob").parent(context.id()).await;
            Ok::<_, String>(json!([describe(&context), enqueued.map_err(|error| error.to_string())?.id()]))
        })
        .start()
        .await
        .unwrap();
    let parent = jobs.enqueue(Act::Return(json!(1))).owner("ann").await.unwrap().id();
    let record = ended(&tasks, parent).await;
    assert_eq!((record.message.as_deref(), record.parent), (Some("halfway"), None));
    let (context, child): (serde_json::Value, TaskId) = record.result.unwrap().parse().unwrap();
    assert_eq!(context, json!([parent, 1, 3, "ann", null, "hello"]));
    let record = ended(&tasks, child).await;
    assert_eq!((record.owner.as_deref(), record.parent), (Some("bob"), Some(parent)));
    let context: serde_json::Value = record.result.unwrap().parse().unwrap();
    assert_eq!(context, json!([child, 2, 2, "bob", parent, "hello"]));
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn job_that_runs_here_has_a_context(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = Jobs::builder(&tasks)
        .state(Greeting("hello"))
        .blocking_worker(ThreadPool::blocking(1), LONG, |Work(_), context| {
            let step = context.step("a", || Ok::<_, Failure>(1))?;
            let again = Failure::from(context.step("a", || Ok::<_, Failure>(2)).unwrap_err()).message;
            let next = context.then(context.jobs().enqueue(Act::Return(json!(7)))).map_err(|error| error.to_string());
            Ok::<_, Failure>(json!([describe(&context), step, again, next]))
        })
        .worker(LONG, |act: Act, _| async move { Ok::<_, Failure>(matches!(act, Act::Return(_))) })
        .start()
        .await
        .unwrap();
    let background = Background::builder().pool(ThreadPool::blocking(1)).on_failure(|_| ()).build();
    let here = background.task("here").or_enqueue(jobs.enqueue(Work(0)).owner("ann")).await.unwrap().id();
    let result: serde_json::Value = ended(&tasks, here).await.result.unwrap().parse().unwrap();
    assert_eq!(result[0], json!([here, 1, 1, "ann", null, "hello"]));
    assert_eq!(result[1], 1);
    assert!(result[2].as_str().unwrap().contains("used before"), "{result}");
    let next: TaskId = serde_json::from_value(result[3]["Ok"].clone()).unwrap();
    let next = ended(&tasks, next).await;
    assert_eq!((next.owner.as_deref(), next.parent, next.state), (Some("ann"), Some(here), TaskState::Succeeded));
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn context_does_not_keep_the_queue_alive(database: TestDatabase) {
    let tasks = database.tasks().await;
    let (sender, mut contexts) = mpsc::unbounded_channel();
    let sender = Mutex::new(sender);
    let builder = || {
        let sender = sender.lock().unwrap().clone();
        Jobs::builder(&tasks).worker(LONG, move |_: Work, context| {
            let _ = sender.send(context);
            async { Ok::<_, Failure>(()) }
        })
    };
    let jobs = builder().start().await.unwrap();
    let id = jobs.enqueue(Work(0)).await.unwrap().id();
    ended(&tasks, id).await;
    let context = contexts.recv().await.unwrap();
    let handle = context.jobs();
    drop(jobs);
    assert!(handle.is_closed() && context.jobs().enqueue(Work(0)).await.unwrap_err().is_closed());
    let late = context.then(handle.enqueue(Work(0))).unwrap_err();
    assert!(late.to_string().contains("has ended"), "{late}");
    let jobs = start_when_free(builder).await.unwrap();
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn missing_state_fails_the_attempt_and_names_the_remedy(database: TestDatabase) {
    let tasks = database.tasks().await;
    let builder = || {
        Jobs::builder(&tasks)
            .worker(LONG, |_: Work, context| async move { Ok::<_, Failure>(context.state::<Greeting>().0) })
    };
    let twice = builder().state(1_u8).state(2_u8).start().await.unwrap_err();
    assert!(twice.is_invalid() && twice.to_string().contains("two states of type `u8`"), "{twice}");
    let jobs = builder().state(1_u8).start().await.unwrap();
    let id = jobs.enqueue(Work(0)).max_attempts(1).await.unwrap().id();
    let failure = ended(&tasks, id).await.failure.unwrap();
    assert_eq!(failure.class, "panic");
    assert!(failure.message.contains("Greeting") && failure.message.contains("`JobsBuilder::state`"), "{failure:?}");
    assert!(jobs.shutdown(LONG).await.is_clean());
}
