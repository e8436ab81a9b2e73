#![allow(private_interfaces, reason = "nobody outside can name what the sealed method takes")]

use riverqueue::{
    Client,
    sqlx::{self, Postgres, Sqlite},
};

use super::river::{Prepared, insert_into_postgres, insert_into_sqlite};

/// A transaction of the caller's: `sqlx::Transaction` of SQLite or of Postgres, in the database of the tasks.
///
/// On SQLite begin it with `BEGIN IMMEDIATE` (`connection.begin_with("BEGIN IMMEDIATE")`): one that begins to read and then wants to write is
/// refused if another has written meanwhile. Sealed.
pub trait Transaction: sealed::Sealed {}

pub(super) mod sealed {
    use std::pin::Pin;

    use riverqueue::{Client, Error};

    use crate::jobs::river::{Inserted, Prepared};

    pub(crate) type Inserts<'a> = Pin<Box<dyn Future<Output = Result<Vec<Inserted>, Error>> + Send + 'a>>;

    #[doc(hidden)]
    pub trait Sealed: Send {
        fn insert<'a>(&'a mut self, client: &'a Client, jobs: &'a [&'a Prepared]) -> Inserts<'a>;
    }
}

impl Transaction for sqlx::Transaction<'_, Postgres> {}
impl Transaction for sqlx::Transaction<'_, Sqlite> {}

impl sealed::Sealed for sqlx::Transaction<'_, Postgres> {
    fn insert<'a>(&'a mut self, client: &'a Client, jobs: &'a [&'a Prepared]) -> sealed::Inserts<'a> {
        Box::pin(insert_into_postgres(client, self, jobs))
    }
}

impl sealed::Sealed for sqlx::Transaction<'_, Sqlite> {
    fn insert<'a>(&'a mut self, client: &'a Client, jobs: &'a [&'a Prepared]) -> sealed::Inserts<'a> {
        Box::pin(insert_into_sqlite(client, self, jobs))
    }
}
