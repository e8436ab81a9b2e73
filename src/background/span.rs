use super::control::Control;

/// The span of a task, made when it begins, within the span in which it was registered. Nothing without feature `tracing`.
#[derive(Default)]
pub(super) struct TaskSpan {
    #[cfg(feature = "tracing")]
    span: Option<tracing::Span>,
}

impl TaskSpan {
    #[cfg_attr(not(feature = "tracing"), expect(unused_variables))]
    pub(super) fn begin(control: &Control) -> Self {
        Self {
            #[cfg(feature = "tracing")]
            span: Some(tracing::info_span!("background_task", id = control.id, name = &*control.name)),
        }
    }

    /// Closes it, before what follows.
    pub(super) fn end(self) {}

    pub(super) fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        #[cfg(feature = "tracing")]
        let _span = self.span.as_ref().map(tracing::Span::enter);
        work()
    }
}
