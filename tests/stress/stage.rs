//! A pool of some kind and size, and layers of every mode on it.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::runtime::Runtime;
use tower::{Layer, Service, ServiceExt};
use tower_offload::{
    OffloadLayer, Rejection, ThreadPool,
    offload::{Offload, RejectFn},
    pool::{Pool, Rayon, TokioBlocking, run},
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

/// `lender` is the runtime whose threads `TokioBlocking` borrows.
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
            Arc::new(Rayon::new(rayon).queue_capacity(capacity))
        }
        Kind::Tokio => {
            let _inside = lender.enter();
            Arc::new(TokioBlocking::new(threads).queue_capacity(capacity))
        }
    }
}

type Answering = RejectFn<fn(Rejection) -> Result<u64, Rejection>>;

/// What a caller has in hand: its drop is one of a pool's handles less.
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
        let answer: fn(Rejection) -> Result<u64, Rejection> = Err;
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

    /// One of the ways in: a mode of the layer, or now and then none, for a bare closure.
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

    /// Makes the call now; only with back-pressure it has to be polled first.
    pub(crate) fn call(self, request: Request) -> Response {
        match self {
            Self::Closure(pool) => Box::pin(run(pool, move || request.run())),
            Self::Layer(Mode { service, backpressure: true }) => Box::pin(service.oneshot(request)),
            Self::Layer(Mode { mut service, .. }) => {
                service.ready().now_or_never().unwrap().unwrap();
                Box::pin(service.call(request))
            }
        }
    }
}
