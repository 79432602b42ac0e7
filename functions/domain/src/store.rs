//! What all stores have in common.

use async_trait::async_trait;

use crate::Failure;

/// A store that a function reads or writes.
#[async_trait]
pub trait Store: Send + Sync {
    /// Whether the store could do its work now.
    ///
    /// # Errors
    /// It could not; says why.
    async fn ready(&self) -> Result<(), Failure>;

    /// How many writes a process should have in flight; more would only wait for each other.
    fn writes_at_once(&self) -> usize {
        1
    }
}
