use std::sync::{Arc, OnceLock};

#[cfg(feature = "flush")]
use tokio::time::Instant;

use super::{
    driver::Driver,
    exchange::Exchange,
    mailbox::{Mailbox, Put},
    pending::SpawnContext,
};
use crate::background::{Background, DrainGuard};

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
    fn new(batch: Batch, background: Background) -> Self {
        Self { batch, guard: background.into_drain_guard() }
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
    batch: Option<(SpawnContext, Batch)>,
    #[cfg(feature = "flush")]
    now: Option<Instant>,
}

impl<'a> SettledExchanges<'a> {
    #[cfg(feature = "flush")]
    pub(crate) fn of(connection: &'a ConnectionDriver) -> Self {
        Self { connection: Some(connection), batch: None, now: None }
    }

    /// Returns the time at which the exchanges settle. One reading of the clock serves all of them.
    #[cfg(feature = "flush")]
    pub(super) fn now(&mut self) -> Instant {
        *self.now.get_or_insert_with(Instant::now)
    }

    /// Adds an exchange with the context of its first registration.
    pub(super) fn push(&mut self, exchange: Arc<Exchange>, context: SpawnContext) {
        match &mut self.batch {
            Some((same, batch)) if context.is_same(same) => batch.later.push(exchange),
            _ => {
                self.start();
                self.batch = Some((context, Batch { first: exchange, later: Vec::new() }));
            }
        }
    }

    fn start(&mut self) {
        let Some((context, batch)) = self.batch.take() else { return };
        match self.connection.and_then(|connection| connection.driver(&context)) {
            Some(driver) => driver.run(batch, context),
            None => Driver::run(DueBatch::new(batch, context.background), context.runtime),
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
    /// Runs a batch of this context.
    fn run(&self, batch: Batch, SpawnContext { runtime, background }: SpawnContext) {
        let begin = |(batch, background)| DueBatch::new(batch, background);
        match self.mailbox.put((batch, background), begin, |due, (batch, _)| due.append(batch)) {
            Put::Joined => {}
            Put::Wake(waker) => waker.wake_by_ref(),
            Put::Start => Driver::serve(self.mailbox.clone(), runtime),
            Put::Refused((batch, background)) => Driver::run(DueBatch::new(batch, background), runtime),
        }
    }
}

impl Drop for ConnectionDriver {
    fn drop(&mut self) {
        if let Some(waker) = self.0.get().and_then(|driver| driver.mailbox.close()) {
            waker.wake_by_ref();
        }
    }
}

#[cfg(all(test, feature = "flush", not(tower_offload_loom)))]
mod tests;
