use std::{fmt, io, sync::Arc, time::Duration};

use super::{
    Gate, Job, Left, QueuePolicy, Rejection,
    crew::{Crew, Hand, Role, Step, Turn},
    replies::Replies,
    roster::Limits,
    stretch::Stretch,
};
use crate::panic::{catch_unwind, drop_payload, ignore_panic};

/// What `ThreadPool`, `Rayon` and `TokioBlocking` have in common: a gate, a crew and a way to get one more thread.
pub(super) struct Workers {
    gate: Gate,
    crew: Crew<Job>,
    policy: Policy,
    replies: Replies,
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
        Arc::new(Self { gate, crew, policy, replies: Replies::new(), spawn: Box::new(spawn) })
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
            let _ = std::thread::Builder::new().name("offload-reaper".to_owned()).spawn(move || worker.run());
        } else {
            let _ = (self.spawn)(worker);
        }
    }
}

impl Worker {
    fn new(workers: Arc<Workers>, hand: Hand<Job>) -> Self {
        Self { workers, hand, done: false }
    }

    /// To be called on the thread, if it has something to do before it works.
    pub(super) fn arrive(&mut self) {
        if let Some(role) = self.workers.crew.arrive(&mut self.hand) {
            self.workers.spawn_or_refuse(role);
        }
    }

    /// Works until there is nothing left to do. Never unwinds.
    pub(super) fn run(mut self) {
        let Policy { keep_alive, reserved_keep_alive, .. } = self.workers.policy;
        let keep_alive = match self.hand.role() {
            Role::Ordinary => keep_alive,
            Role::Reserved => Some(reserved_keep_alive),
        };
        let stay = keep_alive != Some(Duration::ZERO);
        let mut step = self.workers.crew.step(&mut self.hand, stay);
        loop {
            step = match step {
                Step::End => break,
                Step::Run(turn) => match self.stretch(turn, stay) {
                    Some(step) => step,
                    None => {
                        let workers = self.workers.clone();
                        let _ = (workers.spawn)(self);
                        return;
                    }
                },
                Step::Sleep if !self.workers.crew.sleep(&mut self.hand, keep_alive) => break,
                Step::Sleep => self.workers.crew.step(&mut self.hand, stay),
            };
        }
        self.done = true;
    }

    /// Runs that job and those that come after it, as long as they were made in the same runtime and without sleeping. `None`
    /// if the thread is to ask for itself again.
    fn stretch(&mut self, first: Turn<Job>, stay: bool) -> Option<Step<Job>> {
        let Self { workers, hand, .. } = self;
        let Workers { gate, crew, policy, replies, .. } = &**workers;
        let runtime = first.job.runtime().filter(|_| !policy.borrowed).cloned();
        let mut stretch = Stretch::enter(runtime.as_ref(), replies);
        let mut turn = first;
        let step = loop {
            let Turn { job, spawn, more } = turn;
            if let Some(role) = spawn {
                workers.spawn_or_refuse(role);
            }
            for job in hand.shed.drain(..) {
                ignore_panic(|| job.refuse(Rejection::Expired));
            }
            // A job catches what it runs. What is left is a recorder or a subscriber that panics: not worth a thread.
            let reply = catch_unwind(|| job.turn()).unwrap_or_else(|payload| {
                drop_payload(payload);
                None
            });
            if let Some(reply) = reply {
                stretch.send(reply, more);
            }
            if policy.borrowed && !gate.is_halted() && !crew.is_empty() {
                break None;
            }
            match crew.step(hand, stay) {
                Step::Run(same) if stretch.covers(same.job.runtime()) => turn = same,
                other => break Some(other),
            }
        };
        // A job that leaks a guard of a runtime that it entered makes tokio panic here.
        ignore_panic(|| drop(stretch));
        step
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
