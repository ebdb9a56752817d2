//! Images: brought to the engine, kept within their room, removed when others need it.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use artifact::AddressClass;
use bollard::Docker;
use bollard::errors::Error;
use bollard::models::ImageInspect;
use bollard::query_parameters::{
    CreateImageOptionsBuilder, ImportImageOptionsBuilder, ListImagesOptionsBuilder,
    RemoveImageOptionsBuilder, TagImageOptionsBuilder,
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::mpsc;

use super::archive::{self, Wanted};
use super::engine;
use crate::runtime::{Context, Model, ModelFiles, RunCode, RunError, Stop, blocking};

/// What this node calls the images that it brought here; the tag is a digest.
const REPOSITORY: &str = "localhost/zorai-image";

/// How many pieces of an archive wait for the engine.
const PIECES: usize = 4;

/// The size of a piece, in bytes.
const PIECE_BYTES: usize = 256 << 10;

/// How long the name of a registry may take to be resolved.
const RESOLVE_TIME: Duration = Duration::from_secs(10);

/// The images of one engine.
pub(super) struct Images {
    docker: Docker,
    architecture: String,
    /// The most bytes of one image, unpacked.
    image_bytes: u64,
    /// The most bytes of all images that nothing runs from.
    kept_bytes: u64,
    allow_private_registries: bool,
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
        allow_private_registries: bool,
    ) -> Self {
        let known = Arc::default();
        Self { docker, architecture, image_bytes, kept_bytes, allow_private_registries, known }
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
            ModelFiles::Image(reference) => self.pull(reference, &name, context).await?,
            ModelFiles::Folder(_) | ModelFiles::Named(_) => {
                return Err(RunError::new(RunCode::BadModel, "the model is a folder; an image is one file"));
            }
        };
        user.id = image.id.clone().ok_or_else(|| internal("the engine gives an image no id"))?;
        let bytes = u64::try_from(image.size.unwrap_or_default()).unwrap_or_default();
        if let Some(entry) = self.known().images.get_mut(&tag) {
            entry.bytes = bytes;
        }
        user.volumes = image.config.and_then(|config| config.volumes).unwrap_or_default();
        Ok(user)
    }

    /// Learns which images a former life of this node brought here.
    pub(super) async fn recover(&self) -> Result<(), Error> {
        let filters = HashMap::from([("reference".to_owned(), vec![REPOSITORY.to_owned()])]);
        let options = ListImagesOptionsBuilder::default().filters(&filters).build();
        for image in self.docker.list_images(Some(options)).await? {
            let bytes = u64::try_from(image.size).unwrap_or_default();
            for name in image.repo_tags {
                if let Some(tag) = name.strip_prefix(REPOSITORY).and_then(|rest| rest.strip_prefix(':')) {
                    self.known().images.entry(tag.to_owned()).or_default().bytes = bytes;
                }
            }
        }
        Ok(())
    }

    /// Removes the images that were used longest ago until the others fit into their room.
    pub(super) async fn trim(&self) {
        loop {
            let Some((tag, turn)) = self.oldest_beyond_room() else { return };
            let _turn = turn.lock_owned().await;
            if self.known().images.get(&tag).is_none_or(|entry| entry.users > 0) {
                continue;
            }
            self.remove(&format!("{REPOSITORY}:{tag}")).await;
            let mut known = self.known();
            if known.images.get(&tag).is_some_and(|entry| entry.users == 0) {
                known.images.remove(&tag);
            }
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
        let (architecture, bytes, file, stop) =
            (self.architecture.clone(), self.image_bytes, path.to_owned(), stop.clone());
        let image = blocking(move || {
            archive::check(&file, &Wanted { architecture: &architecture, bytes, stop: &stop })
        })
        .await?;
        let diff_ids = image.diff_ids.clone();
        self.import(path.to_owned(), image, name.to_owned()).await?;
        let loaded = self.inspect(name).await?;
        let loaded = loaded.ok_or_else(|| internal("the engine loaded an image and does not have it"))?;
        let layers = loaded.root_fs.as_ref().and_then(|root| root.layers.clone()).unwrap_or_default();
        if layers != diff_ids {
            self.remove(name).await;
            return Err(internal("the engine made another image of the one that it was given"));
        }
        Ok(loaded)
    }

    async fn import(&self, path: PathBuf, image: archive::Image, name: String) -> Result<(), RunError> {
        let (pieces, queue) = mpsc::channel::<io::Result<Bytes>>(PIECES);
        let writing = tokio::task::spawn_blocking(move || {
            let to = Pieces { pieces: pieces.clone(), open: Vec::with_capacity(PIECE_BYTES) };
            if let Err(error) = archive::write(&path, &image, &name, to) {
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
        match loaded {
            Ok(_) => Ok(()),
            Err(error @ (Error::DockerStreamError { .. } | Error::DockerResponseServerError { .. })) => {
                let reason = format!("the engine does not take the image: {error}");
                Err(RunError::new(RunCode::BadModel, reason))
            }
            Err(error) => Err(internal(format!("cannot load the image: {error}"))),
        }
    }

    /// Pulls an image by its digest, unless the engine has it.
    async fn pull(&self, reference: &str, name: &str, context: &Context) -> Result<ImageInspect, RunError> {
        let (repository, digest) = reference
            .split_once('@')
            .ok_or_else(|| RunError::new(RunCode::BadModel, "the image is not named by its digest"))?;
        let full = format!("{}@{digest}", full_name(repository));
        if let Some(image) = self.inspect(&full).await? {
            return self.fitting(image, digest);
        }
        self.check_registry(&full).await?;
        let unavailable = |error: &dyn std::fmt::Display| {
            let text = error.to_string();
            let platform =
                text.contains("no matching manifest") || text.contains("no image found in manifest");
            let code = if platform { RunCode::ImageWithoutPlatform } else { RunCode::ImageUnavailable };
            RunError::new(code, format!("cannot pull {full}: {text}"))
        };
        let options = CreateImageOptionsBuilder::default().from_image(&full).build();
        let mut answers = self.docker.create_image(Some(options), None, None);
        let mut layers: HashMap<String, (i64, i64)> = HashMap::new();
        while let Some(answer) = answers.next().await {
            let answer = answer.map_err(|error| unavailable(&error))?;
            if let (Some(id), Some(detail)) = (answer.id, answer.progress_detail)
                && let (Some(current), Some(total)) = (detail.current, detail.total)
            {
                layers.insert(id, (current, total));
                let (done, all) = layers.values().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
                if u64::try_from(all).is_ok_and(|all| all > self.image_bytes) {
                    return Err(self.too_large());
                }
                context.progress.report(u8::try_from(done * 100 / all.max(1)).unwrap_or_default());
            }
        }
        let image = self.inspect(&full).await?.ok_or_else(|| unavailable(&"the engine does not have it"))?;
        let image = self.fitting(image, digest)?;
        // The tag says that this node brought it here, and may remove it.
        let (repo, tag) = name.split_once(':').unwrap_or((name, "latest"));
        let options = TagImageOptionsBuilder::default().repo(repo).tag(tag).build();
        let tagged = self.docker.tag_image(&full, Some(options)).await;
        tagged.map_err(|error| internal(format!("cannot tag an image: {error}")))?;
        Ok(image)
    }

    /// Whether an image that the engine has is the one that `digest` names, and one for this machine.
    fn fitting(&self, image: ImageInspect, digest: &str) -> Result<ImageInspect, RunError> {
        let digests = image.repo_digests.iter().flatten();
        let same = digests.into_iter().any(|of| of.split_once('@').is_some_and(|(_, of)| of == digest));
        if !same && image.id.as_deref() != Some(digest) {
            let reason = format!("the engine's image does not have the digest {digest}");
            return Err(RunError::new(RunCode::ImageUnavailable, reason));
        }
        let architecture = engine::architecture(image.architecture.as_deref().unwrap_or_default());
        if image.os.as_deref() != Some("linux") || architecture != self.architecture {
            let reason = format!("the image is not for linux/{}, which this machine is", self.architecture);
            return Err(RunError::new(RunCode::ImageWithoutPlatform, reason));
        }
        if image.size.is_some_and(|size| u64::try_from(size).is_ok_and(|size| size > self.image_bytes)) {
            return Err(self.too_large());
        }
        Ok(image)
    }

    /// Refuses a registry inside the operator's network: a stranger's task names it.
    async fn check_registry(&self, full: &str) -> Result<(), RunError> {
        if self.allow_private_registries {
            return Ok(());
        }
        let registry = full.split('/').next().unwrap_or_default();
        let host = match registry {
            // Its name leads to a website; images lie elsewhere.
            "docker.io" => "registry-1.docker.io:443".to_owned(),
            with_port if with_port.contains(':') => with_port.to_owned(),
            host => format!("{host}:443"),
        };
        let refused = |reason: String| {
            RunError::new(RunCode::ImageUnavailable, format!("the registry {registry}: {reason}"))
        };
        let found = tokio::time::timeout(RESOLVE_TIME, tokio::net::lookup_host(&host)).await;
        let found = found.map_err(|error| refused(error.to_string()))?;
        let addresses: Vec<IpAddr> =
            found.map_err(|error| refused(error.to_string()))?.map(|address| address.ip()).collect();
        if addresses.is_empty() || addresses.iter().any(|ip| AddressClass::of(*ip) != AddressClass::Public) {
            return Err(refused("it is not on the public internet".to_owned()));
        }
        Ok(())
    }

    fn too_large(&self) -> RunError {
        RunError::new(RunCode::BadModel, format!("the image is larger than {} bytes", self.image_bytes))
    }

    async fn inspect(&self, name: &str) -> Result<Option<ImageInspect>, RunError> {
        match self.docker.inspect_image(name).await {
            Ok(image) => Ok(Some(image)),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(internal(format!("cannot look at an image: {error}"))),
        }
    }

    /// Removes an image, or only this node's name for it where somebody else has given it another.
    async fn remove(&self, name: &str) {
        let Ok(Some(image)) = self.inspect(name).await else { return };
        let others = image.repo_tags.iter().flatten().any(|tag| !tag.starts_with(REPOSITORY));
        let what = if others { name.to_owned() } else { image.id.unwrap_or_else(|| name.to_owned()) };
        let options = RemoveImageOptionsBuilder::default().force(!others).build();
        match self.docker.remove_image(&what, Some(options), None).await {
            Ok(_) | Err(Error::DockerResponseServerError { status_code: 404, .. }) => {
                tracing::info!(image = name, "image removed: no more room");
            }
            Err(error) => tracing::error!(image = name, %error, "cannot remove an image"),
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

    fn oldest_beyond_room(&self) -> Option<(String, Arc<tokio::sync::Mutex<()>>)> {
        let known = self.known();
        let unused = || known.images.iter().filter(|(_, entry)| entry.users == 0);
        let total = unused().fold(0u64, |total, (_, entry)| total.saturating_add(entry.bytes));
        if total <= self.kept_bytes {
            return None;
        }
        let (tag, entry) = unused().min_by_key(|(_, entry)| entry.last_use)?;
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

fn internal(message: impl Into<String>) -> RunError {
    RunError::new(RunCode::Internal, message)
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
}
