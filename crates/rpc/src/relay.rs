//! What a relay says of itself, of its providers and of the market.

use serde::{Deserialize, Serialize};
use taskmarket::{
    Address, Bytes32, ChainHead, Domain, NodeStatus, RegisterNode, Runtime, Signature, Timestamp, eip55,
};

use crate::link::NodeMetadata;

/// The answer of `GET /v1/info`: all that an independent client needs to sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Info {
    /// The relay's id, which providers register with.
    pub relay_id: String,
    /// The relay's version.
    pub version: String,
    /// The relay's clock.
    pub now: Timestamp,
    /// The EIP-712 domains that it serves, unsettled first.
    pub domains: Vec<DomainView>,
    /// What it takes at most.
    pub limits: Limits,
    /// The runtimes that providers offer now.
    pub runtimes: Vec<Runtime>,
    /// Hosts online now.
    pub providers_online: u64,
    /// The chain that holds the money of settled tasks, where the relay takes any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<ChainStatus>,
}

/// How a relay follows the chain of settled tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChainStatus {
    /// The chain's id.
    pub chain_id: u64,
    /// The escrow's contract.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "taskmarket::Provider"))]
    pub escrow: Address,
    /// How many blocks, its own included, make a block final here.
    pub confirmations: u64,
    /// The chain's head, as last seen.
    #[serde(default)]
    pub head: Option<ChainHead>,
    /// The last final block; all tasks have what the chain said up to it.
    #[serde(default)]
    pub final_head: Option<ChainHead>,
    /// How old that block is by the relay's clock, in seconds.
    #[serde(default)]
    pub lag_secs: Option<u64>,
    /// Why the chain is not followed up to its head now. Meanwhile settled tasks are not offered to providers.
    #[serde(default)]
    pub error: Option<String>,
}

/// An EIP-712 domain, all its fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DomainView {
    /// `ZORAI Compute Market`.
    pub name: String,
    /// `1`.
    pub version: String,
    /// The chain id.
    pub chain_id: u64,
    /// The escrow, or zero.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "taskmarket::Provider"))]
    pub verifying_contract: Address,
}

impl From<Domain> for DomainView {
    fn from(domain: Domain) -> Self {
        Self {
            name: Domain::NAME.to_owned(),
            version: Domain::VERSION.to_owned(),
            chain_id: domain.chain_id,
            verifying_contract: domain.verifying_contract,
        }
    }
}

/// The body of `POST /v1/providers/{address}/registration`: an open session's host says anew what it offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RefreshNode {
    /// The registration, with the session's own id and nonce.
    pub registration: RegisterNode,
    /// The exact text that `metadata_hash` is the Keccak-256 of: JSON of [`NodeMetadata`].
    pub metadata: String,
    /// The provider's signature of the registration, under the unsettled domain.
    pub signature: Signature,
}

/// What a relay takes at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Limits {
    /// A JSON body, in bytes.
    pub max_body_bytes: u64,
    /// One artifact, in bytes.
    pub max_artifact_bytes: u64,
    /// A page of a listing.
    pub max_page: u32,
    /// How long a lost session keeps its attempts, in seconds.
    pub session_grace_secs: u64,
}

/// The query of `GET /v1/tasks/{id}/logs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LogQuery {
    /// The number of the first line: 0 by default.
    #[serde(default)]
    pub from: u64,
    /// Whether to go on until the attempt ends.
    #[serde(default)]
    pub follow: bool,
}

/// Which page of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    /// How many at most: 100 by default, 1,000 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Where the last page ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// The answer of `GET /v1/providers`: a page of hosts, in the order of their providers' addresses and their ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ProviderList {
    /// Each host that is connected now.
    pub providers: Vec<ProviderView>,
    /// Where the next page begins; absent on the last.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// A connected host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ProviderView {
    /// Whose host.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "taskmarket::Provider"))]
    pub provider: Address,
    /// Which host.
    pub node_id: Bytes32,
    /// Where to reach it: `relay://<relay-id>/<session-id>`.
    pub endpoint: String,
    /// Its session's generation.
    pub generation: u64,
    /// Since when.
    pub connected_at: Timestamp,
    /// Whether it takes work.
    pub status: NodeStatus,
    /// What it offers.
    pub metadata: NodeMetadata,
    /// Why it takes no tasks now; absent while it takes some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_for: Option<String>,
    /// Tasks that it runs now.
    pub busy: u32,
    /// What its GPUs were found to compute; empty where this relay has not asked.
    #[serde(default)]
    pub measured: Vec<MeasuredGpu>,
}

/// What the relay found a GPU to compute, by a challenge whose answer it checked. It shows that somebody computed so fast for this
/// host, which need not be the GPU that the host names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MeasuredGpu {
    /// Which of the metadata's devices, counted from 0.
    pub device: u32,
    /// Multiplications of 8-bit integers, each with its addition, in a second, at least; absent where the proof failed.
    #[serde(default)]
    pub multiply_adds_per_second: Option<u64>,
    /// Why the proof failed, if it did.
    #[serde(default)]
    pub problem: Option<String>,
    /// When it was checked.
    pub verified_at: Timestamp,
}

/// The answer of `GET /v1/providers/{address}/sessions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionList {
    /// Its sessions, newest first.
    pub sessions: Vec<SessionView>,
    /// Where the next page begins; absent on the last.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// One connection of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionView {
    /// The session's id.
    pub session_id: String,
    /// Which host.
    pub node_id: Bytes32,
    /// Which relay.
    pub relay_id: String,
    /// Counts the host's connections, from 1.
    pub generation: u64,
    /// When it began.
    pub connected_at: Timestamp,
    /// When it ended; absent while it lasts.
    #[serde(default)]
    pub disconnected_at: Option<Timestamp>,
    /// Why it ended.
    #[serde(default)]
    pub reason: Option<String>,
    /// Attempts that were begun before it and that the host brought with it.
    #[serde(default)]
    pub resumed_attempts: u64,
    /// Attempts that were lost with it: its host did not come back in time, or came back without them.
    #[serde(default)]
    pub lost_attempts: u64,
}

/// The answer of `GET /v1/providers/{address}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ProviderReport {
    /// The provider.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "taskmarket::Provider"))]
    pub provider: Address,
    /// Its hosts that are connected now.
    pub providers: Vec<ProviderView>,
    /// When the report was made: the end of each of its windows.
    pub as_of: Timestamp,
    /// The last hour, the last 24 hours and the last 30 days.
    pub windows: Vec<ReportWindow>,
}

/// What a provider did in a window of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReportWindow {
    /// Its length, in seconds: 3,600, 86,400 or 2,592,000.
    pub window_secs: u64,
    /// Whether all that is known of the window was counted. `false` if there was too much of it: then the newest part was.
    pub complete: bool,
    /// When the provider was up: while any of its hosts was connected.
    pub uptime: Uptime,
    /// Sessions that began.
    pub connects: u64,
    /// Of those, the ones of hosts that had been connected before.
    pub reconnects: u64,
    /// Its attempts.
    pub attempts: AttemptCounts,
    /// From when a task could be taken until it was, over the attempts accepted in the window, in milliseconds.
    #[serde(default)]
    pub dispatch_ms: Option<Spread>,
    /// From acceptance to proof, over the attempts proven in the window, in seconds.
    #[serde(default)]
    pub run_secs: Option<Spread>,
    /// Each host by itself.
    pub hosts: Vec<HostUptime>,
}

/// How long somebody was up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Uptime {
    /// Seconds connected.
    pub up_secs: u64,
    /// Seconds of the window since the first connection that is known.
    pub observed_secs: u64,
    /// The share of the two, in basis points, rounded down; 0 where nothing was observed.
    pub uptime_bps: u32,
}

/// A host's share in a [`ReportWindow`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HostUptime {
    /// Which host.
    pub node_id: Bytes32,
    /// When it was connected.
    pub uptime: Uptime,
    /// Its sessions that began.
    pub connects: u64,
    /// Of those, the ones after its first ever.
    pub reconnects: u64,
}

/// Attempts by what became of them. Each that ended is counted in the window in which it ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AttemptCounts {
    /// Begun.
    pub accepted: u64,
    /// Ended with a proof.
    pub proven: u64,
    /// Given up by the provider.
    pub failed: u64,
    /// Ended without a proof by the end of the lease or the deadline.
    pub timed_out: u64,
    /// Lost with a session, or dropped by the host.
    pub lost: u64,
    /// Ended with the task's withdrawal.
    pub cancelled: u64,
    /// Under way at the end of the window.
    pub running: u64,
}

/// How a quantity is spread. The p-th percentile of n values is the one at place ⌈p·n/100⌉ in their order (nearest rank).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Spread {
    /// How many values.
    pub count: u64,
    /// The 50th percentile.
    pub median: u64,
    /// The 99th percentile.
    pub p99: u64,
}

/// The answer of `GET /v1/stats` and `zor_getMarketStats`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MarketStats {
    /// Tasks by status, every status named.
    pub tasks: std::collections::BTreeMap<String, u64>,
    /// Hosts online.
    pub providers_online: u64,
    /// Slots of all hosts online.
    pub slots: u64,
    /// Slots in use.
    pub slots_busy: u64,
    /// GPUs of all hosts online.
    pub gpus: u64,
}
