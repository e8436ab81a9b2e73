//! Clients that are processes, and are stopped and killed.

use std::{io::Write, net::TcpStream};

use tower_offload::after_response::Delivery;

use super::{
    Server, connect,
    reader::{Pace, Reader},
};
use crate::support::within;

/// Fits the send buffer of the server, so it is flushed at once, and not the receive buffer of a
/// client.
const LARGE: usize = 60_000;

/// A server, and a client whose process reads at this pace.
fn start(pace: Pace) -> (Server, TcpStream, Reader) {
    let server = Server::start();
    let socket = connect(server.address);
    let reader = Reader::start(&socket, pace);
    (server, socket, reader)
}

async fn stopped() -> (Server, TcpStream, Reader) {
    let (server, socket, reader) = start(Pace::FAST);
    reader.stop().await;
    (server, socket, reader)
}

async fn get(server: &mut Server, mut socket: &TcpStream, length: usize) {
    write!(socket, "GET /{length} HTTP/1.1\r\nhost: site\r\n\r\n").unwrap();
    server.begun().await;
}

/// The receive buffer of its kernel has room.
#[tokio::test]
async fn kernel_of_a_stopped_process_acknowledges() {
    let (mut server, socket, reader) = stopped().await;
    get(&mut server, &socket, 5).await;
    assert_eq!(server.delivery().await, Delivery::Acknowledged);
    assert_eq!(reader.reported(), 0);
    assert!(reader.kill().await.is_empty(), "the process has read nothing");
}

#[tokio::test]
async fn large_response_to_a_stopped_process_waits_until_it_continues() {
    let (mut server, socket, mut reader) = stopped().await;
    get(&mut server, &socket, LARGE).await;
    server.has_no_outcome().await;
    assert_eq!(reader.reported(), 0);
    reader.resume();
    assert_eq!(server.delivery().await, Delivery::Acknowledged);
    within(reader.has_read(LARGE)).await;
    assert_eq!(server.counted(), (1, 0));
}

#[tokio::test]
async fn wait_for_a_stopped_process_ends_at_the_limit() {
    let (mut server, socket, _reader) = stopped().await;
    get(&mut server, &socket, LARGE).await;
    tokio::time::pause();
    assert_eq!(server.outcomes.recv().await, Some(("hook", Delivery::Flushed)));
    assert_eq!(server.counted(), (0, 1));
    tokio::time::resume();
}

/// The response does not fit the two buffers, so it is not flushed.
#[tokio::test]
async fn larger_response_to_a_stopped_process_is_handed_over() {
    let (mut server, socket, _reader) = stopped().await;
    get(&mut server, &socket, 16 << 20).await;
    tokio::time::pause();
    assert_eq!(server.outcomes.recv().await, Some(("hook", Delivery::HandedOver)));
    assert_eq!(server.counted(), (0, 0));
    tokio::time::resume();
}

#[tokio::test]
async fn process_killed_within_a_response_does_not_acknowledge_it() {
    let (mut server, socket, mut reader) = start(Pace { limit: 20_000, ..Pace::FAST });
    get(&mut server, &socket, 5).await;
    assert_eq!(server.delivery().await, Delivery::Acknowledged);
    get(&mut server, &socket, LARGE).await;
    within(reader.has_read(20_000)).await;
    drop(socket); // the process has the last reference to the connection
    assert_eq!(reader.kill().await.len(), 20_000);
    assert_eq!(server.delivery().await, Delivery::Flushed);
    assert_eq!(server.counted(), (1, 1));
}

/// The response does not fit the send buffer of the server.
#[tokio::test]
async fn process_killed_before_the_flush_leaves_the_response_undelivered() {
    let (mut server, socket, mut reader) = start(Pace { limit: 20_000, ..Pace::FAST });
    get(&mut server, &socket, 16 << 20).await;
    within(reader.has_read(20_000)).await;
    drop(socket);
    reader.kill().await;
    assert_eq!(server.delivery().await, Delivery::NotDelivered);
    assert_eq!(server.counted(), (0, 0));
}

/// It has read the response, and nothing of it waits in its kernel.
#[tokio::test]
async fn process_killed_after_the_response_has_acknowledged_it() {
    let (mut server, socket, mut reader) = start(Pace::FAST);
    get(&mut server, &socket, LARGE).await;
    within(reader.has_read(LARGE)).await;
    assert_eq!(server.delivery().await, Delivery::Acknowledged);
    reader.drain(&socket).await;
    drop(socket);
    assert!(reader.kill().await.ends_with(&vec![b'x'; LARGE]));
    assert_eq!(server.counted(), (1, 0));
}
