//! Jobs on their way into the database, each with its record.

use riverqueue::{Client, Error, InsertBatch, InsertBatchResult, InsertOpts, JobMetadata, JobRow, JobState, sqlx};
use serde_json::value::RawValue;
use sqlx::{Postgres, Sqlite, Transaction};

use super::job_rows::{postgres as postgres_pair, sqlite as sqlite_pair};
use crate::{Failure, Reason, Record, StoreError, TaskId, TaskState, Timestamp};

/// A job that is ready to be inserted, and its record.
pub(in crate::jobs) struct Prepared {
    pub(in crate::jobs) push: fn(&mut InsertBatch, &RawValue, InsertOpts),
    pub(in crate::jobs) arguments: Box<RawValue>,
    pub(in crate::jobs) options: InsertOpts,
    pub(in crate::jobs) record: Record,
}

/// What became of it.
pub(in crate::jobs) struct Inserted {
    /// Of the job that is there now: this one, or one that it would have been a duplicate of.
    pub(in crate::jobs) record: Record,
    pub(in crate::jobs) is_duplicate: bool,
}

/// Under this key River's metadata has the id of the record.
const TASK: &str = "tower_offload:task";
/// And here its owner, who is still its owner when the record is gone.
const OWNER: &str = "tower_offload:owner";

impl Prepared {
    fn options(&self) -> Result<InsertOpts, Error> {
        let noted = serde_json::json!({ TASK: self.record.id, OWNER: self.record.owner });
        let metadata: JobMetadata = noted.to_string().parse().map_err(Error::Json)?;
        Ok(self.options.clone().with_metadata(metadata))
    }
}

/// The id that was noted when the job was inserted. One that another client inserted has none.
pub(super) fn noted_id(row: &JobRow) -> Option<TaskId> {
    row.metadata.get::<String>(TASK).ok().flatten()?.parse().ok()
}

macro_rules! insert {
    ($name:ident, $pair:ident, $database:ty) => {
        pub(in crate::jobs) async fn $name(
            client: &Client,
            transaction: &mut Transaction<'_, $database>,
            jobs: &[&Prepared],
        ) -> Result<Vec<Inserted>, Error> {
            let results = client.insert_batch(batch(jobs)?).tx(&mut *transaction).await?;
            let fresh: Vec<_> = results.iter().zip(jobs).map(|(result, job)| fresh(result, job)).collect();
            let pairs: Vec<_> = results.iter().zip(&fresh).map(|(result, record)| (result.id(), record)).collect();
            $pair::insert(transaction, &pairs).await?;
            let mut inserted = Vec::with_capacity(jobs.len());
            for (result, record) in results.iter().zip(fresh) {
                let is_duplicate = result.unique_skipped_as_duplicate;
                let record = if is_duplicate { found($pair::find(transaction, result.id()).await?)? } else { record };
                inserted.push(Inserted { record, is_duplicate });
            }
            Ok(inserted)
        }
    };
}

insert!(insert_into_postgres, postgres_pair, Postgres);
insert!(insert_into_sqlite, sqlite_pair, Sqlite);

fn batch(jobs: &[&Prepared]) -> Result<InsertBatch, Error> {
    let mut batch = InsertBatch::new();
    for job in jobs {
        (job.push)(&mut batch, &job.arguments, job.options()?);
    }
    Ok(batch)
}

/// The record to be written if the job has none: of a new job, or of one that another client has inserted.
fn fresh(result: &InsertBatchResult, job: &Prepared) -> Record {
    let mut record = job.record.clone();
    record.max_attempts = u32::try_from(result.job.max_attempts).unwrap_or_default();
    if result.unique_skipped_as_duplicate {
        if let Some(id) = noted_id(&result.job) {
            (record.id, record.owner) = (id, result.job.metadata.get(OWNER).ok().flatten());
        }
        describe(&mut record, &result.job);
    }
    record
}

pub(super) fn found(found: Option<Result<Record, StoreError>>) -> Result<Record, Error> {
    let missing = || Error::Database(sqlx::Error::RowNotFound);
    found.ok_or_else(missing)?.map_err(|error| Error::Database(sqlx::Error::Decode(error.into())))
}

/// What River's row says of a job, as far as a record has it.
pub(super) fn describe(record: &mut Record, row: &JobRow) {
    let time = |time: riverqueue::jiff::Timestamp| {
        Timestamp::from_millis(u64::try_from(time.as_millisecond()).unwrap_or_default())
    };
    record.attempt = u32::try_from(row.attempt).unwrap_or_default();
    record.max_attempts = u32::try_from(row.max_attempts).unwrap_or_default();
    record.created_at = time(row.created_at);
    record.started_at = row.attempted_at.map(time);
    let finished_at = row.finalized_at.map(time);
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
    record.finished_at = finished_at;
}
