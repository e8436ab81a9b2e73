//! Rights and limits of the role. The statements are in DATABASES.md.

use sqlx::PgConnection;
use tower_offload::Background;
use tower_offload_tasks::{SqlStore, TaskId, TaskStore, Tasks};

use super::{
    databases::OnServer,
    support::{LONG, Note, accept, execute, jobs, open_error, tasks, text},
};

/// A role that is dropped by [`Role::drop_from`].
struct Role(String);

impl Role {
    async fn create(database: &OnServer, connection: &mut PgConnection, options: &str) -> Self {
        let role = format!("role_of_{}", database.name);
        execute(connection, format!("CREATE ROLE {role} LOGIN PASSWORD 'secret' {options}")).await;
        Self(role)
    }

    /// Returns the URL of the database for this role.
    fn url(&self, database: &OnServer) -> String {
        let url = database.url();
        let (scheme, rest) = url.split_once("://").unwrap();
        format!("{scheme}://{}:secret@{}", self.0, rest.split_once('@').unwrap().1)
    }

    async fn drop_from(self, connection: &mut PgConnection) {
        execute(connection, format!("DROP OWNED BY {0}; DROP ROLE {0}", self.0)).await;
    }
}

/// Returns the SQL blocks of the document, with the role of the test.
fn documented(heading: &str, role: &str) -> String {
    let section = include_str!("../../DATABASES.md").split_once(&format!("## {heading}\n")).unwrap().1;
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```sql\n").skip(1).map(|block| block.split("```").next().unwrap());
    blocks.collect::<String>().replace("app_role", role)
}

#[tokio::test(flavor = "multi_thread")]
async fn documented_rights_are_sufficient_for_tasks_and_jobs() {
    let Some(database) = OnServer::fresh().await else { return };
    let mut owner = database.connect().await;
    let role = Role::create(&database, &mut owner, "").await;
    execute(&mut owner, "REVOKE CREATE ON SCHEMA public FROM PUBLIC").await;
    let error = text(&open_error(&role.url(&database)).await);
    assert!(error.contains("DATABASES.md") && error.contains("permission denied"), "{error}");

    let as_owner = tasks(&database.url()).await;
    let _ = jobs(&as_owner).await.shutdown(LONG).await;
    as_owner.shutdown(LONG).await;
    execute(&mut owner, documented("Rights", &role.0)).await;

    // The rest needs no right on the schema, whether the store may migrate or not.
    let _ = jobs(&tasks(&role.url(&database)).await).await.shutdown(LONG).await;
    let store = SqlStore::builder(role.url(&database)).migrate(false).open().await.unwrap();
    let (tasks, background) = (Tasks::new(store), Background::default());
    tasks.start().await.unwrap();
    let jobs = jobs(&tasks).await;
    accept(&tasks, &background).await.unwrap();
    let id = jobs.enqueue(Note).await.unwrap().id();
    let mut job = tasks.subscribe(id).await.unwrap().unwrap();
    while job.changed().await.unwrap().is_some() {}
    let later = jobs.enqueue(Note).delay(LONG).await.unwrap().id();
    tasks.cancel(later).await.unwrap();
    let _ = jobs.shutdown(LONG).await;
    background.shutdown(LONG).await;
    assert_eq!(tasks.shutdown(LONG).await.unwritten, []);
    role.drop_from(&mut owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documented_statements_uninstall_everything() {
    let Some(database) = OnServer::fresh().await else { return };
    let mut owner = database.connect().await;
    let count = "SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace)
        + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace)
        + (SELECT count(*) FROM pg_type WHERE typnamespace = 'public'::regnamespace)";
    assert_eq!(sqlx::query_scalar::<_, i64>(count).fetch_one(&mut owner).await.unwrap(), 0);
    for _ in 0..2 {
        let tasks = tasks(&database.url()).await;
        let jobs = jobs(&tasks).await;
        let _accepted = jobs.enqueue(Note).await.unwrap();
        let _ = jobs.shutdown(LONG).await;
        tasks.shutdown(LONG).await;
        execute(&mut owner, documented("Uninstalling", "")).await;
        assert_eq!(sqlx::query_scalar::<_, i64>(count).fetch_one(&mut owner).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn exhausted_connections_are_an_error_with_the_remedy() {
    let Some(database) = OnServer::fresh().await else { return };
    let mut owner = database.connect().await;
    let role = Role::create(&database, &mut owner, "SUPERUSER").await;
    execute(&mut owner, format!("ALTER ROLE {} NOSUPERUSER CONNECTION LIMIT 1", role.0)).await;
    let error = open_error(&role.url(&database)).await;
    assert!(error.is_unavailable());
    assert!(text(&error).contains("max_connections"), "{}", text(&error));
    role.drop_from(&mut owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn store_uses_the_documented_number_of_connections() {
    let Some(database) = OnServer::fresh().await else { return };
    let store = SqlStore::open(&database.url()).await.unwrap();
    let reads = (0..100).map(async |_| {
        store.get(TaskId::from_bytes([7; TaskId::BYTES])).await.unwrap();
    });
    futures_util::future::join_all(reads).await;
    let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let mut connection = database.connect().await;
    let connections = sqlx::query_scalar::<_, i64>(count).fetch_one(&mut connection).await.unwrap();
    assert_eq!(connections, 5, "one for leases, one for writes, three for reads; there was no maintenance");
    store.close().await.unwrap();
}
