//! The node's flags, and the typed configuration that they become.

mod container;

pub use container::ContainerArgs;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use url::Url;

use crate::disk::MinFreeDisk;
use crate::engines::{EngineArgs, EnginesConfig};
use crate::runtime::container::ContainerSettings;

/// The name of the node's folder below the data root.
const PROGRAM: &str = "node";

/// Runs tasks for the compute agent on this host, in a sandbox and within limits.
///
/// The agent finds the node by its address and proves itself with the token in the node's token file. Whoever has that
/// token can run programs here, sandboxed: keep the node on loopback.
#[derive(Debug, Clone, ClapArgs)]
pub struct Args {
    /// Where to listen.
    #[arg(long, env = "ZORAI_NODE_LISTEN", default_value = "127.0.0.1:8645", value_name = "ADDRESS:PORT",
          value_parser = daemon::parse_listen)]
    pub listen: SocketAddr,

    /// Listen on an address that other hosts can reach. The traffic is not encrypted: only on a trusted network.
    #[arg(long, env = "ZORAI_NODE_ALLOW_REMOTE")]
    pub allow_remote: bool,

    /// Where results and fetched models are kept [default: $ZORAI_HOME/node or ~/.local/share/zorai/node].
    #[arg(long, env = "ZORAI_NODE_DATA", value_name = "FOLDER")]
    pub data: Option<PathBuf>,

    /// The file with the token that callers must show; made with mode 0600 if missing [default: compute-token in the
    /// data folder].
    #[arg(long, env = "ZORAI_NODE_COMPUTE_TOKEN_FILE", value_name = "FILE")]
    pub compute_token_file: Option<PathBuf>,

    /// How many tasks run at once [default: one per GPU, or 2 without one].
    #[arg(long, env = "ZORAI_NODE_SLOTS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub slots: Option<u32>,

    /// A folder from which tasks may read by file:// references; repeatable, or several with colons between.
    #[arg(long, env = "ZORAI_NODE_ALLOW_DIR", value_name = "FOLDER", value_delimiter = ':')]
    pub allow_dir: Vec<PathBuf>,

    /// Let tasks fetch from loopback and private addresses. Only where all requesters are trusted.
    #[arg(long, env = "ZORAI_NODE_ALLOW_PRIVATE_ADDRESSES")]
    pub allow_private_addresses: bool,

    /// A PEM file with certificate authorities to trust besides the system's, for a relay with a private certificate.
    #[arg(long, env = "ZORAI_NODE_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// The largest model or input that is fetched, in bytes.
    #[arg(long, env = "ZORAI_NODE_MAX_ARTIFACT_BYTES", value_name = "BYTES", default_value_t = 32 << 30)]
    pub max_artifact_bytes: u64,

    /// A trustless IPFS gateway to fetch ipfs:// references from; repeatable, the first is asked first. "none" turns ipfs://
    /// off [default: public gateways].
    #[arg(long, env = "ZORAI_NODE_IPFS_GATEWAY", value_name = "URL", value_delimiter = ',', value_parser = parse_gateway)]
    pub ipfs_gateway: Vec<Gateway>,

    /// The memory that one task may use for its data, in MiB.
    #[arg(long, env = "ZORAI_NODE_TASK_MEMORY_MB", value_name = "MIB", default_value_t = 4096)]
    pub task_memory_mb: u32,

    /// The largest result of a task, in bytes.
    #[arg(long, env = "ZORAI_NODE_MAX_RESULT_BYTES", value_name = "BYTES", default_value_t = 64 << 20)]
    pub max_result_bytes: u64,

    /// How long results are kept: a number and s, m, h or d. Keep them until the money of their tasks is final.
    #[arg(long, env = "ZORAI_NODE_KEEP_RESULTS", value_name = "TIME", default_value = "14d", value_parser = parse_duration)]
    pub keep_results: Duration,

    /// How much room all results may take, in bytes; the oldest go first.
    #[arg(long, env = "ZORAI_NODE_KEEP_RESULTS_BYTES", value_name = "BYTES", default_value_t = 16 << 30)]
    pub keep_results_bytes: u64,

    /// How much room fetched models and inputs may take, in bytes. Before more is fetched, what no task uses goes, what was used
    /// longest ago first; what does not fit then is not fetched.
    #[arg(long, env = "ZORAI_NODE_KEEP_ARTIFACTS_BYTES", value_name = "BYTES", default_value_t = 128 << 30)]
    pub keep_artifacts_bytes: u64,

    /// Take no tasks while the disk of the data folder has less room: bytes, or a share such as 5% [default: 2 GiB, or
    /// 5% of a disk where that is less].
    #[arg(long, env = "ZORAI_NODE_MIN_FREE_DISK", value_name = "BYTES|PERCENT")]
    pub min_free_disk: Option<MinFreeDisk>,

    /// How long running tasks may go on after a signal to end: a number and s, m, h or d.
    #[arg(long, env = "ZORAI_NODE_GRACE", value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub grace: Duration,

    /// The GPU's name, where it cannot be detected.
    #[arg(long, env = "ZORAI_NODE_GPU_NAME", value_name = "NAME", requires = "gpu_vram_mb")]
    pub gpu_name: Option<String>,

    /// The GPU's memory in MiB, where it cannot be detected.
    #[arg(long, env = "ZORAI_NODE_GPU_VRAM_MB", value_name = "MIB", requires = "gpu_name")]
    pub gpu_vram_mb: Option<u64>,

    /// Let several tasks that name the GPU memory they need share a GPU [default: each GPU works for one task].
    #[arg(long, env = "ZORAI_NODE_SHARE_GPUS")]
    pub share_gpus: bool,

    /// How containers run.
    #[command(flatten)]
    pub container: ContainerArgs,

    /// The engines.
    #[command(flatten)]
    pub engines: EngineArgs,
}

/// Where `ipfs://` is fetched from, or that it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gateway {
    /// From nowhere.
    None,
    /// From this gateway.
    At(Url),
}

/// What the node is told: [`Args`] with every default filled in.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Whether that may be beyond loopback.
    pub allow_remote: bool,
    /// The folder with everything that the node keeps.
    pub data: PathBuf,
    /// The file with the token.
    pub token_file: PathBuf,
    /// How many tasks run at once; by the devices if `None`.
    pub slots: Option<u32>,
    /// The folders of `file://` references.
    pub allowed_dirs: Vec<PathBuf>,
    /// Whether references may lead to loopback and private addresses.
    pub allow_private_addresses: bool,
    /// Certificate authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// The largest model or input, in bytes.
    pub max_artifact_bytes: u64,
    /// Where `ipfs://` is fetched from: the default gateways if `None`, nowhere if empty.
    pub ipfs_gateways: Option<Vec<Url>>,
    /// Memory for one task's data, in bytes.
    pub task_memory_bytes: u64,
    /// The largest result, in bytes.
    pub max_result_bytes: u64,
    /// How long results are kept.
    pub keep_results: Duration,
    /// How much room they may take, in bytes.
    pub keep_results_bytes: u64,
    /// How much room fetched files may take, in bytes.
    pub keep_artifacts_bytes: u64,
    /// The room on the disk without which no task is taken.
    pub min_free_disk: MinFreeDisk,
    /// How long running tasks may go on after the wish to end.
    pub grace: Duration,
    /// Name and memory in MiB of a GPU that is declared rather than detected.
    pub declared_gpu: Option<(String, u64)>,
    /// Whether tasks may share a GPU.
    pub share_gpus: bool,
    /// How containers run; not at all if `None`.
    pub container: Option<ContainerSettings>,
    /// The engines.
    pub engines: EnginesConfig,
}

impl From<Args> for Config {
    fn from(args: Args) -> Self {
        let data = args.data.unwrap_or_else(|| daemon::default_data_dir(PROGRAM));
        Self {
            listen: args.listen,
            allow_remote: args.allow_remote,
            token_file: args.compute_token_file.unwrap_or_else(|| data.join("compute-token")),
            data,
            slots: args.slots,
            allowed_dirs: args.allow_dir,
            allow_private_addresses: args.allow_private_addresses,
            ca_file: args.ca_file,
            max_artifact_bytes: args.max_artifact_bytes,
            ipfs_gateways: gateways(args.ipfs_gateway),
            task_memory_bytes: u64::from(args.task_memory_mb) << 20,
            max_result_bytes: args.max_result_bytes,
            keep_results: args.keep_results,
            keep_results_bytes: args.keep_results_bytes,
            keep_artifacts_bytes: args.keep_artifacts_bytes,
            min_free_disk: args.min_free_disk.unwrap_or_default(),
            grace: args.grace,
            declared_gpu: args.gpu_name.zip(args.gpu_vram_mb),
            share_gpus: args.share_gpus,
            container: args.container.settings(args.allow_private_addresses),
            engines: args.engines.into(),
        }
    }
}

fn gateways(given: Vec<Gateway>) -> Option<Vec<Url>> {
    let urls = |gateway| match gateway {
        Gateway::None => None,
        Gateway::At(url) => Some(url),
    };
    (!given.is_empty()).then(|| given.into_iter().filter_map(urls).collect())
}

fn parse_gateway(text: &str) -> Result<Gateway, String> {
    if text == "none" {
        return Ok(Gateway::None);
    }
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.map(Gateway::At).ok_or_else(|| format!("{text:?} is neither the URL of a gateway nor \"none\""))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; write a number and s, m, h or d, such as 90s or 14d");
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    fn parse(flags: &[&str]) -> Result<Config, clap::Error> {
        Program::try_parse_from([&["compute-node"], flags].concat()).map(|program| program.args.into())
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let config = parse(&["--data", "/d"]).unwrap();
        assert_eq!(config.listen, "127.0.0.1:8645".parse().unwrap());
        assert_eq!(config.token_file, PathBuf::from("/d/compute-token"));
        assert_eq!(config.keep_results, Duration::from_secs(14 * 86_400));
        assert_eq!(config.task_memory_bytes, 4 << 30);
        assert_eq!(config.ipfs_gateways, None);
        let container = config.container.unwrap();
        assert_eq!((container.cpu_millis, container.disk_mb, container.pids), (2000, 4096, 256));
        assert_eq!(container.egress.domains, Vec::<String>::new());
    }

    #[test]
    fn containers_and_gateways_are_told_by_flags() {
        assert!(parse(&["--no-container"]).unwrap().container.is_none());
        let flags =
            ["--container-cpus", "0.5", "--allow-egress", "example.org", "--allow-egress", "*.example.org"];
        let container = parse(&flags).unwrap().container.unwrap();
        assert_eq!(container.cpu_millis, 500);
        assert_eq!(container.egress.domains, ["example.org", "*.example.org"]);
        assert!(!container.egress.allow_private_addresses);
        let gateways = |flags: &[&str]| parse(flags).unwrap().ipfs_gateways.unwrap();
        assert_eq!(gateways(&["--ipfs-gateway", "none"]), []);
        let two = ["--ipfs-gateway", "http://127.0.0.1:8080", "--ipfs-gateway", "https://a.example"];
        assert_eq!(
            gateways(&two).iter().map(Url::as_str).collect::<Vec<_>>(),
            ["http://127.0.0.1:8080/", "https://a.example/"]
        );
    }

    #[test]
    fn wrong_flags_are_refused() {
        for flags in [
            &["--listen", "nowhere"][..],
            &["--slots", "0"],
            &["--gpu-name", "A100"],
            &["--gpu-vram-mb", "8"],
            &["--keep-results", "14"],
            &["--keep-results", "é"],
            &["--grace", "99999999999999999999d"],
            &["--min-free-disk", "101%"],
            &["--min-free-disk", "2GiB"],
            &["--ipfs-gateway", "ipfs.example"],
            &["--container-cpus", "0"],
            &["--container-cpus", "0.009"],
            &["--container-cpus", "NaN"],
            &["--container-disk-mb", "0"],
            &["--allow-egress", "https://example.org"],
            &["--allow-egress", "10.0.0.1"],
        ] {
            assert!(parse(flags).is_err(), "{flags:?}");
        }
    }
}
