//! What hosts offer.

use std::collections::BTreeSet;

use taskmarket::{Address, Bytes32, ContentHash, Runtime};

/// Which host: one provider may run many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey {
    /// Whose.
    pub provider: Address,
    /// Which of theirs.
    pub node_id: Bytes32,
}

/// A device of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name, such as `NVIDIA A100-SXM4-80GB`.
    pub name: String,
    /// Its memory, in MiB.
    pub vram_mb: u64,
    /// Whether it is a GPU.
    pub is_gpu: bool,
}

/// What a host offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Which host.
    pub key: NodeKey,
    /// Its devices.
    pub devices: Vec<Device>,
    /// What it can execute.
    pub runtimes: Vec<Runtime>,
    /// How many tasks it runs at once.
    pub slots: u32,
    /// How many it runs, by its own word.
    pub busy: u32,
    /// The models that it has loaded.
    pub warm: Vec<ContentHash>,
    /// The models that its engines serve, by their names.
    pub served: Vec<String>,
    /// Whether it takes tasks.
    pub accepting: bool,
}

/// What all hosts of an index offer together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Hosts.
    pub nodes: u64,
    /// Tasks that they can run at once.
    pub slots: u64,
    /// Slots in use or reserved.
    pub busy: u64,
    /// GPUs.
    pub gpus: u64,
    /// What any of them can execute.
    pub runtimes: BTreeSet<Runtime>,
}
