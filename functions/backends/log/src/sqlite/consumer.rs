//! Reads a topic of the embedded log page by page, and sleeps until notified.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use backend_sqlite::Error;
use bytes::Bytes;
use event::Record;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use serde_json::json;
use tokio::{sync::Notify, time::timeout};

use super::file::LogFile;
use crate::{Consumer, Delivered, LogError, PartitionOffsets, Polled, Positions, Start, Watermarks};

/// Poll interval without a notification, for example after a process died between its commit and the notification.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Holds the text of headers that cannot be read.
const CORRUPT_HEADERS: &str = "corrupt-headers";

/// A row of `records`.
type Row = (i64, i32, i64, i64, Option<Vec<u8>>, Vec<u8>, Option<Vec<u8>>);

/// A consumer of a topic.
pub(super) struct SqliteConsumer {
    log: Arc<LogFile>,
    topic: String,
    group: Option<String>,
    /// Position of the next record to read.
    next_seq: i64,
    /// Records below these offsets were committed before this consumer started.
    finished: PartitionOffsets,
    /// Position, partition and offset of records that were returned and not committed.
    given_out: VecDeque<(i64, i32, i64)>,
    news: Arc<Notify>,
    watch: Watch,
    is_paused: bool,
}

impl SqliteConsumer {
    pub(super) async fn new(
        log: Arc<LogFile>,
        topic: &str,
        group: Option<&str>,
        start: Start,
    ) -> Result<Self, LogError> {
        // The folder is there once the database is.
        log.database.read().await?;
        let news = Arc::new(Notify::new());
        let watch = Watch::new(&log, &news)?;
        let (topic, group) = (topic.to_owned(), group.map(str::to_owned));
        let mut consumer = Self {
            log,
            topic,
            group,
            next_seq: 1,
            finished: PartitionOffsets::default(),
            given_out: VecDeque::new(),
            news,
            watch,
            is_paused: false,
        };
        consumer.seek(start).await?;
        Ok(consumer)
    }

    async fn seek(&mut self, start: Start) -> Result<(), Error> {
        let readers = self.log.database.read().await?;
        if let Some(group) = &self.group {
            let progress = "SELECT next_seq FROM progress WHERE consumer_group = ? AND topic = ?";
            let next_seq: Option<i64> =
                sqlx::query_scalar(progress).bind(group).bind(&self.topic).fetch_optional(&readers).await?;
            if let Some(next_seq) = next_seq {
                (self.next_seq, self.finished) = (next_seq, self.offsets(group).await?);
                return Ok(());
            }
        }
        self.next_seq = match start {
            Start::Earliest => 1,
            Start::Latest => self.last_seq().await? + 1,
            Start::Time(ms) => self.first_since(ms).await?,
        };
        Ok(())
    }

    async fn offsets(&self, group: &str) -> Result<PartitionOffsets, Error> {
        let query = "SELECT partition, next_offset FROM committed WHERE consumer_group = ? AND topic = ?";
        let readers = self.log.database.read().await?;
        let rows: Vec<(i32, i64)> =
            sqlx::query_as(query).bind(group).bind(&self.topic).fetch_all(&readers).await?;
        Ok(rows.into_iter().collect())
    }

    async fn last_seq(&self) -> Result<i64, Error> {
        let last = "SELECT seq FROM records WHERE topic = ? ORDER BY seq DESC LIMIT 1";
        let last = sqlx::query_scalar(last)
            .bind(&self.topic)
            .fetch_optional(&self.log.database.read().await?)
            .await?;
        Ok(last.unwrap_or(0))
    }

    /// Position of the first record at or after a time. Times never decrease with the position, so bisection finds it
    /// without an index.
    async fn first_since(&self, ms: i64) -> Result<i64, Error> {
        let (mut low, mut high) = (1, self.last_seq().await? + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let time = "SELECT time_ms FROM records WHERE topic = ? AND seq = ?";
            let readers = self.log.database.read().await?;
            let time: i64 =
                sqlx::query_scalar(time).bind(&self.topic).bind(middle).fetch_one(&readers).await?;
            if time < ms { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// Reads the next page; empty when there is nothing new.
    async fn page(&mut self, max: usize) -> Result<Vec<Delivered>, Error> {
        loop {
            let query =
                "SELECT seq, partition, offset, time_ms, key, CAST(headers AS BLOB), value FROM records
                WHERE topic = ? AND seq >= ? ORDER BY seq LIMIT ?";
            let rows: Vec<Row> = sqlx::query_as(query)
                .bind(&self.topic)
                .bind(self.next_seq)
                .bind(i64::try_from(max).unwrap_or(i64::MAX))
                .fetch_all(&self.log.database.read().await?)
                .await?;
            let Some(last) = rows.last() else { return Ok(Vec::new()) };
            let next_seq = last.0 + 1;
            let mut page = Vec::with_capacity(rows.len());
            for row in rows {
                if self.finished.get(&row.1).is_none_or(|next| row.2 >= *next) {
                    if self.group.is_some() {
                        self.given_out.push_back((row.0, row.1, row.2));
                    }
                    page.push(delivered(row));
                }
            }
            self.next_seq = next_seq;
            if !page.is_empty() {
                return Ok(page);
            }
        }
    }
}

/// Wakes `news` when the notify file is written, until dropped.
struct Watch {
    _watcher: RecommendedWatcher,
    lost: Arc<AtomicBool>,
}

impl Watch {
    fn new(log: &LogFile, news: &Arc<Notify>) -> Result<Self, LogError> {
        log.notify_file()?;
        let (news, lost) = (news.clone(), Arc::new(AtomicBool::new(false)));
        let seen = lost.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Opening and reading the file is no notification.
            if event.is_ok_and(|event| {
                seen.fetch_or(event.kind.is_remove(), Ordering::Relaxed);
                !event.kind.is_access()
            }) {
                news.notify_one();
            }
        })?;
        watcher.watch(&log.notify_path(), RecursiveMode::NonRecursive)?;
        Ok(Self { _watcher: watcher, lost })
    }

    /// Whether the watched file was removed, so that another one may have its name.
    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Consumer for SqliteConsumer {
    async fn poll(&mut self, max: usize) -> Result<Polled, LogError> {
        if self.is_paused {
            // A group has no second member here, which could want partitions.
            return std::future::pending().await;
        }
        loop {
            let records = self.page(max).await?;
            if !records.is_empty() {
                return Ok(Polled::Records(records));
            }
            let _ = timeout(POLL_INTERVAL, self.news.notified()).await;
            if self.watch.is_lost() {
                self.watch = Watch::new(&self.log, &self.news)?;
            }
        }
    }

    async fn poll_now(&mut self, max: usize) -> Result<Vec<Delivered>, LogError> {
        Ok(self.page(max).await?)
    }

    fn pause(&mut self) {
        self.is_paused = true;
    }

    fn resume(&mut self) {
        self.is_paused = false;
    }

    async fn commit(&mut self, next: &PartitionOffsets) -> Result<(), LogError> {
        let Some(group) = self.group.clone() else { return Ok(()) };
        self.given_out.retain(|(_, partition, offset)| next.get(partition).is_none_or(|next| offset >= next));
        let next_seq = self.given_out.front().map_or(self.next_seq, |(seq, _, _)| *seq);
        let offsets = json!(next.iter().collect::<Vec<_>>()).to_string();
        let (log, topic) = (self.log.clone(), self.topic.clone());
        let commit = async move {
            let mut write = log.database.write().await?;
            let mut transaction = write.begin().await?;
            let committed =
                "INSERT INTO committed SELECT ?1, ?2, value ->> 0, value ->> 1 FROM json_each(?3) WHERE true
                ON CONFLICT DO UPDATE SET next_offset = max(next_offset, excluded.next_offset)";
            sqlx::query(committed).bind(&group).bind(&topic).bind(offsets).execute(&mut *transaction).await?;
            let progress = "INSERT INTO progress VALUES (?1, ?2, ?3)
                ON CONFLICT DO UPDATE SET next_seq = max(next_seq, excluded.next_seq)";
            sqlx::query(progress).bind(&group).bind(&topic).bind(next_seq).execute(&mut *transaction).await?;
            transaction.commit().await
        };
        Ok(backend_sqlite::to_its_end(commit).await?)
    }
}

#[async_trait]
impl Positions for SqliteConsumer {
    async fn committed(&mut self) -> Result<PartitionOffsets, LogError> {
        match &self.group {
            Some(group) => Ok(self.offsets(group).await?),
            None => Ok(PartitionOffsets::default()),
        }
    }

    async fn watermarks(&mut self) -> Result<Watermarks, LogError> {
        let ends = "SELECT partition, next_offset FROM partitions WHERE topic = ?";
        let readers = self.log.database.read().await?;
        let rows: Vec<(i32, i64)> =
            sqlx::query_as(ends).bind(&self.topic).fetch_all(&readers).await.map_err(Error::Sql)?;
        // Nothing is ever deleted.
        Ok(rows.into_iter().map(|(partition, end)| (partition, 0..end)).collect())
    }
}

/// A row as a record. Headers that cannot be read must not stop those behind it: such a record says that it is an
/// event, which without the other attributes no source can send, and carries the text for the dead letter.
fn delivered((_, partition, offset, time_ms, key, text, value): Row) -> Delivered {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Value {
        Text(String),
        Bytes(Vec<u8>),
    }
    let bytes = |value| match value {
        Value::Text(text) => Bytes::from(text),
        Value::Bytes(bytes) => Bytes::from(bytes),
    };
    let headers = match serde_json::from_slice::<Vec<(String, Option<Value>)>>(&text) {
        Ok(headers) => headers.into_iter().map(|(name, value)| (name, value.map(bytes))).collect(),
        Err(why) => {
            tracing::error!(partition, offset, %why, "the headers of a record are corrupt");
            let version = ("ce_specversion".to_owned(), Some(Bytes::from_static(b"1.0")));
            vec![version, (CORRUPT_HEADERS.to_owned(), Some(Bytes::from(text)))]
        }
    };
    let record = Record { key: key.map(Bytes::from), headers, value: value.map(Bytes::from) };
    Delivered { partition, offset, time_ms, record }
}

#[cfg(test)]
mod tests {
    use event::{Event, Origin};

    use super::*;
    use crate::{Log, SqliteLog};

    #[tokio::test]
    async fn a_record_with_corrupt_headers_is_no_event_and_stops_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let log = SqliteLog::new(folder.path().join("log.sqlite"));
        let record = |value: &'static str| Record {
            headers: vec![
                ("ce_specversion".into(), Some("1.0".into())),
                ("ce_id".into(), Some(value.into())),
            ],
            value: Some(Bytes::from(value)),
            ..Record::default()
        };
        log.append("t", ["a", "b", "c", "d"].map(record).into()).await.unwrap();
        let mut write = log.0.database.write().await.unwrap();
        let mut transaction = write.begin().await.unwrap();
        for (seq, text) in [(2, "CAST(x'ff' AS TEXT)"), (3, "'[[\"ce_id\"'")] {
            let query = format!("UPDATE records SET headers = {text} WHERE seq = {seq}");
            sqlx::query(sqlx::AssertSqlSafe(query)).execute(&mut *transaction).await.unwrap();
        }
        transaction.commit().await.unwrap();
        drop(write);
        let mut consumer = log.consume("t", Some("g"), Start::Earliest).await.unwrap();
        let records = consumer.poll_now(10).await.unwrap();
        let values: Vec<_> =
            records.iter().map(|delivered| delivered.record.value.clone().unwrap()).collect();
        assert_eq!(values, ["a", "b", "c", "d"]);
        let origin = Origin { namespace: "default", name: "source", topic: "t" };
        for (delivered, text) in records[1..3].iter().zip([&b"\xff"[..], b"[[\"ce_id\""]) {
            assert_eq!(delivered.record.header(CORRUPT_HEADERS).unwrap(), text);
            assert!(Event::of_record(delivered, origin).is_err());
        }
    }
}
