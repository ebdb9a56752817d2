//! A host that is connected: what it offers, what it reports and what it was given.

use std::sync::Arc;

use rpc::link::{DeviceKind, NodeMetadata};
use scheduler::{Device, NodeKey, Offer};
use taskmarket::{Bytes32, ContentHash, NodeStatus, Timestamp};

use super::scores::Scores;

/// A host's place on the floor. While its session is being set up, or after it was fenced off, there is a place without a host.
#[derive(Debug)]
pub(super) struct Place {
    /// The newest generation that was let in.
    pub(super) generation: u64,
    /// The host, once its session is open.
    pub(super) node: Option<Node>,
}

/// A connected host.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) live: Arc<Live>,
    pub(super) metadata: NodeMetadata,
    /// When the metadata was signed.
    pub(super) registered_at: Timestamp,
    pub(super) status: NodeStatus,
    /// What the agent reported last.
    pub(super) report: Option<Report>,
    /// Tasks on offer to it or held by it, by the relay's count.
    pub(super) given: u32,
}

/// What of a heartbeat decides where tasks go.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Report {
    pub(super) busy: u32,
    pub(super) slots: u32,
    pub(super) warm: Vec<ContentHash>,
    /// The models that its engines serve.
    pub(super) served: Vec<String>,
    pub(super) unhealthy: Option<String>,
}

/// A session that is open.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) key: NodeKey,
    pub(super) session_id: String,
    pub(super) nonce: Bytes32,
    pub(super) generation: u64,
    pub(super) connected_at: Timestamp,
    pub(super) link: link::Session,
}

impl Node {
    /// Why the host takes no work, if it takes none.
    pub(super) fn closed_for(&self) -> Option<String> {
        match self.status {
            NodeStatus::Draining => return Some("it is draining".into()),
            NodeStatus::Offline => return Some("it is about to leave".into()),
            NodeStatus::Online => {}
        }
        let report = self.report.as_ref()?;
        match &report.unhealthy {
            Some(why) => Some(format!("it is unhealthy: {why}")),
            None => (report.slots == 0).then(|| "it takes no tasks now".into()),
        }
    }

    /// Whether it takes inference requests: it is neither leaving nor unhealthy. They have slots of their own.
    pub(super) fn is_open(&self) -> bool {
        let is_healthy = self.report.as_ref().is_none_or(|report| report.unhealthy.is_none());
        self.status == NodeStatus::Online && is_healthy
    }

    /// Tasks that it runs, by its own count or the relay's, whichever is higher: its report may be older than the last task given.
    pub(super) fn busy(&self) -> u32 {
        self.given.max(self.report.as_ref().map_or(0, |report| report.busy))
    }

    /// How many tasks it runs at once.
    pub(super) fn slots(&self) -> u32 {
        self.report.as_ref().map_or(self.metadata.slots, |report| report.slots.min(self.metadata.slots))
    }

    /// What the host offers, as the scheduler wants it.
    pub(super) fn offer(&self, scores: &Scores) -> Offer {
        let devices = self.metadata.devices.iter();
        Offer {
            key: self.live.key,
            devices: devices
                .map(|device| Device {
                    name: device.name.clone(),
                    vram_mb: device.vram_mb,
                    is_gpu: device.kind == DeviceKind::Gpu,
                })
                .collect(),
            runtimes: self.metadata.runtimes.clone(),
            slots: self.slots(),
            busy: self.busy(),
            warm: self.warm(scores),
            served: self.report.as_ref().map(|report| report.served.clone()).unwrap_or_default(),
            accepting: self.closed_for().is_none(),
        }
    }

    /// The models that it has loaded, as far as that is believed.
    pub(super) fn warm(&self, scores: &Scores) -> Vec<ContentHash> {
        self.report.as_ref().map(|report| scores.believed(&self.live.key, &report.warm)).unwrap_or_default()
    }
}
