//! What executes a task: the seam behind which sandboxes and inference engines sit.
//!
//! A [`Runtime`] gets local, verified files and limits, and gives back bytes. It knows nothing of the network, of the
//! market, or of how results are kept. `tests/runtimes.rs` holds the suite that every runtime passes.

pub mod container;
pub mod embed;
mod logs;
pub mod openai;
pub mod wasm;

pub use logs::{LogLine, LogStream, Logs, MAX_LINE_BYTES, MAX_LOG_BYTES};

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use artifact::Reference;
use futures_util::future::BoxFuture;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Executes jobs of one kind.
pub trait Runtime: Send + Sync {
    /// Runs `job` to its end, within its limits.
    ///
    /// The same job gives the same bytes on the same build and device. Cancelling `context.cancel` or dropping the
    /// future stops the work soon; the wall-clock limit is the runtime's to enforce.
    fn run<'a>(&'a self, job: Job, context: &'a Context) -> BoxFuture<'a, Result<Output, RunError>>;

    /// What a model of this runtime consists of.
    fn model_shape(&self) -> ModelShape;

    /// Whether jobs run on a GPU.
    fn uses_gpu(&self) -> bool {
        false
    }

    /// Whether jobs need their folder: making one and removing it costs a node more than a small program does.
    fn needs_folder(&self) -> bool {
        true
    }

    /// Removes what a former life of this node left behind outside its data folder, such as containers that still run.
    fn recover(&self) -> BoxFuture<'_, Result<(), RunError>> {
        Box::pin(async { Ok(()) })
    }

    /// Ends at once what jobs still have outside this process, such as containers, and returns when it is gone. The node ends:
    /// no job starts after this.
    fn end(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// The digests of the models that are in memory, so that a job with one of them starts sooner.
    fn warm_models(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What a model consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelShape {
    /// One file.
    File,
    /// Files of a folder, by their paths in it.
    Folder {
        /// Without these there is no model.
        required: &'static [&'static str],
        /// These are used where they exist.
        optional: &'static [&'static str],
    },
    /// A container image: one file, or an image in a registry, which the runtime fetches if its engine lacks it.
    Image,
    /// A name, `model://<id>`, that an engine of this node knows; nothing is fetched.
    Named,
}

/// One task's work, with everything on this machine.
#[derive(Debug, Clone)]
pub struct Job {
    /// The canonical JSON text of this runtime's parameters.
    pub params: String,
    /// The model, or the program.
    pub model: Model,
    /// The input's file.
    pub input: PathBuf,
    /// What the job may use.
    pub limits: Limits,
    /// The GPUs that are its own while it runs, if it asked for some.
    pub gpus: Vec<Gpu>,
    /// An empty folder of its own for what it writes on the way, removed after it; not there where the runtime needs none.
    pub folder: PathBuf,
    /// Names the attempt in names and labels outside this program: `<task id>.<attempt>`.
    pub label: String,
}

/// A GPU that a job may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its place on this machine.
    pub index: u32,
    /// The driver's own id for it, where there is a driver.
    pub uuid: Option<String>,
    /// The model's name.
    pub name: String,
}

/// A verified model on the local disk.
#[derive(Debug, Clone)]
pub struct Model {
    /// Where its files lie, as [`Runtime::model_shape`] asks for.
    pub files: ModelFiles,
    /// Its SHA-256 in hex, of the file or of the folder's listing: what a cache may go by.
    pub digest: String,
}

/// Where a model's files lie.
#[derive(Debug, Clone)]
pub enum ModelFiles {
    /// The one file.
    File(PathBuf),
    /// The files, by their paths in the model's folder.
    Folder(BTreeMap<String, PathBuf>),
    /// An image in a registry, by its digest.
    Image(Reference),
    /// No files: the id by which an engine knows it.
    Named(String),
}

/// What a job may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The time from start to end.
    pub wall: Duration,
    /// Memory for the job's own data, in bytes.
    pub memory_bytes: u64,
    /// The result's size, in bytes.
    pub output_bytes: u64,
}

/// How a job and its surroundings talk while it runs.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// Cancelled when the job is to stop.
    pub cancel: CancellationToken,
    /// How far it is.
    pub progress: Progress,
    /// What it says for its owner to read.
    pub logs: Logs,
    /// What it takes of the host. Whoever runs something of it outside this process holds a clone until that is gone.
    pub place: Place,
}

/// A job's slot and GPUs. They are free for others once every clone is dropped.
#[derive(Clone, Default)]
pub struct Place {
    _held: Option<Arc<dyn Any + Send + Sync>>,
}

impl Place {
    /// What is free once the last clone is dropped.
    pub fn new(held: Arc<impl Any + Send + Sync>) -> Self {
        Self { _held: Some(held) }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Place")
    }
}

/// How far a job is, in percent. Clones share one value; it never goes back.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<AtomicU8>);

/// What a job gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A result that is small enough for memory.
    Bytes(Vec<u8>),
    /// A file in [`Job::folder`], taken from there.
    File(PathBuf),
}

/// Why a job gave no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct RunError {
    /// Which failure it is.
    pub code: RunCode,
    /// What happened, for people. At most [`MAX_MESSAGE_BYTES`].
    pub message: String,
}

/// The longest [`RunError::message`], in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1024;

/// The kinds of failure of a job. Their texts are public and stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunCode {
    /// The parameters are malformed, or ask for more than the node allows.
    BadParams,
    /// The model is not one that this runtime can run.
    BadModel,
    /// The input is not what this runtime takes.
    BadInput,
    /// A program used up its fuel.
    OutOfFuel,
    /// The job needs more memory than it may use.
    OutOfMemory,
    /// The wall-clock limit passed.
    TimedOut,
    /// A program did what it must not: unreachable code, an access out of bounds, a division by zero.
    Trapped,
    /// A program ended with a status other than zero.
    ExitNonzero,
    /// The result is larger than allowed.
    OutputTooLarge,
    /// What a program left as its result cannot be one: a symbolic link, a device.
    BadOutput,
    /// The job writes more to the disk than it may.
    OutOfDisk,
    /// The image is not made for this machine's kind of processor.
    ImageWithoutPlatform,
    /// The image could not be had from its registry.
    ImageUnavailable,
    /// The files of other tasks leave no room for what the job needs.
    CacheBusy,
    /// The job asks for domains that this node's policy does not grant.
    EgressRefused,
    /// The job asks for domains, and this node has no way to let it reach them and nothing else.
    EgressUnavailable,
    /// The node cannot enforce a limit that it stands for.
    SandboxUnavailable,
    /// No engine of the node serves the model.
    ModelNotFound,
    /// The engine that serves the model does not answer.
    EngineUnavailable,
    /// The job was cancelled.
    Cancelled,
    /// The node's own fault.
    Internal,
}

impl RunCode {
    /// The stable text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadParams => "bad_params",
            Self::BadModel => "bad_model",
            Self::BadInput => "bad_input",
            Self::OutOfFuel => "out_of_fuel",
            Self::OutOfMemory => "out_of_memory",
            Self::TimedOut => "timed_out",
            Self::Trapped => "trapped",
            Self::ExitNonzero => "exit_nonzero",
            Self::OutputTooLarge => "output_too_large",
            Self::BadOutput => "bad_output",
            Self::OutOfDisk => "out_of_disk",
            Self::ImageWithoutPlatform => "image_without_platform",
            Self::ImageUnavailable => "image_unavailable",
            Self::CacheBusy => "cache_busy",
            Self::EgressRefused => "egress_refused",
            Self::EgressUnavailable => "egress_unavailable",
            Self::SandboxUnavailable => "sandbox_unavailable",
            Self::ModelNotFound => "model_not_found",
            Self::EngineUnavailable => "engine_unavailable",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for RunCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl RunError {
    /// An error with a message, which is cut to [`MAX_MESSAGE_BYTES`].
    pub fn new(code: RunCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        Self { code, message }
    }

    pub(crate) fn cancelled() -> Self {
        Self::new(RunCode::Cancelled, "the task was cancelled")
    }

    pub(crate) fn timed_out(wall: Duration) -> Self {
        Self::new(RunCode::TimedOut, format!("not done after {} s", wall.as_secs_f64()))
    }

    pub(crate) fn output_too_large(limit: u64) -> Self {
        Self::new(RunCode::OutputTooLarge, format!("the result is larger than {limit} bytes"))
    }
}

impl Progress {
    /// Says that `percent` of the work is done.
    pub fn report(&self, percent: u8) {
        self.0.fetch_max(percent.min(100), Ordering::Relaxed);
    }

    /// What was reported last.
    pub fn percent(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

/// When a job has to stop, for work on a thread that looks from time to time.
#[derive(Debug, Clone)]
pub(crate) struct Stop {
    cancel: CancellationToken,
    at: Option<Instant>,
    wall: Duration,
}

impl Stop {
    /// Also stops the job when the guard is dropped: held by the runtime's future, it ends the job with the future.
    pub(crate) fn guarded(wall: Duration, context: &Context) -> (Self, DropGuard) {
        let cancel = context.cancel.child_token();
        let guard = cancel.clone().drop_guard();
        // A wall limit beyond what the clock can hold is none.
        (Self { cancel, at: Instant::now().checked_add(wall), wall }, guard)
    }

    /// An error once the job has to stop.
    pub(crate) fn check(&self) -> Result<(), RunError> {
        if self.cancel.is_cancelled() {
            Err(RunError::cancelled())
        } else if self.at.is_some_and(|at| Instant::now() >= at) {
            Err(RunError::timed_out(self.wall))
        } else {
            Ok(())
        }
    }

    /// Ends, with the reason, once the job has to stop.
    pub(crate) async fn stopped(&self) -> RunError {
        let deadline = async {
            match self.at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => RunError::cancelled(),
            () = deadline => RunError::timed_out(self.wall),
        }
    }
}

/// Runs `work` on a thread for blocking work; a panic in it becomes an internal error.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RunError> + Send + 'static,
) -> Result<T, RunError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(RunError::new(RunCode::Internal, format!("the runtime failed: {error}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_between_characters() {
        let error = RunError::new(RunCode::Internal, "é".repeat(MAX_MESSAGE_BYTES));
        assert_eq!(error.message, "é".repeat(MAX_MESSAGE_BYTES / 2));
        let odd = RunError::new(RunCode::Internal, format!("a{}", "é".repeat(MAX_MESSAGE_BYTES)));
        assert_eq!(odd.message.len(), MAX_MESSAGE_BYTES - 1);
    }

    #[test]
    fn progress_never_goes_back() {
        let progress = Progress::default();
        progress.report(40);
        progress.report(10);
        assert_eq!(progress.percent(), 40);
        progress.report(250);
        assert_eq!(progress.percent(), 100);
    }
}
