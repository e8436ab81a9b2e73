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

/// Only so that what hangs fails its test; nothing here takes near as long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The example, as it was started. It is killed when its test fails.
pub(crate) struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    pub(crate) process_id: u32,
}

impl Program {
    /// Where cargo puts it: beside the folder of this test. `None`, and why, if it did not build it.
    pub(crate) fn find() -> Option<PathBuf> {
        let test = std::env::current_exe().unwrap();
        let program = test.parent().and_then(Path::parent).unwrap().join("examples/durable");
        if !program.exists() {
            println!("skipped: the example `durable` is not built: only this test was");
            return None;
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/durable.rs");
        let changed = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).unwrap();
        assert!(changed(&program) >= changed(&source), "it is older than its source: run `cargo build --examples`");
        Some(program)
    }

    pub(crate) fn start(program: &Path, arguments: &[String]) -> Self {
        let mut command = Command::new(program);
        let mut child = command.args(arguments).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let process_id = child.id().unwrap();
        Self { child, lines, process_id }
    }

    /// To its end, with all that it says.
    pub(crate) async fn run(program: &Path, arguments: &[String]) -> Output {
        let output = Command::new(program).args(arguments).kill_on_drop(true).output();
        timeout(PATIENCE, output).await.expect("it ends").unwrap()
    }

    /// Its URL, once it listens.
    pub(crate) async fn listening(&mut self) -> String {
        let line = self.line().await.expect("a line that says where it listens");
        let address = line.strip_prefix("listening on ").and_then(|rest| rest.split(',').next());
        address.expect(&line).to_owned()
    }

    async fn line(&mut self) -> Option<String> {
        timeout(PATIENCE, self.lines.next_line()).await.expect("a line, or the end").unwrap()
    }

    pub(crate) async fn signal(&self, name: &str) {
        let id = self.process_id.to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().await.unwrap().success());
    }

    /// `kill -9`; returns when it is gone.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Returns when it is gone.
    pub(crate) async fn gone(&mut self) -> ExitStatus {
        self.child.wait().await.unwrap()
    }

    /// Asks it to end. Its last line, once it has.
    pub(crate) async fn end(mut self) -> String {
        self.signal("TERM").await;
        let mut last = String::new();
        while let Some(line) = self.line().await {
            last = line;
        }
        let status = timeout(PATIENCE, self.gone()).await.expect("it ends");
        assert_eq!(status.code(), Some(0), "{last}");
        last
    }
}
