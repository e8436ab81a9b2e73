//! `shutdown_signal`. Each case is a process of its own, because a second signal ends the process.
#![cfg(unix)]

use std::{
    env,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::Duration,
};

use tower_offload::axum::shutdown_signal;

use crate::support::PATIENCE;

/// Set in the process that waits for signals.
const WAITS: &str = "TOWER_OFFLOAD_WAITS_FOR_SIGNALS";

/// This test program, as a process that waits for a signal and then hangs.
struct Program {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start() -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "signals::waits_for_a_signal", "--nocapture"])
            .env(WAITS, "")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut program = Self { child, output };
        program.says("ready");
        program
    }

    /// Reads until the process prints this line.
    fn says(&mut self, expected: &str) {
        let mut line = String::new();
        while !line.trim_end().ends_with(expected) {
            line.clear();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the process ended");
        }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Waits until the process has ended, and returns its status.
    fn ended(mut self) -> Option<i32> {
        const PAUSE: Duration = Duration::from_millis(5);
        for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.signal(), None);
                return status.code();
            }
            thread::sleep(PAUSE); // another process, so there is no notification
        }
        self.child.kill().unwrap();
        panic!("the process hangs");
    }
}

/// Does nothing, except in the process that [`Program`] starts.
#[test]
fn waits_for_a_signal() {
    if env::var_os(WAITS).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut signal, other) = (shutdown_signal().unwrap(), shutdown_signal().unwrap());
        assert!(futures_util::poll!(&mut signal).is_pending());
        println!("ready");
        signal.await;
        other.await;
        println!("stopping");
        loop {
            thread::park(); // blocks the runtime
        }
    });
}

#[test]
fn outside_a_runtime_the_panic_names_the_function_and_the_remedy() {
    let panic = std::panic::catch_unwind(shutdown_signal).unwrap_err();
    let message = panic.downcast_ref::<&str>().unwrap();
    assert!(message.contains("`shutdown_signal`") && message.contains("`Runtime::enter`"), "{message}");
}

#[test]
fn second_signal_ends_the_process_although_the_runtime_is_blocked() {
    for (first, second, status) in [("INT", "INT", 130), ("TERM", "INT", 130), ("INT", "TERM", 143)] {
        let mut program = Program::start();
        program.signal(first);
        program.says("stopping");
        assert!(program.child.try_wait().unwrap().is_none(), "one signal does not end it");
        program.signal(second);
        assert_eq!(program.ended(), Some(status), "{first}, {second}");
    }
}
