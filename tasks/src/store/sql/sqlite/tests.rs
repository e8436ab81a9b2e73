#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use super::{Settings, Sqlite};
use crate::{
    Failure, Record, StoreError, TaskId, TaskStore, Timestamp,
    record::Ending,
    store::{Epoch, Found, Op, Process, Retention, Written},
};

/// A store in a directory that is deleted with it.
struct Fixture {
    directory: PathBuf,
    sqlite: Sqlite,
    epoch: Epoch,
}

impl Fixture {
    async fn new() -> Self {
        let name = TaskId::generate(Timestamp::default()).unwrap();
        let directory = std::env::temp_dir().join(format!("tower-offload-{name}"));
        std::fs::create_dir(&directory).unwrap();
        let sqlite = Sqlite::open(&directory.join("tasks.db"), true, &Settings::default()).await.unwrap();
        let epoch = begin(&sqlite).await;
        Self { directory, sqlite, epoch }
    }

    async fn accept(&self, record: Record) -> Result<Vec<Written>, StoreError> {
        self.sqlite.write(self.epoch, &[Op::Accept(Box::new(record))]).await
    }

    /// Executes a statement on the connection that writes.
    async fn execute(&self, statement: &'static str) {
        let mut writer = self.sqlite.lock_writer().await.unwrap();
        sqlx::raw_sql(statement).execute(writer.connection.as_mut().unwrap()).await.unwrap();
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

async fn begin(sqlite: &Sqlite) -> Epoch {
    sqlite.begin(&Process::new("", Timestamp::default())).await.unwrap().epoch
}

fn large(number: u8) -> Record {
    let mut record = Record::new(TaskId::from_bytes([number; TaskId::BYTES]), "", Timestamp::default());
    record.message = Some("x".repeat(10_000));
    record
}

/// A page limit simulates a full disk. It belongs to the connection, so the next one has space
/// again.
#[tokio::test]
async fn full_disk_is_reported_and_earlier_records_are_kept() {
    let fixture = Fixture::new().await;
    fixture.execute("PRAGMA max_page_count = 40").await;
    let mut accepted = 0;
    let error = loop {
        match fixture.accept(large(accepted)).await {
            Ok(written) => assert_eq!(written, [Written::Done]),
            Err(error) => break error,
        }
        accepted += 1;
    };
    assert!(error.is_full() && accepted > 0, "{error:?} after {accepted}");
    for number in 0..accepted {
        assert!(matches!(fixture.sqlite.get(large(number).id).await.unwrap(), Found::Record(_)));
    }
    assert_eq!(fixture.sqlite.get(large(accepted).id).await.unwrap(), Found::Unknown);
    assert_eq!(fixture.accept(large(accepted)).await.unwrap(), [Written::Done], "there is space again");
}

#[tokio::test]
async fn read_only_file_is_reported_as_unavailable() {
    let fixture = Fixture::new().await;
    fixture.execute("PRAGMA query_only = 1").await;
    assert!(fixture.accept(large(1)).await.unwrap_err().is_unavailable());
    assert_eq!(fixture.sqlite.get(large(1).id).await.unwrap(), Found::Unknown);
}

#[tokio::test]
async fn transaction_that_is_dropped_midway_has_no_effect() {
    let fixture = Fixture::new().await;
    let mut writer = fixture.sqlite.lock_writer().await.unwrap();
    let (changed, has_changed) = tokio::sync::oneshot::channel();
    let stuck = writer.transaction(async |connection| {
        sqlx::query("DELETE FROM tower_offload_process").execute(connection).await?;
        changed.send(()).unwrap();
        std::future::pending::<Result<(), sqlx::Error>>().await
    });
    tokio::select! {
        _ = stuck => unreachable!(),
        changed = has_changed => changed.unwrap(),
    }
    drop(writer);
    assert_eq!(fixture.accept(large(1)).await.unwrap(), [Written::Done], "the epoch still exists");
}

#[tokio::test]
async fn sweep_is_limited_and_reports_that_more_remains() {
    let fixture = Fixture::new().await;
    let ops = (0..1500_u16).map(|number| {
        let mut bytes = [0; TaskId::BYTES];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        let mut record = Record::new(TaskId::from_bytes(bytes), "", Timestamp::default());
        record.finish(Ending::Failed(Failure::new("", "")), Timestamp::default());
        Op::Accept(Box::new(record))
    });
    fixture.sqlite.write(fixture.epoch, &ops.collect::<Vec<_>>()).await.unwrap();
    let (now, retention) = (Timestamp::default(), Retention::default().max_records(100));
    let first = fixture.sqlite.sweep(now, &retention).await.unwrap();
    assert_eq!((first.evicted, first.more), (1000, true));
    let second = fixture.sqlite.sweep(now, &retention).await.unwrap();
    assert_eq!((second.evicted, second.more), (400, false));
}

#[tokio::test]
async fn number_of_tombstones_is_limited_and_the_oldest_go_first() {
    const INSERT: &str = "
WITH RECURSIVE numbers(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < 80010)
INSERT INTO tower_offload_tombstone (id, expires_at) SELECT CAST(printf('%022d', number) AS BLOB), number FROM numbers";
    let fixture = Fixture::new().await;
    fixture.execute(INSERT).await;
    let swept = fixture.sqlite.sweep(Timestamp::default(), &Retention::default()).await.unwrap();
    assert_eq!((swept.forgotten, swept.more), (10, false));
    let tombstone = |number| TaskId::from_bytes(format!("{number:022}").into_bytes().try_into().unwrap());
    assert_eq!(fixture.sqlite.get(tombstone(10)).await.unwrap(), Found::Unknown);
    assert_eq!(fixture.sqlite.get(tombstone(11)).await.unwrap(), Found::Evicted { owner: None });
}

#[tokio::test]
async fn database_of_an_older_version_keeps_its_records() {
    const REVERT: &str = "
DROP INDEX tower_offload_task_river; DROP INDEX tower_offload_task_cancel;
ALTER TABLE tower_offload_task DROP COLUMN river_id; ALTER TABLE tower_offload_task DROP COLUMN due_at;
DROP INDEX tower_offload_task_state; DROP INDEX tower_offload_task_name; DROP TABLE tower_offload_paused_kind;
ALTER TABLE tower_offload_task DROP COLUMN queue;
DROP TABLE tower_offload_sequence;
ALTER TABLE tower_offload_task DROP COLUMN parent; DROP TABLE tower_offload_schedule;
DELETE FROM tower_offload_migration WHERE version > 1";
    let fixture = Fixture::new().await;
    let id = large(1).id;
    fixture.accept(large(1)).await.unwrap();
    fixture.execute(REVERT).await;
    fixture.sqlite.close().await.unwrap();
    let sqlite = Sqlite::open(&fixture.directory.join("tasks.db"), true, &Settings::default()).await.unwrap();
    assert!(matches!(sqlite.get(id).await.unwrap(), Found::Record(_)));
    let accept = Op::Accept(Box::new(large(2)));
    assert_eq!(sqlite.write(begin(&sqlite).await, &[accept]).await.unwrap(), [Written::Done]);
}

/// Otherwise each look for lost processes is a transaction that writes.
#[tokio::test]
async fn epoch_that_has_ended_is_ended_once() {
    let fixture = Fixture::new().await; // its epoch has no owner
    let record = Record::new(TaskId::from_bytes([1; TaskId::BYTES]), "", Timestamp::default());
    assert_eq!(fixture.accept(record).await.unwrap(), [Written::Done]);
    assert_eq!(fixture.sqlite.mark_lost(fixture.epoch, Timestamp::default()).await.unwrap(), 1);
    assert!(fixture.sqlite.living_and_dead_epochs().1.is_empty());
    let living = fixture.sqlite.begin(&Process::new("", Timestamp::default())).await.unwrap();
    assert_eq!(fixture.sqlite.living_and_dead_epochs(), (format!("[{}]", i64::from(living.epoch)), Vec::new()));
}
