//! The master dataset: every user as it came, and the views that the batch layer computes from it.

mod mysql;
mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use shared::{
    config::ConfigError,
    history::{Point, Window},
    user::User,
};

pub use crate::{mysql::MySqlMaster, sqlite::SqliteMaster};

/// The master dataset that a URL names (`MASTER_URL`). Connects when first needed.
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

/// What became of a user that was to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// It is the first with its id, and is now kept for ever.
    New,
    /// The same id with the same name was there: no effect.
    Duplicate,
    /// The same id was there with another name, which stays.
    Conflict {
        /// The name that is kept.
        kept: String,
    },
}

/// What a run of batch did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tick {
    /// Users that this run took in.
    pub new_users: u64,
    /// Users in the batch views now.
    pub users: u64,
    /// The user with the most characters in its name; the one stored first between equals.
    pub longest_name_user: Option<User>,
    /// Whether everything was computed anew.
    pub full: bool,
}

/// Users as they came, and the batch views over them.
#[async_trait]
pub trait Master: Send + Sync {
    /// Stores all users durably in one transaction; answers in their order.
    /// Within the call, too, the first one of an id wins.
    async fn store(&self, users: Vec<User>) -> Result<Vec<Stored>, MasterError>;
    /// Brings the batch views up to date with what was committed since the last run, or anew with `full`.
    async fn tick(&self, full: bool) -> Result<Tick, MasterError>;
    /// The batch view: the user with the longest name.
    async fn longest(&self) -> Result<Option<User>, MasterError>;
    /// The batch view: users per minute, newest first.
    async fn minutes(&self, window: Window) -> Result<Vec<Point>, MasterError>;
    /// How many calls of `store` a process should have under way at once; more would only wait for each other.
    fn commits_at_once(&self) -> usize {
        1
    }
    /// Whether a user could be stored now.
    async fn ready(&self) -> Result<(), MasterError>;
}

/// Why the master dataset could not do it now. Each variant keeps its source.
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
    /// The task that wrote was ended with its runtime.
    #[error("the write was given up")]
    GivenUp(#[from] tokio::task::JoinError),
    /// An attempt failed whose result several callers share.
    #[error(transparent)]
    Shared(#[from] Arc<MasterError>),
}
