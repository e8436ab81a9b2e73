//! A network that hangs: the server waits for a process, and nobody tells it that there is none.

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

/// Between processes and a server, until it hangs.
pub(crate) struct Network {
    pub(crate) url: String,
    wire: Wire,
}

#[derive(Clone)]
struct Wire {
    /// Hang at the next commit of an update, each connection by itself.
    armed: Arc<AtomicBool>,
    hanging: watch::Sender<usize>,
}

/// A process has three that update, each in its own time: the leases of its in-process tasks and of its jobs, and what jobs say of themselves.
const ALL: usize = 3;

impl Network {
    pub(crate) async fn to(server: &str) -> Self {
        let (credentials, rest) = server.split_once('@').unwrap();
        let (address, database) = rest.split_once('/').unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{credentials}@{}/{database}", listener.local_addr().unwrap());
        let wire = Wire { armed: Arc::default(), hanging: watch::Sender::new(0) };
        tokio::spawn(carry(listener, address.to_owned(), wire.clone()));
        Self { url, wire }
    }

    /// Returns when the network hangs, in the middle of everything that changes something.
    pub(crate) async fn hang(&self) {
        self.wire.armed.store(true, Ordering::SeqCst);
        self.wire.hanging.subscribe().wait_for(|hanging| *hanging >= ALL).await.unwrap();
    }
}

async fn carry(listener: TcpListener, server: String, wire: Wire) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(&server).await.unwrap();
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        let updated = Arc::new(AtomicBool::new(false));
        tokio::spawn(forward(from_client, to_server, wire.clone(), updated.clone()));
        tokio::spawn(back(from_server, to_client, wire.clone(), updated));
    }
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, wire: Wire, updated: Arc<AtomicBool>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let is_commit = buffer[..length].windows(6).any(|window| window == b"COMMIT");
        if is_commit && updated.swap(false, Ordering::SeqCst) && wire.armed.load(Ordering::SeqCst) {
            wire.hanging.send_modify(|hanging| *hanging += 1);
            std::future::pending().await
        }
        wire.pass().await;
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
    wire.pass().await;
}

async fn back(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, wire: Wire, updated: Arc<AtomicBool>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if buffer[..length].windows(9).any(|window| window == b"UPDATE 1\0") {
            updated.store(true, Ordering::SeqCst);
        }
        wire.pass().await;
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
    wire.pass().await;
}

impl Wire {
    /// Never returns once it hangs. Also not for an end: that would be a word that gets through.
    async fn pass(&self) {
        if *self.hanging.borrow() >= ALL {
            std::future::pending().await
        }
    }
}
