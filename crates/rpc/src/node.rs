//! The compute node's API on its provider's host.
//!
//! Each with `Authorization: Bearer <token>` from the node's token file:
//!
//! - `POST /compute`, `DELETE /compute/{task_id}`: an attempt begins, or is called off;
//! - `GET /status`, `GET /status/{task_id}`, `GET /result/{task_id}`;
//! - `GET /logs/{task_id}?from=N&follow=true`: newline-delimited JSON of [`LogLine`], from number `from` on (0 if absent). With
//!   `follow` the answer goes on until the attempt ends. After the end the last 64 KiB are kept as long as the task's record;
//! - `POST /drain`, `DELETE /drain`: no more tasks are taken, or some again; both answer with a [`NodeReport`];
//! - `GET /metrics`.

use serde::{Deserialize, Serialize};
use taskmarket::{ContentHash, Runtime, Task, TaskId, Timestamp};

use crate::inference::ModelOffer;
use crate::link::DeviceView;
use crate::tasks::{FailureView, Phase};

/// The body of `POST /compute`; answered 202 with a [`ComputeStatus`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComputeRequest {
    /// The task's id.
    pub task_id: TaskId,
    /// Which attempt.
    pub attempt: u32,
    /// The task.
    pub task: Task,
    /// Where `artifact://` references are read: the relay's base URL.
    pub relay_url: String,
    /// What reads them there.
    pub attempt_token: String,
    /// Whether it only fetches and checks model and input for now, and begins once the same request comes without this.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hold: bool,
}

impl std::fmt::Debug for ComputeRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ComputeRequest")
            .field("task_id", &self.task_id)
            .field("attempt", &self.attempt)
            .field("relay_url", &self.relay_url)
            .finish_non_exhaustive()
    }
}

/// The answer of `GET /status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node's version.
    pub version: String,
    /// Operating system and architecture.
    pub platform: String,
    /// Its GPUs, or one CPU.
    pub devices: Vec<DeviceView>,
    /// Free memory of each GPU, in MiB, in the same order; empty on a CPU.
    pub free_vram_mb: Vec<u64>,
    /// What it can execute.
    pub runtimes: Vec<Runtime>,
    /// How many tasks it runs at once; zero while it drains.
    pub slots: u32,
    /// Tasks that it runs.
    pub busy: u32,
    /// Models that are loaded.
    pub warm_models: Vec<ContentHash>,
    /// Models that its engines serve.
    #[serde(default)]
    pub models: Vec<ModelOffer>,
    /// Why it takes no tasks at all, if something is wrong.
    #[serde(default)]
    pub unhealthy: Option<String>,
    /// Whether it was told to finish what runs and to take no more.
    #[serde(default)]
    pub draining: bool,
    /// What is wrong with single GPUs, which are given to no task meanwhile.
    #[serde(default)]
    pub gpu_problems: Vec<String>,
    /// What programs other than the node's tasks do with each GPU, in the order of `free_vram_mb`.
    #[serde(default)]
    pub foreign_gpu_use: Vec<GpuUse>,
}

/// How much a GPU is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuUse {
    /// Memory, in MiB.
    pub vram_mb: u64,
    /// The share of the last moments in which it was at work, 0 to 100.
    pub utilization_percent: u32,
}

/// A line of `GET /logs/{task_id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Its number among the attempt's lines, from zero; numbers that are missing are lines that were dropped.
    pub n: u64,
    /// Where the job wrote it.
    pub stream: LogStream,
    /// Its text, without the line's end.
    pub text: String,
}

/// Where a job writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The answer of `GET /status/{task_id}`. With `?seen=<revision>&wait_ms=N` it waits for a later revision first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeStatus {
    /// The task.
    pub task_id: TaskId,
    /// The attempt.
    pub attempt: u32,
    /// What it does.
    pub phase: Phase,
    /// How far it is in that, 0 to 100, where known.
    #[serde(default)]
    pub percent: Option<u8>,
    /// Grows at each change.
    pub revision: u64,
    /// Whether model and input are here and checked, and the work waits for the word to begin.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// What came out, once `phase` is `done`.
    #[serde(default)]
    pub outcome: Option<ComputeOutcome>,
    /// Why nothing did, once `phase` is `failed`.
    #[serde(default)]
    pub failure: Option<FailureView>,
}

/// What a run came to: what the agent signs in its proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeOutcome {
    /// SHA-256 of the model used; a folder's digest for a folder.
    pub model_hash: ContentHash,
    /// SHA-256 of the input used.
    pub input_hash: ContentHash,
    /// SHA-256 of the result.
    pub result_hash: ContentHash,
    /// The result's size, in bytes.
    pub result_bytes: u64,
    /// When the work began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// The device that did it.
    pub device: String,
}
