//! One round of a protocol, in a process of its own: all variants in turns, each with a connection that stays open. Both sides
//! of it.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{io::duplex, runtime};

use crate::{
    BoxError, alarm, child,
    client::Client,
    clock::{Reading, Spent},
    plan::{Phases, Protocol},
    platform::{self, Counting},
    rows::Sample,
    server::{self, Ran},
    variants::{self, Registers, Variant},
};

/// A round that takes longer has lost a response.
const PATIENCE_SECONDS: u32 = 60;

/// In each direction. More than all that is under way.
const TRANSPORT_BYTES: usize = 64 * 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    protocol: Protocol,
    variants: Vec<String>,
    phases: Phases,
    /// The variant whose turn is first.
    first: usize,
}

/// The parent's side. It sleeps meanwhile. Returns a sample for each variant, in their order.
pub(crate) fn run(
    variants: &[Variant],
    protocol: Protocol,
    phases: Phases,
    first: usize,
) -> Result<Vec<Sample>, BoxError> {
    let variants = variants.iter().map(|variant| variant.name.to_owned()).collect();
    child::run(&Order { protocol, variants, phases, first }, protocol)
}

/// The child's side.
pub(crate) fn obey(order: &str) -> Result<(), BoxError> {
    let order: Order = serde_json::from_str(order)?;
    alarm::end_after(PATIENCE_SECONDS);
    if let [core, ..] = platform::cores()[..] {
        platform::pin(core)?; // before any other thread, so that all are there
    }
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let samples = runtime.block_on(measure(&order))?;
    child::answer(&samples)
}

async fn measure(order: &Order) -> Result<Vec<Sample>, BoxError> {
    let Order { protocol, ref variants, phases, first } = *order;
    let mut sides = Vec::new();
    for name in variants {
        let variant = variants::named(name).ok_or_else(|| format!("there is no variant `{name}`"))?;
        sides.push(Side::new(variant, protocol).await?);
    }
    for side in &mut sides {
        side.exchange(phases.warm_up).await?;
        side.count(phases.count).await?;
    }
    let count = sides.len();
    for turn in 0..phases.turns as usize {
        for position in 0..count {
            sides[(first + turn + position) % count].measure(phases.turn).await?;
        }
    }
    Ok(sides.iter().map(Side::sample).collect())
}

/// A variant with its connection.
struct Side {
    protocol: Protocol,
    client: Client,
    ran: Ran,
    /// Whether something is to run after each response.
    registers: bool,
    responses: u64,
    measured: u64,
    spent: Spent,
    allocations: f64,
}

impl Side {
    async fn new(variant: &Variant, protocol: Protocol) -> Result<Self, BoxError> {
        let (client, server) = duplex(TRANSPORT_BYTES);
        let ran = Ran::default();
        server::start(variant, protocol, server, ran.clone())?;
        let client = Client::new(protocol, client).await?;
        let registers = variant.registers != Registers::Nothing;
        let mut side = Self {
            protocol,
            client,
            ran,
            registers,
            responses: 0,
            measured: 0,
            spent: Spent::default(),
            allocations: 0.0,
        };
        // HTTP/1 has learnt from a response how long one is.
        side.responses = u64::from(protocol != Protocol::Http2);
        side.settle().await;
        Ok(side)
    }

    async fn measure(&mut self, length: Duration) -> Result<(), BoxError> {
        let before = Reading::now();
        self.measured += self.exchange(length).await?;
        self.spent += before.spent();
        Ok(())
    }

    async fn count(&mut self, length: Duration) -> Result<(), BoxError> {
        Counting::start();
        let responses = self.exchange(length).await?;
        self.allocations = Counting::stop() as f64 / responses as f64;
        Ok(())
    }

    /// Until the time is over, and all is settled. Returns how many responses there were.
    async fn exchange(&mut self, length: Duration) -> Result<u64, BoxError> {
        /// Between two looks at the clock; a multiple of what any protocol has at once.
        const BATCH: usize = 64;
        let at_once = self.protocol.at_once();
        let (before, start) = (self.responses, Reading::now());
        // Once in any case: whoever was kept off the core for so long has measured nothing otherwise.
        loop {
            for _ in 0..BATCH / at_once {
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

    /// Until everything has run that is to run after a response: it is part of what a response costs.
    async fn settle(&self) {
        while self.registers && self.ran.load(Relaxed) < self.responses {
            tokio::task::yield_now().await;
        }
    }

    fn sample(&self) -> Sample {
        let per_response = |time: Duration| time.as_nanos() as f64 / self.measured as f64;
        Sample {
            cpu_ns: per_response(self.spent.cpu),
            wall_ns: per_response(self.spent.wall),
            allocations: self.allocations,
        }
    }
}
