//! Combinations of layer, connection and extractor, and the symptoms of mistakes.

use std::sync::{Arc, Mutex};

use axum::{Router, response::Response, routing::get};
use tokio::{net::TcpListener, sync::mpsc};
use tower_offload::{
    Background,
    after_response::{AfterResponse, AfterResponseLayer, Delivery, End, Outcome},
    axum::serve,
};

use crate::support::{ALL, Client, Setup, Stack, after_shutdown, on_each, within};

/// Sends `GET /` on a new connection, and returns the response as text.
async fn response_of(app: Router, tracked: bool) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    if tracked {
        tokio::spawn(serve(listener, app).into_future());
    } else {
        tokio::spawn(axum::serve(listener, app).into_future());
    }
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: site\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    within(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn extractor_without_the_layer_is_a_500_that_names_it() {
    for tracked in [false, true] {
        let app = Router::new().route("/", get(|_: AfterResponse| async { "unreachable" }));
        let answer = response_of(app, tracked).await;
        assert!(
            answer.starts_with("HTTP/1.1 500") && answer.contains("needs a layer for work after the response"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn tracked_connection_without_the_layer_serves() {
    let stacks: Vec<Stack> = ALL.iter().copied().filter(|stack| !stack.is_axum()).collect();
    on_each(&stacks, |stack| async move {
        let mut site = Setup::on(stack).layers(0).start();
        let mut client = Client::connect(&site).await;
        for size in 1..=3 {
            assert_eq!(client.get(&format!("/full/{size}")).await, (200, size));
        }
        assert_eq!(site.registered(), 0);
        assert!(site.unasked().is_empty());
    })
    .await;
}

#[tokio::test]
async fn handle_reports_whether_its_connection_is_tracked() {
    on_each(ALL, |stack| async move {
        for tracked in [true, false] {
            let known = Arc::new(Mutex::new(Vec::new()));
            let seen = known.clone();
            let setup = Setup::on(stack).registers(move |after, _| seen.lock().unwrap().push(after.is_tracked()));
            let site = if tracked { setup.start() } else { setup.untracked().start() };
            let mut client = Client::connect(&site).await;
            client.get("/full/5").await;
            client.get("/full/6").await;
            assert_eq!(*known.lock().unwrap(), [tracked, tracked]);
        }
    })
    .await;
}

#[tokio::test]
async fn tracker_counts_connections_and_outcomes() {
    on_each(ALL, |stack| async move {
        let mut site = Setup::on(stack).start();
        for connection in 1..=2 {
            let mut client = Client::connect(&site).await;
            client.get("/full/5").await;
            site.record("/full/5").await.is_flushed(5);
            client.get("/full/6").await;
            site.record("/full/6").await.is_flushed(6);
            let started = client.start("/hang/7").await;
            let _kept = client.await_head(started).await;
            client.hang_up().await;
            site.record("/hang/7").await.is(End::Aborted, Delivery::NotDelivered);
            let stats = site.sure_stats();
            assert_eq!(
                (stats.connections, stats.flushed, stats.undelivered),
                (connection, 2 * connection, 0),
                "{stats:?}"
            );
            // On HTTP/1 a response whose body did not end is not counted.
            assert_eq!(stats.lost, if stack.is_http2() { connection } else { 0 }, "{stats:?}");
        }
    })
    .await;
}

/// The outermost layer owns the response.
#[tokio::test]
async fn nested_layers_run_each_hook_once() {
    on_each(ALL, |stack| async move {
        for (setup, delivery) in
            [(Setup::on(stack), Delivery::Flushed), (Setup::on(stack).untracked(), Delivery::HandedOver)]
        {
            let background = Background::default();
            let (tx, mut hooks) = mpsc::unbounded_channel();
            let setup = setup.layers(2).background(&background).registers(move |after, _| {
                let (hook, task) = (tx.clone(), tx.clone());
                after.hook(move |outcome| hook.send(("hook", outcome.delivery)).unwrap());
                after
                    .task("task")
                    .always()
                    .spawn_blocking(move || _ = task.send(("task", Delivery::NotDelivered)))
                    .unwrap();
            });
            let mut site = setup.start();
            let mut client = Client::connect(&site).await;
            client.get("/full/5").await;
            site.record("/full/5").await.is(End::Complete, delivery);
            assert_eq!(hooks.recv().await, Some(("hook", delivery)));
            assert_eq!(hooks.recv().await, Some(("task", Delivery::NotDelivered)));
            assert_eq!(after_shutdown(&background).await.completed, 1);
            assert!(hooks.try_recv().is_err() && site.unasked().is_empty());
        }
    })
    .await;
}

/// Returns the outcome that a handler inside the layer and inside `outer` observes.
async fn outcome_inside_of(tracked: bool, outer: impl Fn(Router) -> Router) -> Outcome {
    let (tx, mut outcomes) = mpsc::unbounded_channel();
    let app = Router::new().route(
        "/",
        get(move |after: AfterResponse| async move {
            after.hook(move |outcome| tx.send(outcome.clone()).unwrap());
            "0123456789".repeat(10)
        }),
    );
    let answer =
        response_of(outer(app.layer(AfterResponseLayer::new(tower_offload::Background::default()))), tracked).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    within(outcomes.recv()).await.unwrap()
}

#[tokio::test]
async fn replaced_response_is_no_response_if_untracked() {
    let replace = |app: Router| app.layer(axum::middleware::map_response(async |_: Response| "another"));
    let outcome = outcome_inside_of(false, replace).await;
    assert_eq!((outcome.end, outcome.delivery), (End::NoResponse, Delivery::NotDelivered));
}

/// The connection is outside of every layer, so it reports the response that was sent.
#[tokio::test]
async fn tracked_connection_reports_the_replaced_response() {
    let replace = |app: Router| app.layer(axum::middleware::map_response(async |_: Response| "another"));
    let outcome = outcome_inside_of(true, replace).await;
    assert_eq!((outcome.end, outcome.delivery, outcome.body_bytes), (End::Complete, Delivery::Flushed, 7));
}

#[tokio::test]
async fn hooks_of_ten_layers_run_after_a_disconnect() {
    on_each(&[Stack::AxumHttp1, Stack::AxumHttp2], |stack| async move {
        let (tx, mut hooks) = mpsc::unbounded_channel();
        let setup = Setup::on(stack).layers(10).registers(move |after, _| {
            for number in 0..10 {
                let tx = tx.clone();
                after.hook(move |outcome| tx.send((number, outcome.end)).unwrap());
            }
        });
        let site = setup.start();
        let mut client = Client::connect(&site).await;
        let started = client.start("/hang/10").await;
        let _kept = client.await_head(started).await;
        client.hang_up().await;
        // Hooks run in reverse order of registration.
        for number in (0..10).rev() {
            assert_eq!(hooks.recv().await, Some((number, End::Aborted)));
        }
    })
    .await;
}
