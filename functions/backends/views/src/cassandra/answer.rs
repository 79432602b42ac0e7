//! Decodes results: typed rows, and the outcome of a conditional batch.

use scylla::{
    deserialize::row::DeserializeRow,
    response::query_result::{QueryResult, QueryRowsResult},
    value::{CqlValue, Row},
};

use super::error::CassandraError;

/// Rows of an answer.
pub(super) struct Rows(QueryRowsResult);

impl Rows {
    pub(super) fn of(result: QueryResult) -> Result<Self, CassandraError> {
        Ok(Self(result.into_rows_result()?))
    }

    pub(super) fn all<'a, R: DeserializeRow<'a, 'a>>(&'a self) -> Result<Vec<R>, CassandraError> {
        Ok(self.0.rows::<R>()?.collect::<Result<_, _>>()?)
    }

    pub(super) fn first<'a, R: DeserializeRow<'a, 'a>>(&'a self) -> Result<Option<R>, CassandraError> {
        Ok(self.0.rows::<R>()?.next().transpose()?)
    }
}

/// The outcome of a conditional batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was applied.
    Applied,
    /// The condition failed, and nothing was applied.
    Lost,
}

impl Outcome {
    /// Cassandra returns one column if a batch was applied and more if not. Scylla always returns all columns, in one
    /// row per statement.
    pub(super) fn of(result: QueryResult) -> Result<Self, CassandraError> {
        let rows = Rows::of(result)?;
        let row: Option<Row> = rows.first()?;
        match row.and_then(|row| row.columns.into_iter().next().flatten()) {
            Some(CqlValue::Boolean(true)) => Ok(Self::Applied),
            Some(CqlValue::Boolean(false)) => Ok(Self::Lost),
            _ => Err(CassandraError::NoOutcome),
        }
    }
}
