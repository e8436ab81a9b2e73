#[cfg(feature = "river")]
use std::sync::Weak;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, oneshot, watch},
    time::Instant,
};

use super::{
    Retention, StoreError, TaskId, TaskStore, Timestamp,
    ledger::{Effect, Ledger, Reply},
    live::Live,
    recorder,
    service::DEFAULT_MAX_STREAMS,
    store::Lease,
};
#[cfg(feature = "river")]
use super::{
    SqlStore,
    store::{Engine, StoreFuture},
};
use crate::{
    panic::contained,
    sync::{Mutex, lock},
};

/// Where wall-clock time comes from.
pub(super) type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// What the handles, the tasks and the recorder have in common.
pub(crate) struct Shared {
    pub(super) store: Arc<dyn TaskStore>,
    pub(super) retention: Retention,
    pub(crate) process: String,
    clock: Clock,
    state: Mutex<State>,
    /// Tells the recorder that there is something for it.
    pub(super) wake: Notify,
    /// Tells that everything is written and the recorder is done.
    pub(super) idle: Notify,
    /// Set once nobody is told anything any more that is still to come.
    streams_end: watch::Sender<bool>,
    /// A place for each stream that is open, and for each that waits.
    pub(super) streams: Arc<Semaphore>,
    #[cfg(feature = "river")]
    link: Link,
}

/// What ties `durable` to the tasks whose records its jobs have.
#[cfg(feature = "river")]
#[derive(Default)]
struct Link {
    engine: Option<Engine>,
    /// One for all that use the same store: of them only one may have a queue.
    forward: Arc<Mutex<Option<Weak<dyn Forward>>>>,
}

/// Hears at once that somebody in this process asks to cancel a job. Of others it hears by looking.
#[cfg(feature = "river")]
pub(crate) trait Forward: Send + Sync {
    /// Hands all requests on to the queue.
    fn cancel_requested(&self) -> StoreFuture<'_, ()>;

    /// Nothing of it goes on.
    fn is_over(&self) -> bool;
}

pub(super) struct State {
    pub(super) ledger: Ledger,
    pub(super) lease: Option<Lease>,
    /// Set while a recorder lives; whoever has something for it starts one if there is none.
    recording: bool,
    /// Nothing is accepted any more; the recorder ends when all is written.
    pub(super) closed: bool,
    /// The epoch is over, and no new one begins.
    pub(super) ended: bool,
    /// Who waits for the epoch to begin.
    waiting: Vec<Reply>,
}

/// How much later than it is said progress is written at the latest.
const PROGRESS_DELAY: Duration = Duration::from_millis(250);

impl Shared {
    pub(super) fn new(store: Arc<dyn TaskStore>, retention: Retention, process: String, clock: Clock) -> Self {
        let state = State {
            ledger: Ledger::default(),
            lease: None,
            recording: false,
            closed: false,
            ended: false,
            waiting: Vec::new(),
        };
        let (state, wake, idle) = (Mutex::new(state), Notify::new(), Notify::new());
        let (streams_end, streams) = (watch::Sender::new(false), Arc::new(Semaphore::new(DEFAULT_MAX_STREAMS)));
        Self {
            store,
            retention,
            process,
            clock,
            state,
            wake,
            idle,
            streams_end,
            streams,
            #[cfg(feature = "river")]
            link: Link::default(),
        }
    }

    #[cfg(feature = "river")]
    pub(super) fn with_engine(self, store: Option<SqlStore>) -> Self {
        match store {
            Some(store) => {
                let link = Link { engine: Some(store.engine().clone()), forward: store.forward().clone() };
                Self { link, ..self }
            }
            None => self,
        }
    }

    /// The database, if the records are in one.
    #[cfg(feature = "river")]
    pub(crate) fn engine(&self) -> Option<&Engine> {
        self.link.engine.as_ref()
    }

    /// `false` if there is another one that lives.
    #[cfg(feature = "river")]
    pub(crate) fn forward_to(&self, next: Weak<dyn Forward>) -> bool {
        let mut forward = lock(&self.link.forward);
        let is_free = forward.as_ref().and_then(Weak::upgrade).is_none_or(|forward| forward.is_over());
        if is_free {
            *forward = Some(next);
        }
        is_free
    }

    #[cfg(feature = "river")]
    pub(super) async fn cancel_requested(&self) -> Result<(), StoreError> {
        let forward = lock(&self.link.forward).as_ref().and_then(Weak::upgrade);
        match forward {
            Some(forward) => forward.cancel_requested().await,
            None => Ok(()),
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from((self.clock)())
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        let (value, left) = {
            let mut state = lock(&self.state);
            (look(&mut state), state.ledger.take_left())
        };
        left.into_iter().for_each(|entry| contained(|| drop(entry)));
        value
    }

    pub(super) fn live(&self, id: TaskId) -> Option<Arc<Live>> {
        self.with(|state| state.ledger.get(id).cloned())
    }

    /// A record has changed.
    pub(super) fn changed(self: &Arc<Self>, id: TaskId, can_wait: bool) {
        let at = if can_wait { Instant::now() + PROGRESS_DELAY } else { Instant::now() };
        self.with(|state| state.ledger.schedule(id, at));
        self.rouse();
    }

    /// Writes the record, and returns when it stands in the store.
    pub(super) async fn accept(self: &Arc<Self>, live: Arc<Live>) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.with(|state| match state.closed {
            true => Err(StoreError::unavailable("it is closed")),
            false => state.ledger.accept(live, reply, Instant::now()),
        })?;
        self.until(answer).await
    }

    /// Returns when the store was begun to be used, so that what a process before has left behind is known to be lost.
    pub(super) async fn begun(self: &Arc<Self>) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        let is_begun = self.with(|state| {
            let is_begun = state.lease.is_some() || state.ended;
            if !is_begun {
                state.waiting.push(reply);
            }
            is_begun
        });
        if is_begun { Ok(()) } else { self.until(answer).await }
    }

    async fn until(self: &Arc<Self>, answer: oneshot::Receiver<Result<(), StoreError>>) -> Result<(), StoreError> {
        if !self.rouse() {
            let error = StoreError::unavailable("there is no tokio runtime to write to it");
            self.abandon(&error, false);
            return Err(error);
        }
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Wakes the recorder, or starts one on the runtime of this thread. `false` if there is neither.
    pub(super) fn rouse(self: &Arc<Self>) -> bool {
        let runtime = Handle::try_current().ok();
        let starts = self.with(|state| {
            let starts = !state.recording && !state.ended && runtime.is_some();
            state.recording |= starts;
            starts
        });
        if let Some(runtime) = runtime.filter(|_| starts) {
            let recorder = recorder::Recorder::new(self.clone());
            contained(|| drop(runtime.spawn(recorder.run()))); // a runtime has hooks, which are foreign
        }
        self.wake.notify_one();
        self.with(|state| state.recording || state.ended)
    }

    /// There is no recorder, or none any more.
    pub(super) fn abandon(&self, error: &StoreError, was_recording: bool) {
        let (effects, waiting) = self.with(|state| {
            if was_recording {
                state.recording = false;
            } else if state.recording {
                return (Vec::new(), Vec::new());
            }
            (state.ledger.abandon(error, Instant::now()), std::mem::take(&mut state.waiting))
        });
        apply(effects);
        answer(waiting, || Err(error.again()));
        self.idle.notify_waiters();
    }

    /// The epoch has begun, or could not.
    pub(super) fn begins(&self, lease: Result<Lease, StoreError>) {
        let (effects, waiting) = self.with(|state| {
            let waiting = std::mem::take(&mut state.waiting);
            let effects = match &lease {
                Ok(lease) => {
                    state.lease = Some(*lease);
                    state.ledger.end_outage();
                    Vec::new()
                }
                Err(error) => state.ledger.begin_outage(error, Instant::now()),
            };
            (effects, waiting)
        });
        apply(effects);
        answer(waiting, || lease.as_ref().map(drop).map_err(StoreError::again));
    }

    /// Whether somebody waits for the epoch to begin.
    pub(super) fn is_awaited(&self) -> bool {
        self.with(|state| !state.waiting.is_empty())
    }

    /// Nothing is open, and nobody writes.
    pub(super) fn is_idle(&self) -> bool {
        self.with(|state| state.ended && !state.recording)
    }

    pub(super) fn close(self: &Arc<Self>) {
        self.with(|state| {
            state.closed = true;
            if !state.recording && state.lease.is_none() && state.ledger.is_empty() {
                state.ended = true; // it was never used
            }
        });
        self.rouse();
    }

    pub(super) fn end_streams(&self) {
        contained(|| _ = self.streams_end.send_replace(true)); // its wakers are foreign
    }

    /// Returns once streams are to end.
    pub(super) fn streams_end(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut streams_end = self.streams_end.subscribe();
        async move { drop(streams_end.wait_for(|ended| *ended).await) }
    }
}

pub(super) fn gone() -> StoreError {
    StoreError::unavailable("the runtime that wrote to it is gone")
}

pub(super) fn apply(effects: Vec<Effect>) {
    for effect in effects {
        match effect {
            Effect::Finish(live, ending) => live.finish(ending),
            Effect::Reply(reply, result) => contained(|| drop(reply.send(result))), // its waker is foreign
        }
    }
}

fn answer(waiting: Vec<Reply>, result: impl Fn() -> Result<(), StoreError>) {
    for reply in waiting {
        contained(|| drop(reply.send(result())));
    }
}
