use std::{collections::HashMap, fs, path::PathBuf, time::Duration};

use tokio::time::{sleep, timeout};

use super::{
    databases::{OnFile, OnServer},
    http::Http,
    place::Place,
    program::{PATIENCE, Program},
};

/// On Postgres, after that a process is given up.
pub(crate) const LEASE: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What all processes of a test have in common.
pub(crate) struct Scene {
    pub(crate) place: Place,
    pub(crate) http: Http,
    program: PathBuf,
    arguments: Vec<String>,
    folder: PathBuf,
}

impl Scene {
    /// `None`, and a line that says why, if the example is not built.
    pub(crate) fn on_sqlite(arguments: &[&str]) -> Option<Self> {
        Some(Self::new(Place::File(OnFile::fresh()), Program::find()?, arguments))
    }

    /// `None`, and a line that says why, if that is so or if there is no server.
    pub(crate) async fn on_postgres(arguments: &[&str]) -> Option<Self> {
        Some(Self::new(Place::Server(OnServer::fresh().await?), Program::find()?, arguments))
    }

    fn new(place: Place, program: PathBuf, arguments: &[&str]) -> Self {
        let mut random = [0; 8];
        getrandom::fill(&mut random).unwrap();
        let folder = std::env::temp_dir().join(format!("tower-offload-{:016x}", u64::from_ne_bytes(random)));
        fs::create_dir(&folder).unwrap();
        let out = folder.join("out").display().to_string();
        let lease = LEASE.as_millis().to_string();
        let common = ["--out", &out, "--lease", &lease, "--backoff", "50"];
        let arguments = common.iter().chain(arguments).map(|&argument| argument.to_owned()).collect();
        Self { place, http: Http::new(), program, arguments, folder }
    }

    fn arguments(&self, database: &str, port: u16) -> Vec<String> {
        let own = ["--database", database, "--port", &port.to_string()].map(str::to_owned);
        self.arguments.iter().cloned().chain(own).collect()
    }

    /// A process that has just begun.
    pub(crate) fn begin(&self) -> Program {
        Program::start(&self.program, &self.arguments(&self.place.url(), 0))
    }

    /// One that listens, and where.
    pub(crate) async fn start(&self) -> (Program, String) {
        self.start_on(0, &self.place.url()).await
    }

    pub(crate) async fn start_on(&self, port: u16, database: &str) -> (Program, String) {
        let mut program = Program::start(&self.program, &self.arguments(database, port));
        let url = program.listening().await;
        (program, url)
    }

    pub(crate) async fn run(&self) -> std::process::Output {
        Program::run(&self.program, &self.arguments(&self.place.url(), 0)).await
    }

    /// How many times each key is in the file.
    pub(crate) fn written(&self) -> HashMap<String, usize> {
        let mut written = HashMap::new();
        for key in fs::read_to_string(self.folder.join("out")).unwrap_or_default().lines() {
            *written.entry(key.to_owned()).or_default() += 1;
        }
        written
    }

    /// Returns when a query counts as many.
    pub(crate) async fn until(&self, query: &str, wanted: i64) {
        let look = async {
            while self.place.number(query).await != wanted {
                sleep(LOOK_EVERY).await;
            }
        };
        if timeout(PATIENCE, look).await.is_err() {
            panic!("{query}: {} and not {wanted}", self.place.number(query).await);
        }
    }

    /// Returns when every task is over.
    pub(crate) async fn until_all_is_done(&self) {
        self.until("SELECT count(*) FROM tower_offload_task WHERE state < 10", 0).await;
    }

    /// Returns when none of these attempts is said to run.
    pub(crate) async fn until_taken_back(&self, attempts: &[(i64, i64)]) {
        let look = async {
            while self.place.rows::<(i64, i64)>(RUNNING).await.iter().any(|attempt| attempts.contains(attempt)) {
                sleep(LOOK_EVERY).await;
            }
        };
        timeout(PATIENCE, look).await.expect("jobs of a process that is gone are taken back");
    }

    /// Jobs that are said to run, though no process is there, and in which attempt.
    ///
    /// Of SQLite's files a copy is looked at: to open them would tidy up what the process that died has left for the next one.
    pub(crate) async fn left_running(&self) -> Vec<(i64, i64)> {
        let Place::File(file) = &self.place else { return self.place.rows(RUNNING).await };
        let (copy, url) = (OnFile::fresh(), file.url());
        for suffix in ["", "-wal"] {
            let (from, to) = (format!("{url}{suffix}"), format!("{}{suffix}", copy.url()));
            let (from, to) = (from.trim_start_matches("sqlite:"), to.trim_start_matches("sqlite:").to_owned());
            if fs::exists(from).unwrap() {
                fs::copy(from, to).unwrap();
            }
        }
        Place::File(copy).rows(RUNNING).await
    }

    /// Jobs that a process is said to run. On Postgres only.
    pub(crate) async fn running_in(&self, process_id: u32) -> Vec<(i64, i64)> {
        let query = format!(
            "SELECT job.id, CAST(job.attempt AS bigint) FROM river_job AS job JOIN tower_offload_client AS client \
            ON client.id = job.attempted_by[array_upper(job.attempted_by, 1)] \
            WHERE job.state = 'running' AND client.name = 'process {process_id}'"
        );
        self.place.rows(&query).await
    }
}

const RUNNING: &str = "SELECT id, CAST(attempt AS bigint) FROM river_job WHERE state = 'running'";

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Makes a test on each kind of database of each function.
macro_rules! on_each_database {
    ($($name:ident $arguments:expr;)*) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(scene) = $crate::scene::Scene::on_sqlite(&$arguments) else { return };
                super::$name(scene).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(scene) = $crate::scene::Scene::on_postgres(&$arguments).await else { return };
                super::$name(scene).await;
            })*
        }
    };
}
pub(crate) use on_each_database;
