//! Replacing the workers.

use rustix::process::Signal;

use super::program::{Program, Settings, connect, pid_at, read_body, write_request};
use crate::support::{eventually, is_alive};

#[tokio::test]
async fn reload_replaces_every_worker() {
    let (program, address, old) = Program::ready(&Settings::default());
    program.signal(Signal::HUP);
    let new = [program.next_ready(), program.next_ready()];
    program.until("workers reloaded");
    assert!(new.iter().all(|pid| !old.contains(pid)));
    eventually("the old ones end", || old.iter().all(|pid| !is_alive(*pid))).await;
    assert!(new.contains(&pid_at(address)));
}

#[test]
fn request_in_flight_survives_a_reload() {
    let (program, address, old) = Program::ready(&Settings { workers: 1, ..Settings::default() });
    let mut slow = connect(address);
    program.signal(Signal::HUP);
    program.next_ready();
    // Takes longer than the second for which the new worker must be ready.
    write_request(&mut slow, "/slow/2000", "keep-alive").unwrap();
    program.until("workers reloaded");
    assert_eq!(read_body(&mut slow).unwrap(), "slow");
    program.until(&format!("worker {} ended (exit status: 0)", old[0]));
    assert!(pid_at(address) != old[0]);
}

#[test]
fn sighup_during_a_reload_replaces_the_workers_again() {
    let (program, _, old) = Program::ready(&Settings { workers: 1, ..Settings::default() });
    program.set_mode("wait");
    for _ in 0..2 {
        program.signal(Signal::HUP);
        program.until("reloading the workers");
    }
    program.set_mode("serve");
    let first = program.next_ready();
    program.until(&format!("worker {} ended", old[0]));
    let second = program.next_ready();
    program.until("workers reloaded");
    program.until(&format!("worker {first} ended"));
    program.signal(Signal::TERM);
    program.until(&format!("worker {second} ended"));
    assert_eq!(program.end().0, Some(0));
}

#[test]
fn reload_that_fails_keeps_the_old_workers() {
    let (program, address, old) = Program::ready(&Settings { start_timeout: 20_000, ..Settings::default() });
    program.set_mode("fail");
    program.signal(Signal::HUP);
    program.until_contains("reload failed, the old workers continue: worker ");
    assert!((0..10).all(|_| old.contains(&pid_at(address))));
    program.set_mode("serve");
    program.signal(Signal::HUP);
    program.until("workers reloaded");
    program.signal(Signal::TERM);
    assert_eq!(program.end().0, Some(0));
}

#[test]
fn reload_to_a_version_that_dies_replaces_no_worker() {
    let (program, address, old) = Program::ready(&Settings::default());
    program.set_mode("die");
    program.signal(Signal::HUP);
    assert!(program.until("reload failed, the old workers continue: ").contains("died within a second"));
    assert!(old.iter().all(|pid| is_alive(*pid)) && old.contains(&pid_at(address)));
    program.signal(Signal::TERM);
    let (code, lines) = program.end();
    assert_eq!(code, Some(0));
    assert!(lines.contains(&"stopped: workers started: 3, died: 1, killed: 0; reloads: 0".to_owned()), "{lines:?}");
}

#[test]
fn worker_that_does_not_drain_in_a_reload_is_killed() {
    let settings = Settings { mode: "stuck", workers: 1, drain_timeout: 20, kill_timeout: 20, ..Settings::default() };
    let (program, _, old) = Program::ready(&settings);
    program.set_mode("serve");
    program.signal(Signal::HUP);
    program.until(&format!("worker {} was killed (drain_timeout)", old[0]));
    program.until(&format!("worker {} ended (signal: 9", old[0]));
    program.signal(Signal::TERM);
    assert_eq!(program.end().0, Some(0));
}
