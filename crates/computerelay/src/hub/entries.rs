//! What the floor notes of a task in each of its states, and what it asks others to do.

use std::sync::Arc;

use scheduler::{Need, NodeKey};
use taskmarket::{Address, Runtime, Task, TaskId, Timestamp};
use tokio::time::Instant;

use super::node::Live;
use super::tries::Tries;

/// An open task that waits for a host. Ordered by age.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) version: u64,
    pub(super) created_at: Timestamp,
    /// Whether its money is on a chain.
    pub(super) settled: bool,
    /// Since when it can be taken, where this relay saw that.
    pub(super) since: Option<Instant>,
    pub(super) need: Need,
    pub(super) kind: Kind,
    /// Whether hosts that have proven nothing may come first with its first offer.
    pub(super) is_trial: bool,
    /// Providers that do not get it again: a lease of theirs on it lapsed, or they said that it fails anywhere.
    pub(super) barred: Vec<Address>,
    /// What is to be done about providers that said that it fails anywhere, if any did.
    pub(super) fault: Option<Fault>,
    pub(super) tries: Tries,
}

/// That providers gave a task up for what is of its requester's making.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    /// Whether two of them agree: then nobody is asked any more, but for what is said of the next.
    pub(super) agreed: bool,
    /// Whether two agree that had proven themselves. Others' words do not keep the task from who has.
    pub(super) by_proven: bool,
    /// Since when nobody else is there who might say otherwise, as far as this relay looked.
    pub(super) alone_since: Option<Instant>,
    /// Until when the end of the task is on its way to the store.
    pub(super) ending_until: Option<Instant>,
}

/// What decides whether a host fits: tasks of one kind fit the same hosts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) runtime: Runtime,
    pub(super) gpu_type: String,
    pub(super) gpu_count: u32,
    pub(super) min_vram: u64,
    /// The model that an engine of the host must serve.
    pub(super) served: Option<String>,
}

impl Kind {
    pub(super) fn of(task: &Task, need: &Need) -> Self {
        let config = &task.config;
        Self {
            runtime: config.runtime,
            gpu_type: config.gpu_type.clone(),
            gpu_count: config.gpu_count,
            min_vram: config.min_vram,
            served: need.served().map(str::to_owned),
        }
    }
}

/// A task that a host was asked to take.
#[derive(Debug)]
pub(super) struct Offering {
    pub(super) key: NodeKey,
    pub(super) waiting: Waiting,
}

/// An attempt that somebody holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) version: u64,
    pub(super) attempt: u32,
    pub(super) key: NodeKey,
    /// Since when this relay knows.
    pub(super) since: Instant,
    /// Since when the host's reports leave it out.
    pub(super) missing_since: Option<Instant>,
    pub(super) tries: Tries,
}

/// A task to offer to a host.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) task_id: TaskId,
    pub(super) live: Arc<Live>,
    /// Since when the task can be taken, where this relay saw that.
    pub(super) since: Option<Instant>,
}

/// An attempt that ended without its host's doing: the host is to stop.
#[derive(Debug)]
pub(super) struct CallOff {
    pub(super) task_id: TaskId,
    pub(super) attempt: u32,
    pub(super) live: Arc<Live>,
}

/// What a heartbeat brought to light.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Reports of attempts that the host does hold, by position in the heartbeat.
    pub(super) progress: Vec<usize>,
    /// Attempts that the host should hold and does not.
    pub(super) dropped: Vec<(TaskId, u32)>,
    /// Whether tasks that wait may fit now.
    pub(super) freed: bool,
}
