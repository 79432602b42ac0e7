//! The master dataset: every user as received, and the batch views computed from them.

mod error;
mod mysql;
mod roles;
mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use connect::ConfigError;
use domain::{Failure, History, Point, Store, User, Window};

pub use crate::{
    error::MasterError,
    mysql::MySqlMaster,
    roles::{BatchJob, BatchViews, Dataset, Master, Stored, Tick},
    sqlite::SqliteMaster,
};

/// The master dataset that a URL names (`MASTER_URL`). Connects lazily.
pub fn open(url: &str) -> Result<Arc<dyn Master>, ConfigError> {
    if url.starts_with("mysql://") {
        return Ok(Arc::new(MySqlMaster::new(url)?));
    }
    match backend_sqlite::path(url) {
        Some(path) => Ok(Arc::new(SqliteMaster::new(path))),
        None => {
            let known = ["sqlite:PATH", "mysql://user:password@host:port/db"];
            Err(ConfigError::unknown_url("MASTER_URL", url, &known))
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
        impl Dataset for $store {
            async fn store(&self, users: Vec<User>) -> Result<Vec<Stored>, Failure> {
                Ok(self.store(users).await?)
            }
        }

        #[async_trait]
        impl BatchJob for $store {
            async fn tick(&self, full: bool) -> Result<Tick, Failure> {
                Ok(self.tick(full).await?)
            }
        }

        #[async_trait]
        impl History for $store {
            async fn points(&self, window: Window) -> Result<Vec<Point>, Failure> {
                Ok(self.minutes(window).await?)
            }

            async fn oldest(&self) -> Result<Option<Point>, Failure> {
                Ok(self.oldest_minute().await?)
            }
        }

        #[async_trait]
        impl BatchViews for $store {
            async fn longest(&self) -> Result<Option<User>, Failure> {
                Ok(self.longest().await?)
            }
        }
    )*};
}

implement!(SqliteMaster, MySqlMaster);
