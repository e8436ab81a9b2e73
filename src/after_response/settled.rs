use std::{
    mem,
    sync::{Arc, OnceLock},
};

use super::{
    driver::Driver,
    exchange::Exchange,
    mailbox::{Mailbox, Put},
    pending::SpawnContext,
};
use crate::{background::DrainGuard, sync::lock};

/// Settled exchanges whose hooks are due, which one driver drives in this order.
pub(super) struct Batch {
    pub(super) first: Arc<Exchange>,
    pub(super) later: Vec<Arc<Exchange>>,
}

/// A batch that a shutdown of the background waits for.
pub(super) struct DueBatch {
    pub(super) batch: Batch,
    pub(super) guard: DrainGuard,
}

impl DueBatch {
    fn new(batch: Batch, context: &SpawnContext) -> Self {
        Self { batch, guard: context.background.drain_guard() }
    }

    fn append(&mut self, batch: Batch) {
        self.batch.later.push(batch.first);
        self.batch.later.extend(batch.later);
    }
}

/// Starts the drivers of settled exchanges. Consecutive exchanges of the same runtime and
/// background share a driver, because a driver for each costs more than its hooks. The last driver
/// starts when this value is dropped.
#[derive(Default)]
pub(crate) struct SettledExchanges<'a> {
    /// `None` if the exchanges belong to no tracked connection.
    connection: Option<&'a ConnectionDriver>,
    batch: Option<(Target<'a>, Batch)>,
}

/// The driver that gets a batch.
enum Target<'a> {
    /// That of the connection.
    Connection(&'a ReusedDriver),
    /// A new one.
    New(SpawnContext),
}

impl Target<'_> {
    fn context(&self) -> &SpawnContext {
        match self {
            Self::Connection(driver) => &driver.context,
            Self::New(context) => context,
        }
    }
}

impl<'a> SettledExchanges<'a> {
    #[cfg(feature = "flush")]
    pub(crate) fn of(connection: &'a ConnectionDriver) -> Self {
        Self { connection: Some(connection), batch: None }
    }

    pub(super) fn push(&mut self, exchange: Arc<Exchange>) {
        let target = {
            let pending = lock(&exchange.pending);
            let Some(context) = pending.context() else { return }; // nothing was registered
            match &self.batch {
                Some((target, _)) if context.is_same(target.context()) => None,
                _ => Some(match self.connection.and_then(|connection| connection.driver(context)) {
                    Some(driver) => Target::Connection(driver),
                    None => Target::New(context.clone()),
                }),
            }
        };
        match (target, &mut self.batch) {
            (Some(target), _) => {
                self.start();
                self.batch = Some((target, Batch { first: exchange, later: Vec::new() }));
            }
            (None, Some((_, batch))) => batch.later.push(exchange),
            (None, None) => {}
        }
    }

    fn start(&mut self) {
        match self.batch.take() {
            None => {}
            Some((Target::Connection(driver), batch)) => driver.run(batch),
            Some((Target::New(context), batch)) => Driver::run(DueBatch::new(batch, &context), context.runtime),
        }
    }
}

impl Drop for SettledExchanges<'_> {
    fn drop(&mut self) {
        self.start();
    }
}

/// The driver that the responses of a tracked connection share, one flush after the other. Waking a
/// task costs less than spawning one.
///
/// It is spawned for the first hook or task, and ends when this value is dropped. In between it
/// takes every batch that comes while it is not running hooks. Other batches get a driver of their
/// own, so that a hook that blocks does not hold up the hooks of later responses.
#[derive(Default)]
pub(crate) struct ConnectionDriver(OnceLock<ReusedDriver>);

struct ReusedDriver {
    /// Runtime and background of the first batch. Others get drivers of their own.
    context: SpawnContext,
    mailbox: Arc<Mailbox<DueBatch>>,
}

impl ConnectionDriver {
    /// Returns the driver if it is for this runtime and background.
    fn driver(&self, context: &SpawnContext) -> Option<&ReusedDriver> {
        context.runtime.as_ref()?;
        let driver =
            self.0.get_or_init(|| ReusedDriver { context: context.clone(), mailbox: Arc::new(Mailbox::new()) });
        driver.context.is_same(context).then_some(driver)
    }
}

impl ReusedDriver {
    fn run(&self, batch: Batch) {
        let runtime = || self.context.runtime.clone();
        match self.mailbox.put(batch, |batch| DueBatch::new(batch, &self.context), DueBatch::append) {
            Put::Joined => {}
            Put::Wake(waker) => waker.wake(),
            Put::Start => Driver::serve(self.mailbox.clone(), runtime()),
            Put::Refused(batch) => Driver::run(DueBatch::new(batch, &self.context), runtime()),
        }
    }
}

impl Drop for ConnectionDriver {
    fn drop(&mut self) {
        if let Some(waker) = mem::take(&mut self.0).into_inner().and_then(|driver| driver.mailbox.close()) {
            waker.wake();
        }
    }
}

#[cfg(all(test, feature = "flush", not(tower_offload_loom)))]
mod tests;
