use std::sync::mpsc;

use tokio::{sync::Notify, time::Instant};

use crate::sync::{Mutex, lock};

/// Decides whether the work of an attempt begins.
///
/// Work begins on a thread of a pool, possibly long after the job was claimed. Until then the
/// attempt can be revoked. A gate that is guarded lets the work begin only after the attempt has
/// asked the database whether the claim is still valid.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    /// Notified when the work begins or asks.
    changed: Notify,
}

#[derive(Default)]
enum State {
    /// The work begins without asking.
    #[default]
    Open,
    /// The work asks before it begins.
    Guarded,
    /// The thread that would run the work waits for the answer.
    Asking(mpsc::SyncSender<bool>),
    /// The work has begun at this time.
    Begun(Instant),
    /// The work never begins.
    Revoked,
}

impl Gate {
    /// Returns `true` if the work may begin. Called once, by the thread that is about to run it,
    /// which waits for the answer of a guarded gate.
    pub(super) fn pass(&self) -> bool {
        let answer = {
            let mut state = lock(&self.state);
            match *state {
                State::Open => {
                    *state = State::Begun(Instant::now());
                    None
                }
                State::Guarded => {
                    let (sender, answer) = mpsc::sync_channel(1);
                    *state = State::Asking(sender);
                    Some(answer)
                }
                State::Asking(_) | State::Begun(_) | State::Revoked => return false,
            }
        };
        self.changed.notify_waiters();
        answer.is_none_or(|answer| answer.recv().unwrap_or(false))
    }

    /// Makes the work ask before it begins. Has no effect if it has begun.
    pub(super) fn guard(&self) -> bool {
        let mut state = lock(&self.state);
        if matches!(*state, State::Open) {
            *state = State::Guarded;
        }
        matches!(*state, State::Guarded)
    }

    /// Answers the thread that asks, or opens the gate before it asks.
    pub(super) fn answer(&self, may_begin: bool) {
        let previous = {
            let mut state = lock(&self.state);
            let next = match (&*state, may_begin) {
                (State::Guarded, true) => State::Open,
                (State::Asking(_), true) => State::Begun(Instant::now()),
                (State::Guarded | State::Asking(_), false) => State::Revoked,
                (State::Open | State::Begun(_) | State::Revoked, _) => return,
            };
            std::mem::replace(&mut *state, next)
        };
        if let State::Asking(sender) = previous {
            let _ = sender.send(may_begin);
            self.changed.notify_waiters();
        }
    }

    /// Prevents the work from beginning. Returns `false` if it has begun.
    pub(super) fn revoke(&self) -> bool {
        let previous = {
            let mut state = lock(&self.state);
            if matches!(*state, State::Begun(_)) {
                return false;
            }
            std::mem::replace(&mut *state, State::Revoked)
        };
        if let State::Asking(sender) = previous {
            let _ = sender.send(false);
        }
        true
    }

    /// Completes when the thread that is about to run the work asks.
    pub(super) async fn asked(&self) {
        self.until(|state| matches!(state, State::Asking(_))).await;
    }

    /// Completes when the work has begun.
    pub(super) async fn begun(&self) {
        self.until(|state| matches!(state, State::Begun(_))).await;
    }

    pub(super) fn is_guarded(&self) -> bool {
        matches!(*lock(&self.state), State::Guarded)
    }

    /// Returns the time at which the work has begun.
    pub(super) fn begun_at(&self) -> Option<Instant> {
        match *lock(&self.state) {
            State::Begun(at) => Some(at),
            _ => None,
        }
    }

    async fn until(&self, is_reached: impl Fn(&State) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable(); // before the check, so that no change is missed
            if is_reached(&lock(&self.state)) {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Gate;

    #[test]
    fn work_begins_once_and_cannot_be_revoked_then() {
        let gate = Gate::default();
        assert!(gate.pass() && gate.begun_at().is_some());
        assert!(!gate.revoke() && !gate.guard());
    }

    #[test]
    fn revoked_work_never_begins() {
        let gate = Gate::default();
        assert!(gate.guard() && gate.revoke());
        gate.answer(true);
        assert!(!gate.pass());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn guarded_work_waits_for_the_answer() {
        for answer in [true, false] {
            let gate = Arc::new(Gate::default());
            assert!(gate.guard());
            let thread = std::thread::spawn({
                let gate = gate.clone();
                move || gate.pass()
            });
            gate.asked().await;
            gate.answer(answer);
            assert_eq!(thread.join().expect("no panic"), answer);
            assert_eq!(gate.begun_at().is_some(), answer);
        }
    }
}
