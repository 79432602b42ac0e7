//! The speed layer's views: the set of counted user ids, and the history of its size.

mod cassandra;
mod error;
mod roles;
mod sqlite;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use connect::ConfigError;
use domain::{Failure, History, Point, Store, Window};
use uuid::Uuid;

pub use crate::{
    cassandra::{CassandraError, CassandraViews},
    error::ViewsError,
    roles::{Counter, Views},
    sqlite::SqliteViews,
};

/// The views that a URL names (`VIEWS_URL`), with history kept for `retention`. Connects lazily.
pub fn open(url: &str, retention: Duration) -> Result<Arc<dyn Views>, ConfigError> {
    if url.starts_with("cassandra://") {
        return Ok(Arc::new(CassandraViews::new(url, retention)?));
    }
    match backend_sqlite::path(url) {
        Some(path) => Ok(Arc::new(SqliteViews::new(path, retention))),
        None => {
            let known = ["sqlite:PATH", "cassandra://user:password@host:port/keyspace"];
            Err(ConfigError::unknown_url("VIEWS_URL", url, &known))
        }
    }
}

/// Implements the traits by a store's own methods of the same names, whose errors are more specific.
macro_rules! implement {
    ($($store:ty),*) => {$(
        #[async_trait]
        impl Store for $store {
            async fn ready(&self) -> Result<(), Failure> {
                Ok(self.ready().await?)
            }

            fn writes_at_once(&self) -> usize {
                Self::WRITES_AT_ONCE
            }
        }

        #[async_trait]
        impl Counter for $store {
            async fn count(&self, ids: Vec<Uuid>) -> Result<(), Failure> {
                Ok(self.count(ids).await?)
            }

            async fn total(&self) -> Result<u64, Failure> {
                Ok(self.total().await?)
            }
        }

        #[async_trait]
        impl History for $store {
            async fn points(&self, window: Window) -> Result<Vec<Point>, Failure> {
                Ok(self.points(window).await?)
            }

            async fn oldest(&self) -> Result<Option<Point>, Failure> {
                Ok(self.oldest().await?)
            }
        }
    )*};
}

implement!(SqliteViews, CassandraViews);
