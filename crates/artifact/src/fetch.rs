//! Fetching what references name, checked, onto this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::AsyncReadExt;
use url::Url;

use crate::blobs::{BlobStore, Partial};
use crate::digest::Digest;
use crate::error::{ContentError, FetchError, Wait};
use crate::hops::{Request, Web};
use crate::http::{Job, put_error};
use crate::image::{LocalImage, Platform};
use crate::manifest::{FolderEntry, FolderManifest, MAX_MANIFEST_BYTES, ManifestError, check_path};
use crate::meter::{Meter, Progress};
use crate::outbound::system_tls;
use crate::policy::{FetchPolicy, Origin};
use crate::reference::{Reference, ReferenceKind};

/// Fetches references under a [`FetchPolicy`] into a [`BlobStore`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fetcher {
    pub(crate) policy: Arc<FetchPolicy>,
    pub(crate) store: BlobStore,
    pub(crate) web: Arc<Web>,
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
    /// files for `https://`, which cannot be listed, and for `ipfs://`, which has no SHA-256 of what was not fetched.
    pub digest: Digest,
    /// Where the fetched files lie, by their path in the folder. To be read only.
    pub files: BTreeMap<String, PathBuf>,
}

/// The files that the caller wants of a folder.
pub(crate) struct Names<'a> {
    pub(crate) required: BTreeSet<&'a str>,
    pub(crate) optional: BTreeSet<&'a str>,
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
    /// Any [`FetchError`]; `not_found` if a required file is missing. Whole files of an `ipfs://` folder stay in the store then.
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

    /// Brings the image `reference` (`oci://…`) here for `platform`: its manifest, its configuration and its layers, each
    /// checked. What the store has already is not fetched again. Registries are asked without credentials.
    ///
    /// # Errors
    /// Any [`FetchError`]; `image_without_platform` if the image is not made for `platform`.
    pub async fn fetch_image(
        &self,
        reference: &Reference,
        platform: &Platform,
        progress: impl Fn(u64, Option<u64>) + Send + Sync,
    ) -> Result<LocalImage, FetchError> {
        let call = Call { fetcher: self, name: &reference.redacted(), origin: None, progress: &progress };
        call.within_time(call.image(reference, platform)).await
    }
}

/// What the steps of one fetch share.
pub(crate) struct Call<'a> {
    pub(crate) fetcher: &'a Fetcher,
    /// The reference as errors name it.
    pub(crate) name: &'a str,
    origin: Option<&'a Origin>,
    pub(crate) progress: Progress<'a>,
}

impl Call<'_> {
    async fn within_time<T>(
        &self,
        work: impl Future<Output = Result<T, FetchError>>,
    ) -> Result<T, FetchError> {
        let after = self.fetcher.policy.timeout;
        match tokio::time::timeout(after, work).await {
            Ok(done) => done,
            Err(_) => Err(FetchError::TimedOut { reference: self.name(), after, wait: Wait::Whole }),
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
            (self.progress)(file.size, Some(file.size));
            return Ok(file);
        }
        match reference.kind() {
            ReferenceKind::Artifact { digest, .. } => {
                self.blob(*digest, self.max_bytes(), true, &self.meter(None)).await
            }
            ReferenceKind::Web { url, .. } => {
                let request = Request::stranger(self.name, url.clone());
                let meter = self.meter(None);
                let job = Job { request, fixed: false, max_bytes: meter.limit(), alone: true, meter: &meter };
                self.place(self.download(&job).await?, pin).await
            }
            ReferenceKind::File { path, .. } => self.local_file(path, pin).await,
            ReferenceKind::Ipfs { cid, path } => Box::pin(self.ipfs_file(cid, path, pin)).await,
            ReferenceKind::Oci { .. } => Err(self.image_as_file()),
            ReferenceKind::Model { .. } => Err(self.model_as_file()),
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
            ReferenceKind::Ipfs { cid, path } => Box::pin(self.ipfs_folder(cid, path, pin, names)).await,
            ReferenceKind::Oci { .. } => Err(self.image_as_file()),
            ReferenceKind::Model { .. } => Err(self.model_as_file()),
        }
    }

    /// The digest that the content must have: the caller's or the reference's own.
    fn pin(&self, reference: &Reference, pin: Option<Digest>) -> Result<Option<Digest>, FetchError> {
        let ReferenceKind::Artifact { digest, .. } = reference.kind() else { return Ok(pin) };
        self.check(pin, *digest)?;
        Ok(Some(*digest))
    }

    pub(crate) fn check(&self, pin: Option<Digest>, actual: Digest) -> Result<(), FetchError> {
        match pin {
            Some(expected) if expected != actual => {
                Err(FetchError::HashMismatch { reference: self.name(), expected, actual })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The blob from the store, if it is there; used just now.
    pub(crate) async fn stored(&self, digest: Digest) -> Result<Option<LocalFile>, FetchError> {
        let store = &self.fetcher.store;
        let Some(size) = store.size_of(&digest).await.map_err(|e| self.io(e))? else { return Ok(None) };
        match store.touch(&digest).await {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => tracing::debug!(%error, "the time of a file's use cannot be kept"),
            Ok(()) => {}
        }
        Ok(Some(LocalFile { path: store.path(&digest), digest, size }))
    }

    /// The blob from the store or from the relay.
    async fn blob(
        &self,
        digest: Digest,
        max_bytes: u64,
        alone: bool,
        meter: &Meter<'_>,
    ) -> Result<LocalFile, FetchError> {
        if let Some(file) = self.stored(digest).await? {
            // The limit is on what is fetched, so bytes that are here cannot exceed it.
            let _ = meter.add(file.size);
            return Ok(file);
        }
        let Some(origin) = self.origin else {
            let reason =
                "there is no relay at hand to fetch artifact:// from; upload the file to a public https URL";
            return Err(self.not_allowed(reason));
        };
        let request = Request::origin(self.name, origin, &digest);
        let partial = self.download(&Job { request, fixed: true, max_bytes, alone, meter }).await?;
        self.place(partial, Some(digest)).await
    }

    pub(crate) async fn download(&self, job: &Job<'_>) -> Result<Partial, FetchError> {
        let Fetcher { policy, store, web } = self.fetcher;
        web.download(policy, store, job).await
    }

    /// Puts a file that is here in its place.
    pub(crate) async fn place(&self, partial: Partial, pin: Option<Digest>) -> Result<LocalFile, FetchError> {
        let (digest, size) = partial.finish(pin).await.map_err(|e| put_error(self.name, e))?;
        Ok(LocalFile { path: self.fetcher.store.path(&digest), digest, size })
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
        let mut total = 0;
        for entry in wanted {
            match self.stored(entry.digest).await? {
                Some(file) if file.size == entry.size => files.insert(entry.path.clone(), file.path),
                Some(_) | None => return Ok(None),
            };
            total += entry.size;
        }
        (self.progress)(total, Some(total));
        Ok(Some(LocalFolder { digest, files }))
    }

    async fn artifact_folder(&self, digest: Digest, names: &Names<'_>) -> Result<LocalFolder, FetchError> {
        let max_bytes = self.max_bytes();
        let unseen = Meter::new(max_bytes, None, &|_, _| {});
        let listed = self.blob(digest, MAX_MANIFEST_BYTES.min(max_bytes), false, &unseen).await?;
        if listed.size > MAX_MANIFEST_BYTES {
            return Err(self.bad_manifest(ManifestError::TooLong));
        }
        let bytes = self.read(&listed.path).await?;
        let manifest = FolderManifest::parse(&bytes).map_err(|e| self.bad_manifest(e))?;
        let wanted = names.select(&manifest).map_err(|missing| self.not_found(missing))?;
        let total = self.check_total(&wanted)?;
        let meter = self.meter(Some(total));
        let mut files = BTreeMap::new();
        let (mut waiting, mut running) = (wanted.into_iter(), FuturesUnordered::new());
        loop {
            while running.len() < self.parallel()
                && let Some(entry) = waiting.next()
            {
                running.push(self.listed_blob(entry, &meter));
            }
            let Some(fetched) = running.next().await else { return Ok(LocalFolder { digest, files }) };
            let (path, file) = fetched?;
            files.insert(path, file);
        }
    }

    /// One file of a manifest, which must have the listed size.
    async fn listed_blob(
        &self,
        entry: &FolderEntry,
        meter: &Meter<'_>,
    ) -> Result<(String, PathBuf), FetchError> {
        let file = self.blob(entry.digest, self.max_bytes(), false, meter).await?;
        if file.size != entry.size {
            let (path, listed) = (entry.path.clone(), entry.size);
            return Err(self.bad_manifest(ManifestError::Size { path, listed, actual: file.size }));
        }
        Ok((entry.path.clone(), file.path))
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
        let meter = self.meter(None);
        let (mut entries, mut partials) = (Vec::new(), Vec::new());
        let mut waiting = names.required.iter().chain(&names.optional);
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < self.parallel()
                && let Some(name) = waiting.next()
            {
                running.push(self.named_file(base, name, &meter));
            }
            let Some((name, fetched)) = running.next().await else { break };
            match fetched {
                Ok(partial) => {
                    let (path, size, digest) = (name.to_owned(), partial.len(), partial.digest());
                    entries.push(FolderEntry { path, size, digest });
                    partials.push(partial);
                }
                Err(FetchError::NotFound { .. }) if names.optional.contains(name) => {}
                Err(FetchError::NotFound { .. }) => return Err(self.not_found(name)),
                Err(error) => return Err(error),
            }
        }
        let manifest = FolderManifest::new(entries).map_err(|e| self.bad_manifest(e))?;
        self.check(pin, manifest.digest())?;
        for partial in partials {
            self.place(partial, None).await?;
        }
        self.assembled(&manifest).await
    }

    async fn named_file<'n>(
        &self,
        base: &Url,
        name: &'n str,
        meter: &Meter<'_>,
    ) -> (&'n str, Result<Partial, FetchError>) {
        let request = Request::stranger(self.name, below(base, name));
        let job = Job { request, fixed: false, max_bytes: meter.limit(), alone: false, meter };
        (name, self.download(&job).await)
    }

    /// The folder of files that are in the store.
    pub(crate) async fn assembled(&self, manifest: &FolderManifest) -> Result<LocalFolder, FetchError> {
        let store = &self.fetcher.store;
        // With the manifest in the store, the same pinned folder needs no network next time.
        let put = store.put_bytes(&manifest.to_bytes(), None).await;
        let (digest, _) = put.map_err(|e| put_error(self.name, e))?;
        let files = manifest.entries().iter().map(|e| (e.path.clone(), store.path(&e.digest))).collect();
        Ok(LocalFolder { digest, files })
    }

    pub(crate) async fn read(&self, path: &Path) -> Result<Vec<u8>, FetchError> {
        let mut bytes = Vec::new();
        let file = tokio::fs::File::open(path).await.map_err(|e| self.io(e))?;
        file.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut bytes).await.map_err(|e| self.io(e))?;
        Ok(bytes)
    }

    /// Counts the bytes of this call.
    pub(crate) fn meter(&self, total: Option<u64>) -> Meter<'_> {
        Meter::new(self.max_bytes(), total, self.progress)
    }

    pub(crate) fn max_bytes(&self) -> u64 {
        self.fetcher.policy.max_bytes
    }

    pub(crate) fn parallel(&self) -> usize {
        self.fetcher.policy.max_parallel.max(1)
    }

    /// The bytes of all these files, if they are not too many.
    pub(crate) fn check_total(&self, entries: &[&FolderEntry]) -> Result<u64, FetchError> {
        let total = entries.iter().fold(0_u64, |sum, e| sum.saturating_add(e.size));
        self.check_size(total)?;
        Ok(total)
    }

    pub(crate) fn check_size(&self, size: u64) -> Result<(), FetchError> {
        if size > self.max_bytes() { Err(self.too_large()) } else { Ok(()) }
    }

    fn name(&self) -> String {
        self.name.to_owned()
    }

    pub(crate) fn too_large(&self) -> FetchError {
        FetchError::TooLarge { reference: self.name(), limit: self.max_bytes() }
    }

    pub(crate) fn bad(&self, reason: &str) -> FetchError {
        FetchError::BadReference { reference: self.name(), reason: reason.to_owned() }
    }

    pub(crate) fn not_allowed(&self, reason: &str) -> FetchError {
        FetchError::NotAllowed { reference: self.name(), reason: reason.to_owned() }
    }

    pub(crate) fn not_found(&self, what: &str) -> FetchError {
        FetchError::NotFound { reference: self.name(), what: what.to_owned() }
    }

    pub(crate) fn bad_manifest(&self, source: impl Into<ContentError>) -> FetchError {
        FetchError::BadManifest { reference: self.name(), source: source.into() }
    }

    fn image_as_file(&self) -> FetchError {
        let reason = "names a container image, which is neither a file nor a folder";
        FetchError::UnsupportedScheme { reference: self.name(), scheme: "oci", reason }
    }

    fn model_as_file(&self) -> FetchError {
        let reason = "names a model of an engine, which is neither a file nor a folder";
        FetchError::UnsupportedScheme { reference: self.name(), scheme: "model", reason }
    }

    pub(crate) fn io(&self, source: io::Error) -> FetchError {
        FetchError::Io { reference: self.name(), source }
    }
}

impl Names<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.required.is_empty() && self.optional.is_empty()
    }

    /// The wanted files of a folder, or the name of a required one that is missing.
    pub(crate) fn select<'m>(&self, manifest: &'m FolderManifest) -> Result<Vec<&'m FolderEntry>, &str> {
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
