//! The runtime's own log file. Reopened after it was rotated or removed, so that no line goes into an unlinked file. A
//! full disk loses lines and has no other effect.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serving::append_to_log;

/// Writes each line to the file that is at the path now; cheap to clone.
#[derive(Clone)]
pub(crate) struct LogFile(Arc<State>);

struct State {
    path: PathBuf,
    file: Mutex<File>,
}

impl LogFile {
    /// Opens the file; creates its folder.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let file = Mutex::new(append_to_log(&path)?);
        Ok(Self(Arc::new(State { path, file })))
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let State { path, file } = &*self.0;
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        if !has_name(&file, path) {
            *file = append_to_log(path)?;
        }
        file.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether the path still leads to the open file.
pub(crate) fn has_name(file: &File, path: &Path) -> bool {
    let same = || Some(identity(&file.metadata().ok()?) == identity(&path.metadata().ok()?));
    same().unwrap_or(false)
}

/// Identity of a file or folder, which distinguishes it from another one at the same path.
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

    #[test]
    fn a_data_folder_that_was_removed_does_not_come_back_empty() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        let mut log = LogFile::open(data.join("logs/runtime.log")).unwrap();
        fs::rename(&data, folder.path().join("moved")).unwrap();
        assert!(log.write_all(b"lost\n").is_err());
        assert!(!data.exists());
    }
}
