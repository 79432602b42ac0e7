//! The views in Cassandra or Scylla, using only features of both. An id and its shard's number change in one
//! conditional batch of one partition, so that a retry changes nothing.

mod answer;
mod clock;
mod count;
mod error;
mod history;
mod keyspace;
mod retry;
mod schema;
mod session;
mod statements;
mod tls;
mod url;
mod window;

use std::{sync::Arc, time::Duration};

use connect::{ConfigError, SingleFlight};
use domain::{Point, Window};
use uuid::Uuid;

pub use self::error::CassandraError;
use self::{clock::Clock, history::Retention, session::Connection, url::Url};
use crate::ViewsError;

/// How long a request waits for the session, which may have to create the schema.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long readiness waits for the session, and then for one answer.
const READY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a readiness result is reused: a probe whose timeout is shorter than a round trip still gets it.
const READY_REUSE: Duration = Duration::from_millis(200);

/// Views in a keyspace.
pub struct CassandraViews {
    connection: Connection,
    retention: Retention,
    ready: SingleFlight<Result<(), CassandraError>>,
}

impl CassandraViews {
    /// The keyspace of `cassandra://user:password@host:port/keyspace`; connects lazily. Points older than `retention`
    /// expire, the newest one too.
    pub fn new(url: &str, retention: Duration) -> Result<Self, ConfigError> {
        Self::open(url, retention, Clock::of_server())
    }

    /// With a clock that returns seconds since 1970 UTC, instead of Cassandra's.
    pub fn with_clock(
        url: &str,
        retention: Duration,
        clock: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Result<Self, ConfigError> {
        Self::open(url, retention, Clock::Own(Arc::new(clock)))
    }

    fn open(url: &str, retention: Duration, clock: Clock) -> Result<Self, ConfigError> {
        Ok(Self {
            connection: Connection::new(Url::parse(url)?, clock),
            retention: Retention::new(retention),
            ready: SingleFlight::new(READY_REUSE),
        })
    }
}

impl CassandraViews {
    pub(crate) const WRITES_AT_ONCE: usize = 1;

    pub(crate) async fn count(&self, ids: Vec<Uuid>) -> Result<(), ViewsError> {
        if ids.is_empty() {
            return Ok(());
        }
        let (connection, retention) = (self.connection.clone(), self.retention);
        // Spawned, so that conditional writes and their locks finish even if the caller is cancelled.
        let counted = tokio::spawn(async move {
            let keyspace = connection.get(OPEN_TIMEOUT).await?;
            let counted = async {
                count::count(&keyspace, ids).await?;
                // Even if no id was new: whoever counted it may have died before it wrote the point.
                history::keep_up(&keyspace, retention).await
            };
            connection.keep(&keyspace, counted.await)
        });
        Ok(counted.await.map_err(|_| CassandraError::GivenUp)??)
    }

    pub(crate) async fn total(&self) -> Result<u64, ViewsError> {
        let keyspace = self.connection.get(OPEN_TIMEOUT).await?;
        let total = self.connection.keep(&keyspace, count::total(&keyspace).await)?;
        Ok(u64::try_from(total).unwrap_or(0))
    }

    pub(crate) async fn points(&self, window: Window) -> Result<Vec<Point>, ViewsError> {
        let keyspace = self.connection.get(OPEN_TIMEOUT).await?;
        let points = window::points(&keyspace, window, self.retention).await;
        Ok(self.connection.keep(&keyspace, points)?)
    }

    pub(crate) async fn oldest(&self) -> Result<Option<Point>, ViewsError> {
        let keyspace = self.connection.get(OPEN_TIMEOUT).await?;
        let oldest = window::oldest(&keyspace, self.retention).await;
        Ok(self.connection.keep(&keyspace, oldest)?)
    }

    /// One query on the open session, at most one in flight per process. It neither connects nor creates anything.
    pub(crate) async fn ready(&self) -> Result<(), ViewsError> {
        let keyspace = self.connection.get(READY_TIMEOUT).await?;
        let connection = self.connection.clone();
        let checked = self.ready.run(|| async move {
            let checked = tokio::time::timeout(READY_TIMEOUT, keyspace.check()).await;
            connection.keep(&keyspace, checked.unwrap_or(Err(CassandraError::NoAnswer(READY_TIMEOUT))))
        });
        Ok(checked.await.unwrap_or(Err(CassandraError::GivenUp))?)
    }
}
