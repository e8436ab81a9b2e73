//! The parent's side of a server process.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::latency::{BoxError, variants::Variant, work::Work};

/// How long a server may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// A server of one variant in a process of its own. Its drop returns when that process is gone.
#[derive(Debug)]
pub(crate) struct ServerProcess {
    child: Child,
    address: SocketAddr,
}

impl ServerProcess {
    /// Call it from a thread of normal priority: the server inherits it.
    pub(crate) fn start(variant: &Variant, work: Work) -> Result<Self, BoxError> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .arg(variant.name)
            .arg(work.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or("the server has no standard output")?;
        // From here on the drop cleans up, whatever the server says.
        let mut server = Self { child, address: ([127, 0, 0, 1], 0).into() };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        server.address =
            line.trim().parse().map_err(|_| format!("the server of {} said `{}`", variant.name, line.trim()))?;
        Ok(server)
    }

    /// That there was a server all the time: one that died would only look slow.
    pub(crate) fn check_alive(&mut self) -> Result<(), BoxError> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("the server ended during the run ({status})").into()),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let asked = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if asked.elapsed() > PATIENCE {
                // Fails only if it has just ended.
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
