//! Callers: tasks, a thread that blocks, and a thread that polls without being woken.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc::Sender,
    },
    task::{Context, Waker},
    thread,
    time::Duration,
};

use tower_offload_tests::Random;

use crate::{
    alarm::Ring,
    job::{Inner, Plan, Request},
    ledger::{Ledger, Token},
    patience::{Patience, Visit, Watched},
    stage::{Surface, Way},
};

/// Number of calls that callers may still make.
#[derive(Debug)]
pub(crate) struct Tickets {
    calls: usize,
    taken: AtomicUsize,
}

impl Tickets {
    pub(crate) fn new(calls: usize) -> Self {
        Self { calls, taken: AtomicUsize::new(0) }
    }

    fn take(&self) -> bool {
        self.taken.fetch_add(1, SeqCst) < self.calls
    }

    pub(crate) fn taken(&self) -> usize {
        self.taken.load(SeqCst)
    }

    pub(crate) fn are_gone(&self) -> bool {
        self.taken() >= self.calls
    }

    /// Stops callers from making calls.
    pub(crate) fn withdraw(&self) {
        self.taken.fetch_add(self.calls, SeqCst);
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) surface: Surface,
    pub(crate) tickets: Arc<Tickets>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) alarm: Sender<Ring>,
    pub(crate) random: Random,
}

impl Caller {
    pub(crate) fn again(&mut self) -> Self {
        Self { random: self.random.split(), ..self.clone() }
    }

    fn next(&mut self) -> Option<Visit> {
        if !self.tickets.take() {
            return None;
        }
        if self.random.one_in(500) {
            thread::sleep(Duration::from_millis(2)); // Idle threads exit meanwhile.
        }
        let patience = Patience::random(&mut self.random);
        let plan = Plan::random(&mut self.random, patience == Patience::Unlimited);
        let way = self.surface.choose(&mut self.random);
        let watched = self.call(way, plan);
        Some(Visit { watched, patience })
    }

    fn call(&mut self, way: Way, plan: Plan) -> Watched {
        let plan = if way.takes_futures() { plan } else { plan.simple() };
        let entry = self.ledger.enter(plan);
        let inner = (plan == Plan::Nest).then(|| self.inner(way.clone()));
        let request = Request { token: Token(entry.clone()), alarm: self.alarm.clone(), inner };
        Watched::new(entry, way.call(request), self.alarm.clone())
    }

    /// Returns a call through the same layer, or without it. Two layers that wait for each other's
    /// permits would deadlock.
    fn inner(&mut self, way: Way) -> Inner {
        let plan = Plan::random(&mut self.random, true).simple();
        let (ledger, alarm) = (self.ledger.clone(), self.alarm.clone());
        Box::new(move || {
            let entry = ledger.enter(plan);
            let request = Request { token: Token(entry.clone()), alarm: alarm.clone(), inner: None };
            Watched::new(entry, way.call(request), alarm)
        })
    }

    /// Makes one call after the other. This caller drops its handles of the pool before it awaits
    /// the last one.
    pub(crate) async fn in_turn(mut self) {
        while let Some(visit) = self.next() {
            if self.tickets.are_gone() {
                drop(self);
                return visit.await;
            }
            visit.await;
        }
    }

    /// Makes concurrent calls and polls them without being woken.
    pub(crate) fn by_hand(mut self) {
        let mut visits = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            let room = 16 - visits.len();
            visits.extend(std::iter::from_fn(|| self.next()).take(room));
            if visits.is_empty() {
                return;
            }
            let before = visits.len();
            visits.retain_mut(|visit| Pin::new(visit).poll(&mut cx).is_pending());
            if visits.len() == before {
                thread::sleep(Duration::from_micros(50)); // Leaves the core to the workers.
            }
        }
    }
}
