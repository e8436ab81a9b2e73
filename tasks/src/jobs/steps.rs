//! Steps: parts of a job that run once, although the job has several attempts.

use std::{
    collections::{BTreeMap, HashSet},
    error::Error,
    fmt::{self, Debug, Display},
    time::Duration,
};

use riverqueue::JobRow;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{runtime::Handle, task::JoinHandle, time::sleep};

use super::{Context, events::warn, running::Claim};
use crate::{
    Failure, IntoFailure, Json, StoreError,
    sync::{Mutex, lock},
};

impl Context {
    /// Runs a part of a closure once across the attempts of its job, and returns its output.
    ///
    /// The output is stored before this function returns. If the job runs again, after an error, a
    /// shutdown or a crash of the process, the step does not, and the stored output is returned. A
    /// step that fails or panics has no output, so it runs again. It also runs again if the process
    /// crashes after the step and before its output is stored: a step runs *at least* once, and
    /// those that have finished run *exactly* once.
    ///
    /// ```
    /// # use tower_offload_tasks::{Failure, jobs::Context};
    /// # fn charge(amount: u32) -> Result<u64, String> { Ok(amount.into()) }
    /// # fn send(receipt: u64) -> Result<(), String> { Ok(()) }
    /// fn work(amount: u32, context: &Context) -> Result<(), Failure> {
    ///     let receipt = context.step("charge", || charge(amount))?;
    ///     context.step("send", || send(receipt))?; // if this fails, nothing is charged again
    ///     Ok(())
    /// }
    /// ```
    ///
    /// A name identifies a step within the job, also in a later version of the program. It may be
    /// used again in an attempt only if the step has failed. Steps may run at the same time.
    ///
    /// While the database is unavailable, the output is stored as soon as it responds, unless the
    /// attempt is [cancelled](crate::Progress::is_cancelled) before.
    ///
    /// # Limits
    ///
    /// A job has at most 100 steps. A name has 1 to 100 bytes without control characters, an output
    /// at most [64 KiB](Json::MAX_BYTES) of JSON, and all names and outputs of a job together have
    /// at most 256 KiB. They are stored in the metadata of River's row, with which they are
    /// deleted.
    ///
    /// # Errors
    ///
    /// Returns the error of `work`, and an error without running `work` if the attempt is
    /// cancelled, or if the step is not valid. After an output could not be stored, every further
    /// step of the attempt returns an error.
    ///
    /// A job that [runs here](super::OrEnqueue) has one attempt, so its outputs are not stored.
    ///
    /// # Panics
    ///
    /// Panics in asynchronous code, which it would block. Use [`step_async`](Self::step_async).
    pub fn step<T, E, F>(&self, name: &str, work: F) -> Result<T, StepError<E>>
    where
        T: Serialize + DeserializeOwned,
        F: FnOnce() -> Result<T, E>,
    {
        let runtime = self.steps().store.as_ref().map(|store| store.runtime.clone());
        if let Some(runtime) = &runtime {
            runtime.block_on(async {}); // panics before the work, not after it
        }
        let step = match self.begin_step(name)? {
            Begun::Stored(output) => return Ok(output),
            Begun::Run(step) => step,
        };
        let value = work().map_err(StepError::Failed)?;
        let output = step.reserve(&value)?;
        let stored = match (self.store_output(name, &output), runtime) {
            (Some(stored), Some(runtime)) => runtime.block_on(stored).unwrap_or_else(|_| Err(Stop::runtime_ended())),
            _ => Ok(()),
        };
        step.finish(output, stored)?;
        Ok(value)
    }

    /// Runs a part of a future once across the attempts of its job, like [`step`](Self::step).
    ///
    /// ```
    /// # use tower_offload_tasks::{Failure, jobs::Context};
    /// # async fn charge(amount: u32) -> Result<u64, String> { Ok(amount.into()) }
    /// async fn work(amount: u32, context: Context) -> Result<u64, Failure> {
    ///     Ok(context.step_async("charge", || charge(amount)).await?)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`step`](Self::step).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, the future of the step is dropped with it, and
    /// the step runs again, in this attempt or a later one. If the step had completed, its output
    /// may be stored.
    pub async fn step_async<T, E, F, A>(&self, name: &str, work: F) -> Result<T, StepError<E>>
    where
        T: Serialize + DeserializeOwned,
        F: FnOnce() -> A,
        A: Future<Output = Result<T, E>>,
    {
        let step = match self.begin_step(name)? {
            Begun::Stored(output) => return Ok(output),
            Begun::Run(step) => step,
        };
        let value = work().await.map_err(StepError::Failed)?;
        let output = step.reserve(&value)?;
        let stored = match self.store_output(name, &output) {
            Some(stored) => stored.await.unwrap_or_else(|_| Err(Stop::runtime_ended())),
            None => Ok(()),
        };
        step.finish(output, stored)?;
        Ok(value)
    }

    fn begin_step<T: DeserializeOwned, E>(&self, name: &str) -> Result<Begun<'_, T>, StepError<E>> {
        if self.is_cancelled() {
            return Err(StepError::Stopped);
        }
        let state = &self.steps().state;
        let begun = lock(state).begin(name)?;
        match begun {
            None => Ok(Begun::Run(RunningStep { state, name: name.to_owned(), is_finished: false })),
            Some(output) => serde_json::from_str(&output).map(Begun::Stored).map_err(|error| {
                StepError::Invalid(format!("the stored output of step {name:?} has another type: {error}"))
            }),
        }
    }

    /// Stores an output, on a task of the runtime. Returns `None` if outputs are not stored.
    fn store_output(&self, name: &str, output: &str) -> Option<JoinHandle<Result<(), Stop>>> {
        let Store { claim, runtime } = self.steps().store.as_ref()?;
        let (queue, progress, claim) = (self.queue().clone(), self.progress().clone(), claim.clone());
        let (name, output) = (name.to_owned(), output.to_owned());
        let mut has_failed = false;
        Some(runtime.spawn(async move {
            loop {
                match queue.environment.database.write_step(&claim, &name, &output).await {
                    Ok(true) => return Ok(()),
                    Ok(false) => return Err(Stop::Lost),
                    Err(error) if !error.is_unavailable() || progress.is_cancelled() => {
                        return Err(Stop::Unstored(error));
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut has_failed, true) {
                            warn("failed to store the output of a step, will retry", &error);
                        }
                        sleep(RETRY_DELAY).await;
                    }
                }
            }
        }))
    }
}

/// Reason why a [step](Context::step) has no output. `E` is the error of its work.
///
/// A worker whose error is a [`Failure`] can use `?` on it, and so can one whose error is
/// `anyhow::Error` or `Box<dyn Error>`.
#[derive(Debug)]
#[non_exhaustive]
pub enum StepError<E> {
    /// The work of the step returned an error.
    Failed(E),
    /// The name is used twice or is not valid, a limit is exceeded, or the output cannot be
    /// converted to or from JSON. A later attempt fails, too.
    Invalid(String),
    /// The attempt was cancelled, exceeded its timeout or was stopped by a shutdown before the step
    /// began. Return the error: if the job is not cancelled, its next attempt continues here.
    Stopped,
    /// Another attempt has the job, because this process has lost its lease. The output is not
    /// stored, and the end of this attempt will have no effect.
    Lost,
    /// The output could not be stored, so the step will run again.
    Unstored(StoreError),
}

impl<E: Display> Display for StepError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => Display::fmt(error, f),
            Self::Invalid(message) => f.write_str(message),
            Self::Stopped => f.write_str("the attempt was stopped before the step began"),
            Self::Lost => f.write_str("another attempt has the job"),
            Self::Unstored(_) => f.write_str("the output of a step could not be stored"),
        }
    }
}

impl<E: Debug + Display> Error for StepError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unstored(error) => Some(error),
            _ => None,
        }
    }
}

/// The failure of a step, so that a worker can use `?` on it.
///
/// An error of the step becomes what [`IntoFailure`] describes. Otherwise the class is `step` if
/// the step is not valid, `cancelled`, `lost` or `unstored`.
impl<E: IntoFailure> From<StepError<E>> for Failure {
    fn from(error: StepError<E>) -> Self {
        let class = match error {
            StepError::Failed(error) => return error.into_failure(),
            StepError::Invalid(_) => "step",
            StepError::Stopped => "cancelled",
            StepError::Lost => "lost",
            StepError::Unstored(_) => "unstored",
        };
        // The error of the database is not for clients.
        Self::new(class, error.map(|_| "").to_string())
    }
}

impl<E> StepError<E> {
    fn map<O>(self, map: impl FnOnce(E) -> O) -> StepError<O> {
        match self {
            Self::Failed(error) => StepError::Failed(map(error)),
            Self::Invalid(message) => StepError::Invalid(message),
            Self::Stopped => StepError::Stopped,
            Self::Lost => StepError::Lost,
            Self::Unstored(error) => StepError::Unstored(error),
        }
    }
}

impl<E> From<Refused> for StepError<E> {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Invalid(message) => Self::Invalid(message),
            Refused::Stop(Stop::Lost) => Self::Lost,
            Refused::Stop(Stop::Unstored(error)) => Self::Unstored(error),
        }
    }
}

/// Delay before another try to store an output.
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// Maximum number of steps of a job.
const MAX_STEPS: usize = 100;
const MAX_NAME_BYTES: usize = 100;
/// Maximum number of bytes of all names and outputs of a job. River reads them with each claim.
const MAX_TOTAL_BYTES: usize = 256 * 1024;
/// Key of the outputs in River's metadata: an object with a text of JSON for each name. They are
/// texts because River has an index on all keys and values of the metadata on Postgres, which would
/// get an entry for each part of an output.
pub(super) const STEPS_KEY: &str = "tower_offload:steps";

/// The steps of an attempt.
#[derive(Default)]
pub(super) struct Steps {
    state: Mutex<State>,
    /// `None` if outputs are not stored.
    store: Option<Store>,
}

/// What an output is stored with.
struct Store {
    /// A claim that was lost writes nothing.
    claim: Claim,
    runtime: Handle,
}

impl Steps {
    /// Reads the outputs of earlier attempts, within a Tokio runtime.
    pub(super) fn stored(row: &JobRow, claim: &Claim) -> Self {
        let outputs: BTreeMap<String, Value> = row.metadata.get(STEPS_KEY).ok().flatten().unwrap_or_default();
        let mut state = State::default();
        for (name, output) in outputs {
            // Other programs may write to the metadata.
            if let Value::String(output) = output {
                state.bytes += name.len() + output.len();
                state.outputs.insert(name, output);
            }
        }
        let store = Store { claim: claim.clone(), runtime: Handle::current() };
        Self { state: Mutex::new(state), store: Some(store) }
    }
}

/// Which steps have begun and finished.
#[derive(Default)]
struct State {
    /// The outputs of the finished steps as JSON.
    outputs: BTreeMap<String, String>,
    /// Bytes of all names and outputs, including those that are about to be stored.
    bytes: usize,
    /// Steps of this attempt that have begun and not failed.
    begun: HashSet<String>,
    /// Set when an output could not be stored. No further step begins.
    stop: Option<Stop>,
}

/// Reason why no further step begins.
#[derive(Debug)]
enum Stop {
    Lost,
    Unstored(StoreError),
}

impl Stop {
    fn runtime_ended() -> Self {
        Self::Unstored(StoreError::unavailable("the runtime that started the job queue has ended"))
    }

    fn duplicate(&self) -> Self {
        match self {
            Self::Lost => Self::Lost,
            Self::Unstored(error) => Self::Unstored(error.duplicate()),
        }
    }
}

/// Reason why a step does not begin, or why its output is not stored.
#[derive(Debug)]
enum Refused {
    Invalid(String),
    Stop(Stop),
}

impl State {
    /// Begins a step. Returns the output if the step has finished in an earlier attempt.
    fn begin(&mut self, name: &str) -> Result<Option<String>, Refused> {
        if let Some(stop) = &self.stop {
            return Err(Refused::Stop(stop.duplicate()));
        }
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
            return Err(Refused::Invalid(format!(
                "the name of a step must have 1 to {MAX_NAME_BYTES} bytes without control characters, got {name:?}"
            )));
        }
        if self.begun.contains(name) {
            return Err(Refused::Invalid(format!(
                "step {name:?} was used before in this attempt: give each step a name of its own"
            )));
        }
        let output = self.outputs.get(name).cloned();
        let running = self.begun.iter().filter(|begun| !self.outputs.contains_key(*begun)).count();
        if output.is_none() && self.outputs.len() + running >= MAX_STEPS {
            return Err(Refused::Invalid(format!(
                "step {name:?} is one of more than {MAX_STEPS}: use fewer steps, or further jobs"
            )));
        }
        self.begun.insert(name.to_owned());
        Ok(output)
    }

    /// Reserves the space of an output.
    fn reserve(&mut self, name: &str, output: &str) -> Result<(), Refused> {
        let bytes = name.len() + output.len();
        if self.bytes + bytes > MAX_TOTAL_BYTES {
            return Err(Refused::Invalid(format!(
                "with that of step {name:?} the outputs of all steps have more than {MAX_TOTAL_BYTES} bytes: \
                 store large values elsewhere, and return their names"
            )));
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Ends a step whose space was reserved.
    fn finish(&mut self, name: &str, output: String, stored: Result<(), Stop>) -> Result<(), Refused> {
        match stored {
            Ok(()) => {
                self.outputs.insert(name.to_owned(), output);
                Ok(())
            }
            Err(stop) => Err(Refused::Stop(self.stop.insert(stop).duplicate())),
        }
    }
}

enum Begun<'a, T> {
    Stored(T),
    Run(RunningStep<'a>),
}

/// A step that has begun. Unless it finishes, its name can be used again.
struct RunningStep<'a> {
    state: &'a Mutex<State>,
    name: String,
    is_finished: bool,
}

impl RunningStep<'_> {
    /// Converts the output, and reserves its space.
    fn reserve<E>(&self, value: &impl Serialize) -> Result<String, StepError<E>> {
        let name = &self.name;
        let output = Json::new(value)
            .map_err(|error| StepError::Invalid(format!("the output of step {name:?} cannot be stored: {error}")))?;
        lock(self.state).reserve(name, output.as_str())?;
        Ok(output.as_str().to_owned())
    }

    fn finish(mut self, output: String, stored: Result<(), Stop>) -> Result<(), Refused> {
        self.is_finished = true;
        lock(self.state).finish(&self.name, output, stored)
    }
}

impl Drop for RunningStep<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            lock(self.state).begun.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, io};

    use super::{Failure, MAX_STEPS, MAX_TOTAL_BYTES, Refused, State, StepError, Stop};
    use crate::StoreError;

    fn run(state: &mut State, name: &str, output: &str) -> Result<(), Refused> {
        assert_eq!(state.begin(name)?, None);
        state.reserve(name, output)?;
        state.finish(name, output.to_owned(), Ok(()))
    }

    fn message(refused: Result<(), Refused>) -> String {
        match refused {
            Err(Refused::Invalid(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn name_is_used_once_in_an_attempt() {
        let mut state = State::default();
        assert!(run(&mut state, "charge", "1").is_ok());
        assert!(message(run(&mut state, "charge", "2")).contains("\"charge\" was used before"));
        state.begun.clear(); // the next attempt
        assert!(matches!(state.begin("charge"), Ok(Some(output)) if output == "1"));
        assert!(message(run(&mut state, "charge", "2")).contains("was used before"));
        for name in ["", "a\0", "a\n", &"x".repeat(101)] {
            assert!(message(run(&mut state, name, "")).contains("1 to 100 bytes"));
        }
    }

    #[test]
    fn number_and_size_of_outputs_are_limited() {
        let mut state = State::default();
        for step in 0..MAX_STEPS {
            assert!(run(&mut state, &step.to_string(), "1").is_ok());
        }
        assert!(message(run(&mut state, "one more", "1")).contains("more than 100"));
        let mut state = State::default();
        let large = "x".repeat(MAX_TOTAL_BYTES / 4 - 1);
        for name in ["a", "b", "c", "d"] {
            assert!(run(&mut state, name, &large).is_ok());
        }
        assert!(message(run(&mut state, "e", "")).contains("more than 262144 bytes"));
    }

    #[test]
    fn no_step_begins_after_one_that_was_not_stored() {
        let mut state = State::default();
        assert!(matches!(state.begin("a"), Ok(None)));
        assert!(matches!(state.finish("a", String::new(), Err(Stop::Lost)), Err(Refused::Stop(Stop::Lost))));
        assert!(matches!(state.begin("b"), Err(Refused::Stop(Stop::Lost))));
    }

    #[test]
    fn failure_of_a_step_names_no_internals() {
        let unstored = StepError::<Infallible>::Unstored(StoreError::unavailable("host db.internal"));
        let failure = Failure::from(unstored);
        assert_eq!((&*failure.class, &*failure.message), ("unstored", "the output of a step could not be stored"));
        let failed = Failure::from(StepError::Failed(Failure::new("card", "declined")));
        assert_eq!((&*failed.class, &*failed.message), ("card", "declined"));
        let failed: Box<dyn std::error::Error + Send + Sync> = StepError::Failed(io::Error::other("full")).into();
        assert_eq!(failed.to_string(), "full");
    }
}
