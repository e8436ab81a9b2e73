//! Work that runs after the response, once its body was flushed, if the connection can detect that.
//!
//! The layer gives each request a handle. Registered work runs when the outcome of the response is
//! known: *hooks* read the outcome, *tasks* are blocking or async work that
//! [`Background`](crate::Background) runs on its pool.
//!
//! ```
//! use std::time::Duration;
//! use http::{Request, Response, StatusCode};
//! use http_body_util::{BodyExt, Full};
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_offload::{
//!     AfterResponseLayer, Background,
//!     after_response::{AfterResponse, RegisterError},
//! };
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), RegisterError> {
//! async fn sign_up(request: Request<()>) -> Result<Response<Full<&'static [u8]>>, RegisterError> {
//!     let after: &AfterResponse = request.extensions().get().expect("the layer is there");
//!     // Work runs on the background's pool. If the background is full, this is an error before
//!     // anything was promised to the client.
//!     after.spawn_blocking(|| println!("send the mail, and take your time"))?;
//!     after.spawn(async { println!("build the index") })?;
//!     // A hook is short and reads how the response ended.
//!     after.hook(|outcome| println!("{} {}", outcome.end, outcome.delivery));
//!     Ok(Response::new(Full::default()))
//! }
//!
//! let background = Background::default();
//! let layer = AfterResponseLayer::new(background.clone());
//! let service = ServiceBuilder::new().layer(layer).service_fn(sign_up);
//! let response = service.oneshot(Request::new(())).await?;
//! # let _ = response.into_body().collect().await; // a server does this
//! let report = background.shutdown(Duration::from_secs(10)).await; // at shutdown
//! assert_eq!(report.completed, 2);
//! # Ok(())
//! # }
//! ```
//!
//! With every option:
//!
//! ```
//! # use std::time::Duration;
//! # use tower_offload::after_response::{AfterResponse, End, RegisterError};
//! # fn register(after: AfterResponse) -> Result<(), RegisterError> {
//! let mail = after.task("mail").timeout(Duration::from_secs(30)).stop_on_error();
//! mail.spawn_blocking(|| Err("no such address"))?;
//! after.task("count").always().concurrent(4).spawn_blocking(|| println!("for every outcome"))?;
//! let resume = after.task("resume").when(|outcome| outcome.end == End::Aborted);
//! resume.spawn(async { println!("keep the upload") })?;
//! after.task("mail").replace().spawn_blocking(|| println!("this one instead"))?;
//! assert_eq!(after.cancel("count"), 1);
//! # Ok(())
//! # }
//! ```
//!
//! # When work runs
//!
//! It depends on the connection, and [`Delivery`] says which case it was. On a tracked connection
//! (feature `flush`), work runs after the socket accepted and flushed every byte of
//! *this* response. On any other, it runs when the HTTP implementation has taken the last frame and
//! dropped the body, which is before the body is written. Neither means that the client received
//! anything.
//!
//! Work runs exactly once, however the response ends: its body ends, fails or is aborted, the
//! handler fails or panics, or the handler is dropped before it responds. The only exception is a
//! response that is leaked.
//!
//! # Which tasks run
//!
//! By default a task runs if the handler that registered it ended with a success: the status of its
//! response is below 400 and, if it is gRPC, its `grpc-status` is 0. Neither the state of the
//! connection nor what outer layers send instead matters: the mail must be sent even if the client
//! has disconnected. Other tasks are skipped. The background counts them, and with feature
//! `tracing` each emits an event.
//!
//! | the client leaves, or something fails | [`End`] | a task without condition |
//! |---|---|---|
//! | before the handler has responded, so that it is dropped | `NoResponse` | is skipped |
//! | the same, but the handler continues [on a pool](#on-a-pool) and succeeds | `NoResponse` | runs |
//! | the handler fails or panics | `HandlerError` | is skipped |
//! | a response below 400 is dropped before it is sent | `NoResponse` | runs |
//! | after the head of such a response | `Aborted` | runs |
//! | the body of such a response fails | `BodyError` | runs |
//! | either of these, for gRPC before its trailers | either | is skipped |
//! | an outer layer replaces such a response by an error | any | runs |
//! | an outer layer replaces an error by such a response | any | is skipped |
//!
//! [`always`](ResponseTaskBuilder::always), [`when`](ResponseTaskBuilder::when),
//! [`on_complete`](ResponseTaskBuilder::on_complete) and
//! [`on_flushed`](ResponseTaskBuilder::on_flushed) change the condition.
//!
//! Tasks of one request run one after the other, in the order of registration. A failure ends only
//! that task. Hooks run before them, the last one first.
//!
//! Hooks and tasks run in tasks of their own. They delay neither the connection nor its next
//! request.
//!
//! # On a pool
//!
//! A handler that runs on a pool can end after its client has left or a timeout has responded:
//! always if its [`OffloadLayer`](crate::OffloadLayer) is
//! [detached](crate::OffloadLayer::detached), and otherwise if it has begun and does not await. Its
//! tasks wait for its end and run if it succeeds, whether this layer is outside or inside of the
//! `OffloadLayer`. Outside, it learns the end from the `OffloadLayer`, if that rejects with
//! [`HttpReject`](crate::offload::HttpReject) or [`ProblemJson`](crate::offload::ProblemJson). With
//! another [strategy](crate::offload::Reject), add this layer inside.
//!
//! # Nested layers
//!
//! The outermost layer owns the response, and its background runs the tasks; inner layers use its
//! handle. A tracked connection is outside of every layer: it reports the end, and the outermost
//! layer runs the tasks. An untracked layer cannot see through outer layers that replace or buffer
//! the response, so add it outside of those layers.
//!
//! If an outer layer, such as a retry, replaces the response of an inner one, hooks and the other
//! conditions see the outcome of the response that was sent. The default condition depends on the
//! response of the handler, as the innermost of these layers or the pool sees it.
//!
//! # Shutdown
//!
//! Close the connections first, with a timeout, because `with_graceful_shutdown` alone waits for
//! every open request. Then [shut down](crate::Background::shutdown) the background: see
//! `examples/graceful_shutdown.rs`. The shutdown waits for every accepted task, also of responses
//! that are still open, and for hooks that are due. Without it, work that still runs at the end of
//! `main` is lost without a message.
//!
//! # In tests
//!
//! Read the body of the response to its end, as a client would, then shut down the background:
//! after that, everything that was registered has run. If the test still holds the response, the
//! shutdown waits for its tasks until the timeout, and cancels them. With a paused clock, give the
//! background [`Inline`](crate::pool::Inline) as its pool.
//!
//! # When not to use it
//!
//! For work that must survive a crash, or whose result the client asks for later, because nothing
//! is written down.

mod body;
mod driver;
mod exchange;
mod guard;
mod handle;
mod layer;
mod mailbox;
mod outcome;
mod pending;
mod progress;
mod run_queue;
mod service;
mod settled;
mod task;
mod task_target;

#[cfg(all(test, feature = "flush"))]
pub(crate) use self::exchange::testing::TestResponse;
pub(crate) use self::guard::OffloadedCall;
pub use self::{
    body::ResponseBody,
    handle::AfterResponse,
    layer::AfterResponseLayer,
    outcome::{Delivery, End, Outcome},
    service::{AfterResponseService, ResponseFuture},
    task::{RegisterError, ResponseTaskBuilder},
};
#[cfg(feature = "flush")]
pub(crate) use self::{
    exchange::{Exchange, FlushOutcome, FlushWaiter, Tracked},
    guard::{Guard, Observer},
    progress::RequestLine,
    settled::{ConnectionDriver, SettledExchanges},
};
