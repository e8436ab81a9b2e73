#![allow(clippy::unwrap_used)]
//! What the kernel reports, which the module relies on.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::{fd::AsFd, unix::net::UnixStream},
    thread,
};

use super::{linux::progress, *};

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0, client)
}

fn read(socket: &TcpStream) -> Progress {
    progress(socket.as_fd()).unwrap()
}

fn wait_until(socket: &TcpStream, condition: impl Fn(&Progress) -> bool) -> Progress {
    for _ in 0..10_000 {
        let progress = read(socket);
        if condition(&progress) {
            return progress;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("it stays {:?}", read(socket));
}

/// Writes until neither side's buffer has room. Returns the number of bytes.
fn fill(socket: &mut TcpStream) -> u64 {
    socket.set_nonblocking(true).unwrap();
    let mut written = 0;
    while let Ok(more) = socket.write(&[0; 64 * 1024]) {
        written += more as u64;
    }
    written
}

#[test]
fn written_bytes_are_acknowledged_by_the_kernel_of_a_client_that_does_not_read() {
    let (mut server, _client) = pair();
    server.write_all(&[0; 1000]).unwrap();
    assert_eq!(read(&server).written, 1000);
    let progress = wait_until(&server, |progress| progress.acknowledged == 1000);
    assert!(progress.round_trip > Duration::ZERO && !progress.is_closed, "{progress:?}");
}

#[test]
fn bytes_beyond_the_receive_buffer_are_acknowledged_when_the_client_reads() {
    let (mut server, mut client) = pair();
    let written = fill(&mut server);
    let progress = read(&server);
    assert_eq!(progress.written, written);
    assert!(progress.acknowledged < written, "{progress:?}");
    let mut received = vec![0; written as usize];
    client.read_exact(&mut received).unwrap();
    wait_until(&server, |progress| progress.acknowledged == written);
}

/// A reset clears the queue of the socket, which must not look like an acknowledgement.
#[test]
fn reset_acknowledges_nothing() {
    let (mut server, client) = pair();
    let written = fill(&mut server);
    // Unread bytes in its buffer make the kernel of the client reset the connection.
    drop(client);
    let progress = wait_until(&server, |progress| progress.is_closed);
    assert_eq!(progress.written, written);
    assert!(progress.acknowledged < written, "{progress:?}");
}

#[test]
fn end_of_the_stream_counts_as_one_byte_at_most() {
    let (mut server, client) = pair();
    server.write_all(&[0; 1000]).unwrap();
    server.shutdown(std::net::Shutdown::Write).unwrap();
    let progress = wait_until(&server, |progress| progress.acknowledged == progress.written);
    assert!((1000..=1001).contains(&progress.written), "{progress:?}");
    drop(client);
    assert!(!wait_until(&server, |progress| progress.is_closed).round_trip.is_zero());
}

#[test]
fn other_sockets_and_files_have_no_progress() {
    let (unix, _other) = UnixStream::pair().unwrap();
    assert_eq!(progress(unix.as_fd()), None);
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(progress(udp.as_fd()), None);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(progress(listener.as_fd()), None);
    let file = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(progress(file.as_fd()), None);
}
