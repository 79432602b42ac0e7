//! The log: `ingest` appends events, and event sources read them. One implementation per URL scheme, behind `dyn Log`.

mod kafka;
mod offsets;
mod partition;
mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use connect::ConfigError;
use domain::{Failure, FailureKind, Store};
pub use event::Delivered;
use event::Record;

pub use crate::{
    kafka::{KafkaFailure, KafkaLog},
    offsets::{PartitionOffsets, Watermarks},
    sqlite::SqliteLog,
};

/// Default topic of users.
const TOPIC: &str = "user";

/// SQLite's result code for a value beyond its limit.
const SQLITE_TOOBIG: &str = "18";

/// The log that a URL names (`LOG_URL`). Connects lazily.
pub fn open(url: &str) -> Result<Arc<dyn Log>, ConfigError> {
    if url.starts_with("kafka://") {
        return Ok(Arc::new(KafkaLog::new(url)?));
    }
    match backend_sqlite::path(url) {
        Some(path) => Ok(Arc::new(SqliteLog::new(path))),
        None => {
            let known = ["sqlite:PATH", "kafka://host:port[,host:port]/topic?key=value"];
            Err(ConfigError::unknown_url("LOG_URL", url, &known))
        }
    }
}

/// The topic of users in the log that a URL names.
#[must_use]
pub fn topic(url: &str) -> String {
    KafkaLog::new(url).map_or_else(|_| TOPIC.to_owned(), |log| log.topic().to_owned())
}

/// Where a consumer group without a committed offset begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the oldest record kept.
    Earliest,
    /// After the newest record.
    Latest,
    /// At the first record appended at or after this time, milliseconds since 1970 UTC.
    Time(i64),
}

/// The result of a `poll`.
#[derive(Debug)]
pub enum Polled {
    /// In offset order within each partition; at least one.
    Records(Vec<Delivered>),
    /// Partitions that the next `poll` releases, because other members of the group want them. Finished offsets may be
    /// committed before it; records that were returned and are not finished are delivered again.
    Revoked(Vec<i32>),
}

/// The writing side of the log.
#[async_trait]
pub trait Appender: Store {
    /// Appends all records durably. Completes even if the caller gives up. One record that is too large fails the whole
    /// append.
    ///
    /// # Errors
    /// The log is unavailable: some records may have been written, and appending them again is safe for users. Or it is
    /// overloaded, or a record is too large: then nothing of this append is needed to be undone.
    async fn append(&self, topic: &str, records: Vec<Record>) -> Result<(), Failure>;
}

/// An append-only log of topics, each in partitions by key.
#[async_trait]
pub trait Log: Appender {
    /// Reads the topic. With a group: from its committed offsets, or from `start` where it has none.
    /// Without: from `start`, and commits are forgotten.
    async fn consume(
        &self,
        topic: &str,
        group: Option<&str>,
        start: Start,
    ) -> Result<Box<dyn Consumer>, LogError>;
    /// Where the topic and a group's reading of it stand. Whoever asks reads nothing and is no member of the group, so
    /// that asking triggers no rebalance.
    async fn positions(&self, topic: &str, group: &str) -> Result<Box<dyn Positions>, LogError> {
        // A consumer joins its group in the first poll.
        Ok(self.consume(topic, Some(group), Start::Earliest).await?)
    }
    /// Creates the topic if it is missing. In Kafka, reading a missing topic fails; the embedded log knows no difference
    /// between a missing topic and an empty one.
    async fn create(&self, _topic: &str) -> Result<(), LogError> {
        Ok(())
    }
}

/// Implements the traits by a log's own methods of the same names, whose errors are more specific.
macro_rules! implement {
    ($($log:ty),*) => {$(
        #[async_trait]
        impl Store for $log {
            async fn ready(&self) -> Result<(), Failure> {
                Ok(self.ready().await?)
            }

            fn writes_at_once(&self) -> usize {
                Self::WRITES_AT_ONCE
            }
        }

        #[async_trait]
        impl Appender for $log {
            async fn append(&self, topic: &str, records: Vec<Record>) -> Result<(), Failure> {
                Ok(self.append(topic, records).await?)
            }
        }
    )*};
}

implement!(SqliteLog, KafkaLog);

/// A reader of a topic: alone, or as a member of a consumer group.
#[async_trait]
pub trait Consumer: Positions {
    /// Waits for at most `max` records, or until partitions are revoked. Cancel-safe.
    async fn poll(&mut self, max: usize) -> Result<Polled, LogError>;
    /// Returns at most `max` of the available records; empty once all partitions are read to their ends. Releases
    /// revoked partitions at once.
    async fn poll_now(&mut self, max: usize) -> Result<Vec<Delivered>, LogError>;
    /// Until `resume`, `poll` returns no records, but keeps the membership and still returns revocations.
    fn pause(&mut self);
    /// Ends a pause, if there is one.
    fn resume(&mut self);
    /// Commits, per partition, the offset of the first unfinished record. Skips partitions that another member owns by
    /// now.
    async fn commit(&mut self, next: &PartitionOffsets) -> Result<(), LogError>;
}

/// Where a topic and a group's reading of it stand. Asking does not join the group.
#[async_trait]
pub trait Positions: Send {
    /// Committed offsets of the group; empty without a group.
    async fn committed(&mut self) -> Result<PartitionOffsets, LogError>;
    /// The low and high watermarks of all partitions.
    async fn watermarks(&mut self) -> Result<Watermarks, LogError>;
}

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
