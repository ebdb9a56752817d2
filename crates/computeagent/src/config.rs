//! What the agent is told, parsed.

use std::path::PathBuf;
use std::time::Duration;

use rpc::PROVIDER_CONNECT_PATH;
use taskmarket::{Address, Amount, CLOCK_TOLERANCE_SECS, LEASE_MARGIN_SECS, Runtime};
use url::Url;
use wallet::Wallet;

use crate::inference::Prices;
use crate::money::EscrowConfig;
use crate::policy::{Hours, ImageRule, OwnerUse};

/// All that an agent needs to know. It holds the provider's key, which its `Debug` does not show.
#[derive(Debug, Clone)]
pub struct Config {
    /// The relay to dial.
    pub relay: RelayUrl,
    /// The id that this relay must have.
    pub relay_id: String,
    /// The provider's key.
    pub wallet: Wallet,
    /// The compute node's base URL.
    pub compute_url: Url,
    /// The file that holds the compute node's bearer token.
    pub compute_token_file: PathBuf,
    /// What to announce in place of the GPUs that the node reports.
    pub gpu: GpuOverride,
    /// The folder for the node id, the lock and the attempts. One agent at a time uses it.
    pub data: PathBuf,
    /// Certificates in PEM that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Which offers are taken.
    pub policy: Policy,
    /// Whose money is taken for settled tasks; none are taken if absent.
    pub escrow: Option<EscrowConfig>,
    /// What the models of the node's engines cost.
    pub prices: Prices,
    /// How long running attempts may go on once the agent is told to stop.
    pub drain: Duration,
    /// How often and how long.
    pub timing: Timing,
}

/// What to announce in place of the GPUs that the node reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GpuOverride {
    /// The name of every GPU; where the node reports none, one GPU of this name is announced on the operator's word.
    pub name: Option<String>,
    /// The memory of every GPU, in MiB.
    pub vram_mb: Option<u64>,
}

/// Which offers are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Tasks at once, at most; the node's own number where absent.
    pub slots: Option<u32>,
    /// The least budget.
    pub min_budget: Amount,
    /// The runtimes that are offered, as far as the node has them; all of the node's if empty.
    pub runtimes: Vec<Runtime>,
    /// Whose tasks are taken; everybody's if empty.
    pub requesters: Vec<Address>,
    /// The container images that may run; all if empty.
    pub images: Vec<ImageRule>,
    /// The longest `max_duration`, in seconds.
    pub max_duration_secs: Option<u64>,
    /// When tasks are taken; always if empty.
    pub hours: Vec<Hours>,
    /// When the owner's own use of the GPU keeps tasks away.
    pub owner: OwnerUse,
    /// What a lease outlasts `max_duration` by, in seconds: time to fetch the model and to hand the result in. A relay takes
    /// 600 at most by its own clock.
    pub lease_margin_secs: u64,
}

impl Policy {
    /// The margin that a relay still takes when its clock is behind by as much as the market tolerates.
    pub const DEFAULT_LEASE_MARGIN_SECS: u64 = LEASE_MARGIN_SECS - CLOCK_TOLERANCE_SECS;
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            slots: None,
            min_budget: Amount::ZERO,
            runtimes: Vec::new(),
            requesters: Vec::new(),
            images: Vec::new(),
            max_duration_secs: None,
            hours: Vec::new(),
            owner: OwnerUse::default(),
            lease_margin_secs: Self::DEFAULT_LEASE_MARGIN_SECS,
        }
    }
}

/// How often and how long. The defaults suit everybody; tests shorten them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// The node is asked how it is so often.
    pub node_poll: Duration,
    /// How long one question about an attempt waits at the node for news.
    pub status_wait: Duration,
    /// How long tasks are kept away after the owner's last use of a GPU.
    pub owner_hold: Duration,
    /// The first bound of the delays between retries; it doubles up to `retry_cap`.
    pub retry_base: Duration,
    /// The largest bound of the delays between retries.
    pub retry_cap: Duration,
    /// A connection that lasted so long makes the next retry quick again.
    pub stable_session: Duration,
    /// Heartbeats are at least so far apart.
    pub heartbeat_gap: Duration,
    /// How long the relay may take to note that this host took an attempt; until then, its word that the attempt is not this host's is none.
    pub noting: Duration,
    /// An attempt whose node cannot be reached is given up so long before its lease ends.
    pub unreachable_margin: Duration,
    /// How long an attempt that was acknowledged is remembered.
    pub retention: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            node_poll: Duration::from_secs(3),
            status_wait: Duration::from_secs(20),
            owner_hold: Duration::from_secs(60),
            retry_base: Duration::from_millis(250),
            retry_cap: Duration::from_secs(30),
            stable_session: Duration::from_secs(30),
            heartbeat_gap: Duration::from_millis(200),
            noting: Duration::from_secs(10),
            unreachable_margin: Duration::from_secs(30),
            retention: Duration::from_secs(14 * 86_400),
        }
    }
}

impl Timing {
    /// Delays between retries, with full jitter.
    pub(crate) fn backoff(&self) -> link::Backoff {
        link::Backoff::with(self.retry_base, self.retry_cap, rand::random::<f64>)
    }
}

/// The relay's address: the text to sign, the URL to dial, and the base of its API, all from what the operator wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayUrl {
    text: String,
    url: Url,
    api: Url,
}

/// Why a text is no relay's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelayUrlError {
    /// It is not a URL.
    #[error("not a URL: {0}")]
    Url(#[from] url::ParseError),
    /// It is a URL of another kind.
    #[error("the scheme must be wss (or ws, for a relay on this machine or a trusted network), not {0}")]
    Scheme(String),
    /// It leads elsewhere.
    #[error("the path must end in {PROVIDER_CONNECT_PATH}, with nothing after it")]
    Path,
    /// It holds a user name or a password, which would be logged and signed.
    #[error("it must hold no user name or password")]
    Credentials,
}

impl RelayUrl {
    /// Reads `wss://HOST[:PORT][/PREFIX]/v1/provider/connect`.
    ///
    /// # Errors
    /// [`RelayUrlError`].
    pub fn parse(text: &str) -> Result<Self, RelayUrlError> {
        let url = Url::parse(text)?;
        let scheme = match url.scheme() {
            "wss" => "https",
            "ws" => "http",
            other => return Err(RelayUrlError::Scheme(other.to_owned())),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(RelayUrlError::Credentials);
        }
        let prefix = url.path().strip_suffix(PROVIDER_CONNECT_PATH).ok_or(RelayUrlError::Path)?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(RelayUrlError::Path);
        }
        let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
        let api = Url::parse(&format!("{scheme}://{authority}{prefix}/"))?;
        Ok(Self { text: text.to_owned(), url, api })
    }

    /// Exactly what the operator wrote: this is what a registration signs.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The URL to dial.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The base of the relay's API, ending in a slash.
    pub fn api(&self) -> &Url {
        &self.api
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_is_where_the_link_is() {
        for (text, api) in [
            ("wss://relay.example/v1/provider/connect", "https://relay.example/"),
            ("wss://relay.example:8443/zorai/v1/provider/connect", "https://relay.example:8443/zorai/"),
            ("ws://[::1]:8787/v1/provider/connect", "http://[::1]:8787/"),
            ("wss://RELAY.example:443/v1/provider/connect", "https://relay.example/"),
        ] {
            let relay = RelayUrl::parse(text).unwrap();
            assert_eq!(relay.api().as_str(), api);
            assert_eq!(relay.text(), text);
        }
    }

    #[test]
    fn what_is_no_relay_is_refused() {
        for text in [
            "",
            "relay.example",
            "https://relay.example/v1/provider/connect",
            "wss://relay.example",
            "wss://relay.example/v1/provider/connect/",
            "wss://relay.example/v1/provider/connect?x=1",
            "wss://user:secret@relay.example/v1/provider/connect",
        ] {
            let error = RelayUrl::parse(text).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
