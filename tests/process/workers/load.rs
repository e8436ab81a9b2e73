//! Reloads and kills under load.

use std::{
    collections::{BTreeMap, HashSet},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use tokio::time::Instant;

use super::program::{Program, Settings, read_response, send_signal, write_request};
use crate::support::PATIENCE;

const WORKERS: usize = 3;
const CLIENTS: usize = 8;

/// Requests of the clients.
#[derive(Debug, Default)]
struct Tally {
    /// Requests with a response.
    answered: u64,
    /// Connections of each worker.
    connections: BTreeMap<u32, u64>,
    refused: Vec<String>,
    /// Requests without a response, with the worker of the connection if it is known.
    lost: Vec<(Option<u32>, String)>,
}

/// Opens connections and sends two requests on each, unless the worker closes it after the first,
/// until `stop` is set. The first response names the worker.
fn run_client(address: SocketAddr, stop: &AtomicBool) -> Tally {
    let mut tally = Tally::default();
    while !stop.load(SeqCst) {
        let mut stream = match TcpStream::connect(address) {
            Ok(stream) => stream,
            Err(error) => {
                tally.refused.push(error.to_string());
                continue;
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut worker = None;
        for (path, connection) in [("/pid", "keep-alive"), ("/slow/1", "close")] {
            match write_request(&mut stream, path, connection).and_then(|()| read_response(&mut stream)) {
                Ok((body, is_last)) => {
                    tally.answered += 1;
                    if let Ok(pid) = body.parse() {
                        worker = Some(pid);
                        *tally.connections.entry(pid).or_default() += 1;
                    }
                    if is_last {
                        break;
                    }
                }
                Err(error) => {
                    tally.lost.push((worker, error.to_string()));
                    break;
                }
            }
        }
    }
    tally
}

/// Runs `act` while clients send requests.
fn under_load(address: SocketAddr, act: impl FnOnce()) -> Tally {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| run_client(address, &stop))).collect();
        act();
        stop.store(true, SeqCst);
        clients.into_iter().map(|client| client.join().unwrap()).fold(Tally::default(), |mut sum, tally| {
            sum.answered += tally.answered;
            for (pid, connections) in tally.connections {
                *sum.connections.entry(pid).or_default() += connections;
            }
            sum.refused.extend(tally.refused);
            sum.lost.extend(tally.lost);
            sum
        })
    })
}

fn reload_and_kill(reloads: usize, kills: usize) {
    let settings = Settings { workers: WORKERS, ..Settings::default() };
    let (program, address, mut pids) = Program::ready(&settings);

    let began = Instant::now();
    let tally = under_load(address, || {
        for _ in 0..reloads {
            program.signal(Signal::HUP);
            pids = (0..WORKERS).map(|_| program.next_ready()).collect();
            program.until("workers reloaded");
        }
    });
    println!("{reloads} reloads in {:?}: {} requests answered", began.elapsed(), tally.answered);
    if let (Some(min), Some(max)) = (tally.connections.values().min(), tally.connections.values().max()) {
        println!("connections of each of {} workers: {min} to {max}", tally.connections.len());
    }
    assert!(tally.answered > 0 && tally.refused.is_empty() && tally.lost.is_empty(), "{tally:?}");

    // Workers that were ready for a second, so that no slot backs off.
    let mut ready: Vec<_> = pids.into_iter().map(|pid| (pid, Instant::now())).collect();
    let mut killed = HashSet::new();
    let mut seed = u64::from(program.pid());
    let began = Instant::now();
    let tally = under_load(address, || {
        while killed.len() < kills {
            let stable: Vec<_> =
                (0..WORKERS).filter(|index| ready[*index].1.elapsed() > Duration::from_millis(1100)).collect();
            if stable.is_empty() {
                thread::sleep(Duration::from_millis(20));
                continue;
            }
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let index = stable[(seed >> 33) as usize % stable.len()];
            let (pid, _) = ready[index];
            send_signal(pid, Signal::KILL);
            killed.insert(pid);
            program.until(&format!("worker {pid} died (signal: 9"));
            ready[index] = (program.next_ready(), Instant::now());
        }
    });
    let Tally { answered, refused, lost, .. } = &tally;
    println!("{kills} kills in {:?}: {answered} requests answered, {} lost", began.elapsed(), lost.len());
    assert!(*answered > 0 && refused.is_empty(), "{tally:?}");
    // A request that is lost before the first response was with a worker that is not known.
    assert!(lost.iter().all(|(worker, _)| worker.is_none_or(|worker| killed.contains(&worker))), "{tally:?}");
    assert!(lost.len() <= kills * CLIENTS, "{tally:?}");

    program.signal(Signal::TERM);
    let (code, lines) = program.end();
    assert_eq!(code, Some(0));
    println!("{}", lines.last().unwrap());
}

#[test]
fn reloads_lose_nothing_and_kills_only_what_is_in_flight() {
    reload_and_kill(3, 3);
}

/// `cargo test -p tower-offload-tests --test process workers::load -- --ignored --nocapture`
#[test]
#[ignore = "takes minutes"]
fn hundred_reloads_and_kills() {
    reload_and_kill(100, 100);
}
