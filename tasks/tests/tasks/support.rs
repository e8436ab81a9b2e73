//! Helpers: tasks that are held, and a store that fails on command.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use tokio::sync::{Semaphore, oneshot};
use tower_offload::{Background, ThreadPool};
use tower_offload_tasks::{
    AcceptError, Accepted, MemoryStore, Record, Retention, StoreError, TaskId, TaskStore, Tasks, Timestamp,
    store::{Epoch, Filter, Found, Lease, Listing, Op, Page, Process, StoreFuture, Swept, Written},
};

/// A timeout that no passing test reaches.
pub(crate) const LONG: Duration = Duration::from_secs(60);
pub(crate) const SHORT: Duration = Duration::from_millis(5);

pub(crate) fn background() -> Background {
    let pool = ThreadPool::builder().threads(2).build().unwrap();
    Background::builder().pool(pool).on_failure(|_| ()).build()
}

pub(crate) fn in_memory() -> Tasks {
    Tasks::new(MemoryStore::new())
}

pub(crate) fn done() -> Result<(), Infallible> {
    Ok(())
}

pub(crate) async fn record(tasks: &Tasks, id: TaskId) -> Record {
    tasks.get(id).await.unwrap().into_record().expect("the task is unknown")
}

/// Waits for the end of a task and returns its record.
pub(crate) async fn ended(tasks: &Tasks, id: TaskId) -> Record {
    let mut subscription = tasks.subscribe(id).await.unwrap().expect("the task is unknown");
    while subscription.changed().await.unwrap().is_some() {}
    subscription.record().clone()
}

/// A task whose closure blocks until the value is released or dropped.
pub(crate) struct Held {
    pub(crate) id: TaskId,
    release: mpsc::Sender<()>,
}

impl Held {
    pub(crate) fn release(self) {
        drop(self.release);
    }
}

pub(crate) async fn hold(tasks: &Tasks, background: &Background) -> Held {
    try_hold(tasks, background).await.unwrap()
}

pub(crate) async fn try_hold(tasks: &Tasks, background: &Background) -> Result<Held, AcceptError> {
    let (release, released) = mpsc::channel::<()>();
    let (enter, entered) = oneshot::channel();
    let work = move |_| {
        enter.send(()).unwrap();
        let _ = released.recv();
        done()
    };
    let accepted: Accepted = tasks.track("held").spawn_blocking(background, work).await?;
    entered.await.unwrap();
    Ok(Held { id: accepted.id(), release })
}

/// How the store responds to the next operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The batch is written, but the reply is an error.
    ReplyLost,
    /// The batch is written, but the reply is an error about a record, sent once writes are not
    /// held.
    ReplyWrong,
    DiskFull,
    /// Batches with a task named `poison` fail.
    Poisoned,
    Panics,
    Unavailable,
    Works,
}

/// A store in memory that fails on command and whose writes can be held.
#[derive(Clone)]
pub(crate) struct Failing {
    pub(crate) inner: MemoryStore,
    mode: Arc<Mutex<Mode>>,
    write_permit: Arc<Semaphore>,
    renew_every: Option<Duration>,
    writes: Arc<Mutex<Vec<usize>>>,
}

impl Failing {
    pub(crate) fn new() -> Self {
        Self {
            inner: MemoryStore::new(),
            mode: Arc::new(Mutex::new(Mode::Works)),
            write_permit: Arc::new(Semaphore::new(1)),
            renew_every: None,
            writes: Arc::default(),
        }
    }

    /// Has leases that must be renewed, like a store for many processes.
    pub(crate) fn leased(renew_every: Duration) -> Self {
        Self { renew_every: Some(renew_every), ..Self::new() }
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// Blocks all writes until the permit is dropped.
    pub(crate) async fn hold(&self) -> tokio::sync::OwnedSemaphorePermit {
        self.write_permit.clone().acquire_owned().await.unwrap()
    }

    /// Returns the sizes of all batches so far.
    pub(crate) fn batches(&self) -> Vec<usize> {
        self.writes.lock().unwrap().clone()
    }

    fn respond(&self, batch: &[Op]) -> Result<(), StoreError> {
        let mode = *self.mode.lock().unwrap();
        let is_poison = |op: &Op| match op {
            Op::Accept(record) | Op::Update(record) => record.name == "poison",
            _ => false,
        };
        match mode {
            Mode::ReplyLost | Mode::Unavailable => Err(StoreError::unavailable("the server has gone")),
            Mode::DiskFull => Err(StoreError::full(io::Error::from(io::ErrorKind::StorageFull))),
            Mode::Poisoned if batch.iter().any(is_poison) => Err(StoreError::other("invalid value")),
            Mode::Panics => panic!("in the store"),
            Mode::ReplyWrong | Mode::Poisoned | Mode::Works => Ok(()),
        }
    }
}

impl TaskStore for Failing {
    fn begin<'a>(&'a self, process: &'a Process) -> StoreFuture<'a, Lease> {
        Box::pin(async move {
            self.respond(&[])?;
            let mut lease = self.inner.begin(process).await?;
            lease.renew_every = self.renew_every;
            Ok(lease)
        })
    }

    fn renew(&self, epoch: Epoch) -> StoreFuture<'_, bool> {
        self.inner.renew(epoch)
    }

    fn end(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, ()> {
        self.inner.end(epoch, now)
    }

    fn write<'a>(&'a self, epoch: Epoch, batch: &'a [Op]) -> StoreFuture<'a, Vec<Written>> {
        Box::pin(async move {
            let is_wrong = *self.mode.lock().unwrap() == Mode::ReplyWrong;
            if is_wrong {
                self.inner.write(epoch, batch).await?;
            }
            let _permit = self.write_permit.acquire().await.unwrap();
            if is_wrong {
                return Err(StoreError::other("invalid value"));
            }
            let is_lost = *self.mode.lock().unwrap() == Mode::ReplyLost;
            if is_lost {
                self.inner.write(epoch, batch).await?;
            }
            self.respond(batch)?;
            self.writes.lock().unwrap().push(batch.len());
            self.inner.write(epoch, batch).await
        })
    }

    fn get(&self, id: TaskId) -> StoreFuture<'_, Found> {
        Box::pin(async move {
            self.respond(&[])?;
            self.inner.get(id).await
        })
    }

    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
        Box::pin(async move {
            self.respond(&[])?;
            self.inner.list(filter, page).await
        })
    }

    fn cancel_requests(&self, epoch: Epoch) -> StoreFuture<'_, Vec<TaskId>> {
        Box::pin(async move {
            self.respond(&[])?;
            self.inner.cancel_requests(epoch).await
        })
    }

    fn mark_lost(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, u64> {
        Box::pin(async move {
            self.respond(&[])?;
            self.inner.mark_lost(epoch, now).await
        })
    }

    fn sweep<'a>(&'a self, now: Timestamp, retention: &'a Retention) -> StoreFuture<'a, Swept> {
        Box::pin(async move {
            self.respond(&[])?;
            self.inner.sweep(now, retention).await
        })
    }
}
