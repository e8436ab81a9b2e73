use serde::{Serialize, de::DeserializeOwned};

/// What is to be done, as it is kept in the queue until a worker takes it: a type for each kind of job.
///
/// The value is kept as JSON, at most [64 KiB](crate::Json::MAX_BYTES) of it. Jobs outlive the program that enqueued them, so a new
/// version must still read what an old one wrote: add fields with `#[serde(default)]`.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tower_offload_tasks::jobs::Job;
///
/// #[derive(Serialize, Deserialize)]
/// struct Report {
///     customer: u64,
/// }
///
/// impl Job for Report {
///     const KIND: &'static str = "report";
/// }
/// ```
pub trait Job: Serialize + DeserializeOwned + Send + 'static {
    /// Names the kind, in the queue and in statuses: 1 to 128 characters out of letters, digits and `-_./:` between. River clients in other
    /// languages know the job by it.
    const KIND: &'static str;

    /// The queue that it waits in, if [`Enqueue::queue`](super::Enqueue::queue) names no other. Default: River's own, `default`.
    const QUEUE: &'static str = "default";

    /// How many times it may begin, if [`Enqueue::max_attempts`](super::Enqueue::max_attempts) says nothing else. A process that dies while
    /// the job runs has begun it too. Default: River's, 25.
    const MAX_ATTEMPTS: u16 = 25;
}
