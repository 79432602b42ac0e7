//! The runtime's own log file. Opened anew when it was rotated or removed, so that no line goes into a file without a
//! name; a disk that is full loses lines and nothing else.

use std::{
    fs::{File, OpenOptions, create_dir_all},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Appends lines to the file that currently has the path. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LogFile(Arc<State>);

struct State {
    path: PathBuf,
    file: Mutex<File>,
}

impl LogFile {
    /// Opens the file, and makes its folder.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let file = Mutex::new(append(&path)?);
        Ok(Self(Arc::new(State { path, file })))
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let State { path, file } = &*self.0;
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        if !has_name(&file, path) {
            *file = append(path)?;
        }
        file.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        create_dir_all(folder)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// Whether the path still names the open file.
pub(crate) fn has_name(file: &File, path: &Path) -> bool {
    let same = || Some(identity(&file.metadata().ok()?) == identity(&path.metadata().ok()?));
    same().unwrap_or(false)
}

/// Device and inode, which tell a file or folder from another of the same name.
pub(crate) fn identity(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_log_that_was_rotated_or_removed_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/runtime.log");
        let mut log = LogFile::open(path.clone()).unwrap();
        log.write_all(b"one\n").unwrap();
        fs::rename(&path, folder.path().join("old.log")).unwrap();
        log.write_all(b"two\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        log.write_all(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
    }
}
