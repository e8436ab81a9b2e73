//! Ports that nothing else gets.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// A port of the loopback interface that the system gives to no other socket while this exists.
///
/// The socket of the reservation is bound and does not listen, so connections to the port are
/// refused. A program that sets `SO_REUSEADDR`, like most servers, may listen on it, and again
/// after it was killed. A port that was only free when the test looked may belong to another test
/// when the program starts, or after its end.
#[derive(Debug)]
pub struct ReservedPort {
    number: u16,
    _socket: TcpSocket,
}

impl ReservedPort {
    /// Reserves a port that the system chooses.
    ///
    /// # Panics
    ///
    /// Panics if the system has none.
    #[expect(clippy::new_without_default, reason = "each value is another port")]
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        Self { number: socket.local_addr().unwrap().port(), _socket: socket }
    }

    /// Returns the number of the port.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Returns the address, as `host:port`.
    pub fn address(&self) -> String {
        format!("{}:{}", Ipv4Addr::LOCALHOST, self.number)
    }
}
