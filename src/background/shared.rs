use std::{
    borrow::Cow,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    DrainReport, Orphan, Rejected, Stats, TaskFailure,
    aside::aside,
    control::Control,
    failure::Cause,
    over::Over,
    state::{Ended, Halt, Met, State},
    within,
    work::Work,
};
use crate::panic::ignore_panic;
use crate::{
    pool::Pool,
    sync::{Mutex, lock},
};

/// What gets each failure.
pub(super) type Sink = Arc<dyn Fn(&TaskFailure) + Send + Sync>;

/// The state, and around it everything that is foreign code: works, sinks, pools. None of it runs under the lock.
pub(super) struct Shared {
    pub(super) pool: Arc<dyn Pool>,
    sink: Option<Sink>,
    next_id: AtomicU64,
    state: Mutex<State<Work, Arc<Control>>>,
    /// Tells that nothing is left.
    idle: Notify,
}

impl Shared {
    pub(super) fn new(pool: Arc<dyn Pool>, sink: Option<Sink>, capacity: usize, max_running: usize) -> Self {
        let state = Mutex::new(State::new(capacity, max_running));
        Self { pool, sink, next_id: AtomicU64::new(1), state, idle: Notify::new() }
    }

    pub(super) fn reserve(&self, name: Cow<'static, str>) -> Result<Arc<Control>, Rejected> {
        let id = self.next_id.fetch_add(1, Relaxed);
        let control = Arc::new(Control::new(id, name));
        let inside = within::is_inside(self);
        let reserved = lock(&self.state).reserve(id, control.clone(), inside, Instant::now());
        reserved.map(|()| control).map_err(Rejected::new)
    }

    pub(super) fn enqueue(self: &Arc<Self>, work: Work) {
        let id = work.control.id;
        let enqueued = lock(&self.state).enqueue(id, work, Instant::now());
        match enqueued {
            Ok(()) => self.dispatch(),
            Err(unwanted) => drop_cancelled(unwanted),
        }
    }

    /// Starts what there are permits for. What a pool ends on the spot does not start the next one within: the loop does.
    fn dispatch(self: &Arc<Self>) {
        let Some(_dispatching) = within::dispatching(&**self) else { return };
        loop {
            let next = lock(&self.state).dispatch();
            let Some(work) = next else { return };
            let control = work.control.clone();
            // A pool is foreign code. What it drops in a panic ends itself.
            ignore_panic(|| work.start(self));
            drop(control);
        }
    }

    pub(super) fn begin(&self, id: u64, now: Instant) -> Option<Instant> {
        lock(&self.state).begin(id, now)
    }

    pub(super) fn end(self: &Arc<Self>, id: u64, ended: Ended) {
        let idle = lock(&self.state).end(id, ended);
        self.tell(idle);
        self.dispatch();
    }

    pub(super) fn hold(&self) {
        lock(&self.state).hold();
    }

    pub(super) fn release(&self) {
        let idle = lock(&self.state).release();
        self.tell(idle);
    }

    /// `true` unless the place was taken away before.
    pub(super) fn skip(&self, id: u64) -> bool {
        let (skipped, idle) = {
            let mut state = lock(&self.state);
            (state.skip(id), state.is_idle())
        };
        self.tell(idle);
        skipped
    }

    /// `true` unless the task was over.
    pub(super) fn cancel(&self, id: u64) -> bool {
        let met = lock(&self.state).cancel(id);
        match met {
            Met::Gone => false,
            Met::Permitted(control) => {
                control.cancel();
                true
            }
            Met::Pending { work, idle } => {
                work.into_iter().for_each(discard);
                self.tell(idle);
                true
            }
        }
    }

    pub(super) fn cancel_named(&self, name: &str) -> usize {
        let ids = lock(&self.state).find(|control| control.name == name);
        ids.into_iter().filter(|id| self.cancel(*id)).count()
    }

    pub(super) fn close(&self) {
        lock(&self.state).close();
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.state).is_closed()
    }

    pub(super) fn stats(&self) -> Stats {
        lock(&self.state).stats()
    }

    pub(super) async fn drain(&self, deadline: Duration) -> DrainReport {
        let before = {
            let mut state = lock(&self.state);
            state.close();
            state.tally()
        };
        let mut orphaned = Vec::new();
        let after = if tokio::time::timeout(deadline, self.until_idle()).await.is_ok() {
            lock(&self.state).tally()
        } else {
            let (Halt { dropped, unbegun, running }, after) = {
                let mut state = lock(&self.state);
                (state.halt(), state.tally()) // at once: each task is either an orphan or counted
            };
            let (now, mut left) = (Instant::now(), Vec::new());
            for (control, begun) in running {
                control.cancel();
                orphaned.push(Orphan { id: control.id, name: control.name.clone(), age: now - begun });
                left.push(control);
            }
            for control in unbegun {
                control.cancel();
                left.push(control);
            }
            left.retain(|control| control.is_awaited());
            aside(left, |control| control.over(Over::Cancelled));
            dropped.iter().for_each(record_cancelled);
            aside(dropped, drop_cancelled);
            self.tell(orphaned.is_empty());
            after
        };
        DrainReport {
            completed: after.completed - before.completed,
            failed: after.failed - before.failed,
            cancelled: after.cancelled - before.cancelled,
            orphaned,
        }
    }

    async fn until_idle(&self) {
        loop {
            let mut idle = pin!(self.idle.notified());
            idle.as_mut().enable(); // before the look: a change between the two is not missed
            if lock(&self.state).is_idle() {
                return;
            }
            idle.await;
        }
    }

    /// Tells the sink, once for each failure.
    pub(super) fn report(&self, control: &Control, cause: Cause) {
        let failure = TaskFailure::new(control.id, control.name.clone(), cause);
        ignore_panic(|| match &self.sink {
            Some(sink) => sink(&failure),
            None => failure.log(),
        });
    }

    fn tell(&self, idle: bool) {
        if idle {
            ignore_panic(|| self.idle.notify_waiters()); // wakers are foreign
        }
    }
}

/// Drops work that was in the queue.
fn discard(work: Work) {
    record_cancelled(&work);
    drop_cancelled(work);
}

#[cfg_attr(not(feature = "metrics"), expect(unused_variables))]
fn record_cancelled(work: &Work) {
    #[cfg(feature = "metrics")]
    ignore_panic(|| super::recorder::ended(&work.control, Ended::Cancelled, None));
}

fn drop_cancelled(work: Work) {
    let control = work.control.clone();
    ignore_panic(|| drop(work));
    control.over(Over::Cancelled);
}
