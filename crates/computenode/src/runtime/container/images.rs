//! Images: brought to the engine, kept within their room, removed when others need it.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use artifact::{
    ContentError, Digest, FetchError, Fetcher, Kept, LocalImage, Platform, Reference, ReferenceKind,
};
use bollard::Docker;
use bollard::errors::Error;
use bollard::models::ImageInspect;
use bollard::query_parameters::{
    ImportImageOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptionsBuilder,
};
use bytes::Bytes;
use futures_util::TryStreamExt;
use tokio::sync::mpsc;

use super::archive::{self, Wanted};
use super::engine::{self, in_time};
use crate::disk::empty;
use crate::runtime::{Context, Model, ModelFiles, RunCode, RunError, Stop, blocking};

/// What this node calls the images that it brought here; the tag is a digest.
const REPOSITORY: &str = "localhost/zorai-image";

/// How many pieces of an archive wait for the engine.
const PIECES: usize = 4;

/// The size of a piece, in bytes.
const PIECE_BYTES: usize = 256 << 10;

/// How often an image is fetched whose parts are removed again, to make room, before they can be used, or find no room.
const FETCHES: usize = 3;

/// How long a job may wait for images to be removed after it.
const TRIM_TIME: Duration = Duration::from_secs(60);

/// The images of one engine.
pub(super) struct Images {
    docker: Docker,
    architecture: String,
    /// The most bytes of one image, unpacked.
    image_bytes: u64,
    /// The most bytes of all images that nothing runs from.
    kept_bytes: u64,
    /// Fetches what registries have: an engine would follow a registry's word into the operator's network.
    fetcher: Fetcher,
    known: Arc<Mutex<Known>>,
}

/// What is known of the images that this node brought here, by their tags.
#[derive(Default)]
struct Known {
    images: HashMap<String, Entry>,
    /// Goes up with each use.
    uses: u64,
}

#[derive(Default)]
struct Entry {
    /// Held while the image is brought here or removed.
    turn: Arc<tokio::sync::Mutex<()>>,
    bytes: u64,
    last_use: u64,
    users: usize,
}

/// An image that stays until this is dropped.
pub(super) struct ImageInUse {
    /// The engine's id for it.
    pub(super) id: String,
    /// The folders that it declares as volumes.
    pub(super) volumes: Vec<String>,
    tag: String,
    known: Arc<Mutex<Known>>,
}

impl Images {
    pub(super) fn new(
        docker: Docker,
        architecture: String,
        image_bytes: u64,
        kept_bytes: u64,
        fetcher: Fetcher,
    ) -> Self {
        let known = Arc::default();
        Self { docker, architecture, image_bytes, kept_bytes, fetcher, known }
    }

    /// The image of a job, brought to the engine if it is not there.
    pub(super) async fn obtain(
        &self,
        model: &Model,
        context: &Context,
        stop: &Stop,
    ) -> Result<ImageInUse, RunError> {
        let tag = model.digest.clone();
        let mut user = self.begin_use(&tag);
        let turn = Arc::clone(&self.known().images.entry(tag.clone()).or_default().turn);
        let _turn = turn.lock_owned().await;
        let name = format!("{REPOSITORY}:{tag}");
        let image = match &model.files {
            ModelFiles::File(path) => self.load(path, &name, stop).await?,
            ModelFiles::Image(reference) => self.pull(reference, &name, context, stop).await?,
            ModelFiles::Folder(_) | ModelFiles::Named(_) => {
                return Err(RunError::new(RunCode::BadModel, "the model is a folder; an image is one file"));
            }
        };
        user.id = image.id.clone().ok_or_else(|| internal("the engine gives an image no id"))?;
        let bytes = u64::try_from(image.size.unwrap_or_default()).unwrap_or_default();
        if let Some(entry) = self.known().images.get_mut(&tag) {
            entry.bytes = bytes;
        }
        let config = image.config.unwrap_or_default();
        if config.working_dir.is_some_and(|folder| folder.contains('\0')) {
            return Err(RunError::new(RunCode::BadModel, "the image's working folder has NUL in its name"));
        }
        user.volumes = config.volumes.unwrap_or_default();
        Ok(user)
    }

    /// Learns which images a former life of this node brought here.
    pub(super) async fn recover(&self) -> Result<(), Error> {
        let filters = HashMap::from([("reference".to_owned(), vec![REPOSITORY.to_owned()])]);
        let options = ListImagesOptionsBuilder::default().filters(&filters).build();
        for image in in_time(self.docker.list_images(Some(options))).await? {
            let bytes = u64::try_from(image.size).unwrap_or_default();
            for name in image.repo_tags {
                if let Some(tag) = name.strip_prefix(REPOSITORY).and_then(|rest| rest.strip_prefix(':')) {
                    self.known().images.entry(tag.to_owned()).or_default().bytes = bytes;
                }
            }
        }
        Ok(())
    }

    /// Removes the images that were used longest ago until the others fit into their room. What cannot be removed now is
    /// tried again the next time.
    pub(super) async fn trim(&self) {
        self.trim_to(self.kept_bytes).await;
    }

    /// Removes the images that nothing runs from, and says whether that made room.
    async fn remove_unused(&self) -> bool {
        let unused = || self.known().images.values().filter(|entry| entry.users == 0).count();
        let before = unused();
        self.trim_to(0).await;
        unused() < before
    }

    async fn trim_to(&self, kept_bytes: u64) {
        let trimming = async {
            let mut stuck = HashSet::new();
            while let Some((tag, turn)) = self.oldest_beyond_room(kept_bytes, &stuck) {
                let _turn = turn.lock_owned().await;
                if self.known().images.get(&tag).is_none_or(|entry| entry.users > 0) {
                    continue;
                }
                if let Err(error) = self.remove(&format!("{REPOSITORY}:{tag}")).await {
                    tracing::error!(image = tag, %error, "cannot remove an image");
                    stuck.insert(tag);
                    continue;
                }
                let mut known = self.known();
                if known.images.get(&tag).is_some_and(|entry| entry.users == 0) {
                    known.images.remove(&tag);
                }
            }
        };
        if tokio::time::timeout(TRIM_TIME, trimming).await.is_err() {
            tracing::warn!("removing images takes too long; it goes on after the next task");
        }
    }

    /// Loads the image in a file, unless that was done before.
    async fn load(&self, path: &Path, name: &str, stop: &Stop) -> Result<ImageInspect, RunError> {
        // Whatever became of the file: its digest is in the name, and the image was checked.
        if let Some(image) = self.inspect(name).await?
            && path.exists()
        {
            return Ok(image);
        }
        let path = path.to_owned();
        let image = self.checked(stop, move |wanted| archive::check(&path, wanted)).await?;
        self.bring(image, name).await
    }

    /// Loads an image from its registry, unless that was done before, or the operator has brought it to the engine.
    async fn pull(
        &self,
        reference: &Reference,
        name: &str,
        context: &Context,
        stop: &Stop,
    ) -> Result<ImageInspect, RunError> {
        let ReferenceKind::Oci { image, digest } = reference.kind() else {
            return Err(RunError::new(RunCode::BadModel, "the image is not named by its digest"));
        };
        if let Some(image) = self.inspect(name).await? {
            return Ok(image);
        }
        if let Some(image) = self.inspect(&format!("{}@sha256:{digest}", full_name(image))).await? {
            return self.fitting(image, digest);
        }
        let (parts, kept) = self.fetch(reference, context).await?;
        let image = self.checked(stop, move |wanted| archive::check_parts(&parts, wanted)).await?;
        let loaded = self.bring(image, name).await?;
        drop(kept);
        Ok(loaded)
    }

    /// Fetches an image's parts, which stay on the disk as long as what comes with them.
    async fn fetch(&self, reference: &Reference, context: &Context) -> Result<(LocalImage, Kept), RunError> {
        let platform = Platform { os: "linux".to_owned(), architecture: self.architecture.clone() };
        let report = |done: u64, total: Option<u64>| {
            if let Some(total) = total.filter(|total| *total > 0) {
                context.progress.report(u8::try_from(done.saturating_mul(100) / total).unwrap_or(100));
            }
        };
        let mut emptied = false;
        for _ in 0..FETCHES {
            let fetching = Box::pin(self.fetcher.fetch_image(reference, &platform, report));
            let image = match fetching.await {
                Err(full) if full.is_disk_full() && !emptied && empty(self.fetcher.store()).await => {
                    emptied = true;
                    continue;
                }
                fetched => fetched.map_err(|error| not_fetched(&error))?,
            };
            let files: Vec<_> = image.files().map(|file| file.path.clone()).collect();
            let kept = self.fetcher.store().keep(&files).await;
            let kept = kept.map_err(|error| internal(format!("cannot keep the image's parts: {error}")))?;
            if let Some(kept) = kept {
                return Ok((image, kept));
            }
        }
        let reason = "there is no room for the image's parts beside the files of other tasks";
        Err(RunError::new(RunCode::CacheBusy, reason))
    }

    async fn checked(
        &self,
        stop: &Stop,
        check: impl FnOnce(&Wanted<'_>) -> Result<archive::Image, RunError> + Send + 'static,
    ) -> Result<archive::Image, RunError> {
        let (architecture, bytes, stop) = (self.architecture.clone(), self.image_bytes, stop.clone());
        blocking(move || check(&Wanted { architecture: &architecture, bytes, stop: &stop })).await
    }

    /// Gives the engine an image that was checked; where its disk is full, again without those that nothing runs from.
    async fn bring(&self, image: archive::Image, name: &str) -> Result<ImageInspect, RunError> {
        let diff_ids = image.diff_ids.clone();
        let image = Arc::new(image);
        let imported = match self.import(Arc::clone(&image), name.to_owned()).await {
            Err(full) if is_disk_full(&full) && self.remove_unused().await => {
                tracing::warn!("the engine's disk was full: images removed, and loading again");
                self.import(image, name.to_owned()).await
            }
            imported => imported,
        };
        imported.map_err(|error| not_loaded(&error))?;
        let loaded = self.inspect(name).await?;
        let loaded = loaded.ok_or_else(|| internal("the engine loaded an image and does not have it"))?;
        let layers = loaded.root_fs.as_ref().and_then(|root| root.layers.clone()).unwrap_or_default();
        if layers != diff_ids {
            if let Err(error) = self.remove(name).await {
                tracing::error!(image = name, %error, "cannot remove an image");
            }
            return Err(internal("the engine made another image of the one that it was given"));
        }
        Ok(loaded)
    }

    async fn import(&self, image: Arc<archive::Image>, name: String) -> Result<(), Error> {
        let (pieces, queue) = mpsc::channel::<io::Result<Bytes>>(PIECES);
        let writing = tokio::task::spawn_blocking(move || {
            let to = Pieces { pieces: pieces.clone(), open: Vec::with_capacity(PIECE_BYTES) };
            if let Err(error) = archive::write(&image, &name, to) {
                // Where nobody reads any more, that is why.
                let _ = pieces.blocking_send(Err(error));
            }
        });
        let body = futures_util::stream::unfold(queue, async |mut queue| {
            queue.recv().await.map(|piece| (piece, queue))
        });
        let options = ImportImageOptionsBuilder::default().quiet(true).build();
        let answers = self.docker.import_image_stream(options, body, None);
        let loaded: Result<Vec<_>, Error> = answers.try_collect().await;
        // Its end is the stream's end.
        let _ = writing.await;
        loaded.map(drop)
    }

    /// Whether an image that the engine has is the one that `digest` names, and one for this machine.
    fn fitting(&self, image: ImageInspect, digest: &Digest) -> Result<ImageInspect, RunError> {
        let digest = format!("sha256:{digest}");
        let digests = image.repo_digests.iter().flatten();
        let same = digests.into_iter().any(|of| of.split_once('@').is_some_and(|(_, of)| of == digest));
        if !same && image.id.as_deref() != Some(digest.as_str()) {
            let reason = format!("the engine's image does not have the digest {digest}");
            return Err(RunError::new(RunCode::ImageUnavailable, reason));
        }
        let architecture = engine::architecture(image.architecture.as_deref().unwrap_or_default());
        if image.os.as_deref() != Some("linux") || architecture != self.architecture {
            let reason = format!("the image is not for linux/{}, which this machine is", self.architecture);
            return Err(RunError::new(RunCode::ImageWithoutPlatform, reason));
        }
        if image.size.is_some_and(|size| u64::try_from(size).is_ok_and(|size| size > self.image_bytes)) {
            let reason = format!("the image is larger than {} bytes", self.image_bytes);
            return Err(RunError::new(RunCode::BadModel, reason));
        }
        Ok(image)
    }

    async fn inspect(&self, name: &str) -> Result<Option<ImageInspect>, RunError> {
        match in_time(self.docker.inspect_image(name)).await {
            Ok(image) => Ok(Some(image)),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(internal(format!("cannot look at an image: {error}"))),
        }
    }

    /// Removes an image, or only this name where it has others: an operator's, or this node's for another way to it.
    async fn remove(&self, name: &str) -> Result<(), Error> {
        let gone = |error: &Error| matches!(error, Error::DockerResponseServerError { status_code: 404, .. });
        let image = match in_time(self.docker.inspect_image(name)).await {
            Err(error) if gone(&error) => return Ok(()),
            inspected => inspected?,
        };
        let others = image.repo_tags.iter().flatten().any(|tag| tag != name);
        let what = if others { name.to_owned() } else { image.id.unwrap_or_else(|| name.to_owned()) };
        let options = RemoveImageOptionsBuilder::default().force(!others).build();
        match in_time(self.docker.remove_image(&what, Some(options), None)).await {
            Err(error) if !gone(&error) => Err(error),
            Ok(_) | Err(_) => {
                tracing::info!(image = name, "image removed: no more room");
                Ok(())
            }
        }
    }

    fn begin_use(&self, tag: &str) -> ImageInUse {
        let mut known = self.known();
        known.uses += 1;
        let uses = known.uses;
        let entry = known.images.entry(tag.to_owned()).or_default();
        entry.users += 1;
        entry.last_use = uses;
        let known = Arc::clone(&self.known);
        ImageInUse { id: String::new(), volumes: Vec::new(), tag: tag.to_owned(), known }
    }

    fn oldest_beyond_room(
        &self,
        kept_bytes: u64,
        without: &HashSet<String>,
    ) -> Option<(String, Arc<tokio::sync::Mutex<()>>)> {
        let known = self.known();
        let unused = || known.images.iter().filter(|(_, entry)| entry.users == 0);
        let total = unused().fold(0u64, |total, (_, entry)| total.saturating_add(entry.bytes));
        if total <= kept_bytes {
            return None;
        }
        let candidates = unused().filter(|(tag, _)| !without.contains(*tag));
        let (tag, entry) = candidates.min_by_key(|(_, entry)| entry.last_use)?;
        Some((tag.clone(), Arc::clone(&entry.turn)))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // It is whole after every statement that changes it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ImageInUse {
    fn drop(&mut self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = known.images.get_mut(&self.tag) {
            entry.users -= 1;
            // Nothing was brought here.
            if entry.users == 0 && entry.bytes == 0 {
                known.images.remove(&self.tag);
            }
        }
    }
}

/// Gives what is written on as pieces.
struct Pieces {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    open: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open.extend_from_slice(bytes);
        if self.open.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.open, Vec::with_capacity(PIECE_BYTES));
        let sent = self.pieces.blocking_send(Ok(piece.into()));
        sent.map_err(|_| io::Error::other("the engine has stopped reading"))
    }
}

/// What it means that an engine does not take an image.
fn not_loaded(error: &Error) -> RunError {
    let text = error.to_string().to_lowercase();
    let of_the_disk = ["read-only file system", "input/output error"].iter().any(|sign| text.contains(sign));
    let told = matches!(error, Error::DockerStreamError { .. } | Error::DockerResponseServerError { .. });
    if told && !of_the_disk && !is_disk_full(error) {
        return RunError::new(RunCode::BadModel, format!("the engine does not take the image: {error}"));
    }
    internal(format!("cannot load the image: {error}"))
}

fn is_disk_full(error: &Error) -> bool {
    let text = error.to_string().to_lowercase();
    ["no space left on device", "quota exceeded"].iter().any(|sign| text.contains(sign))
}

fn internal(message: impl Into<String>) -> RunError {
    RunError::new(RunCode::Internal, message)
}

/// What it means that an image cannot be fetched.
fn not_fetched(error: &FetchError) -> RunError {
    let code = match error {
        FetchError::BadManifest { source: ContentError::NoPlatform { .. }, .. } => {
            RunCode::ImageWithoutPlatform
        }
        FetchError::BadReference { .. }
        | FetchError::UnsupportedScheme { .. }
        | FetchError::TooLarge { .. }
        | FetchError::HashMismatch { .. }
        | FetchError::BadManifest { .. } => RunCode::BadModel,
        FetchError::NotAllowed { .. }
        | FetchError::ForbiddenAddress { .. }
        | FetchError::NotFound { .. }
        | FetchError::Unauthorized { .. }
        | FetchError::TimedOut { .. }
        | FetchError::TooManyRedirects { .. }
        | FetchError::Unreachable { .. } => RunCode::ImageUnavailable,
        FetchError::CacheBusy { .. } => RunCode::CacheBusy,
        FetchError::Io { .. } => RunCode::Internal,
    };
    RunError::new(code, format!("cannot fetch the image: {error}"))
}

/// An image's name with its registry, so that no engine looks for it in places of its own choice.
fn full_name(name: &str) -> String {
    match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use artifact::{BlobStore, FetchPolicy};

    use super::super::fake::FakeEngine;
    use super::*;

    #[test]
    fn names_get_their_registry() {
        for (name, full) in [
            ("busybox", "docker.io/library/busybox"),
            ("some/image", "docker.io/some/image"),
            ("ghcr.io/some/image", "ghcr.io/some/image"),
            ("registry:5000/image", "registry:5000/image"),
            ("localhost/image", "localhost/image"),
        ] {
            assert_eq!(full_name(name), full);
        }
    }

    fn images(engine: &FakeEngine, place: &Path) -> Images {
        let store = BlobStore::open(place.join("blobs")).unwrap();
        let fetcher = Fetcher::new(FetchPolicy::default(), store).unwrap();
        Images::new(engine.docker.clone(), "amd64".to_owned(), 100, 15, fetcher)
    }

    #[tokio::test]
    async fn a_disk_that_is_full_is_not_the_images_fault() {
        let full = r#"{"errorDetail":{"message":"write /x: no space left on device"},"error":"write /x: no space left on device"}"#;
        let broken = r#"{"errorDetail":{"message":"unexpected EOF"},"error":"unexpected EOF"}"#;
        for (status, answer, code) in [
            (200, full, RunCode::Internal),
            (500, r#"{"message":"loading: disk quota exceeded"}"#, RunCode::Internal),
            (200, broken, RunCode::BadModel),
            (400, r#"{"message":"no such layer"}"#, RunCode::BadModel),
        ] {
            let engine = FakeEngine::start(move |request| match request {
                "POST /images/load" => (status, answer),
                _ => (500, r#"{"message":"not expected"}"#),
            })
            .await;
            let place = tempfile::tempdir().unwrap();
            let images = images(&engine, place.path());
            let error = images.bring(archive::Image::default(), "name:tag").await.unwrap_err();
            assert_eq!(error.code, code, "{answer}: {error}");
        }
    }

    #[tokio::test]
    async fn a_disk_that_is_full_is_emptied_of_what_nothing_runs_from() {
        const FULL: &str =
            r#"{"errorDetail":{"message":"no space left on device"},"error":"no space left on device"}"#;
        let full = Arc::new(AtomicBool::new(true));
        let engine = FakeEngine::start(move |request| match request {
            "POST /images/load" if full.load(Ordering::Relaxed) => (200, FULL),
            "POST /images/load" => (200, r#"{"stream":"loaded"}"#),
            "GET /images/localhost/zorai-image:old/json" => (200, r#"{"Id":"old"}"#),
            "DELETE /images/old" => {
                full.store(false, Ordering::Relaxed);
                (200, "[]")
            }
            "GET /images/name:tag/json" => (200, r#"{"Id":"new","RootFS":{"Type":"layers","Layers":[]}}"#),
            _ => (500, r#"{"message":"not expected"}"#),
        })
        .await;
        let place = tempfile::tempdir().unwrap();
        let images = images(&engine, place.path());
        let _used = images.begin_use("used");
        for tag in ["old", "used"] {
            images.known().images.entry(tag.to_owned()).or_default().bytes = 10;
        }
        images.bring(archive::Image::default(), "name:tag").await.unwrap();
        assert_eq!(images.known().images.keys().collect::<Vec<_>>(), ["used"]);
    }

    #[tokio::test]
    async fn an_image_that_cannot_be_removed_is_tried_again() {
        let in_use = Arc::new(AtomicBool::new(true));
        let stuck = Arc::clone(&in_use);
        let engine = FakeEngine::start(move |request| match request {
            "GET /images/localhost/zorai-image:old/json" => (200, r#"{"Id":"old"}"#),
            "GET /images/localhost/zorai-image:new/json" => (200, r#"{"Id":"new"}"#),
            "DELETE /images/old" if stuck.load(Ordering::Relaxed) => (409, r#"{"message":"in use"}"#),
            "DELETE /images/old" | "DELETE /images/new" => (200, "[]"),
            _ => (500, r#"{"message":"not expected"}"#),
        })
        .await;
        let place = tempfile::tempdir().unwrap();
        let images = images(&engine, place.path());
        for tag in ["old", "new"] {
            let used = images.begin_use(tag);
            images.known().images.get_mut(tag).unwrap().bytes = 10;
            drop(used);
        }
        images.trim().await;
        let left = || images.known().images.keys().cloned().collect::<Vec<_>>();
        assert_eq!(left(), ["old"], "the next one makes room");
        images.known().images.get_mut("old").unwrap().bytes = 20;
        images.trim().await;
        assert_eq!(left(), ["old"], "it still takes room");
        in_use.store(false, Ordering::Relaxed);
        images.trim().await;
        assert_eq!(left(), Vec::<String>::new());
    }
}
