//! Ends of tasks: results, failures, timeouts and panics, and the records that they leave.

use std::{collections::HashMap, convert::Infallible, fmt, future, io};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tower_offload::{Background, ThreadPool, pool::Pool};
use tower_offload_tasks::{Failure, Json, Reason, Record, Status, TaskState, Tasks};

use super::support::{LONG, SHORT, background, done, ended, hold, in_memory, record};

/// Runs the same work as a closure and as a future, and returns the record.
async fn run<T, E>(work: fn() -> Result<T, E>) -> Record
where
    T: Serialize + 'static,
    E: tower_offload_tasks::IntoFailure + 'static,
{
    let (tasks, background) = (in_memory(), background());
    let blocking = tasks.track("sync").spawn_blocking(&background, move |_| work()).await.unwrap();
    let of_closure = ended(&tasks, blocking.id()).await;
    let spawned = tasks.track("async").spawn(&background, move |_| async move { work() }).await.unwrap();
    let of_future = ended(&tasks, spawned.id()).await;
    assert_eq!(
        (of_closure.state, &of_closure.result, &of_closure.failure),
        (of_future.state, &of_future.result, &of_future.failure)
    );
    of_closure
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Report {
    rows: u32,
}

#[tokio::test]
async fn result_is_typed_and_an_error_before_it_exists() {
    let record = run(|| Ok::<_, Infallible>(Report { rows: 3 })).await;
    assert_eq!((record.state, record.attempt), (TaskState::Succeeded, 1));
    assert!(record.created_at <= record.started_at.unwrap() && record.started_at <= record.finished_at);
    let status = Status::from(&record);
    assert_eq!(status.result::<Report>().unwrap(), Report { rows: 3 });
    assert!(status.result::<String>().unwrap_err().is_mismatch());

    let (tasks, background) = (in_memory(), background());
    let held = hold(&tasks, &background).await;
    let pending = Status::from(&super::support::record(&tasks, held.id).await).result::<()>().unwrap_err();
    assert!(pending.is_pending() && !pending.is_mismatch());

    let failed = run(|| Err::<(), _>("no")).await;
    let failed = Status::from(&failed).result::<()>().unwrap_err();
    assert_eq!((failed.is_pending(), failed.state()), (false, TaskState::Failed));
}

#[tokio::test]
async fn error_becomes_a_failure_with_class_and_message() {
    let record = run(|| Err::<(), _>(io::Error::other("the disk\0 is gone"))).await;
    assert_eq!(record.state, TaskState::Failed);
    let failure = record.failure.unwrap();
    assert_eq!((&*failure.class, &*failure.message), ("std::io::error::Error", "the disk\u{fffd} is gone"));

    let of_text = run(|| Err::<(), _>("no paper".to_owned())).await;
    assert_eq!(of_text.failure, Some(Failure::new("error", "no paper")));
    let of_literal = run(|| Err::<(), _>("no paper")).await;
    assert_eq!(of_literal.failure, Some(Failure::new("error", "no paper")));
    let of_any = run(|| Err::<(), Box<dyn std::error::Error + Send + Sync>>("no paper".into())).await;
    assert_eq!(of_any.failure, Some(Failure::new("error", "no paper")));

    let own = || Failure::new("out_of_stock", "there is none left").detail(&Report { rows: 0 });
    let record =
        run(|| Err::<(), _>(Failure::new("out_of_stock", "there is none left").detail(&Report { rows: 0 }))).await;
    assert_eq!(record.failure, Some(own()));
}

#[tokio::test]
async fn panic_becomes_a_failure() {
    let record = run(|| -> Result<(), Infallible> { panic!("at row {}", 3) }).await;
    assert_eq!((record.state, record.failure), (TaskState::Failed, Some(Failure::new("panic", "at row 3"))));
}

#[tokio::test]
async fn result_that_cannot_be_stored_becomes_a_failure() {
    let unserialisable = run(|| Ok::<_, Infallible>(HashMap::from([((1, 2), 3)]))).await;
    let failure = unserialisable.failure.unwrap();
    let message = "the result cannot be stored: the value cannot be represented in JSON: key must be a string";
    assert_eq!((unserialisable.state, &*failure.class, &*failure.message), (TaskState::Failed, "result", message));

    let large = run(|| Ok::<_, Infallible>("x".repeat(Json::MAX_BYTES))).await;
    let message = "the result cannot be stored: the JSON text exceeds 65536 bytes";
    assert_eq!(large.failure, Some(Failure::new("result", message)));
}

/// Serializing a result, formatting an error, and dropping either runs user code.
#[tokio::test]
async fn panic_while_a_result_is_processed_becomes_a_failure() {
    struct Bomb;
    impl Serialize for Bomb {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            panic!("serialized")
        }
    }
    impl fmt::Display for Bomb {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("formatted")
        }
    }
    #[derive(Serialize)]
    struct DropBomb;
    impl Drop for DropBomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let of = |message: &str| Some(Failure::new("panic", message));
    assert_eq!(run(|| Ok::<_, Infallible>(Bomb)).await.failure, of("serialized"));
    assert_eq!(run(|| Err::<(), _>(Bomb)).await.failure, of("formatted"));
    assert_eq!(run(|| Ok::<_, Infallible>(DropBomb)).await.failure, of("dropped"));

    let (tasks, background) = (in_memory(), background());
    let bomb = DropBomb;
    let accepted = tasks.track("x").spawn(&background, move |_| async move {
        let _bomb = bomb;
        tokio::task::yield_now().await;
        done()
    });
    assert_eq!(ended(&tasks, accepted.await.unwrap().id()).await.failure, of("dropped"));
}

#[tokio::test]
async fn task_times_out_and_its_later_result_is_dropped() {
    let (tasks, background) = (in_memory(), background());
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (report, reported) = oneshot::channel();
    let work = move |progress: tower_offload_tasks::Progress| {
        let _ = released.recv();
        progress.set(1.0, "too late");
        report.send(progress.is_cancelled()).unwrap();
        done()
    };
    let blocking = tasks.track("sync").timeout(SHORT).spawn_blocking(&background, work).await.unwrap();
    let timed_out = ended(&tasks, blocking.id()).await;
    assert_eq!((timed_out.state, &timed_out.result), (TaskState::TimedOut, &None));
    assert_eq!(background.stats().running, 1, "the closure still runs");
    drop(release);
    assert!(reported.await.unwrap());
    background.shutdown(LONG).await;
    assert_eq!(record(&tasks, blocking.id()).await, timed_out);

    let background = super::support::background();
    let pending = |_| future::pending::<Result<(), Infallible>>();
    let spawned = tasks.track("async").timeout(SHORT).spawn(&background, pending).await.unwrap();
    assert_eq!(ended(&tasks, spawned.id()).await.state, TaskState::TimedOut);
}

#[tokio::test]
async fn task_refused_by_the_pool_has_failed() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    pool.shutdown(LONG).await;
    let background = Background::builder().pool(pool).on_failure(|_| ()).build();
    let tasks = in_memory();
    let accepted = tasks.track("x").spawn_blocking(&background, |_| done()).await.unwrap();
    let record = ended(&tasks, accepted.id()).await;
    assert_eq!((record.state, record.started_at), (TaskState::Failed, None));
    assert_eq!(record.failure.unwrap().class, "refused");
}

#[test]
fn task_of_a_stopped_runtime_is_lost_and_written_by_the_next() {
    let store = tower_offload_tasks::MemoryStore::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let first = tokio::runtime::Runtime::new().unwrap();
    let id = first.block_on(async {
        let (enter, entered) = oneshot::channel();
        let work = |_| async {
            enter.send(()).unwrap();
            future::pending::<Result<(), Infallible>>().await
        };
        let accepted = tasks.track("x").spawn(&background, work).await.unwrap();
        entered.await.unwrap();
        accepted.id()
    });
    drop(first);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let record = ended(&tasks, id).await;
        assert_eq!((record.state, record.reason), (TaskState::Lost, Some(Reason::RuntimeLost)));
        assert!(tasks.shutdown(LONG).await.is_clean());
        use tower_offload_tasks::TaskStore;
        assert_eq!(store.get(id).await.unwrap().into_record(), Some(record));
    });
}

#[test]
fn task_outside_a_runtime_is_rejected() {
    let (tasks, background) = (in_memory(), background());
    let error = pollster::block_on(tasks.track("x").spawn_blocking(&background, |_| done())).unwrap_err();
    assert!(error.is_store());
    assert!(
        pollster::block_on(tasks.get("00000000000000000000000000000000000z".parse().unwrap()))
            .unwrap_err()
            .is_unavailable()
    );
    assert_eq!(tasks.stats().open, 0);
}
