//! The blob store: a folder of files named by the SHA-256 of their bytes.
//!
//! A blob lies at `ab/cdef…`. It is written under `tmp/`, synced, and renamed into place, so a file in
//! place is always whole; what a crash left under `tmp/` is removed when the store is opened. Several
//! processes may use one store: each holds a shared lock, and the clearing is done only by one that finds itself alone.
//! After a crash the blobs are not believed unread, in case the disk lost what it had promised to hold.

use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use crate::cache::Life;
use crate::digest::{Digest, Hasher};
use crate::room::{ExtendError, Promise, Room};

/// How much of a file is copied at a time.
const COPY_BYTES: usize = 256 * 1024;

/// How much room is made at a time ahead of the bytes that came. What a source announces is its word alone: room for all of it
/// would let one that sends nothing remove every blob, and keep other blobs out.
const ROOM_BYTES: u64 = 64 << 20;

/// A store of blobs. Cheap to clone; all clones are the same store.
#[derive(Debug, Clone)]
pub struct BlobStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// Held (shared) as long as the store is open: it keeps others from clearing `tmp/`.
    _lock: std::fs::File,
    life: Life,
    room: Room,
}

/// How much a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// The number of blobs.
    pub blobs: u64,
    /// Their bytes, without what the file system adds.
    pub bytes: u64,
}

/// Why a blob was not stored; nothing of it was kept.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The bytes are not the ones that were announced.
    #[error("the SHA-256 of the bytes is {actual}, not {expected}")]
    #[allow(missing_docs)]
    HashMismatch { expected: Digest, actual: Digest },
    /// More bytes than permitted.
    #[error("larger than the permitted {limit} bytes")]
    #[allow(missing_docs)]
    TooLarge { limit: u64 },
    /// The store's bound leaves no room beside the blobs that are in use and being written.
    #[error("no room for {needed} bytes beside the files in use within the store's {limit}")]
    #[allow(missing_docs)]
    CacheBusy { needed: u64, limit: u64 },
    /// The source of the bytes failed before its end.
    #[error("the bytes broke off: {0}")]
    Source(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store's file system failed.
    #[error("{}: {source}", path.display())]
    #[allow(missing_docs)]
    Io { path: PathBuf, source: io::Error },
}

impl PutError {
    /// The stable name of the error, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::HashMismatch { .. } => "hash_mismatch",
            Self::TooLarge { .. } => "too_large",
            Self::CacheBusy { .. } => "cache_busy",
            Self::Source(_) => "interrupted",
            Self::Io { .. } => "io",
        }
    }
}

impl BlobStore {
    /// Opens the store in the folder `dir`, which is made if it does not exist, and removes what writes
    /// left unfinished unless another process is using the store. Blocks on the file system.
    pub fn open(dir: impl Into<PathBuf>) -> io::Result<Self> {
        Self::open_with(dir.into(), Room::default())
    }

    /// As [`BlobStore::open`]; before bytes are written, blobs that nobody uses go, those that were used longest ago first, so that all
    /// take no more than `limit` bytes. What this process is writing counts, what others write does not.
    pub fn open_bounded(dir: impl Into<PathBuf>, limit: u64) -> io::Result<Self> {
        Self::open_with(dir.into(), Room::bounded(limit))
    }

    fn open_with(root: PathBuf, room: Room) -> io::Result<Self> {
        std::fs::create_dir_all(root.join("tmp"))?;
        let lock =
            std::fs::File::options().create(true).truncate(false).write(true).open(root.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => clear(&root.join("tmp"))?,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(e)) => return Err(e),
        }
        lock.lock_shared()?;
        let life = Life::begin(&root)?;
        Ok(Self { inner: Arc::new(Inner { root, _lock: lock, life, room }) })
    }

    /// Stores the bytes of `source` and answers with their digest and length, once they are durable. When
    /// `expected` is given the bytes must have that digest.
    ///
    /// # Errors
    /// See [`PutError`]; on any of them nothing is kept, and when the call is dropped nothing that is not whole.
    pub async fn put<E>(
        &self,
        source: impl Stream<Item = Result<Bytes, E>>,
        expected: Option<Digest>,
        max_bytes: u64,
    ) -> Result<(Digest, u64), PutError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut source = pin!(source);
        let mut partial = self.partial(max_bytes).await?;
        while let Some(piece) = source.next().await {
            partial.write(&piece.map_err(|e| PutError::Source(e.into()))?).await?;
        }
        partial.finish(expected).await
    }

    /// Stores bytes that are in memory, as [`BlobStore::put`] does.
    pub async fn put_bytes(&self, bytes: &[u8], expected: Option<Digest>) -> Result<(Digest, u64), PutError> {
        let mut partial = self.partial(bytes.len() as u64).await?;
        partial.write(bytes).await?;
        partial.finish(expected).await
    }

    /// Stores a copy of the file at `path`, as [`BlobStore::put`] does.
    pub async fn put_file(
        &self,
        path: &Path,
        expected: Option<Digest>,
        max_bytes: u64,
    ) -> Result<(Digest, u64), PutError> {
        let failed = |e: io::Error| PutError::Source(format!("{}: {e}", path.display()).into());
        let mut file = File::open(path).await.map_err(failed)?;
        let mut partial = self.partial(max_bytes).await?;
        let mut piece = vec![0; COPY_BYTES];
        loop {
            match file.read(&mut piece).await.map_err(failed)? {
                0 => return partial.finish(expected).await,
                n => partial.write(&piece[..n]).await?,
            }
        }
    }

    /// Opens a blob for reading and tells its length in bytes; `None` if the store does not have it.
    pub async fn open_blob(&self, digest: &Digest) -> io::Result<Option<(File, u64)>> {
        if !self.is_trusted(digest).await? {
            return Ok(None);
        }
        let file = match File::open(self.path(digest)).await {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let size = file.metadata().await?.len();
        Ok(Some((file, size)))
    }

    /// The length of a blob in bytes; `None` if the store does not have it.
    pub async fn size_of(&self, digest: &Digest) -> io::Result<Option<u64>> {
        match tokio::fs::metadata(self.path(digest)).await {
            Ok(metadata) => Ok(self.is_trusted(digest).await?.then_some(metadata.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether the store has the blob.
    pub async fn contains(&self, digest: &Digest) -> io::Result<bool> {
        Ok(self.size_of(digest).await?.is_some())
    }

    /// Where the blob lies if the store has it. Others must only read there.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        path_in(self.root(), digest)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.inner.root
    }

    pub(crate) fn life(&self) -> &Life {
        &self.inner.life
    }

    pub(crate) fn room(&self) -> &Room {
        &self.inner.room
    }

    /// Removes a blob and tells whether it was there. Who has it open can read on.
    pub async fn remove(&self, digest: &Digest) -> io::Result<bool> {
        match tokio::fs::remove_file(self.path(digest)).await {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// All blobs with their lengths in bytes, in no order. Files that are not blobs are passed over.
    pub async fn list(&self) -> io::Result<Vec<(Digest, u64)>> {
        let root = self.inner.root.clone();
        let listed = blocking(move || list_blobs(&root)).await?;
        Ok(listed.into_iter().map(|(digest, metadata)| (digest, metadata.len())).collect())
    }

    /// How much the store holds.
    pub async fn usage(&self) -> io::Result<Usage> {
        let add = |u: Usage, (_, size): (Digest, u64)| Usage { blobs: u.blobs + 1, bytes: u.bytes + size };
        Ok(self.list().await?.into_iter().fold(Usage::default(), add))
    }

    /// Begins a blob whose bytes arrive in pieces.
    pub(crate) async fn partial(&self, max_bytes: u64) -> Result<Partial, PutError> {
        let path = self.inner.root.join("tmp").join(format!("{:016x}", rand::random::<u64>()));
        let temporary = path.clone();
        // The file and its guard are made together: a caller that goes away meanwhile leaves neither.
        let create = move || {
            let file = std::fs::File::options().write(true).create_new(true).open(&temporary)?;
            Ok((file, Temporary(temporary)))
        };
        let (file, temporary) = blocking(create).await.map_err(|source| PutError::Io { path, source })?;
        let (store, file, promise) = (self.clone(), File::from_std(file), Promise::new(self.clone()));
        Ok(Partial { store, file, temporary, hasher: Hasher::new(), max_bytes, announced: None, promise })
    }
}

/// A blob being written. Dropped before [`Partial::finish`] succeeded, it leaves nothing.
#[derive(Debug)]
pub(crate) struct Partial {
    store: BlobStore,
    file: File,
    temporary: Temporary,
    hasher: Hasher,
    max_bytes: u64,
    /// How many bytes its source says it has.
    announced: Option<u64>,
    /// Dropped last, once the bytes are gone or count as a blob's.
    promise: Promise,
}

/// A file that is removed in the end, unless it was renamed.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Partial {
    /// How many bytes were written so far.
    pub(crate) fn len(&self) -> u64 {
        self.hasher.len()
    }

    /// The digest of what was written so far.
    pub(crate) fn digest(&self) -> Digest {
        self.hasher.digest()
    }

    /// Where it is being written.
    pub(crate) fn path(&self) -> &Path {
        &self.temporary.0
    }

    /// Makes what was written so far readable at [`Partial::path`].
    pub(crate) async fn flush(&mut self) -> Result<(), PutError> {
        self.file.flush().await.map_err(|e| self.failed(e))
    }

    /// Takes note of how many bytes of it there are by its source's word, and sees to it that the store has room for the next of them.
    ///
    /// # Errors
    /// [`PutError::CacheBusy`] where so many could not come in now.
    pub(crate) async fn announce(&mut self, total: u64) -> Result<(), PutError> {
        self.announced = Some(total);
        self.make_room(total, self.len()).await
    }

    /// Makes room ahead of the first `after` bytes, if `needed` could come in.
    async fn make_room(&mut self, needed: u64, after: u64) -> Result<(), PutError> {
        let most = self.announced.unwrap_or(self.max_bytes).max(after);
        let wanted = after.saturating_add(ROOM_BYTES).min(most);
        self.promise.extend(needed, wanted).await.map_err(|error| match error {
            ExtendError::Busy { needed, limit } => PutError::CacheBusy { needed, limit },
            ExtendError::Io(source) => self.failed(source),
        })
    }

    /// Appends a piece.
    pub(crate) async fn write(&mut self, piece: &[u8]) -> Result<(), PutError> {
        let after = self.len().saturating_add(piece.len() as u64);
        if after > self.max_bytes {
            return Err(PutError::TooLarge { limit: self.max_bytes });
        }
        if !self.promise.covers(after) {
            self.make_room(after, after).await?;
        }
        self.hasher.update(piece);
        self.file.write_all(piece).await.map_err(|e| self.failed(e))
    }

    /// Forgets what was written and begins anew.
    pub(crate) async fn reset(&mut self) -> Result<(), PutError> {
        self.hasher = Hasher::new();
        self.announced = None;
        let emptied = async {
            self.file.flush().await?;
            self.file.set_len(0).await?;
            self.file.rewind().await.map(|_| ())
        };
        emptied.await.map_err(|e| self.failed(e))
    }

    /// Puts the blob in its place and answers when it is durable there.
    pub(crate) async fn finish(mut self, expected: Option<Digest>) -> Result<(Digest, u64), PutError> {
        let actual = self.hasher.digest();
        if let Some(expected) = expected.filter(|e| *e != actual) {
            return Err(PutError::HashMismatch { expected, actual });
        }
        let flushed = async {
            self.file.flush().await?;
            self.file.sync_all().await
        };
        flushed.await.map_err(|e| self.failed(e))?;
        let target = self.store.path(&actual);
        let (from, to) = (self.temporary.0.clone(), target.clone());
        let placed = blocking(move || place(&from, &to)).await;
        placed.map_err(|source| PutError::Io { path: target, source })?;
        self.store.trust(actual);
        Ok((actual, self.len()))
    }

    fn failed(&self, source: io::Error) -> PutError {
        PutError::Io { path: self.temporary.0.clone(), source }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed now is removed when the store is opened again.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Where a blob lies in the store `root`.
pub(crate) fn path_in(root: &Path, digest: &Digest) -> PathBuf {
    let name = digest.to_string();
    let (shard, rest) = name.split_at(2);
    root.join(shard).join(rest)
}

/// Runs `work` on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// Renames a finished file into its shard and makes both directory entries durable. Also when the blob is
/// there already: its other writer may not have come to the sync yet.
fn place(from: &Path, to: &Path) -> io::Result<()> {
    let (Some(shard), Some(root)) = (to.parent(), to.parent().and_then(Path::parent)) else {
        return Err(io::Error::other("a blob's path has a shard and a root"));
    };
    std::fs::create_dir_all(shard)?;
    std::fs::rename(from, to)?;
    std::fs::File::open(shard)?.sync_all()?;
    std::fs::File::open(root)?.sync_all()
}

fn clear(dir: &Path) -> io::Result<()> {
    for item in std::fs::read_dir(dir)? {
        let path = item?.path();
        tracing::debug!(path = %path.display(), "removing an unfinished blob");
        std::fs::remove_file(path)?;
    }
    Ok(())
}

pub(crate) fn list_blobs(root: &Path) -> io::Result<Vec<(Digest, std::fs::Metadata)>> {
    let mut found = Vec::new();
    for shard in std::fs::read_dir(root)? {
        let shard = shard?;
        let Some(start) = shard.file_name().to_str().filter(|n| n.len() == 2).map(str::to_owned) else {
            continue;
        };
        if !shard.file_type()?.is_dir() {
            continue;
        }
        for blob in std::fs::read_dir(shard.path())? {
            let blob = blob?;
            let name = blob.file_name();
            let Some(name) = name.to_str().map(|rest| format!("{start}{rest}")) else { continue };
            let Some(digest) = name.parse().ok().filter(|d: &Digest| d.to_string() == name) else { continue };
            match blob.metadata() {
                Ok(metadata) => found.push((digest, metadata)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(found)
}
