use tokio::runtime::Handle;

/// What surrounded the caller and has to surround the work: the tokio runtime, the tracing span and its dispatcher.
///
/// Entered around each poll and around the drop, left before the thread does anything else; so it holds on rayon too,
/// where a thread may take up a second call in the middle of a first.
#[derive(Debug)]
pub(crate) struct Context {
    runtime: Option<Handle>,
    #[cfg(feature = "tracing")]
    span: tracing::Span,
    /// `None` without any subscriber: setting a scoped dispatcher slows tracing down in the whole process.
    #[cfg(feature = "tracing")]
    dispatch: Option<tracing::Dispatch>,
}

impl Context {
    pub(crate) fn capture() -> Self {
        Self {
            runtime: Handle::try_current().ok(),
            #[cfg(feature = "tracing")]
            span: tracing::Span::current(),
            #[cfg(feature = "tracing")]
            dispatch: tracing::dispatcher::get_default(|dispatch| {
                (!dispatch.is::<tracing::subscriber::NoSubscriber>()).then(|| dispatch.clone())
            }),
        }
    }

    pub(crate) fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        let _runtime = self.runtime.as_ref().map(Handle::enter);
        #[cfg(feature = "tracing")]
        let _dispatch = self.dispatch.as_ref().map(tracing::dispatcher::set_default);
        #[cfg(feature = "tracing")]
        let _span = self.span.enter();
        work()
    }
}
