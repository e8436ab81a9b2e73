//! Runs an entry of a call: polls or drops its future, and completes the call.

use std::{
    any::Any,
    mem,
    sync::{Arc, atomic::Ordering},
    task::{self, Poll},
};

use super::{
    Call, CallFailure, CallerWaker, CurrentCall, Environment, Progress, Runnable,
    context::Trace,
    drop_result,
    state::{Begin, Park},
    uncounted::{Uncounted, with_waker},
};
use crate::{
    panic::{catch_unwind, drop_payload, ignore_panic},
    pool::{
        admission::Admission,
        clock::Clock,
        error::{CallError, CancelReason},
        time::{self, PoolTime},
    },
};

/// Result of one poll.
enum Polled {
    Pending,
    /// The result is stored. The panic of the future's destructor, if there was one.
    Ready(Result<(), Box<dyn Any + Send>>),
    Panicked(Box<dyn Any + Send>),
}

/// Each function returns the waker of the caller if it has completed the call.
impl<F> Call<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    /// Takes the entry, and polls or drops the future.
    #[inline]
    pub(super) fn run_with(self: &Arc<Self>, clock: &mut Clock) -> Option<CallerWaker> {
        let admission = self.permit.admission();
        self.guard(|| match self.state.begin() {
            Begin::Poll if admission.is_halted() => {
                clock.skip_call();
                self.reject(CallError::Closed)
            }
            Begin::Poll => self.start_and_poll(admission, clock),
            Begin::Expire => {
                clock.skip_call();
                self.expire()
            }
            Begin::Drop => {
                clock.skip_call();
                self.drop_cancelled(CallError::Closed)
            }
            // This entry is the last owner of the call. Dropping the call releases the queue
            // permit.
            Begin::Nothing => None,
        })
    }

    /// Records the end of the call's wait in the queue, and polls.
    fn start_and_poll(self: &Arc<Self>, admission: &Admission, clock: &mut Clock) -> Option<CallerWaker> {
        let now = clock.start_call();
        if self.header.has_started() {
            admission.metrics().resumed(now.saturating_sub(self.woken.load(Ordering::Relaxed)));
        } else {
            if self.header.deadline.has_passed_at(now) {
                return self.expire();
            }
            self.header.started.store(true, Ordering::Relaxed);
            self.permit.on_start(admission, now.saturating_sub(self.header.created));
        }
        let mut progress = self.progress.lock();
        let polled = self.poll_future(&mut progress);
        let ended = time::now();
        progress.run_time = progress.run_time.saturating_add(ended.saturating_sub(now));
        let run_time = progress.run_time;
        let is_late = self.header.deadline.has_passed_at(ended) && !self.state.is_abandoned();
        let environment = (matches!(polled, Polled::Ready(_)) && !is_late).then(|| progress.environment.take());
        drop(progress);
        if self.state.is_cancelled() {
            self.count_cancelled(ended);
        }
        // Before `park`, because another thread may own the call after that.
        self.end_nested_wait();
        if environment.is_none() {
            admission.metrics().polled();
        }
        match polled {
            Polled::Pending => match self.state.park() {
                Park::Parked => None,
                Park::Schedule => {
                    // Another thread may own the call by the time that a pool of the user panics.
                    ignore_panic(|| self.schedule());
                    None
                }
                Park::Cancelled => self.fail(CallFailure::Rejected(CallError::Closed)),
            },
            Polled::Ready(dropped) => {
                if let Err(payload) = dropped {
                    self.report_panic(payload);
                }
                let Some(environment) = environment else { return self.discard_late(now, ended) };
                let caller = self.complete(admission, environment, Some(run_time), true);
                // Without a caller, the output may have been dropped here, which may take long.
                if caller.is_some() {
                    clock.end_call(ended);
                }
                caller
            }
            Polled::Panicked(payload) => self.fail(CallFailure::Panicked(payload)),
        }
    }

    /// Polls the future, and drops it in its environment if it is ready.
    #[inline(never)] // Inlined, it costs 50 instructions more per call.
    fn poll_future(self: &Arc<Self>, progress: &mut Progress<F>) -> Polled {
        let Progress { stage, environment, .. } = progress;
        let polled = catch_unwind(|| {
            self.enter(environment, || {
                with_waker(self, |waker| stage.poll(&mut task::Context::from_waker(waker)))
                    .map(|output| stage.store_result(Ok(output)))
            })
        });
        match polled {
            Ok(Poll::Pending) => Polled::Pending,
            Ok(Poll::Ready(())) => Polled::Ready(Ok(())),
            // The output is stored and valid: the panic is that of the future's destructor, or of a
            // subscriber afterwards.
            Err(payload) if !stage.has_future() => Polled::Ready(Err(payload)),
            Err(payload) => Polled::Panicked(payload),
        }
    }

    /// Counts the time that the poll which has `ended` ran for a caller that was gone.
    #[cold]
    fn count_cancelled(&self, ended: PoolTime) {
        let time = ended.saturating_sub(self.left.load(Ordering::Relaxed));
        if let Some(reason) = self.state.cancel_reason() {
            self.metrics().ran_cancelled(reason, time);
        }
    }

    /// Removes the record that this thread waits for another call of the pool, if there is one.
    fn end_nested_wait(self: &Arc<Self>) {
        if self.header.waits_nested.load(Ordering::Relaxed) {
            self.header.waits_nested.store(false, Ordering::Relaxed);
            self.permit.admission().nested_waits().remove(Arc::as_ptr(self).addr());
        }
    }

    /// Records that the call leaves the queue and will not be polled.
    fn leave_queue(&self) {
        if self.header.has_started() {
            self.metrics().skipped();
        } else {
            self.permit.release();
            self.metrics().passed_over();
        }
    }

    /// Fails a call that has not started at its deadline.
    #[cold]
    pub(super) fn expire(self: &Arc<Self>) -> Option<CallerWaker> {
        // First, because recorders and subscribers are user code that may panic.
        self.leave_queue();
        self.end_at_deadline()
    }

    /// Fails a call because of its deadline.
    fn end_at_deadline(self: &Arc<Self>) -> Option<CallerWaker> {
        let error = CallError::DeadlineExceeded;
        // A caller that reaches the deadline first counts the rejection.
        if self.state.expire() {
            self.metrics().rejected(error);
        }
        self.fail(CallFailure::Rejected(error))
    }

    /// Fails a call whose output is there after its deadline. The poll has `started` and `ended`.
    #[cold]
    fn discard_late(self: &Arc<Self>, started: PoolTime, ended: PoolTime) -> Option<CallerWaker> {
        // Work of a detached call is never cancelled.
        if !self.header.is_detached {
            let late = self.header.deadline.overrun_at(ended).min(ended.saturating_sub(started));
            self.metrics().ran_cancelled(CancelReason::DeadlineExceeded, late);
        }
        self.end_at_deadline()
    }

    /// Fails a call whose caller is waiting for it.
    pub(super) fn reject(self: &Arc<Self>, error: CallError) -> Option<CallerWaker> {
        self.leave_queue();
        self.metrics().rejected(error);
        self.fail(CallFailure::Rejected(error))
    }

    /// Fails a call without counting it as rejected.
    pub(super) fn drop_cancelled(self: &Arc<Self>, error: CallError) -> Option<CallerWaker> {
        self.leave_queue();
        self.fail(CallFailure::Rejected(error))
    }

    /// Drops the future in its environment and completes the call without an output.
    #[inline(never)] // Keeps it out of the path of calls that complete.
    fn fail(self: &Arc<Self>, failure: CallFailure) -> Option<CallerWaker> {
        let (environment, run_time) = {
            let mut progress = self.progress.lock();
            let Progress { stage, environment, run_time } = &mut *progress;
            let environment = environment.take();
            let dropped = catch_unwind(|| {
                self.enter(&environment, || {
                    if let CallFailure::Panicked(payload) = &failure {
                        self.metrics().panicked(&**payload, !self.state.is_abandoned());
                    }
                    stage.store_result(Err(failure));
                });
            });
            if let Err(payload) = dropped {
                // A subscriber that panics may have prevented the result from being stored.
                if stage.has_future() {
                    let failure = CallFailure::Rejected(CallError::Panicked);
                    ignore_panic(|| stage.store_result(Err(failure)));
                }
                self.report_panic(payload);
            }
            (environment, *run_time)
        };
        self.end_nested_wait();
        let admission = self.permit.admission();
        admission.metrics().failed();
        self.complete(admission, environment, self.header.has_started().then_some(run_time), false)
    }

    /// Completes a call whose result is stored. See [`Admission::on_complete`] for the
    /// arguments.
    ///
    /// 1. The layer's permit is released, so that the caller's next call finds it free.
    /// 2. The pool no longer counts the call as in flight.
    /// 3. The result is published.
    /// 4. If the caller has left, the output is dropped here, on the pool.
    #[inline(always)] // Into `start_and_poll`, so that the environment is not copied.
    fn complete(
        self: &Arc<Self>,
        admission: &Admission,
        environment: Environment,
        run_time: Option<u64>,
        ends_poll: bool,
    ) -> Option<CallerWaker> {
        let Environment { trace, layer_permit } = environment;
        // Wakes a caller that waits for the permit. Its waker is user code.
        if let Some(Err(payload)) = layer_permit.map(|permit| catch_unwind(|| drop(permit))) {
            self.report_panic(payload);
        }
        admission.on_complete(run_time, ends_poll);
        let (is_abandoned, caller) = self.state.complete();
        if is_abandoned {
            self.drop_output(&trace, run_time.unwrap_or_default());
        }
        // Closes the span unless it is referenced elsewhere, which runs the subscriber.
        if !trace.is_enabled() {
            mem::forget(trace); // Nothing to drop, which its destructor would find out by a call.
        } else if let Err(payload) = catch_unwind(|| drop(trace)) {
            self.report_panic(payload);
        }
        caller
    }

    /// Drops an output that no caller takes, in the context of the work.
    fn drop_output(&self, trace: &Trace, run_time: u64) {
        let result = self.progress.lock().stage.take_result();
        let has_output = matches!(result, Some(Ok(_)));
        let dropped = catch_unwind(|| {
            trace.enter(self.header.runtime.as_ref(), || {
                drop_result(result);
                if has_output && !self.state.is_cancelled() {
                    self.metrics().detached_ended(run_time);
                }
            });
        });
        if let Err(payload) = dropped {
            self.report_panic(payload);
        }
    }

    /// Runs one step, and completes the call if that step panics, so that its caller does not wait
    /// forever. Panics of the work are caught before: this one comes from a metrics recorder or a
    /// tracing subscriber.
    pub(super) fn guard(self: &Arc<Self>, step: impl FnOnce() -> Option<CallerWaker>) -> Option<CallerWaker> {
        catch_unwind(step).unwrap_or_else(|payload| self.recover(payload))
    }

    #[cold]
    fn recover(self: &Arc<Self>, payload: Box<dyn Any + Send>) -> Option<CallerWaker> {
        if self.state.is_complete() {
            drop_payload(payload);
            return None;
        }
        let environment = {
            let mut progress = self.progress.lock();
            ignore_panic(|| progress.stage.store_result(Err(CallFailure::Panicked(payload))));
            progress.environment.take()
        };
        ignore_panic(|| drop(environment));
        self.permit.release();
        self.metrics().failed();
        self.permit.admission().on_complete(None, false);
        let (is_abandoned, caller) = self.state.complete();
        let result = if is_abandoned { self.progress.lock().stage.take_result() } else { None };
        ignore_panic(|| drop(result));
        caller
    }

    /// Runs `work` as part of this call, in its environment.
    fn enter<T>(self: &Arc<Self>, environment: &Environment, work: impl FnOnce() -> T) -> T {
        let Environment { trace, layer_permit } = environment;
        // SAFETY: `scope` removes it from the thread before it returns or unwinds. `self` and
        // `environment` are borrowed until then.
        #[allow(unsafe_code)]
        let call = unsafe { Uncounted::new(self, layer_permit) };
        CurrentCall(call).scope(trace, self.header.runtime.as_ref(), work)
    }

    /// Queues the call again. Called only if [`CallState`] returned this obligation.
    pub(super) fn schedule(self: &Arc<Self>) {
        let metrics = self.metrics();
        self.woken.store(time::now(), Ordering::Relaxed);
        metrics.woken();
        self.permit.schedule(Runnable::new(self.clone()));
    }
}
