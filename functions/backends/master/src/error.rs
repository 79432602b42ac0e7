//! Why the master dataset is unavailable.

use std::sync::Arc;

use domain::Failure;

/// Why the master dataset is unavailable. Each variant keeps its source.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    /// The database under the embedded master failed.
    #[error("the embedded master dataset failed")]
    Sqlite(#[from] backend_sqlite::Error),
    /// The server failed, or cannot be reached.
    #[error("MySQL (MASTER_URL) cannot do it now")]
    MySql(#[from] sqlx::Error),
    /// The tables could not be created.
    #[error("the tables could not be created in MySQL (MASTER_URL)")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The writing task ended with its runtime.
    #[error("the write was given up")]
    GivenUp(#[from] tokio::task::JoinError),
    /// The shared error of an attempt that several callers waited for.
    #[error(transparent)]
    Shared(#[from] Arc<MasterError>),
}

impl From<MasterError> for Failure {
    fn from(error: MasterError) -> Self {
        Self::unavailable(error)
    }
}
