use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use super::{
    Gate, Job, Left, QueuePolicy, Rejection,
    crew::{Crew, Hand, Role},
    roster::Limits,
};

/// What `ThreadPool`, `Rayon` and `TokioBlocking` have in common: a gate, a crew and a way to get one more thread.
pub(super) struct Workers {
    gate: Gate,
    crew: Crew<Job>,
    policy: Policy,
    spawn: Box<dyn Fn(Worker) -> io::Result<()> + Send + Sync>,
}

/// How threads come and go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    pub(super) limits: Limits,
    /// How long a thread over the minimum waits for work; `None`: for ever.
    pub(super) keep_alive: Option<Duration>,
    /// How long a reserved thread waits for work.
    pub(super) reserved_keep_alive: Duration,
    pub(super) queue: QueuePolicy,
    /// Whether a thread that has more to do asks for itself again after each job: it is borrowed, and whoever else uses
    /// it gets a turn.
    pub(super) borrowed: bool,
    /// Whether a thread that looks for work may burn a core for some microseconds.
    pub(super) spin: bool,
    /// What it means when a thread cannot be had and there is no other.
    pub(super) lost: Rejection,
}

/// A thread's part. Dropped without being run, as by a runtime that shuts down, it strikes itself off the crew.
pub(super) struct Worker {
    workers: Arc<Workers>,
    hand: Hand<Job>,
    done: bool,
}

impl Workers {
    pub(super) fn new(
        gate: Gate,
        policy: Policy,
        spawn: impl Fn(Worker) -> io::Result<()> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let crew = Crew::new(policy.limits, policy.queue, policy.spin);
        Arc::new(Self { gate, crew, policy, spawn: Box::new(spawn) })
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(super) fn policy(&self) -> Policy {
        self.policy
    }

    pub(super) fn threads(&self) -> usize {
        self.crew.threads()
    }

    /// Spawns one thread ahead of any work.
    pub(super) fn hire(self: &Arc<Self>) -> io::Result<()> {
        if self.crew.hire() { (self.spawn)(Worker::new(self.clone(), Hand::hired())) } else { Ok(()) }
    }

    pub(super) fn schedule(self: &Arc<Self>, job: Job) {
        let (priority, resumed) = job.standing();
        if let Some(role) = self.crew.push(job, priority, resumed) {
            self.spawn_or_refuse(role);
        }
    }

    /// The larger of what the call waited that started last, and of what the oldest has waited that has not started.
    pub(super) fn expected_wait(&self) -> Duration {
        self.gate.expected_wait().max(self.crew.longest_wait())
    }

    /// Stops accepting. Threads finish what is queued and end; nobody waits for them.
    pub(super) fn close(&self) {
        self.gate.close();
        self.crew.close();
    }

    pub(super) async fn shutdown(self: Arc<Self>, deadline: Duration) -> Left {
        self.close();
        let left = self.gate.drain(deadline).await;
        if let Some(role) = self.crew.halt() {
            self.spawn_or_refuse(role);
        }
        left
    }

    /// If the thread cannot be had, `Worker::drop` strikes it off; the jobs wait for the other threads, or are answered
    /// if there are none.
    fn spawn_or_refuse(self: &Arc<Self>, role: Role) {
        let worker = Worker::new(self.clone(), Hand::coming(role));
        if self.gate.is_halted() {
            // The pool's own threads may be stuck in work that nobody can stop.
            let name = format!("{}-reaper", self.gate.name());
            let _ = std::thread::Builder::new().name(name).spawn(move || worker.run());
        } else {
            let _ = (self.spawn)(worker);
        }
    }
}

impl Worker {
    fn new(workers: Arc<Workers>, hand: Hand<Job>) -> Self {
        Self { workers, hand, done: false }
    }

    /// Works until there is nothing left to do. Never unwinds.
    pub(super) fn run(mut self) {
        let Policy { keep_alive, reserved_keep_alive, borrowed, .. } = self.workers.policy;
        let keep_alive = match self.hand.role() {
            Role::Ordinary => keep_alive,
            Role::Reserved => Some(reserved_keep_alive),
        };
        while let Some(turn) = self.workers.crew.next(&mut self.hand, keep_alive) {
            if let Some(role) = turn.spawn {
                self.workers.spawn_or_refuse(role);
            }
            // A job catches what it runs. What is left is a recorder or a subscriber that panics: not worth a thread.
            for job in self.hand.shed.drain(..) {
                let _ = catch_unwind(AssertUnwindSafe(|| job.refuse(Rejection::Expired)));
            }
            if let Some(job) = turn.job {
                let _ = catch_unwind(AssertUnwindSafe(|| job.run()));
            }
            if borrowed && !self.workers.gate.is_halted() && !self.workers.crew.is_empty() {
                let workers = self.workers.clone();
                let _ = (workers.spawn)(self);
                return;
            }
        }
        self.done = true;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !self.done {
            for job in self.workers.crew.lost(&self.hand) {
                job.refuse(if self.workers.gate.is_closed() { Rejection::Closed } else { self.workers.policy.lost });
            }
        }
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers")
            .field("gate", &self.gate)
            .field("policy", &self.policy)
            .field("threads", &self.threads())
            .finish_non_exhaustive()
    }
}
