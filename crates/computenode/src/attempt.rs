//! One attempt at a task: what it needs is fetched and checked, and its runtime works on it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use artifact::{Digest, FetchError, Fetcher, Origin, Reference, ReferenceKind};
use taskmarket::{ContentHash, Task};
use tokio_util::sync::CancellationToken;

use crate::cache::{InUse, Kept};
use crate::runtime::{
    Context, Gpu, Job, Limits, Logs, MAX_MESSAGE_BYTES, Model, ModelFiles, ModelShape, Output, Progress,
    RunCode, RunError, Runtime,
};

/// How often files are fetched that are removed again, to make room, before they can be used.
const FETCHES: usize = 3;

/// An attempt that can be made.
pub(crate) struct Attempt {
    pub(crate) task: Task,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) origin: Origin,
    pub(crate) fetcher: Fetcher,
    pub(crate) in_use: InUse,
    pub(crate) limits: Limits,
    pub(crate) logs: Logs,
    /// `<task id>.<attempt>`.
    pub(crate) label: String,
    /// The folder below which the attempt gets one of its own.
    pub(crate) work: PathBuf,
}

/// A folder that is removed, with all in it, when this is dropped.
pub(crate) struct WorkFolder(PathBuf);

/// Model and input, on this machine and checked.
pub(crate) struct Fetched {
    model: ModelFiles,
    model_digest: Digest,
    input: artifact::LocalFile,
    /// Keeps the files from being removed.
    kept: Kept,
}

/// What an attempt came to.
pub(crate) struct Finished {
    pub(crate) model: Digest,
    pub(crate) input: Digest,
    pub(crate) result: Output,
    /// Holds the result, if that is a file.
    pub(crate) folder: WorkFolder,
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
            for _ in 0..FETCHES {
                let (model, model_digest, input) = self.fetch_both(progress).await?;
                let files = match &model {
                    ModelFiles::File(path) => vec![path.clone(), input.path.clone()],
                    ModelFiles::Image(_) => vec![input.path.clone()],
                    ModelFiles::Folder(files) => files.values().chain([&input.path]).cloned().collect(),
                };
                if let Some(kept) = self.in_use.keep(files).await {
                    return Ok(Fetched { model, model_digest, input, kept });
                }
            }
            Err(Failure::new("internal", "there is no room for the fetched files"))
        };
        let fetched = cancel.run_until_cancelled(fetching).await;
        fetched.unwrap_or_else(|| Err(RunError::cancelled().into()))
    }

    /// Runs the task on what was fetched.
    pub(crate) async fn run(
        &self,
        fetched: Fetched,
        gpus: &[Gpu],
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<Finished, Failure> {
        let folder = WorkFolder::make(self.work.join(&self.label)).await?;
        let context = Context { cancel: cancel.clone(), progress: progress.clone(), logs: self.logs.clone() };
        let job = Job {
            params: self.task.config.params.clone(),
            model: Model { files: fetched.model, digest: fetched.model_digest.to_string() },
            input: fetched.input.path,
            limits: self.limits,
            gpus: gpus.to_vec(),
            folder: folder.0.clone(),
            label: self.label.clone(),
        };
        let result = self.runtime.run(job, &context).await?;
        drop(fetched.kept);
        Ok(Finished { model: fetched.model_digest, input: fetched.input.digest, result, folder })
    }

    async fn fetch_both(
        &self,
        progress: &Progress,
    ) -> Result<(ModelFiles, Digest, artifact::LocalFile), Failure> {
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
        let input = self.fetcher.fetch_file(&input, input_pin, origin, |_, _| {}).await?;
        let shape = self.runtime.model_shape();
        // Such an image is pulled by the container engine, which keeps images by itself.
        if let (ModelShape::Image, ReferenceKind::Oci { image, digest }) = (shape, model.kind()) {
            if model_pin.is_some_and(|pin| pin != *digest) {
                let reason = "model_hash: it is not the digest in model_cid";
                return Err(Failure::new("hash_mismatch", reason));
            }
            return Ok((ModelFiles::Image(format!("{image}@sha256:{digest}")), *digest, input));
        }
        let (files, model_digest) = match shape {
            ModelShape::File | ModelShape::Image => {
                let file = self.fetcher.fetch_file(&model, model_pin, origin, report).await?;
                (ModelFiles::File(file.path), file.digest)
            }
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

impl WorkFolder {
    /// Makes the folder, empty.
    async fn make(path: PathBuf) -> Result<Self, Failure> {
        let failed =
            |error: std::io::Error| Failure::new("internal", format!("cannot make a work folder: {error}"));
        remove_folder(&path).map_err(failed)?;
        tokio::fs::create_dir_all(&path).await.map_err(failed)?;
        Ok(Self(path))
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        if let Err(error) = remove_folder(&self.0) {
            tracing::error!(path = %self.0.display(), %error, "cannot remove a work folder");
        }
    }
}

/// Removes a folder with all in it, if it is there.
pub(crate) fn remove_folder(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn reference(field: &str, text: &str) -> Result<Reference, Failure> {
    text.parse().map_err(|error| Failure::new("bad_reference", format!("{field}: {error}")))
}

fn pin(hash: ContentHash) -> Option<Digest> {
    hash.is_pinned().then(|| Digest(hash.0.into()))
}
