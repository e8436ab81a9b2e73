//! Installs River's tables and the triggers on them.

use riverqueue::{
    migrate::{MIGRATION_LINE_MAIN, PostgresMigrator},
    sqlx::{self, PgConnection, PgPool, Row},
};

use super::{
    super::recovery::{RIVER_VERSION, check_river_version},
    PostgresJobs,
};
use crate::{
    StoreError,
    store::sql::postgres::{
        connection::Role,
        migrate::{migration_step, not_migrated},
        schema_name::Schema,
    },
};

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

const TRIGGERS_SQL: &str = concat!(include_str!("triggers.sql"), include_str!("sequences.sql"));

/// The number of triggers that are enabled.
macro_rules! enabled_triggers {
    () => {
        "(SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'tower\\_offload\\_%' AND tgenabled <> 'D' \
         AND tgrelid IN (to_regclass('river_job'), to_regclass('tower_offload_touched')))"
    };
}

/// Versions of River's tables and of the triggers, and the number of triggers that are enabled. The
/// functions may exist without the triggers, if `river_job` was dropped and created again.
const INSTALLED: &str = concat!(
    "SELECT CASE WHEN comment ~ '^[0-9]{1,9}$' THEN comment::bigint END, ",
    enabled_triggers!(),
    " FROM obj_description(to_regprocedure('tower_offload_fence()'), 'pg_proc') AS comment"
);
const RIVER_INSTALLED: &str = "SELECT coalesce(max(version), 0) FROM river_migration WHERE line = 'main'";
/// River's first versions have no lines.
const HAS_LINES: &str = "
SELECT EXISTS (SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('river_migration') AND attname = 'line' AND NOT attisdropped)";

/// What a database has of River and of the triggers.
struct Installed {
    river: i64,
    triggers: Option<i64>,
    enabled: i64,
}

impl Installed {
    async fn read(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let has_lines: bool = sqlx::query_scalar(HAS_LINES).fetch_one(&mut *connection).await?;
        let river = match has_lines {
            true => sqlx::query_scalar(RIVER_INSTALLED).fetch_one(&mut *connection).await?,
            false => 0,
        };
        let row = sqlx::query(INSTALLED).fetch_one(connection).await?;
        Ok(Self { river, triggers: row.try_get(0)?, enabled: row.try_get(1)? })
    }

    fn has_triggers(&self) -> bool {
        (self.triggers, self.enabled) == (Some(TRIGGER_VERSION), TRIGGERS)
    }

    /// Returns an error if the database is newer than this crate.
    fn check_supported(&self) -> Result<(), StoreError> {
        if self.river > RIVER_VERSION {
            check_river_version(self.river)?;
        }
        check_trigger_version(self.triggers)
    }

    /// Returns what is missing.
    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.river < RIVER_VERSION {
            missing.push(format!("River's tables have version {} of {RIVER_VERSION}", self.river));
        }
        if !self.has_triggers() {
            missing.push(match self.triggers {
                Some(TRIGGER_VERSION) => {
                    format!("{} of the {TRIGGERS} triggers on `river_job` are enabled", self.enabled)
                }
                version => format!(
                    "the triggers on `river_job` have version {} of {TRIGGER_VERSION}",
                    version.unwrap_or_default()
                ),
            });
        }
        missing
    }
}

impl PostgresJobs {
    /// Migrates River's tables and installs the triggers. A lock serializes processes that start at
    /// the same time.
    ///
    /// If they are up to date, no lock is taken and no right on the schema is needed.
    pub(super) async fn migrate(&self, pool: &PgPool) -> Result<(), StoreError> {
        const LOCK: i64 = 8_388_076_842_114;
        let connections = &self.postgres.connections;
        let installed =
            connections.read(Role::Maintenance, async |connection| Installed::read(connection).await).await?;
        installed.check_supported()?;
        let missing = installed.missing();
        if missing.is_empty() {
            return Ok(());
        }
        if !self.postgres.migrates {
            return Err(not_migrated(&missing));
        }
        let migrate = async {
            PostgresMigrator::new(pool.clone()).migrate_up().await.map_err(StoreError::other)?;
            self.install().await
        };
        connections.with_migration_lock(LOCK, migrate).await
    }

    async fn install(&self) -> Result<(), StoreError> {
        let installed = self.postgres.connections.migration(async |connection| {
            let installed = Installed::read(&mut *connection).await?;
            let supported =
                check_river_version(installed.river).and_then(|()| check_trigger_version(installed.triggers));
            if supported.is_ok() && !installed.has_triggers() {
                sqlx::raw_sql(TRIGGERS_SQL).execute(&mut *connection).await?;
                sqlx::raw_sql(SET_VERSION).execute(&mut *connection).await?;
            }
            Ok(supported)
        });
        installed.await?
    }
}

/// Returns a script that creates River's tables and the triggers, or migrates them from any earlier
/// version. It follows the script for the tables of tasks.
pub(in crate::jobs) fn migration_sql(schema: &Schema) -> String {
    // River puts the name of the schema here. The session's search path leads to it.
    const PREFIX: &str = "/* TEMPLATE: schema */";
    let mut script = schema.set_search_path();
    for migration in PostgresMigrator::all_versions() {
        let (version, up) = (migration.version, migration.up_sql.replace(PREFIX, ""));
        let condition = match version {
            1 => "to_regclass('river_migration') IS NULL".to_owned(),
            2..=5 => {
                let has_lines = HAS_LINES.trim_start().trim_start_matches("SELECT ");
                format!("NOT {has_lines} AND NOT EXISTS (SELECT 1 FROM river_migration WHERE version >= {version})")
            }
            _ => format!(
                "NOT EXISTS (SELECT 1 FROM river_migration WHERE line = '{MIGRATION_LINE_MAIN}' AND version >= {version})"
            ),
        };
        let record = match version {
            1..=4 => format!("INSERT INTO river_migration (version) VALUES ({version})"),
            _ => format!("INSERT INTO river_migration (line, version) VALUES ('{MIGRATION_LINE_MAIN}', {version})"),
        };
        script += &migration_step(&condition, &format!("{up}\n;{record};\n"));
    }
    let version = "obj_description(to_regprocedure('tower_offload_fence()'), 'pg_proc')";
    let installed = format!("coalesce(CASE WHEN {version} ~ '^[0-9]{{1,9}}$' THEN {version}::bigint END, 0)");
    // Also if triggers are disabled, or are gone with the table.
    let enabled = enabled_triggers!();
    let is_needed =
        format!("{installed} < {TRIGGER_VERSION} OR ({installed} = {TRIGGER_VERSION} AND {enabled} <> {TRIGGERS})");
    script + &migration_step(&is_needed, &format!("{TRIGGERS_SQL}{SET_VERSION};\n"))
}
