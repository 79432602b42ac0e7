//! The master dataset: every user as received, and the batch views computed from them.

mod mysql;
mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use connect::ConfigError;
use domain::{Failure, History, Point, Store, User, Window};

pub use crate::{mysql::MySqlMaster, sqlite::SqliteMaster};

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

/// The outcome of storing a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// The first user with its id; kept for ever.
    New,
    /// The id exists with the same name: no effect.
    Duplicate,
    /// The id exists with another name, which stays.
    Conflict {
        /// The name that is kept.
        kept: String,
    },
}

/// The result of a batch run.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tick {
    /// New users in this run.
    pub new_users: u64,
    /// Users in the batch views now.
    pub users: u64,
    /// The user whose name has the most characters; of equally long ones, the first stored.
    pub longest_name_user: Option<User>,
    /// Whether everything was recomputed.
    pub full: bool,
}

/// The master dataset: users as they came.
#[async_trait]
pub trait Dataset: Store {
    /// Stores all users durably in one transaction; returns outcomes in their order. Within the call, too, the first
    /// user of an id wins. Completes even if the caller gives up.
    ///
    /// # Errors
    /// The store is unavailable; the users may be stored or not, and storing them again is safe.
    async fn store(&self, users: Vec<User>) -> Result<Vec<Stored>, Failure>;
}

/// Computes the batch views.
#[async_trait]
pub trait BatchJob: Store {
    /// Updates the batch views with what was stored since the last run; with `full`, recomputes them. Completes even if
    /// the caller gives up.
    ///
    /// # Errors
    /// The store is unavailable; the views are as before, or up to date.
    async fn tick(&self, full: bool) -> Result<Tick, Failure>;
}

/// Answers from the batch views. Their history has one point for each minute in which users were stored.
#[async_trait]
pub trait BatchViews: History {
    /// The user with the longest name.
    ///
    /// # Errors
    /// The store is unavailable.
    async fn longest(&self) -> Result<Option<User>, Failure>;
}

/// The whole of the batch layer, as one store keeps it.
pub trait Master: Dataset + BatchJob + BatchViews {}

impl<M: Dataset + BatchJob + BatchViews> Master for M {}

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

/// Why the master dataset is unavailable. Each variant keeps its source.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    /// The database under the embedded master failed.
    #[error("the embedded master dataset failed")]
    Sqlite(#[from] backend_sqlite::Error),
    /// The server failed, or cannot be reached.
    #[error("MySQL (MASTER_URL) cannot do it now")]
    MySql(#[from] sqlx::Error),
    /// The tables could not be created.
    #[error("the tables could not be created in MySQL (MASTER_URL)")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The writing task ended with its runtime.
    #[error("the write was given up")]
    GivenUp(#[from] tokio::task::JoinError),
    /// The shared error of an attempt that several callers waited for.
    #[error(transparent)]
    Shared(#[from] Arc<MasterError>),
}

impl From<MasterError> for Failure {
    fn from(error: MasterError) -> Self {
        Self::unavailable(error)
    }
}
