//! The views in Cassandra, or what speaks its protocol (Scylla): nothing is used that only one has.
//! An id and its shard's number change in one conditional batch of one partition, so that a retry changes nothing.

mod answer;
mod count;
mod error;
mod history;
mod schema;
mod session;
mod statements;
mod tls;
mod url;
mod window;

use std::time::Duration;

use async_trait::async_trait;
use shared::{
    config::ConfigError,
    history::{Point, Window},
};
use uuid::Uuid;

pub use self::error::CassandraError;
use self::{history::Retention, session::Connection, url::Url};
use crate::{Views, ViewsError};

/// Views in a keyspace.
pub struct CassandraViews {
    connection: Connection,
    retention: Retention,
}

impl CassandraViews {
    /// The keyspace of `cassandra://user:password@host:port/keyspace`; connects when first needed.
    /// Points older than `retention` are forgotten, the newest one too.
    pub fn new(url: &str, retention: Duration) -> Result<Self, ConfigError> {
        Ok(Self { connection: Connection::new(Url::parse(url)?), retention: Retention::new(retention) })
    }
}

#[async_trait]
impl Views for CassandraViews {
    async fn count(&self, ids: Vec<Uuid>) -> Result<(), ViewsError> {
        if ids.is_empty() {
            return Ok(());
        }
        let open = self.connection.get().await?;
        let counted = async {
            count::count(&open, ids).await?;
            // Also when nothing was new: who counted it may have died before its row of history.
            history::keep_up(&open, self.retention).await
        };
        Ok(self.connection.keep(&open, counted.await).await?)
    }

    async fn total(&self) -> Result<u64, ViewsError> {
        let open = self.connection.get().await?;
        let total = self.connection.keep(&open, count::total(&open).await).await?;
        Ok(u64::try_from(total).unwrap_or(0))
    }

    async fn history(&self, window: Window) -> Result<Vec<Point>, ViewsError> {
        let open = self.connection.get().await?;
        let points = window::points(&open, window, self.retention).await;
        Ok(self.connection.keep(&open, points).await?)
    }

    async fn oldest(&self) -> Result<Option<Point>, ViewsError> {
        let open = self.connection.get().await?;
        let oldest = window::oldest(&open, self.retention).await;
        Ok(self.connection.keep(&open, oldest).await?)
    }

    async fn ready(&self) -> Result<(), ViewsError> {
        let open = self.connection.get().await?;
        Ok(self
            .connection
            .keep(&open, schema::shards(&open.session, &open.statements).await)
            .await
            .map(drop)?)
    }
}
