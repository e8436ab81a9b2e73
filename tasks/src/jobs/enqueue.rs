use std::{
    fmt,
    pin::Pin,
    time::{Duration, SystemTime},
};

use tokio::sync::oneshot;

use super::{
    Durable, Job, Unique,
    group::{Request, nothing},
    kept,
    river::{Arguments, InsertError, InsertOpts, Inserted, Prepared, jiff},
    transaction::Transaction,
};
use crate::{
    AcceptError, Accepted, Json, Record, Status, StoreError, TaskId, Timestamp, panic::catch_unwind,
    track::validate_owner,
};

/// A job that is not enqueued yet: `.await` it, or give it to a [transaction](Self::tx). Made by [`Durable::enqueue`].
#[must_use = "a job is enqueued when this is awaited"]
pub struct Enqueue<'a, J> {
    durable: &'a Durable,
    job: J,
    owner: Option<String>,
    queue: &'a str,
    max_attempts: u16,
    delay: Option<Duration>,
    options: InsertOpts,
}

impl<'a, J: Job> Enqueue<'a, J> {
    pub(super) fn new(durable: &'a Durable, job: J) -> Self {
        Self {
            durable,
            job,
            owner: None,
            queue: J::QUEUE,
            max_attempts: J::MAX_ATTEMPTS,
            delay: None,
            options: InsertOpts::default(),
        }
    }

    /// Who may see it. Default: whoever knows the id.
    pub fn owner(self, owner: impl Into<String>) -> Self {
        Self { owner: Some(owner.into()), ..self }
    }

    /// In which queue it waits. Default: [`Job::QUEUE`].
    pub fn queue(self, queue: &'a str) -> Self {
        Self { queue, ..self }
    }

    /// How many times it may begin. Default: [`Job::MAX_ATTEMPTS`].
    pub fn max_attempts(self, attempts: u16) -> Self {
        Self { max_attempts: attempts, ..self }
    }

    /// 1 goes before 2, 3 and 4 of the same queue. Default: 1, as River's.
    pub fn priority(self, priority: u8) -> Self {
        Self { options: self.options.with_priority(priority.into()), ..self }
    }

    /// It begins no sooner than that; and then within some seconds, for River looks every five for what is due. A time that has come is as none.
    pub fn at(self, time: SystemTime) -> Self {
        let now = self.durable.shared().now();
        let millis = Timestamp::from(time).as_millis().saturating_sub(now.as_millis());
        self.delay(Duration::from_millis(millis))
    }

    /// As [`at`](Self::at), from now on.
    pub fn delay(self, delay: Duration) -> Self {
        Self { delay: Some(delay).filter(|delay| !delay.is_zero()), ..self }
    }

    /// Not if there is one like it: then that one's status is the answer, whatever became of it; or [`AcceptError::is_duplicate`], if that one is
    /// of another [owner](Self::owner), whose secret it is. The owner is no part of what makes two the same.
    pub fn unique(self, unique: Unique) -> Self {
        Self { options: self.options.with_unique(unique.into_options()), ..self }
    }

    /// Enqueues it in a transaction of the caller's: it is there if that commits, and never was if it does not.
    ///
    /// Only an id, for the transaction may still roll back. After the commit [`Tasks::accepted`](crate::Tasks::accepted) makes the 202 of it.
    ///
    /// # Errors
    ///
    /// As awaiting it; besides if the transaction is of another kind of database. Roll back then: part of it may have been written.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, part of it may have been written: roll back.
    pub async fn tx<T: Transaction>(self, transaction: &mut T) -> Result<TaskId, AcceptError> {
        let (durable, owner) = (self.durable, self.owner.clone());
        let job = self.prepare()?;
        let client = durable.shared().client().ok_or_else(AcceptError::closed)?;
        let inserted = transaction.insert(&client.river, &[&job]).await.map_err(InsertError::from)?.pop();
        Ok(admitted(inserted.ok_or_else(nothing)?, owner)?.id)
    }

    /// How long its worker in this process may take, if that one could as well do it without the queue.
    pub(super) fn limit_here(&self) -> Option<Duration> {
        let is_for_the_queue = self.options.unique().is_some() || self.delay.is_some();
        let worker = self.durable.shared().plan.worker::<J>().filter(|_| !is_for_the_queue);
        worker.map(|worker| worker.limit)
    }

    pub(super) fn into_parts(self) -> (&'a Durable, J, Option<String>) {
        (self.durable, self.job, self.owner)
    }

    fn prepare(self) -> Result<Prepared, AcceptError> {
        if self.durable.is_closed() {
            return Err(AcceptError::closed());
        }
        if let Some(owner) = &self.owner {
            validate_owner(owner)?;
        }
        let encoded = catch_unwind(|| Arguments::encode(&self.job)).map_err(|payload| {
            crate::panic::drop_payload(payload);
            AcceptError::content("writing it as JSON panicked")
        })?;
        let arguments =
            encoded.map_err(|error| AcceptError::content(format!("it cannot be written as JSON: {error}")))?;
        if arguments.get().len() > Json::MAX_BYTES {
            return Err(AcceptError::content(format!("its JSON is larger than {} bytes", Json::MAX_BYTES)));
        }
        kept::check(arguments.get()).map_err(AcceptError::content)?;
        let now = self.durable.shared().now();
        let mut record = Record::new(TaskId::generate(now).map_err(AcceptError::random)?, J::KIND, now);
        record.owner = self.owner;
        if !(1..=MOST_ATTEMPTS).contains(&self.max_attempts) {
            let why = format!("{} attempts are none or too many: it is 1 to {MOST_ATTEMPTS}", self.max_attempts);
            return Err(AcceptError::invalid(why));
        }
        let mut options = self.options.with_queue(self.queue).with_max_attempts(self.max_attempts.into());
        if let Some(delay) = self.delay {
            options = options.with_scheduled_at(after(now, delay));
        }
        Ok(Prepared { push: Arguments::<J>::push, arguments, options, record })
    }

    async fn insert(self) -> Result<Accepted, AcceptError> {
        let (durable, owner) = (self.durable, self.owner.clone());
        let job = self.prepare()?;
        let (reply, answer) = oneshot::channel();
        let request = Request { job, reply };
        let lanes = &durable.shared().inserts;
        let lane = if request.job.options.unique().is_some() { &lanes.unique } else { &lanes.plain };
        lane.send(request).await.map_err(|_| gone())?;
        let record = admitted(answer.await.map_err(|_| gone())??, owner)?;
        Ok(Accepted::new(Status::from(&record), durable.shared().tasks.location(record.id), false))
    }
}

/// A duplicate of somebody else's job is no answer: what becomes of it is not for this one to see.
fn admitted(inserted: Inserted, owner: Option<String>) -> Result<Record, AcceptError> {
    let Inserted { record, is_duplicate } = inserted;
    if is_duplicate && record.owner.is_some() && record.owner != owner {
        Err(AcceptError::duplicate())
    } else {
        Ok(record)
    }
}

fn gone() -> StoreError {
    StoreError::unavailable("the runtime on which the queue was opened has ended")
}

/// As many as River's table can count.
const MOST_ATTEMPTS: u16 = i16::MAX.unsigned_abs();
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
