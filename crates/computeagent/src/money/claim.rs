//! A claim: what this provider wants of the money of one attempt, and how far it got.

use escrow::Record;
use rpc::link::AttemptKey;
use rpc::tasks::{FailureView, SignedMutation};
use serde::{Deserialize, Serialize};
use taskmarket::{AcceptTask, ApproveResult, ComputeProof, Task, Timestamp};

/// One attempt at a settled task. It is kept from before the relay hears of the acceptance until nothing of it can change any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// The task.
    pub(crate) task: Task,
    /// What was signed last: whoever has it can bind this provider while five minutes or more of its lease are left.
    pub(crate) accept: SignedMutation<AcceptTask>,
    /// Whether the work is done before anybody is bound, since the requester is trusted to approve.
    pub(crate) fast: bool,
    /// What the work asks for.
    pub(crate) wish: Wish,
    /// The requester's word for the result, once it came.
    pub(crate) approval: Option<SignedMutation<ApproveResult>>,
    /// Until when the chain was seen to bind this provider; none again once the attempt was given back.
    pub(crate) bound: Option<Timestamp>,
    /// The transaction that this claim shares with others, by the outbox's purpose.
    pub(crate) batch: Option<String>,
    /// How often the chain refused the acceptance.
    pub(crate) refused: u32,
    /// Sets transactions apart that had to be sent again, since a reorganisation removed what was final.
    pub(crate) round: u32,
    /// A block before which the money's last move is not.
    pub(crate) from_block: u64,
}

/// What the work asks for. It goes on from top to bottom, and the last two are final.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "wish", rename_all = "snake_case")]
pub(crate) enum Wish {
    /// Nothing yet: model and input are on their way.
    Fetch,
    /// To be bound, so that the work can begin.
    Bind,
    /// To be paid for a result.
    Prove {
        /// What proves it.
        proof: Box<SignedMutation<ComputeProof>>,
        /// Since when.
        since: Timestamp,
    },
    /// To be let go.
    GiveUp {
        /// Why.
        failure: FailureView,
    },
}

/// How a claim ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    /// The budget is this provider's.
    Paid,
    /// A dispute divided the money.
    Split,
    /// The lease ended with nothing delivered: the stake is the requester's.
    Lapsed,
    /// The attempt was given up, and nobody can bind this provider to it any more.
    GivenUp,
    /// The attempt is another's, or the money has left the task.
    Lost,
}

impl Ending {
    /// The word in reports.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Paid => "paid",
            Self::Split => "split",
            Self::Lapsed => "lapsed",
            Self::GivenUp => "given_up",
            Self::Lost => "lost",
        }
    }
}

/// What the work may know of the money.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Standing {
    /// Nobody is bound.
    Reserved,
    /// This provider is bound until then: the work may begin.
    Bound(Timestamp),
    /// The attempt is given up.
    GivenUp(FailureView),
    /// There is nothing to be had any more.
    Over,
}

impl Claim {
    /// Which attempt it is of.
    pub(crate) fn key(&self) -> AttemptKey {
        AttemptKey { task_id: self.accept.mutation.task_id, attempt: self.accept.mutation.attempt }
    }

    /// Whether what the chain stores is of this attempt and this provider.
    pub(crate) fn is_of(&self, record: &Record) -> bool {
        let accept = &self.accept.mutation;
        (record.provider, record.attempt) == (accept.provider, accept.attempt)
    }

    /// Until when this provider can be held to the attempt, by what is known here.
    pub(crate) fn lease_end(&self) -> Timestamp {
        let signed = self.accept.mutation.lease_until;
        self.bound.map_or(signed, |bound| bound.max(signed))
    }

    /// The proof, once there is one.
    pub(crate) fn proof(&self) -> Option<&SignedMutation<ComputeProof>> {
        match &self.wish {
            Wish::Prove { proof, .. } => Some(proof),
            Wish::Fetch | Wish::Bind | Wish::GiveUp { .. } => None,
        }
    }

    /// The requester's word, if it is about the result that is proven.
    pub(crate) fn approved(&self) -> Option<&SignedMutation<ApproveResult>> {
        let proof = &self.proof()?.mutation;
        self.approval.as_ref().filter(|approval| {
            let word = &approval.mutation;
            (word.task_id, word.provider, word.attempt, word.result_hash)
                == (proof.task_id, proof.provider, proof.attempt, proof.result_hash)
        })
    }

    /// How it ended, where the chain shows no trace of it any more at `head`.
    pub(crate) fn ended(&self, head: Timestamp) -> Ending {
        match (&self.wish, self.bound) {
            (_, Some(until)) if head >= until => Ending::Lapsed,
            (Wish::GiveUp { .. }, _) => Ending::GivenUp,
            (Wish::Fetch | Wish::Bind | Wish::Prove { .. }, _) => Ending::Lost,
        }
    }
}
