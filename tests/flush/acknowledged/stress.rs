//! Clients that are slow, stopped and killed at random points, on each stack. The connection of
//! each is read by a process of its own. The test finds out exactly which responses the kernel of
//! the client had: it drops what arrives, waits until the process has read what is there, and then
//! kills the process, which resets the connection.

use std::{
    collections::HashSet,
    io::Read,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use tokio::{io::AsyncWriteExt, net::TcpSocket, task::JoinSet};
use tokio_rustls::rustls::ClientConnection;
use tower_offload::after_response::Delivery;
use tower_offload_tests::Random;

use super::{
    freeze,
    reader::{Pace, Reader},
};
use crate::support::{ALL, Setup, Stack, frames, tls};

/// The number of requests of a client: pipelined on HTTP/1, and concurrent on HTTP/2.
const REQUESTS: usize = 50;
const AT_ONCE: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_responses_are_in_the_kernel_of_the_client() {
    check(1).await;
}

/// 100 000 responses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn acknowledged_responses_are_in_the_kernel_of_the_client_long() {
    check(250).await;
}

/// Runs this number of clients on each stack.
async fn check(clients: usize) {
    let (mut outcomes, mut received, mut acknowledged, mut wrong) = (0, 0, 0, Vec::new());
    for (number, &stack) in ALL.iter().enumerate() {
        let round = round(stack, clients, number).await;
        println!("{stack:?}: {round:?}");
        outcomes += round.outcomes;
        received += round.received;
        acknowledged += round.acknowledged;
        wrong.extend(round.wrong.into_iter().map(|path| (stack, path)));
    }
    let requests = ALL.len() * clients * REQUESTS;
    println!(
        "{requests} requests: {outcomes} outcomes, {received} received, {acknowledged} acknowledged, {} wrong",
        wrong.len()
    );
    assert!(wrong.is_empty(), "acknowledged and not received: {wrong:?}");
    assert!(acknowledged > 0 && acknowledged < outcomes);
}

#[derive(Debug)]
struct Round {
    outcomes: usize,
    received: usize,
    acknowledged: usize,
    /// The paths of responses that were acknowledged and not received.
    wrong: Vec<String>,
}

async fn round(stack: Stack, clients: usize, seed: usize) -> Round {
    let setup = Setup::on(stack).registers(|after, _| _ = after.request_acknowledgement());
    let mut site = setup.start();
    let mut random = Random::new(seed as u64);
    let (mut received, mut playing) = (HashSet::new(), JoinSet::new());
    for number in 0..clients {
        if playing.len() == AT_ONCE {
            received.extend(playing.join_next().await.unwrap().unwrap());
        }
        playing.spawn(play(site.address(), stack, number, random.split()));
    }
    while let Some(paths) = playing.join_next().await {
        received.extend(paths.unwrap());
    }
    site.shut_down();
    site.over().await;

    let records = site.records(site.registered()).await;
    let is_acknowledged = |delivery| delivery == Delivery::Acknowledged;
    let acknowledged: Vec<_> = records.iter().filter(|record| is_acknowledged(record.delivery)).collect();
    let wrong = acknowledged.iter().map(|record| &record.path).filter(|path| !received.contains(*path));
    let stats = site.sure_stats();
    assert_eq!(stats.acknowledged, acknowledged.len() as u64, "{stats:?}");
    Round {
        outcomes: records.len(),
        received: received.len(),
        acknowledged: acknowledged.len(),
        wrong: wrong.cloned().collect(),
    }
}

/// Returns the paths whose responses the kernel of this client had completely.
async fn play(address: SocketAddr, stack: Stack, client: usize, mut random: Random) -> Vec<String> {
    let lengths: Vec<usize> = (0..REQUESTS).map(|_| random.pick(&[0, 10, 1000, 10_000, 100_000])).collect();
    let path = |number: usize| format!("/full/{}?{}", lengths[number], client * REQUESTS + number);
    let requests = (0..REQUESTS).map(|number| match stack.is_http2() {
        true => frames::get(stream_of(number), &path(number)),
        false => format!("GET {} HTTP/1.1\r\nhost: site\r\n\r\n", path(number)).into_bytes(),
    });
    let mut bytes = requests.collect::<Vec<_>>().concat();
    if stack.is_http2() {
        bytes = [frames::PREFACE, &frames::initial_window(0x7fff_ffff), &frames::wide_window(), &bytes].concat();
    }
    let is_slow = random.one_in(3);
    let (socket, session) = send(address, stack, &bytes, is_slow || random.one_in(2)).await;

    let pace = if is_slow { Pace { chunk: 2000, pause: Duration::from_micros(500), ..Pace::FAST } } else { Pace::FAST };
    let mut reader = Reader::start(&socket, pace);
    // Some clients are interrupted after a number of bytes, and some after a time.
    let total: usize = lengths.iter().sum();
    let part = if random.one_in(4) { total } else { random.below(total + 1) };
    let patience = Duration::from_millis(random.pick(&[10, 100, 1000]));
    let _ = tokio::time::timeout(patience, reader.has_read(part)).await;
    let is_stopped = random.one_in(2);
    if is_stopped {
        reader.stop().await;
        tokio::time::sleep(Duration::from_millis(random.below(20) as u64)).await;
    }

    freeze(&socket);
    if is_stopped {
        reader.resume();
    }
    // A segment that has passed the filter is received before `freeze` returns, or soon after.
    tokio::time::sleep(Duration::from_millis(5)).await;
    reader.drain(&socket).await;
    drop(socket); // the process has the last reference to the connection
    let received = match session {
        Some(session) => decrypt(session, &reader.kill().await),
        None => reader.kill().await,
    };
    complete(&received, stack, &lengths).into_iter().map(path).collect()
}

/// Opens a connection that is reset when it is closed, and sends these requests. Returns the
/// socket, and the session of TLS.
async fn send(
    address: SocketAddr,
    stack: Stack,
    requests: &[u8],
    has_small_buffer: bool,
) -> (TcpStream, Option<ClientConnection>) {
    let socket = TcpSocket::new_v4().unwrap();
    if has_small_buffer {
        socket.set_recv_buffer_size(8 * 1024).unwrap();
    }
    socket.set_zero_linger().unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    if !stack.is_tls() {
        stream.write_all(requests).await.unwrap();
        return (stream.into_std().unwrap(), None);
    }
    let protocol = if stack.is_http2() { "h2" } else { "http/1.1" };
    let mut stream = tls::connector(protocol).connect("localhost".try_into().unwrap(), stream).await.unwrap();
    stream.write_all(requests).await.unwrap();
    stream.flush().await.unwrap();
    let (stream, session) = stream.into_inner();
    (stream.into_std().unwrap(), Some(session))
}

/// Returns what the complete records in these bytes contain.
fn decrypt(mut session: ClientConnection, mut bytes: &[u8]) -> Vec<u8> {
    let mut received = Vec::new();
    loop {
        // It returns an error once everything was read.
        let _ = session.reader().read_to_end(&mut received);
        if bytes.is_empty() {
            return received;
        }
        session.read_tls(&mut bytes).unwrap();
        session.process_new_packets().unwrap();
    }
}

/// Returns the numbers of the responses that these bytes contain completely.
fn complete(mut received: &[u8], stack: Stack, lengths: &[usize]) -> Vec<usize> {
    if stack.is_http2() {
        let mut ends = frames::Ends::default();
        ends.pass(received);
        return (0..lengths.len()).filter(|number| ends.of(stream_of(*number)).is_some()).collect();
    }
    let mut number = 0;
    while let Some(head) = received.windows(4).position(|window| window == b"\r\n\r\n") {
        let Some(rest) = lengths.get(number).and_then(|length| received.get(head + 4 + length..)) else { break };
        received = rest;
        number += 1;
    }
    (0..number).collect()
}

/// The stream of the request with this number.
fn stream_of(number: usize) -> u32 {
    2 * u32::try_from(number).unwrap() + 1
}
