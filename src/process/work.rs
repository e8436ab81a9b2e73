use std::{any::TypeId, fmt, sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    frame::{self, EncodeError, Outcome, Reply, cut},
    progress::ProgressSender,
    worker::JobSignals,
};
use crate::{
    panic::{catch_unwind, drop_payload},
    pool::Deadline,
};

/// Work that runs in a process: its input is the value itself.
///
/// A closure cannot be sent to another process, so work is a type. The pool encodes the value as
/// [MessagePack](https://msgpack.org), the process decodes it and calls [`run`](Self::run), and the
/// result travels back in the same way. The attributes of serde work as they do with JSON, and as
/// with JSON, `Some(None)` arrives as `None`.
///
/// A `String` is copied at once, but serde handles each byte of a `Vec<u8>` alone, and those above
/// 127 take two bytes. For more than a few KiB, use `#[serde(with = "serde_bytes")]` of the crate
/// `serde_bytes`: 64 KiB then take a tenth of a millisecond instead of one.
///
/// Input, output and error may have 128 nested arrays, objects and enums, as with `serde_json`.
/// Deeper ones are [`InvalidData`](super::RunError::InvalidData), so that work cannot overflow the
/// stack of its caller.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tower_offload::process::{Context, Work};
///
/// #[derive(Serialize, Deserialize)]
/// struct Thumbnail {
///     image: Vec<u8>,
///     width: u32,
/// }
///
/// impl Work for Thumbnail {
///     const KIND: &'static str = "thumbnail";
///     type Output = Vec<u8>;
///     type Error = String;
///
///     fn run(self, context: &Context) -> Result<Vec<u8>, String> {
///         if context.is_cancelled() {
///             return Err("cancelled".to_owned());
///         }
///         Ok(self.image)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot run in a process",
    note = "implement `tower_offload::process::Work`, with serde's `Serialize` and `Deserialize`"
)]
pub trait Work: Serialize + DeserializeOwned + Send + 'static {
    /// Name of the work, unique in the program. Used in events and as the name of its jobs.
    const KIND: &'static str;
    /// The result.
    type Output: Serialize + DeserializeOwned + Send + 'static;
    /// The error.
    type Error: Serialize + DeserializeOwned + Send + 'static;

    /// Runs the work, on a thread of its own, outside of any runtime. The process runs no other job
    /// meanwhile. What earlier jobs have changed in it stays: see [`init`](super::init).
    ///
    /// # Errors
    ///
    /// An error travels to the caller as [`RunError::Failed`](super::RunError::Failed).
    ///
    /// # Panics
    ///
    /// A panic travels to the caller as [`RunError::Panicked`](super::RunError::Panicked).
    fn run(self, context: &Context) -> Result<Self::Output, Self::Error>;
}

/// The kinds of work of a program: one [`Work`], or a tuple of them. Tuples may be nested.
///
/// The trait is implemented for every [`Work`] and for tuples of up to 8 elements.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a type of work, nor a tuple of up to 8 of them",
    note = "each element must implement `tower_offload::process::Work`; nest tuples if there are more than 8"
)]
pub trait Works {
    /// Adds every kind to the registry of [`init`](super::init).
    #[doc(hidden)]
    fn register(registry: &mut Registry);
}

impl<W: Work> Works for W {
    fn register(registry: &mut Registry) {
        registry.add::<W>();
    }
}

macro_rules! works_for_tuples {
    ($($element:ident)*) => {
        impl<$($element: Works),*> Works for ($($element,)*) {
            fn register(registry: &mut Registry) {
                $($element::register(registry);)*
                let _ = registry;
            }
        }
    };
}

works_for_tuples!();
works_for_tuples!(A);
works_for_tuples!(A B);
works_for_tuples!(A B C);
works_for_tuples!(A B C D);
works_for_tuples!(A B C D E);
works_for_tuples!(A B C D E F);
works_for_tuples!(A B C D E F G);
works_for_tuples!(A B C D E F G H);

/// Decodes an input, runs the work, and returns the frame of its result, whose payload has at most
/// this number of bytes.
type Handler = fn(&[u8], &Context, usize) -> Vec<u8>;

/// Runs work by its kind.
#[doc(hidden)]
#[derive(Default)]
pub struct Registry(Vec<Registered>);

struct Registered {
    kind: &'static str,
    id: TypeId,
    handler: Handler,
}

impl Registry {
    /// # Panics
    ///
    /// Panics if two types have the same kind.
    #[track_caller]
    pub(super) fn of<W: Works>() -> Self {
        let mut registry = Self::default();
        W::register(&mut registry);
        registry
    }

    #[track_caller]
    fn add<W: Work>(&mut self) {
        assert!(self.find(W::KIND).is_none(), "two types of work have the kind `{}`: give each its own", W::KIND);
        self.0.push(Registered { kind: W::KIND, id: TypeId::of::<W>(), handler: run::<W> });
    }

    /// Returns the kinds and their types.
    pub(super) fn types(&self) -> impl Iterator<Item = (&'static str, TypeId)> + '_ {
        self.0.iter().map(|registered| (registered.kind, registered.id))
    }

    pub(super) fn find(&self, kind: &str) -> Option<Handler> {
        self.0.iter().find(|registered| registered.kind == kind).map(|registered| registered.handler)
    }

    pub(super) fn kinds(&self) -> Vec<&'static str> {
        self.0.iter().map(|registered| registered.kind).collect()
    }
}

/// Runs one job in the process.
fn run<W: Work>(input: &[u8], context: &Context, max: usize) -> Vec<u8> {
    let job = context.job;
    let done = |outcome| Reply::Done { job, outcome };
    let panicked = |payload| {
        drop_payload(payload);
        frame::encode(&done(Outcome::Panicked))
    };
    let work = match catch_unwind(|| frame::decode_payload::<W>(input)) {
        Ok(Ok(work)) => work,
        Ok(Err(error)) => return frame::encode(&done(Outcome::InvalidInput { reason: cut(&error) })),
        Err(payload) => return panicked(payload),
    };
    let result = catch_unwind(|| context.deadline.sync_scope(|| work.run(context)));
    // Encoding is user code too, and so is the drop of the result.
    let encoded = result.and_then(|result| {
        catch_unwind(move || match &result {
            Ok(output) => frame::encode_with(&done(Outcome::Output), output, max),
            Err(error) => frame::encode_with(&done(Outcome::Error), error, max),
        })
    });
    match encoded {
        Ok(Ok(frame)) => frame,
        Ok(Err(EncodeError::TooLarge(len))) => frame::encode(&done(Outcome::ResultTooLarge { len })),
        Ok(Err(EncodeError::Invalid(error))) => frame::encode(&done(Outcome::InvalidResult { reason: cut(&error) })),
        Err(payload) => panicked(payload),
    }
}

/// The job that work belongs to, as seen in its process.
///
/// [`tower_offload::remaining`](crate::remaining) returns the time until the deadline that was
/// known when the job started.
pub struct Context {
    pub(super) job: u64,
    /// As known when the job started.
    pub(super) deadline: Deadline,
    pub(super) trace: Option<String>,
    pub(super) signals: JobSignals,
    pub(super) progress: Arc<ProgressSender>,
}

impl Context {
    /// Returns the number of the job, unique in its pool. Events about the job have it.
    pub fn job(&self) -> u64 {
        self.job
    }

    /// Returns the trace context of the caller, if the pool has a
    /// [`trace_context`](super::ProcessPoolBuilder::trace_context).
    pub fn trace_context(&self) -> Option<&str> {
        self.trace.as_deref()
    }

    /// Returns `true` if the result is no longer wanted: the timeout or the deadline has passed,
    /// the process uses too much memory, or the caller has left.
    ///
    /// Work that returns within the [grace period](super::ProcessPoolBuilder::grace) keeps its
    /// process, and what it returns is the result of the job. Otherwise the process is killed.
    pub fn is_cancelled(&self) -> bool {
        self.signals.is_cancelled(self.job) || self.deadline().has_passed()
    }

    /// Returns the time until the timeout or the deadline of the job, whichever is earlier. `None`
    /// if it has neither.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline().remaining()
    }

    /// Reports progress to the callback of [`Run::on_progress`](super::Run::on_progress): how much
    /// of the work is done, by convention from 0.0 to 1.0, and a message of at most 4 KiB.
    /// A longer one is cut.
    ///
    /// A report costs a lock. At most one is sent every 20 ms, and it is the latest one, so that
    /// each step of a loop may report. What is reported in the 20 ms before the process crashes may
    /// be lost.
    pub fn progress(&self, value: f64, message: &str) {
        self.progress.report(self.job, value, message);
    }

    fn deadline(&self) -> Deadline {
        self.deadline.earlier(self.signals.timeout(self.job))
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("job", &self.job)
            .field("is_cancelled", &self.is_cancelled())
            .field("remaining", &self.remaining())
            .finish()
    }
}
