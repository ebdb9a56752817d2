//! The bytes: objects named by the SHA-256 of what they hold, `ab/cdef…`, in a folder or in a bucket.
//!
//! An object appears as a whole or not at all: a folder's is staged beside its place, synced and renamed; a bucket's is uploaded in parts
//! that count once all are there. Parts that a killed relay left in a bucket are for the bucket's lifecycle rules to remove.

use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use artifact::{Digest, Hasher};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderValue};
use object_store::aws::AmazonS3Builder;
use object_store::client::{ClientOptions, HttpClient, HttpConnector};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutPayloadMut, RetryConfig, WriteMultipart,
};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;
use tokio_util::task::TaskTracker;

use super::{ArtifactLocation, BlobError, PutError};

/// How much of a file is read at a time.
const READ_BYTES: usize = 64 * 1024;
/// How much of an upload is written to a folder at a time.
const FOLDER_PART_BYTES: usize = 256 * 1024;
/// The smallest part of an upload to a bucket: S3 takes none below 5 MiB, except the last.
const BUCKET_PART_BYTES: u64 = 8 << 20;
/// The most parts that S3 takes of one object.
const MAX_PARTS: u64 = 10_000;
/// Parts of one upload that are on their way at once.
const PARTS_AT_ONCE: usize = 2;
/// Uploads at once. Each holds up to three parts in memory.
const FOLDER_UPLOADS: usize = 512;
const BUCKET_UPLOADS: usize = 32;
/// How long one call of a bucket may be silent.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a connection to a bucket may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often, and for how long, calls of a bucket are tried again.
const RETRIES: usize = 4;
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);
/// A staged file that nobody wrote to for this long is a former life's: uploads that pause for longer are broken off.
const STAGED_FOR: Duration = Duration::from_secs(60 * 60);

/// Where the bytes are. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Objects {
    store: Arc<dyn ObjectStore>,
    folder: Option<PathBuf>,
    part_bytes: usize,
    /// How many uploads there may be at once.
    pub(super) max_uploads: usize,
    /// Owns the clearing away of uploads whose callers left.
    tasks: TaskTracker,
}

impl Objects {
    /// Opens a location, and makes the folder where there is none. `max_bytes` is the largest artifact.
    pub(super) async fn open(location: &ArtifactLocation, max_bytes: u64) -> anyhow::Result<Self> {
        let tasks = TaskTracker::new();
        match location {
            ArtifactLocation::Folder(folder) => {
                let folder = folder.clone();
                let open = move || {
                    std::fs::create_dir_all(&folder)?;
                    let store = LocalFileSystem::new_with_prefix(&folder)?.with_fsync(true);
                    anyhow::Ok((store, folder))
                };
                let (store, folder) = tokio::task::spawn_blocking(open).await??;
                Ok(Self {
                    store: Arc::new(store),
                    folder: Some(folder),
                    part_bytes: FOLDER_PART_BYTES,
                    max_uploads: FOLDER_UPLOADS,
                    tasks,
                })
            }
            ArtifactLocation::S3 { bucket, prefix } => {
                let store = s3(bucket, prefix)?;
                // Whether the bucket is there and the credentials hold is better known now than by the first upload.
                if let Some(Err(error)) = store.list(None).next().await {
                    return Err(error.into());
                }
                let part_bytes = BUCKET_PART_BYTES.max(max_bytes.div_ceil(MAX_PARTS));
                Ok(Self {
                    store,
                    folder: None,
                    part_bytes: usize::try_from(part_bytes).unwrap_or(usize::MAX),
                    max_uploads: BUCKET_UPLOADS,
                    tasks,
                })
            }
        }
    }

    /// Objects of a store without files, whose uploads have parts of this size.
    #[cfg(test)]
    pub(super) fn of_parts(store: Arc<dyn ObjectStore>, part_bytes: usize) -> Self {
        Self { store, folder: None, part_bytes, max_uploads: BUCKET_UPLOADS, tasks: TaskTracker::new() }
    }

    /// Begins to store bytes under their digest.
    pub(super) fn begin(&self, digest: Digest) -> Partial {
        let upload =
            Upload { objects: self.clone(), at: path(&digest), first: PutPayloadMut::new(), parts: None };
        Partial { digest, hasher: Hasher::new(), upload }
    }

    /// The size of what is stored under a digest.
    pub(super) async fn size_of(&self, digest: &Digest) -> Result<Option<u64>, BlobError> {
        found(self.store.head(&path(digest)).await.map(|meta| meta.size))
    }

    /// The bytes from `from` to before `to`, as they are read; `None` if nothing is stored under the digest.
    pub(super) async fn read(
        &self,
        digest: &Digest,
        from: u64,
        to: u64,
    ) -> Result<Option<BoxStream<'static, Result<Bytes, BlobError>>>, BlobError> {
        // An empty range of an object cannot be asked for.
        let range = (from < to).then_some(GetRange::Bounded(from..to));
        let options = GetOptions { range, ..GetOptions::default() };
        let Some(result) = found(self.store.get_opts(&path(digest), options).await)? else { return Ok(None) };
        stream(result, to - from).await.map(Some)
    }

    /// Removes what is stored under a digest, if anything is.
    pub(super) async fn remove(&self, digest: &Digest) -> Result<(), BlobError> {
        found(self.store.delete(&path(digest)).await).map(drop)
    }

    /// All objects that were stored before a time, in no order.
    pub(super) fn list(&self, before: SystemTime) -> BoxStream<'static, Result<Digest, BlobError>> {
        let listed = self.store.list(None).map_err(BlobError::from);
        let old = move |meta: ObjectMeta| async move {
            let digest = digest_at(&meta.location)?;
            (SystemTime::from(meta.last_modified) < before).then_some(Ok(digest))
        };
        listed
            .filter_map(move |meta| async move {
                match meta {
                    Ok(meta) => old(meta).await,
                    Err(error) => Some(Err(error)),
                }
            })
            .boxed()
    }

    /// Removes what killed relays left half written in a folder.
    pub(super) async fn clear_staged(&self) -> std::io::Result<()> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        tokio::task::spawn_blocking(move || clear_staged(&folder)).await?
    }

    /// Waits until what callers left behind is cleared away.
    pub(super) async fn close(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// What came so far of an artifact's bytes. Dropped before it is finished it leaves nothing.
#[derive(Debug)]
pub(super) struct Partial {
    digest: Digest,
    hasher: Hasher,
    upload: Upload,
}

impl Partial {
    /// How many bytes came.
    pub(super) fn len(&self) -> u64 {
        self.hasher.len()
    }

    /// Whether some of them are more than held in memory.
    pub(super) fn has_parts(&self) -> bool {
        self.upload.parts.is_some()
    }

    /// Takes bytes in until they end. Dropped before that, it has taken in what [`Partial::len`] says.
    pub(super) async fn take_in<E>(
        &mut self,
        source: impl Stream<Item = Result<Bytes, E>>,
        limit: u64,
    ) -> Result<(), PutError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut source = pin!(source);
        while let Some(piece) = source.next().await {
            let piece = piece.map_err(|error| PutError::Source(error.into()))?;
            if self.len().saturating_add(piece.len() as u64) > limit {
                return Err(PutError::TooLarge { limit });
            }
            self.upload.make_room().await?;
            self.hasher.update(&piece);
            self.upload.write(piece);
        }
        Ok(())
    }

    /// Stores the bytes durably, if they are what was announced, and says how many they are.
    pub(super) async fn finish(self) -> Result<u64, PutError> {
        let actual = self.hasher.digest();
        if actual != self.digest {
            return Err(PutError::HashMismatch { expected: self.digest, actual });
        }
        self.upload.finish().await?;
        Ok(self.hasher.len())
    }
}

/// An upload under way. Dropped before it is finished it leaves nothing.
#[derive(Debug)]
struct Upload {
    objects: Objects,
    at: Path,
    /// What came before there was enough for a part: small artifacts are stored by one call.
    first: PutPayloadMut,
    parts: Option<WriteMultipart>,
}

impl Upload {
    /// Waits until more can be written. May be dropped at any time.
    async fn make_room(&mut self) -> Result<(), BlobError> {
        if let Some(parts) = &mut self.parts {
            parts.wait_for_capacity(PARTS_AT_ONCE).await?;
        } else if self.first.content_length() > self.objects.part_bytes {
            let upload = self.objects.store.put_multipart(&self.at).await?;
            let mut parts = WriteMultipart::new_with_chunk_size(upload, self.objects.part_bytes);
            for piece in std::mem::take(&mut self.first).freeze() {
                parts.put(piece);
            }
            self.parts = Some(parts);
        }
        Ok(())
    }

    fn write(&mut self, piece: Bytes) {
        match &mut self.parts {
            Some(parts) => parts.put(piece),
            None => self.first.push(piece),
        }
    }

    async fn finish(mut self) -> Result<(), BlobError> {
        match self.parts.take() {
            Some(parts) => parts.finish().await?,
            None => self.objects.store.put(&self.at, std::mem::take(&mut self.first).freeze()).await?,
        };
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else { return };
        let at = self.at.clone();
        self.objects.tasks.spawn(async move {
            if let Err(error) = parts.abort().await {
                tracing::warn!(%error, artifact = %at, "a broken upload was not cleared away");
            }
        });
    }
}

async fn stream(
    result: GetResult,
    length: u64,
) -> Result<BoxStream<'static, Result<Bytes, BlobError>>, BlobError> {
    let start = result.range.start;
    match result.payload {
        // Read by ourselves: what the crate makes of a file comes in pieces of 8 KiB.
        GetResultPayload::File(file, _) => {
            let mut file = tokio::fs::File::from_std(file);
            file.seek(std::io::SeekFrom::Start(start)).await?;
            let pieces = ReaderStream::with_capacity(file.take(length), READ_BYTES);
            Ok(pieces.map_err(BlobError::from).boxed())
        }
        GetResultPayload::Stream(pieces) if length > 0 => Ok(pieces.map_err(BlobError::from).boxed()),
        GetResultPayload::Stream(_) => Ok(futures_util::stream::empty().boxed()),
    }
}

fn found<T>(result: object_store::Result<T>) -> Result<Option<T>, BlobError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn path(digest: &Digest) -> Path {
    let name = digest.to_string();
    let (shard, rest) = name.split_at(2);
    Path::from_iter([shard, rest])
}

/// The digest of what is stored at a path; `None` for what is no artifact.
fn digest_at(at: &Path) -> Option<Digest> {
    let name: String = at.as_ref().split('/').collect();
    let digest = name.parse().ok()?;
    (path(&digest) == *at).then_some(digest)
}

fn clear_staged(folder: &FilePath) -> std::io::Result<()> {
    for shard in std::fs::read_dir(folder)? {
        let shard = shard?;
        if shard.file_name().len() != 2 || !shard.file_type()?.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(shard.path())? {
            let file = file?;
            let name = file.file_name();
            let is_staged = name.to_str().and_then(|name| name.split_once('#')).is_some();
            let is_left = || file.metadata().ok()?.modified().ok()?.elapsed().ok();
            if is_staged && is_left().is_some_and(|age| age > STAGED_FOR) {
                std::fs::remove_file(file.path())?;
            }
        }
    }
    Ok(())
}

fn s3(bucket: &str, prefix: &str) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
    // Endpoint, region and credentials are those of the environment, as the tools of AWS have them.
    let store = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_http_connector(Connector(client()?))
        .with_retry(retry)
        .build()?;
    Ok(if prefix.is_empty() { Arc::new(store) } else { Arc::new(PrefixStore::new(store, prefix)) })
}

/// Gives the bucket our client, with our TLS.
struct Connector(reqwest::Client);

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

fn client() -> anyhow::Result<reqwest::Client> {
    let tls = daemon::tls::client_config(None)?;
    let mut headers = HeaderMap::new();
    headers.insert(http::header::USER_AGENT, HeaderValue::from_static("compute-relay"));
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .default_headers(headers)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(SILENCE);
    Ok(builder.build()?)
}
