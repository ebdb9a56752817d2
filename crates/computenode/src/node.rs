//! The node as a whole: put together from its configuration, served, and drained.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use artifact::{BlobStore, FetchError, FetchPolicy, Fetcher};
use axum::serve::ListenerExt;
use daemon::{ListenError, Secret, SecretFileError, private_file};
use gpu::{DeviceKind, Inventory};
use taskmarket::Runtime as RuntimeName;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::config::Config;
use crate::engines::{EngineError, Engines};
use crate::executor::{Executor, Settings};
use crate::gpus::Gpus;
use crate::results::Results;
use crate::runtime::Runtime;
use crate::runtime::container::{ContainerRuntime, ContainerSettings, DetectError};
use crate::runtime::embed::EmbedRuntime;
use crate::runtime::openai::OpenaiRuntime;
use crate::runtime::wasm::WasmRuntime;
use crate::service::Service;

/// Tasks that run at once on a machine without a GPU.
const CPU_SLOTS: u32 = 2;

/// How often old results and fetched files are looked for while no task ends.
const TIDY_INTERVAL: Duration = Duration::from_secs(3600);

/// How long open connections may go on once all tasks have ended.
const CONNECTION_GRACE: Duration = Duration::from_secs(5);

/// What a proof names as the device of work that no GPU did, on a machine that has one.
const CPU_NAME: &str = "CPU";

/// A compute node that listens already, and serves once it is [run](Self::run).
pub struct Node {
    listener: TcpListener,
    local_addr: SocketAddr,
    executor: Executor,
    service: Service,
    engines: Engines,
    grace: Duration,
    /// Held as long as the node uses its data folder.
    _lock: File,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The address is reachable from other hosts, which was not asked for.
    #[error(
        "refusing to listen on {addr}, which other hosts can reach\nhint: use 127.0.0.1, or --allow-remote on a trusted network"
    )]
    Remote {
        /// The address.
        addr: SocketAddr,
    },
    /// A folder of `--allow-dir` is none.
    #[error("--allow-dir {}: {reason}\nhint: name a folder that exists, or leave the flag out", path.display())]
    AllowDir {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The token file cannot be used.
    #[error(transparent)]
    Token(#[from] SecretFileError),
    /// Another node uses the data folder.
    #[error("another compute node uses {}\nhint: stop it, or give this one a --data of its own", .0.display())]
    InUse(PathBuf),
    /// A file or folder cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// References could not be fetched.
    #[error("cannot set up fetching: {0}")]
    Fetch(#[from] FetchError),
    /// The certificate authorities cannot be used.
    #[error(transparent)]
    Tls(#[from] daemon::tls::TlsError),
    /// The container engine that the operator names cannot be used.
    #[error("{0}\nhint: start the engine, or leave --container-socket and --container-runtime out")]
    Container(String),
    /// The container engine that the operator names does not answer: it may begin to.
    #[error("{0}\nhint: start the engine, or leave --container-socket and --container-runtime out")]
    NoContainerEngine(DetectError),
    /// The flags about engines do not fit together.
    #[error(transparent)]
    Engines(#[from] EngineError),
    /// A runtime does not work here.
    #[error("the runtime {runtime} does not work: {reason}")]
    Runtime {
        /// Which.
        runtime: RuntimeName,
        /// Why.
        reason: String,
    },
}

impl BuildError {
    /// Whether the command line is to blame, rather than the machine.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Remote { .. }
            | Self::AllowDir { .. }
            | Self::Container(_)
            | Self::Tls(daemon::tls::TlsError::CaFile { .. }) => true,
            Self::Engines(error) => !matches!(error, EngineError::Client(_)),
            Self::Listen(_)
            | Self::Token(_)
            | Self::InUse(_)
            | Self::Disk { .. }
            | Self::Fetch(_)
            | Self::NoContainerEngine(_)
            | Self::Tls(daemon::tls::TlsError::Setup(_))
            | Self::Runtime { .. } => false,
        }
    }
}

impl Node {
    /// Puts a node together and binds its address. Attempts that ran when the last node on this data folder ended become
    /// failed.
    ///
    /// # Errors
    /// Any [`BuildError`].
    pub async fn build(config: Config) -> Result<Self, BuildError> {
        if !config.allow_remote && !config.listen.ip().is_loopback() {
            return Err(BuildError::Remote { addr: config.listen });
        }
        for path in &config.allowed_dirs {
            check_folder(path).await?;
        }
        let listener = daemon::bind(config.listen).await?;
        let local_addr =
            listener.local_addr().map_err(|source| ListenError::Bind { addr: config.listen, source })?;
        let grace = config.grace;
        // Files, drivers and compilers all block.
        let theirs = config.clone();
        let (lock, outside) =
            blocking(move || Ok((lock_folder(&theirs.data)?, Outside::new(&theirs)?))).await?;
        let containers = match &config.container {
            Some(settings) => {
                let settings = ContainerSettings { node: outside.label.clone(), ..settings.clone() };
                containers(settings, outside.fetcher.clone()).await?
            }
            None => None,
        };
        let (executor, service, engines) = blocking(move || build(&config, outside, containers)).await?;
        executor.recover().await;
        executor.tidy().await;
        Ok(Self { listener, local_addr, executor, service, engines, grace, _lock: lock })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `shutdown` is cancelled, then takes no more tasks, lets running ones end within the grace, and
    /// returns.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<()> {
        tracing::info!(addr = %self.local_addr, slots = self.executor.slots(), "compute node listens");
        let stop_serving = CancellationToken::new();
        let listener = self.listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
        });
        let server = axum::serve(listener, self.service.router())
            .with_graceful_shutdown(stop_serving.clone().cancelled_owned());
        let mut server = tokio::spawn(server.into_future());
        let tidying = AbortOnDropHandle::new(tokio::spawn(tidy_regularly(self.executor.clone())));
        // Whatever ends this function, also being dropped, ends what it started.
        let _ending = self.engines.start();

        tokio::select! {
            () = shutdown.cancelled() => {}
            ended = &mut server => return ended.map_err(io::Error::other)?,
        }
        // The API stays up meanwhile, so that the agent hears how its tasks ended.
        self.executor.drain(self.grace).await;
        drop(tidying);
        stop_serving.cancel();
        let served = match daemon::drain("connections", CONNECTION_GRACE, &mut server).await {
            Some(ended) => ended.map_err(io::Error::other)?,
            None => {
                server.abort();
                Ok(())
            }
        };
        self.engines.stop().await;
        served
    }
}

async fn tidy_regularly(executor: Executor) {
    executor.scrub().await;
    loop {
        tokio::time::sleep(TIDY_INTERVAL).await;
        executor.tidy().await;
    }
}

/// Runs what blocks; a panic in it goes on here.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// The ways to what is outside this program.
struct Outside {
    /// This node's name among those that share a container engine.
    label: String,
    tls: rustls::ClientConfig,
    fetcher: Fetcher,
}

impl Outside {
    fn new(config: &Config) -> Result<Self, BuildError> {
        let label = label(&config.data)?;
        let artifacts = config.data.join("artifacts");
        let store =
            BlobStore::open_bounded(&artifacts, config.keep_artifacts_bytes).map_err(disk(&artifacts))?;
        let mut tls = daemon::tls::client_config(config.ca_file.as_deref())?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let fetcher = Fetcher::with_tls(policy(config), store, &tls)?;
        Ok(Self { label, tls, fetcher })
    }
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    let path = path.to_owned();
    move |source| BuildError::Disk { path, source }
}

/// What there is before the first request, in a data folder that this process holds.
fn build(
    config: &Config,
    outside: Outside,
    containers: Option<ContainerRuntime>,
) -> Result<(Executor, Service, Engines), BuildError> {
    let Outside { tls, fetcher, .. } = outside;
    let token = token(&config.token_file)?;
    let inventory = inventory(config);
    let results_folder = config.data.join("results");
    let (results, records) = Results::open(results_folder.clone()).map_err(disk(&results_folder))?;
    let settings = settings(config, &inventory);
    let gpus = Gpus::new(inventory, config.share_gpus);
    let engines = Engines::new(&config.engines, &tls, config.data.join("engines"))?;
    let mut runtimes = built_in(Some(&config.data.join("modules")))?;
    if config.engines.args.is_any() {
        let openai = OpenaiRuntime::new(engines.clone(), config.data.join("partial"));
        runtimes.insert(RuntimeName::Openai, Arc::new(openai));
    }
    if let Some(containers) = containers {
        runtimes.insert(RuntimeName::Container, Arc::new(containers));
    }
    let executor =
        Executor::new(settings, runtimes, gpus, fetcher, results, records).map_err(disk(&results_folder))?;
    let service = Service::new(executor.clone(), engines.clone(), token);
    Ok((executor, service, engines))
}

/// The container runtime, where there is an engine that can keep programs in. One that the operator names must be such.
async fn containers(
    settings: ContainerSettings,
    fetcher: Fetcher,
) -> Result<Option<ContainerRuntime>, BuildError> {
    let is_named = settings.socket.is_some() || settings.runtime.is_some();
    let allowed = settings.allow_unenforced;
    let unusable = match ContainerRuntime::detect(settings, fetcher).await {
        Ok(None) => {
            tracing::info!("no container engine answers; this node runs no containers");
            return Ok(None);
        }
        Ok(Some(runtime)) => {
            let report = runtime.report();
            let (engine, version, socket) = (report.name, &report.version, report.socket.display());
            let missing: Vec<String> = report.unenforced.iter().map(ToString::to_string).collect();
            tracing::info!(%engine, version, %socket, "container engine found");
            if allowed || missing.is_empty() {
                return Ok(Some(runtime));
            }
            format!("{engine} at {socket} cannot keep containers in: {}", missing.join("; "))
        }
        Err(error @ (DetectError::NoAnswer { .. } | DetectError::Thread(_))) if is_named => {
            return Err(BuildError::NoContainerEngine(error));
        }
        Err(error) => error.to_string(),
    };
    if is_named {
        return Err(BuildError::Container(unusable));
    }
    tracing::warn!(reason = unusable, "this node runs no containers");
    Ok(None)
}

async fn check_folder(path: &Path) -> Result<(), BuildError> {
    let wrong = |reason: String| BuildError::AllowDir { path: path.to_owned(), reason };
    let metadata = tokio::fs::metadata(path).await.map_err(|error| wrong(error.to_string()))?;
    if metadata.is_dir() { Ok(()) } else { Err(wrong("it is no folder".to_owned())) }
}

/// The devices that the operator declares, or else those of this machine. Blocks on drivers.
pub(crate) fn inventory(config: &Config) -> Inventory {
    let declared = config.declared_gpu.as_ref();
    declared.map_or_else(gpu::detect, |(name, vram_mb)| Inventory::declared(name, *vram_mb))
}

/// The runtimes that need nothing but this program. Compiled modules are kept in `modules`, or in memory alone.
pub(crate) fn built_in(
    modules: Option<&Path>,
) -> Result<BTreeMap<RuntimeName, Arc<dyn Runtime>>, BuildError> {
    let failed = |runtime, reason: String| BuildError::Runtime { runtime, reason };
    let processors = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
    let embed = EmbedRuntime::with_threads(processors)
        .map_err(|error| failed(RuntimeName::Embed, error.to_string()))?;
    let wasm = modules.map_or_else(WasmRuntime::new, WasmRuntime::cached_in);
    let wasm = wasm.map_err(|error| failed(RuntimeName::Wasm, format!("{error:#}")))?;
    Ok(BTreeMap::from([
        (RuntimeName::Embed, Arc::new(embed) as Arc<dyn Runtime>),
        (RuntimeName::Wasm, Arc::new(wasm) as Arc<dyn Runtime>),
    ]))
}

fn settings(config: &Config, inventory: &Inventory) -> Settings {
    let gpus = u32::try_from(inventory.gpus().count()).unwrap_or(u32::MAX);
    let by_devices = if gpus == 0 { CPU_SLOTS } else { gpus };
    let cpu = inventory.devices.iter().find(|device| device.kind == DeviceKind::Cpu);
    Settings {
        slots: config.slots.unwrap_or(by_devices),
        memory_bytes: config.task_memory_bytes,
        result_bytes: config.max_result_bytes,
        data: config.data.clone(),
        work: config.data.join("work"),
        min_free_disk: config.min_free_disk,
        keep: config.keep_results,
        keep_bytes: config.keep_results_bytes,
        keep_artifacts_bytes: config.keep_artifacts_bytes,
        gpu_name: inventory.gpus().next().map(|device| device.name.clone()),
        cpu_name: cpu.map_or_else(|| CPU_NAME.to_owned(), |device| device.name.clone()),
    }
}

fn policy(config: &Config) -> FetchPolicy {
    let default = FetchPolicy::default();
    FetchPolicy {
        ipfs_gateways: config.ipfs_gateways.clone().unwrap_or(default.ipfs_gateways),
        allow_private_addresses: config.allow_private_addresses,
        allowed_dirs: config.allowed_dirs.clone(),
        // What the store cannot hold is not begun.
        max_bytes: config.max_artifact_bytes.min(config.keep_artifacts_bytes),
        ..default
    }
}

/// Makes the data folder, and takes it for this process.
fn lock_folder(folder: &Path) -> Result<File, BuildError> {
    let path = folder.join("lock");
    let failed = |source| BuildError::Disk { path: path.clone(), source };
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(failed)?;
    let lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(BuildError::InUse(folder.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// What tells the containers of this data folder from those of others at the same engine: made once, and kept.
fn label(folder: &Path) -> Result<String, BuildError> {
    let path = folder.join("container-label");
    let failed = |source| BuildError::Disk { path: path.clone(), source };
    match private_file::create_new(&path, hex::encode(rand::random::<[u8; 16]>()).as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    let label = std::fs::read_to_string(&path).map_err(failed)?;
    let is_label = label.len() == 32 && label.chars().all(|c| c.is_ascii_hexdigit());
    if is_label { Ok(label) } else { Err(failed(io::Error::other("it is damaged; remove it"))) }
}

/// Reads the token, and makes one first where there is none.
fn token(path: &Path) -> Result<Secret, BuildError> {
    let token = hex::encode(rand::random::<[u8; 32]>());
    match private_file::create_new(path, format!("{token}\n").as_bytes()) {
        Ok(()) => tracing::info!(path = %path.display(), "made a token file"),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(BuildError::Disk { path: path.to_owned(), source }),
    }
    Ok(daemon::read_secret_file(path)?)
}
