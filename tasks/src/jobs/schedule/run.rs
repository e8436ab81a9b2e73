//! Enqueues the jobs of schedules.
//!
//! Each schedule has a row with its latest tick. A process computes which ticks are due after that
//! one by the database's clock, and one transaction advances the row and inserts the jobs. It has
//! no effect if another process has advanced the row, so there is no leader, and a crash at any
//! moment neither loses a tick nor repeats one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use riverqueue::jiff;
use tokio::time::sleep;

use super::Schedule;
use crate::{
    AcceptError, StoreError, Timestamp,
    jobs::{
        Enqueue, Job,
        client::{validate_kind, validate_max_attempts, validate_queue},
        events::warn,
        insert::Prepared,
        queue::Queue,
    },
    panic::{catch_unwind, drop_payload},
};

/// A schedule and its jobs.
pub(in crate::jobs) struct ScheduledJob {
    pub(in crate::jobs) name: Arc<str>,
    schedule: Schedule,
    prepare: Prepare,
    /// `true` while the latest tick is later than the database's clock.
    is_ahead: AtomicBool,
}

/// Creates the job of a tick.
type Prepare = Box<dyn Fn(&Arc<Queue>, Timestamp) -> Result<Prepared, AcceptError> + Send + Sync>;

/// Interval at which the database's clock is read although no tick is due, because it may be set.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Minimum time between two looks: the clocks of the process and the database may differ in speed.
const MIN_WAIT: Duration = Duration::from_millis(5);
const RETRY_DELAY: Duration = Duration::from_secs(1);
const MAX_NAME_BYTES: usize = 100;
/// Difference between the latest tick and the database's clock that is reported.
const MAX_AHEAD: jiff::SignedDuration = jiff::SignedDuration::from_mins(1);

impl ScheduledJob {
    pub(in crate::jobs) fn new<J, F>(name: String, schedule: Schedule, job: F) -> Self
    where
        J: Job,
        F: Fn(Timestamp) -> J + Send + Sync + 'static,
    {
        let name: Arc<str> = name.into();
        let schedule_name = name.clone();
        let prepare = move |queue: &Arc<Queue>, tick| {
            let job = catch_unwind(|| job(tick)).map_err(|payload| {
                drop_payload(payload);
                AcceptError::content("creating the job of a schedule panicked")
            })?;
            Enqueue::new(queue, job).prepare_tick(schedule_name.clone())
        };
        Self { name, schedule, prepare: Box::new(prepare), is_ahead: AtomicBool::new(false) }
    }

    /// Returns an error if the schedule or the kind of its jobs is not valid.
    pub(in crate::jobs) fn validate<J: Job>(&self) -> Result<(), String> {
        let name = &*self.name;
        let context = |error| format!("schedule {name:?} of `JobsBuilder::every` is not valid: {error}");
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
            return Err(context(format!("its name must have 1 to {MAX_NAME_BYTES} bytes without control characters")));
        }
        validate_kind(J::KIND).map_err(context)?;
        validate_queue(J::QUEUE).map_err(context)?;
        validate_max_attempts(J::KIND, J::MAX_ATTEMPTS).map_err(context)?;
        self.schedule.validate(jiff::Timestamp::now()).map_err(context)
    }

    /// Enqueues the jobs that are due. Returns the time until the next tick.
    async fn tick(&self, queue: &Arc<Queue>) -> Result<Duration, StoreError> {
        let database = &queue.environment.database;
        let state = database.schedule(&self.name).await?;
        let (last, now) = (time(state.last_tick), time(state.now));
        self.report_ahead(last, now);
        let Some(due) = self.schedule.due(last, now) else {
            let next = self.schedule.next(now.max(last));
            return Ok(next.map_or(MAX_WAIT, |next| next.duration_since(now).try_into().unwrap_or_default()));
        };
        let mut jobs = Vec::new();
        for tick in due.ticks {
            let tick = Timestamp::from_millis(u64::try_from(tick.as_millisecond()).unwrap_or_default());
            match (self.prepare)(queue, tick) {
                Ok(job) => jobs.push(job),
                // A retry would fail, too.
                Err(error) => warn("failed to create the job of a schedule, skipped a tick", &StoreError::other(error)),
            }
        }
        let Some(client) = queue.client() else { return Ok(RETRY_DELAY) };
        let jobs: Vec<_> = jobs.iter().collect();
        let advance = Advance { name: &self.name, from: state.last_tick, to: due.last.as_millisecond(), jobs: &jobs };
        if database.advance_schedule(&client.river, &advance).await? {
            for job in jobs {
                queue.environment.counters.enqueued(&job.record.name, &job.queue);
                queue.wake(&job.queue);
            }
        }
        Ok(Duration::ZERO)
    }

    /// Warns if the database's clock was set back by more than a minute. No tick is repeated, so
    /// there is none until that time.
    fn report_ahead(&self, last: jiff::Timestamp, now: jiff::Timestamp) {
        let ahead = last.duration_since(now);
        let is_ahead = ahead > MAX_AHEAD;
        if is_ahead && !self.is_ahead.load(Relaxed) {
            let name = &*self.name;
            let message = format!(
                "the latest tick of schedule {name:?} is {ahead:#} later than the clock of the database: to tick again \
                 before that, delete its row from `tower_offload_schedule`"
            );
            warn("a schedule does not tick, because the clock was set back", &StoreError::other(message));
        }
        self.is_ahead.store(is_ahead, Relaxed);
    }
}

/// The row of a schedule, in milliseconds since 1970.
pub(in crate::jobs) struct ScheduleState {
    pub(in crate::jobs) last_tick: i64,
    /// The time by the database's clock.
    pub(in crate::jobs) now: i64,
}

/// A change of the row of a schedule, with the jobs of its ticks.
pub(in crate::jobs) struct Advance<'a> {
    pub(in crate::jobs) name: &'a str,
    /// The latest tick that was read. The change has no effect if there is another one.
    pub(in crate::jobs) from: i64,
    pub(in crate::jobs) to: i64,
    pub(in crate::jobs) jobs: &'a [&'a Prepared],
}

/// Enqueues the jobs of schedules until the queue is shut down.
pub(in crate::jobs) async fn run(queue: Arc<Queue>, schedules: Vec<ScheduledJob>) {
    loop {
        let mut wait = MAX_WAIT;
        for schedule in &schedules {
            if queue.is_closed() {
                return;
            }
            let next = schedule.tick(&queue).await.unwrap_or_else(|error| {
                warn("failed to enqueue the jobs of a schedule, will retry", &error);
                RETRY_DELAY
            });
            wait = wait.min(next);
        }
        tokio::select! {
            () = queue.closed() => return,
            () = sleep(wait.max(MIN_WAIT)) => {}
        }
    }
}

/// Converts a time of the database, which other programs may have written.
fn time(millis: i64) -> jiff::Timestamp {
    let millis = millis.clamp(jiff::Timestamp::UNIX_EPOCH.as_millisecond(), MAX_MILLIS);
    jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

/// The largest [`Timestamp`].
const MAX_MILLIS: i64 = 253_402_207_200_000;
