use std::{error::Error, panic::catch_unwind, time::Duration};

use tower_offload::{
    CallError, OffloadLayer, ThreadPool,
    pool::{Admission, Inline, Pool, TokioBlocking},
};

use crate::support::{runtime, soon};

/// Returns the message of the panic in `work`.
fn panic_of(work: impl FnOnce() + std::panic::UnwindSafe) -> String {
    let payload = catch_unwind(work).expect_err("`work` panics");
    match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => (*payload.downcast::<&str>().expect("the payload is a string")).to_owned(),
    }
}

#[test]
fn builder_error_names_the_option_out_of_range() {
    let build = |builder: tower_offload::pool::ThreadPoolBuilder| {
        let error = builder.build().unwrap_err();
        assert!(error.is_configuration() && !error.is_spawn() && error.source().is_none());
        error.to_string()
    };
    assert!(build(ThreadPool::builder().threads(0)).contains("at least 1"));
    assert!(build(ThreadPool::builder().queue_capacity(0)).contains("`queue_capacity` 0"));
    assert!(build(ThreadPool::builder().min_threads(4).max_threads(2)).contains("must not exceed"));
    assert!(build(ThreadPool::builder().threads(usize::MAX)).contains("over the limit of 32767"));
    assert!(build(ThreadPool::builder().name("a\0b")).contains("NUL"));
}

/// Both values work on a machine with fewer cores and on one with more.
#[test]
fn min_threads_or_max_threads_alone_is_enough() {
    for threads in [1, 500] {
        assert!(ThreadPool::builder().max_threads(threads).build().unwrap().threads() <= threads);
        assert!(ThreadPool::builder().min_threads(threads).build().unwrap().threads() >= threads);
    }
}

#[test]
fn impossible_stack_size_is_a_build_error() {
    let error = ThreadPool::builder().threads(1).stack_size(1 << 62).build().unwrap_err();
    assert!(error.is_spawn() && error.source().is_some(), "{error:?}");
}

#[test]
fn largest_possible_sizes_work() {
    runtime().block_on(async {
        let pool =
            ThreadPool::builder().threads(1).queue_capacity(usize::MAX).keep_alive(Duration::MAX).build().unwrap();
        let layer =
            OffloadLayer::new(pool.clone()).max_in_flight(usize::MAX).wait(Duration::MAX).max_waiting(usize::MAX);
        drop(layer);
        assert_eq!(soon(pool.run(|| 1)).await, Ok(1));
        let growing = ThreadPool::builder().min_threads(0).max_threads(2).keep_alive(Duration::MAX).build().unwrap();
        assert_eq!(soon(growing.run(|| 1)).await, Ok(1));
        assert!(soon(growing.shutdown(Duration::MAX)).await.is_empty());
    });
}

#[test]
fn presets_panic_with_a_remedy() {
    assert!(panic_of(|| drop(ThreadPool::blocking(0))).contains("give `threads` or `max_threads` at least 1"));
    assert!(panic_of(|| drop(ThreadPool::blocking(usize::MAX))).contains("over the limit"));
    assert!(panic_of(|| drop(Admission::new("none", 0))).contains("give it at least 1"));
    let runtime = runtime();
    let _entered = runtime.enter();
    assert!(panic_of(|| drop(TokioBlocking::new(0))).contains("at least 1"));
    assert!(panic_of(|| drop(OffloadLayer::new(Inline::new()).max_in_flight(0))).contains("at least 1"));
}

#[test]
fn tokio_pool_outside_a_runtime_fails_with_a_remedy() {
    let error = TokioBlocking::try_new(1).unwrap_err();
    assert!(error.to_string().contains("inside `#[tokio::main]`"));
    assert!(panic_of(|| drop(TokioBlocking::new(1))).contains("inside `#[tokio::main]`"));
}

#[test]
fn shutdown_outside_a_runtime_panics_with_a_remedy() {
    let panic = panic_of(|| _ = pollster::block_on(ThreadPool::cpu().shutdown(Duration::ZERO)));
    assert!(panic.contains("inside `#[tokio::main]`"), "{panic}");
}

#[test]
fn call_after_shutdown_is_closed() {
    runtime().block_on(async {
        let pool = ThreadPool::cpu();
        soon(pool.shutdown(Duration::ZERO)).await;
        assert_eq!(soon(pool.run(|| ())).await, Err(CallError::Closed));
    });
}
