//! What a relay says of itself, of its providers and of the market.

use serde::{Deserialize, Serialize};
use taskmarket::{Address, Bytes32, Domain, NodeStatus, RegisterNode, Runtime, Signature, Timestamp, eip55};

use crate::link::NodeMetadata;

/// The answer of `GET /v1/info`: all that an independent client needs to sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// An EIP-712 domain, all its fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainView {
    /// `ZORAI Compute Market`.
    pub name: String,
    /// `1`.
    pub version: String,
    /// The chain id.
    pub chain_id: u64,
    /// The escrow, or zero.
    #[serde(with = "eip55")]
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

/// The answer of `GET /v1/providers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderList {
    /// Each host that is connected now.
    pub providers: Vec<ProviderView>,
}

/// A connected host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderView {
    /// Whose host.
    #[serde(with = "eip55")]
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
    /// Tasks that it runs now.
    pub busy: u32,
}

/// The answer of `GET /v1/providers/{address}/sessions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionList {
    /// Its sessions, newest first.
    pub sessions: Vec<SessionView>,
}

/// One connection of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// The answer of `GET /v1/stats` and `zor_getMarketStats`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
