//! Artifacts: models, inputs and results, each stored under the SHA-256 of its bytes.
//!
//! The bytes are in a folder or a bucket ([`objects`]), what is known of them is in the relay's store: whose they are, how large, and
//! when they were used last. An artifact counts as stored only with both; [`cleaning`] removes what was not used for long and what has
//! lost its other half, but nothing that an unfinished task may need ([`named`]).

mod cleaning;
mod location;
mod named;
mod objects;
mod resume;
mod space;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use artifact::Digest;
use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::BoxStream;
use store::{Added, ArtifactMeta, KeyId, NewArtifact, Store, StoreError};
use taskmarket::{B256, ContentHash, Task, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

pub use location::{ArtifactLocation, ParseLocationError};
pub(crate) use named::{Folders, named_by};
use objects::{Objects, Partial};
pub(crate) use resume::{Account, Room, Upload, Uploader};
use resume::{BrokenOff, UnderWay};
pub(crate) use space::Space;
use space::Spaces;

/// How long an upload waits for a place among those that are under way.
const PLACE_PATIENCE: Duration = Duration::from_secs(10);
/// How exactly it is known when an artifact was used last: uses within this time of one that was noted are not noted.
pub(crate) const USE_GRAIN: Duration = Duration::from_secs(60 * 60);
/// Artifacts whose use is known to have been noted. Each takes some 50 bytes; beyond it the noting begins anew.
const MAX_NOTED: usize = 65_536;

/// The artifacts of a relay. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Artifacts(Arc<Inner>);

struct Inner {
    objects: Objects,
    store: Arc<dyn Store>,
    quota: Option<u64>,
    /// Places for uploads.
    places: Arc<Semaphore>,
    spaces: Arc<Spaces>,
    broken_off: BrokenOff,
    folders: Folders,
    noted: Mutex<HashMap<Digest, Instant>>,
}

/// Why artifacts cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    /// What is known of them cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Their bytes cannot.
    #[error("the artifacts' store failed: {0}")]
    Objects(#[from] object_store::Error),
    /// A file cannot.
    #[error("an artifact cannot be read: {0}")]
    Io(#[from] std::io::Error),
}

/// Why an artifact was not stored. Nothing of it is kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutError {
    /// The bytes are not the ones that were announced.
    #[error("the SHA-256 of the bytes is {actual}, not {expected}")]
    HashMismatch {
        /// The announced.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// More bytes than permitted.
    #[error("larger than the permitted {limit} bytes")]
    TooLarge {
        /// How many are permitted.
        limit: u64,
    },
    /// The source of the bytes failed before its end.
    #[error("the bytes broke off: {0}")]
    Source(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The key would store too much.
    #[error(
        "an API key may store {quota} bytes, and this one stores {stored} already: what is not used any more makes room in time"
    )]
    OverQuota {
        /// What it may store, in bytes.
        quota: u64,
        /// What it stores.
        stored: u64,
    },
    /// Too many uploads are under way.
    #[error("too many artifacts are being stored at once")]
    Busy,
    /// The old bytes are being removed at this moment.
    #[error("the artifact was not used for long, and is being removed: store it again in a moment")]
    Doomed,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] BlobError),
}

impl From<StoreError> for PutError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.into())
    }
}

/// An artifact's bytes, being read.
pub(crate) type Pieces = BoxStream<'static, Result<Bytes, BlobError>>;

impl Artifacts {
    /// Opens the artifacts at a location. No key may store more than `quota` bytes; none is larger than `max_bytes`.
    ///
    /// # Errors
    /// The folder cannot be made, or the bucket cannot be listed.
    pub(crate) async fn open(
        location: &ArtifactLocation,
        store: Arc<dyn Store>,
        quota: Option<u64>,
        max_bytes: u64,
    ) -> anyhow::Result<Self> {
        Ok(Self::over(Objects::open(location, max_bytes).await?, store, quota))
    }

    fn over(objects: Objects, store: Arc<dyn Store>, quota: Option<u64>) -> Self {
        let places = Arc::new(Semaphore::new(objects.max_uploads));
        let (spaces, broken_off) = (Arc::default(), BrokenOff::default());
        let (folders, noted) = (Folders::default(), Mutex::default());
        Self(Arc::new(Inner { objects, store, quota, places, spaces, broken_off, folders, noted }))
    }

    /// The size of an artifact in bytes; `None` if it is not stored.
    ///
    /// # Errors
    /// A store cannot be read.
    pub(crate) async fn size_of(&self, digest: &Digest) -> Result<Option<u64>, BlobError> {
        let Some(meta) = self.meta(digest).await? else { return Ok(None) };
        let size = self.0.objects.size_of(digest).await?;
        // A file that the disk has cut short is not the artifact.
        Ok(size.filter(|size| *size == meta.size))
    }

    /// Whether an artifact is stored.
    ///
    /// # Errors
    /// A store cannot be read.
    pub(crate) async fn contains(&self, digest: &Digest) -> Result<bool, BlobError> {
        Ok(self.size_of(digest).await?.is_some())
    }

    /// The bytes of an artifact from `from` to before `to`, both within its size; `None` if it has just gone.
    ///
    /// # Errors
    /// They cannot be read.
    pub(crate) async fn read(
        &self,
        digest: &Digest,
        from: u64,
        to: u64,
    ) -> Result<Option<Pieces>, BlobError> {
        self.0.objects.read(digest, from, to).await
    }

    /// The files that a folder's manifest lists, by this manifest's digest; none if it is not stored or no manifest.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) async fn files_of(&self, folder: Digest) -> Result<named::Files, BlobError> {
        self.0.folders.files_of(self, folder).await
    }

    /// Opens an account for bytes that a key is about to store.
    ///
    /// # Errors
    /// The key stores too much already, or would with the bytes that it declares; or the store fails.
    pub(crate) async fn reserve(&self, owner: &KeyId, declared: Option<u64>) -> Result<Space, PutError> {
        let Some(quota) = self.0.quota else { return Ok(Space::unbounded()) };
        let stored = self.0.store.stored_bytes(owner).await?;
        let space = Space::new(Arc::clone(&self.0.spaces), owner.clone(), quota.saturating_sub(stored));
        // The least that can come where nothing is declared is one byte.
        if space.has_room(declared.unwrap_or(1)) {
            Ok(space)
        } else {
            Err(PutError::OverQuota { quota, stored })
        }
    }

    /// Begins an upload that is charged to an account.
    pub(crate) fn begin(&self, digest: Digest, uploader: Uploader, room: Room) -> Upload {
        Upload::new(self.0.objects.begin(digest), uploader, room)
    }

    /// Stores what comes of an upload under its digest, and answers when both the bytes and what is known of them are durable. A key's
    /// quota holds; what an attempt stores only counts. What broke off is kept for a while, to be taken up.
    ///
    /// # Errors
    /// As [`PutError`] says.
    pub(crate) async fn put_upload<E>(
        &self,
        upload: Upload,
        source: impl Stream<Item = Result<Bytes, E>>,
        digest: Digest,
        limit: u64,
    ) -> Result<(), PutError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let _place = self.place().await?;
        let upload = UnderWay::new(self, digest, upload).take_in(source, limit).await?;
        let (room, uploader) = (upload.room(), upload.uploader);
        self.finish(upload.partial, digest, uploader.owner().clone(), uploader.is_bounded()).await?;
        room.lock().unwrap_or_else(PoisonError::into_inner).stored(digest);
        Ok(())
    }

    async fn finish(
        &self,
        partial: Partial,
        digest: Digest,
        owner: KeyId,
        bounded: bool,
    ) -> Result<(), PutError> {
        let size = partial.finish().await?;
        let quota = self.0.quota.filter(|_| bounded);
        let (hash, at) = (hash_of(digest), now());
        let new = NewArtifact { digest: hash, size, owner: owner.clone(), at };
        match self.0.store.add_artifact(new, quota).await? {
            Added::New | Added::Known => {}
            Added::Doomed => return Err(PutError::Doomed),
            Added::OverQuota => {
                self.remove_stray(digest).await?;
                let stored = self.0.store.stored_bytes(&owner).await?;
                return Err(PutError::OverQuota { quota: quota.unwrap_or_default(), stored });
            }
        }
        // A removal that had begun before may have taken the new bytes with the old; no other can begin now.
        if self.0.objects.size_of(&digest).await? == Some(size) { Ok(()) } else { Err(PutError::Doomed) }
    }

    /// Notes that an artifact was used.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) async fn note_use(&self, digest: Digest) -> Result<(), BlobError> {
        self.note_uses([digest]).await
    }

    /// Notes that a task which is about to be published uses what it names, so that none of it goes before the task is seen.
    ///
    /// # Errors
    /// A store cannot be read or written.
    pub(crate) async fn note_task(&self, task: &Task) -> Result<(), BlobError> {
        for (digest, is_folder) in named_by(task) {
            if self.is_noted(&digest) {
                continue;
            }
            if is_folder {
                let files = self.files_of(digest).await?;
                self.note_uses(files.iter().copied()).await?;
            }
            // The folder after its files: noted, it stands for them.
            self.note_use(digest).await?;
        }
        Ok(())
    }

    /// Lets uploads that were broken off be cleared away.
    pub(crate) async fn close(&self) {
        self.0.broken_off.clear();
        self.0.objects.close().await;
    }

    async fn note_uses(&self, digests: impl IntoIterator<Item = Digest>) -> Result<(), BlobError> {
        let at = now();
        let (mut used, mut seen) = (Vec::new(), Vec::new());
        for digest in digests {
            if self.is_noted(&digest) {
                continue;
            }
            let meta = self.meta(&digest).await?;
            if meta.is_some_and(|meta| at.since(meta.used_at) >= USE_GRAIN.as_secs() / 2) {
                used.push(hash_of(digest));
            }
            seen.push(digest);
        }
        if !used.is_empty() {
            self.0.store.use_artifacts(used, at).await?;
        }
        let mut noted = self.noted();
        if noted.len() + seen.len() > MAX_NOTED {
            noted.clear();
        }
        noted.extend(seen.into_iter().map(|digest| (digest, Instant::now())));
        Ok(())
    }

    fn is_noted(&self, digest: &Digest) -> bool {
        self.noted().get(digest).is_some_and(|at| at.elapsed() < USE_GRAIN / 2)
    }

    fn noted(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Instant>> {
        self.0.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn meta(&self, digest: &Digest) -> Result<Option<ArtifactMeta>, StoreError> {
        self.0.store.artifact(hash_of(*digest)).await
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit, PutError> {
        match timeout(PLACE_PATIENCE, Arc::clone(&self.0.places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(PutError::Busy),
        }
    }
}

fn hash_of(digest: Digest) -> ContentHash {
    ContentHash(B256::from(digest.0))
}

fn digest_of(hash: ContentHash) -> Digest {
    Digest(hash.0.0)
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(since.as_secs())
}
