//! The log: `ingest` appends events, and event sources read them. One implementation per URL scheme, behind `dyn Log`.

mod error;
mod kafka;
mod offsets;
mod partition;
mod roles;
mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use connect::ConfigError;
use domain::{Failure, Store};
pub use event::Delivered;
use event::Record;

pub use crate::{
    error::LogError,
    kafka::{KafkaFailure, KafkaLog},
    offsets::{PartitionOffsets, Watermarks},
    roles::{Appender, Consumer, Log, Polled, Positions, Start},
    sqlite::SqliteLog,
};

/// Default topic of users.
const TOPIC: &str = "user";

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
