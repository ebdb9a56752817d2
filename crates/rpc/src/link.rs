//! The handshake of a provider's connection, and what the relay asks over it. The transport is crate `link`.
//!
//! Handshake, one JSON text message each: relay [`Hello`]; agent [`Register`]; relay [`Welcome`], or an
//! [`ErrorBody`](crate::error::ErrorBody) and a close. After it the relay sends HTTP requests to the agent:
//!
//! - `POST /tasks` with an [`Assignment`]: 202 and a [`SignedMutation`](crate::tasks::SignedMutation)`<AcceptTask>`, or 409/503 and an error body;
//! - `DELETE /tasks/{id}?attempt=N`: 204;
//! - `GET /tasks/{id}/logs`: newline-delimited JSON of what the task writes;
//! - `POST /v1/chat/completions` and its companions: the engine's answer, with the provider's receipt as trailer (see [`inference`](crate::inference));
//! - `GET /heartbeat`: newline-delimited JSON of [`Heartbeat`], one at once, one at each change and at least one each `heartbeat_secs`.

use serde::{Deserialize, Serialize};
use taskmarket::{Bytes32, ContentHash, RegisterNode, Runtime, Signature, Task, TaskId, Timestamp};

use crate::inference::ModelOffer;
use crate::relay::DomainView;
use crate::tasks::Progress;

/// The relay's first message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The relay's id.
    pub relay_id: String,
    /// The id of the session on offer.
    pub session_id: String,
    /// What the registration must sign.
    pub nonce: Bytes32,
    /// The domains that the relay serves.
    pub domains: Vec<DomainView>,
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// The signed registration.
    pub registration: RegisterNode,
    /// The exact text that `metadata_hash` is the Keccak-256 of: JSON of [`NodeMetadata`].
    pub metadata: String,
    /// The provider's signature of the registration, under the unsettled domain.
    pub signature: Signature,
    /// The attempts that the host holds.
    pub attempts: Vec<HeldAttempt>,
    /// Proofs that no relay has acknowledged yet.
    pub unacked_proofs: Vec<AttemptKey>,
}

/// One attempt of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttemptKey {
    /// The task.
    pub task_id: TaskId,
    /// The attempt.
    pub attempt: u32,
}

/// An attempt that a host holds, and what it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldAttempt {
    /// The task.
    pub task_id: TaskId,
    /// What it does.
    #[serde(flatten)]
    pub progress: Progress,
}

/// The relay's last word of the handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Always true: a refusal is an error body.
    pub accepted: bool,
    /// Counts the host's connections; an older one is fenced off.
    pub generation: u64,
    /// How often the relay wants to hear of the host, at least, in seconds.
    pub heartbeat_secs: u64,
    /// Attempts that the host holds in vain: it must call them off.
    pub drop: Vec<AttemptKey>,
}

/// What a host offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeMetadata {
    /// The agent's version.
    pub agent_version: String,
    /// The compute node's version.
    pub node_version: String,
    /// Operating system and architecture, such as `linux-x86_64`.
    pub platform: String,
    /// Its GPUs, or one CPU.
    pub devices: Vec<DeviceView>,
    /// What it can execute.
    pub runtimes: Vec<Runtime>,
    /// How many tasks it runs at once.
    pub slots: u32,
}

/// A GPU, or a CPU that stands in for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeviceView {
    /// `gpu` or `cpu`.
    pub kind: DeviceKind,
    /// Its name.
    pub name: String,
    /// Its memory, in MiB; zero for a CPU.
    pub vram_mb: u64,
    /// The GPU's UUID, where the driver tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// A GPU.
    Gpu,
    /// A CPU.
    Cpu,
}

/// The body of `POST /tasks`: the relay offers an attempt.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The task's id.
    pub task_id: TaskId,
    /// Which attempt this would be.
    pub attempt: u32,
    /// The task.
    pub task: Task,
    /// The requester's signature.
    pub signature: Signature,
    /// The domain it is signed under.
    pub domain: DomainView,
    /// Reads this task's artifacts at the relay and stores its result there, until the attempt ends.
    pub attempt_token: String,
}

impl std::fmt::Debug for Assignment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Assignment")
            .field("task_id", &self.task_id)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// One line of `GET /heartbeat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The host's clock.
    pub at: Timestamp,
    /// Tasks that it runs.
    pub busy: u32,
    /// How many it runs at once; zero while it takes none.
    pub slots: u32,
    /// Free memory of each GPU, in MiB, in the metadata's order.
    pub free_vram_mb: Vec<u64>,
    /// Models that are loaded.
    pub warm_models: Vec<ContentHash>,
    /// Models that its engines serve to inference requests.
    #[serde(default)]
    pub models: Vec<ModelOffer>,
    /// What is wrong with the host, if anything.
    #[serde(default)]
    pub unhealthy: Option<String>,
    /// The attempts that it holds.
    pub attempts: Vec<HeldAttempt>,
}
