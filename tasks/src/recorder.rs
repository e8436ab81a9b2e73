use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{
    StoreError, TaskStore as _,
    progress::Report as _,
    shared::{Shared, apply, gone},
    store::{Lease, Process, StoreFuture, Written},
};
use crate::panic::{caught, contained, discard_payload, guarded};

/// The one that writes to the store: it takes all that has become due since it last did, in one batch.
pub(super) struct Recorder {
    shared: Arc<Shared>,
    renew_at: Option<Instant>,
    look_at: Option<Instant>,
    sweep_at: Instant,
    begin_at: Instant,
}

/// A bound by age is not urgent; one by count the stores may keep themselves.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// How long somebody in another process waits for a task to hear that it is to be cancelled.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const BEGIN_AGAIN: Duration = Duration::from_secs(1);

impl Recorder {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        Self { shared, renew_at: None, look_at: None, sweep_at: now, begin_at: now }
    }

    pub(super) async fn run(mut self) {
        loop {
            if self.is_done() {
                self.end().await;
                return;
            }
            let Some(lease) = self.lease().await else {
                self.wait(Some(self.begin_at)).await;
                continue;
            };
            if !self.renew(lease).await {
                continue;
            }
            self.look(lease).await;
            let wrote = self.write(lease).await;
            self.sweep().await;
            if !wrote {
                let due = self.shared.with(|state| state.ledger.next_due());
                let next = [due, self.renew_at, self.look_at, Some(self.sweep_at)];
                self.wait(next.into_iter().flatten().min()).await;
            }
        }
    }

    fn is_done(&self) -> bool {
        self.shared.with(|state| state.closed && state.ledger.is_empty())
    }

    async fn wait(&self, until: Option<Instant>) {
        let until = until.unwrap_or_else(|| Instant::now() + SWEEP_EVERY);
        let _ = timeout_at(until, self.shared.wake.notified()).await;
    }

    /// The epoch; it begins if there is none. `None` if that failed lately.
    async fn lease(&mut self) -> Option<Lease> {
        let lease = self.shared.with(|state| state.lease);
        if lease.is_some() || (self.begin_at > Instant::now() && !self.shared.is_awaited()) {
            return lease;
        }
        let process = Process::new(self.shared.process.clone(), self.shared.now());
        let lease = asked(|| self.shared.store.begin(&process)).await;
        let begun = lease.as_ref().ok().copied();
        if let Some(lease) = begun {
            self.renew_at = lease.renew_every.map(|every| Instant::now() + every);
            self.look_at = lease.renew_every.map(|_| Instant::now() + LOOK_EVERY);
        } else {
            self.begin_at = Instant::now() + BEGIN_AGAIN;
        }
        self.shared.begins(lease);
        begun
    }

    /// `false` if the epoch is over. What it had is fenced from now on, and known to be when it is written.
    async fn renew(&mut self, lease: Lease) -> bool {
        let is_due = self.renew_at.is_some_and(|at| at <= Instant::now());
        let Some(every) = lease.renew_every.filter(|_| is_due) else { return true };
        self.renew_at = Some(Instant::now() + every);
        let is_over = matches!(asked(|| self.shared.store.renew(lease.epoch)).await, Ok(false));
        if is_over {
            self.shared.with(|state| state.lease = None);
            self.begin_at = Instant::now();
        }
        !is_over
    }

    /// What others want to be cancelled.
    async fn look(&mut self, lease: Lease) {
        if self.look_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.look_at = Some(Instant::now() + LOOK_EVERY);
        if self.shared.with(|state| state.ledger.is_empty()) {
            return;
        }
        let requests = asked(|| self.shared.store.cancel_requests(lease.epoch)).await;
        for live in requests.into_iter().flatten().filter_map(|id| self.shared.live(id)) {
            if !live.is_unwanted() {
                live.cancel();
            }
        }
    }

    /// `false` if there was nothing to write.
    async fn write(&mut self, lease: Lease) -> bool {
        let batch = self.shared.with(|state| state.ledger.take(Instant::now()));
        if batch.is_empty() {
            return false;
        }
        let written = asked(|| self.shared.store.write(lease.epoch, &batch)).await;
        let written = match written {
            Ok(written) if written.len() != batch.len() => {
                Err(StoreError::other("it does not say what became of each record"))
            }
            written => written,
        };
        if written.as_ref().is_ok_and(|written| written.contains(&Written::Fenced)) && self.renew_at.is_some() {
            self.renew_at = Some(Instant::now()); // the epoch may be over, and the next can begin at once
        }
        if let Err(error) = &written {
            contained(|| error.report());
        }
        let effects = self.shared.with(|state| match &written {
            Ok(written) => state.ledger.settle(&batch, written),
            Err(error) => state.ledger.fail(error, Instant::now()),
        });
        apply(effects);
        true
    }

    async fn sweep(&mut self) {
        if self.sweep_at > Instant::now() {
            return;
        }
        let (now, retention) = (self.shared.now(), &self.shared.retention);
        let more = asked(|| self.shared.store.sweep(now, retention)).await.is_ok_and(|swept| swept.more);
        self.sweep_at = if more { Instant::now() } else { Instant::now() + SWEEP_EVERY };
    }

    async fn end(&self) {
        let lease = self.shared.with(|state| {
            state.ended = true;
            state.lease
        });
        if let Some(lease) = lease {
            let now = self.shared.now();
            let _ = asked(|| self.shared.store.end(lease.epoch, now)).await;
        }
    }
}

impl Drop for Recorder {
    /// It is done, or its runtime is gone: then whoever needs a recorder next starts one.
    fn drop(&mut self) {
        self.shared.abandon(&gone(), true);
    }
}

/// Asks the store, which is foreign code, and waits for its answer.
async fn asked<'a, T>(ask: impl FnOnce() -> StoreFuture<'a, T>) -> Result<T, StoreError> {
    let answered = match guarded(ask) {
        Ok(answer) => caught(answer).await,
        Err(payload) => Err(payload),
    };
    answered.unwrap_or_else(|payload| {
        discard_payload(payload);
        Err(StoreError::other("it panicked"))
    })
}
