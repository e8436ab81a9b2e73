use std::{
    fmt,
    ops::RangeInclusive,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use riverqueue::{InsertOpts, jiff};
use tokio::sync::oneshot;
use tower_offload::background::Reservation;

use super::{
    Job, Jobs, TraceContext, Unique,
    client::{validate_kind, validate_max_attempts, validate_queue},
    insert::{Arguments, InsertRequest, Inserted, Prepared, Transaction, WRAPPER, canonical, parse_storable},
    maintenance::no_result,
    queue::{self, Queue},
    sequence::Keys,
};
use crate::{
    AcceptError, Accepted, Json, Record, Status, StoreError, TaskId, Timestamp,
    panic::{catch_unwind, drop_payload},
    track::validate_owner,
};

impl Jobs {
    /// Returns a builder that enqueues a job when it is awaited.
    ///
    /// When the future completes, the job and its record are committed. A process with a worker for
    /// the kind will run the job at least once. Jobs of concurrent callers share a transaction.
    ///
    /// # Errors
    ///
    /// The future returns an error if the arguments cannot be stored (no JSON form, too large, or
    /// with NUL), if an option is not valid, if the database fails, or if the queue is shutting
    /// down. If the connection fails during the commit, the job may run nevertheless. Callers that
    /// retry should make the job [unique](Enqueue::unique).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, the job may be enqueued or not.
    pub fn enqueue<J: Job>(&self, job: J) -> Enqueue<'_, J> {
        Enqueue::new(self.queue(), job)
    }
}

/// Configures a job before it is enqueued. Returned by [`Jobs::enqueue`].
///
/// `.await` enqueues the job. [`tx`](Self::tx) enqueues it in a transaction.
#[must_use = "a job is enqueued when this is awaited"]
pub struct Enqueue<'a, J> {
    pub(super) queue: &'a Arc<Queue>,
    pub(super) job: J,
    pub(super) owner: Option<String>,
    pub(super) parent: Option<TaskId>,
    queue_name: &'a str,
    max_attempts: u16,
    delay: Option<Duration>,
    trace: Option<TraceContext>,
    /// `true` if the arguments decide whether jobs are equal.
    is_by_content: bool,
    keys: Keys,
    options: InsertOpts,
}

/// The priorities of River.
const PRIORITIES: RangeInclusive<i16> = 1..=4;

impl<'a, J: Job> Enqueue<'a, J> {
    pub(super) fn new(queue: &'a Arc<Queue>, job: J) -> Self {
        Self {
            queue,
            job,
            owner: None,
            parent: None,
            queue_name: J::QUEUE,
            max_attempts: J::MAX_ATTEMPTS,
            delay: None,
            trace: None,
            keys: Keys::default(),
            is_by_content: false,
            options: InsertOpts::default(),
        }
    }

    /// Sets the owner, who may see the task. Default: everyone who knows the id may see it.
    pub fn owner(self, owner: impl Into<String>) -> Self {
        Self { owner: Some(owner.into()), ..self }
    }

    /// Sets the job that enqueues this one, which the status shows. Whoever may see the status of
    /// this job learns the id of that one. Default: none, or the job that
    /// [enqueues it at its end](super::Context::then).
    pub fn parent(self, id: TaskId) -> Self {
        Self { parent: Some(id), ..self }
    }

    /// Sets the queue. Default: [`Job::QUEUE`].
    pub fn queue(self, name: &'a str) -> Self {
        Self { queue_name: name, ..self }
    }

    /// Sets the maximum number of attempts. Default: [`Job::MAX_ATTEMPTS`].
    pub fn max_attempts(self, attempts: u16) -> Self {
        Self { max_attempts: attempts, ..self }
    }

    /// Sets the priority within the queue, from 1 (first) to 4. Default: 1, like in River.
    pub fn priority(self, priority: u8) -> Self {
        Self { options: self.options.with_priority(priority.into()), ..self }
    }

    /// Delays the job until `time`. It starts up to 5 seconds later, since scheduled jobs are
    /// polled. A time in the past has no effect.
    ///
    /// The delay until `time` is measured by the clock of this host, and from then on by that of
    /// the Postgres server, so clocks that differ do not shift it.
    pub fn at(self, time: SystemTime) -> Self {
        let now = self.queue.now();
        let millis = Timestamp::from(time).as_millis().saturating_sub(now.as_millis());
        self.delay(Duration::from_millis(millis))
    }

    /// Delays the job, like [`at`](Self::at).
    pub fn delay(self, delay: Duration) -> Self {
        Self { delay: Some(delay).filter(|delay| !delay.is_zero()), ..self }
    }

    /// Sets the trace context of the job. Default: that of the current span, if the queue has a
    /// [`Propagator`](super::JobsBuilder::propagator).
    ///
    /// A job that [runs here](super::OrEnqueue) belongs to the current span in any case.
    pub fn trace_context(self, context: TraceContext) -> Self {
        Self { trace: Some(context), ..self }
    }

    /// Skips the insertion if an equal job exists, and returns the status of that job.
    ///
    /// If that job has another [owner](Self::owner), the future returns an error with
    /// [`AcceptError::is_duplicate`]. The owner does not affect whether jobs are equal.
    pub fn unique(self, unique: Unique) -> Self {
        let is_by_content = unique.is_by_content;
        Self { options: self.options.with_unique(unique.into_options()), is_by_content, ..self }
    }

    /// Adds the job to a sequence. The jobs of one key run one at a time, in the order of their
    /// commits, and those of other keys in parallel. Default: no sequence.
    ///
    /// The order holds for all processes, kinds and queues, and for workers in
    /// [other languages](crate::jobs#workers-in-other-languages). A job that is retried or
    /// [delayed](Self::delay) holds its sequence until it has ended. The next one then runs whether
    /// it succeeded or not, unless it was enqueued with
    /// [`hold_on_failure`](Self::hold_on_failure). A job that has ended and is retried rejoins at
    /// the end. Within a sequence, [priorities](Self::priority) have no effect. A job that waits is
    /// `queued`.
    ///
    /// As for every job, two attempts can overlap if a process [stalls](crate::jobs#guarantees) for
    /// longer than its lease.
    ///
    /// The key has 1 to 255 bytes and no NUL. On Postgres, a [transaction](Self::tx) must be `READ
    /// COMMITTED`, which is the default. It waits for others only when it commits.
    pub fn sequence(self, key: impl Into<String>) -> Self {
        Self { keys: Keys { sequence: Some(key.into()), ..self.keys }, ..self }
    }

    /// Holds the [sequence](Self::sequence) if this job fails for good, or is cancelled or deleted
    /// while it is its turn: the next job does not run until the failed one is retried or
    /// [`Jobs::release_sequence`] is called. [`Jobs::blocked_sequences`] lists those that hold.
    /// Default: the sequence continues.
    pub fn hold_on_failure(self) -> Self {
        Self { keys: Keys { is_hold: true, ..self.keys }, ..self }
    }

    /// Runs the job only while fewer than `max` others with the same key are running, in all
    /// processes together. Default: no limit.
    ///
    /// Jobs are admitted in the order in which they were committed or became due. A job that waits
    /// for its next attempt for longer than 5 seconds does not count, and is admitted again when it
    /// is due, so jobs that fail do not block the others. If jobs of one key have different limits,
    /// that of the job that has waited for longest applies. A job of a
    /// [sequence](Self::sequence) waits for its turn first, and then for the limit.
    ///
    /// The limit is between 1 and 1000, and the key like that of a sequence.
    pub fn at_most(self, max: u32, key: impl Into<String>) -> Self {
        Self { keys: Keys { at_most: Some((max, key.into())), ..self.keys }, ..self }
    }

    /// Enqueues the job in a transaction of the application. The job exists if the transaction
    /// commits.
    ///
    /// The transaction must find the tables of this queue: it belongs to the database of the task
    /// store, and its search path starts with the same schema, unless the store has a
    /// [named schema](crate::SqlStoreBuilder::schema). No temporary table may hide them.
    ///
    /// The result is only an id, because the transaction can still roll back. After the commit use
    /// [`Tasks::accepted`](crate::Tasks::accepted) for the response.
    ///
    /// # Errors
    ///
    /// Like [`Jobs::enqueue`], and if the transaction belongs to another database or finds other
    /// tables. Roll the
    /// transaction back after an error, because a part of the job may be written.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, a part of the job may be written: roll back.
    pub async fn tx<T: Transaction>(self, transaction: &mut T) -> Result<TaskId, AcceptError> {
        let (queue, owner) = (self.queue, self.owner.clone());
        let job = self.prepare()?;
        let client = queue.first_client().await;
        let inserted = transaction.insert(&queue.environment.database, &client.river, &[&job]).await?.pop();
        Ok(visible_record(inserted.ok_or_else(no_result)?, owner)?.id)
    }

    /// Returns `true` if the job can run in this process, without the queue. A job of a paused kind
    /// waits in the queue.
    pub(super) fn can_run_here(&self) -> bool {
        let needs_queue = self.options.unique().is_some() || self.delay.is_some() || !self.keys.is_empty();
        !needs_queue && self.queue.plan.worker::<J>().is_some() && !self.queue.environment.paused.contains(J::KIND)
    }

    /// Limits a task that runs the job here to the timeout of its worker, unless that enforces it.
    pub(super) fn limit(&self, reservation: Reservation) -> Reservation {
        match self.queue.plan.worker::<J>().filter(|worker| !worker.enforces_timeout) {
            Some(worker) => reservation.default_timeout(worker.timeout),
            None => reservation,
        }
    }

    /// Validates and encodes the job, unless the queue is shut down.
    fn prepare(self) -> Result<Prepared, AcceptError> {
        if self.queue.is_closed() { Err(AcceptError::closed()) } else { self.encode() }
    }

    /// Validates and encodes the successor of another job, which is inserted also during a
    /// shutdown.
    pub(super) fn prepare_successor(self, owner: Option<&str>, parent: TaskId) -> Result<Prepared, AcceptError> {
        if self.options.unique().is_some() {
            let message =
                "a job that another one enqueues at its end cannot be unique: its end would wait for equal jobs";
            return Err(AcceptError::invalid("unique successor", message));
        }
        let owner = self.owner.or_else(|| owner.map(str::to_owned));
        Self { owner, parent: Some(parent), ..self }.encode()
    }

    /// Validates and encodes the job of a schedule.
    pub(super) fn prepare_tick(self, schedule: Arc<str>) -> Result<Prepared, AcceptError> {
        Ok(Prepared { schedule: Some(schedule), ..self.encode()? })
    }

    /// Validates and encodes the job. Later steps do not validate it again.
    fn encode(self) -> Result<Prepared, AcceptError> {
        if let Some(owner) = &self.owner {
            validate_owner(owner)?;
        }
        self.keys.validate()?;
        let invalid = |option| move |message: String| AcceptError::invalid(option, message);
        validate_kind(J::KIND).map_err(invalid("job kind"))?;
        validate_queue(self.queue_name).map_err(invalid("queue"))?;
        validate_max_attempts(J::KIND, self.max_attempts).map_err(invalid("maximum number of attempts"))?;
        if let Some(priority) = self.options.priority().filter(|priority| !PRIORITIES.contains(priority)) {
            let message = format!("the priority must be between 1 (first) and 4 (last), got {priority}");
            return Err(AcceptError::invalid("priority", message));
        }
        let encoded = catch_unwind(|| Arguments::encode(&self.job)).map_err(|payload| {
            drop_payload(payload);
            AcceptError::content("serializing the arguments panicked")
        })?;
        let arguments =
            encoded.map_err(|error| AcceptError::content(format!("the arguments have no JSON form: {error}")))?;
        let bytes = arguments.get().len();
        if bytes > Json::MAX_BYTES {
            let message = format!("the arguments have {bytes} bytes of JSON, at most {} are allowed", Json::MAX_BYTES);
            return Err(AcceptError::content(message));
        }
        parse_storable(arguments.get()).map_err(AcceptError::content)?;
        if arguments.get().starts_with(WRAPPER) {
            return Err(AcceptError::content("the first field of the arguments has a reserved name, rename it"));
        }
        let arguments = if self.is_by_content {
            canonical(&arguments).map_err(|error| AcceptError::content(error.to_string()))?
        } else {
            arguments
        };
        let now = self.queue.now();
        let mut record = Record::new(TaskId::generate(now).map_err(AcceptError::random)?, J::KIND, now);
        (record.owner, record.parent) = (self.owner, self.parent);
        let mut options = self.options.with_queue(self.queue_name).with_max_attempts(self.max_attempts.into());
        if let Some(delay) = self.delay {
            options = options.with_scheduled_at(after(now, delay));
        }
        let queue::Environment { counters, tracing, .. } = &*self.queue.environment;
        counters.names().add(J::KIND, J::QUEUE);
        let trace = self.trace.or_else(|| tracing.current());
        let (queue, delay) = (self.queue_name.to_owned(), self.delay);
        let keys = self.keys;
        Ok(Prepared {
            push: Arguments::<J>::push,
            arguments,
            options,
            queue,
            delay,
            trace,
            keys,
            schedule: None,
            record,
        })
    }

    async fn insert(self) -> Result<Accepted, AcceptError> {
        let (queue, owner) = (self.queue, self.owner.clone());
        let job = self.prepare()?;
        let (reply, response) = oneshot::channel();
        let is_unique = job.options.unique().is_some();
        let sender = if is_unique { &queue.inserts.unique } else { &queue.inserts.plain };
        sender.send(InsertRequest { job, reply }).await.map_err(|_| runtime_ended())?;
        let record = visible_record(response.await.map_err(|_| runtime_ended())??, owner)?;
        Ok(Accepted::new(Status::from(&record), queue.environment.tasks.location(record.id), false))
    }
}

/// Rejects a duplicate of a job with another owner, whose status this caller may not see.
fn visible_record(inserted: Inserted, owner: Option<String>) -> Result<Record, AcceptError> {
    let Inserted { record, is_duplicate } = inserted;
    if is_duplicate && record.owner.is_some() && record.owner != owner {
        Err(AcceptError::duplicate())
    } else {
        Ok(record)
    }
}

fn runtime_ended() -> StoreError {
    StoreError::unavailable("the runtime that started the job queue has ended")
}

/// Returns the time `delay` after `now`. Saturates at the latest time that River can represent.
fn after(now: Timestamp, delay: Duration) -> jiff::Timestamp {
    let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX).saturating_add(now.as_millis());
    i64::try_from(millis)
        .ok()
        .and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok())
        .unwrap_or(jiff::Timestamp::MAX)
}

impl<'a, J: Job> IntoFuture for Enqueue<'a, J> {
    type Output = Result<Accepted, AcceptError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.insert())
    }
}

impl<J: Job> fmt::Debug for Enqueue<'_, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enqueue")
            .field("kind", &J::KIND)
            .field("owner", &self.owner)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
