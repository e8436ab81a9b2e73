//! What a worker gets besides the job: the attempt, its limits, and the queue.

use std::{
    any::{Any, TypeId, type_name},
    collections::HashMap,
    fmt,
    ops::Deref,
    sync::{Arc, OnceLock},
    time::Duration,
};

use riverqueue::JobRow;
use tower_offload::pool::Deadline;

use super::{
    Enqueue, Job, Jobs,
    insert::{Prepared, owner, parent},
    queue::Queue,
    running::Claim,
    steps::Steps,
};
use crate::{
    AcceptError, Failure, Progress, TaskId,
    sync::{Mutex, lock},
};

/// The attempt that a worker runs, and what its work can do.
///
/// It is the second argument of a [worker](super::JobsBuilder::blocking_worker). It dereferences to
/// [`Progress`], so a function with a `&Progress` argument accepts a `&Context`. Clones are of the
/// same attempt.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use tower_offload_tasks::{Failure, jobs::{Context, Job}};
/// # #[derive(Serialize, Deserialize)]
/// # struct Order { id: u64 }
/// # impl Job for Order { const KIND: &'static str = "order"; }
/// # struct Payments;
/// # impl Payments { fn charge(&self, order: u64) -> Result<u64, String> { Ok(order) } }
/// fn order(order: Order, context: Context) -> Result<u64, Failure> {
///     let payments: &Payments = context.state();
///     let receipt = context.step("charge", || payments.charge(order.id))?;
///     context.set(0.5, format!("charged in attempt {} of {}", context.attempt(), context.max_attempts()));
///     Ok(receipt)
/// }
/// ```
///
/// Work in a [process](crate::jobs#processes) has the
/// [`Context`](tower_offload::process::Context) of its pool instead.
#[derive(Clone)]
pub struct Context {
    progress: Progress,
    inner: Arc<Inner>,
}

struct Inner {
    queue: Arc<Queue>,
    attempt: u32,
    max_attempts: u32,
    owner: Option<String>,
    parent: Option<TaskId>,
    timeout: Duration,
    /// Set when the work begins.
    deadline: OnceLock<Deadline>,
    steps: Steps,
    /// Jobs that are enqueued when this one succeeds. `None` once the attempt has ended.
    successors: Mutex<Option<Vec<Prepared>>>,
}

/// Maximum number of successors of a job. They are inserted in one transaction.
const MAX_SUCCESSORS: usize = 100;

impl Context {
    /// Creates the context of an attempt that was claimed from the queue, within a Tokio runtime.
    pub(super) fn claimed(
        progress: Progress,
        queue: Arc<Queue>,
        row: &JobRow,
        claim: &Claim,
        timeout: Duration,
    ) -> Self {
        let inner = Inner {
            queue,
            attempt: u32::try_from(row.attempt).unwrap_or_default(),
            max_attempts: u32::try_from(row.max_attempts).unwrap_or_default(),
            owner: owner(row),
            parent: parent(row),
            timeout,
            deadline: OnceLock::new(),
            steps: Steps::stored(row, claim),
            successors: Mutex::new(Some(Vec::new())),
        };
        Self { progress, inner: Arc::new(inner) }
    }

    /// Creates the context of a job that runs in this process, without the queue.
    pub(super) fn here(
        progress: Progress,
        queue: Arc<Queue>,
        owner: Option<String>,
        parent: Option<TaskId>,
        timeout: Duration,
    ) -> Self {
        let inner = Inner {
            queue,
            attempt: 1,
            max_attempts: 1,
            owner,
            parent,
            timeout,
            deadline: OnceLock::new(),
            steps: Steps::default(),
            successors: Mutex::new(Some(Vec::new())),
        };
        Self { progress, inner: Arc::new(inner) }
    }

    /// Records that the work begins.
    pub(super) fn begin(&self) {
        let _ = self.inner.deadline.set(Deadline::after(self.inner.timeout));
    }

    pub(super) fn queue(&self) -> &Arc<Queue> {
        &self.inner.queue
    }

    pub(super) fn steps(&self) -> &Steps {
        &self.inner.steps
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Returns a handle of the queue, to enqueue further jobs.
    ///
    /// It does not keep the queue alive: when the last handle of the application is dropped, the
    /// queue stops, and [`enqueue`](Jobs::enqueue) returns an error that
    /// [`is_closed`](crate::AcceptError::is_closed). The same holds for clones of this handle.
    ///
    /// A job that is enqueued here exists even if this attempt fails, and once more after each
    /// further attempt. [`then`](Self::then) enqueues a job only when this one succeeds, and a
    /// [step](Self::step) once.
    pub fn jobs(&self) -> Jobs {
        Jobs::without_owner(self.inner.queue.clone())
    }

    /// Enqueues a job if, and only if, this attempt succeeds. Returns its id.
    ///
    /// The job is inserted in the transaction that ends this one, so either both are committed or
    /// neither is, whenever the process crashes. If the attempt fails, is stopped or has lost its
    /// job, nothing is inserted, and the id never exists. This job is the
    /// [parent](Enqueue::parent) of the other one, which gets the [owner](Enqueue::owner) of this
    /// one unless it has one.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use tower_offload_tasks::{Failure, jobs::{Context, Job}};
    /// # #[derive(Serialize, Deserialize)]
    /// # struct Invoice { order: u64 }
    /// # impl Job for Invoice { const KIND: &'static str = "invoice"; }
    /// fn ship(order: u64, context: &Context) -> Result<(), Failure> {
    ///     context.then(context.jobs().enqueue(Invoice { order }))?;
    ///     Ok(()) // the end of this job and the other job are committed together
    /// }
    /// ```
    ///
    /// A job that [runs here](super::OrEnqueue) enqueues the other one when its work has succeeded,
    /// and then ends. If the process crashes in between, this job is lost, and the other one
    /// exists.
    ///
    /// # Errors
    ///
    /// Like [`Jobs::enqueue`], and if the job is [unique](Enqueue::unique), is one of more than
    /// 100, or belongs to another queue, or if this attempt has ended. A shutdown is no error.
    pub fn then<J: Job>(&self, job: Enqueue<'_, J>) -> Result<TaskId, AcceptError> {
        let own = &*self.inner;
        if !Arc::ptr_eq(job.queue, &own.queue) {
            let message = "a job and the one that it enqueues at its end must use the same queue";
            return Err(AcceptError::invalid("successor", message));
        }
        let job = job.prepare_successor(own.owner.as_deref(), self.id())?;
        let id = job.record.id;
        match &mut *lock(&own.successors) {
            Some(successors) if successors.len() < MAX_SUCCESSORS => successors.push(job),
            Some(_) => {
                let message =
                    format!("a job enqueues more than {MAX_SUCCESSORS} jobs at its end: enqueue them by further jobs");
                return Err(AcceptError::invalid("number of successors", message));
            }
            None => {
                let message = "the attempt that would enqueue another job has ended";
                return Err(AcceptError::invalid("successor", message));
            }
        }
        Ok(id)
    }

    /// Returns the jobs that are enqueued if the attempt has succeeded. It accepts no more.
    pub(super) fn take_successors(&self) -> Vec<Prepared> {
        lock(&self.inner.successors).take().unwrap_or_default()
    }

    /// Returns the number of this attempt, beginning with 1.
    pub fn attempt(&self) -> u32 {
        self.inner.attempt
    }

    /// Returns the maximum number of attempts. A failure of the last one is final.
    pub fn max_attempts(&self) -> u32 {
        self.inner.max_attempts
    }

    /// Returns the [owner](super::Enqueue::owner) of the job.
    pub fn owner(&self) -> Option<&str> {
        self.inner.owner.as_deref()
    }

    /// Returns the job that has enqueued this one, with [`then`](Self::then) or
    /// [`Enqueue::parent`](super::Enqueue::parent).
    pub fn parent(&self) -> Option<TaskId> {
        self.inner.parent
    }

    /// Returns when this attempt exceeds the timeout of its worker. From then on
    /// [`is_cancelled`](Progress::is_cancelled) is `true`. Before the work begins there is none.
    ///
    /// Calls of a pool within its [`scope`](Deadline::scope) end by then.
    pub fn deadline(&self) -> Deadline {
        self.inner.deadline.get().copied().unwrap_or(Deadline::NONE)
    }

    /// Returns the value that [`JobsBuilder::state`](super::JobsBuilder::state) was called with.
    ///
    /// # Panics
    ///
    /// Panics if the builder got no value of type `S`. The attempt then fails with class `panic`.
    #[track_caller]
    pub fn state<S: Send + Sync + 'static>(&self) -> &S {
        self.inner.queue.environment.state.get().unwrap_or_else(|| {
            let name = type_name::<S>();
            panic!("the job queue has no state of type `{name}`: pass a value of this type to `JobsBuilder::state`")
        })
    }
}

impl Deref for Context {
    type Target = Progress;

    fn deref(&self) -> &Progress {
        &self.progress
    }
}

impl From<Context> for Progress {
    fn from(context: Context) -> Self {
        context.progress
    }
}

/// The failure of work that could not enqueue a job, so that a worker can use `?` on it. Its class
/// is `not_accepted`.
impl From<AcceptError> for Failure {
    fn from(error: AcceptError) -> Self {
        // The error of the store is not for clients.
        let stored = error.store_error().map(|error| format!("job not accepted: {}", error.public_text()));
        Self::new("not_accepted", stored.unwrap_or_else(|| error.to_string()))
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("id", &self.id())
            .field("attempt", &self.attempt())
            .field("max_attempts", &self.max_attempts())
            .field("owner", &self.owner())
            .field("parent", &self.parent())
            .finish_non_exhaustive()
    }
}

/// Values of the application for its workers, at most one of each type.
#[derive(Default)]
pub(super) struct State(HashMap<TypeId, Box<dyn Any + Send + Sync>>);

impl State {
    /// Adds a value. Returns `false`, without a change, if there is one of this type.
    pub(super) fn add<S: Send + Sync + 'static>(&mut self, value: S) -> bool {
        let is_new = !self.0.contains_key(&TypeId::of::<S>());
        if is_new {
            self.0.insert(TypeId::of::<S>(), Box::new(value));
        }
        is_new
    }

    fn get<S: 'static>(&self) -> Option<&S> {
        self.0.get(&TypeId::of::<S>())?.downcast_ref()
    }
}
