//! The embedded master dataset: one SQLite file with all users and the batch views. SQLite has one writer at a time, so
//! users commit in the order of `seq`, and all after `batch.seq` are new. A master with many writers must record
//! pending users instead.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use backend_sqlite::{Database, Error, history, to_its_end};
use domain::{Point, User, Window};
use sqlx::SqliteConnection;
use uuid::Uuid;

use crate::{MasterError, Stored, Tick};

/// `batch` is one row: the last `seq` in the views, the number of users, and the longest name. `batch_minutes` has one
/// row per minute with new users: the total at its end.
const SCHEMA: &[&str] = &["
    CREATE TABLE users (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id BLOB NOT NULL UNIQUE,
        name TEXT NOT NULL,
        stored_at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE batch (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        seq INTEGER NOT NULL,
        users INTEGER NOT NULL,
        longest_seq INTEGER REFERENCES users (seq)
    ) STRICT;
    INSERT INTO batch VALUES (1, 0, 0, NULL);
    CREATE TABLE batch_minutes (
        minute INTEGER PRIMARY KEY,
        id BLOB NOT NULL,
        time INTEGER NOT NULL,
        user_count INTEGER NOT NULL UNIQUE
    ) STRICT;
    CREATE INDEX batch_minutes_by_time ON batch_minutes (time, user_count);
"];

/// The batch view of the longest name.
const LONGEST: &str = "SELECT id, name FROM users WHERE seq = (SELECT longest_seq FROM batch)";

/// Milliseconds since 1970 UTC.
type Clock = Box<dyn Fn() -> i64 + Send + Sync>;

/// A master dataset in a file.
pub struct SqliteMaster(Arc<Inner>);

struct Inner {
    database: Database,
    clock: Clock,
}

impl SqliteMaster {
    /// A master dataset in the file, created lazily.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self::with_clock(path, || chrono::Utc::now().timestamp_millis())
    }

    /// The same with another clock, which gives milliseconds since 1970 UTC.
    #[must_use]
    pub fn with_clock(path: PathBuf, clock: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { database: Database::new(path, SCHEMA), clock: Box::new(clock) }))
    }
}

impl SqliteMaster {
    pub(crate) const WRITES_AT_ONCE: usize = 1;

    pub(crate) async fn store(&self, users: Vec<User>) -> Result<Vec<Stored>, MasterError> {
        let inner = self.0.clone();
        Ok(to_its_end(async move { inner.store(&users).await }).await?)
    }

    pub(crate) async fn tick(&self, full: bool) -> Result<Tick, MasterError> {
        let inner = self.0.clone();
        Ok(to_its_end(async move { inner.tick(full).await }).await?)
    }

    pub(crate) async fn longest(&self) -> Result<Option<User>, MasterError> {
        let readers = self.0.database.read().await?;
        let row = sqlx::query_as(LONGEST).fetch_optional(&readers).await.map_err(Error::Sql)?;
        Ok(row.map(user).transpose()?)
    }

    pub(crate) async fn minutes(&self, window: Window) -> Result<Vec<Point>, MasterError> {
        let readers = self.0.database.read().await?;
        let now_s = (self.0.clock)().div_euclid(1_000);
        let read = async |window| history::points(&readers, "batch_minutes", window).await;
        let newest = Window { limit: 1, ..Window::default() };
        let has_future = window.ends_about(now_s)
            && read(newest).await?.first().is_some_and(|point| point.time.timestamp() > now_s);
        let points = read(window.at(now_s, has_future)).await?;
        Ok(points.into_iter().map(|point| point.not_after(window.latest_s(now_s))).collect())
    }

    pub(crate) async fn oldest_minute(&self) -> Result<Option<Point>, MasterError> {
        Ok(history::oldest(&self.0.database.read().await?, "batch_minutes").await?)
    }

    pub(crate) async fn ready(&self) -> Result<(), MasterError> {
        self.0.database.read().await?;
        Ok(())
    }
}

impl Inner {
    async fn store(&self, users: &[User]) -> Result<Vec<Stored>, Error> {
        let rows = serde_json::json!(users.iter().map(|u| (u.id.as_simple(), &u.name)).collect::<Vec<_>>());
        let mut write = self.database.write().await?;
        let mut transaction = write.begin().await?;
        // Time never goes back, whatever the clock does: closed minutes stay as they are.
        let insert = "INSERT INTO users (id, name, stored_at)
            SELECT unhex(value ->> 0), value ->> 1,
                max(?2, coalesce((SELECT stored_at FROM users ORDER BY seq DESC LIMIT 1), 0))
            FROM json_each(?1) WHERE true ORDER BY key
            ON CONFLICT DO NOTHING RETURNING id";
        let new: Vec<Vec<u8>> = sqlx::query_scalar(insert)
            .bind(rows.to_string())
            .bind((self.clock)())
            .fetch_all(&mut *transaction)
            .await?;
        let mut new = new.iter().map(|id| uuid(id)).collect::<Result<std::collections::HashSet<_>, _>>()?;
        // The first row of a new id is stored; every other one is compared with the stored name.
        let firsts: Vec<bool> = users.iter().map(|user| new.remove(&user.id)).collect();
        let others = users.iter().zip(&firsts).filter(|(_, first)| !**first).map(|(user, _)| user.id);
        let kept = names(&mut transaction, others).await?;
        transaction.commit().await?;
        let outcome = |(user, first): (&User, &bool)| match kept.get(&user.id) {
            _ if *first => Stored::New,
            Some(name) if *name != user.name => Stored::Conflict { kept: name.clone() },
            _ => Stored::Duplicate,
        };
        Ok(users.iter().zip(&firsts).map(outcome).collect())
    }

    async fn tick(&self, full: bool) -> Result<Tick, Error> {
        let mut write = self.database.write().await?;
        let mut transaction = write.begin().await?;
        let before: i64 = sqlx::query_scalar("SELECT users FROM batch").fetch_one(&mut *transaction).await?;
        if full {
            let forget = "DELETE FROM batch_minutes; UPDATE batch SET seq = 0, users = 0, longest_seq = NULL";
            sqlx::raw_sql(forget).execute(&mut *transaction).await?;
        }
        apply_new_users(&mut transaction).await?;
        let users: i64 = sqlx::query_scalar("SELECT users FROM batch").fetch_one(&mut *transaction).await?;
        let longest = sqlx::query_as(LONGEST).fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(Tick {
            new_users: unsigned(users - before),
            users: unsigned(users),
            longest_name_user: longest.map(user).transpose()?,
            full,
        })
    }
}

/// Updates the batch views to the newest user; reads only new users.
async fn apply_new_users(connection: &mut SqliteConnection) -> Result<(), Error> {
    let longest = "UPDATE batch SET longest_seq = (
            SELECT seq FROM (
                SELECT * FROM (
                    SELECT seq, length(name) AS characters FROM users WHERE seq > batch.seq
                    ORDER BY characters DESC, seq LIMIT 1)
                UNION ALL SELECT seq, length(name) FROM users WHERE seq = batch.longest_seq)
            ORDER BY characters DESC, seq LIMIT 1)
        WHERE EXISTS (SELECT 1 FROM users WHERE seq > batch.seq)";
    if sqlx::query(longest).execute(&mut *connection).await?.rows_affected() == 0 {
        return Ok(());
    }
    // The id of a minute's point is derived from the minute, so that recomputing gives the same (UUID version 8).
    let minutes = "INSERT INTO batch_minutes (minute, id, time, user_count)
        SELECT minute, unhex(printf('%012x', minute) || '80008000000000000000'), newest / 1000,
            (SELECT users FROM batch) + sum(came) OVER (ORDER BY minute)
        FROM (SELECT stored_at / 60000 AS minute, max(stored_at) AS newest, count(*) AS came
            FROM users WHERE seq > (SELECT seq FROM batch) GROUP BY 1)
        WHERE true
        ON CONFLICT (minute) DO UPDATE SET time = excluded.time, user_count = excluded.user_count";
    sqlx::query(minutes).execute(&mut *connection).await?;
    let state = "UPDATE batch SET users = (SELECT max(user_count) FROM batch_minutes), seq = (SELECT max(seq) FROM users)";
    sqlx::query(state).execute(&mut *connection).await?;
    Ok(())
}

async fn names(
    connection: &mut SqliteConnection,
    ids: impl Iterator<Item = Uuid>,
) -> Result<HashMap<Uuid, String>, Error> {
    let ids: Vec<_> = ids.map(Uuid::simple).collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let query = "SELECT id, name FROM users WHERE id IN (SELECT unhex(value) FROM json_each(?))";
    let rows: Vec<(Vec<u8>, String)> =
        sqlx::query_as(query).bind(serde_json::json!(ids).to_string()).fetch_all(connection).await?;
    rows.into_iter().map(|(id, name)| Ok((uuid(&id)?, name))).collect()
}

fn user((id, name): (Vec<u8>, String)) -> Result<User, Error> {
    Ok(User { id: uuid(&id)?, name })
}

fn uuid(bytes: &[u8]) -> Result<Uuid, Error> {
    Uuid::from_slice(bytes).map_err(|e| Error::Sql(sqlx::Error::Decode(e.into())))
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
