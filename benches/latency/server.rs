//! The role of the child process: one variant behind a real socket.

use std::{
    io::{self, Read, Write},
    net::Ipv4Addr,
    thread,
};

use axum::{Router, routing::get, serve::ListenerExt};
use tokio::{net::TcpSocket, runtime};

use crate::latency::{BoxError, variants, work::Work};

/// With 128, a usual default, a burst of new connections loses SYNs, and the client sees 1 to 4 s of retransmits.
const BACKLOG: u32 = 4096;

/// Serves until standard input closes, which it does when the parent ends, however it ends.
pub(crate) fn serve(variant: &str, work: &str) -> Result<(), BoxError> {
    let variant = variants::named(variant).ok_or_else(|| format!("there is no variant `{variant}`"))?;
    let work: Work = work.parse()?;
    let mut builder = runtime::Builder::new_multi_thread();
    builder.worker_threads(cores()).enable_all();
    if variant.capped {
        builder.max_blocking_threads(cores());
    }
    let runtime = builder.build()?;
    thread::Builder::new().name("orphan guard".to_owned()).spawn(exit_with_parent)?;
    runtime.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let listener = socket.listen(BACKLOG)?;
        println!("{}", listener.local_addr()?);
        io::stdout().flush()?;
        let listener = listener.tap_io(|stream| {
            // Without it an answer may wait for the acknowledgement of the one before. Refused only by a closed socket.
            let _ = stream.set_nodelay(true);
        });
        let router = Router::new().route("/ping", get(|| async { "pong" })).merge((variant.job)(work));
        axum::serve(listener, router).await?;
        Ok(())
    })
}

/// How many jobs a variant with a cap runs at once, and how many threads the event loop has.
pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn exit_with_parent() {
    let mut ignored = [0; 64];
    while io::stdin().read(&mut ignored).is_ok_and(|count| count > 0) {}
    std::process::exit(0);
}
