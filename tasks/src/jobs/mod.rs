//! Jobs that are done although the process dies, by whatever process there is: a queue on [River](https://riverqueue.com), in the database of
//! the [tasks](crate).
//!
//! Take it for work that must not be lost, or that other machines shall share. The same code runs on a SQLite file beside the process and on a
//! Postgres that many processes, also in [other languages](crate::jobs#workers-in-other-languages), use together. A job has a
//! [`TaskId`](crate::TaskId), a status, progress and a result as any task has, in the same place.
//!
//! ```
//! use std::{convert::Infallible, time::Duration};
//! use serde::{Deserialize, Serialize};
//! use tower_offload::ThreadPool;
//! use tower_offload_tasks::{jobs::{Durable, Job}, SqlStore, Tasks};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Report { customer: u64 }
//!
//! impl Job for Report { const KIND: &'static str = "report"; }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let file = std::env::temp_dir().join(format!("tower-offload-durable-{}.db", std::process::id()));
//! # let url = format!("sqlite:{}", file.display());
//! let tasks = Tasks::new(SqlStore::open(&url).await?);
//! let durable = Durable::builder(&tasks)
//!     // Blocking work, on a pool; each attempt within ten minutes.
//!     .sync_worker(ThreadPool::cpu(), Duration::from_secs(600), |report: Report, progress| {
//!         progress.set(0.5, "halfway");
//!         Ok::<_, Infallible>(format!("report of customer {}", report.customer))
//!     })
//!     .start()
//!     .await?;
//!
//! let accepted = durable.enqueue(Report { customer: 7 }).await?; // committed: from here on it is not lost
//! # let mut subscription = tasks.subscribe(accepted.id()).await?.expect("it is there");
//! # while subscription.changed().await?.is_some() {}
//! # let record = tasks.get(accepted.id()).await?.into_record().expect("it is there");
//! # assert_eq!(record.result.expect("it has succeeded").parse::<String>()?, "report of customer 7");
//!
//! // At shutdown: takes no more jobs, and hands back those that are not done in time.
//! assert!(durable.drain(Duration::from_secs(10)).await.is_clean());
//! # for suffix in ["", "-wal", "-shm", ".tower-offload.lock"] { let _ = std::fs::remove_file(format!("{}{suffix}", file.display())); }
//! # Ok(())
//! # }
//! ```
//!
//! # With data of your own
//!
//! A job that belongs to a row is enqueued in the transaction that writes the row: both are there, or neither. There is an id at once, and the
//! 202 only after the commit, so a rollback cannot yield one.
//!
//! ```
//! # use serde::{Deserialize, Serialize};
//! # use tower_offload_tasks::{jobs::{Durable, Job}, Accepted};
//! # #[derive(Serialize, Deserialize)]
//! # struct Confirm { order: i64 }
//! # impl Job for Confirm { const KIND: &'static str = "confirm"; }
//! # type BoxError = Box<dyn std::error::Error + Send + Sync>;
//! async fn order(durable: &Durable, pool: &sqlx::PgPool) -> Result<Accepted, BoxError> {
//!     let mut transaction = pool.begin().await?;
//!     let order = sqlx::query_scalar("INSERT INTO orders DEFAULT VALUES RETURNING id").fetch_one(&mut *transaction).await?;
//!     let id = durable.enqueue(Confirm { order }).owner("ann").tx(&mut transaction).await?;
//!     transaction.commit().await?;
//!     Ok(durable.tasks().accepted(id).await?.ok_or("it was committed")?)
//! }
//! ```
//!
//! # What is promised
//!
//! **At least once.** A job that was accepted is begun until an attempt succeeds, it runs out of attempts, or somebody cancels it. A process that
//! dies between the end of the work and the commit of that end leaves a job that is done once more: what a job does should bear that (a unique
//! key, an upsert, an idempotency key of the other side).
//!
//! **Never two at once in one process, and between processes only if one stood still.** A sync worker that outlives its time keeps its job; the next
//! attempt begins when it has ended. On Postgres a process that is stopped for longer than its [lease](crate::SqlStore::open_with_lease)
//! and then goes on may work beside its replacement until it hears of that, within a third of a lease. What it says then is not heard: a
//! trigger sees to that. An outage of the database is no such thing: a process judges others only after its own lease was renewed for as long as
//! one lasts.
//!
//! **What a dead process left begins again soon.** On SQLite when the next one starts; on Postgres when the lease is over. The attempt is counted, so
//! a job that kills its process ends as `failed`, class `process_lost`, at its limit. After the first such death it may have been any job of that
//! process, so there is no wait; from the second on the [`Backoff`] counts.
//!
//! **The status is the job's.** Triggers on River's table write it in the transaction that changes the job, whoever does.
//!
//! | event | what happens |
//! |---|---|
//! | error, panic, time is up | tried again after the [`Backoff`], up to [`Job::MAX_ATTEMPTS`]; then `failed`, or `timed_out` |
//! | cancel | what waits never begins; async work is dropped; sync work can [ask](crate::Progress::is_cancelled), and one that comes to its end has succeeded |
//! | no room in the pool | tried again after a second, not counted |
//! | drain | handed back at the deadline, not counted; sync work that goes on is [reported](DrainReport) |
//! | the job is deleted from River's table | `lost`, reason `job_deleted` |
//! | a result larger than 64 KiB, or that Postgres would not keep (NUL) | the attempt has failed, class `result` |
//! | the process is killed | see above; nothing that was accepted is lost |
//!
//! # What it costs
//!
//! Its own connections: on Postgres 8 and one that listens, beside the 5 of the store; on SQLite 4. Triggers and tables named `tower_offload_..`,
//! made when it starts, for which the user of the database must own River's tables or have made them.
//! River looks for work ten times a second at most on SQLite, and is told on Postgres. Who follows a job, or waits for it with `Prefer: wait=n`, is told
//! within half a second of its end. Connections name themselves, so no proxy that pools transactions may be between.
//!
//! On SQLite everybody waits for who writes, at most five seconds: keep transactions of your own short, and enqueue in one with
//! [`tx`](Enqueue::tx), for what is enqueued beside it waits for it. River's own writes are not synced each: a power cut, not a crash of the process, may
//! lose the end of a job that was told, and the job is done once more.
//!
//! Nothing bounds how many jobs wait but the disk: who lets strangers enqueue bounds that before.
//!
//! # When not to use it
//!
//! For work that may be lost ([`Background`](tower_offload::Background)), or whose loss it is enough to know of ([`tasks`](crate)). Here each
//! job costs a commit or two. For what is between the two there is [`OrEnqueue`].
#![doc = include_str!("elsewhere.md")]

mod alive;
mod attempt;
mod backoff;
mod builder;
mod clerk;
#[allow(clippy::module_inception)]
mod durable;
mod enqueue;
mod error;
mod group;
mod job;
mod kept;
mod overflow;
mod report;
mod river;
mod shared;
mod transaction;
mod unique;
mod worker;

pub use self::{
    backoff::Backoff, builder::Builder, durable::Durable, enqueue::Enqueue, error::StartError, job::Job,
    overflow::OrEnqueue, report::DrainReport, transaction::Transaction, unique::Unique,
};
