//! The container engine: how it is found, and what it can enforce.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{Runtime, SystemInfo, SystemInfoCgroupVersionEnum, SystemVersion};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio_util::task::AbortOnDropHandle;

use super::{ContainerSettings, egress};

/// How long an engine may take for an answer that costs it nothing.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// How long an engine may take for what is neither making a container, loading an image nor waiting for a program.
pub(super) const ENGINE_TIME: Duration = Duration::from_secs(30);

/// How long one request may take at most, in seconds: a large image is loaded by one. Shorter deadlines are ours.
const REQUEST_SECONDS: u64 = 4 * 3600;

/// Which engine answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineName {
    /// Docker.
    Docker,
    /// Podman.
    Podman,
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "Docker",
            Self::Podman => "Podman",
        })
    }
}

/// What an engine is, and what it can enforce.
#[derive(Debug, Clone)]
pub struct EngineReport {
    /// Which engine.
    pub name: EngineName,
    /// Its version.
    pub version: String,
    /// The version of its API.
    pub api_version: String,
    /// Where it answers.
    pub socket: PathBuf,
    /// The version of the control groups that it enforces limits with: 1 or 2, if it says.
    pub cgroup_version: Option<u8>,
    /// Whether it runs without the rights of root.
    pub rootless: bool,
    /// Whether a container's users are other users on the host.
    pub user_namespace: bool,
    /// The processors' architecture, as images name it: `amd64`, `arm64`.
    pub architecture: String,
    /// How many processors it has, if it says.
    pub processors: Option<u32>,
    /// The OCI runtimes that it has, by its names for them.
    pub runtimes: Vec<String>,
    /// What it cannot enforce. While there is anything, jobs are refused unless the operator allows them.
    pub unenforced: Vec<Unenforced>,
    /// Why no job can be let out to allowed domains, if none can.
    pub egress_unavailable: Option<String>,
}

impl EngineReport {
    /// What the engine is that [`super::ContainerRuntime::detect`] would find.
    ///
    /// # Errors
    /// As there.
    pub async fn of(settings: &ContainerSettings) -> Result<Option<Self>, DetectError> {
        Ok(find(settings).await?.map(|(_, report)| report))
    }
}

/// A limit that an engine cannot enforce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unenforced {
    /// Which: `memory`, `swap`, `pids`, `cpu`, `seccomp`, `files`.
    pub limit: &'static str,
    /// Why, and what helps.
    pub reason: String,
}

impl fmt::Display for Unenforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.limit, self.reason)
    }
}

/// Why no engine can be used.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// The engine that was asked for does not answer.
    #[error("no container engine answers at {}: {reason}", .socket.display())]
    NoAnswer {
        /// Where it was looked for.
        socket: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The engine knows no OCI runtime of that name.
    #[error("the container engine has no OCI runtime {0:?}")]
    NoRuntime(String),
    /// Podman runs containers by its own default, whatever it is asked for, and says nothing.
    #[error(
        "Podman runs containers by its own OCI runtime, {default:?}, whatever it is asked for: set runtime = {named:?} \
         under [engine] in its containers.conf, and start its service again"
    )]
    PodmansRuntime {
        /// What it runs them by.
        default: String,
        /// What the settings name.
        named: String,
    },
    /// The thread that starts and removes containers cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Ends a request that takes longer than [`ENGINE_TIME`].
pub(super) async fn in_time<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(ENGINE_TIME, request).await.unwrap_or(Err(Error::RequestTimeoutError))
}

/// Asks the engine at `socket` for what the library cannot read: at most `limit` bytes.
pub(super) async fn get(socket: &Path, path: &str, limit: usize) -> io::Result<Bytes> {
    let asking = async {
        let stream = tokio::net::UnixStream::connect(socket).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let request = http::Request::get(path)
            .header(http::header::HOST, "localhost")
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), limit).collect().await.map_err(io::Error::other)?;
        if !status.is_success() {
            return Err(io::Error::other(format!("the engine answers {status}")));
        }
        Ok(body.to_bytes())
    };
    tokio::time::timeout(ENGINE_TIME, asking).await.unwrap_or_else(|late| Err(late.into()))
}

/// Looks for an engine: the one that is named, or the first that answers.
pub(super) async fn find(
    settings: &ContainerSettings,
) -> Result<Option<(Docker, EngineReport)>, DetectError> {
    if let Some(socket) = &settings.socket {
        let found = ask(socket, settings).await;
        let found = found.map_err(|reason| DetectError::NoAnswer { socket: socket.clone(), reason })?;
        check_runtime(&found, settings).await?;
        return Ok(Some(found));
    }
    for socket in usual_sockets() {
        match ask(&socket, settings).await {
            Ok(found) => {
                check_runtime(&found, settings).await?;
                return Ok(Some(found));
            }
            Err(reason) => {
                tracing::debug!(socket = %socket.display(), reason, "no container engine answers");
            }
        }
    }
    Ok(None)
}

/// Whether the engine has the OCI runtime that the settings name.
async fn check_runtime(
    (docker, report): &(Docker, EngineReport),
    settings: &ContainerSettings,
) -> Result<(), DetectError> {
    let Some(name) = &settings.runtime else { return Ok(()) };
    let missing = || DetectError::NoRuntime(name.clone());
    let silent =
        |error: Error| DetectError::NoAnswer { socket: report.socket.clone(), reason: error.to_string() };
    let info = in_time(docker.info()).await.map_err(silent)?;
    let known = info.runtimes.unwrap_or_default().remove(name).filter(is_installed).ok_or_else(missing)?;
    let default = info.default_runtime.unwrap_or_default();
    if report.name == EngineName::Podman && *name != default && known.path.as_ref() != Some(&default) {
        return Err(DetectError::PodmansRuntime { default, named: name.clone() });
    }
    Ok(())
}

/// Podman lists every runtime that it has heard of, installed or not.
fn is_installed(runtime: &Runtime) -> bool {
    let path = Path::new(runtime.path.as_deref().unwrap_or_default());
    !path.is_absolute() || path.exists()
}

/// A connection to the engine at `socket`.
fn connect(socket: &Path) -> Result<Docker, String> {
    let path = socket.to_str().ok_or("its path is no UTF-8")?;
    let docker = Docker::connect_with_unix(path, REQUEST_SECONDS, bollard::API_DEFAULT_VERSION);
    docker.map_err(|error| error.to_string())
}

async fn ask(socket: &Path, settings: &ContainerSettings) -> Result<(Docker, EngineReport), String> {
    if !socket.exists() {
        return Err("there is no such socket".to_owned());
    }
    let asking = async {
        let docker = connect(socket)?.negotiate_version().await.map_err(|error| error.to_string())?;
        let version = docker.version().await.map_err(|error| error.to_string())?;
        let info = docker.info().await.map_err(|error| error.to_string())?;
        let report = report(socket, settings, &version, &info);
        Ok((docker, report))
    };
    tokio::time::timeout(ANSWER_TIME, asking)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER_TIME.as_secs())))
}

fn usual_sockets() -> Vec<PathBuf> {
    let variable = |name| std::env::var(name).ok();
    let host = variable("DOCKER_HOST").and_then(|host| host.strip_prefix("unix://").map(PathBuf::from));
    let own = variable("XDG_RUNTIME_DIR").map(|folder| PathBuf::from(folder).join("podman/podman.sock"));
    let fixed = |path: &str| Some(PathBuf::from(path));
    [host, fixed("/run/podman/podman.sock"), own, fixed("/var/run/docker.sock")]
        .into_iter()
        .flatten()
        .collect()
}

fn report(
    socket: &Path,
    settings: &ContainerSettings,
    version: &SystemVersion,
    info: &SystemInfo,
) -> EngineReport {
    let components = version.components.iter().flatten();
    let name = if components.into_iter().any(|component| component.name.contains("Podman")) {
        EngineName::Podman
    } else {
        EngineName::Docker
    };
    let options = info.security_options.clone().unwrap_or_default();
    let has = |wanted: &str| options.iter().any(|option| option.split(',').any(|part| part == wanted));
    let rootless = has("name=rootless");
    EngineReport {
        name,
        version: version.version.clone().unwrap_or_default(),
        api_version: version.api_version.clone().unwrap_or_default(),
        socket: socket.to_owned(),
        cgroup_version: match info.cgroup_version {
            Some(SystemInfoCgroupVersionEnum::_1) => Some(1),
            Some(SystemInfoCgroupVersionEnum::_2) => Some(2),
            Some(SystemInfoCgroupVersionEnum::EMPTY) | None => None,
        },
        rootless,
        user_namespace: rootless || has("name=userns") || settings.user_namespace.is_some(),
        architecture: architecture(version.arch.as_deref().or(info.architecture.as_deref()).unwrap_or("")),
        processors: info.ncpu.and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0),
        runtimes: runtimes(info),
        unenforced: unenforced(name, info, &options, rootless),
        egress_unavailable: egress::why_unavailable(settings, rootless),
    }
}

fn runtimes(info: &SystemInfo) -> Vec<String> {
    let all = info.runtimes.iter().flatten();
    let mut names: Vec<String> =
        all.filter(|(_, runtime)| is_installed(runtime)).map(|(name, _)| name.clone()).collect();
    names.sort();
    names
}

/// The architecture as images name it.
pub(super) fn architecture(name: &str) -> String {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
    .to_owned()
}

fn unenforced(name: EngineName, info: &SystemInfo, options: &[String], rootless: bool) -> Vec<Unenforced> {
    let mut missing = Vec::new();
    let help = if rootless {
        "delegate its controller to the user's systemd instance, or use an engine that runs as root"
    } else {
        "enable its control group controller"
    };
    for (limit, enforced) in [
        ("memory", info.memory_limit),
        ("pids", info.pids_limit),
        ("cpu", info.cpu_cfs_quota),
        // Without any swap there is nothing to limit.
        ("swap", info.swap_limit.map(|limited| limited || !host_has_swap())),
    ] {
        if enforced != Some(true) {
            missing.push(Unenforced { limit, reason: format!("{name} does not enforce it; {help}") });
        }
    }
    let filtered = options
        .iter()
        .any(|option| option.starts_with("name=seccomp") && !option.contains("profile=unconfined"));
    if !filtered {
        let reason = format!("{name} does not filter system calls; use a kernel and an engine with seccomp");
        missing.push(Unenforced { limit: "seccomp", reason });
    }
    if rootless && name == EngineName::Docker {
        let reason = "rootless Docker gives a job's files to users whose files this node cannot remove; \
                      use rootless Podman"
            .to_owned();
        missing.push(Unenforced { limit: "files", reason });
    }
    missing
}

fn host_has_swap() -> bool {
    // The first line names the columns. Without the file nothing is known, so there may be swap.
    std::fs::read_to_string("/proc/swaps").map_or(true, |swaps| swaps.lines().count() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn able() -> SystemInfo {
        SystemInfo {
            memory_limit: Some(true),
            pids_limit: Some(true),
            cpu_cfs_quota: Some(true),
            swap_limit: Some(true),
            ..SystemInfo::default()
        }
    }

    #[test]
    fn what_cannot_be_enforced_is_named() {
        let seccomp = ["name=seccomp,profile=default".to_owned()];
        assert_eq!(unenforced(EngineName::Docker, &able(), &seccomp, false), []);
        let limits = |info: &SystemInfo, options: &[String], rootless| {
            let missing = unenforced(EngineName::Docker, info, options, rootless);
            missing.into_iter().map(|missing| missing.limit).collect::<Vec<_>>()
        };
        assert_eq!(limits(&able(), &[], false), ["seccomp"]);
        assert_eq!(limits(&able(), &["name=seccomp,profile=unconfined".to_owned()], false), ["seccomp"]);
        assert_eq!(limits(&able(), &seccomp, true), ["files"]);
        let info = SystemInfo { memory_limit: Some(false), pids_limit: None, ..able() };
        assert_eq!(limits(&info, &seccomp, false), ["memory", "pids"]);
    }
}
