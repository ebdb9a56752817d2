//! What the engine is told about a job's container: everything that keeps it in.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType,
    ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use taskmarket::params::{ContainerParams, Params};

use super::engine::EngineName;
use super::{ContainerSettings, LIFE_LABEL, NODE_LABEL, TASK_LABEL};
use crate::runtime::{Gpu, Job, RunCode, RunError};

/// The least memory that engines accept for a container, in MiB.
const LEAST_MEMORY_MB: u64 = 6;

/// The least processor time that kernels and engines accept for a container, in thousandths of one processor.
pub(crate) const LEAST_CPU_MILLIS: u32 = 10;

/// The most folders that an image may declare as volumes.
const MAX_VOLUMES: usize = 64;

/// Where containers have what the kernel gives them.
const KERNELS: [&str; 3] = ["/dev", "/proc", "/sys"];

/// The files that a container may have open, and the processes of its user, in all containers together.
const OPEN_FILES: i64 = 4096;
const USER_PROCESSES: i64 = 4096;

/// The shared memory of a container at most, in bytes.
const SHARED_MEMORY_BYTES: u64 = 64 << 20;

/// What Podman makes writable besides what it is asked for, bounded here: in bytes for each.
const SMALL_BYTES: u64 = 16 << 20;

/// What a job may use, by its parameters and by the node.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    pub(super) params: ContainerParams,
    pub(super) memory_bytes: u64,
    pub(super) cpu_millis: u32,
    pub(super) disk_bytes: u64,
}

/// A container that is about to be made.
pub(super) struct Spec<'a> {
    pub(super) settings: &'a ContainerSettings,
    pub(super) engine: EngineName,
    pub(super) rootless: bool,
    pub(super) life: &'a str,
    pub(super) label: &'a str,
    pub(super) image: &'a str,
    /// Folders that the image declares as volumes.
    pub(super) volumes: &'a [String],
    pub(super) bounds: &'a Bounds,
    /// A file, which becomes `/in/input`, or a folder, which becomes `/in`.
    pub(super) input: &'a Path,
    pub(super) output: &'a Path,
    pub(super) user: (u32, u32),
    pub(super) gpus: &'a [Gpu],
    /// The container whose network, which leads to the proxy only, it shares; otherwise it has none.
    pub(super) network_of: Option<&'a str>,
    /// Variables besides the task's.
    pub(super) environment: Vec<String>,
}

impl Bounds {
    /// Reads the parameters of a job, and holds them against what the node allows.
    pub(super) fn of(job: &Job, settings: &ContainerSettings) -> Result<Self, RunError> {
        let bad = |message: String| RunError::new(RunCode::BadParams, message);
        let params = match Params::parse(taskmarket::params::Runtime::Container, &job.params) {
            Ok(Params::Container(params)) => params,
            Ok(Params::Embed(_) | Params::Wasm(_) | Params::Openai(_)) => {
                return Err(bad("these are parameters of another runtime".to_owned()));
            }
            Err(error) => return Err(bad(error.to_string())),
        };
        let nul = |text: &String| text.contains('\0');
        let named = |name: &String| !name.is_empty() && !name.contains(['=', '\0']);
        if params.args.iter().chain(&params.entrypoint).chain(params.env.values()).any(nul) {
            return Err(bad("entrypoint, args and env must not contain NUL".to_owned()));
        }
        if let Some(name) = params.env.keys().find(|name| !named(name)) {
            return Err(bad(format!("env: {name:?} is no name of a variable")));
        }
        let within = |name: &str, asked: Option<u32>, least: u64, allowed: u64| match asked.map(u64::from) {
            None => Ok(allowed),
            Some(asked) if asked < least => Err(bad(format!("{name} is {asked}; the least is {least}"))),
            Some(asked) if asked > allowed => {
                Err(bad(format!("{name} is {asked}; this node allows {allowed}")))
            }
            Some(asked) => Ok(asked),
        };
        let allowed_mb = job.limits.memory_bytes >> 20;
        let memory_mb = within("memory_mb", params.memory_mb, LEAST_MEMORY_MB, allowed_mb)?;
        let least_cpu = LEAST_CPU_MILLIS.into();
        let cpu_millis = within("cpu_millis", params.cpu_millis, least_cpu, settings.cpu_millis.into())?;
        let disk_mb = within("disk_mb", params.disk_mb, 1, settings.disk_mb.into())?;
        Ok(Self {
            memory_bytes: memory_mb << 20,
            cpu_millis: u32::try_from(cpu_millis).unwrap_or(u32::MAX),
            disk_bytes: disk_mb << 20,
            params,
        })
    }
}

impl Spec<'_> {
    /// The request that makes the container.
    pub(super) fn body(self) -> Result<ContainerCreateBody, RunError> {
        let Self { settings, bounds, label, .. } = self;
        let given = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
        let task = bounds.params.env.iter().map(|(name, value)| format!("{name}={value}"));
        let environment: Vec<String> = self.environment.iter().cloned().chain(task).collect();
        let (uid, gid) = self.user;
        Ok(ContainerCreateBody {
            // A container that shares a network shares its name too.
            hostname: self.network_of.is_none().then(|| "task".to_owned()),
            user: Some(format!("{uid}:{gid}")),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            env: Some(environment),
            entrypoint: given(&bounds.params.entrypoint),
            cmd: given(&bounds.params.args),
            image: Some(self.image.to_owned()),
            // An image's health check would be run by the engine, beside the program.
            healthcheck: Some(HealthConfig {
                test: Some(vec!["NONE".to_owned()]),
                ..HealthConfig::default()
            }),
            stop_signal: Some("SIGTERM".to_owned()),
            labels: Some(labels(settings, self.life, label)),
            host_config: Some(self.host_config()?),
            ..ContainerCreateBody::default()
        })
    }

    fn host_config(&self) -> Result<HostConfig, RunError> {
        let Self { settings, bounds, .. } = self;
        let network = self.network_of.map_or_else(|| "none".to_owned(), |name| format!("container:{name}"));
        let input = if self.input.is_dir() { "/in" } else { "/in/input" };
        Ok(HostConfig {
            memory: Some(signed(bounds.memory_bytes)),
            nano_cpus: Some(i64::from(bounds.cpu_millis) * 1_000_000),
            tmpfs: Some(self.tmpfs()?),
            mounts: Some(vec![bind(self.input, input, true)?, bind(self.output, "/out", false)?]),
            shm_size: Some(signed(SHARED_MEMORY_BYTES.min(bounds.memory_bytes))),
            network_mode: Some(network),
            userns_mode: self.userns(),
            device_requests: self.device_requests()?,
            ..confined(settings, signed(bounds.memory_bytes), signed(bounds.disk_bytes))
        })
    }

    /// What is writable besides `/out`: memory of the container's own.
    fn tmpfs(&self) -> Result<HashMap<String, String>, RunError> {
        let options = |bytes: u64, mode: &str| format!("rw,exec,nosuid,nodev,size={bytes},mode={mode}");
        let room = self.bounds.disk_bytes.min(self.bounds.memory_bytes);
        let mut tmpfs = HashMap::from([("/tmp".to_owned(), options(room, "1777"))]);
        if self.engine == EngineName::Podman {
            for path in ["/run", "/var/tmp"] {
                tmpfs.insert(path.to_owned(), options(SMALL_BYTES.min(room), "1777"));
            }
        }
        // A volume that the image declares would be a folder on the disk, without a bound.
        let refused = |reason: String| RunError::new(RunCode::BadModel, reason);
        if self.volumes.len() > MAX_VOLUMES {
            let reason = format!("the image declares more than {MAX_VOLUMES} volumes");
            return Err(refused(reason));
        }
        for volume in self.volumes {
            let path =
                plain(volume).ok_or_else(|| refused(format!("the image declares {volume:?} as a volume")))?;
            let is_in = |parent: &&str| Path::new(&path).starts_with(parent);
            let is_place = matches!(path.as_str(), "/in" | "/out" | "/tmp");
            if path == "/" || KERNELS.iter().any(is_in) {
                let reason =
                    format!("the image declares a volume at {path}, where the container's system is");
                return Err(refused(reason));
            }
            if ["/in", "/out"].iter().any(is_in) && !is_place {
                let reason = format!("the image declares a volume at {path}, where input and output are");
                return Err(refused(reason));
            }
            if !is_place {
                tmpfs.insert(path, options(room, "0777"));
            }
        }
        Ok(tmpfs)
    }

    fn userns(&self) -> Option<String> {
        let (uid, gid) = self.user;
        if self.settings.user_namespace.is_some() {
            self.settings.user_namespace.clone()
        } else if self.engine == EngineName::Podman && self.rootless {
            // The job's user is this node's own on the host, so that its files can be removed.
            Some(format!("keep-id:uid={uid},gid={gid}"))
        } else {
            None
        }
    }

    /// Exactly the job's GPUs, by their own ids.
    fn device_requests(&self) -> Result<Option<Vec<DeviceRequest>>, RunError> {
        if self.gpus.is_empty() {
            return Ok(None);
        }
        let mut ids = Vec::new();
        for gpu in self.gpus {
            let unnamed = || RunError::new(RunCode::Internal, format!("{} has no id of its own", gpu.name));
            ids.push(gpu.uuid.clone().ok_or_else(unnamed)?);
        }
        let request = match self.engine {
            EngineName::Docker => DeviceRequest {
                driver: Some("nvidia".to_owned()),
                device_ids: Some(ids),
                capabilities: Some(vec![vec!["gpu".to_owned()]]),
                ..DeviceRequest::default()
            },
            EngineName::Podman => DeviceRequest {
                driver: Some("cdi".to_owned()),
                device_ids: Some(ids.iter().map(|id| format!("nvidia.com/gpu={id}")).collect()),
                ..DeviceRequest::default()
            },
        };
        Ok(Some(vec![request]))
    }
}

/// What every container of this node has: no rights, no devices, no network, bounded processes and memory.
pub(super) fn confined(settings: &ContainerSettings, memory: i64, file_bytes: i64) -> HostConfig {
    let limit = |name: &str, most: i64| ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(most),
        hard: Some(most),
    };
    HostConfig {
        memory: Some(memory),
        memory_swap: Some(memory),
        pids_limit: Some(settings.pids.into()),
        ulimits: Some(vec![
            limit("core", 0),
            limit("fsize", file_bytes),
            limit("nofile", OPEN_FILES),
            limit("nproc", USER_PROCESSES),
        ]),
        // What it writes to its streams is read as it comes, so that no log grows on the disk.
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        network_mode: Some("none".to_owned()),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        cap_drop: Some(vec!["ALL".to_owned()]),
        ipc_mode: Some("private".to_owned()),
        privileged: Some(false),
        readonly_rootfs: Some(true),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        runtime: settings.runtime.clone(),
        ..HostConfig::default()
    }
}

/// How the containers of this node are known.
pub(super) fn labels(settings: &ContainerSettings, life: &str, task: &str) -> HashMap<String, String> {
    let labels =
        BTreeMap::from([(NODE_LABEL, settings.node.as_str()), (LIFE_LABEL, life), (TASK_LABEL, task)]);
    labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// A path from the root on, in the one way to write it; `None` if it is none that can be mounted on.
fn plain(path: &str) -> Option<String> {
    let parts: Vec<&str> =
        path.strip_prefix('/')?.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let is_bad = parts.contains(&"..") || path.contains([':', ',']) || path.chars().any(char::is_control);
    (!is_bad).then(|| format!("/{}", parts.join("/")))
}

fn bind(source: &Path, target: &str, read_only: bool) -> Result<Mount, RunError> {
    let source = source.canonicalize().map_err(|error| {
        RunError::new(RunCode::Internal, format!("cannot mount {}: {error}", source.display()))
    })?;
    let unnamed = || RunError::new(RunCode::Internal, "a folder of this node has no name in UTF-8");
    Ok(Mount {
        target: Some(target.to_owned()),
        source: Some(source.to_str().ok_or_else(unnamed)?.to_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(read_only),
        ..Mount::default()
    })
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::runtime::{Limits, Model, ModelFiles};

    fn body(engine: EngineName, gpus: &[Gpu], volumes: &[String]) -> Result<ContainerCreateBody, RunError> {
        let place = std::env::temp_dir();
        let bounds = Bounds {
            params: ContainerParams::default(),
            memory_bytes: 64 << 20,
            cpu_millis: 1500,
            disk_bytes: 16 << 20,
        };
        let spec = Spec {
            settings: &ContainerSettings::default(),
            engine,
            rootless: false,
            life: "life",
            label: "0xtask.1",
            image: "sha256:00",
            volumes,
            bounds: &bounds,
            input: &place,
            output: &place,
            user: (65_532, 65_532),
            gpus,
            network_of: None,
            environment: Vec::new(),
        };
        spec.body()
    }

    #[test]
    fn exactly_the_jobs_gpus_are_asked_for_by_their_ids() {
        let gpu =
            |uuid: Option<&str>| Gpu { index: 3, uuid: uuid.map(str::to_owned), name: "H100".to_owned() };
        let request = |engine, gpus: &[Gpu]| {
            body(engine, gpus, &[]).unwrap().host_config.unwrap().device_requests.map(|mut all| all.remove(0))
        };
        assert_eq!(request(EngineName::Docker, &[]), None);
        let docker = request(EngineName::Docker, &[gpu(Some("GPU-1")), gpu(Some("GPU-2"))]).unwrap();
        assert_eq!(docker.device_ids.unwrap(), ["GPU-1", "GPU-2"]);
        assert_eq!((docker.driver.as_deref(), docker.count), (Some("nvidia"), None));
        let podman = request(EngineName::Podman, &[gpu(Some("GPU-1"))]).unwrap();
        assert_eq!(podman.device_ids.unwrap(), ["nvidia.com/gpu=GPU-1"]);
        assert_eq!(body(EngineName::Docker, &[gpu(None)], &[]).unwrap_err().code, RunCode::Internal);
    }

    #[test]
    fn nothing_is_given_that_was_not_asked_for() {
        let body = body(EngineName::Docker, &[], &["/data".to_owned()]).unwrap();
        let host = body.host_config.unwrap();
        assert_eq!(
            (host.memory, host.memory_swap, host.nano_cpus),
            (Some(64 << 20), Some(64 << 20), Some(1_500_000_000))
        );
        assert_eq!((host.network_mode.as_deref(), host.privileged), (Some("none"), Some(false)));
        assert_eq!((host.readonly_rootfs, host.cap_drop), (Some(true), Some(vec!["ALL".to_owned()])));
        assert!(host.tmpfs.unwrap().contains_key("/data"));
        assert_eq!((host.binds, host.devices, host.cap_add, host.group_add), (None, None, None, None));
        assert_eq!(body.user.as_deref(), Some("65532:65532"));
    }

    #[test]
    fn volumes_of_an_image_cannot_cover_input_output_and_the_system() {
        for volume in [
            "/in/input",
            "/out/x",
            "//in/./x",
            "data",
            "",
            "/a/../in",
            "/a:b",
            "/a\nb",
            "/",
            "//",
            "/.",
            "/proc",
            "/proc/",
            "/./proc/self",
            "/sys/fs",
            "/dev",
            "/dev/shm",
        ] {
            let error = body(EngineName::Docker, &[], &[volume.to_owned()]).unwrap_err();
            assert_eq!(error.code, RunCode::BadModel, "{volume}");
        }
        let many: Vec<String> = (0..=MAX_VOLUMES).map(|number| format!("/{number}")).collect();
        assert_eq!(body(EngineName::Docker, &[], &many).unwrap_err().code, RunCode::BadModel);
        let some = ["/in/", "/out", "/tmp//", "/device", "//data/./x/"].map(str::to_owned);
        let tmpfs = body(EngineName::Docker, &[], &some).unwrap().host_config.unwrap().tmpfs.unwrap();
        let mut places: Vec<&str> = tmpfs.keys().map(String::as_str).collect();
        places.sort_unstable();
        assert_eq!(places, ["/data/x", "/device", "/tmp"]);
    }

    #[test]
    fn processors_are_bounded_by_what_kernels_accept_and_the_node_has() {
        let cpu = |millis: u32| {
            let params = ContainerParams { cpu_millis: Some(millis), ..ContainerParams::default() };
            let job = Job {
                params: Params::Container(params).to_canonical(),
                model: Model { files: ModelFiles::Named(String::new()), digest: String::new() },
                input: PathBuf::new(),
                limits: Limits { wall: Duration::ZERO, memory_bytes: 64 << 20, output_bytes: 0 },
                gpus: Vec::new(),
                folder: PathBuf::new(),
                label: String::new(),
            };
            let settings = ContainerSettings { cpu_millis: 1500, ..ContainerSettings::default() };
            Bounds::of(&job, &settings).map(|bounds| bounds.cpu_millis).map_err(|error| error.code)
        };
        assert_eq!([cpu(9), cpu(1501)], [Err(RunCode::BadParams); 2]);
        assert_eq!([cpu(10), cpu(1500)], [Ok(10), Ok(1500)]);
    }
}
