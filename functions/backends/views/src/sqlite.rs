//! The embedded views: one SQLite file with the set of counted ids and the history of its size.

use std::{path::PathBuf, sync::Arc, time::Duration};

use backend_sqlite::{Database, history, to_its_end};
use domain::{Point, Window};
use uuid::Uuid;

use crate::ViewsError;

/// The newest row of `history` holds the number of rows of `counted`: both change in one transaction.
const SCHEMA: &[&str] = &["
    CREATE TABLE users_counted (id BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
    CREATE TABLE history (user_count INTEGER PRIMARY KEY, id BLOB NOT NULL, time INTEGER NOT NULL) STRICT;
    CREATE INDEX history_by_time ON history (time, user_count);
"];

/// Maximum number of points that one commit trims, so that no commit pays for a long backlog.
const FORGOTTEN_AT_ONCE: i64 = 1_000;

/// Views in a file.
pub struct SqliteViews(Arc<Inner>);

struct Inner {
    database: Database,
    retention_s: i64,
    clock: Box<dyn Fn() -> i64 + Send + Sync>,
}

impl SqliteViews {
    /// Views in the file, created lazily; points older than `retention` are removed.
    #[must_use]
    pub fn new(path: PathBuf, retention: Duration) -> Self {
        Self::with_clock(path, retention, || chrono::Utc::now().timestamp())
    }

    /// With another clock, which answers seconds since 1970 UTC.
    #[must_use]
    pub fn with_clock(
        path: PathBuf,
        retention: Duration,
        clock: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Self {
        let retention_s = i64::try_from(retention.as_secs()).unwrap_or(i64::MAX);
        let database = Database::new(path, SCHEMA);
        Self(Arc::new(Inner { database, retention_s, clock: Box::new(clock) }))
    }
}

impl SqliteViews {
    pub(crate) const WRITES_AT_ONCE: usize = 1;

    pub(crate) async fn count(&self, ids: Vec<Uuid>) -> Result<(), ViewsError> {
        let inner = self.0.clone();
        Ok(to_its_end(async move { inner.count(&ids).await }).await?)
    }

    pub(crate) async fn total(&self) -> Result<u64, ViewsError> {
        let newest = self.points(Window { limit: 1, ..Window::default() }).await?;
        Ok(newest.first().map_or(0, |point| point.user_count))
    }

    pub(crate) async fn points(&self, window: Window) -> Result<Vec<Point>, ViewsError> {
        Ok(history::points(&self.0.database.read().await?, "history", window).await?)
    }

    pub(crate) async fn oldest(&self) -> Result<Option<Point>, ViewsError> {
        Ok(history::oldest(&self.0.database.read().await?, "history").await?)
    }

    pub(crate) async fn ready(&self) -> Result<(), ViewsError> {
        self.0.database.read().await?;
        Ok(())
    }
}

impl Inner {
    async fn count(&self, ids: &[Uuid]) -> Result<(), backend_sqlite::Error> {
        let ids = serde_json::json!(ids.iter().map(Uuid::as_simple).collect::<Vec<_>>()).to_string();
        let mut write = self.database.write().await?;
        let mut transaction = write.begin().await?;
        let inserted = "INSERT INTO users_counted (id) SELECT unhex(value) FROM json_each(?) WHERE true ON CONFLICT DO NOTHING";
        let new = sqlx::query(inserted).bind(ids).execute(&mut *transaction).await?.rows_affected();
        if new == 0 {
            // Nothing to make durable: an earlier commit already did.
            return transaction.rollback().await;
        }
        let now = (self.clock)();
        // Points that a fast clock wrote into the future move to now. So times and counts grow together, and no point
        // hides later ones.
        let correct = "UPDATE history SET time = ?1 WHERE time > ?1";
        sqlx::query(correct).bind(now).execute(&mut *transaction).await?;
        let point = "INSERT INTO history (user_count, id, time) VALUES (
            coalesce((SELECT max(user_count) FROM history), 0) + ?1, ?2, ?3)";
        sqlx::query(point)
            .bind(i64::try_from(new).unwrap_or(i64::MAX))
            .bind(&Uuid::now_v7().as_bytes()[..])
            .bind(now)
            .execute(&mut *transaction)
            .await?;
        let forget =
            "DELETE FROM history WHERE user_count < (SELECT max(user_count) FROM history) AND user_count IN (
            SELECT user_count FROM history WHERE time < ? ORDER BY time, user_count LIMIT ?)";
        sqlx::query(forget)
            .bind(now.saturating_sub(self.retention_s))
            .bind(FORGOTTEN_AT_ONCE)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await
    }
}
