use std::{
    collections::HashSet,
    sync::{Arc, Weak},
};

use tokio::sync::{mpsc, watch};

use super::{
    alive::Jobs,
    clerk::Clerk,
    group::Request,
    river::{Client, Database, Plan},
};
use crate::{
    sync::{Mutex, lock},
    tasks::{StoreError, Tasks, shared::Forward, store::StoreFuture},
};

/// What the handles, the workers and the keepers have in common.
pub(super) struct Shared {
    pub(super) tasks: Tasks,
    pub(super) database: Database,
    pub(super) plan: Plan,
    pub(super) jobs: Jobs,
    pub(super) clerk: Arc<Clerk>,
    pub(super) inserts: mpsc::Sender<Request>,
    state: Mutex<State>,
    /// `true` once no work of this process will begin or goes on.
    finished: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    client: Option<Arc<Client>>,
    closed: bool,
    /// Requests to cancel that River has heard of.
    forwarded: HashSet<i64>,
}

impl Shared {
    pub(super) fn new(tasks: Tasks, database: Database, plan: Plan, inserts: mpsc::Sender<Request>) -> Self {
        let (jobs, clerk, finished) = (Jobs::default(), Arc::default(), watch::Sender::new(false));
        Self { tasks, database, plan, jobs, clerk, inserts, state: Mutex::default(), finished }
    }

    pub(super) async fn launch(self: &Arc<Self>) -> Result<(), StoreError> {
        let name = &self.tasks.shared().process;
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

    /// The one that works now. `None` before the first.
    pub(super) fn client(&self) -> Option<Arc<Client>> {
        lock(&self.state).client.clone()
    }

    /// Others have taken the jobs of this client. What it still says is not heard, so its work is told to end; another client goes on.
    pub(super) async fn start_over(self: &Arc<Self>, lost: &Client) {
        lost.stop_and_cancel();
        if self.is_closed() {
            return;
        }
        if let Err(error) = self.launch().await {
            self.complain("no new lease could be got", &error);
        }
    }

    /// `false` if it was closed before.
    pub(super) fn close(&self) -> bool {
        !std::mem::replace(&mut lock(&self.state).closed, true)
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

    pub(super) async fn forward_cancels(&self) -> Result<(), StoreError> {
        let requested = self.database.cancel_requests().await?;
        let Some(client) = self.client() else { return Ok(()) };
        let fresh: Vec<_> = {
            let mut state = lock(&self.state);
            state.forwarded.retain(|id| requested.contains(id));
            requested.into_iter().filter(|id| !state.forwarded.contains(id)).collect()
        };
        for id in fresh {
            client.cancel(id).await?;
            lock(&self.state).forwarded.insert(id);
        }
        Ok(())
    }

    /// Tells people, for there is nobody else to be told.
    pub(super) fn complain(&self, what: &str, error: &StoreError) {
        #[cfg(feature = "tracing")]
        tracing::warn!(error = error as &dyn std::error::Error, "{what}");
        #[cfg(not(feature = "tracing"))]
        let _ = (what, error);
    }
}

impl Forward for Shared {
    fn cancel_requested(&self) -> StoreFuture<'_, ()> {
        Box::pin(self.forward_cancels())
    }
}

/// For what must not keep it alive.
pub(super) type WeakShared = Weak<Shared>;
