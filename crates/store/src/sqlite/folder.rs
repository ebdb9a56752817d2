//! The store's folder: who may open it, and the files in it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::StoreError;

/// How long to wait for the folder's lock. Its last holder may be about to end; and a process that it started holds, from its fork until
/// its program begins, all that was open then.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How long to wait between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

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
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked { path: dir.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(StoreError::io(&path, error)),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_given_up_in_time_is_waited_for_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(StoreError::Locked { .. })));
        let waiting = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lock(dir.path()));
            std::thread::sleep(LOCK_PATIENCE / 10);
            drop(held);
            waiting.join().unwrap()
        });
        assert!(waiting.is_ok());
    }

    /// Between its fork and its program a new process holds what was open, the lock among it.
    #[cfg(unix)]
    #[test]
    fn processes_that_start_meanwhile_keep_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        let ended = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                        std::process::Command::new("true").status().unwrap();
                    }
                });
            }
            let locked: Vec<_> = (0..2000).map(|_| lock(dir.path()).map(drop)).collect();
            ended.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(locked.iter().all(Result::is_ok), "{:?}", locked.iter().find(|locked| locked.is_err()));
        });
    }
}
