//! The speed layer's views: the set of user ids that were counted, and the history of their number.

use async_trait::async_trait;
use shared::history::{Point, Window};
use uuid::Uuid;

/// Distinct users, counted exactly.
#[async_trait]
pub trait Views: Send + Sync {
    /// Counts the ids that were not counted before, durably, with one row of history if there were any.
    async fn count(&self, ids: Vec<Uuid>) -> Result<(), ViewsError>;
    /// The number of distinct ids counted so far.
    async fn total(&self) -> Result<u64, ViewsError>;
    /// Points of the history, newest first.
    async fn history(&self, window: Window) -> Result<Vec<Point>, ViewsError>;
    /// The oldest point that is kept.
    async fn oldest(&self) -> Result<Option<Point>, ViewsError>;
    /// Whether an id could be counted now.
    async fn ready(&self) -> Result<(), ViewsError>;
}

/// Why the views could not do it now. Each variant keeps its source.
#[derive(Debug, thiserror::Error)]
pub enum ViewsError {
    /// The database under the embedded views failed.
    #[error("the embedded views failed")]
    Sqlite(#[from] backend_sqlite::Error),
}
