//! Workers and supervisors that end.

use std::net::{TcpListener, TcpStream};

use rustix::process::Signal;

use super::program::{POOL_MARKER, Program, REAP, Settings, pid_at, read_body, send_signal, send_slow, write_request};
use crate::support::{eventually, is_alive};

#[test]
fn sigterm_answers_the_requests_in_flight() {
    let (program, address, pids) = Program::ready(&Settings::default());
    assert!(pids.contains(&pid_at(address)));
    let mut slow = send_slow(address, 200);
    program.signal(Signal::TERM);
    assert_eq!(read_body(&mut slow).unwrap(), "slow");
    let (code, lines) = program.end();
    assert_eq!(code, Some(0));
    assert!(
        lines.iter().any(|line| line == "stopped: workers started: 2, died: 0, killed: 0; reloads: 0"),
        "{lines:?}"
    );
    assert!(pids.into_iter().all(|pid| !is_alive(pid)));
}

/// systemd signals all processes of a service by default, and the supervisor asks its workers too.
#[test]
fn sigterm_to_all_processes_answers_the_requests_in_flight() {
    let (program, address, pids) = Program::ready(&Settings { workers: 1, ..Settings::default() });
    let mut slow = send_slow(address, 200);
    for pid in [pids[0], program.pid(), pids[0]] {
        send_signal(pid, Signal::TERM);
    }
    assert_eq!(read_body(&mut slow).unwrap(), "slow");
    assert_eq!(program.end().0, Some(0));
}

#[test]
fn response_without_end_does_not_delay_the_shutdown() {
    let settings = Settings { drain_timeout: 200, ..Settings::default() };
    let (program, address, _) = Program::ready(&settings);
    let _stream = send_slow(address, 3_600_000);
    program.signal(Signal::TERM);
    let (code, lines) = program.end();
    assert_eq!(code, Some(0));
    assert!(lines.iter().any(|line| line.contains("killed: 0")), "{lines:?}");
}

#[test]
fn worker_that_ignores_the_drain_is_killed() {
    let settings = Settings { mode: "stuck", workers: 1, drain_timeout: 50, kill_timeout: 50, ..Settings::default() };
    let (program, _, pids) = Program::ready(&settings);
    program.signal(Signal::TERM);
    program.until(&format!("worker {} was killed (drain_timeout)", pids[0]));
    assert_eq!(program.end().0, Some(0));
}

/// `timeout` signals its child and then its process group.
#[test]
fn sigterm_that_comes_twice_at_once_kills_nothing() {
    let (program, address, pids) = Program::ready(&Settings { workers: 1, ..Settings::default() });
    let mut slow = send_slow(address, 200);
    program.signal(Signal::TERM);
    program.until(&format!("worker {} drains", pids[0]));
    program.signal(Signal::TERM);
    assert_eq!(read_body(&mut slow).unwrap(), "slow");
    assert_eq!(program.end().0, Some(0));
}

#[test]
fn second_sigterm_kills_the_workers() {
    let (program, _, pids) = Program::ready(&Settings { mode: "stuck", ..Settings::default() });
    program.signal(Signal::TERM);
    program.until_contains(" drains");
    program.signal_until(Signal::TERM, "was killed (halted)");
    let (code, lines) = program.end();
    assert_eq!(code, Some(0));
    assert!(lines.iter().any(|line| line.contains("killed: 2")), "{lines:?}");
    assert!(pids.into_iter().all(|pid| !is_alive(pid)));
}

#[test]
fn worker_that_dies_is_replaced() {
    let (program, address, pids) = Program::ready(&Settings::default());
    send_signal(pids[0], Signal::KILL);
    assert!(program.until(&format!("worker {} died (signal: 9", pids[0])).contains("starts in 0ns"));
    let replacement = program.next_ready();
    assert!(!pids.contains(&replacement));
    assert!([pids[1], replacement].contains(&pid_at(address)));
}

/// The system would reap the workers itself.
#[test]
fn worker_is_replaced_if_sigchld_was_ignored_at_the_start() {
    let (program, _, pids) =
        Program::ready(&Settings { launcher: &["env", "--ignore-signal=CHLD"], ..Settings::default() });
    send_signal(pids[0], Signal::KILL);
    program.until(&format!("worker {} died (signal: 9", pids[0]));
    program.next_ready();
    program.signal(Signal::TERM);
    assert_eq!(program.end().0, Some(0));
}

#[test]
fn worker_is_replaced_if_another_thread_reaps_it() {
    let (program, _, pids) = Program::ready(&Settings { variable: Some(REAP), ..Settings::default() });
    send_signal(pids[0], Signal::KILL);
    program.until(&format!("worker {} died (", pids[0]));
    program.next_ready();
    program.signal(Signal::TERM);
    assert_eq!(program.end().0, Some(0));
}

#[tokio::test]
async fn worker_that_was_ready_and_died_while_the_callback_blocked_counts_as_dead() {
    let (program, _, pids) = Program::ready(&Settings::default());
    program.set_mode("wait");
    send_signal(pids[0], Signal::KILL);
    let third: u32 = program.until("waiting ").parse().unwrap();
    program.hold();
    send_signal(pids[1], Signal::KILL);
    program.until(&format!("worker {} died", pids[1]));
    program.set_mode("die");
    eventually("the third one dies", || !is_alive(third)).await;
    program.set_mode("serve");
    program.release();
    assert_eq!(program.next_ready(), third);
    program.until(&format!("worker {third} died (exit status: 3)"));
}

#[test]
fn worker_in_another_process_group_is_killed() {
    let settings = Settings {
        mode: "stuck in another group",
        workers: 1,
        drain_timeout: 20,
        kill_timeout: 20,
        ..Settings::default()
    };
    let (program, _, pids) = Program::ready(&settings);
    program.signal(Signal::TERM);
    program.until(&format!("worker {} ended (signal: 9", pids[0]));
    assert_eq!(program.end().0, Some(0));
}

#[test]
fn worker_does_not_inherit_the_marker_of_a_pool() {
    let program = Program::start(&Settings { mode: "environment", variable: Some(POOL_MARKER), ..Settings::default() });
    assert_eq!(program.until("marker of a pool: "), "Err(NotPresent)");
}

/// With `SO_REUSEPORT` it would be reset.
#[test]
fn connection_in_the_queue_survives_the_death_of_the_worker() {
    let (program, address, pids) = Program::ready(&Settings { workers: 1, ..Settings::default() });
    send_signal(pids[0], Signal::STOP);
    let mut stream = TcpStream::connect(address).unwrap();
    write_request(&mut stream, "/pid", "close").unwrap();
    send_signal(pids[0], Signal::KILL);
    let replacement = program.next_ready();
    assert_eq!(read_body(&mut stream).unwrap(), replacement.to_string());
}

#[test]
fn sigterm_drains_a_single_worker_which_is_replaced() {
    let (program, _, pids) = Program::ready(&Settings::default());
    send_signal(pids[0], Signal::TERM);
    program.until(&format!("worker {} died (exit status: 0)", pids[0]));
    assert!(!pids.contains(&program.next_ready()));
}

#[tokio::test]
async fn workers_of_a_killed_supervisor_drain_and_end() {
    let (program, address, pids) = Program::ready(&Settings::default());
    let mut slow = send_slow(address, 200);
    program.signal(Signal::KILL);
    assert_eq!(read_body(&mut slow).unwrap(), "slow");
    eventually("the workers end", || pids.iter().all(|pid| !is_alive(*pid))).await;
    TcpListener::bind(address).unwrap();
}

#[tokio::test]
async fn stuck_workers_of_a_killed_supervisor_kill_themselves() {
    let settings = Settings { mode: "stuck", drain_timeout: 10, kill_timeout: 10, ..Settings::default() };
    let (program, _, pids) = Program::ready(&settings);
    program.signal(Signal::KILL);
    eventually("the workers end", || pids.iter().all(|pid| !is_alive(*pid))).await;
}

#[tokio::test]
async fn stuck_worker_of_a_killed_supervisor_kills_its_process_group() {
    let settings =
        Settings { mode: "stuck with a child", workers: 1, drain_timeout: 10, kill_timeout: 10, ..Settings::default() };
    let program = Program::start(&settings);
    let child = program.until("child ").parse().unwrap();
    program.next_ready();
    program.signal(Signal::KILL);
    eventually("the child ends", || !is_alive(child)).await;
}
