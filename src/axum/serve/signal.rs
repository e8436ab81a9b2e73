use std::{
    future::poll_fn,
    io,
    pin::Pin,
    process,
    sync::{Once, mpsc},
    task::{Context, Poll},
    thread,
};

use tokio::runtime;
#[cfg(unix)]
use tokio::signal::unix::{Signal as First, Signal as Second, SignalKind, signal};
#[cfg(windows)]
use tokio::signal::windows::{CtrlBreak as Second, CtrlC as First, ctrl_break, ctrl_c};

/// Returns a future that completes when the process is asked to end. A second signal ends the
/// process at once.
///
/// On Unix the signals are SIGINT (Ctrl-C) and SIGTERM, which service managers send; on Windows
/// they are Ctrl-C and Ctrl-Break. From this call on the first signal no longer ends the process by
/// itself, even after the future was dropped (see [`tokio::signal`]).
///
/// Once a future has completed, any of these signals ends the process with the status with which it
/// would have ended without handling them (on Unix 128 plus the number of the signal, as shells
/// report it), so that Ctrl-C works while a shutdown waits or hangs. No destructor runs then. Use
/// [`tokio::signal`] itself to give a second signal another meaning.
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
#[track_caller]
pub fn shutdown_signal() -> io::Result<ShutdownSignal> {
    assert!(
        runtime::Handle::try_current().is_ok(),
        "`shutdown_signal` was called outside a tokio runtime: call it in an async function, or after `Runtime::enter`"
    );
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

impl ShutdownSignal {
    /// Completes with the status of a process that the signal has ended.
    fn poll_status(&mut self, cx: &mut Context<'_>) -> Poll<i32> {
        #[cfg(unix)]
        let (first, second) =
            (128 + SignalKind::interrupt().as_raw_value(), 128 + SignalKind::terminate().as_raw_value());
        #[cfg(windows)]
        let (first, second) = (CONTROL_C_EXIT, CONTROL_C_EXIT);
        if self.first.poll_recv(cx).is_ready() {
            Poll::Ready(first)
        } else if self.second.poll_recv(cx).is_ready() {
            Poll::Ready(second)
        } else {
            Poll::Pending
        }
    }
}

impl Future for ShutdownSignal {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_status(cx).map(|_| exit_at_the_next_signal())
    }
}

/// `STATUS_CONTROL_C_EXIT`.
#[cfg(windows)]
const CONTROL_C_EXIT: i32 = 0xc000_013a_u32 as i32;

/// Ends the process at the next signal.
///
/// A thread with a runtime of its own waits for it, because the runtime of the caller may be
/// blocked, which is a reason to press Ctrl-C again. This function returns when that thread
/// receives signals: one that came earlier would be lost. If the thread cannot be started, later
/// signals have no effect.
fn exit_at_the_next_signal() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        fn wait(starting: mpsc::Sender<()>) -> io::Result<()> {
            let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
            let status = runtime.block_on(async {
                let mut next = shutdown_signal()?;
                drop(starting);
                io::Result::Ok(poll_fn(|cx| next.poll_status(cx)).await)
            })?;
            #[cfg(feature = "tracing")]
            tracing::event!(tracing::Level::WARN, status, "ending the process, because of a second signal");
            process::exit(status)
        }
        let (starting, started) = mpsc::channel();
        let _ = thread::Builder::new().name("shutdown-signal".to_owned()).spawn(|| wait(starting));
        let _ = started.recv(); // returns when the sender is dropped, also if there is no thread
    });
}
