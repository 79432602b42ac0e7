//! Shared by the embedded backends: a durable SQLite file that many processes read and write. Knows no table but the
//! shape of the two histories.

mod error;
pub mod history;
mod identity;
mod write_lock;

use std::{
    future::Future,
    io,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use connect::{Backoff, Resource};
use sqlx::{
    ConnectOptions, Connection, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::{Mutex, OwnedMutexGuard};

pub use crate::error::Error;
use crate::{
    identity::Files,
    write_lock::{WriteGuard, WriteLock},
};

/// SQLite's own busy timeout. Writers queue before it, so only a checkpoint ever needs it.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Number of reading connections, each a thread.
const READERS: u32 = 2;

/// The path of `sqlite:PATH`; `None` for other URLs, and for what is not a file.
#[must_use]
pub fn path(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("sqlite:")?;
    (!path.is_empty() && path != ":memory:").then(|| PathBuf::from(path))
}

/// Spawned, so that the transaction finishes even if the caller is cancelled: an open one would block others.
pub async fn to_its_end<T: Send + 'static>(
    write: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(write).await?
}

/// A database file, opened lazily.
///
/// If the file is removed or replaced while it is open, every call fails until it is back or the program restarts: an
/// empty file must not stand in for the data.
///
/// Lock order: the writing connection's mutex (one writer per process), the file `-next` (the queue of processes), the
/// file `-lock` (the writing process), SQLite's own lock by `BEGIN IMMEDIATE`. Nobody who holds one of them waits for an
/// earlier one, so there is no cycle; `-next` is released as soon as `-lock` is held. Under them a task awaits only
/// statements of its own connection, and the kernel releases the file locks of a process that dies. The task that opens
/// the file takes the file locks alone: no mutex exists before it has ended. Readers take none of these locks. The
/// locks of `Open::files` and `Open::discarded` are leaves.
pub struct Database {
    location: Arc<Location>,
    opened: Resource<Open, Error>,
}

struct Location {
    path: PathBuf,
    /// Statement `n` brings the schema from `n` to `n + 1`.
    schema: &'static [&'static str],
}

struct Open {
    writer: Arc<Mutex<Writer>>,
    lock: WriteLock,
    readers: SqlitePool,
    /// When the writing connection was last discarded; older readers are discarded too.
    discarded: Arc<std::sync::Mutex<Option<Instant>>>,
    files: std::sync::Mutex<Files>,
    options: SqliteConnectOptions,
}

struct Writer {
    /// `None` after it was discarded.
    connection: Option<SqliteConnection>,
    /// Delay before another one is opened.
    backoff: Backoff,
}

impl Database {
    /// Names the file and its schema; does no I/O.
    #[must_use]
    pub fn new(path: PathBuf, schema: &'static [&'static str]) -> Self {
        Self { location: Arc::new(Location { path, schema }), opened: Resource::default() }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.location.path
    }

    /// The reading connections; each statement sees the last commit.
    ///
    /// # Errors
    /// The file cannot be opened, or was removed or replaced since it was.
    pub async fn read(&self) -> Result<SqlitePool, Error> {
        let open = self.opened().await?;
        open.check_files()?;
        Ok(open.readers.clone())
    }

    /// The writing connection, once this process holds the write lock. Call it in a task that is never cancelled.
    ///
    /// # Errors
    /// The file cannot be opened, or was removed or replaced since it was.
    pub async fn write(&self) -> Result<Write, Error> {
        let open = self.opened().await?;
        let writer = open.writer.clone().lock_owned().await;
        if writer.connection.is_none() {
            // Before taking the write lock, so that other processes do not wait too.
            tokio::time::sleep(writer.backoff.delay()).await;
        }
        open.check_files()?;
        let lock = open.lock.acquire().await?;
        open.check_files()?;
        let mut write = Write { writer, open, lock };
        write.reconnect().await?;
        Ok(write)
    }

    async fn opened(&self) -> Result<Arc<Open>, Error> {
        Ok(self.opened.get(|| self.location.clone().open()).await?)
    }
}

impl Location {
    async fn open(self: Arc<Self>) -> Result<Open, Error> {
        let fault = |source| Error::Io { path: self.path.clone(), source };
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).map_err(fault)?;
        }
        let lock = WriteLock::of(&self.path)?;
        // Two processes must not both create the file or its tables.
        let guard = lock.acquire().await?;
        let options = SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        let mut connection = for_writing(&options).connect().await?;
        checkpoint(&mut connection).await?;
        self.migrate(&mut connection).await?;
        let files = std::sync::Mutex::new(Files::note(&self.path)?);
        drop(guard);
        // From now on the file exists; it must not be created again.
        let options = options.create_if_missing(false);
        let discarded = Arc::default();
        let writer = Writer { connection: Some(connection), backoff: Backoff::default() };
        Ok(Open {
            writer: Arc::new(Mutex::new(writer)),
            lock,
            readers: readers(options.clone(), &discarded),
            discarded,
            files,
            options,
        })
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

/// Copies the write-ahead log into the database file, syncs that, and truncates the log. The first connection after a
/// failed sync recovers what that commit left in the page cache: it looks committed, and a repeated write, which changes
/// nothing and so syncs nothing, would be acknowledged although the disk may never have had it. Pages that the kernel
/// never writes again would also cut off all that is appended behind them.
///
/// In a first opening it runs before any request. It costs 0.01 ms without a log or with an empty one, also with a
/// million ids in the file, and two syncs (5 to 16 ms on a busy disk) with a log of 40 kB to 4 MB.
async fn checkpoint(connection: &mut SqliteConnection) -> Result<(), Error> {
    let (busy, frames, copied): (i64, i64, i64) =
        sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(connection).await?;
    if busy != 0 || frames != copied {
        let why = format!("a reader keeps {frames} frames of the write-ahead log from being copied");
        return Err(Error::Sql(sqlx::Error::Io(io::Error::new(io::ErrorKind::ResourceBusy, why))));
    }
    Ok(())
}

fn for_writing(options: &SqliteConnectOptions) -> SqliteConnectOptions {
    options.clone().pragma("cache_size", "-8000")
}

fn readers(options: SqliteConnectOptions, discarded: &Arc<std::sync::Mutex<Option<Instant>>>) -> SqlitePool {
    let discarded = discarded.clone();
    SqlitePoolOptions::new()
        .max_connections(READERS)
        .min_connections(0)
        .test_before_acquire(false)
        .before_acquire(move |_, reader| {
            let discarded = *discarded.lock().unwrap_or_else(PoisonError::into_inner);
            let usable = discarded.is_none_or(|at| reader.age < at.elapsed());
            Box::pin(async move { Ok(usable) })
        })
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_lazy_with(options)
}

impl Open {
    fn check_files(&self) -> Result<(), Error> {
        self.files().check()
    }

    fn files(&self) -> std::sync::MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the writing connection; the readers follow, and the last one removes SQLite's own files.
    fn discard(&self) {
        self.files().forget_beside();
        *self.discarded.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    async fn connect(&self) -> Result<SqliteConnection, Error> {
        let mut connection = for_writing(&self.options).connect().await?;
        checkpoint(&mut connection).await?;
        // The connection may have opened another file than the one checked before.
        self.check_files()?;
        self.files().note_beside();
        Ok(connection)
    }
}

/// Permission to write, until dropped.
pub struct Write {
    writer: OwnedMutexGuard<Writer>,
    open: Arc<Open>,
    #[expect(dead_code, reason = "holds the lock until it is dropped")]
    lock: WriteGuard,
}

impl Write {
    /// Begins a transaction; nobody else writes until it ends.
    ///
    /// # Errors
    /// The transaction cannot begin.
    pub async fn begin(&mut self) -> Result<Transaction<'_>, Error> {
        self.reconnect().await?;
        // Taken out while its state is unknown: only a clean end puts it back.
        let connection = self.writer.connection.take().ok_or(Error::Sql(sqlx::Error::WorkerCrashed))?;
        let mut transaction = Transaction { slot: Slot { write: self, returned: false }, connection };
        sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut *transaction).await?;
        Ok(transaction)
    }

    /// Opens a new writing connection if the previous one was discarded.
    async fn reconnect(&mut self) -> Result<(), Error> {
        if self.writer.connection.is_some() {
            return Ok(());
        }
        match self.open.connect().await {
            Ok(connection) => {
                self.writer.backoff.reset();
                self.writer.connection = Some(connection);
                Ok(())
            }
            Err(error) => {
                self.writer.backoff.failed();
                Err(error)
            }
        }
    }
}

/// A transaction. Unless it ends cleanly its connection is closed, which rolls it back: after an error nobody knows
/// whether SQLite has ended the transaction itself.
pub struct Transaction<'a> {
    // Dropped before the connection.
    slot: Slot<'a>,
    connection: SqliteConnection,
}

/// Where the connection is returned to.
struct Slot<'a> {
    write: &'a mut Write,
    returned: bool,
}

impl Transaction<'_> {
    /// Makes the changes durable.
    ///
    /// # Errors
    /// They may or may not be durable.
    pub async fn commit(self) -> Result<(), Error> {
        self.end("COMMIT").await
    }

    /// Rolls back.
    ///
    /// # Errors
    /// The changes are rolled back anyway, because the connection is closed.
    pub async fn rollback(self) -> Result<(), Error> {
        self.end("ROLLBACK").await
    }

    async fn end(mut self, statement: &'static str) -> Result<(), Error> {
        sqlx::raw_sql(statement).execute(&mut self.connection).await?;
        // What was committed into a file that lost its name meanwhile is lost.
        self.slot.write.open.check_files()?;
        self.slot.write.writer.connection = Some(self.connection);
        self.slot.returned = true;
        Ok(())
    }
}

impl Deref for Transaction<'_> {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.connection
    }
}

impl DerefMut for Transaction<'_> {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if !self.returned {
            self.write.open.discard();
        }
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
        transaction.commit().await
    }

    async fn count(database: &Database) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM n").fetch_one(&database.read().await.unwrap()).await.unwrap()
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
        let Error::Opening(error) = older.read().await.unwrap_err() else { panic!("opening fails") };
        assert!(matches!(*error, Error::Newer { found: 1, known: 0, .. }));
        std::fs::write(&path, "x".repeat(5_000)).unwrap();
        assert!(Database::new(path, SCHEMA).read().await.is_err());
    }

    #[tokio::test]
    async fn a_full_file_is_written_again_once_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::new(dir.path().join("n.db"), SCHEMA);
        add(&database, 1).await.unwrap();
        let mut write = database.write().await.unwrap();
        let mut transaction = write.begin().await.unwrap();
        // The limit belongs to the connection, and goes with it.
        sqlx::raw_sql("PRAGMA max_page_count = 3").execute(&mut *transaction).await.unwrap();
        // One row needs no journal of its own, so that SQLite ends the whole transaction, as after an I/O error.
        let large = "INSERT INTO n VALUES (zeroblob(1000000))";
        sqlx::query(large).execute(&mut *transaction).await.unwrap_err();
        drop(transaction);
        drop(write);
        for n in 2..5 {
            add(&database, n).await.unwrap();
        }
        assert_eq!(count(&database).await, 4);
    }

    #[tokio::test]
    async fn a_transaction_that_sqlite_ended_itself_stops_no_later_write() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::new(dir.path().join("n.db"), SCHEMA);
        for n in 0..3 {
            let mut write = database.write().await.unwrap();
            let mut transaction = write.begin().await.unwrap();
            // As SQLite does by itself after an I/O error.
            sqlx::raw_sql("ROLLBACK").execute(&mut *transaction).await.unwrap();
            assert!(transaction.commit().await.is_err());
            drop(write);
            add(&database, n).await.unwrap();
        }
        assert_eq!(count(&database).await, 3);
    }

    #[tokio::test]
    async fn a_commit_that_fails_and_leaves_its_transaction_open_stops_no_later_write() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::new(dir.path().join("n.db"), SCHEMA);
        let mut write = database.write().await.unwrap();
        let mut transaction = write.begin().await.unwrap();
        let violation = "CREATE TABLE parent (id INTEGER PRIMARY KEY);
            CREATE TABLE child (id INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
            INSERT INTO child VALUES (1)";
        sqlx::raw_sql(violation).execute(&mut *transaction).await.unwrap();
        assert!(transaction.commit().await.is_err());
        drop(write);
        add(&database, 1).await.unwrap();
        assert_eq!(count(&database).await, 1);
    }

    #[tokio::test]
    async fn what_was_recovered_is_in_the_file_before_anything_is_written() {
        let [crashed, recovered, file] = [0; 3].map(|_| tempfile::tempdir().unwrap());
        let database = Database::new(crashed.path().join("n.db"), SCHEMA);
        add(&database, 1).await.unwrap();
        for name in ["n.db", "n.db-wal"] {
            std::fs::copy(crashed.path().join(name), recovered.path().join(name)).unwrap();
        }
        let database = Database::new(recovered.path().join("n.db"), SCHEMA);
        let write = database.write().await.unwrap();
        std::fs::copy(recovered.path().join("n.db"), file.path().join("n.db")).unwrap();
        drop(write);
        let file =
            sqlx::SqlitePool::connect(&format!("sqlite:{}/n.db", file.path().display())).await.unwrap();
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM n").fetch_one(&file).await.unwrap();
        assert_eq!(count, 1);
    }

    #[tokio::test]
    async fn a_removed_or_replaced_file_is_an_error_until_it_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("n.db"), dir.path().join("aside"));
        let database = Database::new(path.clone(), SCHEMA);
        add(&database, 1).await.unwrap();
        for replaced in [false, true] {
            std::fs::rename(&path, &aside).unwrap();
            if replaced {
                std::fs::copy(&aside, &path).unwrap();
            }
            for error in [add(&database, 2).await.unwrap_err(), database.read().await.unwrap_err()] {
                assert!(matches!(&error, Error::Io { path: named, .. } if *named == path), "{error:?}");
            }
            assert_eq!(path.exists(), replaced, "no new file is made");
            std::fs::rename(&aside, &path).unwrap();
            add(&database, 3).await.unwrap();
        }
        assert_eq!(count(&database).await, 3);
    }

    #[tokio::test]
    async fn a_removed_lock_file_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n.db");
        let (first, second) = (Database::new(path.clone(), SCHEMA), Database::new(path, SCHEMA));
        add(&first, 1).await.unwrap();
        for suffix in ["n.db-lock", "n.db-next"] {
            std::fs::remove_file(dir.path().join(suffix)).unwrap();
            add(&second, 2).await.unwrap();
            let write = second.write().await.unwrap();
            let waiting = tokio::time::timeout(Duration::from_millis(50), first.write()).await;
            assert!(waiting.is_err(), "both wait for the same file");
            drop(write);
        }
    }

    #[test]
    fn only_a_file_has_a_path() {
        assert_eq!(path("sqlite:data/log.db"), Some(PathBuf::from("data/log.db")));
        for bad in ["sqlite:", "sqlite::memory:", "mysql://u@h/db", "data/log.db", ""] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }
}
