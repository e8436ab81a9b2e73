//! Clients that read slowly, freeze and reset at random points. Each finds out exactly which
//! responses its kernel had: it drops what arrives, reads what is there, and then resets.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, extract::Path, routing::get};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket},
    sync::oneshot,
    task::JoinSet,
};
use tower_offload::{
    AfterResponse, AfterResponseLayer, Background, after_response::Delivery, axum::serve, flush::Tracker,
};
use tower_offload_tests::Random;

use super::freeze;
use crate::support::PATIENCE;

const REQUESTS: u64 = 20;
const AT_ONCE: usize = 50;

type Outcomes = Arc<Mutex<HashMap<u64, Delivery>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_responses_are_in_the_kernel_of_the_client() {
    check(50).await;
}

/// 100 000 responses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn acknowledged_responses_are_in_the_kernel_of_the_client_long() {
    check(5000).await;
}

async fn check(connections: u64) {
    let outcomes = Outcomes::default();
    let (tracker, hooks) = (Tracker::new(), outcomes.clone());
    let handler = async move |after: AfterResponse, Path((id, length)): Path<(u64, usize)>| {
        assert!(after.request_acknowledgement());
        after.hook(move |outcome| assert!(hooks.lock().unwrap().insert(id, outcome.delivery).is_none()));
        vec![0_u8; length]
    };
    let background = Background::default();
    let app = Router::new().route("/{id}/{length}", get(handler)).layer(AfterResponseLayer::new(background.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server =
        serve(listener, app).tracker(&tracker).shutdown(async move { _ = stopped.await }, PATIENCE, &background);
    let server = tokio::spawn(server.into_future());

    let (mut received, mut clients) = (Vec::new(), JoinSet::new());
    for connection in 0..connections {
        if clients.len() == AT_ONCE {
            received.extend(clients.join_next().await.unwrap().unwrap());
        }
        clients.spawn(client(address, connection));
    }
    while let Some(ids) = clients.join_next().await {
        received.extend(ids.unwrap());
    }
    drop(stop);
    let report = server.await.unwrap();
    assert!(report.is_clean(), "{report}");

    let outcomes = outcomes.lock().unwrap();
    let acknowledged = outcomes.iter().filter(|(_, delivery)| **delivery == Delivery::Acknowledged).map(|(id, _)| *id);
    let acknowledged: Vec<_> = acknowledged.collect();
    let received: std::collections::HashSet<u64> = received.into_iter().collect();
    let wrong: Vec<_> = acknowledged.iter().filter(|id| !received.contains(id)).collect();
    println!(
        "{} requests: {} outcomes, {} received, {} acknowledged, {} wrong; {:?}",
        connections * REQUESTS,
        outcomes.len(),
        received.len(),
        acknowledged.len(),
        wrong.len(),
        tracker.stats()
    );
    assert!(wrong.is_empty(), "acknowledged and not received: {wrong:?}");
    assert!(!acknowledged.is_empty() && acknowledged.len() < outcomes.len());
    assert_eq!(tracker.stats().acknowledged, acknowledged.len() as u64);
}

/// Sends [`REQUESTS`] requests. Returns the numbers of the responses that its kernel had
/// completely.
async fn client(address: SocketAddr, connection: u64) -> Vec<u64> {
    let mut random = Random::new(connection + 1);
    let socket = TcpSocket::new_v4().unwrap();
    if random.one_in(2) {
        socket.set_recv_buffer_size(8 * 1024).unwrap();
    }
    socket.set_zero_linger().unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let (mut requests, mut lengths) = (String::new(), Vec::new());
    for number in 0..REQUESTS {
        let length = random.pick(&[0, 10, 1000, 10_000, 100_000]);
        lengths.push(length);
        requests += &format!("GET /{}/{length} HTTP/1.1\r\nhost: site\r\n\r\n", connection * REQUESTS + number);
    }
    stream.write_all(requests.as_bytes()).await.unwrap();

    // Reads a part, sometimes slowly, sometimes nothing.
    let total: usize = lengths.iter().sum();
    let part = random.below(total + 2000);
    let (is_slow, mut received) = (random.one_in(4), Vec::new());
    let mut buffer = vec![0; if is_slow { 2000 } else { 64 * 1024 }];
    if !random.one_in(5) {
        while received.len() < part {
            let read = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut buffer)).await;
            let Ok(Ok(read @ 1..)) = read else { break };
            received.extend(&buffer[..read]);
            if is_slow && random.one_in(10) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    tokio::time::sleep(Duration::from_micros(random.below(3000) as u64)).await;

    freeze(&stream);
    // A segment that has passed the filter is received before this returns, or soon after.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let socket = SockRef::from(&stream);
    socket.set_nonblocking(true).unwrap();
    while let Ok(read @ 1..) = std::io::Read::read(&mut &*socket, &mut buffer) {
        received.extend(&buffer[..read]);
    }
    drop(stream); // resets

    complete(&received, &lengths).map(|number| connection * REQUESTS + number as u64).collect()
}

/// Returns the numbers of the responses that these bytes contain completely.
fn complete(mut received: &[u8], lengths: &[usize]) -> impl Iterator<Item = usize> {
    let mut number = 0;
    while let Some(head) = received.windows(4).position(|window| window == b"\r\n\r\n") {
        let Some(rest) = lengths.get(number).and_then(|length| received.get(head + 4 + length..)) else { break };
        received = rest;
        number += 1;
    }
    0..number
}
