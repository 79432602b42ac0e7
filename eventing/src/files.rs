//! Finds manifests in files and folders, and reads their text.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A file or folder that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", .path.display())]
pub struct FilesError {
    /// The file or folder.
    pub path: PathBuf,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// Names and texts of the given files, and of the manifests (`.yaml`, `.yml`) in the given folders.
pub fn read(paths: &[PathBuf]) -> Result<Vec<(String, String)>, FilesError> {
    let mut texts = Vec::new();
    for path in paths {
        let files = match path.is_dir() {
            true => folder(path)?.into_iter().filter(|file| is_manifest(file)).collect(),
            false => vec![path.clone()],
        };
        for file in files {
            let text =
                fs::read_to_string(&file).map_err(|source| FilesError { path: file.clone(), source })?;
            texts.push((file.display().to_string(), text));
        }
    }
    Ok(texts)
}

/// The entries of a folder, sorted.
pub fn folder(path: &Path) -> Result<Vec<PathBuf>, FilesError> {
    let inside = || fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    let mut inside = inside().map_err(|source| FilesError { path: path.to_owned(), source })?;
    inside.sort();
    Ok(inside)
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}
