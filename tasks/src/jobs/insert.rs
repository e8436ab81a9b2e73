//! Jobs to be inserted, each together with its record.

use std::{collections::BTreeMap, marker::PhantomData, pin::Pin, sync::Arc, time::Duration};

use riverqueue::{
    Client, Error, InsertBatch, InsertBatchResult, InsertContext, InsertMiddleware, InsertNext, InsertOpts,
    InsertedJob, JobArgs, JobMetadata, JobRow, JobState, METADATA_KEY_PERIODIC_JOB_ID, WorkContext, jiff, sqlx,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, value::RawValue};
use tokio::sync::oneshot;

use super::{
    Job,
    database::{Database, millis},
    error::InsertError,
    running::Claim,
    sequence::Keys,
    trace::TraceContext,
};
use crate::{Failure, Reason, Record, StoreError, TaskId, TaskState, Timestamp, track::validate_owner};

/// Arguments of a job in River's representation. They are deserialized by the worker adapter, which
/// handles errors and panics.
pub(super) struct Arguments<J> {
    json: Box<RawValue>,
    job: PhantomData<fn() -> J>,
}

impl<J: Job> Arguments<J> {
    /// Serializes a job to the same text as River's clients in other languages.
    pub(super) fn encode(job: &J) -> Result<Box<RawValue>, serde_json::Error> {
        riverqueue::encoding::encode_args(job)
    }

    pub(super) fn text(&self) -> &str {
        self.json.get()
    }

    /// Adds encoded arguments to a batch.
    pub(super) fn push(batch: &mut InsertBatch, json: &RawValue, options: InsertOpts) {
        batch.push_with(Self { json: json.to_owned(), job: PhantomData }, options);
    }
}

/// Returns the arguments of a job that is unique by its content, in a form that is the same for
/// equal jobs: the fields of all objects are sorted, since maps have no order.
///
/// River compares objects only. Other arguments are put into one, and [`Unwrap`] takes them out
/// before they are written.
pub(super) fn canonical(json: &RawValue) -> Result<Box<RawValue>, serde_json::Error> {
    let sorted = riverqueue::encoding::encode_args(&Canonical::parse(json)?)?;
    if sorted.get().starts_with('{') {
        return Ok(sorted);
    }
    RawValue::from_string(format!("{WRAPPER}{}}}", sorted.get()))
}

/// Text before wrapped arguments.
pub(super) const WRAPPER: &str = "{\"tower_offload:content\":";

/// JSON with sorted objects. Numbers and strings keep their text. The nesting is limited by
/// [`parse_storable`].
#[derive(Serialize)]
#[serde(untagged)]
enum Canonical {
    Object(BTreeMap<String, Canonical>),
    Array(Vec<Canonical>),
    Other(Box<RawValue>),
}

impl Canonical {
    fn parse(json: &RawValue) -> Result<Self, serde_json::Error> {
        Ok(match json.get().as_bytes().first() {
            Some(b'{') => {
                let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(json.get())?;
                let fields = fields.into_iter().map(|(key, value)| Ok((key, Self::parse(&value)?)));
                Self::Object(fields.collect::<Result<_, serde_json::Error>>()?)
            }
            Some(b'[') => {
                let values: Vec<Box<RawValue>> = serde_json::from_str(json.get())?;
                Self::Array(values.iter().map(|value| Self::parse(value)).collect::<Result<_, _>>()?)
            }
            _ => Self::Other(json.to_owned()),
        })
    }
}

/// Takes arguments out of the object that [`canonical`] has put them into, after River has computed
/// the key of the job.
pub(super) struct Unwrap;

impl InsertMiddleware for Unwrap {
    async fn insert_many(&self, mut jobs: Vec<InsertContext>, next: InsertNext<'_>) -> Result<Vec<InsertedJob>, Error> {
        for job in &mut jobs {
            let inner = job.encoded_args.get().strip_prefix(WRAPPER).and_then(|rest| rest.strip_suffix('}'));
            if let Some(inner) = inner {
                job.encoded_args = RawValue::from_string(inner.to_owned()).map_err(Error::Json)?;
            }
        }
        next.run(jobs).await
    }
}

impl<J> Serialize for Arguments<J> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json.serialize(serializer)
    }
}

impl<'de, J> Deserialize<'de> for Arguments<J> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { json: Box::deserialize(deserializer)?, job: PhantomData })
    }
}

impl<J: Job> JobArgs for Arguments<J> {
    const KIND: &'static str = J::KIND;
}

/// Parses JSON that both databases can store.
///
/// Postgres rejects some JSON that SQLite and `serde_json` accept. River would retry the statement
/// forever, together with the other jobs in it, so arguments and results are checked before River
/// gets them.
pub(super) fn parse_storable(json: &str) -> Result<(), &'static str> {
    // This also rejects numbers that overflow and nesting that is too deep.
    let value: Value = serde_json::from_str(json).map_err(|_| "the JSON cannot be stored by every database")?;
    if has_nul(&value) {
        return Err("the JSON contains NUL");
    }
    if has_tiny_number(json) {
        return Err("the JSON contains a number that is closer to zero than any `f64` except zero");
    }
    Ok(())
}

/// Returns `true` if valid JSON has a number that is not zero, and that would be read as zero.
fn has_tiny_number(json: &str) -> bool {
    let is_of_number = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    let bytes = json.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => {
                at += 1;
                while bytes.get(at).is_some_and(|byte| *byte != b'"') {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'0'..=b'9' | b'-' => {
                let len = bytes[at..].iter().take_while(|byte| is_of_number(byte)).count();
                let number = &json[at..at + len];
                let digits = number.split(['e', 'E']).next().unwrap_or_default();
                let is_zero = !digits.contains(|digit| matches!(digit, '1'..='9'));
                if !is_zero && number.parse() == Ok(0.0) {
                    return true;
                }
                at += len;
            }
            _ => at += 1,
        }
    }
    false
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        Value::String(text) => text.contains('\0'),
        Value::Bool(_) | Value::Null | Value::Number(_) => false,
    }
}

/// A job that is ready to be inserted, with its record.
pub(super) struct Prepared {
    pub(super) push: fn(&mut InsertBatch, &RawValue, InsertOpts),
    pub(super) arguments: Box<RawValue>,
    pub(super) options: InsertOpts,
    pub(super) queue: String,
    /// Delay before the job may start.
    pub(super) delay: Option<Duration>,
    pub(super) trace: Option<TraceContext>,
    pub(super) keys: Keys,
    /// The schedule that enqueues the job.
    pub(super) schedule: Option<Arc<str>>,
    pub(super) record: Record,
}

/// Result of an insertion.
pub(super) struct Inserted {
    /// Record of the new job, or of the equal job that exists.
    pub(super) record: Record,
    pub(super) is_duplicate: bool,
}

/// A request to the task that inserts batches.
pub(super) struct InsertRequest {
    pub(super) job: Prepared,
    pub(super) reply: oneshot::Sender<Result<Inserted, InsertError>>,
}

/// Longest delay that Postgres is asked to add to the current time: a thousand years.
const MAX_SCHEDULE: Duration = Duration::from_secs(1000 * 365 * 24 * 3600);
/// Key of the delay in River's metadata, in milliseconds. A trigger removes it.
const DELAY_KEY: &str = "tower_offload:delay";
/// Key of the claim to which an end belongs, in River's metadata. A trigger compares it.
const END_KEY: &str = "tower_offload:end";
/// Key of the record's id in River's metadata.
pub(super) const TASK_KEY: &str = "tower_offload:task";
/// Key of the owner in River's metadata. The owner is needed when the record was evicted.
const OWNER_KEY: &str = "tower_offload:owner";
/// Key that marks the jobs of schedules, as in River's clients.
const PERIODIC_KEY: &str = "periodic";
/// Key of the id of the job that has enqueued this one.
const PARENT_KEY: &str = "tower_offload:parent";

impl Prepared {
    fn options(&self, has_server_clock: bool) -> Result<InsertOpts, Error> {
        let mut metadata = serde_json::json!({ TASK_KEY: self.record.id, OWNER_KEY: self.record.owner });
        if let Some(delay) = self.delay.filter(|_| has_server_clock) {
            metadata[DELAY_KEY] = millis(delay.min(MAX_SCHEDULE)).into();
        }
        self.trace.iter().flat_map(TraceContext::fields).for_each(|(key, value)| metadata[key] = value.into());
        self.keys.write_to(&mut metadata);
        if let Some(parent) = self.record.parent {
            metadata[PARENT_KEY] = parent.to_string().into();
        }
        if let Some(schedule) = &self.schedule {
            metadata[PERIODIC_KEY] = true.into();
            metadata[METADATA_KEY_PERIODIC_JOB_ID] = (&**schedule).into();
        }
        let metadata: JobMetadata = metadata.to_string().parse().map_err(Error::Json)?;
        Ok(self.options.clone().with_metadata(metadata))
    }
}

/// Returns the id of the record, or `None` if another client inserted the job.
pub(super) fn task_id(row: &JobRow) -> Option<TaskId> {
    row.metadata.get::<String>(TASK_KEY).ok().flatten()?.parse().ok()
}

/// Returns the owner of the job, which clients in other languages can set.
pub(super) fn owner(row: &JobRow) -> Option<String> {
    let owner: String = row.metadata.get(OWNER_KEY).ok().flatten()?;
    validate_owner(&owner).is_ok().then_some(owner)
}

/// Returns the job that has enqueued this one, which clients in other languages can set.
pub(super) fn parent(row: &JobRow) -> Option<TaskId> {
    row.metadata.get::<String>(PARENT_KEY).ok().flatten()?.parse().ok()
}

/// Sets the claim to which the end of an attempt belongs, and the delay before the next one. See
/// the fence triggers.
pub(super) fn set_end(context: &WorkContext, claim: &Claim, delay: Duration) -> Result<(), serde_json::Error> {
    let end = serde_json::json!({ "claimed_at": claim.attempted_at, "delay": millis(delay.min(MAX_SCHEDULE)) });
    context.metadata_set(END_KEY, end)
}

/// Returns a batch of jobs. If the server has a clock of its own, it decides when delayed jobs are
/// due.
pub(super) fn batch(jobs: &[&Prepared], has_server_clock: bool) -> Result<InsertBatch, Error> {
    let mut batch = InsertBatch::new();
    for job in jobs {
        (job.push)(&mut batch, &job.arguments, job.options(has_server_clock)?);
    }
    Ok(batch)
}

/// Returns the record to be inserted, unless the job has one. A job without a record is new, or was
/// inserted by another client.
pub(super) fn record_of(result: &InsertBatchResult, job: &Prepared) -> Record {
    let mut record = job.record.clone();
    record.max_attempts = u32::try_from(result.job.max_attempts).unwrap_or_default();
    record.queue = Some(result.job.queue.clone());
    let is_delayed = match result.job.state {
        JobState::Scheduled => true,
        JobState::Pending => job.delay.is_some() && !result.unique_skipped_as_duplicate,
        _ => false,
    };
    record.due_at = is_delayed.then(|| timestamp(result.job.scheduled_at));
    if result.unique_skipped_as_duplicate {
        if let Some(id) = task_id(&result.job) {
            (record.id, record.owner, record.parent) = (id, owner(&result.job), parent(&result.job));
        }
        copy_row(&mut record, &result.job);
    }
    record
}

/// Returns an error if rows are missing that were inserted without an error: a trigger of another
/// program has discarded them.
pub(super) fn check_inserted(table: &str, expected: usize, inserted: usize) -> Result<(), sqlx::Error> {
    if inserted >= expected {
        return Ok(());
    }
    Err(sqlx::Error::InvalidArgument(format!(
        "the database has inserted {inserted} of {expected} rows into `{table}` and reported no error: a trigger on it \
         discards rows, remove it"
    )))
}

/// Returns the number of jobs that did not exist before.
pub(super) fn new_jobs(results: &[InsertBatchResult]) -> usize {
    results.iter().filter(|result| !result.unique_skipped_as_duplicate).count()
}

/// Converts the result of a query for a record that must exist.
pub(super) fn required(found: Option<Result<Record, StoreError>>) -> Result<Record, Error> {
    let missing = || Error::Database(sqlx::Error::RowNotFound);
    found.ok_or_else(missing)?.map_err(|error| Error::Database(sqlx::Error::Decode(error.into())))
}

/// Copies the state of River's row to a record.
pub(super) fn copy_row(record: &mut Record, row: &JobRow) {
    record.queue = Some(row.queue.clone());
    record.attempt = u32::try_from(row.attempt).unwrap_or_default();
    record.max_attempts = u32::try_from(row.max_attempts).unwrap_or_default();
    record.created_at = timestamp(row.created_at);
    record.started_at = row.attempted_at.map(timestamp);
    record.finished_at = row.finalized_at.map(timestamp);
    let failure = || row.errors.last().map(|last| Failure::new("error", last.error.clone()));
    match row.state {
        JobState::Running => record.state = TaskState::Running,
        JobState::Completed => {
            record.state = TaskState::Succeeded;
            record.result = row.output().and_then(|output| output.get().parse().ok());
        }
        JobState::Cancelled => {
            (record.state, record.reason) = (TaskState::Cancelled, Some(Reason::Requested));
        }
        JobState::Discarded => (record.state, record.failure) = (TaskState::Failed, failure()),
        _ => {}
    }
}

fn timestamp(time: jiff::Timestamp) -> Timestamp {
    Timestamp::from_millis(u64::try_from(time.as_millisecond()).unwrap_or_default())
}

/// A transaction of the application in the database of the tasks: `sqlx::Transaction` of SQLite or
/// Postgres.
///
/// On SQLite start it with `connection.begin_with("BEGIN IMMEDIATE")`. A deferred transaction that
/// reads first fails to write if another connection has written in between. The trait is sealed.
///
/// The type must be that of `sqlx` 0.9, which this crate uses.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a transaction in which a job can be enqueued",
    note = "pass `&mut transaction`, a `sqlx::Transaction` of SQLite or Postgres of `sqlx` 0.9: types of another version differ"
)]
pub trait Transaction: sealed::Sealed {}

#[allow(private_interfaces, reason = "the method of the sealed trait is not public")]
pub(super) mod sealed {
    use super::{Client, Database, InsertError, Inserted, Pin, Prepared};

    pub(crate) type Insertion<'a> = Pin<Box<dyn Future<Output = Result<Vec<Inserted>, InsertError>> + Send + 'a>>;

    #[doc(hidden)]
    pub trait Sealed: Send {
        fn insert<'a>(
            &'a mut self,
            database: &'a Database,
            client: &'a Client,
            jobs: &'a [&'a Prepared],
        ) -> Insertion<'a>;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::{WRAPPER, canonical, parse_storable};

    #[test]
    fn equal_content_has_one_canonical_form() {
        let canonical = |json: &str| {
            let json = RawValue::from_string(json.to_owned()).expect("valid JSON");
            canonical(&json).expect("valid JSON").get().to_owned()
        };
        assert_eq!(
            canonical(r#"{"b":{"d":1,"c":[{"z":0,"y":1.50}]},"a":2}"#),
            r#"{"a":2,"b":{"c":[{"y":1.50,"z":0}],"d":1}}"#
        );
        let large = "340282366920938463463374607431768211455";
        assert_eq!(canonical(large), format!("{WRAPPER}{large}}}"), "only objects are compared");
        assert_eq!(canonical(r#"["b","a"]"#), format!("{WRAPPER}[\"b\",\"a\"]}}"), "the order of an array matters");
    }

    #[test]
    fn json_that_postgres_rejects_is_rejected() {
        let escaped_backslash = r#"{"a": ["\\u0000", 1.5, null]}"#;
        assert!(parse_storable(escaped_backslash).is_ok());
        for json in ["[1e-323, -0.0e5, 0E-9]", r#"{"1e-999": "1e-999\"1e-999"}"#, "12345678901234567890.5"] {
            assert_eq!(parse_storable(json), Ok(()), "{json}");
        }
        for json in ["1e-20000", "[1, -1.5E-400]", r#"{"a\"": 0.1e-323}"#] {
            assert!(parse_storable(json).is_err_and(|error| error.contains("closer to zero")), "{json}");
        }
        for json in [r#""\u0000""#, r#"{"a\u0000": 1}"#, r#"[["\\\u0000"]]"#, "1e400", "{"] {
            assert!(parse_storable(json).is_err(), "{json}");
        }
    }
}
