use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

#[cfg(unix)]
use tokio::signal::unix::{Signal as First, Signal as Second, SignalKind, signal};
#[cfg(windows)]
use tokio::signal::windows::{CtrlBreak as Second, CtrlC as First, ctrl_break, ctrl_c};

/// Returns a future that completes when the process is asked to end.
///
/// On Unix the signals are SIGINT (Ctrl-C) and SIGTERM, which service managers send; on Windows
/// they are Ctrl-C and Ctrl-Break. From this call on the signals no longer end the process by
/// themselves, even after the future was dropped (see [`tokio::signal`]). To wait for a second
/// signal, call this function again after the first.
///
/// ```no_run
/// # use axum::Router;
/// use tower_offload::axum::{serve, shutdown_signal};
///
/// # #[tokio::main]
/// # async fn main() -> std::io::Result<()> {
/// # let (listener, app) = (tokio::net::TcpListener::bind("127.0.0.1:3000").await?, Router::new());
/// serve(listener, app).with_graceful_shutdown(shutdown_signal()?).await
/// # }
/// ```
///
/// # Errors
///
/// Fails if the system does not let the process handle these signals.
///
/// # Panics
///
/// Panics outside a tokio runtime with I/O enabled.
pub fn shutdown_signal() -> io::Result<ShutdownSignal> {
    #[cfg(unix)]
    let (first, second) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    #[cfg(windows)]
    let (first, second) = (ctrl_c()?, ctrl_break()?);
    Ok(ShutdownSignal { first, second })
}

/// Completes when the process is asked to end. Returned by [`shutdown_signal`].
///
/// # Cancel safety
///
/// No signal is lost between polls. Dropping the future does not restore the default effect of the
/// signals.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct ShutdownSignal {
    first: First,
    second: Second,
}

impl Future for ShutdownSignal {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.first.poll_recv(cx).is_ready() || self.second.poll_recv(cx).is_ready() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}
