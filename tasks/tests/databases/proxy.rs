//! A proxy in front of a server, for outages of the network.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// Forwards connections to a server. Stops when dropped.
pub(crate) struct Proxy {
    mode: watch::Sender<Mode>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Forward,
    /// Connections are closed and refused.
    Refuse,
    /// Connections stay open, and nothing is forwarded.
    Hold,
}

impl Proxy {
    /// Returns a proxy to the server of this URL, and the URL of the proxy.
    pub(crate) async fn to(url: &str) -> (Self, String) {
        let (credentials, rest) = url.split_once('@').expect("the URL names a user");
        let (server, database) = rest.split_once('/').expect("the URL names a database");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mode = watch::Sender::new(Mode::Forward);
        let accepting = tokio::spawn(accept(listener, server.to_owned(), mode.clone()));
        (Self { mode, accepting }, format!("{credentials}@{address}/{database}"))
    }

    /// Closes all connections and refuses new ones.
    pub(crate) fn refuse(&self) {
        self.mode.send_replace(Mode::Refuse);
    }

    /// Forwards nothing, without closing a connection.
    pub(crate) fn hold(&self) {
        self.mode.send_replace(Mode::Hold);
    }

    /// Forwards again, also what was held.
    pub(crate) fn resume(&self) {
        self.mode.send_replace(Mode::Forward);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.mode.send_replace(Mode::Refuse);
    }
}

async fn accept(listener: TcpListener, server: String, mode: watch::Sender<Mode>) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let (server, mut mode) = (server.clone(), mode.subscribe());
        tokio::spawn(async move {
            let mut refused = mode.clone();
            tokio::select! {
                _ = refused.wait_for(|mode| *mode == Mode::Refuse) => {}
                () = async {
                    let _ = mode.wait_for(|mode| *mode == Mode::Forward).await;
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                    // The end of either direction ends the connection.
                    tokio::select! {
                        () = pump(from_client, to_server, mode.clone()) => {}
                        () = pump(from_server, to_client, mode.clone()) => {}
                    }
                } => {}
            }
        });
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mode: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let _ = mode.wait_for(|mode| *mode == Mode::Forward).await;
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
    let _ = mode.wait_for(|mode| *mode == Mode::Forward).await;
}
