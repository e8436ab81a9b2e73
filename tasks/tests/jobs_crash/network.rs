//! A network that hangs: the server waits for a process without noticing that it is unreachable.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// A proxy between processes and a server.
pub(crate) struct Network {
    pub(crate) url: String,
    state: State,
}

#[derive(Clone)]
struct State {
    /// Each connection hangs at its next commit of an update.
    armed: Arc<AtomicBool>,
    hanging: watch::Sender<usize>,
}

/// Number of connections of a process that update rows: for the leases of its tasks and of its
/// jobs, and for progress.
const CONNECTIONS: usize = 3;

impl Network {
    pub(crate) async fn to(server: &str) -> Self {
        let (credentials, rest) = server.split_once('@').unwrap();
        let (address, database) = rest.split_once('/').unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{credentials}@{}/{database}", listener.local_addr().unwrap());
        let state = State { armed: Arc::default(), hanging: watch::Sender::new(0) };
        tokio::spawn(accept(listener, address.to_owned(), state.clone()));
        Self { url, state }
    }

    /// Makes the network hang, and returns once each connection hangs within a transaction.
    pub(crate) async fn hang(&self) {
        self.state.armed.store(true, Ordering::SeqCst);
        self.state.hanging.subscribe().wait_for(|hanging| *hanging >= CONNECTIONS).await.unwrap();
    }
}

async fn accept(listener: TcpListener, server: String, state: State) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(&server).await.unwrap();
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        let updated = Arc::new(AtomicBool::new(false));
        tokio::spawn(forward(from_client, to_server, state.clone(), updated.clone()));
        tokio::spawn(backward(from_server, to_client, state.clone(), updated));
    }
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: State, updated: Arc<AtomicBool>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let is_commit = buffer[..length].windows(6).any(|window| window == b"COMMIT");
        if is_commit && updated.swap(false, Ordering::SeqCst) && state.armed.load(Ordering::SeqCst) {
            state.hanging.send_modify(|hanging| *hanging += 1);
            std::future::pending().await
        }
        state.pass().await;
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
    state.pass().await;
}

async fn backward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: State, updated: Arc<AtomicBool>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if buffer[..length].windows(9).any(|window| window == b"UPDATE 1\0") {
            updated.store(true, Ordering::SeqCst);
        }
        state.pass().await;
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
    state.pass().await;
}

impl State {
    /// Returns at once, or never if the network hangs. Then the end of a connection is not
    /// forwarded either.
    async fn pass(&self) {
        if *self.hanging.borrow() >= CONNECTIONS {
            std::future::pending().await
        }
    }
}
