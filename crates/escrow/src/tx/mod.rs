//! Sending transactions so that each is sent once, whatever crashes in between.
//!
//! The caller names a *purpose* (`accept:<task id>:2`). [`Outbox::submit`] keeps it on disk before anything else happens; then a
//! nonce is taken, the transaction is signed and kept, and only then sent. After a crash the chain is asked what became of what
//! was signed. The same purpose is never signed under a second nonce unless the first was used up by another transaction, final
//! beyond doubt, so that what was signed before can never be mined.
//!
//! ```text
//! Planned --sign, keep--> Signed --send--> Sent --in a block--> Mined --n confirmations--> Done | Failed (reverted)
//!    ^  |                   |               | ^                   |
//!    |  +--would revert--> Failed (refused) | +---- reorg --------+
//!    +------ the nonce was used by another transaction ------+
//! ```
//!
//! A transaction that is not mined for a while is signed again with the same nonce and higher fees, up to a cap.

mod deploy;
mod entry;
mod fees;
mod outbox;
mod send;
mod store;

pub use deploy::{DeployError, Deployed, PERMIT2, deploy};
pub use entry::{Entry, FailureReason, Mined, Pending, Signed, State, Trouble};
pub use outbox::{Outbox, OutboxConfig, OutboxError};
