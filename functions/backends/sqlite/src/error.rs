//! Why a SQLite file is unusable.

use std::{io, path::PathBuf, sync::Arc};

/// Errors of the SQLite file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A statement failed.
    #[error("SQLite failed")]
    Sql(#[from] sqlx::Error),
    /// The file, its folder or its lock is unusable.
    #[error("{path} cannot be used")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A newer version of the program wrote the file.
    #[error("{path} has the schema {found}, this program knows up to {known}; run the newer program")]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its schema's number.
        found: usize,
        /// The newest schema number known to this program.
        known: usize,
    },
    /// The writing task panicked, or ended with its runtime.
    #[error("the write was given up")]
    GivenUp(#[from] tokio::task::JoinError),
    /// Opening the file failed; everybody who waited gets this error.
    #[error(transparent)]
    Opening(#[from] Arc<Error>),
}
