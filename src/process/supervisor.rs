//! The thread that starts processes, reads their output, and reaps those that have ended.
//!
//! All processes are started by this thread, which lives as long as the pool has processes: Linux
//! sends the parent-death signal when the *thread* that has started a process ends.

use std::{os::fd::AsFd, time::Duration};

use tokio::time::Instant;

use super::{
    child::Process,
    error::{StartError, StartErrorKind},
    frame::{self, Progress, Reply},
    os::{self, PollSet},
    output::OutputStream,
    shared::Shared,
    worker,
};
use crate::{panic::ignore_panic, sync::lock};

/// Time after which a process that was asked to end, by closing its socket, is killed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs until the pool is closed and every process is reaped.
pub(super) fn run(shared: &Shared) {
    let mut supervisor = Supervisor { shared, starting: Vec::new(), ending: Vec::new() };
    while supervisor.step() {}
    shared.on_gone();
}

struct Supervisor<'a> {
    shared: &'a Shared,
    starting: Vec<Process>,
    /// Processes whose socket is closed, with the time at which they are killed.
    ending: Vec<(Process, Option<Instant>)>,
}

impl Supervisor<'_> {
    /// Performs what is due and waits for the next event. Returns `false` if there will be none.
    fn step(&mut self) -> bool {
        let now = Instant::now();
        self.recycle_idle(now);
        self.start_missing(now);
        self.check_starting(now);
        self.take_ended(now);
        self.reap(now);
        if self.is_done() {
            return false;
        }
        self.wait(now);
        true
    }

    /// Returns `true` if every process is reaped and none will be started. The roster and `ended`
    /// are not enough: a process that another thread moves from one to the other is in neither.
    fn is_done(&self) -> bool {
        let is_closed = lock(&self.shared.roster).is_closed();
        is_closed && lock(&self.shared.handles).is_empty()
    }

    /// Removes idle processes that have died, and one that is too old: the others are then left for
    /// jobs while its successor starts.
    fn recycle_idle(&mut self, now: Instant) {
        let mut may_recycle = self.may_recycle();
        let removed = lock(&self.shared.roster).remove_idle(|process| {
            let is_old = may_recycle && self.shared.recycle_reason(process, None, true).is_some();
            may_recycle &= !is_old;
            is_old || process.has_ended()
        });
        for process in removed {
            if !process.has_ended() {
                ignore_panic(|| self.shared.metrics.recycled(process.handle.pid, "max_age"));
            } else if process.jobs == 0 {
                lock(&self.shared.roster).delay_start(now);
            }
            process.close();
            lock(&self.shared.ended).push(process);
        }
    }

    /// Returns `true` if an idle process may be replaced because of its age.
    fn may_recycle(&self) -> bool {
        self.starting.is_empty() && lock(&self.shared.roster).can_start()
    }

    fn start_missing(&mut self, now: Instant) {
        let missing = lock(&self.shared.roster).start_missing(now);
        for _ in 0..missing {
            match Process::start(&self.shared.config) {
                Ok(process) => {
                    lock(&self.shared.handles).push(process.handle.clone());
                    ignore_panic(|| self.shared.metrics.spawned());
                    self.starting.push(process);
                }
                Err(error) => self.fail_start(StartError::new(StartErrorKind::Spawn(error))),
            }
        }
    }

    fn fail_start(&self, error: StartError) {
        ignore_panic(|| self.shared.metrics.start_failed(&error));
        lock(&self.shared.roster).on_start_failed(Instant::now(), error);
        self.shared.notify_waiting();
    }

    /// Looks whether processes have become ready.
    fn check_starting(&mut self, now: Instant) {
        let is_closed = lock(&self.shared.roster).is_closed();
        for mut process in std::mem::take(&mut self.starting) {
            match self.handshake(&mut process, now) {
                None if is_closed => {
                    process.kill();
                    self.ending.push((process, Some(now)));
                    lock(&self.shared.roster).on_start_cancelled();
                }
                None => self.starting.push(process),
                Some(Ok(())) => {
                    lock(&process.handle.output).on_ready();
                    ignore_panic(|| self.shared.metrics.started(process.handle.pid, process.started.elapsed()));
                    let closed = lock(&self.shared.roster).on_ready(process);
                    self.ending.extend(closed.map(|process| (process, Some(now))));
                    self.shared.notify_waiting();
                }
                Some(Err(error)) => {
                    process.kill();
                    self.ending.push((process, Some(now)));
                    self.fail_start(error);
                }
            }
        }
    }

    /// Returns how the start of a process has ended, if it has.
    fn handshake(&self, process: &mut Process, now: Instant) -> Option<Result<(), StartError>> {
        let failed = |kind| Some(Err(StartError::new(kind)));
        let is_closed_by_process = process.read() == Progress::Closed;
        match process.reader.next() {
            Ok(Some(reply)) => match frame::decode::<Reply<'_>>(reply) {
                Ok((Reply::Ready { executable, kinds }, _)) if executable == self.shared.config.executable => {
                    self.shared.kinds.get_or_init(|| kinds.into_iter().map(str::to_owned).collect());
                    return Some(Ok(()));
                }
                Ok((Reply::Ready { .. }, _)) => return failed(StartErrorKind::OtherExecutable),
                Ok((Reply::NotInitialized, _)) => return failed(StartErrorKind::NotInitialized),
                _ => return failed(StartErrorKind::Protocol),
            },
            Ok(None) => {}
            Err(_) => return failed(StartErrorKind::Protocol),
        }
        if let Some(exit) = process.try_reap() {
            self.shared.read_output(&process.handle, &[OutputStream::Stderr]);
            let stderr = lock(&process.handle.output).tail();
            let is_setup = exit.0.is_some_and(|status| status.code() == Some(worker::EXIT_SETUP));
            return failed(StartErrorKind::Ended { status: exit.to_string(), stderr, is_setup });
        }
        if is_closed_by_process && !process.has_ended() {
            // The program has closed stdin: it will never be ready. If it is about to end, its
            // status says more.
            return match process.reap(Duration::from_millis(100)) {
                Some(_) => self.handshake(process, now),
                None => failed(StartErrorKind::Protocol),
            };
        }
        let is_late = now.saturating_duration_since(process.started) >= self.shared.config.start_timeout;
        if is_late { failed(StartErrorKind::Silent) } else { None }
    }

    fn take_ended(&mut self, now: Instant) {
        let kill_at = now.checked_add(EXIT_TIMEOUT);
        self.ending
            .extend(std::mem::take(&mut *lock(&self.shared.ended)).into_iter().map(|process| (process, kill_at)));
    }

    /// Reaps processes that have ended, and kills those that should have.
    fn reap(&mut self, now: Instant) {
        for (mut process, mut kill_at) in std::mem::take(&mut self.ending) {
            if process.try_reap().is_some() {
                self.shared.forget(&process.handle);
                continue;
            }
            if kill_at.is_some_and(|at| now >= at) {
                process.kill();
                kill_at = None;
            }
            self.ending.push((process, kill_at));
        }
    }

    /// Waits for output, for the end of a process, for a process to be ready, for a wake-up, or
    /// until something is due.
    fn wait(&self, now: Instant) {
        let handles = lock(&self.shared.handles).clone();
        let mut poll = PollSet::default();
        poll.readable(self.shared.wake.descriptor());
        let mut streams = Vec::new();
        for handle in &handles {
            for stream in [OutputStream::Stdout, OutputStream::Stderr] {
                if !lock(&handle.output).is_closed(stream) {
                    streams.push((poll.readable(handle.stream(stream).as_fd()), handle, stream));
                }
            }
        }
        // The ends of processes that run jobs are seen by their drivers.
        let idle = lock(&self.shared.roster).map_idle(|process| (process.handle.clone(), process.expires));
        let unowned = self.starting.iter().chain(self.ending.iter().map(|(process, _)| process));
        for exit in unowned.filter_map(|process| process.handle.exit()) {
            poll.readable(exit);
        }
        for exit in idle.iter().filter_map(|(handle, _)| handle.exit()) {
            poll.readable(exit);
        }
        for process in &self.starting {
            poll.readable(process.socket());
        }
        poll.wait(self.timeout(now, idle.iter().filter_map(|(_, expires)| *expires)));
        self.shared.wake.clear();
        for (index, handle, stream) in streams {
            if poll.is_ready(index) {
                self.shared.read_output(handle, &[stream]);
            }
        }
    }

    /// Returns the time until something is due.
    fn timeout(&self, now: Instant, expiries: impl Iterator<Item = Instant>) -> Option<Duration> {
        let start_timeout = self.shared.config.start_timeout;
        let due = self.starting.iter().filter_map(|process| process.started.checked_add(start_timeout));
        let due = due.chain(self.ending.iter().filter_map(|(_, kill_at)| *kill_at));
        // Otherwise, an idle process that is too old waits for the start of another one.
        let may_recycle = self.may_recycle();
        let due = due.chain(expiries.filter(|_| may_recycle));
        let due = due.chain(lock(&self.shared.roster).next_start());
        let timeout = due.min().map(|at| at.saturating_duration_since(now));
        timeout.into_iter().chain(os::EXIT_INTERVAL).min()
    }
}
