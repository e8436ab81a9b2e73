use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tower_offload::axum::serve;

use super::{Wire, counting::Counting};

/// Small, so that a client that does not read soon stalls the server.
pub(crate) const SMALL_SEND_BUFFER: u32 = 16 * 1024;
pub(crate) const SMALL_RECEIVE_BUFFER: u32 = 8 * 1024;

/// The address of the client, and the counters of its socket.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    #[expect(dead_code, reason = "printed by failures")]
    address: SocketAddr,
    pub(crate) wire: Arc<Wire>,
}

impl Connected<IncomingStream<'_, CountingListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, CountingListener>) -> Self {
        stream.remote_addr().clone()
    }
}

impl Connected<serve::IncomingStream<'_, CountingListener>> for Peer {
    fn connect_info(stream: serve::IncomingStream<'_, CountingListener>) -> Self {
        stream.remote_addr().clone()
    }
}

/// Accepts sockets that count bytes.
pub(crate) struct CountingListener(TcpListener);

impl CountingListener {
    pub(crate) fn bind(small_buffers: bool) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        if small_buffers {
            socket.set_send_buffer_size(SMALL_SEND_BUFFER).unwrap(); // accepted sockets inherit it
        }
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        Self(socket.listen(128).unwrap())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

impl Listener for CountingListener {
    type Io = Counting<TcpStream>;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Peer) {
        let (stream, address) = self.0.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let wire = Arc::new(Wire::new());
        (Counting::new(stream, wire.clone()), Peer { address, wire })
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer { address: self.0.local_addr()?, wire: Arc::new(Wire::new()) })
    }
}
