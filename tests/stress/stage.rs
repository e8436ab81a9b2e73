//! Pools of every kind, and layers of every mode on them.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::runtime::Runtime;
use tower::{Layer, Service, ServiceExt};
use tower_offload::{
    CallError, OffloadLayer, ThreadPool,
    offload::{Offload, RejectFn},
    pool::{Pool, Rayon, TokioBlocking},
};

use tower_offload_tests::Random;

use crate::{
    job::{Request, Work},
    patience::Response,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Fixed,
    Growing,
    Rayon,
    Tokio,
}

pub(crate) const KINDS: [Kind; 4] = [Kind::Fixed, Kind::Growing, Kind::Rayon, Kind::Tokio];

/// Creates a pool. `TokioBlocking` uses the threads of `lender`.
pub(crate) fn pool(kind: Kind, random: &mut Random, lender: &Runtime) -> Arc<dyn Pool> {
    let threads = 1 + random.below(3);
    let capacity = random.pick(&[1, 4, 32, 1024]);
    let keep_alive = random.pick(&[Duration::ZERO, Duration::from_micros(100), Duration::from_millis(1)]);
    let builder = ThreadPool::builder().queue_capacity(capacity).max_threads(threads).keep_alive(keep_alive);
    match kind {
        Kind::Fixed => Arc::new(builder.name("fixed").min_threads(threads).build().unwrap()),
        Kind::Growing => Arc::new(builder.name("growing").min_threads(0).build().unwrap()),
        Kind::Rayon => {
            let rayon = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            Arc::new(Rayon::builder(rayon).queue_capacity(capacity).build())
        }
        Kind::Tokio => {
            let _inside = lender.enter();
            Arc::new(TokioBlocking::builder(threads).queue_capacity(capacity).build())
        }
    }
}

type Answering = RejectFn<fn(CallError) -> Result<u64, CallError>>;

/// Handles of a pool that a caller uses and drops.
#[derive(Debug, Clone)]
pub(crate) struct Surface {
    pool: Arc<dyn Pool>,
    services: Vec<Mode>,
}

#[derive(Debug, Clone)]
pub(crate) struct Mode {
    service: Offload<Work, Answering>,
    backpressure: bool,
}

impl Surface {
    pub(crate) fn new(pool: Arc<dyn Pool>) -> Self {
        let answer: fn(CallError) -> Result<u64, CallError> = Err;
        let layer = || OffloadLayer::new(pool.clone()).reject_with(answer);
        let long = Duration::from_secs(3600);
        let layers = [
            layer(),
            layer().detached(),
            layer().catch_panics().max_in_flight(3),
            layer().wait(long).max_in_flight(2),
            layer().wait(Duration::from_micros(500)).max_waiting(4),
            layer().wait(long).detached(),
        ];
        let mut services = Vec::from(layers.map(|it| Mode { service: it.layer(Work), backpressure: false }));
        let waiting = [layer().backpressure(), layer().backpressure().max_in_flight(2)];
        services.extend(waiting.map(|it| Mode { service: it.layer(Work), backpressure: true }));
        Self { pool, services }
    }

    /// Returns one of the layers, or sometimes the pool, to run a closure.
    pub(crate) fn choose(&self, random: &mut Random) -> Way {
        match self.services.get(random.below(self.services.len() + 2)) {
            Some(mode) => Way::Layer(mode.clone()),
            None => Way::Closure(self.pool.clone()),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Way {
    Closure(Arc<dyn Pool>),
    Layer(Mode),
}

impl Way {
    pub(crate) fn takes_futures(&self) -> bool {
        matches!(self, Self::Layer(_))
    }

    /// Makes the call now, or at the first poll with backpressure.
    pub(crate) fn call(self, request: Request) -> Response {
        match self {
            Self::Closure(pool) => Box::pin(pool.run(move || request.run())),
            Self::Layer(Mode { service, backpressure: true }) => Box::pin(service.oneshot(request)),
            Self::Layer(Mode { mut service, .. }) => {
                service.ready().now_or_never().unwrap().unwrap();
                Box::pin(service.call(request))
            }
        }
    }
}
