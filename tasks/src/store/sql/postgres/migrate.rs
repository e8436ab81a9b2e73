use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row};
use tokio::time::{Instant, sleep, timeout};

use super::{
    connection::{Connections, RESPONSE_TIMEOUT, Role, no_response},
    schema::{CREATE_MIGRATION, STEPS},
    schema_name::Schema,
};
use crate::{
    StoreError, Timestamp,
    store::sql::{error::store_error_at, migration::missing_steps, row::millis},
};

/// Identifies the lock for migrations of the store. The number is arbitrary.
const LOCK: i64 = 8_388_076_842_113;
/// Maximum time to wait for another process that migrates.
const LOCK_TIMEOUT: Duration = Duration::from_secs(8);
/// The session that holds the lock would be ended after 5 s without a statement.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);

impl Connections {
    /// Creates the tables, or migrates the tables of an earlier version.
    ///
    /// If they are of this version, no lock is taken and no right but `SELECT` is needed.
    ///
    /// # Errors
    ///
    /// If the schema is to be changed and `may_migrate` is `false`, the error names what is missing.
    pub(super) async fn migrate(&self, may_migrate: bool) -> Result<(), StoreError> {
        let version = self.transaction(Role::Write, async |connection| version(connection).await).await?;
        if missing_steps(STEPS, version)?.next().is_none() {
            return Ok(());
        }
        if !may_migrate {
            let of = self.schema().name().map_or_else(String::new, |name| format!(" of the schema {name:?}"));
            let steps = STEPS.len();
            return Err(not_migrated(&[format!(
                "the tables `tower_offload_..`{of} have version {version} of {steps}"
            )]));
        }
        let schema = self.schema();
        self.with_migration_lock(LOCK, async {
            self.migration(async |connection| {
                create_schema(connection, schema).await?;
                migrate(connection).await
            })
            .await?
        })
        .await
    }

    /// Runs `work`, which migrates a schema, while no other process does so. `key` identifies the
    /// schema.
    ///
    /// A process that is stopped or loses its network releases the lock within 5 s: it belongs to a
    /// transaction, in which this method executes a statement each second.
    ///
    /// # Errors
    ///
    /// If the lock is not available within 8 s, the error names the session that holds it. If the
    /// session is ended, or the server does not respond for 10 s, `work` is dropped.
    pub(crate) async fn with_migration_lock<T>(
        &self,
        key: i64,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut connected = self.servers.connect(Duration::ZERO).await?;
        let (connection, name) = (&mut connected.connection, self.servers.name(connected.server));
        match timeout(LOCK_TIMEOUT * 2, acquire(connection, key)).await {
            Err(_) => return Err(no_response(name, LOCK_TIMEOUT * 2)),
            Ok(Err(error)) => return Err(store_error_at(name, error)),
            Ok(Ok(Some(holder))) => {
                return Err(StoreError::unavailable(format!(
                    "another session on {name} has held the lock for migrations for {LOCK_TIMEOUT:?}: {holder}"
                )));
            }
            Ok(Ok(None)) => {}
        }
        let done = {
            let (mut work, mut lost) = (pin!(work), pin!(lock_lost(connection, name)));
            let done = poll_fn(|cx| match work.as_mut().poll(cx) {
                Poll::Pending => lost.as_mut().poll(cx).map(Err),
                done => done,
            });
            done.await
        };
        let _ = timeout(KEEP_ALIVE_INTERVAL, connected.connection.close()).await;
        done
    }

    /// Executes `change` in a transaction on a connection of its own. It may take any time, because
    /// tables may be large, so call it within [`with_migration_lock`](Self::with_migration_lock).
    ///
    /// It does not wait for long for the locks of other transactions, since all later transactions
    /// would wait behind it.
    pub(crate) async fn migration<T>(
        &self,
        change: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let mut connected = self.servers.connect(Duration::ZERO).await?;
        let (connection, name) = (&mut connected.connection, self.servers.name(connected.server));
        let set = format!("SET LOCAL lock_timeout = {}", LOCK_TIMEOUT.as_millis());
        let work = async {
            let mut transaction = connection.begin().await?;
            sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut *transaction).await?;
            let value = change(&mut transaction).await?;
            transaction.commit().await?;
            Ok(value)
        };
        let done = work.await.map_err(|error| store_error_at(name, error));
        let _ = timeout(KEEP_ALIVE_INTERVAL, connected.connection.close()).await;
        done
    }
}

/// Executes a statement each second. Returns once that fails, which ends the transaction with the
/// lock, so that another process may migrate.
async fn lock_lost(connection: &mut PgConnection, server: &str) -> StoreError {
    let mut last_response = Instant::now();
    loop {
        sleep(KEEP_ALIVE_INTERVAL).await;
        match timeout(KEEP_ALIVE_INTERVAL, sqlx::raw_sql("SELECT 1").execute(&mut *connection)).await {
            Ok(Ok(_)) => last_response = Instant::now(),
            Ok(Err(error)) => return store_error_at(server, error),
            Err(_) if last_response.elapsed() >= RESPONSE_TIMEOUT => return no_response(server, RESPONSE_TIMEOUT),
            Err(_) => {}
        }
    }
}

/// Begins a transaction with the lock. Returns the session that holds it if it is not available.
async fn acquire(connection: &mut PgConnection, key: i64) -> Result<Option<String>, sqlx::Error> {
    const LOCK_NOT_AVAILABLE: &str = "55P03";
    let begin = format!("BEGIN; SET LOCAL lock_timeout = {}", LOCK_TIMEOUT.as_millis());
    let lock = format!("{begin}; SELECT pg_advisory_xact_lock({key})");
    match sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *connection).await {
        Ok(_) => Ok(None),
        Err(sqlx::Error::Database(error)) if error.code().is_some_and(|code| code == LOCK_NOT_AVAILABLE) => {
            sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
            holder(connection, key).await.map(Some)
        }
        Err(error) => Err(error),
    }
}

/// Describes the session that holds a lock, and how to end it.
async fn holder(connection: &mut PgConnection, key: i64) -> Result<String, sqlx::Error> {
    const HOLDER: &str = "
SELECT pid, coalesce(application_name, ''), coalesce(client_addr::text, 'a local socket'), coalesce(state, 'unknown')
FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint << 32) | objid::bigint = $1 LIMIT 1";
    let found = sqlx::query(HOLDER).bind(key).fetch_optional(connection).await?;
    let Some(row) = found else { return Ok("it has just released it: start again".to_owned()) };
    let (pid, name): (i32, String) = (row.try_get(0)?, row.try_get(1)?);
    let (address, state): (String, String) = (row.try_get(2)?, row.try_get(3)?);
    Ok(format!(
        "process {pid} of the server, for {name:?} at {address}, which is {state}: wait for it, or end it with `SELECT \
         pg_terminate_backend({pid})`"
    ))
}

/// Returns the error for a schema that is not up to date, and that this process may not change.
pub(crate) fn not_migrated(missing: &[String]) -> StoreError {
    StoreError::other(format!(
        "{}: run the statements of `jobs::migration_sql`, or of `store::migration_sql` without jobs, as the owner of the \
         tables, or remove `migrate(false)`",
        missing.join(", and ")
    ))
}

/// Creates the schema, for which the right to create schemas in the database is needed, if it does
/// not exist.
async fn create_schema(connection: &mut PgConnection, schema: &Schema) -> Result<(), sqlx::Error> {
    let Some(create) = schema.create() else { return Ok(()) };
    let exists = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)");
    if !exists.bind(schema.name()).fetch_one(&mut *connection).await? {
        sqlx::raw_sql(AssertSqlSafe(create)).execute(connection).await?;
    }
    Ok(())
}

/// Returns a script that creates the tables, or migrates them from any earlier version.
/// It has no effect on tables of this version.
pub(crate) fn migration_sql(schema: &Schema) -> String {
    let mut script = schema.create().map_or_else(String::new, |create| format!("{create};\n"));
    script += &schema.set_search_path();
    script += CREATE_MIGRATION;
    script += ";\n";
    for (version, step) in (1..).zip(STEPS) {
        script += &migration_step(
            &format!("NOT EXISTS (SELECT 1 FROM tower_offload_migration WHERE version >= {version})"),
            &format!(
                "{step}INSERT INTO tower_offload_migration (version, applied_at) VALUES \
                 ({version}, (extract(epoch FROM clock_timestamp()) * 1000)::bigint);\n"
            ),
        );
    }
    script
}

/// Returns a statement that executes `step` if `condition` is true.
pub(crate) fn migration_step(condition: &str, step: &str) -> String {
    format!("DO $migration$ BEGIN IF {condition} THEN EXECUTE $step${step}$step$; END IF; END $migration$;\n")
}

/// Returns the version of the schema, which is 0 if there is none.
async fn version(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    // Checked first, because a user who may use the tables may not be allowed to create any.
    let exists = sqlx::query_scalar("SELECT to_regclass('tower_offload_migration') IS NOT NULL");
    if !exists.fetch_one(&mut *connection).await? {
        return Ok(0);
    }
    let version = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM tower_offload_migration");
    version.fetch_one(connection).await
}

async fn migrate(connection: &mut PgConnection) -> Result<Result<(), StoreError>, sqlx::Error> {
    let version = version(&mut *connection).await?; // another process may have migrated
    let steps = match missing_steps(STEPS, version) {
        Ok(steps) => steps,
        Err(error) => return Ok(Err(error)),
    };
    if version == 0 {
        sqlx::raw_sql(CREATE_MIGRATION).execute(&mut *connection).await?;
    }
    let applied_at = millis(Timestamp::from(std::time::SystemTime::now()));
    for (version, step) in steps {
        sqlx::raw_sql(step).execute(&mut *connection).await?;
        let insert = sqlx::query("INSERT INTO tower_offload_migration (version, applied_at) VALUES ($1, $2)");
        insert.bind(version).bind(applied_at).execute(&mut *connection).await?;
    }
    Ok(Ok(()))
}
