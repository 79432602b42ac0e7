//! What the master dataset is for those who use it: it stores users, computes the batch views, and answers from them.

use async_trait::async_trait;
use domain::{Failure, History, Store, User};

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
