//! The data folder of the embedded stores. One runtime uses it at a time. It is watched, because it may be removed or
//! replaced while the system runs; nothing starts on a replaced folder.

use std::{
    fs::{File, OpenOptions, TryLockError, create_dir_all},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::Context;

use crate::log_file::{has_name, identity};

const LOCK: &str = "runtime.lock";

/// Why the data folder cannot be used now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    /// It is not the folder that was opened; it may come back.
    #[error("the data folder {0} was removed or replaced while the system runs; restart the system")]
    Replaced(String),
    /// Another runtime uses it.
    #[error("the system runs on {0} already; stop it, or give another folder with --data")]
    Taken(String),
    /// The lock cannot be taken.
    #[error("cannot lock {path}")]
    Lock {
        /// The lock file.
        path: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

/// A data folder.
pub(crate) struct DataFolder {
    path: PathBuf,
    identity: (u64, u64),
    /// Two runtimes on the same data would send every event twice. The kernel frees the lock when its holder dies.
    lock: Mutex<Option<File>>,
}

impl DataFolder {
    /// Opens the folder; creates it if it is missing.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        let path = path.canonicalize()?;
        let identity = identity(&path.metadata()?);
        Ok(Self { path, identity, lock: Mutex::default() })
    }

    /// Its absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Locks the folder for this runtime.
    pub(crate) fn lock(&self) -> Result<(), FolderError> {
        let path = self.path.join(LOCK);
        let failed = |source| FolderError::Lock { path: path.display().to_string(), source };
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {
                *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
                Ok(())
            }
            Err(TryLockError::WouldBlock) => Err(FolderError::Taken(self.path.display().to_string())),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Checks whether the folder is still the one that was opened; the error says what to do. If only the lock file was
    /// removed, creates and locks it again.
    pub(crate) fn check(&self) -> Result<(), FolderError> {
        let same = self.path.metadata().is_ok_and(|metadata| identity(&metadata) == self.identity);
        if !same {
            return Err(FolderError::Replaced(self.path.display().to_string()));
        }
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = lock.as_ref().is_some_and(|file| !has_name(file, &self.path.join(LOCK)));
        drop(lock);
        if lost { self.lock() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_that_was_removed_or_replaced_is_told() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        let folder = DataFolder::open(&path).unwrap();
        folder.lock().unwrap();
        assert!(DataFolder::open(&path).unwrap().lock().is_err());
        folder.check().unwrap();
        fs::remove_file(path.join(LOCK)).unwrap();
        folder.check().unwrap();
        assert!(DataFolder::open(&path).unwrap().lock().is_err(), "the lock was not taken again");
        // Another runtime was faster.
        let taken = fs::File::create(path.join("other")).unwrap();
        taken.try_lock().unwrap();
        fs::rename(path.join("other"), path.join(LOCK)).unwrap();
        assert!(matches!(folder.check(), Err(FolderError::Taken(_))));
        drop(taken);
        folder.check().unwrap();
        fs::rename(&path, parent.path().join("moved")).unwrap();
        assert!(matches!(folder.check(), Err(FolderError::Replaced(_))));
        fs::create_dir(&path).unwrap();
        assert!(matches!(folder.check(), Err(FolderError::Replaced(_))));
        fs::remove_dir(&path).unwrap();
        fs::rename(parent.path().join("moved"), &path).unwrap();
        folder.check().unwrap();
    }
}
