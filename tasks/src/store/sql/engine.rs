use std::{sync::Arc, time::Duration};

use super::database::Database;
#[cfg(feature = "postgres")]
use super::postgres::Postgres;
#[cfg(feature = "sqlite")]
use super::sqlite::Sqlite;
use crate::StoreError;

/// The database under a [`SqlStore`](super::SqlStore), by its kind: `durable` speaks to each in its own way.
#[derive(Clone)]
pub(crate) enum Engine {
    #[cfg(feature = "postgres")]
    Postgres(Arc<Postgres>),
    #[cfg(feature = "sqlite")]
    Sqlite(Arc<Sqlite>),
}

impl Engine {
    pub(super) async fn open(url: &str, lease: Duration) -> Result<Self, StoreError> {
        #[cfg(feature = "sqlite")]
        if let Some(path) = url.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return Ok(Self::Sqlite(Arc::new(Sqlite::open(path.as_ref()).await?)));
        }
        #[cfg(feature = "postgres")]
        if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            return Ok(Self::Postgres(Arc::new(Postgres::open(url, lease).await?)));
        }
        let _ = lease; // only Postgres has one
        // Not the URL: it may have a password in it.
        let scheme = url.split(':').next().unwrap_or_default();
        Err(StoreError::other(format!(
            "no database for the scheme {scheme:?}: it is sqlite or postgres, each with its feature"
        )))
    }

    pub(super) fn database(&self) -> &dyn Database {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(postgres) => &**postgres,
            #[cfg(feature = "sqlite")]
            Self::Sqlite(sqlite) => &**sqlite,
        }
    }
}
