use std::{
    collections::HashSet,
    sync::{Arc, Weak},
};

use tokio::sync::{mpsc, watch};

use super::{
    alive::Jobs,
    clerk::Clerk,
    group::Request,
    river::{Claim, Client, Database, Plan},
};
use crate::{
    SqlStore, StoreError, TaskId, Tasks, Timestamp,
    store::{StoreFuture, sql::CancelHook},
    sync::{Mutex, lock},
};

/// At two looks a second.
const FORWARD_AGAIN: u32 = 20;

/// What the handles, the workers and the keepers have in common.
pub(super) struct Shared {
    pub(super) tasks: Tasks,
    pub(super) database: Database,
    pub(super) plan: Plan,
    pub(super) jobs: Jobs,
    pub(super) clerk: Arc<Clerk>,
    /// Jobs that may have to wait for a row that somebody else holds go by themselves.
    pub(super) inserts: Lanes,
    /// Held while one client takes the place of another.
    starting: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    /// `true` once no work of this process will begin or goes on.
    finished: watch::Sender<bool>,
}

pub(super) struct Lanes {
    pub(super) plain: mpsc::Sender<Request>,
    pub(super) unique: mpsc::Sender<Request>,
}

#[derive(Default)]
struct State {
    client: Option<Arc<Client>>,
    closed: bool,
    /// How many looks ago requests were handed on from the first again.
    looks: u32,
    /// Claims that nobody worked on at the last look.
    orphans: HashSet<Claim>,
    /// Requests to cancel that River has heard of.
    forwarded: HashSet<i64>,
}

impl Shared {
    pub(super) fn new(tasks: Tasks, database: Database, plan: Plan, inserts: Lanes) -> Self {
        let (jobs, clerk, finished) = (Jobs::default(), Arc::default(), watch::Sender::new(false));
        Self {
            tasks,
            database,
            plan,
            jobs,
            clerk,
            inserts,
            starting: tokio::sync::Mutex::default(),
            state: Mutex::default(),
            finished,
        }
    }

    pub(super) async fn launch(self: &Arc<Self>) -> Result<(), StoreError> {
        let name = &self.tasks.writer().process;
        let client = Client::launch(&self.database, &self.plan, name, &Arc::downgrade(self)).await?;
        let client = Arc::new(client);
        let (last, closed) = {
            let mut state = lock(&self.state);
            (state.client.replace(client.clone()), state.closed)
        };
        drop(last);
        if closed {
            client.stop_and_cancel(); // it was closed while this one began
        }
        Ok(())
    }

    /// By the clock of the tasks.
    pub(super) fn now(&self) -> Timestamp {
        self.tasks.writer().now()
    }

    /// The one that works now. `None` before the first.
    pub(super) fn client(&self) -> Option<Arc<Client>> {
        lock(&self.state).client.clone()
    }

    /// Others have taken the jobs of this client, or it has ended: what it still says is not heard, so its work is told to end, and another client
    /// goes on.
    pub(super) async fn start_over(self: &Arc<Self>, lost: &Arc<Client>) {
        lost.stop_and_cancel();
        let _starting = self.starting.lock().await;
        let is_current = self.client().is_some_and(|client| Arc::ptr_eq(&client, lost));
        if self.is_closed() || !is_current {
            return;
        }
        if let Err(error) = self.launch().await {
            self.complain("no new client could be started", &error);
        }
    }

    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }

    pub(super) fn finish(&self) {
        self.finished.send_replace(true);
    }

    /// Returns once it is closed and nothing of this process works on a job: until then the lease is kept.
    pub(super) async fn finished(&self) {
        let _ = self.finished.subscribe().wait_for(|finished| *finished).await;
        self.jobs.empty().await;
    }

    /// Each request is handed on once, and now and then once more: River's word may have been lost on the way to who works the job.
    pub(super) async fn forward_cancels(&self) -> Result<(), StoreError> {
        let requested = self.database.cancel_requests().await?;
        let Some(client) = self.client() else { return Ok(()) };
        let fresh: Vec<_> = {
            let mut state = lock(&self.state);
            state.looks += 1;
            if state.looks >= FORWARD_AGAIN {
                (state.looks, state.forwarded) = (0, HashSet::new());
            }
            state.forwarded.retain(|id| requested.contains(id));
            requested.into_iter().filter(|id| !state.forwarded.contains(id)).collect()
        };
        let mut failed = None;
        for id in fresh {
            match client.cancel(id).await {
                Ok(()) => drop(lock(&self.state).forwarded.insert(id)),
                Err(error) => failed = Some(error), // the others can be cancelled all the same
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Those that were nobody's now and at the last look: their claim was made, and its answer was lost.
    pub(super) fn orphans(&self, running: &[Claim]) -> Vec<Claim> {
        let unknown = self.jobs.unknown(running);
        let mut state = lock(&self.state);
        let before = std::mem::replace(&mut state.orphans, unknown);
        before.intersection(&state.orphans).copied().collect()
    }

    /// Another queue may take its place.
    pub(super) fn set_over(&self) {
        let Some(store) = self.tasks.store::<SqlStore>() else { return };
        let mut hook = lock(&store.cancel_hook);
        let is_own = |hook: &Weak<dyn CancelHook>| std::ptr::addr_eq(hook.as_ptr(), self);
        if hook.as_ref().is_some_and(is_own) {
            *hook = None;
        }
    }

    /// Returns `false` if another queue on the same store is registered and exists.
    pub(super) fn register_cancel_hook(self: &Arc<Self>, store: &SqlStore) -> bool {
        let mut hook = lock(&store.cancel_hook);
        let is_free = hook.as_ref().and_then(Weak::upgrade).is_none();
        if is_free {
            *hook = Some(Arc::downgrade(self) as Weak<dyn CancelHook>);
        }
        is_free
    }

    /// Tells people, for there is nobody else to be told.
    pub(super) fn complain(&self, what: &str, error: &StoreError) {
        #[cfg(feature = "tracing")]
        tracing::warn!(error = error as &dyn std::error::Error, "{what}");
        #[cfg(not(feature = "tracing"))]
        let _ = (what, error);
    }
}

impl CancelHook for Shared {
    /// Hands all requests on to River.
    fn cancel_requested(&self, _: TaskId) -> StoreFuture<'_, ()> {
        Box::pin(self.forward_cancels())
    }
}
