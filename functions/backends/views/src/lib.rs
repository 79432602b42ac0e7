//! The speed layer's views: the set of counted user ids, and the history of its size.

mod cassandra;
mod sqlite;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use connect::ConfigError;
use domain::{Point, Window};
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

/// Distinct users, counted exactly.
#[async_trait]
pub trait Views: Send + Sync {
    /// Counts the ids that were not counted before, durably, and writes one point if there were any.
    async fn count(&self, ids: Vec<Uuid>) -> Result<(), ViewsError>;
    /// The number of distinct ids counted so far.
    async fn total(&self) -> Result<u64, ViewsError>;
    /// Points of the history, newest first.
    async fn history(&self, window: Window) -> Result<Vec<Point>, ViewsError>;
    /// The oldest point that is kept.
    async fn oldest(&self) -> Result<Option<Point>, ViewsError>;
    /// How many calls of `count` a process should have in flight; more would only wait for each other.
    fn commits_at_once(&self) -> usize {
        1
    }
    /// Whether an id could be counted now.
    async fn ready(&self) -> Result<(), ViewsError>;
}

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
