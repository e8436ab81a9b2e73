//! Installs River's tables and the triggers on them.

use riverqueue::{
    migrate::PostgresMigrator,
    sqlx::{self, PgPool, Row},
};

use super::{super::recovery::check_river_version, PostgresJobs};
use crate::StoreError;

/// Version of the triggers. Each change of the `.sql` files increments it, in both constants.
const TRIGGER_VERSION: i64 = 4;
const SET_VERSION: &str = "COMMENT ON FUNCTION tower_offload_fence() IS '4'";
/// Number of triggers on `river_job` and `tower_offload_touched`.
const TRIGGERS: i64 = 11;

/// Returns an error if a newer version of this crate has installed its triggers.
fn check_trigger_version(installed: Option<i64>) -> Result<(), StoreError> {
    match installed {
        Some(version) if version > TRIGGER_VERSION => Err(StoreError::other(format!(
            "the triggers on `river_job` have version {version}, but this version of tower-offload-tasks installs \
             {TRIGGER_VERSION}: use a newer one"
        ))),
        _ => Ok(()),
    }
}

impl PostgresJobs {
    /// Migrates River's tables and installs the triggers. A lock serializes processes that start at
    /// the same time.
    pub(super) async fn migrate(&self, pool: &PgPool) -> Result<(), StoreError> {
        const LOCK: i64 = 8_388_076_842_114;
        let migrate = async {
            PostgresMigrator::new(pool.clone()).migrate_up().await.map_err(StoreError::other)?;
            self.install().await
        };
        self.postgres.connections.with_migration_lock(LOCK, migrate).await
    }

    async fn install(&self) -> Result<(), StoreError> {
        const VERSION: &str = "SELECT coalesce(max(version), 0) FROM river_migration WHERE line = 'main'";
        // The functions may exist without the triggers, if `river_job` was dropped and created
        // again.
        const INSTALLED: &str = "
SELECT CASE WHEN comment ~ '^[0-9]{1,9}$' THEN comment::bigint END,
    (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'tower\\_offload\\_%' AND tgenabled <> 'D'
        AND tgrelid IN (to_regclass('river_job'), to_regclass('tower_offload_touched')))
FROM obj_description(to_regprocedure('tower_offload_fence()'), 'pg_proc') AS comment";
        let installed = self.postgres.connections.migration(async |connection| {
            let version: i64 = sqlx::query_scalar(VERSION).fetch_one(&mut *connection).await?;
            let installed = sqlx::query(INSTALLED).fetch_one(&mut *connection).await?;
            let (installed, triggers): (Option<i64>, i64) = (installed.try_get(0)?, installed.try_get(1)?);
            let supported = check_river_version(version).and_then(|()| check_trigger_version(installed));
            if supported.is_ok() && (installed, triggers) != (Some(TRIGGER_VERSION), TRIGGERS) {
                sqlx::raw_sql(include_str!("triggers.sql")).execute(&mut *connection).await?;
                sqlx::raw_sql(include_str!("sequences.sql")).execute(&mut *connection).await?;
                sqlx::raw_sql(SET_VERSION).execute(&mut *connection).await?;
            }
            Ok(supported)
        });
        installed.await?
    }
}
