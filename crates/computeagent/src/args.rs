//! The command line, and what it means.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser};
use daemon::config_file::{self, ConfigError};
use daemon::{LogArgs, Secret, SecretFileError, ShutdownArgs, default_data_dir, read_secret_file};
use taskmarket::{Address, Amount, LEASE_MARGIN_SECS, MAX_GPU_NAME_BYTES, ParseError, Runtime, eip55};
use url::Url;
use wallet::{Wallet, WalletError};

mod escrow;

pub use escrow::EscrowArgs;

use crate::config::{Config, GpuOverride, Policy, RelayUrl, Timing};
use crate::inference::Price;
use crate::policy::{Hours, ImageRule, OwnerUse};

/// The variable that holds the provider's key where no flag names one.
const KEY_VARIABLE: &str = "PROVIDER_PRIVATE_KEY";
/// The variable that holds the keystore's password where no flag names a file.
const PASSWORD_VARIABLE: &str = "ZORAI_KEY_PASSWORD";

/// Offers this machine's compute node to a relay, as a provider.
///
/// The agent dials out, so the machine needs no open port and no public address. Start the compute node first
/// (`compute-node`); the agent finds it on 127.0.0.1:8645 and asks it which GPUs there are.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "compute-agent",
    version,
    arg_required_else_help = true,
    after_help = "The provider's key comes from --provider-key-file, else from the variable PROVIDER_PRIVATE_KEY, else from \
                  --provider-key. A keystore's password comes from --provider-key-password-file, else from the variable \
                  ZORAI_KEY_PASSWORD.\n\n\
                  Example:\n  compute-agent --relay wss://compute-relay.zorai.co/v1/provider/connect --relay-id hz-1 \\\n    \
                  --provider-key-file ~/.config/zorai/provider.json --min-budget 1000000\n\n\
                  What settled tasks earned, by day:\n  compute-agent earnings [--data DIR] [--days N] [--json]\n\n\
                  Taking the stake out, with the flags above:\n  compute-agent unstake [AMOUNT] ..."
)]
pub struct Args {
    /// A TOML file that sets flags by their long names, such as min-budget = 1000. Flags and variables win over it.
    #[arg(long, env = "ZORAI_AGENT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The relay to dial: wss://HOST/v1/provider/connect.
    #[arg(long, env = "ZORAI_AGENT_RELAY", value_name = "URL", value_parser = RelayUrl::parse)]
    pub relay: RelayUrl,

    /// The id of that relay, as its operator or its /v1/info tells; the agent stops if another relay answers.
    #[arg(long, env = "ZORAI_AGENT_RELAY_ID", value_name = "ID")]
    pub relay_id: String,

    /// The provider's private key as 64 hex digits. Other users of this machine can see it in the list of processes: prefer
    /// --provider-key-file, or the variable PROVIDER_PRIVATE_KEY.
    #[arg(long, value_name = "HEX", conflicts_with = "provider_key_file")]
    pub provider_key: Option<Secret>,

    /// A file with the provider's private key: an encrypted keystore, or 64 hex digits; mode 0600.
    #[arg(long, env = "ZORAI_AGENT_PROVIDER_KEY_FILE", value_name = "FILE")]
    pub provider_key_file: Option<PathBuf>,

    /// A file with the keystore's password; mode 0600.
    #[arg(long, env = "ZORAI_AGENT_PROVIDER_KEY_PASSWORD_FILE", value_name = "FILE")]
    pub provider_key_password_file: Option<PathBuf>,

    /// Where the compute node listens.
    #[arg(
        long,
        env = "ZORAI_AGENT_COMPUTE_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:8645"
    )]
    pub compute_url: Url,

    /// The file with the compute node's token, which the node creates [default: compute-token in the node's data folder].
    #[arg(long, env = "ZORAI_AGENT_COMPUTE_TOKEN_FILE", value_name = "FILE")]
    pub compute_token_file: Option<PathBuf>,

    /// Announce the GPUs under this name, in place of what the node reports.
    #[arg(long, env = "ZORAI_AGENT_GPU_NAME", value_name = "NAME")]
    pub gpu_name: Option<String>,

    /// Announce the GPUs with so much memory each, in MiB, in place of what the node reports.
    #[arg(long, env = "ZORAI_AGENT_GPU_VRAM_MB", value_name = "MIB")]
    pub gpu_vram_mb: Option<u64>,

    /// Where the agent keeps its node id and the attempts that it holds. Two agents of one key need two folders
    /// [default: agent/ADDRESS in the data folder].
    #[arg(long, env = "ZORAI_AGENT_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// Certificates (PEM) to trust beside the system's, for a relay with a private one.
    #[arg(long, env = "ZORAI_AGENT_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// Run at most so many tasks at once, even if the node has room for more.
    #[arg(long, env = "ZORAI_AGENT_SLOTS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub slots: Option<u32>,

    /// Take no task that pays less, in the smallest unit of its token.
    #[arg(long, env = "ZORAI_AGENT_MIN_BUDGET", value_name = "AMOUNT", default_value = "0")]
    pub min_budget: Amount,

    /// Offer this runtime, such as wasm; repeat it for several [default: all that the node has].
    #[arg(long, env = "ZORAI_AGENT_ALLOW_RUNTIME", value_name = "RUNTIME", value_delimiter = ',')]
    pub allow_runtime: Vec<Runtime>,

    /// Take tasks of this requester; repeat it for several [default: everybody's].
    #[arg(
        long,
        env = "ZORAI_AGENT_ALLOW_REQUESTER",
        value_name = "ADDRESS",
        value_delimiter = ',',
        value_parser = parse_address
    )]
    pub allow_requester: Vec<Address>,

    /// Run containers of this repository and all below it (oci://HOST/PATH), or of this digest (sha256:HEX); repeat it for
    /// several [default: every image].
    #[arg(long, env = "ZORAI_AGENT_ALLOW_IMAGE", value_name = "IMAGE", value_delimiter = ',')]
    pub allow_image: Vec<ImageRule>,

    /// Take tasks only at these hours of the day, such as 22-7 or 08:30-17:00UTC; local time unless it says UTC; repeat it for
    /// several [default: always].
    #[arg(long, env = "ZORAI_AGENT_HOURS", value_name = "HOURS", value_delimiter = ',')]
    pub hours: Vec<Hours>,

    /// Take no tasks while other programs hold so much memory of a GPU, in MiB, and for a minute after.
    #[arg(long, env = "ZORAI_AGENT_PAUSE_AT_FOREIGN_VRAM_MB", value_name = "MIB")]
    pub pause_at_foreign_vram_mb: Option<u64>,

    /// Take no tasks while other programs keep a GPU busy for so much of the time, in percent, and for a minute after.
    #[arg(
        long,
        env = "ZORAI_AGENT_PAUSE_AT_FOREIGN_UTILIZATION",
        value_name = "PERCENT",
        value_parser = clap::value_parser!(u32).range(1..=100)
    )]
    pub pause_at_foreign_utilization: Option<u32>,

    /// Take no task that may run longer, in seconds.
    #[arg(long, env = "ZORAI_AGENT_MAX_DURATION_SECS", value_name = "SECONDS")]
    pub max_duration_secs: Option<u64>,

    /// Promise a result so long after a task's own max_duration: time to fetch the model and upload the result.
    #[arg(
        long,
        env = "ZORAI_AGENT_LEASE_MARGIN_SECS",
        value_name = "SECONDS",
        default_value_t = Policy::DEFAULT_LEASE_MARGIN_SECS,
        value_parser = clap::value_parser!(u64).range(0..=LEASE_MARGIN_SECS)
    )]
    pub lease_margin_secs: u64,

    /// What a model of the node's engines costs, MODEL=PROMPT,COMPLETION: each for a million tokens, in the token's smallest
    /// unit; * is every model without a price of its own; repeatable, or several with ; between [default: nothing].
    #[arg(long, env = "ZORAI_AGENT_PRICE", value_name = "MODEL=PROMPT,COMPLETION", value_delimiter = ';')]
    pub price: Vec<Price>,

    /// Settled tasks.
    #[command(flatten)]
    pub escrow: EscrowArgs,

    /// When told to stop, let running tasks finish for so long, and what the chain waits for of settled ones; those that do not are
    /// taken up again at the next start.
    #[arg(long, env = "ZORAI_AGENT_DRAIN_SECS", value_name = "SECONDS", default_value = "30")]
    pub drain_secs: u64,

    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,

    /// How the process is told to end.
    #[command(flatten)]
    pub shutdown: ShutdownArgs,
}

/// Why the command line does not make a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// No flag and no variable names a key.
    #[error("the provider's key is missing\nhint: give --provider-key-file FILE, or set {KEY_VARIABLE}")]
    NoKey,
    /// The key cannot be used.
    #[error("{from}: {source}{}", hint(.source))]
    Key {
        /// The flag or the variable that holds or names it.
        from: &'static str,
        /// What is wrong with it.
        source: WalletError,
    },
    /// The keystore's password cannot be read.
    #[error("--provider-key-password-file: {0}")]
    Password(#[from] SecretFileError),
    /// The compute node's URL is none that the agent talks to.
    #[error(
        "--compute-url {0}: it must be http://HOST:PORT\nhint: the compute node listens on loopback, without TLS"
    )]
    ComputeUrl(Url),
    /// The name of the GPU cannot be signed in a proof.
    #[error("--gpu-name must have 1 to {MAX_GPU_NAME_BYTES} printable bytes")]
    GpuName,
}

impl Args {
    /// Reads a command line with its variables and its configuration file, in which a key has no place.
    ///
    /// # Errors
    /// Any [`ConfigError`]; clap's own know how to end the program.
    pub fn read(line: impl IntoIterator<Item = OsString>) -> Result<Self, ConfigError> {
        let matches = config_file::matches(&Self::command(), line, &["provider-key"])?;
        Ok(Self::from_arg_matches(&matches)?)
    }

    /// Loads the key and applies the defaults. `variable` reads the environment.
    ///
    /// # Errors
    /// [`ArgsError`], which never holds a key or a password.
    pub fn into_config(self, variable: impl Fn(&str) -> Option<String>) -> Result<Config, ArgsError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let wallet = self.load_key(variable)?;
        if self.compute_url.scheme() != "http" || self.compute_url.host().is_none() {
            return Err(ArgsError::ComputeUrl(self.compute_url));
        }
        if self.gpu_name.as_ref().is_some_and(|name| {
            name.is_empty() || name.len() > MAX_GPU_NAME_BYTES || name.chars().any(char::is_control)
        }) {
            return Err(ArgsError::GpuName);
        }
        let address = wallet.address();
        Ok(Config {
            relay: self.relay,
            relay_id: self.relay_id,
            wallet,
            compute_url: self.compute_url,
            compute_token_file: self
                .compute_token_file
                .unwrap_or_else(|| default_data_dir("node").join("compute-token")),
            gpu: GpuOverride { name: self.gpu_name, vram_mb: self.gpu_vram_mb },
            data: self.data.unwrap_or_else(|| default_data_dir("agent").join(address.to_string())),
            ca_file: self.ca_file,
            policy: Policy {
                slots: self.slots,
                min_budget: self.min_budget,
                runtimes: self.allow_runtime,
                requesters: self.allow_requester,
                images: self.allow_image,
                max_duration_secs: self.max_duration_secs,
                hours: self.hours,
                owner: OwnerUse {
                    vram_mb: self.pause_at_foreign_vram_mb,
                    utilization_percent: self.pause_at_foreign_utilization,
                },
                lease_margin_secs: self.lease_margin_secs,
            },
            escrow: self.escrow.into_config(),
            prices: self.price.into_iter().collect(),
            drain: Duration::from_secs(self.drain_secs),
            timing: Timing::default(),
        })
    }

    fn load_key(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Wallet, ArgsError> {
        let wrong = |from| move |source| ArgsError::Key { from, source };
        if let Some(file) = &self.provider_key_file {
            let password = match &self.provider_key_password_file {
                Some(file) => Some(read_secret_file(file)?),
                None => variable(PASSWORD_VARIABLE).map(Secret::new),
            };
            return Wallet::load(file, password.as_ref().map(Secret::expose))
                .map_err(wrong("--provider-key-file"));
        }
        if let Some(key) = &self.provider_key {
            tracing::warn!(
                "--provider-key: other users of this machine can see the key in the list of processes; \
                 prefer --provider-key-file or the variable {KEY_VARIABLE}"
            );
            return Wallet::from_hex(key.expose()).map_err(wrong("--provider-key"));
        }
        let key = variable(KEY_VARIABLE).map(Secret::new).ok_or(ArgsError::NoKey)?;
        Wallet::from_hex(key.expose()).map_err(wrong(KEY_VARIABLE))
    }
}

/// What to do about a key that cannot be used, on a line of its own.
fn hint(error: &WalletError) -> String {
    let hint = match error {
        WalletError::Key(_) => {
            "`openssl rand -hex 32` makes a key; a keystore, or a file with a key, goes by --provider-key-file FILE"
        }
        WalletError::File { .. } => {
            "check the path; `zorai-compute wallet new --out FILE` makes an encrypted key"
        }
        WalletError::PasswordMissing { .. } | WalletError::PasswordWrong { .. } => {
            "give --provider-key-password-file FILE, or set ZORAI_KEY_PASSWORD"
        }
        // They say themselves what to do.
        WalletError::KeyFile { .. }
        | WalletError::OpenToOthers { .. }
        | WalletError::Exists { .. }
        | WalletError::Keystore { .. } => return String::new(),
    };
    format!("\nhint: {hint}")
}

fn parse_address(text: &str) -> Result<Address, ParseError> {
    eip55::parse(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";

    fn parse(extra: &[&str]) -> Args {
        let seed = ["compute-agent", "--relay", "wss://r.example/v1/provider/connect", "--relay-id", "hz-1"];
        Args::try_parse_from(seed.into_iter().chain(extra.iter().copied())).unwrap()
    }

    #[test]
    fn the_command_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn without_anything_it_shows_its_help() {
        let kind = Args::try_parse_from(["compute-agent"]).unwrap_err().kind();
        assert_eq!(kind, clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
    }

    #[test]
    fn the_first_launch_example_works() {
        let args = parse(&[
            "--provider-key",
            KEY,
            "--compute-url",
            "http://127.0.0.1:8645",
            "--gpu-name",
            "NVIDIA A100",
            "--gpu-vram-mb",
            "40960",
        ]);
        assert!(!format!("{args:?}").contains(KEY));
        let config = args.into_config(|_| None).unwrap();
        assert_eq!(config.wallet.address().to_string(), "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266");
        assert!(config.data.ends_with("agent/0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"));
        assert!(config.compute_token_file.ends_with("node/compute-token"));
        assert!(!format!("{config:?}").contains(KEY));
    }

    #[test]
    fn settled_tasks_are_taken_by_flags() {
        let contract = "31337:0x5FbDB2315678afecb367f032d93F642f64180aa3";
        let arbiter = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";
        let flags =
            ["--provider-key", KEY, "--escrow", contract, "--rpc-url", "http://127.0.0.1:1", "--rpc-url"];
        let more = ["http://127.0.0.1:2", "--stake", "7", "--accept-arbiter", arbiter, "--max-window", "60"];
        let all: Vec<&str> = flags.into_iter().chain(more).collect();
        let escrow = parse(&all).into_config(|_| None).unwrap().escrow.unwrap();
        assert_eq!((escrow.domain.chain_id, escrow.rpc_urls.len()), (31_337, 2));
        assert_eq!(escrow.stake, Some((Address::ZERO, "7".parse().unwrap())));
        assert_eq!(escrow.terms.tokens, [Address::ZERO], "the native coin unless said otherwise");
        assert_eq!((escrow.terms.arbiters.len(), escrow.terms.max_window_secs), (1, 60));
        assert!(parse(&["--provider-key", KEY]).into_config(|_| None).unwrap().escrow.is_none());
        let seed = ["compute-agent", "--relay", "wss://r.example/v1/provider/connect", "--relay-id", "hz-1"];
        for alone in [["--stake", "7"], ["--escrow", contract], ["--rpc-url", "http://127.0.0.1:1"]] {
            assert!(Args::try_parse_from(seed.into_iter().chain(alone)).is_err(), "{alone:?}");
        }
    }

    #[test]
    fn keys_come_from_the_environment_and_from_files() {
        let from_variable = parse(&[]).into_config(|name| (name == KEY_VARIABLE).then(|| KEY.to_owned()));
        assert_eq!(from_variable.unwrap().wallet.address(), wallet::Wallet::from_hex(KEY).unwrap().address());
        assert!(matches!(parse(&[]).into_config(|_| Some(String::new())), Err(ArgsError::NoKey)));

        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("raw");
        daemon::private_file::create(&raw, KEY.as_bytes()).unwrap();
        let args = parse(&["--provider-key-file", raw.to_str().unwrap()]);
        assert!(args.into_config(|_| None).is_ok());

        let missing = folder.path().join("missing");
        let missing = missing.to_str().unwrap();
        let password = "give --provider-key-password-file FILE";
        let keystore = folder.path().join("keystore");
        wallet::Wallet::random().save_keystore(&keystore, "password").unwrap();
        for (flags, set, said) in [
            (
                &["--provider-key", "nonsense-key"][..],
                "",
                "--provider-key: not a private key: it has 12 characters",
            ),
            (&[], "0xnonsense-key", "PROVIDER_PRIVATE_KEY: not a private key: it has 12 characters"),
            (
                &[],
                &KEY.replace('a', "k"),
                "PROVIDER_PRIVATE_KEY: not a private key: character 1 is no hex digit",
            ),
            (&["--provider-key-file", missing], "", "hint: check the path"),
            (&["--provider-key-file", keystore.to_str().unwrap()], "", password),
        ] {
            let variable = |name: &str| (name == KEY_VARIABLE).then(|| set.to_owned());
            let error = parse(flags).into_config(variable).unwrap_err();
            let told = format!("{error} {error:?}");
            assert!(told.contains(said) && told.contains("hint: "), "{told}");
            assert!(!told.contains("nonsense") && !told.contains("c0974bec39"), "{told}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let wrong = |extra: &[&str]| {
            let mut all = vec!["--provider-key", KEY];
            all.extend(extra);
            parse(&all).into_config(|_| None).unwrap_err()
        };
        assert!(matches!(wrong(&["--compute-url", "https://127.0.0.1:1"]), ArgsError::ComputeUrl(_)));
        assert!(matches!(wrong(&["--gpu-name", "a\nb"]), ArgsError::GpuName));
    }
}
