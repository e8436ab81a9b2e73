//! Where hooks run: in the runtime of the registration, and on a thread of their own if that is gone.

use std::{sync::mpsc, thread};

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

/// One thread named `pool-0`, and none besides for hooks.
fn pool() -> ThreadPool {
    ThreadPool::builder().name("pool").threads(1).build().unwrap()
}

fn here() -> String {
    thread::current().name().unwrap_or_default().to_owned()
}

/// A response whose hook and two tasks tell on which threads they run.
async fn telling(background: &Background) -> (Response<ResponseBody<Script>>, mpsc::Receiver<(&'static str, String)>) {
    let (tell, told) = mpsc::channel();
    let response = responded(background, |after: &AfterResponse| {
        let send = tell.clone();
        after.hook(move |outcome| {
            assert_eq!(outcome.end, End::NoResponse);
            send.send(("hook", here())).unwrap();
        });
        let send = tell.clone();
        after.run(move || send.send(("run", here())).unwrap()).unwrap();
        after.spawn(async move { tell.send(("spawn", here())).unwrap() }).unwrap();
    });
    (response.await, told)
}

fn expect(told: mpsc::Receiver<(&'static str, String)>, expected: [(&str, &str); 3]) {
    let told: Vec<_> = (0..3).map(|_| told.recv_timeout(LONG).unwrap()).collect();
    let told: Vec<_> = told.iter().map(|(what, thread)| (*what, thread.as_str())).collect();
    assert_eq!(told, expected);
}

#[test]
fn on_a_runtime_with_one_thread() {
    let (background, name) = (Background::new(pool()), here());
    let told = small().block_on(async {
        let (response, told) = telling(&background).await;
        drop(response);
        background.drain(LONG).await;
        told
    });
    expect(told, [("hook", &name), ("run", "pool-0"), ("spawn", &name)]);
}

#[test]
fn on_a_runtime_with_many_threads() {
    let background = Background::new(pool());
    let runtime =
        runtime::Builder::new_multi_thread().worker_threads(2).enable_all().thread_name("worker").build().unwrap();
    let told = runtime.block_on(async {
        let (response, told) = telling(&background).await;
        drop(response);
        background.drain(LONG).await;
        told
    });
    expect(told, [("hook", "worker"), ("run", "pool-0"), ("spawn", "worker")]);
}

#[test]
fn on_a_thread_of_its_own_if_the_runtime_went_before_the_body() {
    let (background, runtime) = (Background::new(pool()), small());
    let (response, told) = runtime.block_on(telling(&background));
    drop(runtime);
    drop(response);
    expect(told, [("hook", "after-response"), ("run", "pool-0"), ("spawn", "pool-0")]);
}

#[test]
fn on_a_thread_of_its_own_if_the_runtime_goes_before_it_comes_to_it() {
    let (background, runtime) = (Background::new(pool()), small());
    let (response, told) = runtime.block_on(telling(&background));
    drop(response); // nobody drives the runtime any more
    assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty));
    drop(runtime);
    expect(told, [("hook", "after-response"), ("run", "pool-0"), ("spawn", "pool-0")]);
}

#[test]
fn on_a_thread_of_its_own_if_the_runtime_takes_the_connection_along() {
    let (background, runtime) = (Background::new(pool()), small());
    let (response, told) = runtime.block_on(telling(&background));
    drop(runtime.spawn(async move {
        let _response = response;
        std::future::pending::<()>().await;
    }));
    drop(runtime);
    expect(told, [("hook", "after-response"), ("run", "pool-0"), ("spawn", "pool-0")]);
}

#[test]
fn on_a_thread_of_its_own_without_any_runtime() {
    let background = Background::new(pool());
    let (response, told) = pollster::block_on(telling(&background));
    drop(response);
    expect(told, [("hook", "after-response"), ("run", "pool-0"), ("spawn", "pool-0")]);
}

/// Also if nothing but tasks was registered.
#[test]
fn tasks_run_on_the_pool_without_any_runtime() {
    let background = Background::new(pool());
    let (tell, told) = mpsc::channel();
    let response = responded(&background, |after: &AfterResponse| {
        let send = tell.clone();
        after.run(move || send.send(here()).unwrap()).unwrap();
        after.spawn(async move { tell.send(here()).unwrap() }).unwrap();
    });
    drop(pollster::block_on(response));
    assert_eq!(told.iter().collect::<Vec<_>>(), ["pool-0", "pool-0"]);
}

#[test]
fn on_the_runtime_that_ends_it_if_there_was_none_at_the_registration() {
    let (background, name) = (Background::new(pool()), here());
    let (response, told) = pollster::block_on(telling(&background));
    small().block_on(async {
        drop(response);
        background.drain(LONG).await;
    });
    expect(told, [("hook", &name), ("run", "pool-0"), ("spawn", "pool-0")]);
}

/// A response whose hook tells on which thread it runs.
fn hooked(background: &Background, tell: &mpsc::Sender<String>) {
    let send = tell.clone();
    let response = responded(background, |after: &AfterResponse| after.hook(move |_| send.send(here()).unwrap()));
    drop(response.now_or_never().unwrap());
}

#[test]
fn also_if_the_pool_is_shut_down() {
    let pool = pool();
    let background = Background::new(pool.clone());
    small().block_on(pool.shutdown(LONG));
    let (tell, told) = mpsc::channel();
    hooked(&background, &tell);
    assert_eq!(told.recv_timeout(LONG).unwrap(), "after-response");
}

/// A hook is no task, and yet a drain that finds it due waits for it.
#[test]
fn a_drain_waits_for_hooks_that_are_due() {
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
        let mut drain = Box::pin(background.drain(LONG));
        assert!(futures_util::poll!(&mut drain).is_pending());
        release.send(()).unwrap();
        assert!(drain.await.is_clean());
    });
}
