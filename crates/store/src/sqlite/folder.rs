//! The store's folder: who may open it, and the files in it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use crate::StoreError;

/// Makes the folder where there is none, and locks it for this process until the file is dropped.
pub(super) fn lock(dir: &Path) -> Result<File, StoreError> {
    if !dir.is_dir() {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(dir).map_err(|error| StoreError::io(dir, error))?;
    }
    let path = dir.join("relay.lock");
    let file = open_private(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(StoreError::io(&path, error)),
    }
}

/// The database's path. The file is there afterwards, readable by its owner only, for it holds secrets; SQLite gives the files
/// beside it the same permissions.
pub(super) fn database(dir: &Path) -> Result<PathBuf, StoreError> {
    let path = dir.join("relay.db");
    open_private(&path)?;
    Ok(path)
}

/// Makes the names of new files in the folder durable.
pub(super) fn sync(dir: &Path) -> Result<(), StoreError> {
    #[cfg(unix)]
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| StoreError::io(dir, error))?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}

fn open_private(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(|error| StoreError::io(path, error))
}
