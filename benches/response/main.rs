//! Measures the cost of the after-response layer and of tracked connections per response, compared
//! with the same server without them.
// Benchmarks measure real time, so the ban on the standard library's clock does not apply.
#![allow(clippy::disallowed_types)]

mod client;
mod report;
mod run;
mod server;

use std::{fmt, process::ExitCode, time::Duration};

use serde::{Deserialize, Serialize};
use tower_offload_benches::{Options, Row, Unit, child, interleave, platform::CountingAllocator};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The variant that the others are compared with.
const PLAIN: &str = "plain";

/// Timeout of a round. A round that takes longer has lost a response.
const TIMEOUT: Duration = Duration::from_secs(60);

/// One way to serve.
#[derive(Debug, Clone, Copy)]
struct Variant {
    name: &'static str,
    is_tracked: bool,
    has_layer: bool,
    registers: Registers,
}

/// The hook or task that the handler registers for each response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registers {
    Nothing,
    Hook,
    /// An async task on the runtime.
    AsyncTask,
    /// A blocking task on the pool of the background.
    BlockingTask,
}

const fn variant(name: &'static str, is_tracked: bool, has_layer: bool, registers: Registers) -> Variant {
    Variant { name, is_tracked, has_layer, registers }
}

const VARIANTS: &[Variant] = &[
    variant(PLAIN, false, false, Registers::Nothing),
    variant("layer", false, true, Registers::Nothing),
    variant("layer+hook", false, true, Registers::Hook),
    variant("tracked", true, false, Registers::Nothing),
    variant("tracked+layer", true, true, Registers::Nothing),
    variant("tracked+hook", true, true, Registers::Hook),
    variant("tracked+task", true, true, Registers::AsyncTask),
    variant("tracked+task/pool", true, true, Registers::BlockingTask),
];

/// How requests are sent. All are sent on one connection that stays open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Protocol {
    /// One after the other.
    #[serde(rename = "http1")]
    Http1,
    /// [`Self::concurrency`] requests in one write, and the next ones after all responses.
    #[serde(rename = "http1/pipelined")]
    Http1Pipelined,
    /// [`Self::concurrency`] streams, and the next ones after all responses.
    #[serde(rename = "http2")]
    Http2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Scene {
    protocol: Protocol,
}

/// The cost of one response in one round: server and client together.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Sample {
    cpu_ns: f64,
    wall_ns: f64,
    allocations: f64,
}

/// The lengths of the parts of one round of a protocol.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Phases {
    warm_up: Duration,
    /// The length of the part that counts allocations. It is not timed, because counting takes
    /// time.
    count: Duration,
    /// The length of one slice of a variant. Slices are short, so that disturbances affect all
    /// variants alike.
    slice: Duration,
    /// The number of slices of each variant.
    slices: usize,
}

/// The run that a child process performs. It measures all variants of a protocol in alternating
/// slices.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    protocol: Protocol,
    variants: Vec<String>,
    phases: Phases,
}

fn main() -> ExitCode {
    let mut options = Options::parse(
        "response",
        "Measures the cost of a response: plain, with the layer, tracked, with hooks and tasks",
    );
    if !options.filter.is_empty() {
        options.filter.push(PLAIN.to_owned());
    }
    let protocols = [Protocol::Http1, Protocol::Http1Pipelined, Protocol::Http2];
    let variants = |protocol| VARIANTS.iter().map(move |variant| Row::new(variant.name, Scene { protocol }));
    let rows = || protocols.into_iter().flat_map(variants).collect();
    options.run("response", rows, run::run, |rows| {
        let (rounds, phases) = if options.quick { (3, Phases::of(20, 5, 8)) } else { (15, Phases::of(50, 20, 30)) };
        interleave(rows, rounds, Unit::Scene, |scene, variants| {
            let variants = variants.iter().map(|name| (*name).to_owned()).collect();
            child::run(&Order { protocol: scene.protocol, variants, phases }, TIMEOUT)
        })?;
        Ok(report::text(rows, rounds, phases))
    })
}

impl Phases {
    const fn of(warm_up_ms: u64, count_ms: u64, slices: usize) -> Self {
        let ms = Duration::from_millis;
        Self { warm_up: ms(warm_up_ms), count: ms(count_ms), slice: ms(10), slices }
    }
}

impl Protocol {
    /// The number of requests in flight.
    fn concurrency(self) -> usize {
        match self {
            Self::Http1 => 1,
            Self::Http1Pipelined => 16,
            Self::Http2 => 32,
        }
    }
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.protocol {
            Protocol::Http1 => "http1",
            Protocol::Http1Pipelined => "http1/pipelined",
            Protocol::Http2 => "http2",
        };
        write!(f, "{name}, {} at once", self.protocol.concurrency())
    }
}
