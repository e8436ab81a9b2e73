//! Work that runs after the response: once the body has been flushed, or as late as the connection can tell.
//!
//! The layer gives each request a handle. What a handler registers with it runs when the outcome of its response is known:
//! *hooks* look at the outcome, *tasks* are work, sync or async, that [`Background`](crate::Background) runs.
//!
//! ```
//! use std::time::Duration;
//! use http::{Request, Response, StatusCode};
//! use http_body_util::{BodyExt, Full};
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_offload::{AfterResponseLayer, Background, after_response::{AfterResponse, Rejected}};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Rejected> {
//! async fn sign_up(request: Request<()>) -> Result<Response<Full<&'static [u8]>>, Rejected> {
//!     let after = request.extensions().get::<AfterResponse>().expect("the layer is there").clone();
//!     after.run(|| println!("send the mail, and take your time"))?; // blocking: on the background's pool
//!     after.spawn(async { println!("build the index") })?; // async: on the runtime
//!     after.hook(|outcome| println!("{} {}", outcome.end, outcome.delivery)); // short, sees how the response ended
//!     Ok(Response::new(Full::default())) // a full background is an `Err` above, before anything was promised
//! }
//!
//! let background = Background::default();
//! let service = ServiceBuilder::new().layer(AfterResponseLayer::new(background.clone())).service_fn(sign_up);
//! let response = service.oneshot(Request::new(())).await?;
//! # let _ = response.into_body().collect().await; // a server does this
//! let report = background.drain(Duration::from_secs(10)).await; // at shutdown
//! assert_eq!(report.completed, 2);
//! # Ok(())
//! # }
//! ```
//!
//! With every option:
//!
//! ```
//! # use std::time::Duration;
//! # use tower_offload::after_response::{AfterResponse, End, Rejected};
//! # fn register(after: AfterResponse) -> Result<(), Rejected> {
//! after.task("mail").timeout(Duration::from_secs(30)).stop_on_error().run(|| Err("no such address"))?;
//! after.task("count").always().concurrent(4).run(|| println!("whatever became of the response"))?;
//! after.task("resume").when(|outcome| outcome.end == End::Aborted).spawn(async { println!("keep the upload") })?;
//! after.task("mail").replace().run(|| println!("this one instead"))?;
//! assert_eq!(after.cancel("count"), 1);
//! # Ok(())
//! # }
//! ```
//!
//! # When
//!
//! As late as this connection can tell, and the [`Delivery`] says which it was. On a tracked connection (module `flush`, feature
//! `hyper`): after every byte of *this* response was accepted by the socket and flushed. On any other: when the HTTP
//! implementation has taken the last frame and dropped the body, which is before it is written. Neither means that the client has received anything.
//!
//! Exactly once, whatever happens: the end of the body, its error, an abort, an error or a panic of the handler, a handler
//! that is dropped before it responds. The one exception is a response that somebody leaks.
//!
//! # Which tasks run
//!
//! Those of a successful response: below 400, and with a `grpc-status` of 0 if it is gRPC; whatever became of the connection
//! after that, since a mail must go out although the phone has lost its signal. Others are skipped, and counted by
//! the background.
//!
//! | the client leaves, or something fails | [`End`] | a task without condition |
//! |---|---|---|
//! | before the handler has responded | `NoResponse` | is skipped |
//! | the handler fails or panics | `HandlerError` | is skipped |
//! | after the head of a response below 400 | `Aborted` | runs |
//! | the body of such a response fails | `BodyError` | runs |
//! | the same, and it is gRPC whose trailers have not come | either | is skipped |
//!
//! [`always`](Task::always), [`when`](Task::when), [`on_complete`](Task::on_complete) and
//! [`on_flushed`](Task::on_flushed) say otherwise.
//!
//! One request's tasks run one after the other, in the order of their registration; a failure ends that task only. Hooks run before
//! them, the last one first.
//!
//! Nothing of it is on the wire: tasks run in no poll and no drop of the connection's, delay no next request, and hold no connection.
//!
//! # The layer twice
//!
//! The outermost owns the response, and its background runs the tasks; inner ones use its handle. A tracked connection is further out than
//! every layer: it then tells the end, and the outermost layer runs the tasks. Outer layers that replace or buffer the response
//! are past what an untracked layer can see, so put it outside of those.
//!
//! Where a response of the layer's own service is replaced further out, as by a retry, hooks see what became of the one that went out;
//! tasks without a condition of their own are for the response of the handler that registered them, and skipped if that was an error.
//!
//! # At shutdown
//!
//! End the connections first, with a limit (`with_graceful_shutdown` alone waits for every open request, however long), and then
//! [drain](crate::Background::drain): see `examples/graceful_shutdown.rs`. A drain waits for tasks that have a place, also of responses that are
//! still open, and for hooks that are due. Without a drain what still runs at the end of `main` is lost, sync work without a word.
//!
//! # In tests
//!
//! Read the body of the response to its end, as a client would, and drain the background: then what was registered has run. A drain while
//! the test still holds the response waits for its tasks until the deadline, and cancels them. With a paused clock, give the background
//! [`Inline`](crate::pool::Inline) as its pool.
//!
//! # When not to use it
//!
//! For work that must survive a crash, or whose result the client asks for later: nothing is written down.

mod attempt;
mod body;
mod driver;
mod entry;
mod error;
mod exchange;
mod facts;
mod future;
mod guard;
mod handle;
mod layer;
mod observer;
mod outcome;
mod pending;
mod progress;
mod register;
mod service;
mod task;
mod tracked;
mod wire;

pub use self::{
    body::ResponseBody,
    error::Rejected,
    future::ResponseFuture,
    handle::AfterResponse,
    layer::AfterResponseLayer,
    outcome::{Delivery, End, Outcome},
    service::AfterResponseService,
    task::Task,
};
#[cfg(feature = "flush")]
pub(crate) use self::{
    exchange::Exchange,
    guard::Guard,
    observer::Observer,
    progress::RequestLine,
    tracked::Tracked,
    wire::{Verdict, Wire},
};
