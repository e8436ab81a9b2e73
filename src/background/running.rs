use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{control::Control, shared::Shared, span::TaskSpan, ticket::Ticket, within};
use crate::panic::{catch_unwind, ignore_panic};

type Work = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// An async task, wherever it is polled.
pub(super) struct Running {
    /// `None` once it ended, both of them.
    parts: Option<(Ticket, Work)>,
    span: TaskSpan,
}

impl Running {
    pub(super) fn new(ticket: Ticket, work: Work) -> Self {
        Self { parts: Some((ticket, work)), span: TaskSpan::default() }
    }

    /// Neither begun nor unwanted.
    pub(super) fn is_unbegun(&self) -> bool {
        self.parts.as_ref().is_some_and(|(ticket, _)| !ticket.has_begun() && !ticket.control.is_cancelled())
    }

    pub(super) fn owner(&self) -> (Arc<Shared>, Arc<Control>) {
        let (ticket, _) = self.parts.as_ref().expect("asked only of one that has not begun");
        (ticket.shared.clone(), ticket.control.clone())
    }
}

impl Future for Running {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some((mut ticket, mut work)) = self.parts.take() else { return Poll::Ready(()) };
        if !ticket.has_begun() {
            if !ticket.begin() {
                return Poll::Ready(());
            }
            self.span = TaskSpan::begin(&ticket.control);
        }
        let shared = ticket.shared.clone();
        let polled = catch_unwind(|| within::scope(&*shared, || self.span.enter(|| work.as_mut().poll(cx))));
        match polled {
            Ok(Poll::Pending) => {
                self.parts = Some((ticket, work));
                return Poll::Pending;
            }
            Ok(Poll::Ready(message)) => {
                let dropped = catch_unwind(|| within::scope(&*shared, || self.span.enter(|| drop(work))));
                self.span = TaskSpan::default();
                ticket.end(dropped.map(|()| message));
            }
            Err(payload) => {
                ignore_panic(|| self.span.enter(|| drop(work)));
                self.span = TaskSpan::default();
                ticket.end(Err(payload));
            }
        }
        Poll::Ready(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some((_ticket, work)) = self.parts.take() else { return };
        ignore_panic(|| self.span.enter(|| drop(work))); // before the ticket: then it is over
    }
}
