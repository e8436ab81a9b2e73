use std::{collections::HashMap, fs, path::PathBuf, sync::Mutex, time::Duration};

use tokio::time::{sleep, timeout};
use tower_offload_tests::{ReservedPort, eventually};

use super::{
    database::TestDatabase,
    databases::{OnFile, OnServer},
    http::Http,
    program::{Program, TIMEOUT},
};

/// Lease of the processes on Postgres.
pub(crate) const LEASE: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The processes of a test, with their database and their output.
pub(crate) struct Cluster {
    pub(crate) database: TestDatabase,
    pub(crate) http: Http,
    program: PathBuf,
    arguments: Vec<String>,
    folder: PathBuf,
    /// The ports of all processes so far.
    ports: Mutex<Vec<ReservedPort>>,
}

impl Cluster {
    /// Returns `None`, and prints why, if the example is not built.
    pub(crate) fn on_sqlite(arguments: &[&str]) -> Option<Self> {
        Some(Self::new(TestDatabase::Sqlite(OnFile::fresh()), Program::find()?, arguments))
    }

    /// Returns `None`, and prints why, if the example is not built or there is no server.
    pub(crate) async fn on_postgres(arguments: &[&str]) -> Option<Self> {
        Some(Self::new(TestDatabase::Postgres(OnServer::fresh().await?), Program::find()?, arguments))
    }

    fn new(database: TestDatabase, program: PathBuf, arguments: &[&str]) -> Self {
        let mut random = [0; 8];
        getrandom::fill(&mut random).unwrap();
        let folder = std::env::temp_dir().join(format!("tower-offload-{:016x}", u64::from_ne_bytes(random)));
        fs::create_dir(&folder).unwrap();
        let out = folder.join("out").display().to_string();
        let lease = LEASE.as_millis().to_string();
        let common = ["--out", &out, "--lease", &lease, "--backoff", "50"];
        let arguments = common.iter().chain(arguments).map(|&argument| argument.to_owned()).collect();
        Self { database, http: Http::new(), program, arguments, folder, ports: Mutex::default() }
    }

    fn arguments(&self, url: &str, port: u16) -> Vec<String> {
        let own = ["--database", url, "--port", &port.to_string()].map(str::to_owned);
        self.arguments.iter().cloned().chain(own).collect()
    }

    /// Reserves a port for the rest of the test: when its process was killed, a client that still
    /// uses the address is refused, and does not reach a server of another test.
    pub(crate) fn port(&self) -> u16 {
        let port = ReservedPort::new();
        let number = port.number();
        self.ports.lock().unwrap().push(port);
        number
    }

    /// Starts a process without waiting until it listens.
    pub(crate) fn spawn(&self) -> Program {
        self.spawn_on(self.port(), &self.database.url())
    }

    fn spawn_on(&self, port: u16, url: &str) -> Program {
        let program = Program::start(&self.program, &self.arguments(url, port));
        self.http.add_server(port, program.process_id);
        program
    }

    /// Starts a process, waits until it listens, and returns it with its URL.
    pub(crate) async fn start(&self) -> (Program, String) {
        self.start_on(self.port(), &self.database.url()).await
    }

    pub(crate) async fn start_on(&self, port: u16, url: &str) -> (Program, String) {
        let mut program = self.spawn_on(port, url);
        let url = program.listening().await;
        (program, url)
    }

    pub(crate) async fn run(&self) -> std::process::Output {
        Program::run(&self.program, &self.arguments(&self.database.url(), 0)).await
    }

    /// Returns how many times each key is in the output file.
    pub(crate) fn written(&self) -> HashMap<String, usize> {
        let mut written = HashMap::new();
        for key in self.lines() {
            *written.entry(key).or_default() += 1;
        }
        written
    }

    /// Returns the lines of the output file.
    pub(crate) fn lines(&self) -> Vec<String> {
        fs::read_to_string(self.folder.join("out")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Waits until a query returns this number.
    pub(crate) async fn until(&self, query: &str, wanted: i64) {
        let poll = async {
            while self.database.number(query).await != wanted {
                sleep(POLL_INTERVAL).await;
            }
        };
        if timeout(TIMEOUT, poll).await.is_err() {
            let found = self.database.number(query).await;
            panic!("{query}: {found} instead of {wanted} after {TIMEOUT:?}\n{}", self.http.servers());
        }
    }

    /// Waits until every task has finished.
    pub(crate) async fn until_finished(&self) {
        self.until("SELECT count(*) FROM tower_offload_task WHERE state < 10", 0).await;
    }

    /// Waits until none of these attempts is shown as running.
    pub(crate) async fn until_recovered(&self, attempts: &[(i64, i64)]) {
        eventually("the jobs of a crashed process are recovered", async || {
            !self.database.rows::<(i64, i64)>(RUNNING).await.iter().any(|attempt| attempts.contains(attempt))
        })
        .await;
    }

    /// Returns the jobs that are shown as running although no process is, with their attempts.
    ///
    /// On SQLite it reads a copy, because opening the files would recover what the crashed process
    /// has left.
    pub(crate) async fn left_running(&self) -> Vec<(i64, i64)> {
        let TestDatabase::Sqlite(file) = &self.database else { return self.database.rows(RUNNING).await };
        let (copy, url) = (OnFile::fresh(), file.url());
        for suffix in ["", "-wal"] {
            let (from, to) = (format!("{url}{suffix}"), format!("{}{suffix}", copy.url()));
            let (from, to) = (from.trim_start_matches("sqlite:"), to.trim_start_matches("sqlite:").to_owned());
            if fs::exists(from).unwrap() {
                fs::copy(from, to).unwrap();
            }
        }
        TestDatabase::Sqlite(copy).rows(RUNNING).await
    }

    /// Returns the jobs that are shown as running in a process. Only for Postgres.
    pub(crate) async fn running_in(&self, process_id: u32) -> Vec<(i64, i64)> {
        let query = format!(
            "SELECT job.id, CAST(job.attempt AS bigint) FROM river_job AS job JOIN tower_offload_client AS client \
            ON client.id = job.attempted_by[array_upper(job.attempted_by, 1)] \
            WHERE job.state = 'running' AND client.name = 'process {process_id}'"
        );
        self.database.rows(&query).await
    }
}

const RUNNING: &str = "SELECT id, CAST(attempt AS bigint) FROM river_job WHERE state = 'running'";

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Generates a test for each kind of database from each function.
macro_rules! on_each_database {
    ($($name:ident $arguments:expr;)*) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(cluster) = $crate::cluster::Cluster::on_sqlite(&$arguments) else { return };
                super::$name(cluster).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(cluster) = $crate::cluster::Cluster::on_postgres(&$arguments).await else { return };
                super::$name(cluster).await;
            })*
        }
    };
}
pub(crate) use on_each_database;
