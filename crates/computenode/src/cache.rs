//! Keeps what was fetched within its room.

use std::io;
use std::time::SystemTime;

use artifact::BlobStore;

/// Removes the files that were fetched first until the others take no more than `limit` bytes.
///
/// Nothing may read from the store meanwhile. A folder of which a file is removed is fetched again when it is needed.
pub(crate) async fn trim(store: &BlobStore, limit: u64) -> io::Result<()> {
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
        store.remove(&digest).await?;
        tracing::info!(%digest, size, "fetched file removed: no more room");
        total -= size;
    }
    Ok(())
}
