//! How tasks end, and what is kept of that.

use std::{collections::HashMap, convert::Infallible, fmt, future, io};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tower_offload::{Background, ThreadPool, pool::Pool};
use tower_offload_tasks::{Failure, Json, Reason, Record, Status, TaskState, Tasks};

use super::support::{LONG, SHORT, background, done, ended, hold, in_memory, record};

async fn of_closure<T, E>(work: fn() -> Result<T, E>) -> Record
where
    T: Serialize + 'static,
    E: tower_offload_tasks::IntoFailure + 'static,
{
    let (tasks, background) = (in_memory(), background());
    let sync = tasks.track("sync").run(&background, move |_| work()).await.unwrap();
    let of_sync = ended(&tasks, sync.id()).await;
    let spawned = tasks.track("async").spawn(&background, move |_| async move { work() }).await.unwrap();
    let of_async = ended(&tasks, spawned.id()).await;
    assert_eq!(
        (of_sync.state, &of_sync.result, &of_sync.failure),
        (of_async.state, &of_async.result, &of_async.failure)
    );
    of_sync
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Report {
    rows: u32,
}

/// F1, F5
#[tokio::test]
async fn a_result_keeps_its_type_and_is_an_error_until_there_is_one() {
    let record = of_closure(|| Ok::<_, Infallible>(Report { rows: 3 })).await;
    assert_eq!((record.state, record.attempt), (TaskState::Succeeded, 1));
    assert!(record.created_at <= record.started_at.unwrap() && record.started_at <= record.finished_at);
    let status = Status::from(&record);
    assert_eq!(status.result::<Report>().unwrap(), Report { rows: 3 });
    assert!(status.result::<String>().unwrap_err().is_mismatch());

    let (tasks, background) = (in_memory(), background());
    let held = hold(&tasks, &background).await;
    let pending = Status::from(&super::support::record(&tasks, held.id).await).result::<()>().unwrap_err();
    assert!(pending.is_pending() && !pending.is_mismatch());

    let failed = of_closure(|| Err::<(), _>("no")).await;
    let failed = Status::from(&failed).result::<()>().unwrap_err();
    assert_eq!((failed.is_pending(), failed.state()), (false, TaskState::Failed));
}

/// F4
#[tokio::test]
async fn an_error_is_a_failure_with_its_class_and_message() {
    let record = of_closure(|| Err::<(), _>(io::Error::other("the disk\0 is gone"))).await;
    assert_eq!(record.state, TaskState::Failed);
    let failure = record.failure.unwrap();
    assert_eq!((&*failure.class, &*failure.message), ("std::io::error::Error", "the disk\u{fffd} is gone"));

    let of_text = of_closure(|| Err::<(), _>("no paper".to_owned())).await;
    assert_eq!(of_text.failure, Some(Failure::new("error", "no paper")));
    let of_literal = of_closure(|| Err::<(), _>("no paper")).await;
    assert_eq!(of_literal.failure, Some(Failure::new("error", "no paper")));
    let of_any = of_closure(|| Err::<(), Box<dyn std::error::Error + Send + Sync>>("no paper".into())).await;
    assert_eq!(of_any.failure, Some(Failure::new("error", "no paper")));

    let own = || Failure::new("out_of_stock", "there is none left").detail(&Report { rows: 0 });
    let record =
        of_closure(|| Err::<(), _>(Failure::new("out_of_stock", "there is none left").detail(&Report { rows: 0 })))
            .await;
    assert_eq!(record.failure, Some(own()));
}

/// F4
#[tokio::test]
async fn a_panic_is_a_failure_and_the_next_task_runs() {
    let record = of_closure(|| -> Result<(), Infallible> { panic!("at row {}", 3) }).await;
    assert_eq!((record.state, record.failure), (TaskState::Failed, Some(Failure::new("panic", "at row 3"))));
}

/// F6
#[tokio::test]
async fn a_result_that_cannot_be_kept_is_a_failure_that_says_why() {
    let unserialisable = of_closure(|| Ok::<_, Infallible>(HashMap::from([((1, 2), 3)]))).await;
    let failure = unserialisable.failure.unwrap();
    let message = "what the task returned is not kept: it cannot be written as JSON: key must be a string";
    assert_eq!((unserialisable.state, &*failure.class, &*failure.message), (TaskState::Failed, "result", message));

    let large = of_closure(|| Ok::<_, Infallible>("x".repeat(Json::MAX_BYTES))).await;
    let message = "what the task returned is not kept: its JSON is larger than 65536 bytes";
    assert_eq!(large.failure, Some(Failure::new("result", message)));
}

/// The code of others runs when a result is written, an error is shown, or either is dropped.
#[tokio::test]
async fn what_panics_when_it_is_written_shown_or_dropped_is_a_failure() {
    struct Bomb;
    impl Serialize for Bomb {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            panic!("written")
        }
    }
    impl fmt::Display for Bomb {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("shown")
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
    assert_eq!(of_closure(|| Ok::<_, Infallible>(Bomb)).await.failure, of("written"));
    assert_eq!(of_closure(|| Err::<(), _>(Bomb)).await.failure, of("shown"));
    assert_eq!(of_closure(|| Ok::<_, Infallible>(DropBomb)).await.failure, of("dropped"));

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
async fn work_that_runs_out_of_its_time_has_timed_out_and_what_it_says_later_is_dropped() {
    let (tasks, background) = (in_memory(), background());
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (tell, told) = oneshot::channel();
    let work = move |progress: tower_offload_tasks::Progress| {
        let _ = released.recv();
        progress.set(1.0, "too late");
        tell.send(progress.is_cancelled()).unwrap();
        done()
    };
    let sync = tasks.track("sync").timeout(SHORT).run(&background, work).await.unwrap();
    let over = ended(&tasks, sync.id()).await;
    assert_eq!((over.state, &over.result), (TaskState::TimedOut, &None));
    assert_eq!(background.stats().running, 1, "it goes on");
    drop(release);
    assert!(told.await.unwrap());
    background.drain(LONG).await;
    assert_eq!(record(&tasks, sync.id()).await, over);

    let background = super::support::background();
    let endless = |_| future::pending::<Result<(), Infallible>>();
    let spawned = tasks.track("async").timeout(SHORT).spawn(&background, endless).await.unwrap();
    assert_eq!(ended(&tasks, spawned.id()).await.state, TaskState::TimedOut);
}

#[tokio::test]
async fn work_that_its_pool_refuses_has_failed_and_says_so() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    pool.shutdown(LONG).await;
    let background = Background::builder().pool(pool).on_failure(|_| ()).build();
    let tasks = in_memory();
    let accepted = tasks.track("x").run(&background, |_| done()).await.unwrap();
    let record = ended(&tasks, accepted.id()).await;
    assert_eq!((record.state, record.started_at), (TaskState::Failed, None));
    assert_eq!(record.failure.unwrap().class, "refused");
}

#[test]
fn work_whose_runtime_ends_is_lost_and_that_is_written_when_there_is_a_runtime_again() {
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
        assert!(tasks.drain(LONG).await.is_clean());
        use tower_offload_tasks::TaskStore;
        assert_eq!(store.get(id).await.unwrap().into_record(), Some(record));
    });
}

/// P9
#[test]
fn outside_of_any_runtime_it_is_refused_and_does_not_hang() {
    let (tasks, background) = (in_memory(), background());
    let refused = pollster::block_on(tasks.track("x").run(&background, |_| done())).unwrap_err();
    assert!(refused.is_store());
    assert!(
        pollster::block_on(tasks.get("00000000000000000000000000000000000z".parse().unwrap()))
            .unwrap_err()
            .is_unavailable()
    );
    assert_eq!(tasks.stats().open, 0);
}
