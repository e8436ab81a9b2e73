//! One round of a protocol, in a child process: all variants in alternating slices, each with its
//! own connection.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use tokio::{io::duplex, runtime};
use tower_offload_benches::{
    BoxError,
    platform::{self, CountingAllocator},
};

use crate::{
    Order, Protocol, Registers, Sample, VARIANTS, Variant,
    client::Client,
    server::{self, Completed},
};

/// The buffer of a connection in each direction; larger than everything that is in flight.
const BUFFER_BYTES: usize = 64 * 1024;

/// The number of responses between two reads of the clock. It is a multiple of every concurrency.
const BATCH: usize = 64;

/// Measures all variants of the order, and returns their samples in the same order.
pub(crate) fn run(order: Order) -> Result<Vec<Sample>, BoxError> {
    if let [core, ..] = platform::cores()[..] {
        // Pins before any other thread starts, because threads inherit the core.
        platform::pin(core)?;
    }
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut sides = Vec::new();
        for name in &order.variants {
            let variant = VARIANTS.iter().find(|it| it.name == name).ok_or("there is no such variant")?;
            sides.push(Side::new(variant, order.protocol).await?);
        }
        for side in &mut sides {
            side.exchange(order.phases.warm_up).await?;
            CountingAllocator::start();
            let responses = side.exchange(order.phases.count).await?;
            side.allocations = CountingAllocator::stop() as f64 / responses as f64;
        }
        let count = sides.len();
        for slice in 0..order.phases.slices {
            for position in 0..count {
                sides[(slice + position) % count].run_slice(order.phases.slice).await?;
            }
        }
        Ok(sides.iter().map(Side::sample).collect())
    })
}

/// A variant with its connection.
struct Side {
    protocol: Protocol,
    client: Client,
    /// The number of hooks or tasks that have run.
    completed: Completed,
    has_hook_or_task: bool,
    responses: u64,
    measured: u64,
    wall: Duration,
    cpu: Duration,
    /// Allocations per response.
    allocations: f64,
}

impl Side {
    async fn new(variant: &Variant, protocol: Protocol) -> Result<Self, BoxError> {
        let (client, server) = duplex(BUFFER_BYTES);
        let completed = Completed::default();
        server::start(variant, protocol, server, completed.clone())?;
        let side = Self {
            protocol,
            client: Client::new(protocol, client).await?,
            completed,
            has_hook_or_task: variant.registers != Registers::Nothing,
            // An HTTP/1 client has already sent one request, to determine the length of the
            // response.
            responses: u64::from(protocol != Protocol::Http2),
            measured: 0,
            wall: Duration::ZERO,
            cpu: Duration::ZERO,
            allocations: 0.0,
        };
        side.settle().await;
        Ok(side)
    }

    async fn run_slice(&mut self, length: Duration) -> Result<(), BoxError> {
        let (wall, cpu) = (Instant::now(), platform::cpu_time());
        self.measured += self.exchange(length).await?;
        let wall = wall.elapsed();
        self.wall += wall;
        // Uses the wall time on systems that do not report CPU time.
        self.cpu += platform::cpu_time().zip(cpu).map_or(wall, |(now, then)| now - then);
        Ok(())
    }

    /// Sends requests for `length`, but at least one batch, and returns the number of responses.
    async fn exchange(&mut self, length: Duration) -> Result<u64, BoxError> {
        let (before, start) = (self.responses, Instant::now());
        loop {
            for _ in 0..BATCH / self.protocol.concurrency() {
                self.client.exchange(self.protocol).await?;
            }
            self.responses += BATCH as u64;
            if start.elapsed() >= length {
                break;
            }
        }
        self.settle().await;
        Ok(self.responses - before)
    }

    /// Waits until the hook or task of each response has run, because it is part of the cost of a
    /// response.
    async fn settle(&self) {
        while self.has_hook_or_task && self.completed.load(Relaxed) < self.responses {
            tokio::task::yield_now().await;
        }
    }

    fn sample(&self) -> Sample {
        let per_response = |time: Duration| time.as_nanos() as f64 / self.measured as f64;
        Sample { cpu_ns: per_response(self.cpu), wall_ns: per_response(self.wall), allocations: self.allocations }
    }
}
