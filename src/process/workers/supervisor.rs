//! Performs the actions of the fleet, and reports signals and processes to it.

use std::{io, os::fd::OwnedFd};

use rustix::process::Signal;
use tokio::time::Instant;

use super::{
    control::{Process, Program},
    error::{ErrorKind, SupervisorError},
    event::{KillReason, Reporter, SupervisorReport, WorkerEvent},
    fleet::{Action, End, Fleet, Id},
};
use crate::process::{
    leader::Exit,
    os::{self, PollSet, Signals},
};

pub(super) struct Supervision {
    program: Program,
    listeners: Vec<OwnedFd>,
    fleet: Fleet,
    processes: Vec<(Id, Process)>,
    /// SIGTERM and SIGINT.
    stop: Signals,
    reload: Signals,
    reporter: Reporter,
    /// Reason why the supervisor ends by itself.
    failure: Option<String>,
}

impl Supervision {
    /// From here on, this process handles the signals.
    pub(super) fn new(program: Program, fleet: Fleet, reporter: Reporter) -> io::Result<Self> {
        os::keep_exit_statuses()?;
        Ok(Self {
            program,
            listeners: Vec::new(),
            fleet,
            processes: Vec::new(),
            stop: Signals::new(&[Signal::TERM, Signal::INT])?,
            reload: Signals::new(&[Signal::HUP])?,
            reporter,
            failure: None,
        })
    }

    /// Runs until the supervisor was asked to end, or has failed, and every worker is reaped.
    pub(super) fn run(mut self, listeners: Vec<OwnedFd>) -> Result<SupervisorReport, SupervisorError> {
        self.listeners = listeners;
        loop {
            let now = Instant::now();
            while let Some(action) = self.fleet.next(now) {
                self.perform(action);
            }
            self.reporter.ready(self.fleet.ready());
            if self.fleet.is_done() {
                break;
            }
            self.wait();
            self.read_signals();
            self.read_processes();
        }
        match self.failure {
            Some(reason) => Err(SupervisorError(ErrorKind::Start(reason))),
            None => Ok(self.reporter.report),
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Start(id) => match Process::start(&self.program, &self.listeners) {
                Ok(process) => self.processes.push((id, process)),
                Err(error) => {
                    let reason = format!("a worker could not be started: {error}");
                    self.end(id, Ended::NotStarted(reason));
                }
            },
            Action::Drain(id) => {
                if let Some(process) = self.process(id) {
                    process.drain();
                    let pid = process.pid;
                    self.reporter.report(WorkerEvent::Draining { pid });
                }
            }
            Action::Kill(id, reason) => {
                if let Some(process) = self.process(id) {
                    process.kill(reason);
                    let pid = process.pid;
                    self.reporter.report(WorkerEvent::Killed { pid, reason });
                }
            }
            Action::ReportReloaded => self.reporter.report(WorkerEvent::Reloaded),
        }
    }

    fn process(&mut self, id: Id) -> Option<&mut Process> {
        self.processes.iter_mut().find(|(other, _)| *other == id).map(|(_, process)| process)
    }

    /// Waits for a signal, a message, the end of a process, or until something is due.
    fn wait(&self) {
        let mut poll = PollSet::default();
        poll.readable(self.stop.descriptor());
        poll.readable(self.reload.descriptor());
        for descriptor in self.processes.iter().flat_map(|(_, process)| process.descriptors()) {
            poll.readable(descriptor);
        }
        // The callback may have blocked since the last actions.
        let due = self.fleet.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
        poll.wait(due.into_iter().chain(os::EXIT_INTERVAL).min());
    }

    fn read_signals(&mut self) {
        if self.stop.take() {
            self.fleet.stop(Instant::now());
        }
        if self.reload.take() && !self.fleet.is_stopping() {
            self.reporter.report(WorkerEvent::Reloading);
            self.fleet.reload();
        }
    }

    /// Finds out which workers are ready and which have ended.
    fn read_processes(&mut self) {
        for (id, mut process) in std::mem::take(&mut self.processes) {
            // The message after the end, so that a worker that was ready and died counts as such.
            let exit = process.try_reap();
            if process.is_ready() {
                self.report_ready(id, &process);
            }
            match exit {
                Some(exit) => self.end(id, Ended::Process { pid: process.pid, exit, killed: process.killed }),
                None => self.processes.push((id, process)),
            }
        }
    }

    fn report_ready(&mut self, id: Id, process: &Process) {
        let now = Instant::now();
        if self.fleet.on_ready(id, now) {
            let (pid, after) = (process.pid, now.saturating_duration_since(process.started));
            self.reporter.report(WorkerEvent::Ready { pid, after });
        }
    }

    fn end(&mut self, id: Id, ended: Ended) {
        match (self.fleet.on_ended(id, Instant::now()), ended) {
            (End::Expected | End::Died { .. }, Ended::NotStarted(_)) => {}
            (End::Expected, Ended::Process { pid, exit, .. }) => {
                self.reporter.report(WorkerEvent::Ended { pid, status: exit.0 });
            }
            (End::Died { restart_in, fails_reload }, Ended::Process { pid, exit, .. }) => {
                self.reporter.report(WorkerEvent::Died { pid, status: exit.0, restart_in });
                if fails_reload {
                    let reason = format!("worker {pid} died within a second after it was ready ({exit})");
                    self.reporter.report(WorkerEvent::ReloadFailed { reason });
                }
            }
            (End::StartFailed { retry_in }, ended) => {
                let reason = ended.into_reason();
                self.reporter.report(WorkerEvent::StartFailed { reason, retry_in: Some(retry_in) });
            }
            (End::FirstStartFailed, ended) => {
                let reason = ended.into_reason();
                self.reporter.report(WorkerEvent::StartFailed { reason: reason.clone(), retry_in: None });
                self.failure = Some(reason);
            }
            (End::ReloadFailed, ended) => {
                self.reporter.report(WorkerEvent::ReloadFailed { reason: ended.into_reason() });
            }
        }
    }
}

/// How a worker ended.
enum Ended {
    NotStarted(String),
    Process { pid: u32, exit: Exit, killed: Option<KillReason> },
}

impl Ended {
    /// Returns the reason why the worker never was ready.
    fn into_reason(self) -> String {
        match self {
            Self::NotStarted(reason) => reason,
            Self::Process { pid, killed: Some(KillReason::StartTimeout), .. } => {
                format!("worker {pid} was not ready in time: see `Worker::ready` and `start_timeout`")
            }
            Self::Process { pid, exit, .. } if exit.0.is_some_and(|status| status.success()) => {
                format!("worker {pid} returned before it has called `Worker::ready`")
            }
            Self::Process { pid, exit, .. } => format!("worker {pid} ended before it was ready ({exit})"),
        }
    }
}
