//! What the embedded backends share: a durable SQLite file that many processes read and write at once.
//! Knows no table but the shape that both histories of the number of users have.

pub mod history;
mod turn;

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    ConnectOptions, Connection, SqliteConnection, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::turn::{Held, Turn};

/// How long SQLite itself waits for a lock; writers queue before it, so only a checkpoint ever takes it.
const BUSY: Duration = Duration::from_secs(10);
/// Connections that read, each a thread.
const READERS: u32 = 2;

/// Why SQLite could not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A statement failed.
    #[error("SQLite failed")]
    Sql(#[from] sqlx::Error),
    /// The file, its folder or its lock cannot be used.
    #[error("{path} cannot be used")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A later version of the program wrote the file.
    #[error("{path} has the schema {found}, this program knows up to {known}; run the newer program")]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its schema's number.
        found: usize,
        /// The newest schema's number that is known here.
        known: usize,
    },
    /// The task that wrote was ended with its runtime.
    #[error("the write was given up")]
    GivenUp(#[from] tokio::task::JoinError),
}

/// The path of `sqlite:PATH`; `None` for any other URL, and for what would not be a file.
#[must_use]
pub fn path(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("sqlite:")?;
    (!path.is_empty() && path != ":memory:").then(|| PathBuf::from(path))
}

/// Runs a write to its end, also when whoever waits for it goes away: a transaction left open would hold up others.
pub async fn to_its_end<T: Send + 'static>(
    write: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(write).await?
}

/// A database file. Opening it waits until it is first needed.
pub struct Database {
    path: PathBuf,
    /// Statement `n` brings the schema from `n` to `n + 1`.
    schema: &'static [&'static str],
    open: OnceCell<Open>,
}

struct Open {
    writer: Mutex<Writer>,
    readers: SqlitePool,
}

struct Writer {
    connection: SqliteConnection,
    turn: Turn,
}

impl Database {
    /// Names the file and its schema; does nothing yet.
    #[must_use]
    pub fn new(path: PathBuf, schema: &'static [&'static str]) -> Self {
        Self { path, schema, open: OnceCell::new() }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Connections that read; each statement sees the last commit.
    pub async fn read(&self) -> Result<&SqlitePool, Error> {
        Ok(&self.opened().await?.readers)
    }

    /// The one connection that writes, once it is this process' turn.
    pub async fn write(&self) -> Result<Write<'_>, Error> {
        let writer = self.opened().await?.writer.lock().await;
        let held = writer.turn.take().await?;
        Ok(Write { writer, held })
    }

    async fn opened(&self) -> Result<&Open, Error> {
        self.open.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Open, Error> {
        let fault = |source| Error::Io { path: self.path.clone(), source };
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).map_err(fault)?;
        }
        let turn = Turn::of(&self.path)?;
        // Two processes must not both create the file or its tables.
        let held = turn.take().await?;
        let options = SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY)
            .disable_statement_logging();
        let mut connection = options.clone().pragma("cache_size", "-8000").connect().await?;
        self.migrate(&mut connection).await?;
        drop(held);
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .min_connections(0)
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(options);
        Ok(Open { writer: Mutex::new(Writer { connection, turn }), readers })
    }

    async fn migrate(&self, connection: &mut SqliteConnection) -> Result<(), Error> {
        let found: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *connection).await?;
        let (found, known) = (usize::try_from(found).unwrap_or(usize::MAX), self.schema.len());
        if found > known {
            return Err(Error::Newer { path: self.path.clone(), found, known });
        }
        for (number, statements) in self.schema.iter().enumerate().skip(found) {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            sqlx::raw_sql(*statements).execute(&mut *transaction).await?;
            let version = format!("PRAGMA user_version = {}", number + 1);
            sqlx::raw_sql(sqlx::AssertSqlSafe(version)).execute(&mut *transaction).await?;
            transaction.commit().await?;
        }
        Ok(())
    }
}

/// The turn to write; it ends when this is dropped.
pub struct Write<'a> {
    writer: MutexGuard<'a, Writer>,
    #[expect(dead_code, reason = "holds the turn until it is dropped")]
    held: Held,
}

impl Write<'_> {
    /// Begins a transaction; nobody else writes until it ends.
    pub async fn begin(&mut self) -> Result<Transaction<'_, sqlx::Sqlite>, Error> {
        Ok(self.writer.connection.begin_with("BEGIN IMMEDIATE").await?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const SCHEMA: &[&str] = &["CREATE TABLE n (n INTEGER NOT NULL)"];

    async fn add(database: &Database, n: i64) -> Result<(), Error> {
        let mut write = database.write().await?;
        let mut transaction = write.begin().await?;
        sqlx::query("INSERT INTO n VALUES (?)").bind(n).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    async fn count(database: &Database) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM n").fetch_one(database.read().await.unwrap()).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_writers_of_one_file_all_get_their_turn() {
        let dir = tempfile::tempdir().unwrap();
        // Each has its own connections and locks, as processes do.
        let writers = (0..8).map(|_| Database::new(dir.path().join("new/n.db"), SCHEMA));
        let tasks: Vec<_> = writers
            .map(|database| {
                tokio::spawn(async move {
                    for n in 0..20 {
                        add(&database, n).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(count(&Database::new(dir.path().join("new/n.db"), SCHEMA)).await, 160);
    }

    #[tokio::test]
    async fn a_transaction_that_was_dropped_leaves_nothing_and_blocks_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = [0; 2].map(|_| Arc::new(Database::new(dir.path().join("n.db"), SCHEMA))).into();
        let writing: Arc<Database> = first;
        let mut write = writing.write().await.unwrap();
        let mut transaction = write.begin().await.unwrap();
        sqlx::query("INSERT INTO n VALUES (1)").execute(&mut *transaction).await.unwrap();
        drop(transaction);
        drop(write);
        add(&second, 2).await.unwrap();
        assert_eq!(count(&writing).await, 1);
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_or_newer_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n.db");
        add(&Database::new(path.clone(), SCHEMA), 1).await.unwrap();
        let older = Database::new(path.clone(), &[]);
        assert!(matches!(older.read().await.unwrap_err(), Error::Newer { found: 1, known: 0, .. }));
        std::fs::write(&path, "x".repeat(5_000)).unwrap();
        assert!(Database::new(path, SCHEMA).read().await.is_err());
    }

    #[test]
    fn only_a_file_has_a_path() {
        assert_eq!(path("sqlite:data/log.db"), Some(PathBuf::from("data/log.db")));
        for bad in ["sqlite:", "sqlite::memory:", "mysql://u@h/db", "data/log.db", ""] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }
}
