//! The embedded log: one SQLite file with the records of all topics and the offsets of all consumer groups.

mod consumer;
mod file;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use backend_sqlite::to_its_end;
use event::Record;

use self::{consumer::SqliteConsumer, file::LogFile};
use crate::{Consumer, Log, LogError, Start};

/// A log in a file.
#[derive(Clone)]
pub struct SqliteLog(Arc<LogFile>);

impl SqliteLog {
    /// A log in the file, created lazily.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self::with_clock(path, || chrono::Utc::now().timestamp_millis())
    }

    /// The same with another clock, which gives milliseconds since 1970 UTC.
    #[must_use]
    pub fn with_clock(path: PathBuf, clock: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(LogFile::new(path, clock)))
    }
}

impl SqliteLog {
    pub(crate) const WRITES_AT_ONCE: usize = 1;

    /// As [`Appender::append`](crate::Appender::append), with the log's own error.
    pub async fn append(&self, topic: &str, records: Vec<Record>) -> Result<(), LogError> {
        let (file, topic) = (self.0.clone(), topic.to_owned());
        Ok(to_its_end(async move { file.append(&topic, &records).await }).await?)
    }

    /// As [`Store::ready`](domain::Store::ready), with the log's own error.
    pub async fn ready(&self) -> Result<(), LogError> {
        self.0.database.read().await?;
        Ok(())
    }
}

#[async_trait]
impl Log for SqliteLog {
    async fn consume(
        &self,
        topic: &str,
        group: Option<&str>,
        start: Start,
    ) -> Result<Box<dyn Consumer>, LogError> {
        Ok(Box::new(SqliteConsumer::new(self.0.clone(), topic, group, start).await?))
    }
}
