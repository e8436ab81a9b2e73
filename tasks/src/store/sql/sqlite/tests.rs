#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use super::Sqlite;
use crate::{
    Record, StoreError, TaskId, Timestamp,
    store::{
        Epoch, Found, Op, Process, Retention, Written,
        sql::{database::Database, group::Batch},
    },
};

/// A store in a folder that goes with it.
struct Fixture {
    folder: PathBuf,
    sqlite: Sqlite,
    epoch: Epoch,
}

impl Fixture {
    async fn new() -> Self {
        let name = TaskId::random(Timestamp::default()).unwrap();
        let folder = std::env::temp_dir().join(format!("tower-offload-{name}"));
        std::fs::create_dir(&folder).unwrap();
        let sqlite = Sqlite::open(&folder.join("tasks.db")).await.unwrap();
        let epoch = sqlite.begin(&Process::new("", Timestamp::default())).await.unwrap().epoch;
        Self { folder, sqlite, epoch }
    }

    async fn accept(&self, record: Record) -> Result<Vec<Vec<Written>>, StoreError> {
        self.sqlite.write(&[Batch { epoch: self.epoch, ops: vec![Op::Accept(Box::new(record))] }]).await
    }

    async fn run(&self, statement: &'static str) {
        let mut writer = self.sqlite.writer.lock().await;
        sqlx::raw_sql(statement).execute(writer.connection.as_mut().unwrap()).await.unwrap();
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn large(number: u8) -> Record {
    let mut record = Record::new(TaskId::from_bytes([number; TaskId::BYTES]), "", Timestamp::default());
    record.message = Some("x".repeat(10_000));
    record
}

/// SQLite's own bound stands in for a disk. It is of the connection, so a new one has room again.
#[tokio::test]
async fn a_full_disk_is_a_typed_error_and_what_was_accepted_before_stays() {
    let fixture = Fixture::new().await;
    fixture.run("PRAGMA max_page_count = 40").await;
    let mut accepted = 0;
    let error = loop {
        match fixture.accept(large(accepted)).await {
            Ok(written) => assert_eq!(written, [[Written::Done]]),
            Err(error) => break error,
        }
        accepted += 1;
    };
    assert!(error.is_full() && accepted > 0, "{error:?} after {accepted}");
    for number in 0..accepted {
        assert!(matches!(fixture.sqlite.get(large(number).id).await.unwrap(), Found::Record(_)));
    }
    assert_eq!(fixture.sqlite.get(large(accepted).id).await.unwrap(), Found::Unknown);
    assert_eq!(fixture.accept(large(accepted)).await.unwrap(), [[Written::Done]], "there is room again");
}

#[tokio::test]
async fn a_file_that_became_read_only_is_a_typed_error() {
    let fixture = Fixture::new().await;
    fixture.run("PRAGMA query_only = 1").await;
    assert!(fixture.accept(large(1)).await.unwrap_err().is_unavailable());
    assert_eq!(fixture.sqlite.get(large(1).id).await.unwrap(), Found::Unknown);
}

#[tokio::test]
async fn a_writer_that_goes_away_in_the_middle_leaves_nothing_half_done() {
    let fixture = Fixture::new().await;
    let mut writer = fixture.sqlite.writer.lock().await;
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
    assert_eq!(fixture.accept(large(1)).await.unwrap(), [[Written::Done]], "the epoch is still there");
}

/// F7
#[tokio::test]
async fn a_sweep_of_many_says_that_there_is_more() {
    let fixture = Fixture::new().await;
    let ops = (0..1500_u16).map(|number| {
        let mut bytes = [0; TaskId::BYTES];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        let mut record = Record::new(TaskId::from_bytes(bytes), "", Timestamp::default());
        record.finish(crate::record::Ending::Failed(crate::Failure::new("", "")), Timestamp::default());
        Op::Accept(Box::new(record))
    });
    let batch = Batch { epoch: fixture.epoch, ops: ops.collect() };
    fixture.sqlite.write(&[batch]).await.unwrap();
    let now = Timestamp::default();
    let first = fixture.sqlite.sweep(now, &Retention::default().keep(100)).await.unwrap();
    assert_eq!((first.evicted, first.more), (1000, true));
    let second = fixture.sqlite.sweep(now, &Retention::default().keep(100)).await.unwrap();
    assert_eq!((second.evicted, second.more), (400, false));
}

/// F7
#[tokio::test]
async fn tombstones_are_bounded_and_the_oldest_go_first() {
    let fixture = Fixture::new().await;
    let many = "WITH RECURSIVE numbers(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < 80010)
        INSERT INTO tower_offload_tombstone (id, expires_at) SELECT CAST(printf('%022d', number) AS BLOB), number FROM numbers";
    fixture.run(many).await;
    let swept = fixture.sqlite.sweep(Timestamp::default(), &Retention::default()).await.unwrap();
    assert_eq!((swept.forgotten, swept.more), (10, false));
    let tombstone = |number| TaskId::from_bytes(format!("{number:022}").into_bytes().try_into().unwrap());
    assert_eq!(fixture.sqlite.get(tombstone(10)).await.unwrap(), Found::Unknown);
    assert_eq!(fixture.sqlite.get(tombstone(11)).await.unwrap(), Found::Evicted { owner: None });
}

/// What an older version has made.
#[tokio::test]
async fn a_database_that_lacks_steps_gets_them_and_keeps_its_records() {
    let fixture = Fixture::new().await;
    let id = large(1).id;
    fixture.accept(large(1)).await.unwrap();
    fixture
        .run(
            "DROP INDEX tower_offload_task_river; DROP INDEX tower_offload_task_cancel;
             ALTER TABLE tower_offload_task DROP COLUMN river_id; DELETE FROM tower_offload_migration WHERE version > 1",
        )
        .await;
    fixture.sqlite.close().await.unwrap();
    let sqlite = Sqlite::open(&fixture.folder.join("tasks.db")).await.unwrap();
    assert!(matches!(sqlite.get(id).await.unwrap(), Found::Record(_)));
    let epoch = sqlite.begin(&Process::new("", Timestamp::default())).await.unwrap().epoch;
    let accept = Batch { epoch, ops: vec![Op::Accept(Box::new(large(2)))] };
    assert_eq!(sqlite.write(&[accept]).await.unwrap(), [[Written::Done]]);
}
