#![allow(clippy::unwrap_used)]

use std::{
    sync::{atomic::AtomicU64, mpsc},
    thread::{self, ThreadId},
    time::Duration,
};

use http::Version;
use tokio::{
    runtime::{self, Handle},
    task::{self, yield_now},
};

use super::*;
use crate::{
    after_response::{FlushOutcome, TestResponse},
    background::Background,
    pool::Inline,
};

fn background() -> Background {
    Background::builder().pool(Inline::new()).build()
}

fn alive_tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Flushes a response with this hook.
fn flush(driver: &ConnectionDriver, background: &Background, hook: impl FnOnce() + Send + 'static) {
    let (response, waiter) = TestResponse::new(Version::HTTP_11);
    response.handle(background).hook(move |_| hook());
    response.end();
    let outcome = FlushOutcome::Flushed { body_bytes: None };
    waiter.complete(outcome, &Arc::new(AtomicU64::new(0)), &mut SettledExchanges::of(driver));
}

type Sender = mpsc::Sender<(task::Id, ThreadId)>;

/// Flushes a response whose hook sends its task and its thread.
fn flush_reporting(driver: &ConnectionDriver, background: &Background, sender: &Sender) {
    let sender = sender.clone();
    flush(driver, background, move || sender.send((task::id(), thread::current().id())).unwrap());
}

#[tokio::test]
async fn flushes_of_a_connection_share_one_task() {
    let (driver, background, (sender, ran)) = (ConnectionDriver::default(), background(), mpsc::channel());
    let mut tasks = Vec::new();
    for flushes in [1, 3, 1] {
        (0..flushes).for_each(|_| flush_reporting(&driver, &background, &sender));
        assert!(ran.try_recv().is_err(), "no hook runs before the driver is polled");
        yield_now().await;
        assert_eq!(alive_tasks(), 1);
        tasks.extend(ran.try_iter().map(|(task, _)| task));
    }
    assert_eq!(tasks.len(), 5);
    tasks.dedup();
    assert_eq!(tasks.len(), 1);
    drop(driver);
    yield_now().await;
    assert_eq!(alive_tasks(), 0, "the task ends with the connection");
}

#[tokio::test]
async fn connection_that_ends_first_loses_no_hook() {
    let (driver, background, (sender, ran)) = (ConnectionDriver::default(), background(), mpsc::channel());
    flush_reporting(&driver, &background, &sender);
    yield_now().await;
    flush_reporting(&driver, &background, &sender);
    drop(driver);
    yield_now().await;
    assert_eq!((ran.try_iter().count(), alive_tasks()), (2, 0));
}

#[tokio::test]
async fn waiting_driver_does_not_hold_up_a_shutdown() {
    let (driver, background, (sender, ran)) = (ConnectionDriver::default(), background(), mpsc::channel());
    flush_reporting(&driver, &background, &sender);
    assert!(background.shutdown(Duration::from_secs(60)).await.is_clean());
    assert_eq!(ran.try_iter().count(), 1, "it waits for the hook that is due");
    assert_eq!(alive_tasks(), 1);
    flush_reporting(&driver, &background, &sender);
    yield_now().await;
    assert_eq!(ran.try_iter().count(), 1, "hooks run even then");
}

#[tokio::test]
async fn panicking_hook_does_not_end_the_driver() {
    let (driver, background, (sender, ran)) = (ConnectionDriver::default(), background(), mpsc::channel());
    flush(&driver, &background, || panic!("in a hook"));
    flush_reporting(&driver, &background, &sender);
    yield_now().await;
    flush_reporting(&driver, &background, &sender);
    yield_now().await;
    assert_eq!((ran.try_iter().count(), alive_tasks()), (2, 1));
}

/// The connection flushes within a hook, which is how a flush during a hook that blocks looks.
#[tokio::test]
async fn flush_during_a_hook_starts_another_task() {
    let (driver, background, (sender, ran)) = (Arc::new(ConnectionDriver::default()), background(), mpsc::channel());
    flush(&driver, &background, {
        let (driver, background, sender) = (driver.clone(), background.clone(), sender.clone());
        move || {
            flush_reporting(&driver, &background, &sender);
            sender.send((task::id(), thread::current().id())).unwrap();
            assert_eq!(alive_tasks(), 2);
        }
    });
    yield_now().await;
    yield_now().await;
    let tasks: Vec<_> = ran.try_iter().map(|(task, _)| task).collect();
    assert_eq!(tasks.len(), 2);
    assert_ne!(tasks[0], tasks[1]);
    assert_eq!(alive_tasks(), 1, "the other task ends with its batch");
}

#[tokio::test]
async fn hooks_of_another_background_get_their_own_task() {
    let (driver, (sender, ran)) = (ConnectionDriver::default(), mpsc::channel());
    let backgrounds = [background(), background()];
    for background in &backgrounds {
        flush_reporting(&driver, background, &sender);
    }
    assert_eq!(alive_tasks(), 2);
    yield_now().await;
    assert_eq!((ran.try_iter().count(), alive_tasks()), (2, 1));
    let mut shutdown = tokio_test::task::spawn(backgrounds[1].shutdown(Duration::from_secs(60)));
    assert!(shutdown.poll().is_ready());
}

#[test]
fn hooks_run_on_a_thread_if_the_runtime_drops_the_driver() {
    let (driver, background, (sender, ran)) = (ConnectionDriver::default(), background(), mpsc::channel());
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let flush = || {
        let (sender, _entered) = (sender.clone(), runtime.enter());
        flush(&driver, &background, move || sender.send(thread::current().id()).unwrap());
    };
    flush();
    runtime.block_on(yield_now());
    assert_eq!(ran.try_recv(), Ok(thread::current().id()));
    flush();
    assert!(ran.try_recv().is_err(), "the runtime is no longer driven");
    let handle = runtime.handle().clone();
    drop(runtime);
    let run_on = ran.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_ne!(run_on, thread::current().id());
    // The driver is gone.
    let _entered = handle.enter();
    super::tests::flush(&driver, &background, move || sender.send(thread::current().id()).unwrap());
    assert_ne!(ran.recv_timeout(Duration::from_secs(60)).unwrap(), thread::current().id());
}
