//! The write lock between processes: two advisory file locks that the kernel releases when their holder dies. SQLite's
//! own busy handler sleeps and retries, which is slow and unfair.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    Error,
    identity::{FileId, beside},
};

/// The write lock of a database file.
pub(crate) struct WriteLock {
    database: PathBuf,
    files: Mutex<Arc<LockFiles>>,
}

struct LockFiles {
    /// Held only while waiting for `writing`, so that a process that just wrote queues behind those that wait.
    next: File,
    /// Held while writing.
    writing: File,
}

/// The lock guard; dropping it unlocks.
pub(crate) struct WriteGuard(Arc<LockFiles>);

impl WriteLock {
    /// Opens the lock files beside the database, creating missing ones.
    pub(crate) fn of(database: &Path) -> Result<Self, Error> {
        let files = Mutex::new(Arc::new(LockFiles::open(database)?));
        Ok(Self { database: database.to_owned(), files })
    }

    /// Waits for the lock. One caller at a time per process, and never cancelled.
    pub(crate) async fn acquire(&self) -> Result<WriteGuard, Error> {
        loop {
            let files = self.files.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let guard = self.lock(files).await?;
            if guard.0.are_at_their_paths(&self.database).map_err(|source| self.fault(source))? {
                return Ok(guard);
            }
            // A lock file was removed, so others lock a new one: follow them. If both were held for a moment, `BEGIN
            // IMMEDIATE` still admits one writer.
            let reopened = Arc::new(LockFiles::open(&self.database)?);
            *self.files.lock().unwrap_or_else(PoisonError::into_inner) = reopened;
        }
    }

    async fn lock(&self, files: Arc<LockFiles>) -> Result<WriteGuard, Error> {
        let guard = WriteGuard(files);
        match guard.0.try_lock() {
            Ok(()) => Ok(guard),
            Err(TryLockError::WouldBlock) => {
                // Held by another process: block a thread.
                let waiting = tokio::task::spawn_blocking(move || guard.0.lock().map(|()| guard));
                waiting.await?.map_err(|source| self.fault(source))
            }
            Err(TryLockError::Error(source)) => Err(self.fault(source)),
        }
    }

    fn fault(&self, source: io::Error) -> Error {
        Error::Io { path: beside(&self.database, "-lock"), source }
    }
}

impl LockFiles {
    fn open(database: &Path) -> Result<Self, Error> {
        let file = |suffix: &str| {
            let path = beside(database, suffix);
            let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
            opened.map_err(|source| Error::Io { path, source })
        };
        Ok(Self { next: file("-next")?, writing: file("-lock")? })
    }

    fn are_at_their_paths(&self, database: &Path) -> io::Result<bool> {
        for (file, suffix) in [(&self.next, "-next"), (&self.writing, "-lock")] {
            let opened = FileId::of(&file.metadata()?);
            match FileId::at(&beside(database, suffix)) {
                Ok(found) if found == opened => {}
                Ok(_) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn try_lock(&self) -> Result<(), TryLockError> {
        self.next.try_lock()?;
        let locked = self.writing.try_lock();
        self.next.unlock().map_err(TryLockError::Error)?;
        locked
    }

    fn lock(&self) -> io::Result<()> {
        self.next.lock()?;
        let locked = self.writing.lock();
        self.next.unlock()?;
        locked
    }
}

impl Drop for WriteGuard {
    fn drop(&mut self) {
        // Unlocking fails only for a file that is no file.
        let _ = self.0.writing.unlock();
    }
}
