use std::time::Duration;

use riverqueue::{Client, Error, JobRow, migrate::PostgresMigrator, sqlx};
use sqlx::PgPool;

use super::{
    InsertError, Inserted, Prepared,
    insert::{describe, found},
    job_rows::{postgres as postgres_pair, sqlite as sqlite_pair},
    recovery::{
        Claim, claims_postgres, claims_sqlite, recover_postgres, recover_sqlite, take_back_claims_postgres,
        take_back_claims_sqlite,
    },
    schema,
};
use crate::{
    Failure, Json, Record, StoreError, TaskId, Timestamp,
    jobs::{Backoff, clerk::News, transaction::sealed::Sealed as _},
    store::sql::{Engine, postgres::connection::is_conflict, store_error},
};

/// Our side of the database: what River's client does not do.
#[derive(Clone)]
pub(in crate::jobs) struct Database {
    pub(super) engine: Engine,
}

/// Runs the same in a transaction of either database.
macro_rules! in_transaction {
    ($database:expr, |$transaction:ident| $work:expr) => {
        match &$database.engine {
            Engine::Postgres(postgres) => postgres.connections.begin(async |$transaction| $work).await,
            Engine::Sqlite(sqlite) => sqlite.writer.lock().await.begin(async |$transaction| $work).await,
        }
    };
}

impl Database {
    pub(in crate::jobs) fn new(engine: Engine) -> Self {
        Self { engine }
    }

    /// After how long without a word a process is given up. `None` if it is the only one.
    pub(in crate::jobs) fn lease(&self) -> Option<Duration> {
        match &self.engine {
            Engine::Postgres(postgres) => Some(postgres.lease),
            Engine::Sqlite(_) => None,
        }
    }

    /// Inserts jobs with their records, all or none.
    pub(in crate::jobs) async fn insert(
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
        in_transaction!(self, |transaction| transaction.insert(client, jobs).await)
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
                        .connections
                        .begin(async |transaction| recover_postgres(transaction, may_expire, backoff).await)
                        .await
                }
                Engine::Sqlite(sqlite) => {
                    sqlite
                        .writer
                        .lock()
                        .await
                        .begin(async |transaction| recover_sqlite(transaction, backoff).await)
                        .await
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
                postgres.connections.read(async |connection| claims_postgres(connection, client).await).await
            }
            Engine::Sqlite(sqlite) => {
                let mut connection = sqlite.readers.acquire().await.map_err(store_error)?;
                claims_sqlite(&mut connection, client).await.map_err(store_error)
            }
        }
    }

    /// Hands back what it does not work on all the same.
    pub(super) async fn take_back(&self, claims: &[Claim], client: &str, backoff: Backoff) -> Result<(), StoreError> {
        let taken = match &self.engine {
            Engine::Postgres(postgres) => {
                postgres
                    .connections
                    .begin(async |transaction| take_back_claims_postgres(transaction, claims, client, backoff).await)
                    .await
            }
            Engine::Sqlite(sqlite) => {
                sqlite
                    .writer
                    .lock()
                    .await
                    .begin(async |transaction| take_back_claims_sqlite(transaction, claims, backoff).await)
                    .await
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
        let begin = postgres.connections.begin(async |transaction| {
            sqlx::query(BEGIN).bind(id).bind(name).bind(postgres.lease_millis()).execute(&mut **transaction).await
        });
        begin.await?.map(drop).map_err(store_error)
    }

    /// `false` if somebody has given it up.
    pub(super) async fn renew_client(&self, id: &str) -> Result<bool, StoreError> {
        const RENEW: &str = "
UPDATE tower_offload_client SET expires_at = clock_timestamp() + $2 * interval '1 millisecond' WHERE id = $1";
        let Engine::Postgres(postgres) = &self.engine else { return Ok(true) };
        let renew = postgres.connections.begin(async |transaction| {
            sqlx::query(RENEW).bind(id).bind(postgres.lease_millis()).execute(&mut **transaction).await
        });
        Ok(renew.await?.map_err(store_error)?.rows_affected() > 0)
    }

    pub(super) async fn end_client(&self, id: &str) -> Result<(), StoreError> {
        let Engine::Postgres(postgres) = &self.engine else { return Ok(()) };
        let end = postgres.connections.begin(async |transaction| {
            sqlx::query("DELETE FROM tower_offload_client WHERE id = $1").bind(id).execute(&mut **transaction).await
        });
        end.await?.map(drop).map_err(store_error)
    }

    /// The jobs that somebody asks to cancel and that are not over.
    pub(in crate::jobs) async fn cancel_requests(&self) -> Result<Vec<i64>, StoreError> {
        const REQUESTS: &str = "
SELECT river_id FROM tower_offload_task WHERE river_id IS NOT NULL AND state < 10 AND cancel_requested_at IS NOT NULL";
        match &self.engine {
            Engine::Postgres(postgres) => {
                let requests = postgres
                    .connections
                    .begin(async |transaction| sqlx::query_scalar(REQUESTS).fetch_all(&mut **transaction).await);
                requests.await?.map_err(store_error)
            }
            Engine::Sqlite(sqlite) => {
                sqlx::query_scalar(REQUESTS).fetch_all(&sqlite.readers).await.map_err(store_error)
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
                    postgres.connections.read(async |connection| report.execute(connection).await).await?;
                }
                Ok(())
            }
            Engine::Sqlite(sqlite) => {
                let mut writer = sqlite.writer.lock().await;
                let reported = writer.begin(async |transaction| {
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
                let adopt = postgres.connections.begin(async |transaction| {
                    postgres_pair::insert(transaction, &pairs).await?;
                    Ok::<_, Error>(found(postgres_pair::find(transaction, row.id).await?)?.id)
                });
                adopt.await
            }
            Engine::Sqlite(sqlite) => {
                let mut writer = sqlite.writer.lock().await;
                let adopt = writer.begin(async |transaction| {
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

/// What a failure of River's means for who asked.
pub(super) fn failure(error: Error) -> StoreError {
    match error {
        Error::Database(error) => store_error(error),
        error => StoreError::other(error),
    }
}
