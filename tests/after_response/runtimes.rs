//! Hooks run on the runtime of the registration, or on a thread of their own if that runtime has
//! shut down.

use std::{
    sync::{Arc, Mutex, mpsc},
    thread,
};

use futures_util::FutureExt;
use http::Response;
use tokio::runtime;
use tower_offload::{
    AfterResponse, Background, ThreadPool,
    after_response::{End, ResponseBody},
    pool::Pool,
};

use crate::support::{LONG, Script, responded};

fn small() -> runtime::Runtime {
    runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Returns a pool with one thread, named `pool-0`.
fn pool() -> ThreadPool {
    ThreadPool::builder().name("pool").threads(1).build().unwrap()
}

fn here() -> String {
    thread::current().name().unwrap_or_default().to_owned()
}

/// Returns a response whose hook and two tasks send the names of their threads.
async fn reporting(
    background: &Background,
) -> (Response<ResponseBody<Script>>, mpsc::Receiver<(&'static str, String)>) {
    let (tx, rx) = mpsc::channel();
    let response = responded(background, |after: &AfterResponse| {
        let send = tx.clone();
        after.hook(move |outcome| {
            assert_eq!(outcome.end, End::NoResponse);
            send.send(("hook", here())).unwrap();
        });
        let send = tx.clone();
        after.spawn_blocking(move || send.send(("run", here())).unwrap()).unwrap();
        after.task("").on_runtime().spawn(async move { tx.send(("spawn", here())).unwrap() }).unwrap();
    });
    (response.await, rx)
}

fn expect(rx: mpsc::Receiver<(&'static str, String)>, expected: [(&str, &str); 3]) {
    let rx: Vec<_> = (0..3).map(|_| rx.recv_timeout(LONG).unwrap()).collect();
    let rx: Vec<_> = rx.iter().map(|(what, thread)| (*what, thread.as_str())).collect();
    assert_eq!(rx, expected);
}

#[test]
fn hooks_run_on_a_current_thread_runtime() {
    let (background, name) = (Background::new(pool()), here());
    let rx = small().block_on(async {
        let (response, rx) = reporting(&background).await;
        drop(response);
        background.shutdown(LONG).await;
        rx
    });
    expect(rx, [("hook", &name), ("run", "pool-0"), ("spawn", &name)]);
}

#[test]
fn hooks_run_on_a_multi_thread_runtime() {
    let background = Background::new(pool());
    let runtime =
        runtime::Builder::new_multi_thread().worker_threads(2).enable_all().thread_name("worker").build().unwrap();
    let rx = runtime.block_on(async {
        let (response, rx) = reporting(&background).await;
        drop(response);
        background.shutdown(LONG).await;
        rx
    });
    expect(rx, [("hook", "worker"), ("run", "pool-0"), ("spawn", "worker")]);
}

#[test]
fn hooks_run_on_a_thread_if_the_runtime_ended_before_the_body() {
    let (background, runtime) = (Background::new(pool()), small());
    let (response, rx) = runtime.block_on(reporting(&background));
    drop(runtime);
    drop(response);
    expect(rx, [("hook", "after-response"), ("run", "pool-0"), ("spawn", "pool-0")]);
}

#[test]
fn hooks_run_on_a_thread_if_the_runtime_ends_before_them() {
    let (background, runtime) = (Background::new(pool()), small());
    let (response, rx) = runtime.block_on(reporting(&background));
    drop(response); // the runtime is no longer driven
    assert_eq!(rx.try_recv(), Err(mpsc::TryRecvError::Empty));
    drop(runtime);
    expect(rx, [("hook", "after-response"), ("run", "pool-0"), ("spawn", "pool-0")]);
}

/// A server that shuts down its runtime with open responses would otherwise start as many threads.
#[test]
fn open_responses_of_a_runtime_share_one_thread() {
    const RESPONSES: usize = 200;
    let (background, runtime, (tx, rx)) = (Background::new(pool()), small(), mpsc::channel());
    // Keeps the first hook, and with it the thread, until every response has ended.
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    for _ in 0..RESPONSES {
        let (tx, gate) = (tx.clone(), gate.clone());
        let response = runtime.block_on(responded(&background, |after: &AfterResponse| {
            after.hook(move |_| {
                drop(gate.lock());
                tx.send(thread::current().id()).unwrap();
            });
        }));
        drop(runtime.spawn(async move {
            let _response = response;
            std::future::pending::<()>().await;
        }));
    }
    drop(runtime);
    drop(closed);
    let mut threads: Vec<_> = (0..RESPONSES).map(|_| rx.recv_timeout(LONG).unwrap()).collect();
    threads.dedup();
    assert_eq!(threads.len(), 1);
}

#[test]
fn hooks_run_on_a_thread_if_the_runtime_drops_the_connection() {
    let (background, runtime) = (Background::new(pool()), small());
    let (response, rx) = runtime.block_on(reporting(&background));
    drop(runtime.spawn(async move {
        let _response = response;
        std::future::pending::<()>().await;
    }));
    drop(runtime);
    expect(rx, [("hook", "after-response"), ("run", "pool-0"), ("spawn", "pool-0")]);
}

#[test]
fn hooks_run_on_a_thread_without_a_runtime() {
    let background = Background::new(pool());
    let (response, rx) = pollster::block_on(reporting(&background));
    drop(response);
    expect(rx, [("hook", "after-response"), ("run", "pool-0"), ("spawn", "pool-0")]);
}

#[test]
fn tasks_run_on_the_pool_without_a_runtime_and_hooks() {
    let background = Background::new(pool());
    let (tx, rx) = mpsc::channel();
    let response = responded(&background, |after: &AfterResponse| {
        let send = tx.clone();
        after.spawn_blocking(move || send.send(here()).unwrap()).unwrap();
        after.spawn(async move { tx.send(here()).unwrap() }).unwrap();
    });
    drop(pollster::block_on(response));
    assert_eq!(rx.iter().collect::<Vec<_>>(), ["pool-0", "pool-0"]);
}

#[test]
fn hooks_run_on_the_runtime_that_drops_the_response() {
    let (background, name) = (Background::new(pool()), here());
    let (response, rx) = pollster::block_on(reporting(&background));
    small().block_on(async {
        drop(response);
        background.shutdown(LONG).await;
    });
    expect(rx, [("hook", &name), ("run", "pool-0"), ("spawn", "pool-0")]);
}

/// Drops a response whose hook sends the name of its thread.
fn hooked(background: &Background, tx: &mpsc::Sender<String>) {
    let send = tx.clone();
    let response = responded(background, |after: &AfterResponse| after.hook(move |_| send.send(here()).unwrap()));
    drop(response.now_or_never().unwrap());
}

#[test]
fn hooks_run_if_the_pool_has_shut_down() {
    let pool = pool();
    let background = Background::new(pool.clone());
    small().block_on(pool.shutdown(LONG));
    let (tx, rx) = mpsc::channel();
    hooked(&background, &tx);
    assert_eq!(rx.recv_timeout(LONG).unwrap(), "after-response");
}

/// A hook is not a task, but a shutdown waits for hooks that are due.
#[test]
fn shutdown_waits_for_due_hooks() {
    let background = Background::new(pool());
    let (enter, entered) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let response = responded(&background, |after: &AfterResponse| {
        after.hook(move |_| {
            enter.send(()).unwrap();
            released.recv().unwrap();
        });
    });
    drop(response.now_or_never().unwrap());
    entered.recv().unwrap();
    small().block_on(async {
        let mut shutdown = Box::pin(background.shutdown(LONG));
        assert!(futures_util::poll!(&mut shutdown).is_pending());
        release.send(()).unwrap();
        assert!(shutdown.await.is_clean());
    });
}
