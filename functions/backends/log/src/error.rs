//! Why a log is unavailable.

use domain::{Failure, FailureKind};

use crate::kafka::KafkaFailure;

/// SQLite's result code for a value beyond its limit.
const SQLITE_TOOBIG: &str = "18";

/// Why the log is unavailable. Each variant keeps its source.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The database under the embedded log failed.
    #[error("the embedded log failed")]
    Sqlite(#[from] backend_sqlite::Error),
    /// The embedded log's folder cannot be watched for news.
    #[error("the embedded log cannot be watched")]
    Watch(#[from] notify::Error),
    /// Kafka failed, or cannot be reached.
    #[error(transparent)]
    Kafka(#[from] KafkaFailure),
    /// A log that is implemented elsewhere failed.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl LogError {
    /// Whether the log rejects the records for their size, so that retrying is useless.
    fn is_too_large(&self) -> bool {
        match self {
            Self::Kafka(failure) => matches!(failure, KafkaFailure::TooLarge { .. }),
            Self::Sqlite(backend_sqlite::Error::Sql(sqlx::Error::Database(error))) => {
                error.code().as_deref() == Some(SQLITE_TOOBIG)
            }
            Self::Sqlite(_) | Self::Watch(_) | Self::Other(_) => false,
        }
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        let kind = match &error {
            error if error.is_too_large() => FailureKind::TooLarge,
            LogError::Kafka(KafkaFailure::Full) => FailureKind::Overloaded,
            _ => FailureKind::Unavailable,
        };
        Self::new(kind, error)
    }
}
