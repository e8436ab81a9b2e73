//! The part of the database that River's client does not cover: records of jobs, leases of clients,
//! and recovery.
//!
//! A job has a row in River's `river_job` and one in `tower_offload_task`, inserted in one
//! transaction. From then on triggers on `river_job` update the record, even if another client
//! changes the job.

#[cfg(feature = "postgres")]
mod postgres;
mod recovery;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::time::Duration;

use riverqueue::{Client, ClientBuilder, Error, JobRow, sqlx};

#[cfg(feature = "postgres")]
use self::postgres::PostgresJobs;
#[cfg(feature = "sqlite")]
use self::sqlite::SqliteJobs;
use super::{
    Backoff,
    error::{InsertError, river_error},
    insert::{Inserted, Prepared, copy_row, required},
    progress::ProgressUpdate,
    running::Claim,
};
use crate::{
    Failure, Json, Record, StoreError, TaskId, Timestamp,
    store::sql::{Engine, store_error},
};

/// Operations of the job queue on the database of the tasks.
pub(super) enum Database {
    #[cfg(feature = "postgres")]
    Postgres(PostgresJobs),
    #[cfg(feature = "sqlite")]
    Sqlite(SqliteJobs),
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

/// Number of attempts at an insertion that the server rolls back because of a conflict.
const MAX_INSERT_ATTEMPTS: usize = 3;

impl Database {
    pub(super) fn new(engine: Engine) -> Self {
        match engine {
            #[cfg(feature = "postgres")]
            Engine::Postgres(postgres) => Self::Postgres(PostgresJobs(postgres)),
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(sqlite) => Self::Sqlite(SqliteJobs(sqlite)),
        }
    }

    /// Returns the duration of leases, or `None` for SQLite, where one process owns the file.
    pub(super) fn lease(&self) -> Option<Duration> {
        dispatch!(self, |database| database.lease())
    }

    /// Migrates the schema, and returns a builder for a River client with connections of its own.
    pub(super) async fn connect(&self, client: &str, backoff: Backoff) -> Result<ClientBuilder, StoreError> {
        dispatch!(self, |database| database.connect(client, backoff).await)
    }

    /// Inserts jobs with their records. On error, none is inserted.
    pub(super) async fn insert(&self, client: &Client, jobs: &[&Prepared]) -> Result<Vec<Inserted>, InsertError> {
        dispatch!(self, |database| {
            for _ in 1..MAX_INSERT_ATTEMPTS {
                match database.insert(client, jobs).await? {
                    Err(Error::Database(error)) if database.is_conflict(&error) => {}
                    inserted => return Ok(inserted?),
                }
            }
            Ok(database.insert(client, jobs).await??)
        })
    }

    /// Requeues or fails the running jobs of clients that no longer exist, and, if the client
    /// `judge` [may judge](crate::lease) others, of clients whose lease has expired.
    pub(super) async fn recover(&self, judge: Option<&str>, backoff: Backoff) -> Result<(), StoreError> {
        dispatch!(self, |database| database.recover(judge, backoff).await)
    }

    /// Returns the jobs that the table shows as running in this client.
    pub(super) async fn claims(&self, client: &str) -> Result<Vec<Claim>, StoreError> {
        dispatch!(self, |database| database.claims(client).await)
    }

    /// Requeues claimed jobs that this client is not working on.
    pub(super) async fn requeue(&self, claims: &[Claim], client: &str, backoff: Backoff) -> Result<(), StoreError> {
        dispatch!(self, |database| database.requeue(claims, client, backoff).await)
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
    pub(super) async fn cancel_requests(&self) -> Result<Vec<i64>, StoreError> {
        const REQUESTS: &str = "
SELECT river_id FROM tower_offload_task WHERE river_id IS NOT NULL AND state < 10 AND cancel_requested_at IS NOT NULL";
        dispatch!(self, |database| {
            database.read(async |connection| sqlx::query_scalar(REQUESTS).fetch_all(connection).await).await
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

    /// Writes the failure of an attempt, before River records its error. River keeps only a
    /// message.
    pub(super) async fn write_failure(&self, id: TaskId, attempt: i64, failure: &Failure) -> Result<(), StoreError> {
        const FAIL: &str = "
UPDATE tower_offload_task SET error_class = $3, error_message = $4, error_detail = $5, version = version + 1
WHERE id = $1 AND state = 1 AND attempt = $2";
        let detail = failure.detail.as_ref().map(Json::as_str);
        let written = dispatch!(self, |database| {
            let write = database.transaction(async |transaction| {
                let fail = sqlx::query(FAIL).bind(&id.as_bytes()[..]).bind(attempt).bind(&failure.class);
                fail.bind(&failure.message).bind(detail).execute(&mut **transaction).await.map(drop)
            });
            write.await
        });
        written?.map_err(store_error)
    }

    /// Inserts the record of a running job that another client has inserted. Returns the id of its
    /// record, which is not `id` if another process inserted the record first.
    pub(super) async fn adopt(&self, row: &JobRow, id: TaskId) -> Result<TaskId, StoreError> {
        let mut record = Record::new(id, row.kind.clone(), Timestamp::default());
        copy_row(&mut record, row);
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
}
