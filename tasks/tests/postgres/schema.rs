//! The application's pool, a named schema, and migrations as a step of the deployment.

use sqlx::{
    PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tower_offload::Background;
use tower_offload_tasks::{
    SqlStore, SqlStoreBuilder, TaskId, TaskState, TaskStore, Tasks,
    jobs::{self, Jobs},
    store::Found,
};

use super::{
    databases::OnServer,
    support::{LONG, Note, accept, execute, jobs as start_jobs, text, until_ok},
};

/// A name that is an identifier only in quotes.
const SCHEMA: &str = "Jobs \"1\"";

async fn pool(database: &OnServer, connections: u32) -> PgPool {
    PgPoolOptions::new().max_connections(connections).connect(&database.url()).await.unwrap()
}

async fn tasks(builder: SqlStoreBuilder) -> Tasks {
    let tasks = Tasks::new(builder.open().await.unwrap());
    tasks.start().await.unwrap();
    tasks
}

async fn error(builder: SqlStoreBuilder) -> String {
    builder.open().await.map(|_| panic!("it was opened")).map_err(|error| text(&error)).unwrap_err()
}

async fn succeeded(tasks: &Tasks, id: TaskId) {
    let mut job = tasks.subscribe(id).await.unwrap().unwrap();
    while job.changed().await.unwrap().is_some() {}
    assert_eq!(job.record().state, TaskState::Succeeded);
}

async fn count(connection: &mut PgConnection, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(connection).await.unwrap()
}

/// Ends a job queue and its tasks, before the database is dropped.
async fn end(tasks: Tasks, jobs: Jobs) {
    let _ = jobs.shutdown(LONG).await;
    tasks.shutdown(LONG).await;
    tasks.store::<SqlStore>().unwrap().close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_tables_are_in_the_named_schema_and_a_transaction_needs_no_search_path() {
    let Some(database) = OnServer::fresh().await else { return };
    let pool = pool(&database, 2).await;
    let tasks = tasks(SqlStore::builder_with_pool(&pool).schema(SCHEMA)).await;
    let jobs = start_jobs(&tasks).await;
    accept(&tasks, &Background::default()).await.unwrap();
    let id = jobs.enqueue(Note).await.unwrap().id();
    succeeded(&tasks, id).await;

    let mut transaction = pool.begin().await.unwrap();
    sqlx::raw_sql("CREATE TABLE orders (id bigint)").execute(&mut *transaction).await.unwrap();
    let id = jobs.enqueue(Note).tx(&mut transaction).await.unwrap();
    sqlx::raw_sql("INSERT INTO orders VALUES (1)").execute(&mut *transaction).await.unwrap();
    let path = sqlx::query_scalar::<_, String>("SHOW search_path").fetch_one(&mut *transaction).await.unwrap();
    assert_eq!(path, "\"$user\", public");
    transaction.commit().await.unwrap();
    succeeded(&tasks, id).await;

    let mut transaction = pool.begin().await.unwrap();
    let id = jobs.enqueue(Note).tx(&mut transaction).await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(tasks.get(id).await.unwrap(), Found::Unknown);

    let mut connection = database.connect().await;
    let others =
        "SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname <> 'orders')
        + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace)";
    assert_eq!(count(&mut connection, others).await, 0);
    assert_eq!(count(&mut connection, "SELECT count(*) FROM \"Jobs \"\"1\"\"\".river_job").await, 2);
    end(tasks, jobs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_of_one_database_are_separate_queues() {
    let Some(database) = OnServer::fresh().await else { return };
    let one = tasks(SqlStore::builder(database.url()).schema("one")).await;
    let two = tasks(SqlStore::builder(database.url()).schema("two")).await;
    let (jobs_of_one, jobs_of_two) = (start_jobs(&one).await, start_jobs(&two).await);
    let mut connection = database.connect().await;
    execute(&mut connection, "SET search_path = two").await;
    let mut transaction = sqlx::Connection::begin(&mut connection).await.unwrap();
    let id = jobs_of_one.enqueue(Note).tx(&mut transaction).await.unwrap();
    transaction.commit().await.unwrap();
    succeeded(&one, id).await;
    assert_eq!(two.get(id).await.unwrap(), Found::Unknown);
    assert_eq!(count(&mut connection, "SELECT count(*) FROM two.river_job").await, 0);
    end(one, jobs_of_one).await;
    end(two, jobs_of_two).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn store_works_while_the_pool_of_the_application_is_exhausted() {
    let Some(database) = OnServer::fresh().await else { return };
    let pool = pool(&database, 1).await;
    let _held = pool.acquire().await.unwrap();
    let tasks = tasks(SqlStore::builder_with_pool(&pool)).await;
    let jobs = start_jobs(&tasks).await;
    let id = jobs.enqueue(Note).await.unwrap().id();
    succeeded(&tasks, id).await;
    end(tasks, jobs).await;
}

/// A test server accepts any password, so the name of the application takes its place.
#[tokio::test(flavor = "multi_thread")]
async fn options_that_the_pool_gets_later_apply_to_new_connections() {
    let Some(database) = OnServer::fresh().await else { return };
    let pool = pool(&database, 1).await;
    let tasks = tasks(SqlStore::builder_with_pool(&pool)).await;
    let jobs = start_jobs(&tasks).await;
    let options = (*pool.connect_options()).clone().application_name("rotated");
    pool.set_connect_options(options);
    let mut admin = database.connect().await;
    let terminate = "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                     WHERE datname = current_database() AND pid <> pg_backend_pid()) AS ended";
    assert!(count(&mut admin, terminate).await > 0);
    let id = until_ok(async || jobs.enqueue(Note).await).await.id();
    succeeded(&tasks, id).await;
    let rotated =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'rotated'";
    assert!(count(&mut admin, rotated).await > 1, "those of the store, and of River");
    end(tasks, jobs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_options_and_numbers_of_connections_are_used() {
    let Some(database) = OnServer::fresh().await else { return };
    let options: PgConnectOptions = database.url().parse().unwrap();
    let builder = SqlStore::builder_with_options(options.application_name("mine")).read_connections(1);
    let store = builder.maintenance_connections(1).open().await.unwrap();
    let reads = (0..100).map(async |_| {
        store.get(TaskId::from_bytes([7; TaskId::BYTES])).await.unwrap();
    });
    futures_util::future::join_all(reads).await;
    let mine = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'mine'";
    assert_eq!(count(&mut database.connect().await, mine).await, 3, "for leases, writes and reads");
    store.close().await.unwrap();
}

#[tokio::test]
async fn store_that_does_not_migrate_names_what_is_missing() {
    let Some(database) = OnServer::fresh().await else { return };
    let builder = || SqlStore::builder(database.url()).schema("app").migrate(false);
    let missing = error(builder()).await;
    assert!(["\"app\"", "version 0 of", "jobs::migration_sql"].iter().all(|part| missing.contains(part)), "{missing}");
    let mut connection = database.connect().await;
    assert_eq!(count(&mut connection, "SELECT count(*) FROM pg_namespace WHERE nspname = 'app'").await, 0);

    let owner = SqlStore::builder(database.url()).schema("app").open().await.unwrap();
    let store = builder().open().await.unwrap();
    let check = async || jobs::migrate(&store).await.map_err(|error| text(&error)).unwrap_err();
    let missing = check().await;
    assert!(
        ["River's tables have version 0 of", "the triggers"].iter().all(|part| missing.contains(part)),
        "{missing}"
    );
    jobs::migrate(&owner).await.unwrap();
    execute(&mut connection, "ALTER TABLE app.river_job DISABLE TRIGGER tower_offload_fence").await;
    let missing = check().await;
    assert!(missing.contains("are enabled") && !missing.contains("River's tables"), "{missing}");
    execute(&mut connection, "ALTER TABLE app.river_job ENABLE TRIGGER tower_offload_fence").await;
    jobs::migrate(&store).await.unwrap();
    owner.close().await.unwrap();
    store.close().await.unwrap();
}

/// Returns what the schemas of the application contain, for comparison.
async fn contents(database: &OnServer) -> Vec<String> {
    const CONTENTS: &str = "
SELECT format('%s %s %s', relname, attname, format_type(atttypid, atttypmod)) FROM pg_attribute JOIN pg_class ON attrelid = pg_class.oid
WHERE relnamespace = 'app'::regnamespace AND attnum > 0 AND NOT attisdropped
UNION ALL SELECT format('%s %s', proname, prosrc) FROM pg_proc WHERE pronamespace = 'app'::regnamespace
UNION ALL SELECT pg_get_triggerdef(pg_trigger.oid) FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT format('migration %s', version) FROM app.tower_offload_migration
UNION ALL SELECT format('migration %s of %s', version, line) FROM app.river_migration
UNION ALL SELECT obj_description('app.tower_offload_fence()'::regprocedure, 'pg_proc')
ORDER BY 1";
    sqlx::query_scalar(CONTENTS).fetch_all(&mut database.connect().await).await.unwrap()
}

/// Executes a script like `psql`, each statement in a transaction of its own.
async fn run(connection: &mut PgConnection, script: &str) {
    for statement in script.split_inclusive("END $migration$;\n") {
        execute(connection, statement).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn migration_script_creates_what_the_start_of_a_queue_creates() {
    let Some(scripted) = OnServer::fresh().await else { return };
    let Some(started) = OnServer::fresh().await else { return };
    let script = jobs::migration_sql(Some("app")).unwrap();
    run(&mut scripted.connect().await, &script).await;

    let tasks_of = async |database: &OnServer, migrate| {
        tasks(SqlStore::builder(database.url()).schema("app").migrate(migrate)).await
    };
    let tasks = tasks_of(&started, true).await;
    let jobs = start_jobs(&tasks).await;
    end(tasks, jobs).await;
    assert_eq!(contents(&scripted).await, contents(&started).await);

    // It has no effect on a database that is up to date, also in the search path.
    for script in [&script, &jobs::migration_sql(None).unwrap()] {
        let mut connection = started.connect().await;
        execute(&mut connection, "SET search_path = app").await;
        run(&mut connection, script).await;
        assert_eq!(contents(&scripted).await, contents(&started).await);
    }
    let tasks = tasks_of(&scripted, false).await;
    let jobs = start_jobs(&tasks).await;
    let id = jobs.enqueue(Note).await.unwrap().id();
    succeeded(&tasks, id).await;
    end(tasks, jobs).await;
}

#[tokio::test]
async fn options_that_are_not_valid_are_refused_by_name() {
    let url = "postgres://nobody@localhost:1/nothing";
    for (builder, expected) in [
        (SqlStore::builder(url).schema(""), "schema name"),
        (SqlStore::builder(url).schema("x".repeat(47)), "schema name"),
        (SqlStore::builder(url).read_connections(0), "`read_connections` must be between 1 and 1000"),
        (SqlStore::builder(url).maintenance_connections(1001), "`maintenance_connections`"),
        (SqlStore::builder(url).job_connections(1), "`job_connections` must be between 2"),
        (SqlStore::builder("sqlite:unused.db").schema("app"), "SQLite has no schemas"),
    ] {
        let error = error(builder).await;
        assert!(error.contains(expected), "{error}");
    }
}
