use std::time::Duration;

use riverqueue::{
    Client, Error, InsertBatch, InsertBatchResult, InsertOpts, JobMetadata, JobRow, JobState,
    migrate::PostgresMigrator, sqlx,
};
use serde_json::value::RawValue;
use sqlx::{PgPool, Postgres, Sqlite, Transaction};

use super::{
    InsertError,
    recovery::{
        Claim, claims_postgres, claims_sqlite, recover_postgres, recover_sqlite, take_back_claims_postgres,
        take_back_claims_sqlite,
    },
    schema,
};
use crate::{
    durable::{Backoff, clerk::News},
    tasks::{
        Failure, Json, Reason, Record, StoreError, TaskId, TaskState, Timestamp,
        store::{Engine, is_conflict, postgres_pair, sqlite_pair, store_error},
    },
};

/// Our side of the database: what River's client does not do.
#[derive(Clone)]
pub(in crate::durable) struct Database {
    pub(super) engine: Engine,
}

/// A job that is ready to be inserted, and its record.
pub(in crate::durable) struct Prepared {
    pub(in crate::durable) push: fn(&mut InsertBatch, &RawValue, InsertOpts),
    pub(in crate::durable) arguments: Box<RawValue>,
    pub(in crate::durable) options: InsertOpts,
    pub(in crate::durable) record: Record,
}

/// What became of it.
pub(in crate::durable) struct Inserted {
    /// Of the job that is there now: this one, or one that it would have been a duplicate of.
    pub(in crate::durable) record: Record,
    pub(in crate::durable) is_duplicate: bool,
}

/// Under this key River's metadata has the id of the record.
const TASK: &str = "tower_offload:task";
/// And here its owner, who is still its owner when the record is gone.
const OWNER: &str = "tower_offload:owner";

impl Prepared {
    fn options(&self) -> Result<InsertOpts, Error> {
        let noted = serde_json::json!({ TASK: self.record.id, OWNER: self.record.owner });
        let metadata: JobMetadata = noted.to_string().parse().map_err(Error::Json)?;
        Ok(self.options.clone().with_metadata(metadata))
    }
}

/// The id that was noted when the job was inserted. One that another client inserted has none.
pub(super) fn noted_id(row: &JobRow) -> Option<TaskId> {
    row.metadata.get::<String>(TASK).ok().flatten()?.parse().ok()
}

/// Runs the same in a transaction of either database.
macro_rules! in_transaction {
    ($database:expr, |$transaction:ident| $work:expr) => {
        match &$database.engine {
            Engine::Postgres(postgres) => postgres.transact(async |$transaction| $work).await,
            Engine::Sqlite(sqlite) => sqlite.transact(async |$transaction| $work).await,
        }
    };
}

macro_rules! insert {
    ($name:ident, $pair:ident, $database:ty) => {
        pub(in crate::durable) async fn $name(
            client: &Client,
            transaction: &mut Transaction<'_, $database>,
            jobs: &[&Prepared],
        ) -> Result<Vec<Inserted>, Error> {
            let results = client.insert_batch(batch(jobs)?).tx(&mut *transaction).await?;
            let fresh: Vec<_> = results.iter().zip(jobs).map(|(result, job)| fresh(result, job)).collect();
            let pairs: Vec<_> = results.iter().zip(&fresh).map(|(result, record)| (result.id(), record)).collect();
            $pair::insert(transaction, &pairs).await?;
            let mut inserted = Vec::with_capacity(jobs.len());
            for (result, record) in results.iter().zip(fresh) {
                let is_duplicate = result.unique_skipped_as_duplicate;
                let record = if is_duplicate { found($pair::find(transaction, result.id()).await?)? } else { record };
                inserted.push(Inserted { record, is_duplicate });
            }
            Ok(inserted)
        }
    };
}

insert!(insert_into_postgres, postgres_pair, Postgres);
insert!(insert_into_sqlite, sqlite_pair, Sqlite);

fn batch(jobs: &[&Prepared]) -> Result<InsertBatch, Error> {
    let mut batch = InsertBatch::new();
    for job in jobs {
        (job.push)(&mut batch, &job.arguments, job.options()?);
    }
    Ok(batch)
}

/// The record to be written if the job has none: of a new job, or of one that another client has inserted.
fn fresh(result: &InsertBatchResult, job: &Prepared) -> Record {
    let mut record = job.record.clone();
    record.max_attempts = u32::try_from(result.job.max_attempts).unwrap_or_default();
    if result.unique_skipped_as_duplicate {
        if let Some(id) = noted_id(&result.job) {
            (record.id, record.owner) = (id, result.job.metadata.get(OWNER).ok().flatten());
        }
        describe(&mut record, &result.job);
    }
    record
}

fn found(found: Option<Result<Record, StoreError>>) -> Result<Record, Error> {
    let missing = || Error::Database(sqlx::Error::RowNotFound);
    found.ok_or_else(missing)?.map_err(|error| Error::Database(sqlx::Error::Decode(error.into())))
}

/// What River's row says of a job, as far as a record has it.
fn describe(record: &mut Record, row: &JobRow) {
    let time = |time: riverqueue::jiff::Timestamp| {
        Timestamp::from_millis(u64::try_from(time.as_millisecond()).unwrap_or_default())
    };
    record.attempt = u32::try_from(row.attempt).unwrap_or_default();
    record.max_attempts = u32::try_from(row.max_attempts).unwrap_or_default();
    record.created_at = time(row.created_at);
    record.started_at = row.attempted_at.map(time);
    let finished_at = row.finalized_at.map(time);
    let failure = || row.errors.last().map(|last| Failure::new("error", last.error.clone()));
    match row.state {
        JobState::Running => record.state = TaskState::Running,
        JobState::Completed => {
            record.state = TaskState::Succeeded;
            record.result = row.output().and_then(|output| Json::from_text(output.get().to_owned()).ok());
        }
        JobState::Cancelled => {
            (record.state, record.reason) = (TaskState::Cancelled, Some(Reason::Requested));
        }
        JobState::Discarded => (record.state, record.failure) = (TaskState::Failed, failure()),
        _ => {}
    }
    record.finished_at = finished_at;
}

impl Database {
    pub(in crate::durable) fn new(engine: Engine) -> Self {
        Self { engine }
    }

    /// After how long without a word a process is given up. `None` if it is the only one.
    pub(in crate::durable) fn lease(&self) -> Option<Duration> {
        match &self.engine {
            Engine::Postgres(postgres) => Some(postgres.lease()),
            Engine::Sqlite(_) => None,
        }
    }

    /// Inserts jobs with their records, all or none.
    pub(in crate::durable) async fn insert(
        &self,
        client: &Client,
        jobs: &[&Prepared],
    ) -> Result<Vec<Inserted>, InsertError> {
        for _ in 1..ATTEMPTS {
            match self.try_insert(client, jobs).await? {
                Err(Error::Database(error)) if is_conflict(&error) => {}
                inserted => return Ok(inserted?),
            }
        }
        Ok(self.try_insert(client, jobs).await??)
    }

    async fn try_insert(
        &self,
        client: &Client,
        jobs: &[&Prepared],
    ) -> Result<Result<Vec<Inserted>, Error>, StoreError> {
        match &self.engine {
            Engine::Postgres(postgres) => {
                postgres.transact(async |transaction| insert_into_postgres(client, transaction, jobs).await).await
            }
            Engine::Sqlite(sqlite) => {
                sqlite.transact(async |transaction| insert_into_sqlite(client, transaction, jobs).await).await
            }
        }
    }

    /// Two processes that start at once do this one after the other.
    pub(super) async fn migrate(&self, pool: &PgPool) -> Result<(), StoreError> {
        const LOCK: &str = "SELECT pg_advisory_lock(8388076842114)";
        let mut locked = pool.acquire().await.map_err(store_error)?;
        locked.close_on_drop(); // and the lock goes with it
        sqlx::query(LOCK).execute(&mut *locked).await.map_err(store_error)?;
        PostgresMigrator::new(pool.clone()).migrate_up().await.map_err(StoreError::other)?;
        self.install().await
    }

    /// Installs what keeps records beside jobs, unless it is there.
    pub(super) async fn install(&self) -> Result<(), StoreError> {
        let (is_installed, install) = match &self.engine {
            Engine::Postgres(_) => (schema::IS_INSTALLED_POSTGRES, schema::INSTALL_POSTGRES),
            Engine::Sqlite(_) => (schema::IS_INSTALLED_SQLITE, schema::INSTALL_SQLITE),
        };
        let version = "SELECT coalesce(max(version), 0) FROM river_migration WHERE line = 'main'";
        let version = in_transaction!(self, |transaction| {
            let version: i64 = sqlx::query_scalar(version).fetch_one(&mut **transaction).await?;
            let is_installed: bool = sqlx::query_scalar(is_installed).fetch_one(&mut **transaction).await?;
            if version == schema::RIVER_VERSION && !is_installed {
                sqlx::raw_sql(install).execute(&mut **transaction).await?;
            }
            Ok::<_, Error>(version)
        });
        match version?.map_err(failure)? {
            schema::RIVER_VERSION => Ok(()),
            version => Err(StoreError::other(format!(
                "River's schema there has version {version}, and this version of tower-offload knows {}",
                schema::RIVER_VERSION
            ))),
        }
    }

    /// Hands back the jobs of processes that are gone; of those whose lease is over only if this one `may_expire` them.
    pub(super) async fn recover(&self, may_expire: bool, backoff: Backoff) -> Result<(), StoreError> {
        loop {
            let recovered = match &self.engine {
                Engine::Postgres(postgres) => {
                    postgres
                        .transact(async |transaction| recover_postgres(transaction, may_expire, backoff).await)
                        .await
                }
                Engine::Sqlite(sqlite) => {
                    sqlite.transact(async |transaction| recover_sqlite(transaction, backoff).await).await
                }
            };
            if recovered?.map_err(failure)?.is_all {
                return Ok(());
            }
        }
    }

    /// What a client of River's should be working on.
    pub(super) async fn claims(&self, client: &str) -> Result<Vec<Claim>, StoreError> {
        match &self.engine {
            Engine::Postgres(postgres) => {
                postgres.run(async |connection| claims_postgres(connection, client).await).await
            }
            Engine::Sqlite(sqlite) => {
                let mut connection = sqlite.readers().acquire().await.map_err(store_error)?;
                claims_sqlite(&mut connection, client).await.map_err(store_error)
            }
        }
    }

    /// Hands back what it does not work on all the same.
    pub(super) async fn take_back(&self, claims: &[Claim], client: &str, backoff: Backoff) -> Result<(), StoreError> {
        let taken = match &self.engine {
            Engine::Postgres(postgres) => {
                postgres
                    .transact(async |transaction| take_back_claims_postgres(transaction, claims, client, backoff).await)
                    .await
            }
            Engine::Sqlite(sqlite) => {
                sqlite.transact(async |transaction| take_back_claims_sqlite(transaction, claims, backoff).await).await
            }
        };
        taken?.map_err(failure)
    }

    /// The lease of a client of River's begins.
    pub(super) async fn begin_client(&self, id: &str, name: &str) -> Result<(), StoreError> {
        const BEGIN: &str = "
INSERT INTO tower_offload_client (id, name, expires_at) VALUES ($1, $2, clock_timestamp() + $3 * interval '1 millisecond')";
        let Engine::Postgres(postgres) = &self.engine else { return Ok(()) };
        let name = name.replace('\0', "\u{fffd}");
        let begin = postgres.transact(async |transaction| {
            sqlx::query(BEGIN)
                .bind(id)
                .bind(name)
                .bind(lease_millis(postgres.lease()))
                .execute(&mut **transaction)
                .await
        });
        begin.await?.map(drop).map_err(store_error)
    }

    /// `false` if somebody has given it up.
    pub(super) async fn renew_client(&self, id: &str) -> Result<bool, StoreError> {
        const RENEW: &str = "
UPDATE tower_offload_client SET expires_at = clock_timestamp() + $2 * interval '1 millisecond' WHERE id = $1";
        let Engine::Postgres(postgres) = &self.engine else { return Ok(true) };
        let renew = postgres.transact(async |transaction| {
            sqlx::query(RENEW).bind(id).bind(lease_millis(postgres.lease())).execute(&mut **transaction).await
        });
        Ok(renew.await?.map_err(store_error)?.rows_affected() > 0)
    }

    pub(super) async fn end_client(&self, id: &str) -> Result<(), StoreError> {
        let Engine::Postgres(postgres) = &self.engine else { return Ok(()) };
        let end = postgres.transact(async |transaction| {
            sqlx::query("DELETE FROM tower_offload_client WHERE id = $1").bind(id).execute(&mut **transaction).await
        });
        end.await?.map(drop).map_err(store_error)
    }

    /// The jobs that somebody asks to cancel and that are not over.
    pub(in crate::durable) async fn cancel_requests(&self) -> Result<Vec<i64>, StoreError> {
        const REQUESTS: &str = "
SELECT river_id FROM tower_offload_task WHERE river_id IS NOT NULL AND state < 10 AND cancel_requested_at IS NOT NULL";
        match &self.engine {
            Engine::Postgres(postgres) => {
                let requests = postgres
                    .transact(async |transaction| sqlx::query_scalar(REQUESTS).fetch_all(&mut **transaction).await);
                requests.await?.map_err(store_error)
            }
            Engine::Sqlite(sqlite) => {
                sqlx::query_scalar(REQUESTS).fetch_all(sqlite.readers()).await.map_err(store_error)
            }
        }
    }

    /// Writes what attempts say of themselves, if they are those that run.
    ///
    /// On Postgres each row by itself: River completes many jobs in one statement, and two that lock the same rows in another order would stop each
    /// other.
    pub(super) async fn report(&self, news: &[News]) -> Result<(), StoreError> {
        match &self.engine {
            Engine::Postgres(postgres) => {
                for News { id, attempt, progress, message } in news {
                    let report =
                        sqlx::query(REPORT).bind(&id.as_bytes()[..]).bind(attempt).bind(progress).bind(message);
                    postgres.run(async |connection| report.execute(connection).await).await?;
                }
                Ok(())
            }
            Engine::Sqlite(sqlite) => {
                let reported = sqlite.transact(async |transaction| {
                    for News { id, attempt, progress, message } in news {
                        let report = sqlx::query(REPORT).bind(&id.as_bytes()[..]).bind(attempt);
                        report.bind(progress).bind(message).execute(&mut **transaction).await?;
                    }
                    Ok(())
                });
                reported.await?.map_err(store_error)
            }
        }
    }

    /// Writes how an attempt failed, before River hears of it.
    pub(super) async fn fail(&self, id: TaskId, attempt: i64, failed: &Failure) -> Result<(), StoreError> {
        let detail = failed.detail.as_ref().map(Json::as_str);
        let failed = in_transaction!(self, |transaction| {
            let fail = sqlx::query(FAIL).bind(&id.as_bytes()[..]).bind(attempt).bind(&failed.class);
            fail.bind(&failed.message).bind(detail).execute(&mut **transaction).await.map(drop)
        });
        failed?.map_err(store_error)
    }

    /// The id of a job that a client of another kind has inserted, and that runs now: its record is made here.
    pub(super) async fn adopt(&self, row: &JobRow, fresh: TaskId) -> Result<TaskId, StoreError> {
        let mut record = Record::new(fresh, row.kind.clone(), Timestamp::default());
        describe(&mut record, row);
        let pairs = [(row.id, &record)];
        let id = match &self.engine {
            Engine::Postgres(postgres) => {
                let adopt = postgres.transact(async |transaction| {
                    postgres_pair::insert(transaction, &pairs).await?;
                    Ok::<_, Error>(found(postgres_pair::find(transaction, row.id).await?)?.id)
                });
                adopt.await
            }
            Engine::Sqlite(sqlite) => {
                let adopt = sqlite.transact(async |transaction| {
                    sqlite_pair::insert(transaction, &pairs).await?;
                    Ok::<_, Error>(found(sqlite_pair::find(transaction, row.id).await?)?.id)
                });
                adopt.await
            }
        };
        id?.map_err(failure)
    }
}

/// How often the server may end an insert because of another one before that is an error.
const ATTEMPTS: usize = 3;

const REPORT: &str = "
UPDATE tower_offload_task SET progress = $3, message = $4, version = version + 1 WHERE id = $1 AND state = 1 AND attempt = $2";
const FAIL: &str = "
UPDATE tower_offload_task SET error_class = $3, error_message = $4, error_detail = $5, version = version + 1
WHERE id = $1 AND state = 1 AND attempt = $2";

#[allow(clippy::cast_precision_loss, reason = "a lease is at most a year, and Postgres multiplies intervals by floats")]
fn lease_millis(lease: Duration) -> f64 {
    lease.as_millis() as f64
}

/// What a failure of River's means for who asked.
pub(super) fn failure(error: Error) -> StoreError {
    match error {
        Error::Database(error) => store_error(error),
        error => StoreError::other(error),
    }
}
