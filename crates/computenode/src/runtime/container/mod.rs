//! Containers: the input at `/in`, the result from `/out`, by the Docker Engine API of Docker or Podman.
//!
//! ```ignore
//! pub async fn ContainerRuntime::detect(settings: ContainerSettings, fetcher: Fetcher)
//!     -> Result<Option<ContainerRuntime>, DetectError>;
//! pub async fn EngineReport::of(settings: &ContainerSettings) -> Result<Option<EngineReport>, DetectError>;
//! pub fn ContainerRuntime::report(&self) -> &EngineReport;
//! ```
//!
//! **What a program finds.** Its input as the file `/in/input` (or, where the input is a folder, `/in`), read-only. `/out`
//! for its result: the one file there, or a tar of all that is there, the same bytes for the same files. Where it leaves `/out`
//! empty, what it wrote to standard output is the result. `/tmp` for what it needs on the way, in memory. Everything else is
//! read-only. Its streams are the task's logs.
//!
//! **What keeps it in.** No network, no capabilities, no new privileges, the engine's system call filter, a user without rights,
//! and bounds for memory with swap, processors, processes, open files, disk and time. What an engine cannot enforce is found
//! out beforehand, and then jobs are refused unless the operator allows them. The bound on `/out` is a watch that kills what writes
//! more; between two looks a program can be ahead of it. What a program uses in `/tmp` counts as memory.
//!
//! **Who it is.** The user 65532 where this node runs as root. Elsewhere the node's own user, without any of its groups, so that
//! the node can remove what the program leaves; rootless Podman maps that user.
//!
//! **Where its image comes from.** A file, or a registry, asked by this node itself and never by the engine: so a registry's name,
//! its redirects and its token server cannot lead into the operator's network. The engine is given what was checked.
//!
//! **What it can reach.** Nothing, unless the task asks for domains and the operator grants each of them: then a proxy on the
//! container's loopback, which leads to those domains only. See [`EgressPolicy`].

mod archive;
mod egress;
mod engine;
mod exit;
mod failure;
#[cfg(test)]
mod fake;
mod images;
mod keeper;
mod output;
mod proxy;
mod spec;
mod streams;

pub use egress::EgressPolicy;
pub use engine::{DetectError, EngineName, EngineReport, Unenforced};
pub(crate) use spec::LEAST_CPU_MILLIS;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use artifact::Fetcher;
use bollard::Docker;
use bollard::container::AttachContainerResults;
use bollard::query_parameters::{AttachContainerOptionsBuilder, KillContainerOptionsBuilder};
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::engine::in_time;
use self::failure::{failure, refused};
use self::images::{ImageInUse, Images};
use self::keeper::{Container, Keeper};
use self::spec::{Bounds, Spec};
use self::streams::Written;
use super::{
    Context, Job, ModelFiles, ModelShape, Output, Place, RunCode, RunError, Runtime, Stop, blocking,
};

/// Labels of every container: the attempt, the node, and which life of the node.
const TASK_LABEL: &str = "zorai.task";
const NODE_LABEL: &str = "zorai.node";
const LIFE_LABEL: &str = "zorai.life";

/// How long the streams may take to end after their container.
const STREAMS_TIME: Duration = Duration::from_secs(10);

/// How long an engine may take to start a container and to attach to it: a stronger runtime boots a machine for it.
const START_TIME: Duration = Duration::from_secs(120);

/// The user that jobs have where this node is root.
const NOBODY: (u32, u32) = (65_532, 65_532);

/// How containers run.
#[derive(Debug, Clone)]
pub struct ContainerSettings {
    /// The engine's socket; where absent, the first that answers of `DOCKER_HOST`, `/run/podman/podman.sock`,
    /// `$XDG_RUNTIME_DIR/podman/podman.sock` and `/var/run/docker.sock`.
    pub socket: Option<PathBuf>,
    /// The engine's name of a stronger OCI runtime, such as `runsc` or `kata`; the engine's own where absent.
    pub runtime: Option<String>,
    /// Names this node among those that share the engine: what [`Runtime::recover`] removes is what bears this name.
    pub node: String,
    /// Processor time of a job at most, in thousandths of one processor.
    pub cpu_millis: u32,
    /// Space of a job for `/out` and `/tmp` at most, in MiB.
    pub disk_mb: u32,
    /// Processes and threads of a job at most.
    pub pids: u32,
    /// User and group of jobs; by who this node is where absent.
    pub user: Option<(u32, u32)>,
    /// The engine's user namespace mode, such as Podman's `auto`; the engine's own where absent.
    pub user_namespace: Option<String>,
    /// The time between the signals SIGTERM and SIGKILL.
    pub grace: Duration,
    /// The time in which an image must be there.
    pub image_time: Duration,
    /// The largest image, unpacked, in bytes.
    pub image_bytes: u64,
    /// How much room images may take between jobs, in bytes; what was used longest ago goes first.
    pub keep_images_bytes: u64,
    /// What jobs may be let out to.
    pub egress: EgressPolicy,
    /// Whether jobs run although the engine cannot enforce all limits.
    pub allow_unenforced: bool,
}

impl Default for ContainerSettings {
    fn default() -> Self {
        Self {
            socket: None,
            runtime: None,
            node: "default".to_owned(),
            cpu_millis: 2_000,
            disk_mb: 4_096,
            pids: 256,
            user: None,
            user_namespace: None,
            grace: Duration::from_secs(5),
            image_time: Duration::from_secs(1_800),
            image_bytes: 32 << 30,
            keep_images_bytes: 64 << 30,
            egress: EgressPolicy::default(),
            allow_unenforced: false,
        }
    }
}

/// Runs containers.
pub struct ContainerRuntime {
    settings: ContainerSettings,
    docker: Docker,
    report: EngineReport,
    images: Arc<Images>,
    keeper: Keeper,
    user: (u32, u32),
    /// Tells the containers of this life from those of former ones.
    life: String,
}

impl ContainerRuntime {
    /// Finds an engine, and asks it what it can do. `None` if none was named and none answers. Images that lie in registries
    /// are fetched by `fetcher`.
    ///
    /// # Errors
    /// The engine that the settings name does not answer, or lacks the OCI runtime that they name.
    pub async fn detect(
        mut settings: ContainerSettings,
        fetcher: Fetcher,
    ) -> Result<Option<Self>, DetectError> {
        let Some((docker, report)) = engine::find(&settings).await? else { return Ok(None) };
        // Docker makes no container that is to have more than there is.
        if let Some(most) = report.processors.map(|processors| processors.saturating_mul(1000)) {
            settings.cpu_millis = settings.cpu_millis.min(most);
        }
        let images = Arc::new(Images::new(
            docker.clone(),
            report.architecture.clone(),
            settings.image_bytes,
            settings.keep_images_bytes,
            fetcher,
        ));
        let keeper = Keeper::start(docker.clone(), Arc::clone(&images))?;
        let user = settings.user.unwrap_or_else(default_user);
        let life = hex::encode(rand::random::<[u8; 8]>());
        Ok(Some(Self { settings, docker, report, images, keeper, user, life }))
    }

    /// What the engine is, and what it can enforce.
    pub fn report(&self) -> &EngineReport {
        &self.report
    }
}

impl Runtime for ContainerRuntime {
    fn run<'a>(&'a self, job: Job, context: &'a Context) -> BoxFuture<'a, Result<Output, RunError>> {
        Box::pin(async move {
            let ended = self.run_job(&job, context).await;
            // Of what it had no container of; the rest follows its containers.
            self.images.trim().await;
            ended
        })
    }

    fn model_shape(&self) -> ModelShape {
        ModelShape::Image
    }

    fn recover(&self) -> BoxFuture<'_, Result<(), RunError>> {
        Box::pin(async {
            let removing =
                keeper::remove_former(&self.docker, &self.report.socket, &self.settings.node, &self.life);
            let removed = removing.await;
            let failed = |error: std::io::Error| internal(format!("cannot look for old containers: {error}"));
            match removed.map_err(failed)? {
                0 => {}
                count => tracing::warn!(count, "containers of a former life removed"),
            }
            let images = self.images.recover().await;
            images.map_err(|error| internal(format!("cannot look for images: {error}")))
        })
    }

    fn end(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.keeper.end())
    }
}

/// The places of a job in its folder.
struct Places {
    output: PathBuf,
    stdout: PathBuf,
    archive: PathBuf,
    input: PathBuf,
}

/// How a container came to its end.
enum Ended {
    /// By itself, with this status.
    Exited(i64),
    /// It was ended, for this reason.
    Stopped(RunError),
}

impl ContainerRuntime {
    async fn run_job(&self, job: &Job, context: &Context) -> Result<Output, RunError> {
        if let (Some(first), false) = (self.report.unenforced.first(), self.settings.allow_unenforced) {
            return Err(RunError::new(RunCode::SandboxUnavailable, first.to_string()));
        }
        let bounds = Bounds::of(job, &self.settings)?;
        let domains = egress::granted(&self.settings.egress, &bounds.params.egress)?;
        if let (false, Some(reason)) = (domains.is_empty(), &self.report.egress_unavailable) {
            return Err(RunError::new(RunCode::EgressUnavailable, reason.clone()));
        }
        if matches!(job.model.files, ModelFiles::Folder(_) | ModelFiles::Named(_)) {
            return Err(RunError::new(RunCode::BadModel, "the model is a folder; an image is one file"));
        }
        let places = Places::make(job).await?;
        let image = self.image(job, context).await?;
        let (stop, _ends_with_this_future) = Stop::guarded(job.limits.wall, context);
        let way = if domains.is_empty() {
            None
        } else {
            let opening = egress::open(self, &job.label, context.place.clone(), domains);
            Some(tokio::select! {
                biased;
                reason = stop.stopped() => return Err(reason),
                way = opening => way?,
            })
        };
        let spec = Spec {
            settings: &self.settings,
            engine: self.report.name,
            rootless: self.report.rootless,
            life: &self.life,
            label: &job.label,
            image: &image.id,
            volumes: &image.volumes,
            bounds: &bounds,
            input: &places.input,
            output: &places.output,
            user: self.user,
            gpus: &job.gpus,
            network_of: way.as_ref().map(|way| way.container.name()),
            environment: way.as_ref().map_or_else(Vec::new, |way| way.environment.clone()),
        };
        let body = spec.body()?;
        // The image stays as long as a container of it does.
        let place = Place::new(Arc::new((context.place.clone(), image)));
        let creating = self.keeper.create(name(&job.label), body, place);
        let container = tokio::select! {
            biased;
            reason = stop.stopped() => return Err(reason),
            container = creating => container.map_err(|error| refused(&error))?,
        };
        let (ended, written) = self.follow(&container, job, context, &stop, &places, &bounds).await;
        let status = match ended {
            Ok(Ended::Exited(status)) => status,
            Ok(Ended::Stopped(reason)) | Err(reason) => {
                // The program may run until then.
                container.remove().await;
                if let Some(way) = way {
                    way.container.remove().await;
                }
                return Err(reason);
            }
        };
        let killed_for_memory = status != 0 && self.was_killed_for_memory(container.name()).await;
        // Nothing runs in it any more. What came of it need not wait until it is removed: its place does.
        drop((container, way));
        if status == 0 {
            return take(places, written, job.limits.output_bytes, bounds.disk_bytes).await;
        }
        // A program that meets the bound of a file may end by itself.
        let full = bounds.disk_bytes.saturating_sub(1);
        blocking(move || output::check(&places.output, full)).await?;
        Err(failure(status, killed_for_memory, &written, &bounds))
    }

    /// The job's image, within the time for images.
    async fn image(&self, job: &Job, context: &Context) -> Result<ImageInUse, RunError> {
        let (stop, _ends_with_this_future) = Stop::guarded(self.settings.image_time, context);
        tokio::select! {
            biased;
            reason = stop.stopped() => Err(reason),
            image = self.images.obtain(&job.model, context, &stop) => image,
        }
    }

    /// Starts a container and stays with it to its end.
    async fn follow(
        &self,
        container: &Container,
        job: &Job,
        context: &Context,
        stop: &Stop,
        places: &Places,
        bounds: &Bounds,
    ) -> (Result<Ended, RunError>, Written) {
        let flooded = CancellationToken::new();
        let attached = tokio::select! {
            biased;
            reason = stop.stopped() => return (Ok(Ended::Stopped(reason)), Written::nothing(places)),
            attached = self.attach_and_start(container.name()) => match attached {
                Ok(attached) => attached,
                Err(error) => return (Err(error), Written::nothing(places)),
            },
        };
        let limit = job.limits.output_bytes;
        let reading =
            streams::read(attached, places.stdout.clone(), limit, context.logs.clone(), flooded.clone());
        let silent = CancellationToken::new();
        let ends = silent.clone().drop_guard();
        let streams = AbortOnDropHandle::new(tokio::spawn(async move {
            let written = reading.await;
            drop(ends);
            written
        }));
        let mut exit = std::pin::pin!(self.exit_status(container.name(), &silent));
        let ended = tokio::select! {
            biased;
            reason = stop.stopped() => Ok(Ended::Stopped(reason)),
            () = flooded.cancelled() => Ok(Ended::Stopped(RunError::output_too_large(limit))),
            reason = output::watch(places.output.clone(), bounds.disk_bytes) => Ok(Ended::Stopped(reason)),
            status = &mut exit => status.map(Ended::Exited),
        };
        if matches!(&ended, Ok(Ended::Stopped(reason)) if matches!(reason.code, RunCode::TimedOut | RunCode::Cancelled))
        {
            self.ask_to_end(container.name()).await;
            let _ = tokio::time::timeout(self.settings.grace, exit).await;
        }
        if matches!(ended, Ok(Ended::Stopped(_)) | Err(_)) {
            // Its streams end with the container, which is removed after this.
            streams.abort();
            return (ended, Written::nothing(places));
        }
        let written = match tokio::time::timeout(STREAMS_TIME, streams).await {
            Ok(Ok(written)) => written,
            Ok(Err(_)) | Err(_) => {
                let error = internal("the container's streams did not end");
                return (Err(error), Written::nothing(places));
            }
        };
        (ended, written)
    }

    async fn attach_and_start(&self, name: &str) -> Result<AttachContainerResults, RunError> {
        let starting = async {
            let options =
                AttachContainerOptionsBuilder::default().stream(true).stdout(true).stderr(true).build();
            let attached = self.docker.attach_container(name, Some(options)).await;
            let attached = attached.map_err(|error| refused(&error))?;
            self.docker.start_container(name, None).await.map_err(|error| refused(&error))?;
            Ok(attached)
        };
        let started = tokio::time::timeout(START_TIME, starting).await;
        started.unwrap_or_else(|_| Err(internal("the engine did not start the container in time")))
    }

    async fn ask_to_end(&self, name: &str) {
        let options = KillContainerOptionsBuilder::default().signal("SIGTERM").build();
        // It may have ended; and whatever happens, it is killed next.
        let _ = in_time(self.docker.kill_container(name, Some(options))).await;
    }
}

impl Places {
    async fn make(job: &Job) -> Result<Self, RunError> {
        let (folder, input) = (job.folder.clone(), job.input.clone());
        blocking(move || Self::make_now(&folder, input)).await
    }

    /// Blocks on the disk.
    fn make_now(folder: &Path, input: PathBuf) -> Result<Self, RunError> {
        let failed = |error: std::io::Error| internal(format!("cannot make a job's folder: {error}"));
        let bad = |error: std::io::Error| {
            RunError::new(RunCode::BadInput, format!("cannot read the input: {error}"))
        };
        let given = std::fs::metadata(&input).map_err(bad)?;
        let output = folder.join("out");
        crate::remove::remove_folder(&output).map_err(failed)?;
        std::fs::create_dir_all(&output).map_err(failed)?;
        // The job's user is another one, and only it has a way to this folder, which lies in one of the node's own.
        std::fs::set_permissions(&output, std::fs::Permissions::from_mode(0o777)).map_err(failed)?;
        let mut places =
            Self { output, stdout: folder.join("stdout"), archive: folder.join("out.tar"), input };
        if given.is_file() && given.mode() & 0o004 == 0 {
            let copy = folder.join("in");
            std::fs::copy(&places.input, &copy).map_err(bad)?;
            let readable = std::fs::Permissions::from_mode(0o444);
            std::fs::set_permissions(&copy, readable).map_err(failed)?;
            places.input = copy;
        }
        Ok(places)
    }
}

impl Written {
    fn nothing(places: &Places) -> Self {
        Self { stdout: places.stdout.clone(), stdout_bytes: 0, stderr: Vec::new(), error: None }
    }
}

/// The result of a container that ended well.
async fn take(places: Places, written: Written, limit: u64, disk: u64) -> Result<Output, RunError> {
    let Places { output, archive, .. } = places;
    let collected = blocking(move || {
        output::check(&output, disk)?;
        output::collect(&output, &archive, limit)
    });
    if let Some(file) = collected.await? {
        return Ok(Output::File(file));
    }
    if written.stdout_bytes > limit {
        return Err(RunError::output_too_large(limit));
    }
    match written.error {
        Some(error) => Err(internal(format!("cannot keep standard output: {error}"))),
        None => Ok(Output::File(written.stdout)),
    }
}

/// A container's name: no two are the same.
fn name(label: &str) -> String {
    let plain: String = label
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        .take(80)
        .collect();
    format!("zorai-{plain}-{}", hex::encode(rand::random::<[u8; 6]>()))
}

fn default_user() -> (u32, u32) {
    match std::fs::metadata(Path::new("/proc/self")) {
        Ok(own) if own.uid() != 0 => (own.uid(), own.gid()),
        Ok(_) | Err(_) => NOBODY,
    }
}

fn internal(message: impl Into<String>) -> RunError {
    RunError::new(RunCode::Internal, message)
}
