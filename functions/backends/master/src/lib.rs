//! The master dataset: every user as received, and the batch views computed from them.

mod mysql;
mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use connect::ConfigError;
use domain::{Point, User, Window};

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

/// Users as they came, and the batch views over them.
#[async_trait]
pub trait Master: Send + Sync {
    /// Stores all users durably in one transaction; returns outcomes in their order. Within the call, too, the first
    /// user of an id wins.
    async fn store(&self, users: Vec<User>) -> Result<Vec<Stored>, MasterError>;
    /// Updates the batch views with what was committed since the last run; with `full`, recomputes them.
    async fn tick(&self, full: bool) -> Result<Tick, MasterError>;
    /// The batch view: the user with the longest name.
    async fn longest(&self) -> Result<Option<User>, MasterError>;
    /// The batch view: users per minute, newest first.
    async fn minutes(&self, window: Window) -> Result<Vec<Point>, MasterError>;
    /// How many calls of `store` a process should have in flight; more would only wait for each other.
    fn commits_at_once(&self) -> usize {
        1
    }
    /// Whether a user could be stored now.
    async fn ready(&self) -> Result<(), MasterError>;
}

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
