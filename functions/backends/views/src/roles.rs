//! What the views are for those who use them: they count, and keep the history of the count.

use async_trait::async_trait;
use domain::{Failure, History, Store};
use uuid::Uuid;

/// Counts distinct users, exactly.
#[async_trait]
pub trait Counter: Store {
    /// Counts the ids that were not counted before, durably, and writes one point if there were any. Completes even if
    /// the caller gives up.
    ///
    /// # Errors
    /// The store is unavailable; the ids may be counted or not, and counting them again is safe.
    async fn count(&self, ids: Vec<Uuid>) -> Result<(), Failure>;

    /// The number of distinct ids counted so far.
    ///
    /// # Errors
    /// The store is unavailable.
    async fn total(&self) -> Result<u64, Failure>;
}

/// The whole of the views, as one store keeps them.
pub trait Views: Counter + History {}

impl<V: Counter + History> Views for V {}
