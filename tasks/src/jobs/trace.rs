//! Traces of jobs: the trace context that is stored with a job, and the span of an attempt.

#[cfg(feature = "tracing")]
use std::sync::OnceLock;
use std::{collections::HashMap, ops::Range, sync::Arc};

use riverqueue::{JobMetadata, JobRow};
use tokio::time::Instant;
#[cfg(feature = "tracing")]
use tracing::{Instrument, Span, field::Empty, info_span};

use super::{numbers::AttemptNumbers, outcome::Outcome, queue::Environment, worker::WorkFuture};
use crate::TaskId;
#[cfg(feature = "tracing")]
use crate::panic::ignore_panic;

/// Key of the trace context in River's metadata. River's own OpenTelemetry middleware, `otelriver`
/// of `riverqueue/rivercontrib`, uses the same keys.
const TRACEPARENT_KEY: &str = "traceparent";
/// Key of the vendors' part of the trace context in River's metadata.
const TRACESTATE_KEY: &str = "tracestate";
/// Length of a `traceparent` of version 00. Later versions begin with the same fields.
const TRACEPARENT_LEN: usize = 55;
/// Maximum length of a `tracestate`: the length that every participant in a trace has to pass on.
const MAX_TRACESTATE_LEN: usize = 512;

/// Identifies a span of a trace across processes, in the format of
/// [W3C Trace Context](https://www.w3.org/TR/trace-context/).
///
/// A job has the context of the span in which it was enqueued if the queue has a [`Propagator`], or
/// the one that was passed to [`Enqueue::trace_context`](super::Enqueue::trace_context). It is
/// stored in River's metadata as `traceparent` and `tracestate`, which clients in other languages
/// can set and read as well.
///
/// ```
/// use tower_offload_tasks::jobs::TraceContext;
///
/// let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// let context = TraceContext::new(traceparent, None).expect("it is valid");
/// assert_eq!(context.traceparent(), traceparent);
/// assert!(TraceContext::new("00-0-0-01", None).is_none());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TraceContext {
    traceparent: Box<str>,
    tracestate: Option<Box<str>>,
}

impl TraceContext {
    /// Creates a trace context from the values of the headers `traceparent` and `tracestate`.
    ///
    /// Returns `None` if `traceparent` is not valid, because a participant that cannot parse the
    /// header starts a new trace. Of a later version than 00, the fields of version 00 are kept. A
    /// `tracestate` that has more than 512 bytes or other characters than printable ASCII is
    /// dropped.
    pub fn new(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let traceparent = parse_traceparent(traceparent)?.into();
        let tracestate = tracestate.filter(|state| is_tracestate(state)).map(Into::into);
        Some(Self { traceparent, tracestate })
    }

    /// Creates a trace context from the map into which a propagator of OpenTelemetry has injected
    /// one.
    pub fn from_carrier(carrier: &HashMap<String, String>) -> Option<Self> {
        Self::new(carrier.get(TRACEPARENT_KEY)?, carrier.get(TRACESTATE_KEY).map(String::as_str))
    }

    /// Returns a map from which a propagator of OpenTelemetry extracts the trace context.
    pub fn to_carrier(&self) -> HashMap<String, String> {
        self.fields().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// Returns the value of the header `traceparent`.
    pub fn traceparent(&self) -> &str {
        &self.traceparent
    }

    /// Returns the value of the header `tracestate`.
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }

    /// Returns the fields of River's metadata.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let tracestate = self.tracestate().map(|state| (TRACESTATE_KEY, state));
        [(TRACEPARENT_KEY, self.traceparent())].into_iter().chain(tracestate)
    }

    /// Returns the trace context of a job. Another client may have written anything there.
    #[cfg_attr(not(feature = "tracing"), allow(dead_code, reason = "for spans"))]
    fn of_metadata(metadata: &JobMetadata) -> Option<Self> {
        let get = |key| metadata.get::<String>(key).ok().flatten();
        Self::new(&get(TRACEPARENT_KEY)?, get(TRACESTATE_KEY).as_deref())
    }
}

/// Returns the fields of version 00, or `None` if they are not valid.
fn parse_traceparent(text: &str) -> Option<&str> {
    let fields = text.get(..TRACEPARENT_LEN)?;
    let bytes = fields.as_bytes();
    let is_hex = |range: Range<usize>| bytes[range].iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_id = |range: Range<usize>| is_hex(range.clone()) && bytes[range].iter().any(|byte| *byte != b'0');
    let is_separated = [2, 35, 52].iter().all(|at| bytes[*at] == b'-');
    let has_version = is_hex(0..2) && &bytes[..2] != b"ff";
    let is_complete = text.len() == TRACEPARENT_LEN || &bytes[..2] != b"00" && text[TRACEPARENT_LEN..].starts_with('-');
    (is_separated && has_version && is_complete && is_id(3..35) && is_id(36..52) && is_hex(53..55)).then_some(fields)
}

fn is_tracestate(text: &str) -> bool {
    (1..=MAX_TRACESTATE_LEN).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// Connects the spans of jobs to a tracing backend, such as OpenTelemetry.
///
/// This crate creates spans of `tracing`, which knows nothing of trace ids. A propagator translates
/// between a span and its [`TraceContext`]. It is passed to
/// [`JobsBuilder::propagator`](super::JobsBuilder::propagator). The one for the crate
/// `tracing-opentelemetry` is:
///
/// ```
/// use std::collections::HashMap;
/// use opentelemetry::{propagation::TextMapPropagator, trace::TraceContextExt};
/// use opentelemetry_sdk::propagation::TraceContextPropagator;
/// use tower_offload_tasks::jobs::{Propagator, TraceContext};
/// use tracing::Span;
/// use tracing_opentelemetry::OpenTelemetrySpanExt;
///
/// struct OpenTelemetry(TraceContextPropagator);
///
/// impl Propagator for OpenTelemetry {
///     fn context(&self, span: &Span) -> Option<TraceContext> {
///         let mut carrier = HashMap::new();
///         self.0.inject_context(&span.context(), &mut carrier);
///         TraceContext::from_carrier(&carrier)
///     }
///
///     fn set_parent(&self, span: &Span, parent: &TraceContext) {
///         let _ = span.set_parent(self.0.extract(&parent.to_carrier()));
///     }
///
///     fn add_link(&self, span: &Span, linked: &TraceContext) {
///         span.add_link(self.0.extract(&linked.to_carrier()).span().span_context().clone());
///     }
/// }
/// # let _ = OpenTelemetry(TraceContextPropagator::new());
/// ```
///
/// A panic of a propagator is contained, and the job has no trace context then.
#[cfg(feature = "tracing")]
#[cfg_attr(docsrs, doc(cfg(feature = "tracing")))]
pub trait Propagator: Send + Sync + 'static {
    /// Returns the trace context of a span, or `None` if it belongs to no trace.
    fn context(&self, span: &Span) -> Option<TraceContext>;

    /// Makes a span the child of another one, and so part of its trace. The span was not entered
    /// yet.
    fn set_parent(&self, span: &Span, parent: &TraceContext);

    /// Links a span to one of another trace. The span was not entered yet.
    fn add_link(&self, span: &Span, linked: &TraceContext);
}

/// The propagator of a queue, if it has one.
#[derive(Clone, Default)]
pub(super) struct Tracing {
    #[cfg(feature = "tracing")]
    propagator: Option<Arc<dyn Propagator>>,
}

impl Tracing {
    #[cfg(feature = "tracing")]
    pub(super) fn new(propagator: impl Propagator) -> Self {
        Self { propagator: Some(Arc::new(propagator)) }
    }

    /// Returns the trace context of the current span.
    pub(super) fn current(&self) -> Option<TraceContext> {
        #[cfg(feature = "tracing")]
        {
            let (propagator, mut context) = (self.propagator.as_ref()?, None);
            ignore_panic(|| context = propagator.context(&Span::current()));
            context
        }
        #[cfg(not(feature = "tracing"))]
        None
    }
}

/// The span of an attempt, and its numbers. Shared by the adapter and the ticket of the work.
///
/// The span begins when the pool gets the work, so an attempt that is handed back earlier has none.
/// That of the first attempt is a child of the span in which the job was enqueued. Those of later
/// attempts begin new traces that are linked to that span: a retry hours later must not stretch the
/// trace of the request, or depend on whether the request was sampled.
pub(super) struct AttemptTrace {
    numbers: AttemptNumbers,
    #[cfg(feature = "tracing")]
    span: LazySpan,
}

impl AttemptTrace {
    /// Creates the trace of an attempt that was claimed at `claimed_at` by the local clock.
    pub(super) fn new(environment: &Environment, row: &JobRow, id: TaskId, claimed_at: Instant) -> Arc<Self> {
        #[cfg(not(feature = "tracing"))]
        let _ = id;
        Arc::new(Self {
            numbers: AttemptNumbers::new(environment.counters.names(), row, claimed_at),
            #[cfg(feature = "tracing")]
            span: LazySpan::new(&environment.tracing, row, id),
        })
    }

    /// Runs the work in the span.
    pub(super) fn instrument(self: &Arc<Self>, work: WorkFuture) -> WorkFuture {
        #[cfg(feature = "tracing")]
        {
            let trace = self.clone();
            Box::pin(async move {
                let span = trace.span.get().clone();
                work.instrument(span).await
            })
        }
        #[cfg(not(feature = "tracing"))]
        work
    }

    /// Counts the attempt, whose work begins.
    pub(super) fn begin(&self) {
        self.numbers.begin();
    }

    /// Records how the attempt has ended.
    pub(super) fn end(&self, outcome: &Outcome) {
        self.numbers.end();
        #[cfg(feature = "tracing")]
        self.span.end(outcome);
        #[cfg(not(feature = "tracing"))]
        let _ = outcome;
    }
}

/// The span of an attempt, which is created when it is first used.
#[cfg(feature = "tracing")]
struct LazySpan {
    tracing: Tracing,
    context: Option<TraceContext>,
    id: TaskId,
    river_id: i64,
    kind: String,
    queue: String,
    attempt: i32,
    max_attempts: i32,
    span: OnceLock<Span>,
}

#[cfg(feature = "tracing")]
impl LazySpan {
    fn new(tracing: &Tracing, row: &JobRow, id: TaskId) -> Self {
        Self {
            tracing: tracing.clone(),
            context: tracing.propagator.as_ref().and_then(|_| TraceContext::of_metadata(&row.metadata)),
            id,
            river_id: row.id,
            kind: row.kind.clone(),
            queue: row.queue.clone(),
            attempt: row.attempt,
            max_attempts: row.max_attempts,
            span: OnceLock::new(),
        }
    }

    fn get(&self) -> &Span {
        self.span.get_or_init(|| {
            let Self { id, river_id, kind, queue, attempt, max_attempts, .. } = self;
            let span = info_span!(
                parent: None, "job", otel.name = format_args!("job {kind}"), otel.kind = "consumer", %id, river_id, kind,
                queue, attempt, max_attempts, end = Empty, class = Empty, otel.status_code = Empty,
                otel.status_description = Empty
            );
            if let (Some(propagator), Some(context)) = (&self.tracing.propagator, &self.context) {
                ignore_panic(|| match attempt {
                    1 => propagator.set_parent(&span, context),
                    _ => propagator.add_link(&span, context),
                });
            }
            span
        })
    }

    /// Records the end. An attempt whose arguments cannot be read has a span, too.
    fn end(&self, outcome: &Outcome) {
        let end = match outcome {
            Outcome::Succeeded(_) => "succeeded",
            Outcome::Failed(failure) => {
                let span = self.get();
                span.record("class", &*failure.class).record("otel.status_code", "ERROR");
                span.record("otel.status_description", &*failure.message);
                "failed"
            }
            Outcome::Stopped => "stopped",
            Outcome::NotBegun(_) => "returned",
        };
        if let Some(span) = self.span.get() {
            span.record("end", end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TraceContext;

    const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn trace_context_of_a_request_is_kept() {
        let context = TraceContext::new(TRACEPARENT, Some("vendor=1,other=2")).expect("it is valid");
        assert_eq!((context.traceparent(), context.tracestate()), (TRACEPARENT, Some("vendor=1,other=2")));
        assert_eq!(TraceContext::from_carrier(&context.to_carrier()), Some(context));
    }

    #[test]
    fn fields_of_a_later_version_are_kept() {
        let later = TRACEPARENT.replacen("00", "cc", 1);
        for text in [later.clone(), format!("{later}-what the future will be like")] {
            assert_eq!(TraceContext::new(&text, None).expect("it is valid").traceparent(), later);
        }
    }

    #[test]
    fn malformed_trace_context_is_none() {
        let long = format!("{TRACEPARENT}-{}", "x".repeat(1 << 20));
        let malformed = [
            "",
            "00",
            &TRACEPARENT[1..],
            &TRACEPARENT.to_uppercase(),
            &TRACEPARENT.replacen("00", "ff", 1),
            &TRACEPARENT.replace('-', "_"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
            "\u{e9}\u{e9}-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            &"\u{10ffff}".repeat(14),
            &format!("{TRACEPARENT}-"),
            &format!("{TRACEPARENT}0"),
            &format!("cc{}0", &TRACEPARENT[2..]),
            &long,
        ];
        for text in malformed {
            assert_eq!(TraceContext::new(text, None), None, "{text:.80}");
        }
    }

    #[test]
    fn tracestate_that_cannot_be_passed_on_is_dropped() {
        let longest = "x".repeat(512);
        for (state, is_kept) in [(&*longest, true), ("", false), ("a\u{0}", false), ("\u{e9}", false)] {
            let context = TraceContext::new(TRACEPARENT, Some(state)).expect("it is valid");
            assert_eq!(context.tracestate(), is_kept.then_some(state));
        }
        let context = TraceContext::new(TRACEPARENT, Some(&"x".repeat(513))).expect("it is valid");
        assert_eq!(context.tracestate(), None);
    }
}
