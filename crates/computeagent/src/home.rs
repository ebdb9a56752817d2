//! The data folder: the lock that keeps a second agent out, and the host's id.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use daemon::private_file;
use taskmarket::{B256, Bytes32};

/// An open data folder. The lock lasts as long as this, and ends with the process however that ends.
#[derive(Debug)]
pub(crate) struct Home {
    /// Who this host is to relays.
    pub(crate) node_id: Bytes32,
    /// Where the journal lies.
    pub(crate) attempts: PathBuf,
    /// Is there while the relay was told that the host drains.
    draining: PathBuf,
    _lock: File,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Another agent uses it.
    #[error(
        "another agent uses the data folder {}\nhint: stop it first, or give this one a folder of its own with --data", path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// Something in it cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file with the node id holds something else.
    #[error(
        "{} holds no node id (0x and 64 hex digits)\nhint: restore it, or remove it for a new one", path.display()
    )]
    NodeId {
        /// The file.
        path: PathBuf,
    },
}

impl Home {
    /// Opens a data folder, making it and the node id on first use.
    pub(crate) fn open(path: &Path) -> Result<Self, HomeError> {
        let attempts = path.join("attempts");
        make_folder(&attempts).map_err(|source| HomeError::Io {
            action: "create",
            path: attempts.clone(),
            source,
        })?;
        let lock = lock(path)?;
        let node_id = node_id(&path.join("node-id"))?;
        Ok(Self { node_id, attempts, draining: path.join("draining"), _lock: lock })
    }

    /// Whether the relay was told last that the host drains.
    pub(crate) fn was_draining(&self) -> bool {
        self.draining.exists()
    }

    /// Notes what the relay is told.
    pub(crate) fn note_draining(&self, draining: bool) -> io::Result<()> {
        if draining {
            return private_file::create(&self.draining, b"");
        }
        match fs::remove_file(&self.draining) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn lock(folder: &Path) -> Result<File, HomeError> {
    let path = folder.join("lock");
    let failed = |source| HomeError::Io { action: "lock", path: path.clone(), source };
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(HomeError::InUse { path: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn node_id(path: &Path) -> Result<Bytes32, HomeError> {
    match fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map_err(|_| HomeError::NodeId { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = Bytes32(B256::from(rand::random::<[u8; 32]>()));
            private_file::create_new(path, format!("{id}\n").as_bytes()).map_err(|source| HomeError::Io {
                action: "create",
                path: path.to_owned(),
                source,
            })?;
            Ok(id)
        }
        Err(source) => Err(HomeError::Io { action: "read", path: path.to_owned(), source }),
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_id_stays_and_a_second_agent_is_kept_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let first = Home::open(&path).unwrap();
        let error = Home::open(&path).unwrap_err();
        assert!(matches!(error, HomeError::InUse { .. }), "{error}");
        let id = first.node_id;
        drop(first);
        assert_eq!(Home::open(&path).unwrap().node_id, id);
        fs::write(path.join("node-id"), "0x12").unwrap();
        assert!(matches!(Home::open(&path), Err(HomeError::NodeId { .. })));
    }
}
