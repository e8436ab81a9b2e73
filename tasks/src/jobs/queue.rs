use std::{
    collections::HashSet,
    pin::Pin,
    slice,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::{Instant, sleep},
};

use super::{
    Backoff,
    client::{LeasedClient, Plan},
    database::Database,
    ended::EndedJobs,
    events::{self, Counters},
    insert::InsertRequest,
    operations::{self, PausedKinds},
    outcome::End,
    progress::ProgressBuffer,
    running::{Claim, RunningJobs},
    slots::AllSlots,
    trace::Tracing,
};
use crate::{
    SqlStore, StoreError, TaskId, Tasks, Timestamp,
    lease::{RENEWALS, keep_renewed},
    operation::{BlockedSequence, Change, Changes, OperationFuture, Pausable, QueueHook, Queues},
    store::StoreFuture,
    sync::{Mutex, lock},
};

/// State shared by the attempts of a process. It outlives each River client.
pub(super) struct Environment {
    /// The queue itself.
    pub(super) queue: Weak<Queue>,
    /// Values of the application for its workers.
    pub(super) state: super::context::State,
    pub(super) tasks: Tasks,
    pub(super) database: Database,
    pub(super) running: RunningJobs,
    pub(super) progress: Arc<ProgressBuffer>,
    pub(super) slots: AllSlots,
    pub(super) counters: Counters,
    pub(super) ended: EndedJobs,
    pub(super) backoff: Backoff,
    pub(super) paused: PausedKinds,
    pub(super) tracing: Tracing,
}

/// State of a job queue: its current client, and what maintenance has to remember.
pub(super) struct Queue {
    pub(super) environment: Arc<Environment>,
    pub(super) plan: Plan,
    pub(super) inserts: InsertSenders,
    store: SqlStore,
    /// Held while a client replaces another one.
    replacing: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    /// Permits of callers that change jobs for an operator. They use a connection of the
    /// maintenance, and may wait for a job that a transaction of the application has locked.
    pub(super) changing: Semaphore,
    /// Permits of callers that forward their cancel requests at once.
    forwarding: Semaphore,
    /// Notified when a client has started.
    client_started: Notify,
    /// Notified when a request of this process was not forwarded at once.
    pub(super) cancel_requested: Notify,
    /// `true` once [`end_maintenance`](Self::end_maintenance) was called.
    is_ending: watch::Sender<bool>,
    /// `true` once the maintenance no longer changes jobs.
    maintenance_is_over: watch::Sender<bool>,
    phase: watch::Sender<Phase>,
}

/// How far the shutdown of a queue is. It never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Jobs are claimed and accepted.
    Open,
    /// No job is claimed, and those whose work has not started are handed back.
    Draining,
    /// No job is accepted either.
    Closed,
}

/// Channels to the tasks that insert jobs. Unique jobs have their own channel, because their
/// insertion may wait for the transaction of another process.
pub(super) struct InsertSenders {
    pub(super) plain: mpsc::Sender<InsertRequest>,
    pub(super) unique: mpsc::Sender<InsertRequest>,
}

#[derive(Default)]
struct State {
    /// `None` before the first client has started.
    client: Option<Arc<LeasedClient>>,
    /// The current client and the clients it has replaced, until their jobs have ended and their
    /// ends are written. Their claims are claims of this process.
    clients: Vec<Arc<LeasedClient>>,
    /// Time of the latest replacement because of ends that were not written.
    replaced_at: Option<Instant>,
    /// `true` once River has ended. Another queue may take over when no job is running.
    has_ended: bool,
    /// Number of polls for cancel requests since `forwarded` was cleared.
    polls: u32,
    /// Cancel requests that were forwarded to River.
    forwarded: HashSet<i64>,
    /// [`RunningJobs::totals`] when the queue stopped claiming jobs, until a shutdown reports them.
    totals_at_stop: Option<(usize, usize)>,
}

/// Number of polls, at most 10 s, after which cancel requests are forwarded again, because River's
/// notification of the worker may have been lost.
const POLLS_UNTIL_REPEAT: u32 = 5;

/// Maximum number of callers that forward a cancel request at once. They use the connections of
/// River and of the maintenance, which others need.
const MAX_FORWARDING: usize = 2;
/// Minimum time between two replacements of a client that does not write its ends, in leases. It is
/// a minute by default.
const MIN_REPLACE_LEASES: u32 = 4;
/// Maximum number of replaced clients whose jobs have not ended. Each has connections of its own.
const MAX_REPLACED: usize = 3;
/// Maximum number of leases for which the ends of a client that has ended may be written.
const MAX_UNWRITTEN_LEASES: u32 = 4;
const RESTART_DELAY: Duration = Duration::from_secs(1);
/// Interval at which the claims of a client that has ended are polled on SQLite.
const CLAIMS_POLL_INTERVAL: Duration = Duration::from_secs(1);

impl Queue {
    pub(super) fn new(environment: Environment, plan: Plan, inserts: InsertSenders, store: SqlStore) -> Arc<Self> {
        Arc::new_cyclic(|queue| Self {
            environment: Arc::new(Environment { queue: queue.clone(), ..environment }),
            plan,
            inserts,
            store,
            replacing: tokio::sync::Mutex::default(),
            state: Mutex::default(),
            changing: Semaphore::new(1),
            forwarding: Semaphore::new(MAX_FORWARDING),
            client_started: Notify::new(),
            cancel_requested: Notify::new(),
            is_ending: watch::Sender::new(false),
            maintenance_is_over: watch::Sender::new(false),
            phase: watch::Sender::new(Phase::Open),
        })
    }

    /// Registers the queue for the cancel requests of this process. Returns `false` if another
    /// queue on the same store is registered.
    pub(super) fn register(self: &Arc<Self>) -> bool {
        let mut hook = lock(&self.store.queue_hook);
        let is_free = hook.as_ref().and_then(Weak::upgrade).is_none_or(|hook| hook.has_ended());
        if is_free {
            *hook = Some(Arc::downgrade(self) as Weak<dyn QueueHook>);
        }
        is_free
    }

    /// Permits another queue on the same store. Until there is one, this queue still forwards
    /// cancel requests.
    pub(super) fn set_ended(&self) {
        lock(&self.state).has_ended = true;
    }

    /// Starts a client, makes it the current one, and renews its lease.
    pub(super) async fn start_client(self: &Arc<Self>) -> Result<(), StoreError> {
        operations::read_paused_kinds(self).await?; // before it claims jobs of these kinds
        let phase = self.phase.subscribe();
        let client = Arc::new(LeasedClient::start(&self.environment, &self.plan, &phase).await?);
        let previous = {
            let mut state = lock(&self.state);
            state.clients.push(client.clone());
            state.client.replace(client.clone())
        };
        drop(previous);
        self.client_started.notify_waiters();
        tokio::spawn(renew_lease(self.clone(), client.clone()));
        tokio::spawn(watch_client(self.clone(), client.clone()));
        match self.phase() {
            Phase::Open => {}
            Phase::Draining => client.stop(), // the phase changed while the client was starting
            Phase::Closed => client.stop_and_cancel(),
        }
        Ok(())
    }

    /// Starts another client if this one is the current one. It does not stop the previous one.
    async fn replace_client(self: &Arc<Self>, previous: &Arc<LeasedClient>) {
        let _replacing = self.replacing.lock().await;
        if self.phase() != Phase::Open || !self.is_current(previous) {
            return;
        }
        if let Err(error) = self.start_client().await {
            events::warn("failed to start a new River client", &error);
        }
    }

    fn is_current(&self, client: &Arc<LeasedClient>) -> bool {
        self.client().is_some_and(|current| Arc::ptr_eq(&current, client))
    }

    /// Replaces the current client if River does not write its ends, at most once a minute. The
    /// jobs of the previous one continue.
    ///
    /// River repeats a batch that the database rejects, together with all later ends, until the
    /// last job of a stopped client has ended. If too many replaced clients have jobs that do not
    /// end, the current one continues, and its ends are written late.
    pub(super) async fn replace_stuck_client(self: &Arc<Self>, late: &[End]) {
        let Some(client) = self.client() else { return };
        if !late.iter().any(|end| client.id().is_some_and(|id| *id == end.claim.client)) {
            return;
        }
        let interval = self.environment.database.lease().unwrap_or_default().saturating_mul(MIN_REPLACE_LEASES);
        let clients = {
            let mut state = lock(&self.state);
            if state.replaced_at.is_some_and(|at| at.elapsed() < interval) {
                return;
            }
            state.replaced_at = Some(Instant::now());
            state.clients.len()
        };
        if clients > MAX_REPLACED {
            events::not_replaced(clients);
            return;
        }
        self.replace_client(&client).await;
        if !self.is_current(&client) {
            events::replaced();
            client.stop();
        }
    }

    /// Returns the current client, and the replaced ones whose jobs may be running.
    pub(super) fn clients(&self) -> Vec<Arc<LeasedClient>> {
        lock(&self.state).clients.clone()
    }

    fn forget(&self, client: &Arc<LeasedClient>) {
        lock(&self.state).clients.retain(|known| !Arc::ptr_eq(known, client));
    }

    /// Returns the jobs that the table shows as running in this process.
    ///
    /// This includes the claims of each job in [`RunningJobs`], also after its client was
    /// forgotten: [`late_ends`](RunningJobs::late_ends) treats a claim that is missing here as
    /// written.
    pub(super) async fn claims(&self) -> Result<Vec<Claim>, StoreError> {
        let mut clients = self.environment.running.clients();
        clients.extend(self.clients().iter().filter_map(|client| client.id().cloned()));
        let clients: Vec<_> = clients.into_iter().collect();
        if clients.is_empty() { Ok(Vec::new()) } else { self.environment.database.claims(&clients).await }
    }

    /// Returns the ends that are [late](RunningJobs::late_ends). Those that turn out to be written
    /// are reported to the callback of the application.
    pub(super) fn late_ends(&self, claims: &[Claim], max_checks: u32) -> Vec<End> {
        let Environment { running, ended, .. } = &*self.environment;
        let before = running.unwritten();
        let late = running.late_ends(claims, max_checks);
        let unwritten: HashSet<_> = running.unwritten().into_iter().collect();
        before.into_iter().filter(|id| !unwritten.contains(id)).for_each(|id| ended.send(id));
        late
    }

    /// Makes River claim the jobs of a queue now.
    pub(super) fn wake(&self, queue: &str) {
        if let (Some(slots), Some(client)) = (self.environment.slots.get(queue), self.client()) {
            slots.wake(&client.river);
        }
    }

    /// Reports the successors of an end that was written, and wakes their workers.
    pub(super) fn on_successors(&self, end: &End) {
        for job in end.successors().into_iter().flat_map(|successors| &successors.jobs) {
            self.environment.counters.enqueued(&job.record.name, &job.queue);
            if job.delay.is_none() {
                self.wake(&job.queue);
            }
        }
    }

    /// Returns the current client. `None` before the first one has started.
    pub(super) fn client(&self) -> Option<Arc<LeasedClient>> {
        lock(&self.state).client.clone()
    }

    /// Returns the current client. The first jobs run before the first client has started, and wait
    /// for it here.
    pub(super) async fn first_client(&self) -> Arc<LeasedClient> {
        loop {
            let started = self.client_started.notified();
            match self.client() {
                Some(client) => return client,
                None => started.await,
            }
        }
    }

    /// Returns the time of the tasks' clock.
    pub(super) fn now(&self) -> Timestamp {
        self.environment.tasks.writer().now()
    }

    /// Claims no more jobs, and hands back those whose work has not started.
    pub(super) fn stop_claiming(&self) {
        let totals = self.environment.running.totals();
        lock(&self.state).totals_at_stop.get_or_insert(totals);
        self.enter(Phase::Draining);
        self.clients().iter().for_each(|client| client.stop());
    }

    /// Also accepts no more jobs.
    pub(super) fn close(&self) {
        self.stop_claiming();
        self.enter(Phase::Closed);
    }

    fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|current| {
            let is_later = *current < phase;
            *current = phase.max(*current);
            is_later
        });
    }

    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.phase() == Phase::Closed
    }

    /// Completes once [`close`](Self::close) was called.
    pub(super) async fn closed(&self) {
        let _ = self.phase.subscribe().wait_for(|phase| *phase == Phase::Closed).await;
    }

    /// Returns the numbers of attempts that have ended and that do not count, at the time when this
    /// queue stopped claiming jobs. A second call returns those of now.
    pub(super) fn take_totals_at_stop(&self) -> (usize, usize) {
        let at_stop = lock(&self.state).totals_at_stop.take();
        at_stop.unwrap_or_else(|| self.environment.running.totals())
    }

    /// Ends the maintenance as soon as no job is running.
    pub(super) fn end_maintenance(&self) {
        self.is_ending.send_replace(true);
    }

    pub(super) fn set_maintenance_over(&self) {
        self.maintenance_is_over.send_replace(true);
    }

    /// Completes when the maintenance no longer changes jobs, not even by a recovery that was in
    /// progress.
    pub(super) async fn maintenance_over(&self) {
        let _ = self.maintenance_is_over.subscribe().wait_for(|is_over| *is_over).await;
    }

    /// Completes when maintenance must end. Leases are renewed until then.
    pub(super) async fn maintenance_ended(&self) {
        let _ = self.is_ending.subscribe().wait_for(|is_ending| *is_ending).await;
        self.environment.running.ended().await;
    }

    /// Forwards new cancel requests to River, and every 10 s all of them.
    pub(super) async fn forward_cancel_requests(&self) -> Result<(), StoreError> {
        let requested = self.environment.database.cancel_requests().await?;
        let new: Vec<_> = {
            let mut state = lock(&self.state);
            state.polls += 1;
            if state.polls >= POLLS_UNTIL_REPEAT {
                (state.polls, state.forwarded) = (0, HashSet::new());
            }
            let open: HashSet<_> = requested.iter().map(|(river_id, _)| *river_id).collect();
            state.forwarded.retain(|id| open.contains(id));
            requested.into_iter().filter(|(river_id, _)| !state.forwarded.contains(river_id)).collect()
        };
        let mut result = Ok(());
        for (river_id, id) in new {
            // A failure does not affect the other requests.
            match self.forward_cancel_request(river_id).await {
                Ok(()) => self.environment.ended.send(id), // it has ended if it was queued
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Forgets which cancel requests were forwarded. Those that are still open are forwarded again.
    pub(super) fn forget_forwarded(&self) {
        lock(&self.state).forwarded.clear();
    }

    async fn forward_cancel_request(&self, river_id: i64) -> Result<(), StoreError> {
        let Some(client) = self.client() else { return Ok(()) };
        if !client.cancel(&self.environment.database, river_id).await? {
            return Ok(());
        }
        // A client that was replaced or stopped is no longer notified, and looks once a minute.
        self.environment.running.cancel(river_id);
        lock(&self.state).forwarded.insert(river_id);
        Ok(())
    }
}

/// Renews the lease of a client, also after another client has replaced it, because its closures
/// may still run. Each client has a task of its own, so that no other work delays a renewal.
///
/// Once River has ended, the ends that it has not written may be written for the duration of a few
/// leases. Then the lease ends, the jobs that are left are recovered, and the connections of a
/// client that was replaced are closed.
///
/// The future is boxed, because a lost lease starts a client, which has such a future, too.
fn renew_lease(queue: Arc<Queue>, client: Arc<LeasedClient>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let database = &queue.environment.database;
        let (Some(lease), Some(id)) = (database.lease(), client.id()) else { return };
        let on_failure = |error: &StoreError, failures| {
            if failures == 1 {
                events::warn("failed to renew the lease of the job queue", error);
            }
        };
        let renewed = keep_renewed(lease / RENEWALS, || database.renew_lease(id), on_failure);
        let ended = async {
            let _ = client.ended().await; // the other task reports the error
            sleep(lease).await;
            for _ in 1..MAX_UNWRITTEN_LEASES {
                if queue.environment.running.has_claims_of(id) {
                    sleep(lease).await;
                }
            }
        };
        tokio::select! {
            // The shutdown waits for the end of the client.
            () = queue.maintenance_ended() => return,
            () = renewed => {
                events::lost_lease(&queue.environment.counters);
                client.stop_and_cancel();
                queue.replace_client(&client).await;
                let _ = client.ended().await; // the other task reports the error
            }
            () = ended => {
                if let Err(error) = client.end_lease(database).await {
                    events::warn("failed to end the lease of a River client", &error);
                }
            }
        }
        queue.forget(&client);
        // Until it is replaced, its connections are used to enqueue and to cancel jobs.
        while queue.is_current(&client) {
            tokio::select! {
                () = queue.maintenance_ended() => return,
                () = sleep(RESTART_DELAY) => {}
            }
        }
        client.close_connections().await;
    })
}

/// Replaces a client that ends without a shutdown, because one of its required parts failed.
///
/// On SQLite it then waits until the client has no claims, and forgets it. River may end without
/// having written its ends, and there is no lease whose end would recover the jobs. The checks of
/// the claims write these ends.
///
/// The future is boxed, because it starts a client, which has such a future, too.
fn watch_client(queue: Arc<Queue>, client: Arc<LeasedClient>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let Some(id) = client.id() else { return };
        tokio::select! {
            () = queue.maintenance_ended() => return,
            ended = client.ended() => {
                if let Err(error) = ended {
                    events::warn("River has ended and will be restarted", &error);
                }
            }
        }
        while queue.phase() == Phase::Open && queue.is_current(&client) {
            queue.replace_client(&client).await;
            sleep(RESTART_DELAY).await;
        }
        let database = &queue.environment.database;
        if database.lease().is_some() {
            return; // the other task forgets it
        }
        while !database.claims(slice::from_ref(id)).await.is_ok_and(|claims| claims.is_empty()) {
            tokio::select! {
                () = queue.maintenance_ended() => return,
                () = sleep(CLAIMS_POLL_INTERVAL) => {}
            }
        }
        queue.forget(&client);
    })
}

impl QueueHook for Queue {
    fn has_ended(&self) -> bool {
        lock(&self.state).has_ended && self.environment.running.has_ended()
    }

    fn cancel_requested(&self, id: TaskId) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            // The request is stored, so a poll forwards it.
            let Ok(_permit) = self.forwarding.try_acquire() else {
                self.cancel_requested.notify_one();
                return Ok(());
            };
            let Some(river_id) = self.environment.database.river_id(id).await? else { return Ok(()) };
            // A client may repeat its request as often as it likes.
            let is_forwarded = lock(&self.state).forwarded.contains(&river_id);
            if !is_forwarded {
                self.forward_cancel_request(river_id).await?;
                self.environment.ended.send(id); // it has ended if it was queued
            }
            Ok(())
        })
    }

    fn change<'a>(&'a self, ids: &'a [TaskId], change: Change) -> OperationFuture<'a, Changes> {
        Box::pin(operations::change(self, ids, change))
    }

    fn queues(&self) -> OperationFuture<'_, Queues> {
        Box::pin(operations::queues(self))
    }

    fn set_paused<'a>(&'a self, what: Pausable, name: &'a str, is_paused: bool) -> OperationFuture<'a, ()> {
        Box::pin(operations::set_paused(self, what, name, is_paused))
    }

    fn blocked_sequences(&self) -> OperationFuture<'_, Vec<BlockedSequence>> {
        Box::pin(async { Ok(self.environment.database.blocked_sequences().await?) })
    }

    fn release_sequence<'a>(&'a self, key: &'a str) -> OperationFuture<'a, bool> {
        Box::pin(async move { Ok(super::sequence::release(self, key).await?) })
    }
}
