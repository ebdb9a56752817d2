//! What an operator can say: flags and environment, parsed once into [`Config`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use daemon::{LogArgs, Secret, ShutdownArgs, parse_listen, read_secret_file};
use url::Url;

use crate::artifacts::ArtifactLocation;
use crate::chain::{EscrowArgs, EscrowConfig};
use crate::gateway::{GatewayArgs, GatewayConfig};
use crate::location::StoreLocation;
use crate::misuse::Misuse;

/// The longest relay id, in bytes.
const MAX_ID_BYTES: usize = 64;
/// The longest of the times that can be set, in seconds.
const MAX_SECS: i64 = 86_400;
/// How many bytes of artifacts an API key may keep stored unless said otherwise.
const ARTIFACT_QUOTA: u64 = 64 << 30;
/// How long nobody else may be there until one provider's word ends a task that fails anywhere.
const ALONE: Duration = Duration::from_secs(60);
/// The longest time that sessions and artifacts can be kept, in days.
const MAX_KEEP_DAYS: i64 = 36_500;
/// The longest time between two proofs of a GPU, in hours: a year.
const MAX_CHALLENGE_HOURS: i64 = 8760;
/// The smallest JSON body limit, in bytes: a task with 16 KiB of parameters must fit, each byte of which may be escaped.
const MIN_BODY_BYTES: i64 = 128 * 1024;
/// The largest JSON body limit, in bytes: bodies are held in memory.
const MAX_BODY_BYTES: i64 = 64 << 20;

/// What a relay can be told as it starts.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "compute-relay", version)]
pub struct Args {
    /// Where to serve HTTP without TLS: ADDRESS:PORT, or :PORT for every address.
    #[arg(long, env = "ZORAI_RELAY_LISTEN", default_value = ":8787", value_name = "ADDR", value_parser = parse_listen)]
    pub listen: SocketAddr,

    /// Where to serve HTTPS besides.
    #[arg(
        long,
        env = "ZORAI_RELAY_TLS_LISTEN",
        value_name = "ADDR",
        value_parser = parse_listen,
        requires_all = ["tls_cert", "tls_key"]
    )]
    pub tls_listen: Option<SocketAddr>,

    /// The certificate chain for HTTPS, in PEM. It is read again on SIGHUP.
    #[arg(long, env = "ZORAI_RELAY_TLS_CERT", value_name = "FILE", requires = "tls_listen")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key, in PEM.
    #[arg(long, env = "ZORAI_RELAY_TLS_KEY", value_name = "FILE", requires = "tls_listen")]
    pub tls_key: Option<PathBuf>,

    /// The relay's name, which providers sign for: letters, digits, `-`, `_` and `.`. Each relay of a shared store needs one of its own.
    #[arg(long, env = "ZORAI_RELAY_ID", default_value = "relay", value_name = "ID")]
    pub relay_id: String,

    /// A URL under which providers reach this relay, such as wss://relay.example. Repeat it for several. A provider that dialled any
    /// other URL, loopback aside, is refused, so that nobody can pass its registration on.
    #[arg(long = "public-url", env = "ZORAI_RELAY_PUBLIC_URL", value_name = "URL", value_delimiter = ',')]
    pub public_urls: Vec<Url>,

    /// Where tasks, histories, sessions and keys are kept: a folder, or a PostgreSQL database such as postgres://zorai@db.example/zorai,
    /// which several relays can share. Its password belongs into PGPASSWORD. [default: a folder of the user's data]
    #[arg(long, env = "ZORAI_RELAY_STORE", hide_env_values = true, value_name = "DIR|URL")]
    pub store: Option<StoreLocation>,

    /// Where the artifacts' bytes are kept: a folder, or a bucket of an S3-compatible store such as s3://bucket/prefix, which several
    /// relays can share. Its endpoint, region and credentials are those of AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and
    /// AWS_SECRET_ACCESS_KEY. [default: `blobs` in the store's folder, or in a folder of the user's data]
    #[arg(long, env = "ZORAI_RELAY_ARTIFACTS", value_name = "DIR|URL")]
    pub artifacts: Option<ArtifactLocation>,

    /// How many bytes of artifacts an API key may keep stored; 0 for any number. Results count, but are never refused.
    #[arg(long, env = "ZORAI_RELAY_ARTIFACT_QUOTA", default_value_t = ARTIFACT_QUOTA, value_name = "BYTES")]
    pub artifact_quota: u64,

    /// How long artifacts are kept after their last use, in days. What an unfinished task may need is kept in any case.
    #[arg(
        long,
        env = "ZORAI_RELAY_KEEP_ARTIFACTS",
        default_value_t = 30,
        value_name = "DAYS",
        value_parser = clap::value_parser!(u32).range(1..=MAX_KEEP_DAYS)
    )]
    pub keep_artifacts: u32,

    /// An API key with every scope, `admin` among them. Further keys come from `compute-relay keys create`. Other users of this machine
    /// can see a flag: prefer the environment or a file.
    #[arg(long, env = "ZORAI_AI_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub api_key: Option<Secret>,

    /// A file, of mode 0600, that holds such an API key.
    #[arg(long, env = "ZORAI_RELAY_API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// How long a provider whose connection broke keeps its attempts, in seconds.
    #[arg(long, env = "ZORAI_RELAY_SESSION_GRACE_SECS", default_value_t = 15, value_name = "SECS", value_parser = secs(0))]
    pub session_grace_secs: u64,

    /// How often providers report at least, in seconds.
    #[arg(long, env = "ZORAI_RELAY_HEARTBEAT_SECS", default_value_t = 10, value_name = "SECS", value_parser = secs(1))]
    pub heartbeat_secs: u64,

    /// How late a provider's sign of life may be before its connection counts as broken, in seconds.
    #[arg(long, env = "ZORAI_RELAY_HEARTBEAT_TIMEOUT_SECS", default_value_t = 5, value_name = "SECS", value_parser = secs(1))]
    pub heartbeat_timeout_secs: u64,

    /// How long a provider may think about an offered task, in seconds.
    #[arg(long, env = "ZORAI_RELAY_OFFER_TIMEOUT_SECS", default_value_t = 10, value_name = "SECS", value_parser = secs(1))]
    pub offer_timeout_secs: u64,

    /// How often hosts that offer GPUs have to prove what these compute, in hours; 0 for never. What they proved is shown with them
    /// (`GET /v1/providers`). It takes each host a few seconds while it is idle.
    #[arg(
        long,
        env = "ZORAI_RELAY_CHALLENGE_GPUS",
        default_value_t = 0,
        value_name = "HOURS",
        value_parser = clap::value_parser!(u32).range(..=MAX_CHALLENGE_HOURS)
    )]
    pub challenge_gpus: u32,

    /// How long requests may go on after the wish to end (SIGTERM, Ctrl-C), in seconds.
    #[arg(long, env = "ZORAI_RELAY_DRAIN_SECS", default_value_t = 10, value_name = "SECS", value_parser = secs(0))]
    pub drain_secs: u64,

    /// The largest JSON body, in bytes.
    #[arg(
        long,
        env = "ZORAI_RELAY_MAX_BODY_BYTES",
        default_value_t = 256 * 1024,
        value_name = "BYTES",
        value_parser = clap::value_parser!(u64).range(MIN_BODY_BYTES as u64..=MAX_BODY_BYTES as u64)
    )]
    pub max_body_bytes: u64,

    /// The largest artifact, in bytes.
    #[arg(long, env = "ZORAI_RELAY_MAX_ARTIFACT_BYTES", default_value_t = 4 << 30, value_name = "BYTES")]
    pub max_artifact_bytes: u64,

    /// Whether tasks' events may be sent to this machine and to private networks, by http too: for a relay that only such networks can
    /// reach. Otherwise they are sent to public hosts by https.
    #[arg(long, env = "ZORAI_RELAY_ALLOW_PRIVATE_WEBHOOKS")]
    pub allow_private_webhooks: bool,

    /// How many connections are served at once; further ones wait to be accepted.
    #[arg(
        long,
        env = "ZORAI_RELAY_MAX_CONNECTIONS",
        default_value_t = 10_000,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub max_connections: u32,

    /// How many connections one address (of IPv6, one /64 network) may have at once; 0 for any number. Behind a reverse proxy all come
    /// from one address: raise it there. Providers' sessions do not count.
    #[arg(long, env = "ZORAI_RELAY_MAX_CONNECTIONS_PER_IP", default_value_t = 256, value_name = "N")]
    pub max_connections_per_ip: u32,

    /// How many providers' hosts may be connected at once; further ones are told to try again.
    #[arg(
        long,
        env = "ZORAI_RELAY_MAX_SESSIONS",
        default_value_t = 10_000,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub max_sessions: u32,

    /// How long the sessions of providers are kept after they ended, in days. What is shown of a provider goes no further back.
    #[arg(
        long,
        env = "ZORAI_RELAY_KEEP_SESSIONS",
        default_value_t = 90,
        value_name = "DAYS",
        value_parser = clap::value_parser!(u32).range(1..=MAX_KEEP_DAYS)
    )]
    pub keep_sessions: u32,

    /// How many requests a minute are taken from one address (of IPv6, one /64 network) without a good API key; 0 for any number. Behind
    /// a reverse proxy all come from one address: let the proxy limit them.
    #[arg(
        long,
        env = "ZORAI_RELAY_ANONYMOUS_REQUESTS_PER_MINUTE",
        default_value_t = 6_000,
        value_name = "N"
    )]
    pub anonymous_requests_per_minute: u32,

    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub gateway: GatewayArgs,

    /// How the chain of settled tasks is followed.
    #[command(flatten)]
    pub escrow: EscrowArgs,

    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub log: LogArgs,

    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub shutdown: ShutdownArgs,
}

fn secs(least: i64) -> clap::builder::RangedU64ValueParser<u64> {
    clap::builder::RangedU64ValueParser::new().range(least as u64..=MAX_SECS as u64)
}

/// All that a relay needs to know, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to serve HTTP. Port 0 takes a free one; see [`crate::Relay::local_addr`].
    pub listen: SocketAddr,
    /// Where and how to serve HTTPS.
    pub tls: Option<TlsConfig>,
    /// The relay's name, which providers sign for.
    pub relay_id: String,
    /// The URLs under which providers reach it.
    pub public_urls: Vec<Url>,
    /// Where its durable state is.
    pub store: StoreLocation,
    /// Where the artifacts' bytes are.
    pub artifacts: ArtifactLocation,
    /// How many bytes of artifacts an API key may keep stored; `None` for any number.
    pub artifact_quota: Option<u64>,
    /// How long artifacts are kept after their last use.
    pub keep_artifacts: Duration,
    /// API keys with every scope, besides those of the store. Without any, the store must have one.
    pub api_keys: Vec<Secret>,
    /// Requests a minute from one address without a good API key; `None` for any number.
    pub anonymous_requests_per_minute: Option<u32>,
    /// How long a lost session keeps its attempts.
    pub session_grace: Duration,
    /// How long nobody else may be there until one provider's word ends a task that fails anywhere.
    pub alone: Duration,
    /// How often providers report at least.
    pub heartbeat: Duration,
    /// How late a sign of life may be.
    pub heartbeat_timeout: Duration,
    /// How long a provider may think about an offer.
    pub offer_timeout: Duration,
    /// How often hosts prove what their GPUs compute; `None` for never.
    pub challenge_gpus: Option<Duration>,
    /// How long requests may go on after the wish to end.
    pub drain: Duration,
    /// The largest JSON body, in bytes.
    pub max_body_bytes: usize,
    /// The largest artifact, in bytes.
    pub max_artifact_bytes: u64,
    /// Whether tasks' events may be sent to private networks.
    pub allow_private_webhooks: bool,
    /// How many connections are served at once, on each listener.
    pub max_connections: usize,
    /// How many connections one address may have at once; 0 for any number.
    pub max_connections_per_ip: usize,
    /// How many hosts may be connected at once.
    pub max_sessions: usize,
    /// How long sessions are kept after they ended.
    pub keep_sessions: Duration,
    /// Limits and deadlines of inference.
    pub gateway: GatewayConfig,
    /// The escrow contract of settled tasks; without one only unsettled tasks are taken.
    pub escrow: Option<EscrowConfig>,
}

/// Where and how HTTPS is served.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// The address.
    pub listen: SocketAddr,
    /// The certificate chain, in PEM.
    pub cert: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

impl Config {
    /// A relay on one address without TLS, with the defaults of everything else.
    pub fn new(listen: SocketAddr, store: impl Into<StoreLocation>, api_key: Secret) -> Self {
        let store = store.into();
        Self {
            listen,
            tls: None,
            relay_id: "relay".to_owned(),
            public_urls: Vec::new(),
            artifacts: store.artifacts().into(),
            artifact_quota: Some(ARTIFACT_QUOTA),
            keep_artifacts: days(30),
            store,
            api_keys: vec![api_key],
            anonymous_requests_per_minute: None,
            session_grace: Duration::from_secs(15),
            alone: ALONE,
            heartbeat: Duration::from_secs(10),
            heartbeat_timeout: Duration::from_secs(5),
            offer_timeout: Duration::from_secs(10),
            challenge_gpus: None,
            drain: Duration::from_secs(10),
            max_body_bytes: 256 * 1024,
            max_artifact_bytes: 4 << 30,
            allow_private_webhooks: false,
            max_connections: 10_000,
            max_connections_per_ip: 256,
            max_sessions: 10_000,
            keep_sessions: days(90),
            gateway: GatewayConfig::default(),
            escrow: None,
        }
    }

    /// Checks what `clap` cannot, and reads the key file.
    ///
    /// # Errors
    /// An API key that cannot be sent in a header, a relay id or URL of the wrong form, two listeners on one address, or an unreadable
    /// key file.
    pub fn from_args(args: &Args) -> Result<Self, Misuse> {
        let tls = match (args.tls_listen, &args.tls_cert, &args.tls_key) {
            (Some(listen), Some(cert), Some(key)) => {
                Some(TlsConfig { listen, cert: cert.clone(), key: key.clone() })
            }
            (None | Some(_), _, _) => None,
        };
        if tls.as_ref().is_some_and(|tls| tls.listen == args.listen && tls.listen.port() != 0) {
            return Err(Misuse::because(
                format_args!("--listen and --tls-listen are both {}", args.listen),
                "HTTP and HTTPS need a port each",
            ));
        }
        let store = args.store.clone().unwrap_or_default();
        check_id(&args.relay_id)?;
        for url in &args.public_urls {
            check_url(url)?;
        }
        Ok(Self {
            listen: args.listen,
            tls,
            relay_id: args.relay_id.clone(),
            public_urls: args.public_urls.clone(),
            artifacts: args.artifacts.clone().unwrap_or_else(|| store.artifacts().into()),
            artifact_quota: Some(args.artifact_quota).filter(|quota| *quota > 0),
            keep_artifacts: days(args.keep_artifacts.into()),
            store,
            api_keys: api_keys(args)?,
            anonymous_requests_per_minute: Some(args.anonymous_requests_per_minute)
                .filter(|limit| *limit > 0),
            session_grace: Duration::from_secs(args.session_grace_secs),
            alone: ALONE,
            heartbeat: Duration::from_secs(args.heartbeat_secs),
            heartbeat_timeout: Duration::from_secs(args.heartbeat_timeout_secs),
            offer_timeout: Duration::from_secs(args.offer_timeout_secs),
            challenge_gpus: Some(args.challenge_gpus)
                .filter(|hours| *hours > 0)
                .map(|hours| Duration::from_secs(u64::from(hours) * 3600)),
            drain: Duration::from_secs(args.drain_secs),
            max_body_bytes: whole(args.max_body_bytes),
            max_artifact_bytes: args.max_artifact_bytes,
            allow_private_webhooks: args.allow_private_webhooks,
            max_connections: whole(args.max_connections.into()),
            max_connections_per_ip: whole(args.max_connections_per_ip.into()),
            max_sessions: whole(args.max_sessions.into()),
            keep_sessions: days(args.keep_sessions.into()),
            gateway: (&args.gateway).into(),
            escrow: EscrowConfig::from_args(&args.escrow)?,
        })
    }
}

/// A number of things in memory: what no memory holds is as good as any number.
fn whole(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

const fn days(number: u64) -> Duration {
    Duration::from_secs(number * 24 * 60 * 60)
}

fn api_keys(args: &Args) -> Result<Vec<Secret>, Misuse> {
    const HINT: &str = "`openssl rand -hex 32` makes a good key; a file of it has mode 0600";
    let from_file = args.api_key_file.as_deref().map(read_secret_file).transpose();
    let from_file = from_file.map_err(|error| Misuse::new(error, HINT))?;
    let keys: Vec<Secret> = args.api_key.clone().into_iter().chain(from_file).collect();
    for key in &keys {
        let text = key.expose();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let why = "an API key must be printable ASCII without spaces, or no client could send it";
            return Err(Misuse::because(why, HINT));
        }
    }
    Ok(keys)
}

fn check_id(id: &str) -> Result<(), Misuse> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if id.is_empty() || id.len() > MAX_ID_BYTES || !id.bytes().all(is_plain) {
        return Err(Misuse::because(
            format_args!("--relay-id {id:?} cannot be"),
            format_args!("1 to {MAX_ID_BYTES} letters, digits, `-`, `_` or `.`"),
        ));
    }
    Ok(())
}

fn check_url(url: &Url) -> Result<(), Misuse> {
    if !matches!(url.scheme(), "wss" | "ws") || url.host_str().is_none() {
        return Err(Misuse::because(
            format_args!("--public-url {url} is none that providers can dial"),
            "give a URL such as wss://relay.example",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    fn config(flags: &[&str]) -> anyhow::Result<Config> {
        let args = Args::try_parse_from(std::iter::once(&"compute-relay").chain(flags))?;
        Ok(Config::from_args(&args)?)
    }

    #[test]
    fn flags_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_documented_launch_parses() {
        let config = config(&[
            "--listen",
            ":8787",
            "--tls-listen",
            ":443",
            "--tls-cert",
            "/etc/ssl/zorai/compute-relay.crt",
            "--tls-key",
            "/etc/ssl/zorai/compute-relay.key",
            "--relay-id",
            "hz-1",
            "--public-url",
            "wss://compute-relay.zorai.co",
            "--store",
            "/data/zorai/compute-relay/taskmarket",
            "--api-key",
            "k-123456",
        ])
        .unwrap();
        assert_eq!(config.listen.port(), 8787);
        assert_eq!(config.tls.as_ref().unwrap().listen.port(), 443);
        assert_eq!(config.public_urls.len(), 1);
        assert_eq!(config.max_body_bytes, 262_144);
        assert_eq!(config.gateway, GatewayConfig::default());
        assert_eq!((config.max_sessions, config.keep_sessions.as_secs()), (10_000, 7_776_000));
        assert!(!format!("{config:?}").contains("k-123456"));
    }

    #[test]
    fn models_have_deadlines_of_their_own() {
        let both = ["--api-key", "k", "--first-byte", "a=180,org/b=7", "--first-byte", "c=1"];
        let gateway = config(&both).unwrap().gateway;
        let secs: Vec<_> = gateway.first_byte_of.iter().map(|(model, of)| (&**model, of.as_secs())).collect();
        assert_eq!(secs, [("a", 180), ("c", 1), ("org/b", 7)]);
    }

    #[test]
    fn wrong_flags_are_refused() {
        for wrong in [
            &["--api-key", "k", "--tls-listen", ":443"][..],
            &["--api-key", "k", "--tls-cert", "a.pem"],
            &["--api-key", "k", "--relay-id", "a b"],
            &["--api-key", "k", "--relay-id", ""],
            &["--api-key", "k", "--public-url", "relay.example"],
            &["--api-key", "k", "--public-url", "https://relay.example"],
            &["--api-key", "k", "--heartbeat-secs", "0"],
            &["--api-key", "k", "--max-body-bytes", "1"],
            &["--api-key", "k", "--max-sessions", "0"],
            &["--api-key", "k", "--keep-sessions", "0"],
            &["--api-key", "k", "--keep-artifacts", "0"],
            &["--api-key", "k", "--artifacts", "s3://"],
            &["--api-key", "k", "--escrow", "1:0x5FbDB2315678afecb367f032d93F642f64180aa3"],
            &["--api-key", "k", "--rpc-url", "http://127.0.0.1:8545"],
            &[
                "--api-key",
                "k",
                "--escrow",
                "0x5FbDB2315678afecb367f032d93F642f64180aa3",
                "--rpc-url",
                "http://a",
            ],
            &[
                "--api-key",
                "k",
                "--escrow",
                "1:0x0000000000000000000000000000000000000000",
                "--rpc-url",
                "http://a",
            ],
            &[
                "--api-key",
                "k",
                "--escrow",
                "1:0x5FbDB2315678afecb367f032d93F642f64180aa3",
                "--rpc-url",
                "ws://a",
            ],
            &["--api-key", "k", "--first-byte", "llama"],
            &["--api-key", "k", "--first-byte", "llama=0"],
            &["--api-key", "two words"],
            &["--api-key-file", "/does/not/exist"],
            &["--listen", ":443", "--tls-listen", ":443", "--tls-cert", "a.pem", "--tls-key", "a.key"],
        ] {
            let error = config(wrong).unwrap_err();
            assert!(
                error.is::<clap::Error>() || error.to_string().contains("\nhint: "),
                "{wrong:?}: {error}"
            );
        }
    }
}
