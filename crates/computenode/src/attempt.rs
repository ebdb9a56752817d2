//! One attempt at a task: what it needs is fetched and checked, and its runtime works on it.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use artifact::{Digest, FetchError, Fetcher, Kept, LocalFile, LocalFolder, Origin, Reference, ReferenceKind};
use taskmarket::{ContentHash, Task};
use tokio_util::sync::CancellationToken;

use crate::disk::empty;
use crate::remove::remove_folder;
use crate::runtime::{
    Context, Gpu, Job, Limits, Logs, MAX_MESSAGE_BYTES, Model, ModelFiles, ModelShape, Output, Place,
    Progress, RunCode, RunError, Runtime,
};

/// How often files are fetched that are removed again, to make room, before they can be used, or that find no room.
const FETCHES: usize = 3;

/// An attempt that can be made.
pub(crate) struct Attempt {
    pub(crate) task: Task,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) origin: Origin,
    pub(crate) fetcher: Fetcher,
    pub(crate) limits: Limits,
    pub(crate) logs: Logs,
    /// Cancelled once the work may begin on what was fetched.
    pub(crate) begin: CancellationToken,
    /// `<task id>.<attempt>`.
    pub(crate) label: String,
    /// The folder below which the attempt gets one of its own.
    pub(crate) work: PathBuf,
}

/// A folder that is removed, with all in it, once this is dropped.
pub(crate) struct WorkFolder(PathBuf);

/// Model and input, on this machine and checked.
pub(crate) struct Fetched {
    model: ModelFiles,
    model_digest: Digest,
    input: Input,
    /// Keeps the files from being removed.
    kept: Kept,
}

/// What a task works on.
enum Input {
    File(LocalFile),
    /// For containers alone.
    Folder(LocalFolder),
}

/// What an attempt came to.
pub(crate) struct Finished {
    pub(crate) model: Digest,
    pub(crate) input: Digest,
    pub(crate) result: Output,
    /// Holds the result, if that is a file.
    pub(crate) folder: Option<WorkFolder>,
}

/// Why it came to nothing.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: String,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        Self { code: code.to_owned(), message }
    }

    /// Whether there was no room on the disk for what was fetched.
    fn is_disk_full(&self) -> bool {
        self.code == "disk_full"
    }

    /// Whether the attempt ended because it was called off.
    pub(crate) fn is_cancellation(&self) -> bool {
        self.code == RunCode::Cancelled.as_str()
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Self::new(error.code.as_str(), error.message)
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl Attempt {
    /// Brings model and input here, and checks them against the task's hashes.
    pub(crate) async fn fetch(
        &self,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<Fetched, Failure> {
        let fetching = async {
            let mut emptied = false;
            for _ in 0..FETCHES {
                let (model, model_digest, input) = match self.fetch_both(progress).await {
                    Err(full) if full.is_disk_full() && !emptied && empty(self.fetcher.store()).await => {
                        emptied = true;
                        continue;
                    }
                    fetched => fetched?,
                };
                let mut files = input.files();
                match &model {
                    ModelFiles::File(path) => files.push(path.clone()),
                    ModelFiles::Image(_) | ModelFiles::Named(_) => {}
                    ModelFiles::Folder(all) => files.extend(all.values().cloned()),
                }
                let keeping = self.fetcher.store().keep(&files).await;
                let failed =
                    |error| Failure::new("internal", format!("cannot keep the fetched files: {error}"));
                if let Some(kept) = keeping.map_err(failed)? {
                    return Ok(Fetched { model, model_digest, input, kept });
                }
            }
            Err(Failure::new(
                RunCode::CacheBusy.as_str(),
                "there is no room for model and input beside the files of other tasks",
            ))
        };
        let fetched = cancel.run_until_cancelled(fetching).await;
        fetched.unwrap_or_else(|| Err(RunError::cancelled().into()))
    }

    /// Runs the task on what was fetched.
    pub(crate) async fn run(
        &self,
        fetched: Fetched,
        (gpus, place): (&[Gpu], Place),
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<Finished, Failure> {
        let folder = self.work.join(&self.label);
        let needed = self.runtime.needs_folder();
        let made = if needed { Some(WorkFolder::make(folder.clone()).await?) } else { None };
        let input_digest = fetched.input.digest();
        let input = fetched.input.lay_out(&folder).await?;
        let (cancel, progress, logs) = (cancel.clone(), progress.clone(), self.logs.clone());
        let context = Context { cancel, progress, logs, place };
        let job = Job {
            params: self.task.config.params.clone(),
            model: Model { files: fetched.model, digest: fetched.model_digest.to_string() },
            input,
            limits: self.limits,
            gpus: gpus.to_vec(),
            folder,
            label: self.label.clone(),
        };
        let result = self.runtime.run(job, &context).await?;
        drop(fetched.kept);
        Ok(Finished { model: fetched.model_digest, input: input_digest, result, folder: made })
    }

    async fn fetch_both(&self, progress: &Progress) -> Result<(ModelFiles, Digest, Input), Failure> {
        let (task, origin) = (&self.task, Some(&self.origin));
        let model = reference("model_cid", task.model_cid.as_str())?;
        let input = reference("input_cid", task.input_cid.as_str())?;
        let (model_pin, input_pin) = (pin(task.model_hash), pin(task.input_hash));
        // The model is nearly all of the work, so it is what progress means.
        let report = |done: u64, total: Option<u64>| {
            if let Some(total) = total.filter(|total| *total > 0) {
                progress.report(u8::try_from(done.saturating_mul(100) / total).unwrap_or(100));
            }
        };
        let shape = self.runtime.model_shape();
        let input = if shape == ModelShape::Image && input.is_folder() {
            Input::Folder(self.fetcher.fetch_folder(&input, input_pin, origin, &[], &[], |_, _| {}).await?)
        } else {
            Input::File(self.fetcher.fetch_file(&input, input_pin, origin, |_, _| {}).await?)
        };
        // Such an image is fetched by the runtime if need be: its engine keeps images by itself.
        if let (ModelShape::Image, ReferenceKind::Oci { digest, .. }) = (shape, model.kind()) {
            if model_pin.is_some_and(|pin| pin != *digest) {
                let reason = "model_hash: it is not the digest in model_cid";
                return Err(Failure::new("hash_mismatch", reason));
            }
            let digest = *digest;
            return Ok((ModelFiles::Image(model), digest, input));
        }
        let (files, model_digest) = match shape {
            ModelShape::File | ModelShape::Image => {
                let file = self.fetcher.fetch_file(&model, model_pin, origin, report).await?;
                (ModelFiles::File(file.path), file.digest)
            }
            ModelShape::Named => named_model(&model, model_pin)?,
            ModelShape::Folder { required, optional } => {
                let fetching =
                    self.fetcher.fetch_folder(&model, model_pin, origin, required, optional, report);
                let folder = fetching.await?;
                (ModelFiles::Folder(folder.files), folder.digest)
            }
        };
        Ok((files, model_digest, input))
    }
}

impl Input {
    fn digest(&self) -> Digest {
        match self {
            Self::File(file) => file.digest,
            Self::Folder(folder) => folder.digest,
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::File(file) => vec![file.path.clone()],
            Self::Folder(folder) => folder.files.values().cloned().collect(),
        }
    }

    /// Where the input lies as one file or one folder, which is made in `work`.
    async fn lay_out(self, work: &Path) -> Result<PathBuf, Failure> {
        let files = match self {
            Self::File(file) => return Ok(file.path),
            Self::Folder(folder) => folder.files,
        };
        let folder = work.join("input");
        let made = folder.clone();
        let laid_out = tokio::task::spawn_blocking(move || lay_out(&folder, &files)).await;
        laid_out
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(|error| Failure::new("internal", format!("cannot lay out the input: {error}")))?;
        Ok(made)
    }
}

/// Makes `folder` of `files`, readable for every user. What is so already is linked, the rest is copied.
fn lay_out(folder: &Path, files: &BTreeMap<String, PathBuf>) -> std::io::Result<()> {
    let mode = std::fs::Permissions::from_mode;
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(folder, mode(0o755))?;
    for (name, source) in files {
        let target = folder.join(name);
        let mut parent = folder.to_owned();
        for part in Path::new(name).parent().into_iter().flat_map(Path::components) {
            parent.push(part);
            if !parent.is_dir() {
                std::fs::create_dir(&parent)?;
                std::fs::set_permissions(&parent, mode(0o755))?;
            }
        }
        let metadata = std::fs::symlink_metadata(source)?;
        // A link is not made across file systems, nor to each file of another user.
        let readable = metadata.is_file() && metadata.mode() & 0o004 != 0;
        if !(readable && std::fs::hard_link(source, &target).is_ok()) {
            std::fs::copy(source, &target)?;
            std::fs::set_permissions(&target, mode(0o444))?;
        }
    }
    Ok(())
}

impl WorkFolder {
    /// Makes the folder, empty.
    async fn make(path: PathBuf) -> Result<Self, Failure> {
        let making = tokio::task::spawn_blocking(move || {
            remove_folder(&path)?;
            std::fs::create_dir_all(&path)?;
            Ok::<_, std::io::Error>(Self(path))
        });
        let made = making.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        made.map_err(|error| Failure::new("internal", format!("cannot make a work folder: {error}")))
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        // Under another name, so that the next attempt can have the folder while this one is being removed. What is left
        // when the process ends is removed by its next life.
        let path = self.0.with_file_name(format!("removed-{}", hex::encode(rand::random::<[u8; 8]>())));
        if let Err(error) = std::fs::rename(&self.0, &path) {
            tracing::error!(path = %self.0.display(), %error, "cannot remove a work folder");
            return;
        }
        let removing = move || {
            if let Err(error) = remove_folder(&path) {
                tracing::error!(path = %path.display(), %error, "cannot remove a work folder");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(threads) => drop(threads.spawn_blocking(removing)),
            Err(_) => removing(),
        }
    }
}

/// The id that stands for a model of an engine, and the hash that stands for its bytes.
fn named_model(model: &Reference, pin: Option<Digest>) -> Result<(ModelFiles, Digest), Failure> {
    let (ReferenceKind::Model { id }, Some(digest)) = (model.kind(), model.digest()) else {
        return Err(Failure::new("bad_reference", "model_cid: this runtime takes model://<id>"));
    };
    if pin.is_some_and(|pin| pin != digest) {
        let reason = format!("model_hash: the SHA-256 of {id:?} is {digest}");
        return Err(Failure::new("hash_mismatch", reason));
    }
    Ok((ModelFiles::Named(id.clone()), digest))
}

fn reference(field: &str, text: &str) -> Result<Reference, Failure> {
    text.parse().map_err(|error| Failure::new("bad_reference", format!("{field}: {error}")))
}

fn pin(hash: ContentHash) -> Option<Digest> {
    hash.is_pinned().then(|| Digest(hash.0.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_laid_out_for_every_user() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, mode| {
            let path = folder.path().join(name);
            std::fs::write(&path, name).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let (open, closed) = (file("open", 0o644), file("closed", 0o600));
        let files = [("a/b/open", open.clone()), ("a/closed", closed)];
        let files = files.map(|(name, path)| (name.to_owned(), path)).into();
        let made = folder.path().join("made");
        lay_out(&made, &files).unwrap();
        let mode = |path: &str| std::fs::metadata(made.join(path)).unwrap().mode() & 0o777;
        assert_eq!([mode("."), mode("a"), mode("a/b")], [0o755; 3]);
        assert_eq!((mode("a/b/open"), mode("a/closed")), (0o644, 0o444));
        assert_eq!(std::fs::read(made.join("a/closed")).unwrap(), b"closed");
        let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
        assert_eq!(inode(&made.join("a/b/open")), inode(&open), "it was copied");
    }
}
