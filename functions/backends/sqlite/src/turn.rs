//! Whose turn it is to write, among processes: two advisory file locks that the kernel frees when their holder dies.
//! SQLite's own busy handler sleeps and tries again, which is slow and lets the quickest process win for ever.

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::Error;

/// The locks in front of a database file.
pub(crate) struct Turn {
    path: PathBuf,
    locks: Arc<Locks>,
}

struct Locks {
    /// Held only while waiting for `writing`: who just wrote queues behind who waits.
    next: File,
    /// Held while writing.
    writing: File,
}

/// The turn; dropping it gives it on.
pub(crate) struct Held(Arc<Locks>);

impl Turn {
    pub(crate) fn of(database: &Path) -> Result<Self, Error> {
        let file = |suffix: &str| {
            let mut path = database.as_os_str().to_owned();
            path.push(suffix);
            let path = PathBuf::from(path);
            let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
            opened.map_err(|source| Error::Io { path, source })
        };
        let locks = Locks { next: file("-next")?, writing: file("-lock")? };
        Ok(Self { path: database.to_owned(), locks: Arc::new(locks) })
    }

    /// Waits for the turn; the caller sees to it that its process asks once at a time.
    pub(crate) async fn take(&self) -> Result<Held, Error> {
        let held = Held(self.locks.clone());
        let taken = match self.locks.try_take() {
            Err(TryLockError::WouldBlock) => {
                // Held by another process: waiting blocks a thread. When the caller goes away meanwhile,
                // `held` is dropped by the thread, and with it the lock.
                let waiting = tokio::task::spawn_blocking(move || held.0.take().map(|()| held));
                return waiting.await?.map_err(|source| Error::Io { path: self.path.clone(), source });
            }
            Err(TryLockError::Error(source)) => Err(source),
            Ok(()) => Ok(held),
        };
        taken.map_err(|source| Error::Io { path: self.path.clone(), source })
    }
}

impl Locks {
    fn try_take(&self) -> Result<(), TryLockError> {
        self.next.try_lock()?;
        let taken = self.writing.try_lock();
        self.next.unlock().map_err(TryLockError::Error)?;
        taken
    }

    fn take(&self) -> std::io::Result<()> {
        self.next.lock()?;
        let taken = self.writing.lock();
        self.next.unlock()?;
        taken
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Unlocking fails only for a file that is no file.
        let _ = self.0.writing.unlock();
    }
}
