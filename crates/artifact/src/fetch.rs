//! Fetching what references name, checked, onto this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use url::Url;

use crate::blobs::BlobStore;
use crate::digest::Digest;
use crate::error::FetchError;
use crate::http::{Job, Place, Progress, Web, put_error};
use crate::manifest::{
    FolderEntry, FolderError, FolderManifest, MAX_MANIFEST_BYTES, ManifestError, check_path,
};
use crate::outbound::system_tls;
use crate::policy::{FetchPolicy, Origin};
use crate::reference::{Reference, ReferenceKind};

/// Fetches references under a [`FetchPolicy`] into a [`BlobStore`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fetcher {
    policy: Arc<FetchPolicy>,
    store: BlobStore,
    web: Arc<Web>,
}

/// A file on this machine whose hash was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Where it lies: in the blob store, or in place for a `file://` reference. To be read only.
    pub path: PathBuf,
    /// Its SHA-256.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Files of a folder on this machine whose hashes were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFolder {
    /// The folder's digest: over all its files for `artifact://` and `file://`, over exactly the fetched
    /// files for `https://`, which cannot be listed.
    pub digest: Digest,
    /// Where the fetched files lie, by their path in the folder. To be read only.
    pub files: BTreeMap<String, PathBuf>,
}

/// The files that the caller wants of a folder.
struct Names<'a> {
    required: BTreeSet<&'a str>,
    optional: BTreeSet<&'a str>,
}

impl Fetcher {
    /// A fetcher that trusts the certificate authorities of this machine (also those of `SSL_CERT_FILE`
    /// and `SSL_CERT_DIR`). A machine without any can still fetch plain `http` and local files.
    ///
    /// # Errors
    /// `io` if the TLS library cannot be set up.
    pub fn new(policy: FetchPolicy, store: BlobStore) -> Result<Self, FetchError> {
        let tls = system_tls().map_err(setup_failed)?;
        Self::with_tls(policy, store, &tls)
    }

    /// A fetcher with a TLS configuration of the caller's, for example with a private certificate authority.
    ///
    /// # Errors
    /// `io` if the TLS library cannot be set up.
    pub fn with_tls(
        policy: FetchPolicy,
        store: BlobStore,
        tls: &rustls::ClientConfig,
    ) -> Result<Self, FetchError> {
        let web = Web::new(&policy, tls).map_err(setup_failed)?;
        Ok(Self { policy: Arc::new(policy), store, web: Arc::new(web) })
    }

    /// The store that files are fetched into.
    pub fn store(&self) -> &BlobStore {
        &self.store
    }

    /// What the fetcher may do.
    pub fn policy(&self) -> &FetchPolicy {
        &self.policy
    }

    /// Brings the file `reference` here and checks that its SHA-256 is `pin`, if given. `artifact://` is
    /// fetched from `origin`. A file that the store has already is not fetched again.
    ///
    /// `progress` is called with the bytes done and, if known, the bytes in all.
    ///
    /// # Errors
    /// Any [`FetchError`]; nothing is kept then.
    pub async fn fetch_file(
        &self,
        reference: &Reference,
        pin: Option<Digest>,
        origin: Option<&Origin>,
        progress: impl Fn(u64, Option<u64>) + Send + Sync,
    ) -> Result<LocalFile, FetchError> {
        let call = Call { fetcher: self, name: &reference.redacted(), origin, progress: &progress };
        call.within_time(call.file(reference, pin)).await
    }

    /// Brings files of the folder `reference` here: all of it if no names are given, else the `required` ones
    /// and those of the `optional` ones that exist. The folder's digest must be `pin`, if given.
    ///
    /// A folder at an `https` URL ends in `/` and needs names, because HTTP cannot list folders.
    ///
    /// # Errors
    /// Any [`FetchError`]; `not_found` if a required file is missing.
    pub async fn fetch_folder(
        &self,
        reference: &Reference,
        pin: Option<Digest>,
        origin: Option<&Origin>,
        required: &[&str],
        optional: &[&str],
        progress: impl Fn(u64, Option<u64>) + Send + Sync,
    ) -> Result<LocalFolder, FetchError> {
        let call = Call { fetcher: self, name: &reference.redacted(), origin, progress: &progress };
        let required: BTreeSet<&str> = required.iter().copied().collect();
        let optional = optional.iter().copied().filter(|name| !required.contains(name)).collect();
        call.within_time(call.folder(reference, pin, &Names { required, optional })).await
    }
}

/// What the steps of one fetch share.
struct Call<'a> {
    fetcher: &'a Fetcher,
    /// The reference as errors name it.
    name: &'a str,
    origin: Option<&'a Origin>,
    progress: Progress<'a>,
}

impl Call<'_> {
    async fn within_time<T>(
        &self,
        work: impl Future<Output = Result<T, FetchError>>,
    ) -> Result<T, FetchError> {
        let after = self.fetcher.policy.timeout;
        match tokio::time::timeout(after, work).await {
            Ok(done) => done,
            Err(_) => Err(FetchError::TimedOut { reference: self.name(), after, what: "an end" }),
        }
    }

    async fn file(&self, reference: &Reference, pin: Option<Digest>) -> Result<LocalFile, FetchError> {
        let pin = self.pin(reference, pin)?;
        if reference.is_folder() {
            return Err(self.bad("it names a folder (it ends in /), but a file is needed"));
        }
        if let Some(digest) = pin
            && let Some(file) = self.stored(digest).await?
        {
            return Ok(file);
        }
        match reference.kind() {
            ReferenceKind::Artifact { digest, .. } => {
                self.blob(*digest, self.fetcher.policy.max_bytes, self.progress).await
            }
            ReferenceKind::Web { url, .. } => {
                let place = Place::Url(url.clone());
                self.download(place, pin, self.fetcher.policy.max_bytes, self.progress).await
            }
            ReferenceKind::File { path, .. } => self.local_file(path, pin).await,
            ReferenceKind::Ipfs { .. } => Err(self.unsupported("ipfs")),
            ReferenceKind::Oci { .. } => Err(self.unsupported("oci")),
        }
    }

    async fn folder(
        &self,
        reference: &Reference,
        pin: Option<Digest>,
        names: &Names<'_>,
    ) -> Result<LocalFolder, FetchError> {
        let pin = self.pin(reference, pin)?;
        for name in names.required.iter().chain(&names.optional) {
            check_path(name).map_err(|e| self.bad(&e.to_string()))?;
        }
        if let Some(digest) = pin
            && let Some(folder) = self.stored_folder(digest, names).await?
        {
            return Ok(folder);
        }
        match reference.kind() {
            ReferenceKind::Artifact { digest, folder: true } => self.artifact_folder(*digest, names).await,
            ReferenceKind::Web { url, folder: true } => self.web_folder(url, pin, names).await,
            ReferenceKind::Artifact { .. } | ReferenceKind::Web { .. } => {
                Err(self.bad("it names a file, but a folder is needed; the reference of a folder ends in /"))
            }
            ReferenceKind::File { path, .. } => self.local_folder(path, pin, names).await,
            ReferenceKind::Ipfs { .. } => Err(self.unsupported("ipfs")),
            ReferenceKind::Oci { .. } => Err(self.unsupported("oci")),
        }
    }

    /// The digest that the content must have: the caller's or the reference's own.
    fn pin(&self, reference: &Reference, pin: Option<Digest>) -> Result<Option<Digest>, FetchError> {
        let ReferenceKind::Artifact { digest, .. } = reference.kind() else { return Ok(pin) };
        self.check(pin, *digest)?;
        Ok(Some(*digest))
    }

    fn check(&self, pin: Option<Digest>, actual: Digest) -> Result<(), FetchError> {
        match pin {
            Some(expected) if expected != actual => {
                Err(FetchError::HashMismatch { reference: self.name(), expected, actual })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The blob from the store, if it is there.
    async fn stored(&self, digest: Digest) -> Result<Option<LocalFile>, FetchError> {
        let store = &self.fetcher.store;
        let size = store.size_of(&digest).await.map_err(|e| self.io(e))?;
        Ok(size.map(|size| LocalFile { path: store.path(&digest), digest, size }))
    }

    /// The blob from the store or from the relay.
    async fn blob(
        &self,
        digest: Digest,
        max_bytes: u64,
        progress: Progress<'_>,
    ) -> Result<LocalFile, FetchError> {
        if let Some(file) = self.stored(digest).await? {
            return Ok(file);
        }
        let Some(origin) = self.origin else {
            let reason =
                "there is no relay at hand to fetch artifact:// from; upload the file to a public https URL";
            return Err(self.not_allowed(reason));
        };
        self.download(Place::Origin(origin, digest), Some(digest), max_bytes, progress).await
    }

    async fn download(
        &self,
        place: Place<'_>,
        pin: Option<Digest>,
        max_bytes: u64,
        progress: Progress<'_>,
    ) -> Result<LocalFile, FetchError> {
        let Fetcher { policy, store, web } = self.fetcher;
        let job = Job { name: self.name, place, max_bytes, progress };
        let partial = web.download(policy, store, &job).await?;
        let (digest, size) = partial.finish(pin).await.map_err(|e| put_error(self.name, e))?;
        Ok(LocalFile { path: store.path(&digest), digest, size })
    }

    /// The folder from the store, if its manifest and all that is wanted of it are there.
    async fn stored_folder(
        &self,
        digest: Digest,
        names: &Names<'_>,
    ) -> Result<Option<LocalFolder>, FetchError> {
        let Some(listed) = self.stored(digest).await?.filter(|f| f.size <= MAX_MANIFEST_BYTES) else {
            return Ok(None);
        };
        let Ok(manifest) = FolderManifest::parse(&self.read(&listed.path).await?) else { return Ok(None) };
        let Ok(wanted) = names.select(&manifest) else { return Ok(None) };
        let mut files = BTreeMap::new();
        for entry in wanted {
            match self.stored(entry.digest).await? {
                Some(file) if file.size == entry.size => files.insert(entry.path.clone(), file.path),
                Some(_) | None => return Ok(None),
            };
        }
        Ok(Some(LocalFolder { digest, files }))
    }

    async fn artifact_folder(&self, digest: Digest, names: &Names<'_>) -> Result<LocalFolder, FetchError> {
        let max_bytes = self.fetcher.policy.max_bytes;
        let listed = self.blob(digest, MAX_MANIFEST_BYTES.min(max_bytes), &|_, _| {}).await?;
        if listed.size > MAX_MANIFEST_BYTES {
            return Err(self.bad_manifest(ManifestError::TooLong));
        }
        let bytes = self.read(&listed.path).await?;
        let manifest = FolderManifest::parse(&bytes).map_err(|e| self.bad_manifest(e))?;
        let wanted = names.select(&manifest).map_err(|missing| self.not_found(missing))?;
        let total = self.check_total(&wanted)?;
        let mut files = BTreeMap::new();
        let mut done = 0;
        for entry in wanted {
            let progress = |now: u64, _| (self.progress)(done + now, Some(total));
            let file = self.blob(entry.digest, max_bytes - done, &progress).await?;
            if file.size != entry.size {
                let (path, listed) = (entry.path.clone(), entry.size);
                return Err(self.bad_manifest(ManifestError::Size { path, listed, actual: file.size }));
            }
            done += file.size;
            files.insert(entry.path.clone(), file.path);
        }
        Ok(LocalFolder { digest, files })
    }

    /// Downloads the named files below `base`. They reach their places in the store only when all are here
    /// and the folder's digest is the right one.
    async fn web_folder(
        &self,
        base: &Url,
        pin: Option<Digest>,
        names: &Names<'_>,
    ) -> Result<LocalFolder, FetchError> {
        if names.is_empty() {
            return Err(self.bad("a folder at a URL cannot be listed; name its files, or use artifact://"));
        }
        let Fetcher { policy, store, web } = self.fetcher;
        let (mut entries, mut partials) = (Vec::new(), Vec::new());
        let mut done = 0;
        for name in names.required.iter().chain(&names.optional) {
            let progress = |now: u64, _| (self.progress)(done + now, None);
            let place = Place::Url(below(base, name));
            let job = Job { name: self.name, place, max_bytes: policy.max_bytes - done, progress: &progress };
            match web.download(policy, store, &job).await {
                Ok(partial) => {
                    done += partial.len();
                    let (path, size, digest) = ((*name).to_owned(), partial.len(), partial.digest());
                    entries.push(FolderEntry { path, size, digest });
                    partials.push(partial);
                }
                Err(FetchError::NotFound { .. }) if names.optional.contains(name) => {}
                Err(FetchError::NotFound { .. }) => return Err(self.not_found(name)),
                Err(error) => return Err(error),
            }
        }
        let manifest = FolderManifest::new(entries).map_err(|e| self.bad_manifest(e))?;
        let digest = manifest.digest();
        self.check(pin, digest)?;
        for partial in partials {
            partial.finish(None).await.map_err(|e| put_error(self.name, e))?;
        }
        // With the manifest in the store, the same pinned folder needs no network next time.
        store.put_bytes(&manifest.to_bytes(), Some(digest)).await.map_err(|e| put_error(self.name, e))?;
        let files = manifest.entries().iter().map(|e| (e.path.clone(), store.path(&e.digest))).collect();
        Ok(LocalFolder { digest, files })
    }

    /// A file of this machine, hashed and served in place.
    async fn local_file(&self, path: &Path, pin: Option<Digest>) -> Result<LocalFile, FetchError> {
        let path = self.allowed(path).await?;
        // Asked before it is opened, since opening a pipe would wait for its other end.
        let metadata = tokio::fs::metadata(&path).await.map_err(|e| self.io(e))?;
        if metadata.is_dir() {
            return Err(self.bad("it names a folder, but a file is needed"));
        }
        if !metadata.is_file() {
            return Err(self.not_allowed("it is not a regular file"));
        }
        self.check_size(metadata.len())?;
        let (digest, size) = Digest::of_file(&path).await.map_err(|e| self.io(e))?;
        self.check(pin, digest)?;
        (self.progress)(size, Some(size));
        Ok(LocalFile { path, digest, size })
    }

    /// A folder of this machine, hashed and served in place.
    async fn local_folder(
        &self,
        path: &Path,
        pin: Option<Digest>,
        names: &Names<'_>,
    ) -> Result<LocalFolder, FetchError> {
        let dir = self.allowed(path).await?;
        if !tokio::fs::metadata(&dir).await.map_err(|e| self.io(e))?.is_dir() {
            return Err(self.bad("it names a file, but a folder is needed"));
        }
        let manifest = FolderManifest::of_dir(&dir).await.map_err(|e| match e {
            FolderError::Manifest(source) => self.bad_manifest(source),
            FolderError::Io { source, .. } => self.io(source),
            FolderError::Irregular { .. } | FolderError::NotUtf8 { .. } => self.not_allowed(&e.to_string()),
        })?;
        let digest = manifest.digest();
        self.check(pin, digest)?;
        let wanted = names.select(&manifest).map_err(|missing| self.not_found(missing))?;
        let total = self.check_total(&wanted)?;
        (self.progress)(total, Some(total));
        let files = wanted.into_iter().map(|e| (e.path.clone(), dir.join(&e.path))).collect();
        Ok(LocalFolder { digest, files })
    }

    /// The path without symbolic links, if it lies in a folder that the policy allows.
    async fn allowed(&self, path: &Path) -> Result<PathBuf, FetchError> {
        let mut roots = self.fetcher.policy.allowed_dirs.clone();
        for dir in &self.fetcher.policy.allowed_dirs {
            match tokio::fs::canonicalize(dir).await {
                Ok(real) => roots.push(real),
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "an allowed folder cannot be used")
                }
            }
        }
        let inside = |path: &Path| roots.iter().any(|root| path.starts_with(root));
        let outside =
            "the path is not in a folder that this machine's operator allows for file:// references";
        match tokio::fs::canonicalize(path).await {
            Ok(real) if inside(&real) => Ok(real),
            Ok(_) => Err(self.not_allowed(outside)),
            // Whether something exists elsewhere is nobody's business.
            Err(_) if !inside(path) || path.components().any(|c| c == Component::ParentDir) => {
                Err(self.not_allowed(outside))
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(self.not_found("it"))
            }
            Err(e) => Err(self.io(e)),
        }
    }

    async fn read(&self, path: &Path) -> Result<Vec<u8>, FetchError> {
        let mut bytes = Vec::new();
        let file = tokio::fs::File::open(path).await.map_err(|e| self.io(e))?;
        file.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut bytes).await.map_err(|e| self.io(e))?;
        Ok(bytes)
    }

    /// The bytes of all these files, if they are not too many.
    fn check_total(&self, entries: &[&FolderEntry]) -> Result<u64, FetchError> {
        let total = entries.iter().fold(0_u64, |sum, e| sum.saturating_add(e.size));
        self.check_size(total)?;
        Ok(total)
    }

    fn check_size(&self, size: u64) -> Result<(), FetchError> {
        let limit = self.fetcher.policy.max_bytes;
        if size > limit { Err(FetchError::TooLarge { reference: self.name(), limit }) } else { Ok(()) }
    }

    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn bad(&self, reason: &str) -> FetchError {
        FetchError::BadReference { reference: self.name(), reason: reason.to_owned() }
    }

    fn not_allowed(&self, reason: &str) -> FetchError {
        FetchError::NotAllowed { reference: self.name(), reason: reason.to_owned() }
    }

    fn not_found(&self, what: &str) -> FetchError {
        FetchError::NotFound { reference: self.name(), what: what.to_owned() }
    }

    fn bad_manifest(&self, source: ManifestError) -> FetchError {
        FetchError::BadManifest { reference: self.name(), source }
    }

    fn unsupported(&self, scheme: &'static str) -> FetchError {
        FetchError::UnsupportedScheme { reference: self.name(), scheme }
    }

    fn io(&self, source: io::Error) -> FetchError {
        FetchError::Io { reference: self.name(), source }
    }
}

impl Names<'_> {
    fn is_empty(&self) -> bool {
        self.required.is_empty() && self.optional.is_empty()
    }

    /// The wanted files of a folder, or the name of a required one that is missing.
    fn select<'m>(&self, manifest: &'m FolderManifest) -> Result<Vec<&'m FolderEntry>, &str> {
        if self.is_empty() {
            return Ok(manifest.entries().iter().collect());
        }
        if let Some(missing) = self.required.iter().find(|name| manifest.get(name).is_none()) {
            return Err(missing);
        }
        Ok(self.required.iter().chain(&self.optional).filter_map(|name| manifest.get(name)).collect())
    }
}

/// The URL of the file `name` below a folder's URL.
fn below(base: &Url, name: &str) -> Url {
    let mut url = base.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(name.split('/'));
    }
    url
}

fn setup_failed(error: impl std::error::Error + Send + Sync + 'static) -> FetchError {
    FetchError::Io { reference: "TLS".to_owned(), source: io::Error::other(error) }
}
