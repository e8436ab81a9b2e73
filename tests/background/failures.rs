use std::{fmt, time::Duration};

use tower_offload::{
    Background, ThreadPool,
    pool::{Admission, Pool, Runnable},
};

use crate::support::{LONG, Log, block, panics, shut_down, with_failure_log, with_threads};

#[tokio::test]
async fn each_failure_is_reported_once_and_other_tasks_run() {
    let (background, log) = with_failure_log(with_threads(1).max_running(1));
    background.task("error").spawn_blocking(|| Err("no")).unwrap();
    background.task("panic").spawn_blocking(|| panics("in a closure")).unwrap();
    background.task("async error").spawn(async { Err::<(), _>("no") }).unwrap();
    background.task("async panic").spawn(async { panics("in a future") }).unwrap();
    background.spawn_blocking(|| ()).unwrap();
    background.spawn(async { Ok::<(), String>(()) }).unwrap();
    let stats = shut_down(&background).await;
    assert_eq!((stats.completed, stats.failed, stats.cancelled), (2, 4, 0));
    assert_eq!(
        log.entries(),
        [
            "background task 1 `error` failed: no",
            "background task 2 `panic` panicked: in a closure",
            "background task 3 `async error` failed: no",
            "background task 4 `async panic` panicked: in a future",
        ]
    );
}

#[tokio::test]
async fn a_task_without_a_name_is_reported_by_its_id_alone() {
    let (background, log) = with_failure_log(with_threads(1));
    background.spawn_blocking(|| Err("no")).unwrap();
    let _blocked = block(&background, "").await;
    let report = background.shutdown(Duration::ZERO).await;
    assert_eq!(log.entries(), ["background task 1 failed: no"]);
    let text = report.to_string();
    assert!(text.contains("1 still running (task 2 for "), "{text}");
}

#[tokio::test]
async fn a_panicking_failure_handler_does_not_affect_tasks() {
    let log = Log::default();
    let seen = log.clone();
    let builder = with_threads(1).max_running(1).on_failure(move |failure| {
        seen.add(failure.name());
        assert!(failure.is_panic() && !failure.is_timeout() && !failure.is_lost());
        panic!("in the failure handler");
    });
    let background = builder.build();
    background.task("a").spawn_blocking(|| panics("")).unwrap();
    background.task("b").spawn(async { panics("") }).unwrap();
    background.spawn_blocking(|| ()).unwrap();
    let stats = shut_down(&background).await;
    assert_eq!((stats.completed, stats.failed), (1, 2));
    assert_eq!(log.entries(), ["a", "b"]);
}

#[tokio::test]
async fn a_panic_while_work_is_dropped_is_contained() {
    struct PanicOnDrop;
    impl Drop for PanicOnDrop {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                panic!("in a drop");
            }
        }
    }
    let (background, log) = with_failure_log(with_threads(1).max_running(1));
    let value = PanicOnDrop;
    background.task("closure").spawn_blocking(move || drop(value)).unwrap();
    let value = PanicOnDrop;
    background
        .task("future")
        .spawn(async move {
            let _value = &value;
            tokio::task::yield_now().await;
        })
        .unwrap();
    let blocked = block(&background, "blocked").await;
    let value = PanicOnDrop;
    let queued = background.spawn_blocking(move || drop(value)).unwrap();
    assert!(queued.cancel());
    blocked.release();
    let stats = shut_down(&background).await;
    assert_eq!((stats.completed, stats.failed), (1, 2));
    assert_eq!(log.entries().len(), 2);
}

#[tokio::test]
async fn a_task_that_a_closed_pool_refuses_fails() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let (background, log) = with_failure_log(Background::builder().pool(pool.clone()));
    pool.shutdown(LONG).await;
    background.task("late").spawn_blocking(|| panics("ran")).unwrap();
    background.task("on the runtime").on_runtime().spawn(async {}).unwrap();
    let stats = shut_down(&background).await;
    assert_eq!((stats.completed, stats.failed), (1, 1));
    assert_eq!(log.entries(), ["background task 1 `late` was refused by its pool: the pool is shut down"]);
}

/// A pool that panics instead of scheduling its runnables.
#[derive(Debug)]
struct PanickingPool(Admission);

impl Pool for PanickingPool {
    fn admission(&self) -> &Admission {
        &self.0
    }

    fn schedule(&self, _: Runnable) {
        panic!("in the pool");
    }
}

#[tokio::test]
async fn a_panic_of_the_pool_fails_the_task_and_not_its_submitter() {
    let pool = PanickingPool(Admission::new("panicking", 8));
    let (background, log) = with_failure_log(Background::builder().pool(pool));
    for _ in 0..2 {
        background.task("dropped").spawn_blocking(|| panics("ran")).unwrap();
    }
    assert_eq!(shut_down(&background).await.failed, 2);
    assert_eq!(log.entries().len(), 2);
}

/// An error with a cause, which its alternate form contains. Its destructor panics, and its text
/// does so with `panics`.
struct NastyError {
    panics: bool,
}

impl fmt::Display for NastyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        assert!(!self.panics, "in the text");
        f.write_str(if f.alternate() { "no address: no user" } else { "no address" })
    }
}

impl Drop for NastyError {
    fn drop(&mut self) {
        panic!("in a drop");
    }
}

/// A second panic while one unwinds would abort the process.
#[tokio::test]
async fn an_error_is_reported_with_its_causes_even_if_it_panics() {
    let (background, log) = with_failure_log(with_threads(1).max_running(1));
    background.task("text").spawn_blocking(|| Err(NastyError { panics: false })).unwrap();
    background.task("no text").spawn(async { Err::<(), _>(NastyError { panics: true }) }).unwrap();
    assert_eq!(shut_down(&background).await.failed, 2);
    assert_eq!(
        log.entries(),
        ["background task 1 `text` failed: no address: no user", "background task 2 `no text` panicked: in the text"]
    );
}

/// A `main` that returns `io::Result<()>` can use `?`, and prints the remedy.
#[tokio::test]
async fn errors_of_a_main_convert_to_io_errors() {
    fn pool() -> std::io::Result<()> {
        tower_offload::ThreadPool::builder().threads(0).build()?;
        Ok(())
    }
    let error = pool().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    assert!(format!("{error:?}").contains("give `threads` or `max_threads` at least 1"), "{error:?}");

    let background = with_threads(1).build();
    background.shutdown(Duration::ZERO).await;
    let closed = std::io::Error::from(background.spawn_blocking(|| ()).unwrap_err());
    assert_eq!(closed.to_string(), "the background is closed");
    let late = std::io::Error::from(tower_offload::CallError::DeadlineExceeded);
    assert_eq!(late.kind(), std::io::ErrorKind::TimedOut);
    let no_runtime = std::thread::spawn(|| tower_offload::pool::TokioBlocking::try_new(1)).join().unwrap().unwrap_err();
    let no_runtime = std::io::Error::from(no_runtime);
    assert!(format!("{no_runtime:?}").contains("create the pool inside"), "{no_runtime:?}");
}
