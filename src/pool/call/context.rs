use std::cell::Cell;

use tokio::{
    runtime::{EnterGuard, Handle, Id},
    task,
};

thread_local! {
    /// The runtime that the worker on this thread has entered ahead of the call that it is about to run. Taken while a call
    /// runs: what is run within a call, as rayon and `Inline` do, finds nothing here and enters its own.
    static AHEAD: Cell<Option<Id>> = const { Cell::new(None) };
}

/// What surrounded the caller and has to surround the work: the tokio runtime, the tracing span and its dispatcher.
///
/// Entered around each poll and around the drop, left before the thread does anything else; so it holds on rayon too,
/// where a thread may take up a second call in the middle of a first.
#[derive(Debug)]
pub(crate) struct Context {
    pub(super) runtime: Option<Handle>,
    pub(super) task: Option<task::Id>,
    pub(super) trace: Trace,
}

impl Context {
    pub(crate) fn capture() -> Self {
        Self { runtime: Handle::try_current().ok(), task: task::try_id(), trace: Trace::capture() }
    }

    /// As `capture`, for work that outlives the task that asks for it and that nobody awaits there.
    pub(crate) fn capture_for_background() -> Self {
        Self { task: None, ..Self::capture() }
    }

    pub(crate) fn runtime(&self) -> Option<&Handle> {
        self.runtime.as_ref()
    }

    /// For work whose runtime is gone.
    pub(crate) fn without_runtime(self) -> Self {
        Self { runtime: None, ..self }
    }

    /// Runs `work` in the captured span, on a thread that is in the runtime already.
    pub(crate) fn enter_trace<T>(&self, work: impl FnOnce() -> T) -> T {
        self.trace.enter(None, work)
    }
}

/// The part of a context that ends with the future: an open span is a span that is not finished.
#[derive(Debug)]
pub(super) struct Trace {
    #[cfg(feature = "tracing")]
    span: tracing::Span,
    /// `None` without any subscriber: setting a scoped dispatcher slows tracing down in the whole process.
    #[cfg(feature = "tracing")]
    dispatch: Option<tracing::Dispatch>,
}

impl Trace {
    fn capture() -> Self {
        Self {
            #[cfg(feature = "tracing")]
            span: tracing::Span::current(),
            #[cfg(feature = "tracing")]
            dispatch: tracing::dispatcher::get_default(|dispatch| {
                (!dispatch.is::<tracing::subscriber::NoSubscriber>()).then(|| dispatch.clone())
            }),
        }
    }

    /// Closes the span, unless others have it: foreign code.
    pub(super) fn end(self) {}

    /// Runs `work` in that runtime and in this span.
    pub(super) fn enter<T>(&self, runtime: Option<&Handle>, work: impl FnOnce() -> T) -> T {
        let ahead = AHEAD.take();
        let _restore = Restore(ahead);
        let _runtime = runtime.filter(|runtime| ahead != Some(runtime.id())).map(Handle::enter);
        #[cfg(feature = "tracing")]
        let _dispatch = self.dispatch.as_ref().map(tracing::dispatcher::set_default);
        #[cfg(feature = "tracing")]
        let _span = self.span.enter();
        work()
    }
}

struct Restore(Option<Id>);

impl Drop for Restore {
    fn drop(&mut self) {
        AHEAD.set(self.0);
    }
}

/// A runtime that is entered once for many calls in a row. To enter it takes two changes of a counter that all threads of the
/// runtime share, for each call.
#[derive(Debug)]
pub(crate) struct Ahead<'a> {
    runtime: Option<Id>,
    _guard: Option<EnterGuard<'a>>,
}

impl<'a> Ahead<'a> {
    pub(crate) fn enter(runtime: Option<&'a Handle>) -> Self {
        let id = runtime.map(Handle::id);
        let guard = runtime.map(Handle::enter);
        AHEAD.set(id);
        Self { runtime: id, _guard: guard }
    }

    /// Whether the work of that runtime belongs here.
    pub(crate) fn covers(&self, runtime: Option<&Handle>) -> bool {
        self.runtime == runtime.map(Handle::id)
    }
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        AHEAD.set(None);
    }
}
