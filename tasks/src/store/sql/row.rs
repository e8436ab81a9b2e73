//! Converts records to rows and back.

use std::borrow::Cow;

use sqlx::{ColumnIndex, Decode, Row, Type};

use crate::{Failure, Json, Reason, Record, StoreError, TaskId, TaskState, Timestamp, store::Epoch};

/// The columns of a record, in the order of the fields of [`Values`].
macro_rules! columns {
    () => {
        "id, name, owner, state, attempt, max_attempts, progress, message, version, created_at, started_at, finished_at, \
         cancel_requested_at, reason, result, error_class, error_message, error_detail"
    };
}
pub(crate) use columns;

/// The columns that [`record`] reads. Only the job queue writes `due_at`, by triggers, `queue` and
/// `parent`.
macro_rules! read_columns {
    () => {
        concat!($crate::store::sql::row::columns!(), ", due_at, queue, parent")
    };
}
pub(crate) use read_columns;

/// The [`read_columns!`] of a record in a list, which has neither a result nor the detail of a
/// failure.
macro_rules! list_columns {
    () => {
        "id, name, owner, state, attempt, max_attempts, progress, message, version, created_at, started_at, finished_at, \
         cancel_requested_at, reason, NULL AS result, error_class, error_message, NULL AS error_detail, due_at, queue, parent"
    };
}
pub(super) use list_columns;

/// The values of a record, as both databases bind them.
pub(crate) struct Values<'a> {
    pub(crate) id: &'a [u8],
    pub(crate) name: Cow<'a, str>,
    pub(crate) owner: Option<Cow<'a, str>>,
    pub(crate) state: i64,
    pub(crate) attempt: i64,
    pub(crate) max_attempts: i64,
    pub(crate) progress: Option<f64>,
    pub(crate) message: Option<Cow<'a, str>>,
    pub(crate) version: i64,
    pub(crate) created_at: i64,
    pub(crate) started_at: Option<i64>,
    pub(crate) finished_at: Option<i64>,
    pub(crate) cancel_requested_at: Option<i64>,
    pub(crate) reason: Option<&'static str>,
    pub(crate) result: Option<&'a str>,
    pub(crate) error_class: Option<Cow<'a, str>>,
    pub(crate) error_message: Option<Cow<'a, str>>,
    pub(crate) error_detail: Option<&'a str>,
}

impl<'a> From<&'a Record> for Values<'a> {
    fn from(record: &'a Record) -> Self {
        let failure = record.failure.as_ref();
        Self {
            id: record.id.as_bytes(),
            name: text(&record.name),
            owner: record.owner.as_deref().map(text),
            state: i16::from(record.state).into(),
            attempt: record.attempt.into(),
            max_attempts: record.max_attempts.into(),
            progress: record.progress,
            message: record.message.as_deref().map(text),
            version: integer(record.version),
            created_at: millis(record.created_at),
            started_at: record.started_at.map(millis),
            finished_at: record.finished_at.map(millis),
            cancel_requested_at: record.cancel_requested_at.map(millis),
            reason: record.reason.map(Reason::as_str),
            result: record.result.as_ref().map(Json::as_str),
            error_class: failure.map(|failure| text(&failure.class)),
            error_message: failure.map(|failure| text(&failure.message)),
            error_detail: failure.and_then(|failure| failure.detail.as_ref()).map(Json::as_str),
        }
    }
}

/// Replaces NUL, which Postgres rejects. A single one would fail the transaction with all its other
/// records.
fn text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{fffd}").into() } else { text.into() }
}

pub(crate) fn millis(time: Timestamp) -> i64 {
    integer(time.as_millis())
}

/// Converts a number for a database. Saturates, because the databases have no unsigned 64-bit
/// integers.
pub(super) fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Reads the [`read_columns!`] of a row.
pub(crate) fn record<'r, R>(row: &'r R) -> Result<Record, StoreError>
where
    R: Row,
    usize: ColumnIndex<R>,
    f64: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
{
    let number = |index| row.try_get::<i64, _>(index).map_err(StoreError::other);
    let text = |index| row.try_get::<Option<String>, _>(index).map_err(StoreError::other);
    let time = |index| row.try_get::<Option<i64>, _>(index).map_err(StoreError::other);
    let small = |index| u32::try_from(number(index)?).map_err(StoreError::other);
    let json = |index| text(index)?.map(Json::try_from).transpose().map_err(StoreError::other);

    let id = id_of(row)?;
    let mut record = Record::new(id, text(1)?.unwrap_or_default(), timestamp(number(9)?));
    record.owner = text(2)?;
    record.state = state(number(3)?)?;
    (record.attempt, record.max_attempts) = (small(4)?, small(5)?);
    record.progress = row.try_get(6).map_err(StoreError::other)?;
    record.message = text(7)?;
    record.version = u64::try_from(number(8)?).map_err(StoreError::other)?;
    record.started_at = time(10)?.map(timestamp);
    record.finished_at = time(11)?.map(timestamp);
    record.cancel_requested_at = time(12)?.map(timestamp);
    // A reason that only a newer version of this crate knows is omitted.
    record.reason = text(13)?.and_then(|reason| reason.parse().ok());
    record.result = json(14)?;
    if let (Some(class), Some(message)) = (text(15)?, text(16)?) {
        record.failure = Some(Failure { class, message, detail: json(17)? });
    }
    record.due_at = time(18)?.map(timestamp);
    record.queue = text(19)?;
    record.parent = row.try_get::<Option<Vec<u8>>, _>(20).map_err(StoreError::other)?.map(task_id).transpose()?;
    Ok(record)
}

/// Converts the number of a state.
pub(crate) fn state(number: i64) -> Result<TaskState, StoreError> {
    let known = i16::try_from(number).ok().and_then(|number| TaskState::try_from(number).ok());
    known.ok_or_else(|| StoreError::other(format!("unknown task state {number}")))
}

/// Reads the id of a row of [`read_columns!`].
pub(super) fn id_of<'r, R>(row: &'r R) -> Result<TaskId, StoreError>
where
    R: Row,
    usize: ColumnIndex<R>,
    Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
{
    task_id(row.try_get(0).map_err(StoreError::other)?)
}

pub(super) fn task_id(bytes: Vec<u8>) -> Result<TaskId, StoreError> {
    let length = bytes.len();
    let bytes = bytes.try_into().map_err(|_| StoreError::other(format!("invalid task id of {length} bytes")))?;
    Ok(TaskId::from_bytes(bytes))
}

fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(millis).unwrap_or_default())
}

/// The parts of a stored record that decide whether a write has an effect.
pub(super) struct Stored {
    pub(super) owner: Epoch,
    state: i64,
    version: i64,
}

impl Stored {
    pub(super) fn new(owner: i64, state: i64, version: i64) -> Self {
        Self { owner: Epoch::from(owner), state, version }
    }

    pub(super) fn is_final(&self) -> bool {
        self.state >= 10
    }

    /// Returns `true` if an earlier write has stored this final record, and its reply was lost. A
    /// record that was marked as lost has another state.
    pub(super) fn is_final_of(&self, record: &Record) -> bool {
        let (state, version) = (i16::from(record.state).into(), integer(record.version));
        self.is_final() && (self.state, self.version) == (state, version)
    }
}
