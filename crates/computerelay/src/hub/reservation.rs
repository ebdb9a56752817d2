//! Acceptances that a provider sends of its own accord: they take a host's slot as an offer does, and pass by nothing that offers heed.

use std::sync::Arc;

use rpc::error::ErrorCode;
use scheduler::{Need, NodeKey};
use taskmarket::{Address, Bytes32, TaskRecord, Word};
use tokio::time::Instant;

use super::Hub;
use super::floor::Floor;
use super::tries::Try;
use crate::error::ApiError;

/// Why no host of a provider takes a task that was not offered to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Barred {
    /// None that is connected fits the task.
    NoHost,
    /// The task is on offer to another host.
    OnOffer,
    /// Those that fit failed the task, refused it lately, or are the hosts of a provider that fails too much.
    Tried,
    /// Those that fit have no free slot, or take no work.
    NoRoom,
}

impl Floor {
    /// The host for a task that its provider accepts: the one that it is on offer to, or one that could be offered it now.
    pub(super) fn accepting_node(
        &self,
        provider: Address,
        record: &TaskRecord,
        now: Instant,
    ) -> Result<NodeKey, Barred> {
        if let Some(offered) = self.offered_to(record.id) {
            return if offered.provider == provider { Ok(offered) } else { Err(Barred::OnOffer) };
        }
        let tries = self.tries(record);
        let is_failure = |tried: &Try| tried.until > now || tried.failed.is_some();
        let failures = record.failure.iter().chain(&record.faults);
        let failed = failures.into_iter().any(|failure| failure.provider == provider);
        let is_barred = |key: &NodeKey| {
            failed
                || self.scores.is_shunned(&provider, now)
                || tries.and_then(|tries| tries.last(key)).is_some_and(is_failure)
        };
        let need = Need::of(&record.task);
        let free = self.index.pick(&need, |key| key.provider != provider || is_barred(key));
        free.ok_or_else(|| {
            let fitting: Vec<_> = self.index.fitting(provider, &need).collect();
            match fitting.iter().any(is_barred) {
                _ if fitting.is_empty() => Barred::NoHost,
                true => Barred::Tried,
                false => Barred::NoRoom,
            }
        })
    }
}

/// A slot of a host, kept for an acceptance until that is durable or refused.
pub(crate) struct Reservation {
    hub: Arc<Hub>,
    key: NodeKey,
    /// Of which session the slot was taken; `None` where the task is on offer to the host, which counts already.
    generation: Option<u64>,
}

impl Hub {
    /// Keeps a slot for an acceptance of this provider.
    ///
    /// # Errors
    /// 409 where it has no host here for the task, or is not to have it again yet; 503 where its hosts are busy or take no work.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        provider: Address,
        record: &TaskRecord,
    ) -> Result<Reservation, ApiError> {
        let mut floor = self.floor();
        let is_offered = floor.offered_to(record.id).is_some_and(|key| key.provider == provider);
        let key = floor.accepting_node(provider, record, Instant::now()).map_err(|barred| {
            let (code, why) = match barred {
                Barred::NoHost => (ErrorCode::NoSession, "has no host connected here that fits the task"),
                Barred::OnOffer => {
                    (ErrorCode::Conflict, "is not asked yet: the task is on offer to another host")
                }
                Barred::Tried => {
                    (ErrorCode::Conflict, "failed it before: the task is offered to it again in its turn")
                }
                Barred::NoRoom => (ErrorCode::Unavailable, "has no free slot for it, or takes no tasks now"),
            };
            ApiError::new(code, format!("{provider} {why}")).with_status(record.status())
        })?;
        let generation = floor.node(&key).filter(|_| !is_offered).map(|node| node.live.generation);
        if generation.is_some() {
            floor.give(&key, 1);
        }
        drop(floor);
        Ok(Reservation { hub: Arc::clone(self), key, generation })
    }
}

impl Reservation {
    /// The host.
    pub(crate) fn node_id(&self) -> Bytes32 {
        self.key.node_id
    }

    /// Heeds that the host has the task, before the slot that was kept for it is given back.
    pub(crate) fn taken(&self, record: &TaskRecord) {
        self.hub.absorb(record, Some(self.key.node_id), Some(Word::Signature));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut floor = self.hub.floor();
        let generation = floor.node(&self.key).map(|node| node.live.generation);
        // Who connected again was counted anew.
        if self.generation.is_some() && generation == self.generation {
            floor.give(&self.key, -1);
        }
    }
}
