//! The hub's limits and deadlines, in one place.

use std::time::Duration;

use taskmarket::Domain;
use url::Url;

/// What the hub is, and its limits and deadlines. [`HubConfig::new`] gives the defaults.
#[derive(Debug, Clone)]
pub(crate) struct HubConfig {
    /// The relay's id; registrations must name it.
    pub(crate) relay_id: String,
    /// The URLs that agents may dial. Loopback URLs are taken besides.
    pub(crate) public_urls: Vec<Url>,
    /// The EIP-712 domains that the relay serves, unsettled first; agents are told.
    pub(crate) domains: Vec<Domain>,
    /// Deadlines and limits of each connection.
    pub(crate) link: link::Config,
    /// How often an agent is to report at least (default 10 s). Agents are told in whole seconds, one at least.
    pub(crate) heartbeat: Duration,
    /// What a report may be late by (default 5 s). A session whose agent says nothing for three heartbeats, or for one and this,
    /// whichever is longer, is closed.
    pub(crate) heartbeat_timeout: Duration,
    /// How long a lost session keeps its attempts (default 15 s).
    pub(crate) grace: Duration,
    /// How long nobody else may be there, without interruption, until one provider's word ends a task that fails anywhere (default 60 s,
    /// the grace at least).
    pub(crate) alone: Duration,
    /// How long an agent may think about an offer (default 10 s).
    pub(crate) offer_timeout: Duration,
    /// How long a host that refused a task is not asked again (default 30 s); doubled each time, up to [`HubConfig::max_backoff`].
    pub(crate) refused_backoff: Duration,
    /// How long a host that was busy, could not be asked or failed the task is not asked again (default 2 s); doubled each time, up
    /// to [`HubConfig::max_backoff`].
    pub(crate) failed_backoff: Duration,
    /// The longest time for which one task is kept from one host (default 5 min).
    pub(crate) max_backoff: Duration,
    /// How often everything is looked at again without an occasion (default 30 s): the net below what events should do.
    pub(crate) safety_tick: Duration,
    /// Handshakes at once (default 256). Further ones are answered 503.
    pub(crate) max_handshakes: usize,
    /// Handshakes at once with one address, of IPv6 one /64 network (default 16). Further ones are answered 503.
    pub(crate) max_handshakes_per_ip: usize,
    /// How long a host may take to register once it is greeted (default 5 s).
    pub(crate) register_timeout: Duration,
    /// Sessions at once (default 10,000). Further ones are answered 503.
    pub(crate) max_sessions: usize,
    /// Open tasks kept in memory (default 10,000). Further ones wait in the store.
    pub(crate) max_waiting: usize,
    /// Offers that may be in flight at once (default 256).
    pub(crate) max_offers: usize,
    /// How often hosts prove what their GPUs compute; `None` for never (default).
    pub(crate) challenge_every: Option<Duration>,
    /// How long a shutdown waits for sessions to close (default 10 s).
    pub(crate) drain: Duration,
}

impl HubConfig {
    /// The defaults for a relay of this id at these URLs, which serves these domains.
    pub(crate) fn new(relay_id: impl Into<String>, public_urls: Vec<Url>, domains: Vec<Domain>) -> Self {
        Self {
            relay_id: relay_id.into(),
            public_urls,
            domains,
            link: link::Config::default(),
            heartbeat: Duration::from_secs(10),
            heartbeat_timeout: Duration::from_secs(5),
            grace: Duration::from_secs(15),
            alone: Duration::from_secs(60),
            offer_timeout: Duration::from_secs(10),
            refused_backoff: Duration::from_secs(30),
            failed_backoff: Duration::from_secs(2),
            max_backoff: Duration::from_secs(300),
            safety_tick: Duration::from_secs(30),
            max_handshakes: 256,
            max_handshakes_per_ip: 16,
            register_timeout: Duration::from_secs(5),
            max_sessions: 10_000,
            max_waiting: 10_000,
            max_offers: 256,
            challenge_every: None,
            drain: Duration::from_secs(10),
        }
    }

    /// The longest silence of an agent whose connection lives.
    pub(super) fn silence(&self) -> Duration {
        (self.heartbeat * 3).max(self.heartbeat + self.heartbeat_timeout)
    }

    /// How long an agent may leave an attempt that it holds out of its reports: one that it has just taken may be missing from a
    /// report that was on its way.
    pub(super) fn settle(&self) -> Duration {
        self.heartbeat / 2
    }

    /// The heartbeat as agents are told.
    pub(super) fn heartbeat_secs(&self) -> u64 {
        self.heartbeat.as_secs().max(1)
    }
}
