//! Random requests on many connections, from a seed. The test compares what each client received
//! with the outcomes: every response has exactly one, and it is correct.
//!
//! `TOWER_OFFLOAD_STRESS_SECONDS=60 cargo test --test flush stress -- --ignored` runs for 60
//! seconds.

mod http1;
mod http2;
mod ledger;
mod raw;

use std::time::Duration;

use tower_offload_tests::Random;

use self::ledger::Ledger;
use crate::support::{Http1, Http2, PLAIN_HTTP1, PLAIN_HTTP2, Setup, Stack, WIDE_WINDOW, within};

const CONNECTIONS: usize = 4;

/// Runs one server with several clients, and compares when all connections have closed. Returns the
/// number of responses.
async fn round(stack: Stack, seed: u64) -> usize {
    let mut random = Random::new(seed);
    let setup = Setup::on(stack);
    let mut site = if random.one_in(3) { setup.small_buffers().start() } else { setup.start() };
    let mut clients = tokio::task::JoinSet::new();
    for connection in 0..CONNECTIONS {
        let mut random = random.split();
        if stack.is_http2() {
            // With a window of 1000 bytes, hyper and h2 sometimes stall forever, even without this
            // crate.
            let stream = [20_000, 65_535, 200_000][connection % 3];
            let (io, _wire) = site.connect().await;
            clients.spawn(raw::play(io, connection, random.split(), stack));
            // Only a client that reads everything has a narrow window for the connection.
            let is_patient = connection == 1;
            let whole = if is_patient { 65_535 } else { WIDE_WINDOW };
            let client = Http2::with_windows(&site, stream, whole).await;
            clients.spawn(http2::play(client, connection, random, stack, is_patient));
        } else {
            clients.spawn(http1::play(Http1::connect_to_reset(&site).await, connection, random));
        }
    }
    let mut ledger = Ledger::default();
    while let Some(asked) = clients.join_next().await {
        ledger.ask(asked.unwrap());
    }
    site.shut_down();
    site.over().await;
    ledger.tell(site.records(site.registered()).await);
    ledger.settle(&format!("{stack:?}, seed {seed}"));
    assert!(site.unasked().is_empty());
    site.sure_stats();
    site.registered()
}

async fn rounds(seeds: impl Iterator<Item = u64>) -> usize {
    let mut responses = 0;
    for seed in seeds {
        for &stack in PLAIN_HTTP1.iter().chain(PLAIN_HTTP2).chain(&[Stack::TlsHttp1, Stack::TlsHttp2]) {
            responses += within(round(stack, seed)).await;
        }
    }
    responses
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_response_has_one_correct_outcome() {
    assert!(rounds(0..1).await > 1000);
}

/// With one thread the order of events is the same in each run.
#[tokio::test]
async fn every_response_has_one_correct_outcome_on_one_thread() {
    assert!(rounds(1..2).await > 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs for TOWER_OFFLOAD_STRESS_SECONDS seconds, by default 60"]
async fn every_response_has_one_correct_outcome_for_long() {
    let seconds = std::env::var("TOWER_OFFLOAD_STRESS_SECONDS").map_or(60, |seconds| seconds.parse().unwrap());
    let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let (mut seed, mut responses) = (100, 0);
    while tokio::time::Instant::now() < end {
        responses += rounds(seed..=seed).await;
        seed += 1;
    }
    println!("{responses} responses, seeds 100 to {}", seed - 1);
}
