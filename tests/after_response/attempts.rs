//! Requests that pass through the layer more than once, for example behind a retry. Hooks of every
//! attempt run. A task with the default condition runs only if its own attempt was successful.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{body::Incoming, client::conn::http1::handshake};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tower::{
    Layer, ServiceBuilder, ServiceExt,
    retry::{Policy, RetryLayer},
    service_fn,
    util::BoxCloneSyncService,
};
use tower_offload::{
    Background,
    after_response::{Delivery, End, Outcome, ResponseBody},
    flush::Tracker,
};

use crate::support::{Log, after_shutdown, handle, layer, on_no_thread, read};

/// Retries a server error once.
#[derive(Clone)]
struct Once(bool);

impl<B> Policy<Request<()>, Response<B>, Infallible> for Once {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Request<()>, result: &mut Result<Response<B>, Infallible>) -> Option<Ready<()>> {
        let failed = result.as_ref().is_ok_and(|response| response.status().is_server_error());
        (failed && std::mem::take(&mut self.0)).then(|| ready(()))
    }

    fn clone_request(&mut self, request: &Request<()>) -> Option<Request<()>> {
        Some(request.clone())
    }
}

type Retrying = BoxCloneSyncService<Request<()>, Response<ResponseBody<Full<Bytes>>>, Infallible>;

/// Returns a retry around the layer, around a handler that responds with these statuses in order.
fn retrying(
    background: &Background,
    log: &Log,
    outcomes: UnboundedSender<Outcome>,
    statuses: &'static [u16],
) -> Retrying {
    let (attempts, log) = (Arc::new(AtomicUsize::new(0)), log.clone());
    let handler = service_fn(move |request: Request<()>| {
        let (attempt, after) = (attempts.fetch_add(1, SeqCst), handle(&request));
        let (hook, outcomes) = (log.adds(format!("hook of {attempt}")), outcomes.clone());
        after.hook(move |outcome| {
            hook();
            outcomes.send(outcome.clone()).unwrap();
        });
        after.spawn_blocking(log.adds(format!("default of {attempt}"))).unwrap();
        after.task("").always().spawn_blocking(log.adds(format!("always of {attempt}"))).unwrap();
        after.task("").on_complete().spawn_blocking(log.adds(format!("complete of {attempt}"))).unwrap();
        let body = Full::new(Bytes::from_static(b"body"));
        ready(Ok::<_, Infallible>(Response::builder().status(statuses[attempt]).body(body).unwrap()))
    });
    let layers = ServiceBuilder::new().layer(RetryLayer::new(Once(true))).layer(layer(background));
    BoxCloneSyncService::new(layers.service(handler))
}

const SECOND_SUCCEEDS: &[&str] =
    &["hook of 1", "hook of 0", "always of 0", "complete of 0", "default of 1", "always of 1", "complete of 1"];
const BOTH_FAIL: &[&str] = &["hook of 1", "hook of 0", "always of 0", "complete of 0", "always of 1", "complete of 1"];
const FIRST_SUCCEEDS: &[&str] = &["hook of 0", "default of 0", "always of 0", "complete of 0"];
const CASES: [(&[u16], &[&str]); 3] =
    [(&[500, 200], SECOND_SUCCEEDS), (&[500, 503], BOTH_FAIL), (&[200], FIRST_SUCCEEDS)];

#[tokio::test]
async fn retry_inside_a_layer_runs_only_tasks_of_successful_attempts() {
    for (statuses, expected) in CASES {
        let (background, log) = (on_no_thread(), Log::default());
        let (tx, mut outcomes) = unbounded_channel();
        let service = layer(&background).layer(retrying(&on_no_thread(), &log, tx, statuses));
        let mut response = service.oneshot(Request::new(())).await.unwrap();
        assert_eq!(response.status(), *statuses.last().unwrap());
        read(response.body_mut());
        drop(response);
        after_shutdown(&background).await;
        assert_eq!(log.entries(), expected);
        for _ in statuses {
            let outcome = outcomes.recv().await.unwrap();
            assert_eq!((outcome.end, outcome.status.unwrap().as_u16()), (End::Complete, *statuses.last().unwrap()));
        }
    }
}

#[tokio::test]
async fn retry_when_tracked_runs_only_tasks_of_successful_attempts() {
    for (statuses, expected) in CASES {
        let (background, log) = (on_no_thread(), Log::default());
        let (tx, mut outcomes) = unbounded_channel();
        let service = retrying(&background, &log, tx, statuses);
        let service = service.map_request(|request: Request<Incoming>| request.map(drop));
        let (client, server) = tokio::io::duplex(1024);
        let (io, service) = Tracker::new().track(TokioIo::new(server), TowerToHyperService::new(service));
        let server = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
        tokio::spawn(async { drop(server.await) });
        let (mut client, connection) = handshake(TokioIo::new(client)).await.unwrap();
        tokio::spawn(async { drop(connection.await) });
        let request = Request::builder().header("host", "test").body(Empty::<Bytes>::new()).unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), *statuses.last().unwrap());
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "body");
        for _ in statuses {
            let outcome = outcomes.recv().await.unwrap();
            assert_eq!((outcome.end, outcome.delivery), (End::Complete, Delivery::Flushed));
        }
        after_shutdown(&background).await;
        assert_eq!(log.entries(), expected);
    }
}
