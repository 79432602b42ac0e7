//! Errors of Cassandra, and what follows from each.

use std::{sync::Arc, time::Duration};

use domain::PointOutOfRange;
use scylla::errors::{
    DbError, DeserializationError, ExecutionError, IntoRowsResultError, NewSessionError, PrepareError,
    RequestAttemptError, RowsError,
};
use tokio::task::JoinError;

/// Why Cassandra is unavailable.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CassandraError {
    /// No node can be reached.
    #[error("no node of Cassandra can be reached")]
    Connect(#[source] Arc<NewSessionError>),
    /// The TLS settings cannot be used.
    #[error("the connection to Cassandra cannot be made safe")]
    Tls(#[from] openssl::error::ErrorStack),
    /// Nodes accept connections but do not answer.
    #[error("no node of Cassandra answered within {0:?}")]
    NoAnswer(Duration),
    /// The session is still being opened in the background.
    #[error("still connecting to Cassandra after {0:?}")]
    Opening(Duration),
    /// The task panicked or ended with its runtime.
    #[error("the request to Cassandra was given up")]
    GivenUp,
    /// A statement failed.
    #[error("Cassandra cannot do it now")]
    Execute(#[source] Arc<ExecutionError>),
    /// A statement could not be prepared.
    #[error("Cassandra does not understand a statement")]
    Prepare(#[source] Arc<PrepareError>),
    /// An answer has no rows.
    #[error("an answer of Cassandra has no rows")]
    NoRows(#[source] Arc<IntoRowsResultError>),
    /// An answer has columns of other types.
    #[error("an answer of Cassandra has other columns")]
    Columns(#[source] Arc<RowsError>),
    /// An answer does not say whether a condition held.
    #[error("an answer of Cassandra does not say what became of a condition")]
    NoOutcome,
    /// A value cannot be read.
    #[error("a value in an answer of Cassandra cannot be read")]
    Value(#[from] DeserializationError),
    /// A number in a table is out of range.
    #[error("a number in Cassandra is out of range")]
    Number(#[from] std::num::TryFromIntError),
    /// A stored point is out of range.
    #[error("a point in Cassandra cannot be read")]
    Point(#[from] PointOutOfRange),
    /// The keyspace exists with another number of shards.
    #[error("the keyspace has {found} shards, `VIEWS_URL` asks for {asked}; ask for {found} or for none")]
    Shards {
        /// What the URL says.
        asked: i32,
        /// What the keyspace was created with.
        found: i32,
    },
    /// Another writer changed the row between the read and the conditional write.
    #[error("others count at the same place; send it again")]
    Contended,
}

impl CassandraError {
    /// Whether the connections are unusable.
    pub(super) fn is_disconnected(&self) -> bool {
        let Self::Execute(error) = self else { return false };
        match &**error {
            ExecutionError::EmptyPlan
            | ExecutionError::ConnectionPoolError(_)
            | ExecutionError::RequestTimeout(_) => true,
            ExecutionError::PrepareError(PrepareError::ConnectionPoolError(_)) => true,
            ExecutionError::LastAttemptError(error) => {
                matches!(error, RequestAttemptError::BrokenConnectionError(_))
            }
            _ => false,
        }
    }

    /// Whether the session may be the cause, so that a new one is opened: every error but a node's answer that it is
    /// temporarily unable. A missing table counts, because opening a session creates it.
    pub(super) fn is_session_suspect(&self) -> bool {
        match self {
            Self::Execute(error) => match &**error {
                ExecutionError::LastAttemptError(RequestAttemptError::UnableToAllocStreamId) => false,
                ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, _)) => {
                    !is_momentary(error) && !matches!(error, DbError::Unavailable { .. })
                }
                _ => true,
            },
            Self::NoAnswer(_) | Self::Prepare(_) | Self::NoRows(_) | Self::Columns(_) | Self::Value(_) => {
                true
            }
            Self::Connect(_)
            | Self::Tls(_)
            | Self::Opening(_)
            | Self::GivenUp
            | Self::NoOutcome
            | Self::Number(_)
            | Self::Point(_)
            | Self::Shards { .. }
            | Self::Contended => false,
        }
    }

    /// Whether a node rejected the statement permanently: retrying is useless.
    pub(super) fn is_refused(&self) -> bool {
        let Self::Execute(error) = self else { return false };
        let refused = [DbError::Unauthorized, DbError::AuthenticationError, DbError::SyntaxError];
        matches!(&**error, ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, _))
            if refused.contains(error))
    }

    /// Whether to retry a conditional write. A transient failure of a node leaves the outcome unknown, so the retry
    /// reads again; the condition rejects a stale write.
    pub(super) fn is_retryable(&self) -> bool {
        if matches!(self, Self::Contended) {
            return true;
        }
        let Self::Execute(error) = self else { return false };
        let ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, _)) = &**error else {
            return false;
        };
        is_momentary(error)
    }
}

fn is_momentary(error: &DbError) -> bool {
    matches!(error, DbError::Overloaded | DbError::IsBootstrapping)
        || matches!(error, DbError::WriteTimeout { .. } | DbError::ReadTimeout { .. })
        || matches!(error, DbError::WriteFailure { .. } | DbError::ReadFailure { .. })
}

impl From<JoinError> for CassandraError {
    fn from(_: JoinError) -> Self {
        Self::GivenUp
    }
}

impl From<NewSessionError> for CassandraError {
    fn from(error: NewSessionError) -> Self {
        Self::Connect(Arc::new(error))
    }
}

impl From<ExecutionError> for CassandraError {
    fn from(error: ExecutionError) -> Self {
        Self::Execute(Arc::new(error))
    }
}

impl From<PrepareError> for CassandraError {
    fn from(error: PrepareError) -> Self {
        Self::Prepare(Arc::new(error))
    }
}

impl From<IntoRowsResultError> for CassandraError {
    fn from(error: IntoRowsResultError) -> Self {
        Self::NoRows(Arc::new(error))
    }
}

impl From<RowsError> for CassandraError {
    fn from(error: RowsError) -> Self {
        Self::Columns(Arc::new(error))
    }
}
