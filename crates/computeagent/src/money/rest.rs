//! Whether the agent may end: not while the chain waits for a step of this provider, who would lose its stake by the lease.

use std::sync::atomic::Ordering;

use escrow::{Record, Status};
use rpc::link::AttemptKey;
use taskmarket::Timestamp;

use super::claim::{Claim, Wish};
use super::step::Step;
use super::{Money, OUTBOX_POLL, Open};
use crate::agent::now;

/// Whether a claim may be left alone, by the last look at the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// It was not looked at since it changed.
    Unknown,
    /// The chain holds this provider to its lease, or a step of its own is due.
    Owed,
    /// Nobody is bound, and whoever has the acceptance can bind this provider by it.
    Exposed,
    /// What is to come can wait.
    Free,
}

impl Hold {
    pub(super) fn of(claim: &Claim, record: &Record, step: &Step) -> Self {
        match step {
            Step::Accept(_) | Step::Surrender(..) | Step::Fail | Step::Prove | Step::AcceptAndProve => {
                Self::Owed
            }
            Step::Approve | Step::Settle | Step::Timeout | Step::Close(_) => Self::Free,
            Step::Wait(_) => match record.status {
                Status::Accepted if claim.is_of(record) => Self::Owed,
                Status::None | Status::Funded | Status::Accepted => Self::Exposed,
                Status::Proven
                | Status::Disputed
                | Status::Paid
                | Status::Split
                | Status::Refunded
                | Status::Cancelled => Self::Free,
            },
        }
    }
}

impl Money {
    /// Notes that all claims were looked at, and whether nothing was on its way as that began.
    pub(super) fn looked(&self, quiet: bool) {
        self.quiet.store(quiet, Ordering::Relaxed);
    }

    /// Waits until the chain waits for nothing of this agent, and all that it sent is final.
    pub(crate) async fn at_rest(&self) {
        while !self.is_at_rest().await {
            self.pause().await;
        }
    }

    async fn is_at_rest(&self) -> bool {
        if !self.quiet.load(Ordering::Relaxed) || !self.owed().await.is_empty() {
            return false;
        }
        match self.outbox.get() {
            Some(outbox) => outbox.unfinished().await.is_ok_and(|entries| entries.is_empty()),
            None => true,
        }
    }

    /// The attempts that would cost their stake if this agent ended now, and until when they can be brought to their end.
    pub(crate) async fn owed(&self) -> Vec<(AttemptKey, Timestamp)> {
        self.held(|open| matches!(open.hold, Hold::Unknown | Hold::Owed)).await
    }

    /// As [`Self::owed`], and those to which somebody may still bind this provider.
    pub(crate) async fn exposed(&self) -> Vec<(AttemptKey, Timestamp)> {
        self.held(|open| open.hold != Hold::Free).await
    }

    /// The attempts without a result.
    pub(crate) async fn unproven(&self) -> Vec<AttemptKey> {
        let held = self.held(|open| matches!(open.claim.wish, Wish::Fetch | Wish::Bind)).await;
        held.into_iter().map(|(key, _)| key).collect()
    }

    /// What nobody can be held to any more is not counted, also where the chain is out of reach.
    async fn held(&self, is_meant: impl Fn(&Open) -> bool) -> Vec<(AttemptKey, Timestamp)> {
        let claims = self.claims.lock().await;
        let held = claims.values().filter(|open| is_meant(open));
        let held = held.map(|open| (open.claim.key(), open.claim.lease_end()));
        held.filter(|(_, lease_end)| now() < *lease_end).collect()
    }

    /// As long as it makes sense to wait before it is asked again whether the agent may end.
    pub(crate) async fn pause(&self) {
        tokio::time::sleep(self.config.timing.poll.min(OUTBOX_POLL)).await;
    }
}
