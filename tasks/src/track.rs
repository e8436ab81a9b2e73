use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use serde::Serialize;

use super::{
    Accepted, IntoFailure, Progress, Reason, Record, Refused, Status, TaskId, Tasks, live::Live, record::Ending, work,
};
use tower_offload::background::{Reservation, TaskTarget};

/// A task that has a name and no work yet. Made by [`Tasks::track`].
#[derive(Clone)]
#[must_use = "a task does nothing until it is given work with `run` or `spawn`"]
pub struct Track<'a> {
    tasks: &'a Tasks,
    name: Cow<'static, str>,
    owner: Option<String>,
    limit: Option<Duration>,
}

impl<'a> Track<'a> {
    pub(crate) fn new(tasks: &'a Tasks, name: Cow<'static, str>) -> Self {
        Self { tasks, name, owner: None, limit: None }
    }

    /// Who may see it. Default: whoever knows the id.
    pub fn owner(self, owner: impl Into<String>) -> Self {
        Self { owner: Some(owner.into()), ..self }
    }

    /// How long it may run, from when it begins. Default: for ever.
    ///
    /// After that it has [timed out](super::TaskState::TimedOut). An async task is dropped; sync work is told to stop
    /// ([`Progress::is_cancelled`]), and keeps its thread until it does. See [`TaskBuilder::timeout`](tower_offload::background::TaskBuilder::timeout).
    pub fn timeout(self, limit: Duration) -> Self {
        Self { limit: Some(limit), ..self }
    }

    /// Accepts it, with sync work for the pool of the background.
    ///
    /// With a [`Background`](tower_offload::Background) it starts as soon as there is a permit, with an `AfterResponse` if the response is a success:
    /// otherwise the task is [cancelled](super::TaskState::Cancelled).
    ///
    /// # Errors
    ///
    /// If the background has no place or is closed, if the record could not be written, or if the name or the owner cannot be kept. The
    /// work is dropped then.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, the work is dropped and does not run; if the record was written by then it ends as
    /// [abandoned](super::Reason::Abandoned).
    pub async fn run<R, F, T, E>(self, register: &R, work: F) -> Result<Accepted, Refused>
    where
        R: TaskTarget + ?Sized,
        F: FnOnce(Progress) -> Result<T, E> + Send + 'static,
        T: Serialize,
        E: IntoFailure,
    {
        let place = self.reserve(register)?;
        self.accept(place, |place, live| drop(place.spawn_blocking(work::of_closure(live, work)))).await
    }

    /// Accepts it, with async work, which runs on the current runtime. Otherwise as [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    ///
    /// # Cancel safety
    ///
    /// As [`run`](Self::run).
    pub async fn spawn<R, F, A, T, E>(self, register: &R, work: F) -> Result<Accepted, Refused>
    where
        R: TaskTarget + ?Sized,
        F: FnOnce(Progress) -> A + Send + 'static,
        A: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize,
        E: IntoFailure,
    {
        let place = self.reserve(register)?;
        self.accept(place, |place, live| drop(place.spawn(work::of_future(live, work)))).await
    }

    fn reserve<R: TaskTarget + ?Sized>(&self, register: &R) -> Result<Reservation, Refused> {
        self.check()?;
        let place = register.reserve(self.name.clone())?;
        Ok(match self.limit {
            Some(limit) => place.timeout(limit),
            None => place,
        })
    }

    /// As [`spawn`](Self::spawn), where there is a place already, with a limit of its own.
    #[cfg(feature = "river")]
    pub(crate) async fn spawn_at<F, A, T, E>(self, place: Reservation, work: F) -> Result<Accepted, Refused>
    where
        F: FnOnce(Progress) -> A + Send + 'static,
        A: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize,
        E: IntoFailure,
    {
        self.check()?;
        self.accept(place, |place, live| drop(place.spawn(work::of_future(live, work)))).await
    }

    fn check(&self) -> Result<(), Refused> {
        check(&self.name, MAX_NAME).map_err(|why| Refused::invalid(why.of_name))?;
        self.owner
            .as_ref()
            .map_or(Ok(()), |owner| check(owner, MAX_OWNER))
            .map_err(|why| Refused::invalid(why.of_owner))?;
        if self.tasks.is_closed() {
            return Err(Refused::closed());
        }
        Ok(())
    }

    async fn accept(
        self,
        place: Reservation,
        submit: impl FnOnce(Reservation, Arc<Live>) + Send,
    ) -> Result<Accepted, Refused> {
        let shared = self.tasks.shared();
        let now = shared.now();
        let mut record = Record::new(TaskId::random(now).map_err(Refused::random)?, self.name, now);
        record.owner = self.owner;
        let status = Status::from(&record);
        let live = Arc::new(Live::new(record, &place, shared.clone()));
        let (over, awaits_response) = (live.clone(), place.awaits_response());
        let place = place.on_completion(move |ended| over.over(ended));
        let mut unfinished = Unfinished(Some(live.clone())); // after the place, and so dropped before it
        shared.accept(live.clone()).await?;
        unfinished.0 = None;
        submit(place, live);
        let location = self.tasks.location(status.id);
        Ok(Accepted::new(status, location, awaits_response))
    }
}

/// A task that is being accepted. Dropped with its future, it is said why it never ran before the place says that it was skipped.
struct Unfinished(Option<Arc<Live>>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(live) = self.0.take() {
            live.finish(Ending::Cancelled(Reason::Abandoned, None));
        }
    }
}

/// As long as an index of a database allows for both together.
pub(crate) const MAX_NAME: usize = 200;
pub(crate) const MAX_OWNER: usize = 500;

pub(crate) struct Invalid {
    pub(crate) of_name: &'static str,
    pub(crate) of_owner: &'static str,
}

/// An owner is never shortened: two might become one.
pub(crate) fn check(text: &str, at_most: usize) -> Result<(), Invalid> {
    if text.is_empty() {
        Err(Invalid { of_name: "it has no name", of_owner: "its owner is an empty text" })
    } else if text.len() > at_most {
        Err(Invalid { of_name: "its name is too long", of_owner: "its owner is too long" })
    } else if text.chars().any(char::is_control) {
        Err(Invalid { of_name: "its name has control characters", of_owner: "its owner has control characters" })
    } else {
        Ok(())
    }
}

impl fmt::Debug for Track<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Track")
            .field("name", &self.name)
            .field("owner", &self.owner)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}
