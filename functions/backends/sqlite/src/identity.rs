//! Detects whether the open files are still the ones at their paths. A removed file keeps accepting writes that nobody
//! can read again.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::Error;

/// Device and inode of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId(u64, u64);

impl FileId {
    /// The file at the path now.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|file| Self::of(&file))
    }

    pub(crate) fn of(file: &fs::Metadata) -> Self {
        Self(file.dev(), file.ino())
    }

    /// Fails, naming the file, if the path holds another file or none.
    pub(crate) fn check(self, path: &Path) -> Result<(), Error> {
        let gone = |kind, why: &str| {
            Err(Error::Io { path: path.to_owned(), source: io::Error::new(kind, why.to_owned()) })
        };
        match Self::at(path) {
            Ok(found) if found == self => Ok(()),
            Ok(_) => gone(
                io::ErrorKind::StaleNetworkFileHandle,
                "another file took its place while the program ran; restart the program to use it",
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => gone(
                io::ErrorKind::NotFound,
                "it was removed while the program ran; put it back, or restart the program to begin anew",
            ),
            Err(source) => Err(Error::Io { path: path.to_owned(), source }),
        }
    }
}

/// The database file and the two that SQLite keeps beside it while it is open.
#[derive(Debug)]
pub(crate) struct Files {
    database: (PathBuf, FileId),
    beside: Vec<(PathBuf, FileId)>,
}

impl Files {
    /// Records which files are at the paths. Call it while a connection is open.
    pub(crate) fn note(database: &Path) -> Result<Self, Error> {
        let id = FileId::at(database).map_err(|source| Error::Io { path: database.to_owned(), source })?;
        let mut files = Self { database: (database.to_owned(), id), beside: Vec::new() };
        files.note_beside();
        Ok(files)
    }

    /// Records the files beside the database again. Call it while a connection is open.
    pub(crate) fn note_beside(&mut self) {
        let paths = ["-wal", "-shm"].map(|suffix| beside(&self.database.0, suffix));
        self.beside =
            paths.into_iter().filter_map(|path| FileId::at(&path).ok().map(|id| (path, id))).collect();
    }

    /// Expects only the database file, because SQLite removes the others with the last connection.
    pub(crate) fn forget_beside(&mut self) {
        self.beside.clear();
    }

    /// Fails, naming the file, if one of them was removed or replaced.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let mut files = std::iter::once(&self.database).chain(&self.beside);
        files.try_for_each(|(path, id)| id.check(path))
    }
}

/// The path of a file beside the database.
pub(crate) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}
