//! A record as the columns of a row.

use std::borrow::Cow;

use sqlx::{ColumnIndex, Decode, Row, Type};

use super::database::integer;
use crate::{Failure, Json, Reason, Record, StoreError, TaskId, TaskState, Timestamp};

/// The columns in the order of [`Values`] and of what [`record`] reads.
macro_rules! columns {
    () => {
        "id, name, owner, state, attempt, max_attempts, progress, message, version, created_at, started_at, finished_at, \
         cancel_requested_at, reason, result, error_class, error_message, error_detail"
    };
}
pub(super) use columns;

/// What is written of a record.
pub(super) struct Values<'a> {
    pub(super) id: &'a [u8],
    pub(super) name: Cow<'a, str>,
    pub(super) owner: Option<Cow<'a, str>>,
    pub(super) state: i64,
    pub(super) attempt: i64,
    pub(super) max_attempts: i64,
    pub(super) progress: Option<f64>,
    pub(super) message: Option<Cow<'a, str>>,
    pub(super) version: i64,
    pub(super) created_at: i64,
    pub(super) started_at: Option<i64>,
    pub(super) finished_at: Option<i64>,
    pub(super) cancel_requested_at: Option<i64>,
    pub(super) reason: Option<&'static str>,
    pub(super) result: Option<&'a str>,
    pub(super) error_class: Option<Cow<'a, str>>,
    pub(super) error_message: Option<Cow<'a, str>>,
    pub(super) error_detail: Option<&'a str>,
}

impl<'a> Values<'a> {
    pub(super) fn of(record: &'a Record) -> Self {
        let failure = record.failure.as_ref();
        Self {
            id: record.id.as_bytes(),
            name: text(&record.name),
            owner: record.owner.as_deref().map(text),
            state: record.state.code().into(),
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

/// Without NUL, which Postgres refuses: one such text would fail the whole transaction, with what others write in it.
fn text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{fffd}").into() } else { text.into() }
}

pub(super) fn millis(time: Timestamp) -> i64 {
    integer(time.as_millis())
}

/// Reads [`columns!`].
pub(super) fn record<'r, R>(row: &'r R) -> Result<Record, StoreError>
where
    R: Row,
    usize: ColumnIndex<R>,
    f64: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
{
    let number = |place| row.try_get::<i64, _>(place).map_err(StoreError::other);
    let text = |place| row.try_get::<Option<String>, _>(place).map_err(StoreError::other);
    let time = |place| row.try_get::<Option<i64>, _>(place).map_err(StoreError::other);
    let small = |place| u32::try_from(number(place)?).map_err(StoreError::other);
    let json = |place| text(place)?.map(Json::from_text).transpose().map_err(StoreError::other);

    let id = task_id(row.try_get(0).map_err(StoreError::other)?)?;
    let mut record = Record::new(id, text(1)?.unwrap_or_default(), timestamp(number(9)?));
    record.owner = text(2)?;
    let state = number(3)?;
    let known = i16::try_from(state).ok().and_then(TaskState::from_code);
    record.state = known.ok_or_else(|| StoreError::other(format!("there is no state with the number {state}")))?;
    (record.attempt, record.max_attempts) = (small(4)?, small(5)?);
    record.progress = row.try_get(6).map_err(StoreError::other)?;
    record.message = text(7)?;
    record.version = u64::try_from(number(8)?).map_err(StoreError::other)?;
    record.started_at = time(10)?.map(timestamp);
    record.finished_at = time(11)?.map(timestamp);
    record.cancel_requested_at = time(12)?.map(timestamp);
    // One that a newer version has written may be unknown here.
    record.reason = text(13)?.and_then(|reason| Reason::from_text(&reason));
    record.result = json(14)?;
    if let (Some(class), Some(message)) = (text(15)?, text(16)?) {
        record.failure = Some(Failure { class, message, detail: json(17)? });
    }
    Ok(record)
}

pub(super) fn task_id(bytes: Vec<u8>) -> Result<TaskId, StoreError> {
    let bytes = bytes.try_into().map_err(|_| StoreError::other("the id of a record has another length"))?;
    Ok(TaskId::from_bytes(bytes))
}

fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(millis).unwrap_or_default())
}
