//! Keeps what was fetched within its room, without what running attempts read.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use artifact::BlobStore;

/// The files that attempts read from at this moment. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct InUse(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// How many attempts read each file.
    readers: Mutex<HashMap<PathBuf, usize>>,
    /// Held while one file is looked up and removed, or some are looked up and taken into use.
    turn: tokio::sync::Mutex<()>,
}

/// Files that stay until this is dropped.
pub(crate) struct Kept {
    in_use: InUse,
    files: Vec<PathBuf>,
}

impl InUse {
    /// Keeps `files` from being removed. `None` says that one of them has gone already.
    pub(crate) async fn keep(&self, files: Vec<PathBuf>) -> Option<Kept> {
        let _turn = self.0.turn.lock().await;
        for file in &files {
            if !tokio::fs::try_exists(file).await.unwrap_or(false) {
                return None;
            }
        }
        let mut readers = self.readers();
        for file in &files {
            *readers.entry(file.clone()).or_default() += 1;
        }
        drop(readers);
        Some(Kept { in_use: self.clone(), files })
    }

    fn holds(&self, file: &Path) -> bool {
        self.readers().contains_key(file)
    }

    fn readers(&self) -> MutexGuard<'_, HashMap<PathBuf, usize>> {
        // Each count is whole after every statement that changes it.
        self.0.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut readers = self.in_use.readers();
        for file in &self.files {
            if let Some(count) = readers.get_mut(file) {
                *count -= 1;
                if *count == 0 {
                    readers.remove(file);
                }
            }
        }
    }
}

/// Removes the files that were fetched first until the others take no more than `limit` bytes, except those in use.
///
/// A folder of which a file is removed is fetched again when it is needed.
pub(crate) async fn trim(store: &BlobStore, limit: u64, in_use: &InUse) -> io::Result<()> {
    let mut blobs = Vec::new();
    let mut total = 0u64;
    for (digest, size) in store.list().await? {
        let metadata = tokio::fs::metadata(store.path(&digest)).await?;
        // Where the file system does not tell, the file counts as oldest.
        blobs.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), digest, size));
        total = total.saturating_add(size);
    }
    blobs.sort_unstable_by_key(|(fetched_at, digest, _)| (*fetched_at, digest.0));
    for (_, digest, size) in blobs {
        if total <= limit {
            break;
        }
        let _turn = in_use.0.turn.lock().await;
        if in_use.holds(&store.path(&digest)) {
            continue;
        }
        store.remove(&digest).await?;
        tracing::info!(%digest, size, "fetched file removed: no more room");
        total -= size;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_read_stays_and_the_rest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path()).unwrap();
        let mut digests = Vec::new();
        for content in [b"first-", b"second", b"third-"] {
            digests.push(store.put_bytes(content, None).await.unwrap().0);
        }
        let exist = || [0, 1, 2].map(|index| store.path(&digests[index]).exists());
        let in_use = InUse::default();
        let read = in_use.keep(vec![store.path(&digests[1])]).await.unwrap();
        let read_too = in_use.keep(vec![store.path(&digests[1])]).await.unwrap();

        trim(&store, 0, &in_use).await.unwrap();
        assert_eq!(exist(), [false, true, false]);
        assert!(in_use.keep(vec![store.path(&digests[0])]).await.is_none(), "it has gone");
        drop(read);
        trim(&store, 0, &in_use).await.unwrap();
        assert_eq!(exist(), [false, true, false]);
        drop(read_too);
        trim(&store, 0, &in_use).await.unwrap();
        assert_eq!(exist(), [false, false, false]);
    }
}
