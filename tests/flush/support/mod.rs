//! Servers, clients and latches. Nothing sleeps.

mod choppy;
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
pub(crate) mod tls;

use std::time::Duration;

use tower_offload::{Background, background::BackgroundStats};

pub(crate) use self::{
    choppy::{Chop, Choppy},
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

/// Timeout of a test. Longer than any passing test takes on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// Runs a test with a timeout.
pub(crate) async fn within<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, test).await.expect("the test hangs")
}

/// Runs a case on each stack in turn. A failure names the stack.
pub(crate) async fn on_each<F>(stacks: &[Stack], case: impl Fn(Stack) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    for &stack in stacks {
        if let Err(failure) =
            tokio::spawn(tokio::time::timeout(PATIENCE, case(stack))).await.map(|end| end.expect("the case hangs"))
        {
            panic!("on {stack:?}: {failure}");
        }
    }
}

/// Shuts down the background, and returns its counters.
pub(crate) async fn after_shutdown(background: &Background) -> BackgroundStats {
    let report = background.shutdown(PATIENCE).await;
    assert!(report.still_running.is_empty(), "{report}");
    background.stats()
}
