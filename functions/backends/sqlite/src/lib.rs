//! What the embedded backends share.

/// Why SQLite could not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A statement failed.
    #[error("SQLite failed")]
    Sql(#[from] sqlx::Error),
}
