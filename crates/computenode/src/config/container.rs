//! The flags of containers.

use std::path::PathBuf;

use clap::Args;

use crate::runtime::container::{ContainerSettings, EgressPolicy, LEAST_CPU_MILLIS};

/// What a processor is counted in.
const MILLIS: f64 = 1000.0;

/// The most processors that a task may be given.
const MAX_PROCESSORS: f64 = 1024.0;

/// How containers run, if they do.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Containers")]
pub struct ContainerArgs {
    /// Run no containers, even where an engine is here.
    #[arg(long, env = "ZORAI_NODE_NO_CONTAINER")]
    pub no_container: bool,

    /// The socket of Docker or Podman [default: the first that answers of $DOCKER_HOST, /run/podman/podman.sock,
    /// $XDG_RUNTIME_DIR/podman/podman.sock and /var/run/docker.sock].
    #[arg(long, env = "ZORAI_NODE_CONTAINER_SOCKET", value_name = "SOCKET")]
    pub container_socket: Option<PathBuf>,

    /// The engine's name of a stronger OCI runtime, such as runsc or kata; Podman's must be the default of its containers.conf
    /// [default: the engine's own].
    #[arg(long, env = "ZORAI_NODE_CONTAINER_RUNTIME", value_name = "NAME")]
    pub container_runtime: Option<String>,

    /// The engine's user namespace mode, such as Podman's auto [default: the engine's own].
    #[arg(long, env = "ZORAI_NODE_CONTAINER_USERNS", value_name = "MODE")]
    pub container_userns: Option<String>,

    /// Processors of one container at most.
    #[arg(long, env = "ZORAI_NODE_CONTAINER_CPUS", value_name = "N", default_value = "2",
          value_parser = parse_processors)]
    pub container_cpus: u32,

    /// Room of one container for its result and for /tmp at most, in MiB.
    #[arg(long, env = "ZORAI_NODE_CONTAINER_DISK_MB", value_name = "MIB", default_value_t = 4096,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub container_disk_mb: u32,

    /// Processes and threads of one container at most.
    #[arg(long, env = "ZORAI_NODE_CONTAINER_PIDS", value_name = "N", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub container_pids: u32,

    /// The largest image, unpacked, in bytes.
    #[arg(long, env = "ZORAI_NODE_MAX_IMAGE_BYTES", value_name = "BYTES", default_value_t = 32 << 30)]
    pub max_image_bytes: u64,

    /// How much room images may take between tasks, in bytes; what was used longest ago goes first.
    #[arg(long, env = "ZORAI_NODE_KEEP_IMAGES_BYTES", value_name = "BYTES", default_value_t = 64 << 30)]
    pub keep_images_bytes: u64,

    /// A domain that containers may reach if their tasks ask for it, such as example.org, or *.example.org for all below
    /// it; repeatable. Without any, containers have no network.
    #[arg(long, env = "ZORAI_NODE_ALLOW_EGRESS", value_name = "DOMAIN", value_delimiter = ',',
          value_parser = EgressPolicy::parse_domain)]
    pub allow_egress: Vec<String>,

    /// Run containers although the engine cannot enforce all limits. Only where all requesters are trusted.
    #[arg(long, env = "ZORAI_NODE_ALLOW_UNENFORCED_LIMITS")]
    pub allow_unenforced_limits: bool,
}

impl ContainerArgs {
    /// What the runtime is told; `None` if no containers are to run.
    pub(super) fn settings(self, allow_private_addresses: bool) -> Option<ContainerSettings> {
        (!self.no_container).then(|| ContainerSettings {
            socket: self.container_socket,
            runtime: self.container_runtime,
            user_namespace: self.container_userns,
            cpu_millis: self.container_cpus,
            disk_mb: self.container_disk_mb,
            pids: self.container_pids,
            image_bytes: self.max_image_bytes,
            keep_images_bytes: self.keep_images_bytes,
            egress: EgressPolicy {
                domains: self.allow_egress,
                allow_private_addresses,
                ..EgressPolicy::default()
            },
            allow_unenforced: self.allow_unenforced_limits,
            ..ContainerSettings::default()
        })
    }
}

/// Processors, in thousandths of one.
fn parse_processors(text: &str) -> Result<u32, String> {
    let least = f64::from(LEAST_CPU_MILLIS) / MILLIS;
    let number = text.parse().ok().filter(|number: &f64| (least..=MAX_PROCESSORS).contains(number));
    let number = number.ok_or_else(|| format!("{text:?} is no number of processors, such as 2 or 0.5"))?;
    Ok((number * MILLIS).round() as u32)
}
