use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{self, Poll, Wake, Waker},
    time::Duration,
};

use tokio::{runtime, task::Id, time::Instant};

use super::{
    context::{Context, Trace},
    current::{Current, Place},
    handle::{Answer, Failure, Handle},
    lifecycle::{Begin, Caller, Departure, Leave, Lifecycle, Park},
    reply::Reply,
    stage::Stage,
    work::Work,
};
use crate::panic::{catch_unwind, drop_payload, ignore_panic};
use crate::{
    pool::{Job, Places, Pool, Priority, Rejection, Slot},
    sync::{Mutex, lock},
};

/// What a call was given before it may enter the queue.
pub(crate) struct Admitted {
    pub(crate) slot: Slot,
    pub(crate) place: Option<Arc<dyn Place>>,
    pub(crate) priority: Priority,
}

/// Puts a future into the pool's queue. Its place there was taken before, so this cannot fail.
pub(crate) fn spawn<F>(admitted: Admitted, context: Context, departure: Departure, future: F) -> Handle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let Admitted { slot, place, priority } = admitted;
    let Context { runtime, task, trace } = context;
    let (pool, places) = slot.spend();
    let call = Arc::new(Call {
        lifecycle: Lifecycle::scheduled(),
        pool,
        places,
        priority,
        runtime,
        task,
        created: Instant::now(),
        woken: AtomicU64::new(0),
        started: AtomicBool::new(false),
        progress: Mutex::new(Progress {
            stage: Stage::Pending(future),
            surroundings: Some(Surroundings { trace, place }),
            ran: Duration::ZERO,
        }),
    });
    let job = Job::new(call.clone()); // first: if a recorder panics in `admitted`, its drop gives everything back
    call.pool.gate().admitted();
    let handle = Handle::new(call.clone(), departure);
    call.pool.schedule(job);
    handle
}

fn reply(caller: Option<Caller>) -> Option<Reply> {
    caller.map(|Caller { waker, is_task }| Reply { waker, is_task })
}

/// Drops what nobody takes. A payload that panics when it is dropped is no second panic of the work; an output that does is
/// one.
fn discard_result<T>(result: Option<Result<T, Failure>>) {
    match result {
        Some(Err(Failure::Panicked(payload))) => drop_payload(payload),
        other => drop(other),
    }
}

struct Call<F: Future> {
    lifecycle: Lifecycle,
    pool: Arc<dyn Pool>,
    /// Where its slot came from and goes back to.
    places: Places,
    priority: Priority,
    /// Kept until the allocation is freed, which is the caller's as a rule: its counter is then not passed between cores.
    runtime: Option<runtime::Handle>,
    /// The task in which the call was made, if it was in one.
    task: Option<Id>,
    created: Instant,
    /// When the call was last woken, in nanoseconds after `created`.
    woken: AtomicU64,
    /// Set by the thread that takes the first queue entry, which gives the slot back; also that of a call whose caller left
    /// counts until then, else they could pile up.
    started: AtomicBool,
    /// Locked by whoever owns the future, for as long as that lasts, and by nobody else before the call is finished. So
    /// nobody ever waits for this lock; it is there to have the compiler check what `Lifecycle` promises.
    progress: Mutex<Progress<F>>,
}

struct Progress<F: Future> {
    stage: Stage<F>,
    /// `None` from the moment the future is dropped: a stale waker must not keep a span or a place.
    surroundings: Option<Surroundings>,
    ran: Duration,
}

struct Surroundings {
    trace: Trace,
    place: Option<Arc<dyn Place>>,
}

/// What a poll led to.
enum Turn {
    Ended { surroundings: Surroundings, ran: Duration, dropped: Result<(), Box<dyn Any + Send>> },
    Panicked(Box<dyn Any + Send>),
    Pending,
}

impl<F> Call<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    /// Puts the call into the queue once more. Whoever calls this was told to by `Lifecycle`.
    fn schedule(self: Arc<Self>) {
        let woken = u64::try_from(self.created.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.woken.store(woken, Ordering::Relaxed);
        self.pool.gate().meter().woken();
        self.pool.clone().schedule(Job::new(self));
    }

    /// Runs `inside` as part of this call, in its context.
    fn enter<T>(self: &Arc<Self>, surroundings: &Surroundings, inside: impl FnOnce() -> T) -> T {
        let Surroundings { trace, place } = surroundings;
        Current { work: self.clone(), place: place.clone() }.scope(|| trace.enter(self.runtime.as_ref(), inside))
    }

    /// Polls, and returns whom to wake if that was the end.
    fn poll(self: &Arc<Self>, now: Instant) -> Option<Reply> {
        let waker = Waker::from(self.clone());
        let turn = {
            let mut progress = lock(&self.progress);
            let Progress { stage, surroundings, ran } = &mut *progress;
            let around = surroundings.as_ref().expect("a call has its surroundings until its future is dropped");
            let polled = catch_unwind(|| {
                self.enter(around, || match stage.poll(&mut task::Context::from_waker(&waker)) {
                    // Drops the future where it ran; if that panics, the output stands all the same.
                    Poll::Ready(output) => Some(catch_unwind(|| stage.finish(Ok(output)))),
                    Poll::Pending => None,
                })
            });
            *ran += now.elapsed();
            match (polled, surroundings) {
                (Ok(Some(dropped)), gone) => {
                    let surroundings = gone.take().expect("a call is finished once");
                    Turn::Ended { surroundings, ran: *ran, dropped }
                }
                (Ok(None), _) => Turn::Pending,
                (Err(payload), _) => Turn::Panicked(payload),
            }
        };
        self.pool.gate().meter().polled(); // before `park`: after it the call is not this thread's any more
        match turn {
            Turn::Ended { surroundings, ran, dropped } => {
                if let Err(payload) = dropped {
                    self.report(payload);
                }
                self.conclude(surroundings, Some(ran))
            }
            Turn::Panicked(payload) => self.fail(Failure::Panicked(payload)),
            Turn::Pending => match self.lifecycle.park() {
                Park::Parked => None,
                Park::Schedule => {
                    self.clone().schedule();
                    None
                }
                Park::Cancelled => self.fail(Failure::Refused(Rejection::Closed)),
            },
        }
    }

    /// Records the end of a wait, and gives the place in the queue to the next call.
    fn enter_run(&self, now: Instant) {
        let waited = now.saturating_duration_since(self.created);
        let gate = self.pool.gate();
        // A load and a store: only the thread that has the entry comes here.
        if self.started.load(Ordering::Relaxed) {
            let woken = Duration::from_nanos(self.woken.load(Ordering::Relaxed));
            gate.meter().resumed(waited.saturating_sub(woken));
        } else {
            self.started.store(true, Ordering::Relaxed);
            gate.free_slot(self.places);
            gate.started(waited);
        }
    }

    /// As `enter_run`, for a call that will not be polled.
    fn leave_queue(&self) {
        let meter = self.pool.gate().meter();
        if self.has_started() {
            meter.skipped();
        } else {
            self.free_slot();
            meter.passed_over();
        }
    }

    fn free_slot(&self) {
        self.pool.gate().free_slot(self.places);
    }

    /// Runs a turn, and ends the call if that panics. The work's own panics are caught before: this is a metrics recorder or
    /// a tracing subscriber that panics between our steps, and nobody may wait for ever because of it.
    fn rescued(self: &Arc<Self>, turn: impl FnOnce() -> Option<Reply>) -> Option<Reply> {
        let payload = match catch_unwind(turn) {
            Ok(caller) => return caller,
            Err(payload) => payload,
        };
        if self.lifecycle.is_finished() {
            drop_payload(payload);
            return None;
        }
        let surroundings = {
            let mut progress = lock(&self.progress);
            ignore_panic(|| progress.stage.finish(Err(Failure::Panicked(payload))));
            progress.surroundings.take()
        };
        ignore_panic(|| drop(surroundings));
        self.pool.gate().meter().failed();
        self.pool.gate().ended();
        let (gone, caller) = self.lifecycle.finish();
        let left = if gone { lock(&self.progress).stage.take() } else { None };
        ignore_panic(|| drop(left));
        reply(caller)
    }

    /// The entry of a call whose caller took everything along.
    fn hollow(&self) -> Option<Reply> {
        self.free_slot();
        None
    }

    /// Ends a call whose caller is there with a rejection.
    fn turn_down(self: &Arc<Self>, rejection: Rejection) -> Option<Reply> {
        self.leave_queue();
        self.pool.gate().meter().rejected(rejection);
        self.fail(Failure::Refused(rejection))
    }

    /// Ends a call that was taken out of the queue and will not be polled.
    fn end(self: &Arc<Self>, rejection: Rejection) -> Option<Reply> {
        self.leave_queue();
        self.fail(Failure::Refused(rejection))
    }

    /// Ends the call without an output: drops the future where it would have run. Returns the caller, who is to be woken
    /// next.
    fn fail(self: &Arc<Self>, failure: Failure) -> Option<Reply> {
        let meter = self.pool.gate().meter();
        let (surroundings, ran) = {
            let mut progress = lock(&self.progress);
            let Progress { stage, surroundings, ran } = &mut *progress;
            let surroundings = surroundings.take().expect("a call is finished once");
            let dropped = catch_unwind(|| {
                self.enter(&surroundings, || {
                    if let Failure::Panicked(payload) = &failure {
                        meter.panicked(&**payload, !self.lifecycle.is_abandoned());
                    }
                    stage.finish(Err(failure));
                });
            });
            if let Err(payload) = dropped {
                // A subscriber that panics may have kept the stage from being finished: the caller must find an answer.
                if stage.is_pending() {
                    let failure = Failure::Refused(Rejection::Panicked);
                    ignore_panic(|| stage.finish(Err(failure)));
                }
                self.report(payload);
            }
            (surroundings, *ran)
        };
        meter.failed();
        self.conclude(surroundings, self.has_started().then_some(ran))
    }

    /// The end of a call whose result stands in the stage: gives back what the call held. Returns the caller, who is to be
    /// woken next.
    fn conclude(self: &Arc<Self>, surroundings: Surroundings, ran: Option<Duration>) -> Option<Reply> {
        let Surroundings { trace, place } = surroundings;
        // The place is free before the caller is woken: its next call must find it so. Whoever waits for it is woken here,
        // by a waker that is foreign.
        if let Some(Err(payload)) = place.map(|place| catch_unwind(|| drop(place))) {
            self.report(payload);
        }
        let gate = self.pool.gate();
        if let Some(ran) = ran {
            gate.meter().ran(ran);
        }
        gate.ended();
        let (gone, caller) = self.lifecycle.finish();
        if gone {
            self.dispose(&trace, ran.unwrap_or_default());
        }
        if let Err(payload) = catch_unwind(|| trace.end()) {
            self.report(payload);
        }
        reply(caller)
    }

    /// Drops an output that nobody waits for, on the pool, in the context of the work.
    fn dispose(&self, trace: &Trace, ran: Duration) {
        let result = lock(&self.progress).stage.take();
        let completed = matches!(result, Some(Ok(_)));
        let dropped = catch_unwind(|| {
            trace.enter(self.runtime.as_ref(), || {
                discard_result(result);
                if completed && !self.lifecycle.is_cancelled() {
                    self.pool.gate().meter().detached_ended(ran);
                }
            });
        });
        if let Err(payload) = dropped {
            self.report(payload);
        }
    }
}

impl<F: Future> Call<F> {
    /// Drops the future on this thread, which is none of the pool's, and gives back what the call held.
    fn clear(&self) {
        let dropped = {
            let mut progress = lock(&self.progress);
            let Progress { stage, surroundings, .. } = &mut *progress;
            let surroundings = surroundings.take();
            catch_unwind(|| match &surroundings {
                Some(around) => around.trace.enter(self.runtime.as_ref(), || stage.clear()),
                None => stage.clear(),
            })
        };
        if let Err(payload) = dropped {
            self.report(payload);
        }
        self.pool.gate().meter().failed();
        self.pool.gate().ended();
    }

    /// Counts and logs a panic that no caller will see.
    fn report(&self, payload: Box<dyn Any + Send>) {
        if let Err(second) = catch_unwind(|| self.pool.gate().meter().panicked(&*payload, false)) {
            drop_payload(second); // a subscriber's own
        }
        drop_payload(payload);
    }
}

impl<F> Work for Call<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn run(self: Arc<Self>) -> Option<Reply> {
        self.rescued(|| match self.lifecycle.begin() {
            Begin::Drop => self.end(Rejection::Closed),
            Begin::Nothing => self.hollow(),
            Begin::Poll if self.pool.gate().is_halted() => self.turn_down(Rejection::Closed),
            Begin::Poll => {
                let now = Instant::now();
                self.enter_run(now);
                self.poll(now)
            }
        })
    }

    fn refuse(self: Arc<Self>, rejection: Rejection) -> Option<Reply> {
        self.rescued(|| match self.lifecycle.begin() {
            Begin::Drop => self.end(rejection),
            Begin::Nothing => self.hollow(),
            Begin::Poll => self.turn_down(rejection),
        })
    }

    fn runtime(&self) -> Option<&runtime::Handle> {
        self.runtime.as_ref()
    }

    fn has_started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }

    fn created(&self) -> Instant {
        self.created
    }

    fn standing(&self) -> (Priority, bool) {
        (self.priority, self.has_started())
    }

    fn is_cancelled(&self) -> bool {
        self.lifecycle.is_cancelled()
    }

    fn is_unwanted(&self) -> bool {
        self.lifecycle.is_cancelled() || self.pool.gate().is_halted()
    }
}

impl<F> Answer<F::Output> for Call<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn poll_output(&self, cx: &mut task::Context<'_>) -> Poll<Result<F::Output, Failure>> {
        if !self.lifecycle.poll_finished(cx, self.task.is_some() && self.task == tokio::task::try_id()) {
            return Poll::Pending;
        }
        let result = lock(&self.progress).stage.take();
        Poll::Ready(result.expect("a finished call holds its output until its one caller takes it"))
    }

    fn leave(self: Arc<Self>, departure: Departure) {
        let leave = self.lifecycle.leave(departure);
        if leave == Leave::Finished {
            let result = lock(&self.progress).stage.take();
            if let Err(payload) = catch_unwind(|| discard_result(result)) {
                self.report(payload);
            }
            return;
        }
        match leave {
            Leave::Finished | Leave::Left => {}
            Leave::Reclaim => {
                self.clear();
                self.pool.gate().meter().passed_over();
            }
            Leave::Schedule => self.clone().schedule(),
        }
        self.pool.gate().meter().abandoned(departure == Departure::Detach);
    }
}

impl<F> Wake for Call<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn wake(self: Arc<Self>) {
        if self.lifecycle.wake() {
            self.schedule();
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.lifecycle.wake() {
            self.clone().schedule();
        }
    }
}

impl<F: Future> Drop for Call<F> {
    /// Only a detached call can still hold its future here: its caller is gone, and nothing is left that could wake it.
    fn drop(&mut self) {
        if !self.lifecycle.is_finished() {
            self.clear();
        }
    }
}
