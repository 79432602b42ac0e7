//! The log: where `ingest` appends events and where the event sources read them.
//! One implementation a URL scheme; whoever holds a `dyn Log` does not know which.

mod kafka;
mod partition;
mod sqlite;

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use async_trait::async_trait;
use http::StatusCode;
pub use shared::record::Delivered;
use shared::{
    config::ConfigError,
    error::{Error, Rejection},
    record::Record,
};

pub use crate::{
    kafka::{KafkaFailure, KafkaLog},
    sqlite::SqliteLog,
};

/// The topic of users where a URL names none.
const TOPIC: &str = "user";

/// SQLite's result code for a value beyond its limit.
const SQLITE_TOOBIG: &str = "18";

/// The log that a URL names (`LOG_URL`). Connects when first needed.
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

/// What one `poll` brought.
#[derive(Debug, Default)]
pub struct Batch {
    /// In offset order within each partition.
    pub records: Vec<Delivered>,
    /// Partitions that the next `poll` gives up; what is finished there may be committed before it. What is in flight
    /// there is delivered twice. None of `records` is theirs.
    pub revoked: Vec<i32>,
}

/// An append-only log of topics, each in partitions by key.
#[async_trait]
pub trait Log: Send + Sync {
    /// Appends all records to the topic or none that will be acknowledged; durable once it returns. After an error
    /// some may be there all the same; appending them again is the caller's choice, and safe for users.
    /// Goes on if the caller gives up. One record that is too large fails all: append the others without it.
    async fn append(&self, topic: &str, records: Vec<Record>) -> Result<(), LogError>;
    /// Reads the topic. With a group: from its committed offsets, or from `start` where it has none.
    /// Without: from `start`, and commits are forgotten.
    async fn consume(
        &self,
        topic: &str,
        group: Option<&str>,
        start: Start,
    ) -> Result<Box<dyn Consumer>, LogError>;
    /// Creates the topic where it is missing and the log can tell; reading a topic that is not there is an error then.
    async fn create(&self, _topic: &str) -> Result<(), LogError> {
        Ok(())
    }
    /// How many calls of `append` a process should have under way at once; more would only wait for each other.
    fn commits_at_once(&self) -> usize {
        1
    }
    /// Whether an append could succeed now.
    async fn ready(&self) -> Result<(), LogError>;
}

/// A member of a consumer group.
#[async_trait]
pub trait Consumer: Send {
    /// Waits for records and takes at most `max`. Cancel-safe: what was not returned comes again.
    /// With a `max` of zero it takes none, but goes on being a member of its group until that wants partitions back.
    async fn poll(&mut self, max: usize) -> Result<Batch, LogError>;
    /// Takes at most `max` of the records that are there now; empty when all partitions are read to their ends.
    async fn poll_now(&mut self, max: usize) -> Result<Batch, LogError>;
    /// What the group has committed, per partition; empty without a group. Whoever only asks does not join it.
    async fn committed(&mut self) -> Result<BTreeMap<i32, i64>, LogError>;
    /// Remembers, per partition, the offset of the first record that is not finished. Leaves out partitions that are
    /// another member's by now.
    async fn commit(&mut self, next: &BTreeMap<i32, i64>) -> Result<(), LogError>;
    /// Per partition, the offsets kept as of now: from that of the oldest record to the one after the newest.
    async fn kept(&mut self) -> Result<BTreeMap<i32, Range<i64>>, LogError>;
}

/// Why the log could not do it now. Each variant keeps its source.
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
}

impl LogError {
    /// Whether the log refuses the records for their size, so that appending them again is of no use.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        match self {
            Self::Kafka(failure) => failure.is_too_large(),
            Self::Sqlite(backend_sqlite::Error::Sql(sqlx::Error::Database(error))) => {
                error.code().as_deref() == Some(SQLITE_TOOBIG)
            }
            Self::Sqlite(_) | Self::Watch(_) => false,
        }
    }
}

impl From<LogError> for Error {
    /// Nothing was written when the log is full; otherwise that is unknown.
    fn from(error: LogError) -> Self {
        match error {
            LogError::Kafka(KafkaFailure::TooLarge { .. }) => {
                Self::Rejected(Rejection::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()))
            }
            LogError::Kafka(KafkaFailure::Full) => Self::Busy(error.to_string()),
            _ => Self::unavailable(&error),
        }
    }
}
