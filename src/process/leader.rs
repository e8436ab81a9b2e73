use std::{
    fmt, io,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus},
};

use super::os::{self, ChildState};

/// A child process that leads a process group, until it is reaped. Dropping it kills the group and
/// reaps the process.
///
/// The number of the group is not used again until the process is reaped, so no signal is sent to
/// the group afterwards.
#[derive(Debug)]
pub(super) struct GroupLeader {
    pub(super) child: Child,
    exit: Option<Exit>,
}

/// How a process has ended. `None` if something other than its [`GroupLeader`] has reaped it:
/// another thread of the program, or the system because SIGCHLD is ignored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exit(pub(super) Option<ExitStatus>);

impl GroupLeader {
    /// Starts a program.
    pub(super) fn start(command: &mut Command) -> io::Result<Self> {
        Ok(Self { child: command.process_group(0).spawn()?, exit: None })
    }

    /// Kills the process group, and the process if it has left its group.
    pub(super) fn kill(&self) {
        if self.exit.is_none() && os::child_state(&self.child) != ChildState::Reaped {
            os::kill_group(&self.child);
        }
    }

    /// Returns `true` if the process has ended, reaped or not.
    pub(super) fn has_ended(&self) -> bool {
        self.exit.is_some() || os::child_state(&self.child) != ChildState::Running
    }

    /// Reaps the process if it has ended, after it has killed what is left of its group.
    pub(super) fn try_reap(&mut self) -> Option<Exit> {
        if self.exit.is_none() {
            self.exit = match os::child_state(&self.child) {
                ChildState::Running => None,
                ChildState::Ended => {
                    os::kill_group(&self.child);
                    match self.child.try_wait() {
                        Ok(status) => status.map(|status| Exit(Some(status))),
                        // Another thread was faster.
                        Err(_) => Some(Exit(None)),
                    }
                }
                ChildState::Reaped => Some(Exit(None)),
            };
        }
        self.exit
    }
}

impl Drop for GroupLeader {
    fn drop(&mut self) {
        if self.exit.is_none() {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(status) => status.fmt(f),
            None => f.write_str("exit status unknown: reaped by another part of the program"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions};

    use super::*;

    #[test]
    fn process_that_another_thread_reaps_has_ended_with_an_unknown_status() {
        let mut leader = GroupLeader::start(&mut Command::new("true")).unwrap();
        let pid = Pid::from_child(&leader.child);
        rustix::process::waitpid(Some(pid), WaitOptions::empty()).unwrap();
        assert!(leader.has_ended());
        leader.kill();
        assert!(matches!(leader.try_reap(), Some(Exit(None))));
    }

    #[test]
    fn process_that_has_ended_keeps_its_status() {
        let mut leader = GroupLeader::start(&mut Command::new("true")).unwrap();
        let id = WaitId::Pid(Pid::from_child(&leader.child));
        rustix::process::waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
        for _ in 0..2 {
            assert!(leader.try_reap().unwrap().0.unwrap().success());
        }
    }
}
