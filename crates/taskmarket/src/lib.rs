//! The domain of the ZORAI compute market: tasks, the messages that people sign about them, and the rules by which they change.
//!
//! Nothing here does I/O, reads a clock or holds a key. A task is an aggregate with a pure core:
//!
//! - [`publish`] takes a new task in; [`decide`] says what a signed [`Mutation`] does to it; [`elapse`] what time does; [`release`] what
//!   the serving relay's word does, and [`unworkable`] what it does to a task that providers say fails anywhere; [`observe`] what the chain's word does, and [`elapse_on_chain`] what its time does. Each answers with
//!   an [`Event`] or refuses.
//! - [`apply`] folds an event into the [`TaskRecord`].
//! - [`replay`] does all of it again from a history's text, checking every signature.
//!
//! ```text
//! publish -> Open --accept(n)--> Accepted --proof--> Submitted --approve | window ends--> Completed
//!            |  ^                  |   |                |
//!    cancel  |  +--fail | lease    |   |                +--dispute--> Disputed --resolve | arbiter window ends--> Resolved
//!            v     over | release, |   |
//!        Cancelled  n < max -------+   +--the same with n = max--> Failed
//!
//! Open or Accepted at the deadline -> Expired
//! Open, given up by a provider as failing anywhere, and ended by the relay's word -> Failed
//! ```
//!
//! Work and money are two things: [`Status`] is the work, [`Settlement`] is what the chain says of the money. In a settled task time is
//! the chain's: leases, the deadline and windows end when a final block says so, after all that blocks up to it say. So what the work
//! came to is never contradicted by a block that was already on its way.
//!
//! A message becomes [`Verified`] only by [`Signed::verify`], so that no rule can be asked about a signature that nobody checked.

mod chain;
mod decide;
mod eip712;
mod event;
pub mod failure;
mod messages;
pub mod params;
mod primitives;
mod publish;
mod record;
#[cfg(feature = "schema")]
mod schema;

pub use alloy_primitives::{Address, B256, U256, keccak256};
pub use chain::{ChainChange, ChainFact, ChainHead, chain_due, elapse_on_chain, observe};
pub use decide::{
    ALL_BPS, CLOCK_TOLERANCE_SECS, LEASE_MARGIN_SECS, MAX_ATTEMPTS, MAX_CODE_BYTES, MAX_DEADLINE_SECS,
    MAX_DURATION_SECS, MAX_GPU_COUNT, MAX_GPU_NAME_BYTES, MAX_MESSAGE_BYTES, MAX_REASON_BYTES,
    MAX_RESERVATIONS, MAX_WINDOW_SECS, MIN_LEASE_SECS, Mutation, Rejection, decide, elapse, is_gpu_name,
    latest_lease, next_due, release,
};
pub use eip712::{Domain, Message, Signature, SignatureError, Signed, Verified};
pub use event::{Event, Recorded, ReleaseReason, ReplayError, Word, apply, replay};
pub use failure::unworkable;
pub use messages::{
    AcceptTask, ApproveResult, CancelTask, ComputeProof, DisputeTask, FailTask, InferenceReceipt, NodeStatus,
    ReadTask, RegisterNode, ResolveDispute, Task, TaskConfig, UpdateNodeStatus,
};
pub use params::Runtime;
pub use primitives::{
    Amount, Bytes32, ContentHash, MAX_REFERENCE_BYTES, ParseError, Reference, TaskId, Timestamp, eip55,
};
pub use publish::publish;
pub use record::{
    ChainPlace, Completion, Dispute, FactId, Failure, Lease, Money, Provider, Resolution, Settlement, State,
    Status, Submission, TaskRecord,
};
