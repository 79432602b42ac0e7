//! Storage of an implementation during a test. Each test has separate storage.

use std::{sync::Arc, time::Duration};

use backend_views::{SqliteViews, Views};
use memory::MemoryViews;
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;

#[cfg(feature = "services")]
use crate::cassandra::Keyspace;

/// Storage of one test.
pub enum Fixture {
    Sqlite(TempDir),
    Memory(MemoryViews),
    #[cfg(feature = "services")]
    Cassandra(Keyspace),
}

impl Fixture {
    pub async fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    pub async fn memory() -> Self {
        Self::Memory(MemoryViews::new(Arc::new(now), crate::WEEK))
    }

    #[cfg(feature = "services")]
    pub async fn cassandra() -> Self {
        Self::Cassandra(Keyspace::new())
    }

    /// Opens views with the given retention, as a separate process would.
    pub fn views(&self, retention: Duration) -> Arc<dyn Views> {
        match self {
            Self::Sqlite(dir) => Arc::new(SqliteViews::new(dir.path().join("views.db"), retention)),
            Self::Memory(views) => Arc::new(views.with(Arc::new(now), retention)),
            #[cfg(feature = "services")]
            Self::Cassandra(keyspace) => keyspace.views(retention, ""),
        }
    }

    /// Opens views with a clock that returns seconds since 1970.
    pub fn views_by(&self, clock: impl Fn() -> i64 + Send + Sync + 'static) -> Arc<dyn Views> {
        match self {
            Self::Sqlite(dir) => {
                Arc::new(SqliteViews::with_clock(dir.path().join("views.db"), crate::WEEK, clock))
            }
            Self::Memory(views) => Arc::new(views.with(Arc::new(move || clock() * 1_000), crate::WEEK)),
            #[cfg(feature = "services")]
            Self::Cassandra(keyspace) => keyspace.views_by(clock),
        }
    }

    /// Inserts points at these times (seconds since 1970), which must be older than all points of the history.
    pub async fn fill(&self, points: &[(i64, u64)]) {
        match self {
            Self::Sqlite(dir) => sqlite(dir, points).await,
            Self::Memory(views) => views.fill(points),
            #[cfg(feature = "services")]
            Self::Cassandra(keyspace) => keyspace.fill(points).await,
        }
    }

    /// Deletes the test's data from a server.
    pub async fn clean(self) {
        match self {
            Self::Sqlite(_) | Self::Memory(_) => {}
            #[cfg(feature = "services")]
            Self::Cassandra(keyspace) => keyspace.drop().await,
        }
    }
}

/// In SQLite the newest point is the number of users, so these points replace the existing ones.
async fn sqlite(dir: &TempDir, points: &[(i64, u64)]) {
    let url = format!("sqlite:{}", dir.path().join("views.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("DELETE FROM history").execute(&mut database).await.unwrap();
    for (time, count) in points {
        sqlx::query("INSERT INTO history (user_count, id, time) VALUES (?, randomblob(16), ?)")
            .bind(i64::try_from(*count).unwrap())
            .bind(time)
            .execute(&mut database)
            .await
            .unwrap();
    }
}

/// The current time in milliseconds since 1970.
fn now() -> i64 {
    chrono::Utc::now().timestamp_millis()
}
