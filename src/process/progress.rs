use std::{
    io::Write,
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use super::frame::{self, Reply, cut};
use crate::sync::{Mutex, lock};

/// Minimum time between two frames with progress, unless the job ends.
const INTERVAL: Duration = Duration::from_millis(20);

/// Sends the progress of jobs to the pool, in the process that runs them.
///
/// A thread sends the latest report, at most one per [`INTERVAL`]. So a loop that reports each step
/// costs a lock for each, and a report before a long step arrives although others preceded it.
pub(super) struct ProgressSender {
    /// Locked for one frame, also by the owner of this sender.
    socket: Arc<Mutex<UnixStream>>,
    /// The latest report, until it is sent. It is locked while it is sent, so that nothing of a job
    /// is sent after [`flush`](Self::flush).
    pending: Mutex<Option<Report>>,
    reported: Condvar,
    /// Initialized by the first report. `false` if the thread could not be started.
    has_thread: OnceLock<bool>,
}

struct Report {
    job: u64,
    value: f64,
    message: String,
}

impl ProgressSender {
    pub(super) fn new(socket: Arc<Mutex<UnixStream>>) -> Self {
        Self { socket, pending: Mutex::new(None), reported: Condvar::new(), has_thread: OnceLock::new() }
    }

    pub(super) fn report(self: &Arc<Self>, job: u64, value: f64, message: &str) {
        *lock(&self.pending) = Some(Report { job, value, message: cut(message).to_owned() });
        let has_thread = self.has_thread.get_or_init(|| {
            let sender = self.clone();
            thread::Builder::new().name("offload-progress".to_owned()).spawn(move || sender.run()).is_ok()
        });
        if *has_thread {
            self.reported.notify_one();
        } else {
            self.flush();
        }
    }

    /// Sends what is not sent yet. Called when a job has ended, before its result is sent.
    pub(super) fn flush(&self) {
        self.send(&mut lock(&self.pending));
    }

    fn run(&self) {
        loop {
            {
                let mut pending = lock(&self.pending);
                while pending.is_none() {
                    pending = self.reported.wait(pending).unwrap_or_else(PoisonError::into_inner);
                }
                self.send(&mut pending);
            }
            thread::sleep(INTERVAL);
        }
    }

    fn send(&self, pending: &mut Option<Report>) {
        if let Some(Report { job, value, message }) = pending.take() {
            let frame = frame::encode(&Reply::Progress { job, value, message: &message });
            // If the pool is gone, the thread that reads ends the process.
            let _ = lock(&self.socket).write_all(&frame);
        }
    }
}
