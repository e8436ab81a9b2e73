//! Services, scripted bodies, and latches that hold work still.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, mpsc},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use tower::{Layer, ServiceExt, service_fn};
use tower_offload::{
    AfterResponse, AfterResponseLayer, Background, ThreadPool,
    after_response::{End, Outcome, ResponseBody},
    background::{BackgroundBuilder, BackgroundStats},
    pool::Inline,
};

/// Longer than any passing test takes.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) fn on_threads(threads: usize) -> BackgroundBuilder {
    Background::builder().pool(ThreadPool::builder().threads(threads).build().unwrap())
}

/// Returns a background whose pool has no threads: blocking work runs in the task that starts it.
pub(crate) fn on_no_thread() -> Background {
    Background::builder().pool(Inline::new()).build()
}

pub(crate) fn layer(background: &Background) -> AfterResponseLayer {
    AfterResponseLayer::new(background.clone())
}

/// Returns a layer for tests that only register hooks.
pub(crate) fn hooks_only() -> AfterResponseLayer {
    AfterResponseLayer::new(Background::default())
}

pub(crate) fn handle<B>(request: &Request<B>) -> AfterResponse {
    request.extensions().get::<AfterResponse>().expect("the layer is there").clone()
}

/// Sends one request through the layer.
pub(crate) async fn respond<B, E, Fut>(
    layer: &AfterResponseLayer,
    request: Request<()>,
    handler: impl FnOnce(AfterResponse) -> Fut,
) -> Result<Response<ResponseBody<B>>, E>
where
    B: Body,
    E: std::fmt::Display,
    Fut: Future<Output = Result<Response<B>, E>>,
{
    let mut handler = Some(handler);
    let handler = service_fn(move |request: Request<()>| handler.take().unwrap()(handle(&request)));
    layer.layer(handler).oneshot(request).await
}

/// Sends a request whose handler calls `handler` and responds with a small body.
pub(crate) async fn responded(
    background: &Background,
    handler: impl FnOnce(&AfterResponse),
) -> Response<ResponseBody<Script>> {
    let handler = async |after: AfterResponse| {
        handler(&after);
        Ok::<_, Infallible>(Response::new(Script::of(3)))
    };
    respond(&layer(background), Request::new(()), handler).await.unwrap()
}

/// Sends a request whose handler calls `handler`, and whose response has this status and this end.
pub(crate) async fn exchange(background: &Background, status: u16, end: End, handler: impl FnOnce(&AfterResponse)) {
    let handler = async |after: AfterResponse| {
        handler(&after);
        let body = match end {
            End::BodyError => Script::new([Step::Data(2), Step::Error("disk")]),
            _ => Script::new([Step::Data(2), Step::Data(1)]),
        };
        let length = if end == End::BodyTooShort { 5 } else { 3 };
        let response = Response::builder().status(status).header("content-length", length).body(body).unwrap();
        if end == End::HandlerError { Err("no") } else { Ok(response) }
    };
    let Ok(mut response) = respond(&layer(background), Request::new(()), handler).await else { return };
    match end {
        End::NoResponse => {}
        End::Aborted => drop(frame(response.body_mut())),
        _ => drop(read(response.body_mut())),
    }
}

/// A result of `poll_frame`.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Data(usize),
    Error(&'static str),
    Panic,
    Pending,
    Trailers(HeaderMap),
}

/// A body that returns these steps. It reports neither its length nor its end.
#[derive(Debug, Default)]
pub(crate) struct Script(VecDeque<Step>);

impl Script {
    pub(crate) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self(steps.into_iter().collect())
    }

    pub(crate) fn of(bytes: usize) -> Self {
        Self::new([Step::Data(bytes)])
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        Poll::Ready(match self.0.pop_front() {
            None => None,
            Some(Step::Data(bytes)) => Some(Ok(Frame::data(vec![b'.'; bytes].into()))),
            Some(Step::Error(error)) => Some(Err(error)),
            Some(Step::Panic) => panic!("in the body"),
            Some(Step::Pending) => return Poll::Pending,
            Some(Step::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
        })
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Polls a body once, like a connection, and returns the frame if there is one.
pub(crate) fn frame<B: Body + Unpin>(body: &mut B) -> Option<Frame<B::Data>> {
    body.frame().now_or_never().flatten()?.ok()
}

/// Polls a body until it ends, fails or is pending, and counts the frames.
pub(crate) fn read<B: Body + Unpin>(body: &mut B) -> usize {
    std::iter::from_fn(|| frame(body)).count()
}

/// Registers a hook that sends the outcome.
pub(crate) fn outcome_of(after: &AfterResponse) -> oneshot::Receiver<Outcome> {
    let (tx, rx) = oneshot::channel();
    after.hook(move |outcome| tx.send(outcome.clone()).unwrap());
    rx
}

/// A blocking task that runs until it is released or dropped.
pub(crate) struct Held {
    release: mpsc::Sender<()>,
}

impl Held {
    pub(crate) fn release(self) {
        drop(self.release);
    }
}

pub(crate) async fn hold(background: &Background) -> Held {
    let (entered, inside) = oneshot::channel();
    let (release, released) = mpsc::channel::<()>();
    let work = move || {
        entered.send(()).unwrap();
        released.recv().unwrap_or_default();
    };
    background.task("held").spawn_blocking(work).unwrap();
    inside.await.unwrap();
    Held { release }
}

/// Entries in the order in which they were added.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn add(&self, entry: impl ToString) {
        self.0.lock().unwrap().push(entry.to_string());
    }

    /// Returns work that adds an entry.
    pub(crate) fn adds(&self, entry: impl ToString) -> impl FnOnce() + Send + 'static {
        let (log, entry) = (self.clone(), entry.to_string());
        move || log.add(entry)
    }

    pub(crate) fn entries(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// Builds a background that logs its failures.
pub(crate) fn logging(builder: BackgroundBuilder) -> (Background, Log) {
    let log = Log::default();
    let failures = log.clone();
    (builder.on_failure(move |failure| failures.add(failure)).build(), log)
}

/// Panics, with the return type of a task.
#[track_caller]
pub(crate) fn panics(with: &str) {
    panic!("{with}");
}

/// Shuts down the background, and returns its counters since it was built.
pub(crate) async fn after_shutdown(background: &Background) -> BackgroundStats {
    let report = background.shutdown(LONG).await;
    assert!(report.still_running.is_empty(), "{report}");
    background.stats()
}
