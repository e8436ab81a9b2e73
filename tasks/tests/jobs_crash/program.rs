use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Output, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// Timeout of each step, to fail a test that hangs. No passing test reaches it.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(120);

/// A running example. It is killed when its test fails.
pub(crate) struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    pub(crate) process_id: u32,
}

/// Returns the state of a process as the system reports it, or that there is none.
pub(crate) fn state_of(process_id: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{process_id}/status")).unwrap_or_default();
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    format!("process {process_id}: {}", state.map_or("has exited", str::trim))
}

impl Program {
    /// Returns the path of the example, relative to that of this test. Returns `None`, and prints
    /// why, if it is not built.
    pub(crate) fn find() -> Option<PathBuf> {
        let test = std::env::current_exe().unwrap();
        let program = test.parent().and_then(Path::parent).unwrap().join("examples/jobs");
        if !program.exists() {
            println!("skipped: the example `jobs` is not built: run `cargo build --examples`");
            return None;
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/jobs.rs");
        let changed = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).unwrap();
        assert!(
            changed(&program) >= changed(&source),
            "the example is older than its source: run `cargo build --examples`"
        );
        Some(program)
    }

    pub(crate) fn start(program: &Path, arguments: &[String]) -> Self {
        let mut command = Command::new(program);
        let mut child = command.args(arguments).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let process_id = child.id().unwrap();
        Self { child, lines, process_id }
    }

    /// Runs it until it exits, and returns its output.
    pub(crate) async fn run(program: &Path, arguments: &[String]) -> Output {
        let output = Command::new(program).args(arguments).kill_on_drop(true).output();
        timeout(TIMEOUT, output).await.expect("it does not exit").unwrap()
    }

    /// Waits until it listens, and returns its URL.
    pub(crate) async fn listening(&mut self) -> String {
        let line = self.line().await.expect("it exited without listening");
        let address = line.strip_prefix("listening on ").and_then(|rest| rest.split(',').next());
        address.expect(&line).to_owned()
    }

    async fn line(&mut self) -> Option<String> {
        match timeout(TIMEOUT, self.lines.next_line()).await {
            Ok(line) => line.unwrap(),
            Err(_) => panic!("neither a line nor the end after {TIMEOUT:?}; {}", state_of(self.process_id)),
        }
    }

    pub(crate) async fn signal(&self, name: &str) {
        let id = self.process_id.to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().await.unwrap().success());
    }

    /// Kills the process with SIGKILL, and waits until it has exited.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Waits until it has exited.
    pub(crate) async fn exited(&mut self) -> ExitStatus {
        self.child.wait().await.unwrap()
    }

    /// Sends SIGTERM, waits until it has exited, and returns its last line.
    pub(crate) async fn terminate(mut self) -> String {
        self.signal("TERM").await;
        let mut last = String::new();
        while let Some(line) = self.line().await {
            last = line;
        }
        let status = timeout(TIMEOUT, self.exited()).await.expect("it does not exit");
        assert_eq!(status.code(), Some(0), "{last}");
        last
    }
}
