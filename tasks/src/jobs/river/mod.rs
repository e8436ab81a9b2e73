//! All that knows of River: its client, its tables, and what keeps our records beside them.
//!
//! A job has a row in River's `river_job` and one in our `tower_offload_task`, made in one transaction. From then on triggers on River's table
//! keep ours (`schema`): whoever changes a job, in whatever language, changes its status in the same transaction.

mod adapter;
mod arguments;
mod client;
mod database;
mod insert;
mod insert_error;
mod job_rows;
mod keeper;
mod recovery;
mod schema;
mod steady;

pub(super) use riverqueue::{InsertOpts, UniqueOpts, jiff};

pub(super) use self::{
    arguments::Arguments,
    client::{Client, Plan},
    database::Database,
    insert::{Inserted, Prepared, insert_into_postgres, insert_into_sqlite},
    insert_error::InsertError,
    keeper::{keep_client, keep_lease, keep_records},
    recovery::Claim,
    steady::Steady,
};
