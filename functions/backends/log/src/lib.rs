//! The log: where `ingest` appends events and where the event sources read them.
//! One implementation a URL scheme; whoever holds a `dyn Log` does not know which.

mod partition;
mod sqlite;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use shared::{config::ConfigError, record::Record};

pub use crate::sqlite::SqliteLog;

/// The log that a URL names (`LOG_URL`). Connects when first needed.
pub fn open(url: &str) -> Result<Arc<dyn Log>, ConfigError> {
    match backend_sqlite::path(url) {
        Some(path) => Ok(Arc::new(SqliteLog::new(path))),
        None => Err(ConfigError::unknown_url("LOG_URL", url, &["sqlite:PATH"])),
    }
}

/// The topic of users in the log that a URL names.
#[must_use]
pub fn topic(_url: &str) -> String {
    "user".to_owned()
}

/// A record as the log gives it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// Which partition, from 0.
    pub partition: i32,
    /// Position in the partition; grows, not always by one.
    pub offset: i64,
    /// When it was appended, milliseconds since 1970 UTC.
    pub time_ms: i64,
    /// The record itself.
    pub record: Record,
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
    /// Partitions that this consumer no longer owns; what is in flight there is delivered twice.
    pub revoked: Vec<i32>,
}

/// An append-only log of topics, each in partitions by key.
#[async_trait]
pub trait Log: Send + Sync {
    /// Appends all records to the topic or none that will be acknowledged; durable once it returns.
    async fn append(&self, topic: &str, records: Vec<Record>) -> Result<(), LogError>;
    /// Reads the topic. With a group: from its committed offsets, or from `start` where it has none.
    /// Without: from `start`, and commits are forgotten.
    async fn consume(
        &self,
        topic: &str,
        group: Option<&str>,
        start: Start,
    ) -> Result<Box<dyn Consumer>, LogError>;
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
    async fn poll(&mut self, max: usize) -> Result<Batch, LogError>;
    /// Takes at most `max` of the records that are there now; empty when there is none.
    async fn poll_now(&mut self, max: usize) -> Result<Batch, LogError>;
    /// What the group has committed, per partition; empty without a group.
    async fn committed(&mut self) -> Result<BTreeMap<i32, i64>, LogError>;
    /// Remembers, per partition, the offset of the first record that is not finished.
    async fn commit(&mut self, next: &BTreeMap<i32, i64>) -> Result<(), LogError>;
    /// Per partition, the offset after the newest record as of now.
    async fn ends(&mut self) -> Result<BTreeMap<i32, i64>, LogError>;
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
}
