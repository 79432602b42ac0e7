//! Why the views are unavailable.

use domain::Failure;

use crate::cassandra::CassandraError;

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
