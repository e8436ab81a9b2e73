//! Servers, clients and latches. Nothing in here sleeps.

mod client;
mod counting;
mod events;
pub(crate) mod frames;
mod http1;
mod http2;
mod latch;
mod listener;
mod script;
mod service;
mod setup;
mod site;
mod stack;
mod tls;

use std::time::Duration;

use tower_offload::{Background, background::Stats};

pub(crate) use self::{
    client::Client,
    counting::Wire,
    events::Record,
    http1::Http1,
    http2::{Http2, WIDE_WINDOW, drain, read},
    latch::{Door, Latch},
    listener::Peer,
    setup::Setup,
    site::{Connection, Site},
    stack::{ALL, HTTP1, HTTP2, PLAIN_HTTP1, PLAIN_HTTP2, Stack},
};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Longer than any test takes on a slow machine; a test that hangs fails after it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Bounds a test.
pub(crate) async fn within<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, test).await.expect("the test hangs")
}

/// One case, on each of these stacks in turn. A failure says on which.
pub(crate) async fn on_each<F>(stacks: &[Stack], case: impl Fn(Stack) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    for &stack in stacks {
        if let Err(failure) =
            tokio::spawn(tokio::time::timeout(PATIENCE, case(stack))).await.map(|end| end.expect("it hangs"))
        {
            panic!("on {stack:?}: {failure}");
        }
    }
}

/// Waits until every task is over, and tells what was done since the beginning.
pub(crate) async fn drained(background: &Background) -> Stats {
    let report = background.drain(PATIENCE).await;
    assert!(report.still_running.is_empty(), "{report}");
    background.stats()
}
