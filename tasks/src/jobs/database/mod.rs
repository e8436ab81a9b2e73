//! The part of the database that River's client does not cover: records of jobs, leases of clients,
//! and recovery.
//!
//! A job has a row in River's `river_job` and one in `tower_offload_task`, inserted in one
//! transaction. From then on triggers on `river_job` update the record, even if another client
//! changes the job.

/// Defines `insert`, which inserts jobs and their records in a transaction of one database. It uses
/// `insert_records` and `find_record` of the module. If the server has a clock of its own, it
/// decides when delayed jobs are due.
macro_rules! insert_jobs {
    ($transaction:ty, has_server_clock: $has_server_clock:literal) => {
        async fn insert(
            transaction: &mut $transaction,
            client: &Client,
            jobs: &[&Prepared],
        ) -> Result<Vec<Inserted>, Error> {
            let results = client.insert_batch(batch(jobs, $has_server_clock)?).tx(&mut *transaction).await?;
            check_inserted("river_job", jobs.len(), results.len()).map_err(Error::Database)?;
            let records: Vec<_> = results.iter().zip(jobs).map(|(result, job)| record_of(result, job)).collect();
            let rows: Vec<_> = results.iter().zip(&records).map(|(result, record)| (result.id(), record)).collect();
            let inserted = insert_records(transaction, &rows).await?;
            check_inserted("tower_offload_task", new_jobs(&results), inserted).map_err(Error::Database)?;
            let mut inserted = Vec::with_capacity(jobs.len());
            for (result, record) in results.iter().zip(records) {
                let is_duplicate = result.unique_skipped_as_duplicate;
                let record =
                    if is_duplicate { required(find_record(transaction, result.id()).await?)? } else { record };
                inserted.push(Inserted { record, is_duplicate });
            }
            Ok(inserted)
        }
    };
}

/// Defines the methods for the rows of schedules. `$now` is the time of the database in
/// milliseconds.
macro_rules! schedules {
    ($now:literal) => {
        pub(super) async fn schedule(&self, name: &str) -> Result<Option<ScheduleState>, StoreError> {
            const FIND: &str = concat!("SELECT last_tick, ", $now, " FROM tower_offload_schedule WHERE name = $1");
            let find = self.read(async |connection| {
                sqlx::query_as::<_, (i64, i64)>(FIND).bind(name).fetch_optional(connection).await
            });
            Ok(find.await?.map(|(last_tick, now)| ScheduleState { last_tick, now }))
        }

        /// Inserts the row of a schedule, unless it exists.
        pub(super) async fn begin_schedule(&self, name: &str) -> Result<(), StoreError> {
            const BEGIN: &str = concat!(
                "INSERT INTO tower_offload_schedule (name, last_tick) VALUES ($1, ",
                $now,
                ") ON CONFLICT (name) DO NOTHING"
            );
            let begin = self.transaction(async |transaction| {
                sqlx::query(BEGIN).bind(name).execute(&mut **transaction).await.map(drop)
            });
            begin.await?.map_err(store_error)
        }

        pub(super) async fn advance_schedule(
            &self,
            client: &Client,
            advance: &Advance<'_>,
        ) -> Result<Result<bool, Error>, StoreError> {
            const ADVANCE: &str = "UPDATE tower_offload_schedule SET last_tick = $3 WHERE name = $1 AND last_tick = $2";
            self.transaction(async |transaction| {
                let set = sqlx::query(ADVANCE).bind(advance.name).bind(advance.from).bind(advance.to);
                let is_current = set.execute(&mut **transaction).await?.rows_affected() > 0;
                if is_current && !advance.jobs.is_empty() {
                    insert(transaction, client, advance.jobs).await?;
                }
                Ok::<_, Error>(is_current)
            })
            .await
        }
    };
}

/// Evaluates the same expression for either database.
macro_rules! dispatch {
    ($database:expr, |$inner:ident| $call:expr) => {
        match $database {
            #[cfg(feature = "postgres")]
            Database::Postgres($inner) => $call,
            #[cfg(feature = "sqlite")]
            Database::Sqlite($inner) => $call,
        }
    };
}

mod operations;
#[cfg(feature = "postgres")]
pub(super) mod postgres;
mod recovery;
mod sequences;
#[cfg(feature = "sqlite")]
mod sqlite;

#[cfg(feature = "tracing")]
pub(super) use self::recovery::LOST_CLASS;
pub(super) use self::{
    operations::MAX_PAUSED_KINDS,
    recovery::{MAX_IMMEDIATE_DELAY, millis},
};

use std::{sync::Arc, time::Duration};

use riverqueue::{Client, ClientBuilder, Error, JobRow, sqlx};

#[cfg(feature = "postgres")]
use self::postgres::PostgresJobs;
use self::recovery::{COPY_ENDS, record_id};
#[cfg(feature = "sqlite")]
use self::sqlite::SqliteJobs;
use super::{
    Backoff,
    error::{InsertError, river_error},
    insert::{Inserted, Prepared, copy_row, owner, parent, required},
    outcome::{End, Successors},
    progress::ProgressUpdate,
    queue::Environment,
    running::Claim,
    schedule::run::{Advance, ScheduleState},
};
use crate::{
    Json, Record, StoreError, TaskId, Timestamp,
    store::sql::{Engine, store_error},
};

/// Operations of the job queue on the database of the tasks.
pub(super) enum Database {
    #[cfg(feature = "postgres")]
    Postgres(PostgresJobs),
    #[cfg(feature = "sqlite")]
    Sqlite(SqliteJobs),
}

/// Jobs that no process works on, of one kind in one queue.
pub(super) struct Unserved {
    pub(super) kind: String,
    pub(super) queue: String,
    pub(super) jobs: i64,
    /// How long the oldest of them has waited, in seconds.
    pub(super) oldest: i64,
}

/// Jobs of one kind that are due and wait in a queue.
#[cfg(feature = "metrics")]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waiting {
    pub(super) jobs: i64,
    /// How long the oldest of them has been due, in seconds.
    pub(super) oldest: f64,
}

/// Selects the jobs that wait in the queue `$1` by kind, with this expression for the age of the
/// oldest one in seconds. The index of River's claims returns the first jobs of each priority, so a
/// long queue costs no more than 40 000 rows.
#[cfg(feature = "metrics")]
macro_rules! waiting {
    ($age:literal) => {
        waiting!($age, "1", "2", "3", "4")
    };
    ($age:literal, $first:literal, $($priority:literal),*) => {
        concat!(
            "SELECT kind, count(*), ", $age, " FROM (",
            waiting!(@rows $first), $(" UNION ALL ", waiting!(@rows $priority),)*
            ") AS waiting GROUP BY kind ORDER BY 2 DESC LIMIT 1000"
        )
    };
    (@rows $priority:literal) => {
        concat!(
            "SELECT kind, scheduled_at FROM (SELECT kind, scheduled_at FROM river_job \
             WHERE state = 'available' AND queue = $1 AND priority = ", $priority,
            " ORDER BY scheduled_at LIMIT 10000) AS priority", $priority
        )
    };
}

/// A job that was recovered.
#[cfg_attr(not(feature = "tracing"), allow(dead_code, reason = "for events"))]
pub(super) struct Recovered {
    /// `None` if the job has no record.
    pub(super) id: Option<TaskId>,
    pub(super) river_id: i64,
    pub(super) kind: String,
    pub(super) queue: String,
    /// The attempt that its process has not ended.
    pub(super) attempt: i16,
    /// `false` if the work had not begun, or was interrupted by the end of its process after a
    /// shutdown.
    pub(super) is_counted: bool,
    /// `true` if a shutdown had begun.
    pub(super) is_shutdown: bool,
    /// The new state in River's table.
    pub(super) state: String,
}

/// Number of attempts at a transaction that the server rolls back because of a conflict.
const MAX_ATTEMPTS: usize = 5;

impl Database {
    pub(super) fn new(engine: Engine) -> Self {
        match engine {
            #[cfg(feature = "postgres")]
            Engine::Postgres(postgres) => Self::Postgres(PostgresJobs::new(postgres)),
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(sqlite) => Self::Sqlite(SqliteJobs::new(sqlite)),
        }
    }

    /// Returns the duration of leases, or `None` for SQLite, where one process owns the file.
    pub(super) fn lease(&self) -> Option<Duration> {
        dispatch!(self, |database| database.lease())
    }

    /// Returns the interval at which a client polls a queue although it is notified of jobs: for
    /// lost notifications, and for jobs that are due within seconds. On Postgres each poll is a
    /// transaction of a shared server.
    pub(super) fn poll_interval(&self) -> Duration {
        Duration::from_secs(if self.lease().is_some() { 2 } else { 1 })
    }

    /// Returns `true` if the server rolled a transaction back because of a conflict.
    pub(super) fn is_conflict(&self, error: &sqlx::Error) -> bool {
        dispatch!(self, |database| database.is_conflict(error))
    }

    /// Migrates the schema, and builds a River client with connections of its own. They are closed
    /// on error. On SQLite, where no other process can be working on them, it also recovers all
    /// running jobs.
    pub(super) async fn connect(
        &self,
        client: &str,
        environment: &Environment,
        build: impl FnOnce(ClientBuilder) -> Result<Client, Error>,
    ) -> Result<Client, StoreError> {
        dispatch!(self, |database| database.connect(client, environment, build).await)
    }

    /// Migrates the schema, if the store may.
    pub(super) async fn migrate(&self) -> Result<(), StoreError> {
        dispatch!(self, |database| database.migrate_alone().await)
    }

    /// Inserts jobs with their records. On error, none is inserted.
    ///
    /// With `lock_timeout`, it fails instead of waiting for longer for the transaction of another
    /// process.
    pub(super) async fn insert(
        &self,
        client: &Client,
        jobs: &[&Prepared],
        lock_timeout: Option<Duration>,
    ) -> Result<Vec<Inserted>, InsertError> {
        dispatch!(self, |database| {
            let mut attempts = 1;
            loop {
                match database.insert(client, jobs, lock_timeout).await? {
                    Err(Error::Database(error)) if database.is_conflict(&error) && attempts < MAX_ATTEMPTS => {
                        attempts += 1;
                    }
                    Err(Error::Database(error)) if database.is_lock_timeout(&error) => return Err(InsertError::Locked),
                    inserted => return Ok(inserted?),
                }
            }
        })
    }

    /// Inserts the record of a running job that another client has inserted. Returns the id of its
    /// record, which is not `id` if another process inserted the record first.
    pub(super) async fn adopt(&self, row: &JobRow, id: TaskId) -> Result<TaskId, StoreError> {
        let mut record = Record::new(id, row.kind.clone(), Timestamp::default());
        copy_row(&mut record, row);
        (record.owner, record.parent) = (owner(row), parent(row));
        let rows = [(row.id, &record)];
        let adopted = dispatch!(self, |database| {
            let adopt = database.transaction(async |transaction| {
                database.insert_records(transaction, &rows).await?;
                Ok::<_, Error>(required(database.find_record(transaction, row.id).await?)?.id)
            });
            adopt.await
        });
        adopted?.map_err(river_error)
    }

    /// Shows a claimed job as queued, because it waits for a thread. If the process crashes, the
    /// attempt does not count.
    pub(super) async fn show_as_queued(&self, claim: &Claim) -> Result<(), StoreError> {
        dispatch!(self, |database| database.show_as_queued(claim).await)
    }

    /// Shows a claimed job as running. Returns `false` if the claim is no longer valid.
    pub(super) async fn show_as_running(&self, claim: &Claim) -> Result<bool, StoreError> {
        dispatch!(self, |database| database.show_as_running(claim).await)
    }

    /// Stores the output of a step in River's row. Returns `false`, and stores nothing, if the
    /// claim is no longer valid. Storing the same output again has no effect.
    pub(super) async fn write_step(&self, claim: &Claim, name: &str, output: &str) -> Result<bool, StoreError> {
        dispatch!(self, |database| database.write_step(claim, name, output).await)
    }

    /// Writes the parts of an end that River's row cannot hold, before River writes the rest: the
    /// progress, and the class and the details of a failure.
    pub(super) async fn describe(&self, end: &End) -> Result<(), StoreError> {
        const DESCRIBE: &str = "
UPDATE tower_offload_task SET progress = coalesce($3, progress), message = coalesce($4, message), error_class = $5, error_message = $6,
    error_detail = $7, version = version + 1
WHERE id = $1 AND state = 1 AND attempt = $2";
        let (failure, progress) = (end.failure(), end.progress.as_ref());
        let written = dispatch!(self, |database| {
            let write = database.transaction(async |transaction| {
                let describe = sqlx::query(DESCRIBE).bind(&end.id.as_bytes()[..]).bind(i64::from(end.claim.attempt));
                let describe = describe.bind(progress.and_then(|update| update.progress));
                let describe = describe.bind(progress.and_then(|update| update.message.as_deref()));
                let describe = describe.bind(failure.map(|failure| &*failure.class));
                let describe = describe.bind(failure.map(|failure| &*failure.message));
                let describe = describe.bind(failure.and_then(|failure| failure.detail.as_ref()).map(Json::as_str));
                describe.execute(&mut **transaction).await.map(drop)
            });
            write.await
        });
        written?.map_err(store_error)
    }

    /// Writes an end in place of River, and inserts its successors in the same transaction. Returns
    /// `false`, and writes nothing, if the attempt no longer has the job.
    pub(super) async fn write_end(&self, end: &End, backoff: Backoff) -> Result<bool, StoreError> {
        let Some(Successors { jobs, client }) = end.successors() else {
            return dispatch!(self, |database| database.write_end(end, backoff).await);
        };
        let jobs: Vec<_> = jobs.iter().collect();
        dispatch!(self, |database| {
            let mut attempts = 1;
            loop {
                match database.write_end_and_insert(end, backoff, client, &jobs).await? {
                    Err(Error::Database(error)) if database.is_conflict(&error) && attempts < MAX_ATTEMPTS => {
                        attempts += 1;
                    }
                    written => return written.map_err(river_error),
                }
            }
        })
    }

    /// Notes that attempts are running during or after a shutdown. Such an attempt does not count
    /// if its process ends first, except of jobs with one attempt, which run at most once, and at
    /// most [`recovery::MAX_INTERRUPTIONS`] times for a job. Returns River's ids of the jobs whose
    /// attempt would not count.
    ///
    /// The note names the claim, so it has no effect on later attempts.
    pub(super) async fn note_interrupted(&self, claims: &[Claim]) -> Result<Vec<i64>, StoreError> {
        dispatch!(self, |database| database.note_interrupted(claims).await)
    }

    /// Requeues or fails the running jobs of clients that no longer exist, and, if the client
    /// `judge` [may judge](crate::lease) others, of clients whose lease has expired.
    pub(super) async fn recover(&self, judge: Option<&str>, environment: &Environment) -> Result<(), StoreError> {
        dispatch!(self, |database| database.recover(judge, environment).await)
    }

    /// Marks unfinished records as lost whose jobs do not exist. Returns their number.
    pub(super) async fn lose_deleted(&self) -> Result<u64, StoreError> {
        dispatch!(self, |database| database.lose_deleted().await)
    }

    /// Makes the records final whose jobs have ended without the triggers. Returns their number.
    pub(super) async fn copy_ends(&self) -> Result<u64, StoreError> {
        let copied = dispatch!(self, |database| {
            let copy = database.transaction(async |transaction| {
                sqlx::query(COPY_ENDS).execute(&mut **transaction).await.map(|done| done.rows_affected())
            });
            copy.await
        });
        copied?.map_err(store_error)
    }

    /// Makes jobs available that are due soon by the database's clock.
    pub(super) async fn make_available(&self) -> Result<(), StoreError> {
        dispatch!(self, |database| database.make_available().await)
    }

    /// Returns the jobs that have waited for a minute and that no process works on.
    pub(super) async fn unserved(&self) -> Result<Vec<Unserved>, StoreError> {
        dispatch!(self, |database| database.unserved().await)
    }

    /// Returns the jobs that are due and wait in a queue, by kind: the first 10 000 of each
    /// priority, of the 1000 most frequent kinds.
    #[cfg(feature = "metrics")]
    pub(super) async fn waiting(&self, queue: &str) -> Result<Vec<(String, Waiting)>, StoreError> {
        let sql = match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => waiting!("extract(epoch FROM now() - min(scheduled_at))::float8"),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => waiting!("(julianday('now') - julianday(min(scheduled_at))) * 86400.0"),
        };
        let rows: Vec<(String, i64, f64)> = dispatch!(self, |database| {
            database.read(async |connection| sqlx::query_as(sql).bind(queue).fetch_all(connection).await).await
        })?;
        Ok(rows.into_iter().map(|(kind, jobs, oldest)| (kind, Waiting { jobs, oldest: oldest.max(0.0) })).collect())
    }

    /// Returns the jobs that the table shows as running in these clients.
    pub(super) async fn claims(&self, clients: &[Arc<str>]) -> Result<Vec<Claim>, StoreError> {
        dispatch!(self, |database| database.claims(clients).await)
    }

    /// Starts the lease of a client. `process` is for people who inspect the table.
    pub(super) async fn begin_lease(&self, client: &str, process: &str) -> Result<(), StoreError> {
        dispatch!(self, |database| database.begin_lease(client, process).await)
    }

    /// Renews the lease of a client. Returns `false` if its jobs were recovered.
    pub(super) async fn renew_lease(&self, client: &str) -> Result<bool, StoreError> {
        dispatch!(self, |database| database.renew_lease(client).await)
    }

    /// Ends the lease of a client that has no running jobs.
    pub(super) async fn end_lease(&self, client: &str) -> Result<(), StoreError> {
        dispatch!(self, |database| database.end_lease(client).await)
    }

    /// Returns the unfinished jobs for which cancellation was requested.
    pub(super) async fn cancel_requests(&self) -> Result<Vec<(i64, TaskId)>, StoreError> {
        const REQUESTS: &str = "
SELECT river_id, id FROM tower_offload_task WHERE river_id IS NOT NULL AND state < 10 AND cancel_requested_at IS NOT NULL";
        dispatch!(self, |database| {
            let read = database
                .read(async |connection| sqlx::query_as::<_, (i64, Vec<u8>)>(REQUESTS).fetch_all(connection).await);
            let requests = read.await?.into_iter();
            Ok(requests.filter_map(|(river_id, id)| Some((river_id, record_id(Some(id))?))).collect())
        })
    }

    /// Cancels a job, if its record still has the request. Both are one transaction, which locks
    /// the job first, so a retry comes before it or after it. Returns `false` if there is no
    /// request, or if the job is locked.
    ///
    /// River notifies its clients of a cancellation, who may get the notification when the job was
    /// retried and runs again. So only a running job is cancelled by River.
    pub(super) async fn cancel_if_requested(
        &self,
        client: &Client,
        river_id: i64,
    ) -> Result<Result<bool, Error>, StoreError> {
        const IS_REQUESTED: &str = "
SELECT 1 FROM tower_offload_task WHERE river_id = $1 AND state < 10 AND cancel_requested_at IS NOT NULL";
        dispatch!(self, |database| {
            let cancel = database.transaction(async |transaction| {
                let is_running = database.lock_job(transaction, river_id).await?;
                let is_requested = sqlx::query(IS_REQUESTED).bind(river_id).fetch_optional(&mut **transaction).await?;
                match (is_running, is_requested) {
                    (Some(true), Some(_)) => drop(client.jobs().cancel(river_id).tx(&mut *transaction).await?),
                    (Some(false), Some(_)) => database.cancel_waiting(&mut *transaction, river_id).await?,
                    _ => return Ok(false),
                }
                Ok::<_, Error>(true)
            });
            cancel.await
        })
    }

    /// Returns River's id of a job, or `None` if the task is not a job.
    pub(super) async fn river_id(&self, id: TaskId) -> Result<Option<i64>, StoreError> {
        const RIVER_ID: &str = "SELECT river_id FROM tower_offload_task WHERE id = $1";
        let id = &id.as_bytes()[..];
        dispatch!(self, |database| {
            let read = database.read(async |connection| {
                sqlx::query_scalar::<_, Option<i64>>(RIVER_ID).bind(id).fetch_optional(connection).await
            });
            Ok(read.await?.flatten())
        })
    }

    /// Writes the progress of attempts that are still running.
    pub(super) async fn write_progress(&self, updates: &[ProgressUpdate]) -> Result<(), StoreError> {
        dispatch!(self, |database| database.write_progress(updates).await)
    }

    /// Returns the latest tick of a schedule, which is the current time if it is new.
    pub(super) async fn schedule(&self, name: &str) -> Result<ScheduleState, StoreError> {
        dispatch!(self, |database| {
            if let Some(state) = database.schedule(name).await? {
                return Ok(state);
            }
            database.begin_schedule(name).await?;
            let missing = || StoreError::other(format!("the row of schedule {name:?} was not inserted"));
            database.schedule(name).await?.ok_or_else(missing)
        })
    }

    /// Sets the latest tick of a schedule, and inserts its jobs in the same transaction. Returns
    /// `false`, and changes nothing, if another process has set it.
    pub(super) async fn advance_schedule(&self, client: &Client, advance: &Advance<'_>) -> Result<bool, StoreError> {
        dispatch!(self, |database| {
            let mut attempts = 1;
            loop {
                match database.advance_schedule(client, advance).await? {
                    Err(Error::Database(error)) if database.is_conflict(&error) && attempts < MAX_ATTEMPTS => {
                        attempts += 1;
                    }
                    advanced => return advanced.map_err(river_error),
                }
            }
        })
    }

    /// Calls `notify` when jobs of other processes may have ended, until the connection fails.
    /// Never returns on SQLite, which has no notifications.
    pub(super) async fn listen(&self, notify: impl Fn() + Send) -> Result<(), StoreError> {
        dispatch!(self, |database| database.listen(notify).await)
    }
}
