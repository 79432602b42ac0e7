//! The file of an embedded log: its tables, appending, and notifying readers in all processes.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use backend_sqlite::{Database, Error};
use event::Record;
use serde_json::json;

use crate::partition;

/// Partitions of every topic. They cost nothing here, and give an ordered source its parallelism.
const PARTITIONS: u32 = 64;

/// `seq` is the position in the topic, `offset` the position in the partition; both grow by one.
const SCHEMA: &[&str] = &["
    CREATE TABLE records (
        topic TEXT NOT NULL,
        seq INTEGER NOT NULL,
        partition INTEGER NOT NULL,
        offset INTEGER NOT NULL,
        time_ms INTEGER NOT NULL,
        key BLOB,
        headers TEXT NOT NULL,
        value BLOB,
        PRIMARY KEY (topic, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE partitions (
        topic TEXT NOT NULL,
        partition INTEGER NOT NULL,
        next_offset INTEGER NOT NULL,
        PRIMARY KEY (topic, partition)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE committed (
        consumer_group TEXT NOT NULL,
        topic TEXT NOT NULL,
        partition INTEGER NOT NULL,
        next_offset INTEGER NOT NULL,
        PRIMARY KEY (consumer_group, topic, partition)
    ) STRICT, WITHOUT ROWID;
    -- All records before this position are finished: a group resumes here instead of at the beginning.
    CREATE TABLE progress (
        consumer_group TEXT NOT NULL,
        topic TEXT NOT NULL,
        next_seq INTEGER NOT NULL,
        PRIMARY KEY (consumer_group, topic)
    ) STRICT, WITHOUT ROWID;
"];

/// Milliseconds since 1970 UTC.
type Clock = Box<dyn Fn() -> i64 + Send + Sync>;

/// The file that an embedded log is in.
pub(super) struct LogFile {
    pub(super) database: Database,
    clock: Clock,
}

impl LogFile {
    pub(super) fn new(path: PathBuf, clock: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self { database: Database::new(path, SCHEMA), clock: Box::new(clock) }
    }

    /// A record's time is the clock's, but never before the newest record of its topic: `Start::Time` finds its first
    /// record by bisection. After the clock was ahead and set back, records keep the newest time until it has passed.
    pub(super) async fn append(&self, topic: &str, records: &[Record]) -> Result<(), Error> {
        let rows = records.iter().enumerate().map(|(n, record)| row(n, record)).collect::<Vec<_>>();
        let rows = json!(rows).to_string();
        let mut write = self.database.write().await?;
        let mut transaction = write.begin().await?;
        let insert = "INSERT INTO records (topic, seq, partition, offset, time_ms, key, headers, value)
            SELECT ?1,
                new.key + 1 + coalesce((SELECT seq FROM records WHERE topic = ?1 ORDER BY seq DESC LIMIT 1), 0),
                new.value ->> 0,
                row_number() OVER (PARTITION BY new.value ->> 0 ORDER BY new.key) - 1 + coalesce(next_offset, 0),
                max(?3, coalesce((SELECT time_ms FROM records WHERE topic = ?1 ORDER BY seq DESC LIMIT 1), 0)),
                unhex(new.value ->> 1), new.value ->> 2, unhex(new.value ->> 3)
            FROM json_each(?2) AS new
            LEFT JOIN partitions ON topic = ?1 AND partition = new.value ->> 0";
        // Read under the write lock, so that no other writer's later time comes first.
        let now = (self.clock)();
        sqlx::query(insert).bind(topic).bind(&rows).bind(now).execute(&mut *transaction).await?;
        let offsets = "INSERT INTO partitions (topic, partition, next_offset)
            SELECT ?1, value ->> 0, count(*) FROM json_each(?2) WHERE true GROUP BY 2
            ON CONFLICT DO UPDATE SET next_offset = next_offset + excluded.next_offset";
        sqlx::query(offsets).bind(topic).bind(&rows).execute(&mut *transaction).await?;
        transaction.commit().await?;
        drop(write);
        self.notify()
    }

    /// Notifies consumers in all processes. They also poll, so a crash before this only delays them. Fails if the
    /// folder is gone, and with it what was just written.
    fn notify(&self) -> Result<(), Error> {
        self.notify_file()?.write_at(&[0], 0).map(drop).map_err(|source| self.fault(source))
    }

    /// Writing this one-byte file wakes consumers. Opened each time: a handle to a file that was removed or replaced
    /// would notify nobody.
    pub(super) fn notify_file(&self) -> Result<File, Error> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(self.notify_path());
        file.map_err(|source| self.fault(source))
    }

    pub(super) fn notify_path(&self) -> PathBuf {
        let mut path = self.database.path().as_os_str().to_owned();
        path.push("-notify");
        PathBuf::from(path)
    }

    pub(super) fn fault(&self, source: std::io::Error) -> Error {
        Error::Io { path: self.notify_path(), source }
    }
}

/// A record as SQL reads it: partition, key in hex, headers as JSON, value in hex.
fn row(n: usize, record: &Record) -> (u32, Option<String>, String, Option<String>) {
    let partition = match &record.key {
        Some(key) => partition::of_key(key, PARTITIONS),
        // Without a key any partition will do.
        None => u32::try_from(n).unwrap_or(0) % PARTITIONS,
    };
    let headers: Vec<_> =
        record.headers.iter().map(|(name, value)| (name, header_value(value.as_deref()))).collect();
    (partition, record.key.as_deref().map(hex), json!(headers).to_string(), record.value.as_deref().map(hex))
}

/// A header's value as JSON: text if it is UTF-8, otherwise a list of its bytes; null if it has none.
fn header_value(value: Option<&[u8]>) -> serde_json::Value {
    let Some(value) = value else { return serde_json::Value::Null };
    std::str::from_utf8(value).map_or_else(|_| json!(value), |text| json!(text))
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| char::from(DIGITS[usize::from(n)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
