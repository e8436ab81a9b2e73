use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::admission::Admission;
use crate::pool::{Admitted, CallError, Pool, Priority, call::CurrentCall};

type Wait = Pin<Box<dyn Future<Output = Result<Admitted, CallError>> + Send + Sync>>;

/// What `poll_ready` reserves and `call` spends, in the mode of that name.
pub(super) struct Backpressure {
    admission: Arc<Admission>,
    pool: Arc<dyn Pool>,
    state: State,
}

enum State {
    Idle,
    /// A place and a slot are held, or the pool is closed: then the call is to be answered, not to hang.
    Reserved(Result<Admitted, CallError>),
    Waiting(Wait),
}

impl Backpressure {
    pub(super) fn new(admission: Arc<Admission>, pool: Arc<dyn Pool>) -> Self {
        Self { admission, pool, state: State::Idle }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.state = match &mut self.state {
                State::Idle => match self.admission.admit(&self.pool, Priority::Normal) {
                    Err(CallError::Overloaded) => {
                        let (admission, pool) = (self.admission.clone(), self.pool.clone());
                        State::Waiting(Box::pin(admission.admitted(
                            pool,
                            Priority::Normal,
                            CurrentCall::layer_permit(),
                        )))
                    }
                    reserved => State::Reserved(reserved),
                },
                State::Reserved(_) => return Poll::Ready(()),
                State::Waiting(wait) => State::Reserved(ready!(wait.as_mut().poll(cx))),
            };
        }
    }

    /// What was reserved. The next call needs a reservation of its own.
    ///
    /// # Panics
    ///
    /// If nothing was.
    pub(super) fn spend(&mut self) -> Result<Admitted, CallError> {
        let State::Reserved(reserved) = std::mem::replace(&mut self.state, State::Idle) else {
            panic!("`Offload` with `.backpressure()` was called before `poll_ready` returned ready");
        };
        // A reservation may be older than the shutdown.
        if self.pool.admission().is_closed() { Err(CallError::Closed) } else { reserved }
    }
}

impl Clone for Backpressure {
    /// A clone holds no reservation: it would be spent twice.
    fn clone(&self) -> Self {
        Self::new(self.admission.clone(), self.pool.clone())
    }
}

impl fmt::Debug for Backpressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reserved = matches!(self.state, State::Reserved(_));
        f.debug_struct("Backpressure").field("reserved", &reserved).finish_non_exhaustive()
    }
}
