//! Order and time of hooks and tasks.

use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot};
use tower_offload::{
    Background,
    after_response::{AfterResponse, Delivery, End},
};

use crate::support::{ALL, Client, HTTP1, Http1, Latch, Setup, after_shutdown, on_each};

#[tokio::test]
async fn hooks_run_newest_first_then_tasks_oldest_first() {
    on_each(ALL, |stack| async move {
        let background = Background::default();
        let (tx, mut order) = mpsc::unbounded_channel();
        let setup = Setup::on(stack).background(&background).registers(move |after, _| {
            for name in ["first", "second", "third"] {
                let (hook, sync, later) = (tx.clone(), tx.clone(), tx.clone());
                after.spawn_blocking(move || sync.send(format!("{name} blocking task")).unwrap()).unwrap();
                after.hook(move |_| hook.send(format!("{name} hook")).unwrap());
                after.spawn(async move { later.send(format!("{name} ablocking task")).unwrap() }).unwrap();
            }
        });
        let site = setup.start();
        Client::connect(&site).await.get("/full/5").await;
        let mut expected: Vec<String> = ["third", "second", "first"].map(|name| format!("{name} hook")).into();
        for name in ["first", "second", "third"] {
            expected.extend([format!("{name} blocking task"), format!("{name} ablocking task")]);
        }
        for entry in expected {
            assert_eq!(order.recv().await, Some(entry));
        }
        assert_eq!(after_shutdown(&background).await.completed, 6);
        assert!(order.try_recv().is_err());
    })
    .await;
}

#[tokio::test]
async fn client_has_the_whole_response_while_a_task_runs() {
    on_each(ALL, |stack| async move {
        let (background, latch) = (Background::default(), Latch::new());
        let door = latch.door();
        let setup = Setup::on(stack).background(&background).registers(move |after, _| {
            let door = door.clone();
            after.spawn(door.pass()).unwrap();
        });
        let site = setup.start();
        let mut client = Client::connect(&site).await;
        assert_eq!(client.get("/chunks/3/100000").await, (200, 300_000));
        latch.reached().await;
        assert_eq!(background.stats().running, 1);
        latch.open();
        assert_eq!(after_shutdown(&background).await.completed, 1);
    })
    .await;
}

#[tokio::test]
async fn nothing_runs_before_the_handler_responds() {
    on_each(ALL, |stack| async move {
        let background = Background::default();
        let setup = Setup::on(stack).background(&background).registers(|after, _| {
            after.spawn_blocking(|| ()).unwrap();
        });
        let mut site = setup.start();
        let mut client = Client::connect(&site).await;
        let started = client.start("/wait/full/5").await;
        site.handlers.reached().await;
        assert!(site.unasked().is_empty());
        assert_eq!((background.stats().awaiting_response, background.stats().completed), (1, 0));
        site.handlers.open();
        assert_eq!(client.finish(started).await, 5);
        site.record("/wait/full/5").await.is_flushed(5);
        assert_eq!(after_shutdown(&background).await.completed, 1);
    })
    .await;
}

/// Stores the handles of all requests.
fn keeping(setup: Setup) -> (Setup, Arc<Mutex<Vec<AfterResponse>>>) {
    let handles = Arc::new(Mutex::new(Vec::new()));
    let kept = handles.clone();
    (setup.registers(move |after, _| kept.lock().unwrap().push(after.clone())), handles)
}

#[tokio::test]
async fn registrations_during_the_body_run_after_its_last_byte() {
    on_each(ALL, |stack| async move {
        let (setup, handles) = keeping(Setup::on(stack));
        let mut site = setup.start();
        let mut client = Client::connect(&site).await;
        let started = client.start("/gated/1000/2000").await;
        site.gate.reached().await;
        let (tx, outcome) = oneshot::channel();
        let (ran, task) = oneshot::channel();
        let after = handles.lock().unwrap()[0].clone();
        after.hook(move |outcome| tx.send((outcome.end, outcome.delivery, outcome.body_bytes)).unwrap());
        after.spawn_blocking(move || ran.send(()).unwrap()).unwrap();
        assert!(site.unasked().is_empty());
        site.gate.open();
        assert_eq!(client.finish(started).await, 3000);
        site.record("/gated/1000/2000").await.is_flushed(3000);
        assert_eq!(outcome.await.unwrap(), (End::Complete, Delivery::Flushed, 3000));
        task.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn registration_after_the_end_runs_at_once() {
    on_each(ALL, |stack| async move {
        let (setup, handles) = keeping(Setup::on(stack));
        let mut site = setup.start();
        let mut client = Client::connect(&site).await;
        client.get("/full/5").await;
        site.record("/full/5").await.is_flushed(5);
        let after = handles.lock().unwrap()[0].clone();
        for _ in 0..2 {
            let (tx, outcome) = oneshot::channel();
            let (ran, task) = oneshot::channel();
            after.hook(move |outcome| tx.send((outcome.delivery, outcome.body_bytes)).unwrap());
            after.spawn_blocking(move || ran.send(()).unwrap()).unwrap();
            assert_eq!(outcome.await.unwrap(), (Delivery::Flushed, 5));
            task.await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn registration_after_a_disconnect_runs_at_once() {
    on_each(ALL, |stack| async move {
        let (setup, handles) = keeping(Setup::on(stack));
        let mut site = setup.start();
        let mut client = Client::connect(&site).await;
        let started = client.start("/wait/full/5").await;
        site.handlers.reached().await;
        client.hang_up().await;
        drop(started);
        site.record("/wait/full/5").await.is(End::NoResponse, Delivery::NotDelivered);
        let (tx, outcome) = oneshot::channel();
        let after = handles.lock().unwrap()[0].clone();
        after.hook(move |outcome| tx.send((outcome.end, outcome.delivery)).unwrap());
        assert_eq!(outcome.await.unwrap(), (End::NoResponse, Delivery::NotDelivered));
    })
    .await;
}

#[tokio::test]
async fn body_is_dropped_before_its_hooks_run() {
    on_each(ALL, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Client::connect(&site).await;
        for path in ["/full/5", "/chunks/3/100", "/error/1/10"] {
            let _started = client.start(path).await;
            site.dropped_then_recorded(path).await;
            if let Client::Http1(_) = client {
                client = Client::connect(&site).await;
            }
        }
    })
    .await;
}

/// On HTTP/1 the end of the body writes no bytes, and nothing else happens on the connection.
#[tokio::test]
async fn end_without_bytes_is_reported_on_an_idle_connection() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        client.send("GET /gated/1000/0 HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await;
        client.head().await;
        site.gate.reached().await;
        site.gate.open();
        let record = site.record("/gated/1000/0").await;
        record.is_flushed(1000);
        assert_eq!(client.rest().await, 1000);
    })
    .await;
}
