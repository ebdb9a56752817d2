//! Which provider's host gets a task: what a task needs, what hosts offer, and a live index of those offers.
//!
//! Nothing here does I/O or reads a clock, and the index says the same to the same calls. A host fits a task if it runs the
//! task's runtime, has the GPUs that the task asks for, and has an engine that serves the task's model where that is `model://NAME`. Among those that fit, take tasks now and have a free slot, [`Index::pick`] prefers
//!
//! 1. a host that has the task's model loaded,
//! 2. for a task without GPU, a host without GPU,
//! 3. the least loaded,
//! 4. of equally loaded ones, that which was given a task the longest ago.
//!
//! The index groups hosts of equal capability, so that a choice takes a look at each kind of host and not at each host.

mod capability;
mod explain;
mod free;
mod index;
mod need;
mod offer;

pub use explain::Exclusion;
pub use index::Index;
pub use need::Need;
pub use offer::{Device, NodeKey, Offer, Totals};
