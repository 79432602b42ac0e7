//! The speed layer's views: the set of counted user ids, and the history of its size.

mod cassandra;
mod sqlite;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use connect::ConfigError;
use domain::{Failure, History, Point, Store, Window};
use uuid::Uuid;

pub use crate::{
    cassandra::{CassandraError, CassandraViews},
    sqlite::SqliteViews,
};

/// The views that a URL names (`VIEWS_URL`), with history kept for `retention`. Connects lazily.
pub fn open(url: &str, retention: Duration) -> Result<Arc<dyn Views>, ConfigError> {
    if url.starts_with("cassandra://") {
        return Ok(Arc::new(CassandraViews::new(url, retention)?));
    }
    match backend_sqlite::path(url) {
        Some(path) => Ok(Arc::new(SqliteViews::new(path, retention))),
        None => {
            let known = ["sqlite:PATH", "cassandra://user:password@host:port/keyspace"];
            Err(ConfigError::unknown_url("VIEWS_URL", url, &known))
        }
    }
}

/// Counts distinct users, exactly.
#[async_trait]
pub trait Counter: Store {
    /// Counts the ids that were not counted before, durably, and writes one point if there were any. Completes even if
    /// the caller gives up.
    ///
    /// # Errors
    /// The store is unavailable; the ids may be counted or not, and counting them again is safe.
    async fn count(&self, ids: Vec<Uuid>) -> Result<(), Failure>;

    /// The number of distinct ids counted so far.
    ///
    /// # Errors
    /// The store is unavailable.
    async fn total(&self) -> Result<u64, Failure>;
}

/// The whole of the views, as one store keeps them.
pub trait Views: Counter + History {}

impl<V: Counter + History> Views for V {}

/// Implements the traits by a store's own methods of the same names, whose errors are more specific.
macro_rules! implement {
    ($($store:ty),*) => {$(
        #[async_trait]
        impl Store for $store {
            async fn ready(&self) -> Result<(), Failure> {
                Ok(self.ready().await?)
            }

            fn writes_at_once(&self) -> usize {
                Self::WRITES_AT_ONCE
            }
        }

        #[async_trait]
        impl Counter for $store {
            async fn count(&self, ids: Vec<Uuid>) -> Result<(), Failure> {
                Ok(self.count(ids).await?)
            }

            async fn total(&self) -> Result<u64, Failure> {
                Ok(self.total().await?)
            }
        }

        #[async_trait]
        impl History for $store {
            async fn points(&self, window: Window) -> Result<Vec<Point>, Failure> {
                Ok(self.points(window).await?)
            }

            async fn oldest(&self) -> Result<Option<Point>, Failure> {
                Ok(self.oldest().await?)
            }
        }
    )*};
}

implement!(SqliteViews, CassandraViews);

/// Why the views are unavailable. Each variant keeps its source.
#[derive(Debug, thiserror::Error)]
pub enum ViewsError {
    /// The database under the embedded views failed.
    #[error("the embedded views failed")]
    Sqlite(#[from] backend_sqlite::Error),
    /// Cassandra failed, or cannot be reached.
    #[error("the views cannot do it now")]
    Cassandra(#[from] CassandraError),
}

impl From<ViewsError> for Failure {
    fn from(error: ViewsError) -> Self {
        Self::unavailable(error)
    }
}
