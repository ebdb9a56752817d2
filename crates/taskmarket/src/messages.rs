//! The messages that people and providers sign. Each is one EIP-712 struct; the field names here are its JSON form.

use alloy_primitives::Address;
use serde::{Deserialize, Serialize};

use crate::params::Runtime;
use crate::primitives::{Amount, Bytes32, ContentHash, Reference, TaskId, Timestamp, eip55};

/// What a task needs of the machine that runs it, and for how long it may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TaskConfig {
    /// What executes the task.
    pub runtime: Runtime,
    /// The runtime's parameters: canonical JSON text, see [`crate::params`].
    pub params: String,
    /// Words that the GPU's name must contain, in any case (`A100` matches `NVIDIA A100-SXM4-80GB`); empty for any device.
    pub gpu_type: String,
    /// GPUs asked for; zero for a task that runs on CPU.
    pub gpu_count: u32,
    /// Memory that each GPU must have, in MiB.
    pub min_vram: u64,
    /// How long one attempt may run, in seconds.
    pub max_duration: u64,
    /// How many attempts are made before the task counts as failed.
    pub max_attempts: u32,
}

/// A task as its requester signs it. Its EIP-712 digest is the task's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Who asks for the work, and signs.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
    pub requester: Address,
    /// Where the model (or program) is.
    pub model_cid: Reference,
    /// The model's SHA-256, or zero for unpinned.
    pub model_hash: ContentHash,
    /// Where the input is.
    pub input_cid: Reference,
    /// The input's SHA-256, or zero for unpinned.
    pub input_hash: ContentHash,
    /// What it needs.
    pub config: TaskConfig,
    /// The token that pays; zero for the native coin, and in unsettled tasks.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
    pub token: Address,
    /// What the requester offers for the work, in the token's smallest unit.
    pub budget: Amount,
    /// What a provider locks while it holds the task.
    pub provider_stake: Amount,
    /// What a requester locks with a dispute.
    pub dispute_bond: Amount,
    /// When the offer ends, whatever state the work is in.
    pub deadline: Timestamp,
    /// How long after a proof the requester may dispute it, in seconds.
    pub dispute_window: u64,
    /// How long the arbiter has to resolve a dispute, in seconds.
    pub arbiter_window: u64,
    /// Who resolves disputes; zero for nobody.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
    pub arbiter: Address,
    /// Tells apart tasks that are otherwise alike.
    pub salt: Bytes32,
}

/// The requester withdraws a task that nobody holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CancelTask {
    /// The task.
    pub task_id: TaskId,
    /// When this was signed.
    pub issued_at: Timestamp,
}

/// A provider binds itself to run an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct AcceptTask {
    /// The task.
    pub task_id: TaskId,
    /// Who accepts, and signs.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
    pub provider: Address,
    /// Which attempt: one more than the last.
    pub attempt: u32,
    /// Until when the provider holds the task.
    pub lease_until: Timestamp,
}

/// A provider gives an attempt up, and says why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FailTask {
    /// The task.
    pub task_id: TaskId,
    /// Who held it, and signs.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
    pub provider: Address,
    /// The attempt given up.
    pub attempt: u32,
    /// A stable word for the reason, such as `out_of_fuel`.
    pub code: String,
    /// The reason for people, 1 KiB at most.
    pub message: String,
    /// When this was signed.
    pub issued_at: Timestamp,
}

/// A provider states what it computed from what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ComputeProof {
    /// The task.
    pub task_id: TaskId,
    /// Who computed, and signs.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
    pub provider: Address,
    /// The attempt that this ends.
    pub attempt: u32,
    /// SHA-256 of the model used.
    pub model_hash: ContentHash,
    /// SHA-256 of the input used.
    pub input_hash: ContentHash,
    /// SHA-256 of the result.
    pub result_hash: ContentHash,
    /// Where the result is.
    pub result_cid: Reference,
    /// When the work began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// The device that did it, as the provider names it.
    pub gpu_name: String,
}

/// The requester takes a result as good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ApproveResult {
    /// The task.
    pub task_id: TaskId,
    /// Whose result.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
    pub provider: Address,
    /// Of which attempt.
    pub attempt: u32,
    /// The result's SHA-256.
    pub result_hash: ContentHash,
    /// When this was signed.
    pub issued_at: Timestamp,
}

/// The requester disputes a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DisputeTask {
    /// The task.
    pub task_id: TaskId,
    /// Whose result.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
    pub provider: Address,
    /// Of which attempt.
    pub attempt: u32,
    /// The disputed result's SHA-256.
    pub result_hash: ContentHash,
    /// Why, for the arbiter, 4 KiB at most.
    pub reason: String,
    /// A content reference to evidence, or empty.
    pub evidence: String,
    /// When this was signed.
    pub issued_at: Timestamp,
}

/// The arbiter ends a dispute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ResolveDispute {
    /// The task.
    pub task_id: TaskId,
    /// Of which attempt.
    pub attempt: u32,
    /// The provider's share in basis points (10,000 is all).
    pub provider_bps: u32,
    /// When this was signed.
    pub issued_at: Timestamp,
}

/// A provider's host registers a session at a relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RegisterNode {
    /// Whose host, and who signs.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
    pub provider: Address,
    /// The host, as it calls itself; one provider may run many.
    pub node_id: Bytes32,
    /// The relay that it means to talk to.
    pub relay_id: String,
    /// The URL that it dialled, so that nobody can pass its registration on.
    pub relay_url: String,
    /// The session that the relay offered.
    pub session_id: String,
    /// The relay's nonce.
    pub nonce: Bytes32,
    /// When this was signed.
    pub timestamp: Timestamp,
    /// Keccak-256 of the exact metadata text that is sent along.
    pub metadata_hash: Bytes32,
}

/// A provider says whether a host takes work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct UpdateNodeStatus {
    /// Whose host, and who signs.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
    pub provider: Address,
    /// The host.
    pub node_id: Bytes32,
    /// `online`, `draining` or `offline`.
    pub status: NodeStatus,
    /// When this was signed; later than the last one of this host.
    pub issued_at: Timestamp,
}

/// Whether a host takes work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum NodeStatus {
    /// It takes tasks.
    Online,
    /// It finishes what it holds and takes no more.
    Draining,
    /// It is about to leave.
    Offline,
}

impl NodeStatus {
    /// The word as signed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Draining => "draining",
            Self::Offline => "offline",
        }
    }
}

/// The requester or the provider of a task asks to read it, and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ReadTask {
    /// The task.
    pub task_id: TaskId,
    /// Who asks, and signs.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
    pub reader: Address,
    /// When this was signed.
    pub issued_at: Timestamp,
}

/// A provider states what one inference request took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct InferenceReceipt {
    /// The relay's id of the request.
    pub request_id: String,
    /// Who served it, and signs.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
    pub provider: Address,
    /// On which host.
    pub node_id: Bytes32,
    /// Through which relay.
    pub relay_id: String,
    /// SHA-256 of the request's body.
    pub request_hash: ContentHash,
    /// SHA-256 of the response's body, as delivered.
    pub response_hash: ContentHash,
    /// The model's name.
    pub model: String,
    /// The engine that ran it.
    pub engine: String,
    /// Its quantisation, or empty.
    pub quantization: String,
    /// Tokens in.
    pub prompt_tokens: u64,
    /// Tokens out.
    pub completion_tokens: u64,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
}
