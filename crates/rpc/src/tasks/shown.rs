//! What of a task is shown to whom.

use serde::{Deserialize, Serialize};
use taskmarket::{Address, Amount, Runtime, Task, Timestamp, eip55};

/// A task as somebody may see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum ShownTask {
    /// All of it: to the key that published it, its requester, its provider, and admins.
    Whole(Box<Task>),
    /// Its requirements and money, without references and parameters: to others.
    Public(Box<PublicTask>),
}

/// A task's requirements and money.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of taskmarket::Task")]
pub struct PublicTask {
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "taskmarket::Provider"))]
    pub requester: Address,
    pub config: PublicConfig,
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "taskmarket::Provider"))]
    pub token: Address,
    pub budget: Amount,
    pub provider_stake: Amount,
    pub dispute_bond: Amount,
    pub deadline: Timestamp,
    pub dispute_window: u64,
    pub arbiter_window: u64,
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "taskmarket::Provider"))]
    pub arbiter: Address,
}

/// A task's requirements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of taskmarket::TaskConfig")]
pub struct PublicConfig {
    pub runtime: Runtime,
    pub gpu_type: String,
    pub gpu_count: u32,
    pub min_vram: u64,
    pub max_duration: u64,
    pub max_attempts: u32,
}

impl From<&Task> for PublicTask {
    fn from(task: &Task) -> Self {
        Self {
            requester: task.requester,
            config: PublicConfig {
                runtime: task.config.runtime,
                gpu_type: task.config.gpu_type.clone(),
                gpu_count: task.config.gpu_count,
                min_vram: task.config.min_vram,
                max_duration: task.config.max_duration,
                max_attempts: task.config.max_attempts,
            },
            token: task.token,
            budget: task.budget,
            provider_stake: task.provider_stake,
            dispute_bond: task.dispute_bond,
            deadline: task.deadline,
            dispute_window: task.dispute_window,
            arbiter_window: task.arbiter_window,
            arbiter: task.arbiter,
        }
    }
}
