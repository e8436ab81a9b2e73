//! Installation of the triggers, also after earlier versions.

use super::{
    databases::{OnFile, OnServer},
    support::{LONG, TestDatabase, TestWorkers, start_when_free},
};
use tower_offload_tasks::{SqlStore, Tasks, jobs};

async fn start_and_stop(tasks: &Tasks) {
    let jobs = start_when_free(|| TestWorkers::new().builder(tasks)).await.unwrap();
    assert!(jobs.shutdown(LONG).await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_on_an_installed_database_changes_no_schema() {
    let database = TestDatabase::Sqlite(OnFile::fresh());
    let tasks = database.tasks().await;
    start_and_stop(&tasks).await;
    const VERSION: &str = "SELECT schema_version FROM pragma_schema_version";
    let version = database.number(VERSION).await;
    start_and_stop(&tasks).await;
    assert_eq!(database.number(VERSION).await, version);
    database.execute("DROP TRIGGER tower_offload_changed").await;
    start_and_stop(&tasks).await;
    let triggers = "SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND name = 'tower_offload_changed'";
    assert_eq!(database.number(triggers).await, 1, "it is restored");

    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let tasks = database.tasks().await;
    start_and_stop(&tasks).await;
    refuse_ddl(&database).await;
    start_and_stop(&tasks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_is_not_changed_without_migrations() {
    let file = OnFile::fresh();
    let url = file.url();
    let open = || SqlStore::builder(url.as_str()).migrate(false).open();
    let error = open().await.map(drop).unwrap_err().to_string();
    assert!(error.contains("version 0 of") && error.contains("`migrate(false)`"), "{error}");
    SqlStore::open(&url).await.unwrap().close().await.unwrap();
    let store = open().await.unwrap();
    let tasks = Tasks::new(store.clone());
    let error = jobs::migrate(&store).await.unwrap_err().to_string();
    assert!(error.contains("River's tables have version 0"), "{error}");
    assert!(TestWorkers::new().builder(&tasks).start().await.is_err_and(|error| error.is_store()));
    tasks.shutdown(LONG).await;
    store.close().await.unwrap();

    let store = SqlStore::open(&url).await.unwrap();
    jobs::migrate(&store).await.unwrap();
    store.close().await.unwrap();
    start_and_stop(&Tasks::new(open().await.unwrap())).await;
}

/// From now on every statement that changes the schema fails.
async fn refuse_ddl(database: &TestDatabase) {
    let refuse = "CREATE FUNCTION refuse_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN \
                  RAISE EXCEPTION 'DDL: %', tg_tag; END $$";
    database.execute(refuse).await;
    database.execute("CREATE EVENT TRIGGER refuse_ddl ON ddl_command_start EXECUTE FUNCTION refuse_ddl()").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn triggers_of_earlier_versions_are_removed() {
    let database = TestDatabase::Sqlite(OnFile::fresh());
    let tasks = database.tasks().await;
    start_and_stop(&tasks).await;
    for name in ["fence_1", "changed_1", "deleted_1", "fence_2", "changed_2", "deleted_2"] {
        let create = format!("CREATE TRIGGER tower_offload_{name} AFTER UPDATE ON river_job BEGIN SELECT 1; END");
        database.execute(&create).await;
    }
    start_and_stop(&tasks).await;
    let old = "SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND name GLOB 'tower_offload_*_[12]'";
    assert_eq!(database.number(old).await, 0);

    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let tasks = database.tasks().await;
    start_and_stop(&tasks).await;
    for name in ["fence_1", "changed_1", "deleted_1", "fence_2", "changed_2", "deleted_2", "truncated_2"] {
        let function = format!(
            "CREATE FUNCTION tower_offload_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$"
        );
        let trigger = format!(
            "CREATE TRIGGER tower_offload_{name} AFTER UPDATE ON river_job EXECUTE FUNCTION tower_offload_{name}()"
        );
        database.execute(&function).await;
        database.execute(&trigger).await;
    }
    start_and_stop(&tasks).await;
    for old in [
        "SELECT count(*) FROM pg_trigger WHERE tgname ~ '^tower_offload_.*_[12]$'",
        "SELECT count(*) FROM pg_proc WHERE proname ~ '^tower_offload_.*_[12]$'",
    ] {
        assert_eq!(database.number(old).await, 0, "{old}");
    }
    refuse_ddl(&database).await;
    start_and_stop(&tasks).await;
}
