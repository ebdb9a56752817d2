//! What can be set of a store, and what it tells of its work.

use std::time::Duration;

/// The limits of an open store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Writes of tasks that may wait to be carried out; more wait to be queued.
    pub queue: usize,
    /// Writes that one transaction carries out at most.
    pub batch: usize,
    /// Reads at the same time; on PostgreSQL, connections beside the writer's and the listener's.
    pub readers: usize,
    /// How long a call waits for a place in the queue, for a reader or for a lock, before
    /// [`StoreError::Busy`](crate::StoreError::Busy).
    pub wait: Duration,
    /// How long a queued write waits for its answer before [`StoreError::TimedOut`](crate::StoreError::TimedOut).
    pub answer: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queue: 1024,
            batch: 256,
            readers: 4,
            wait: Duration::from_secs(5),
            answer: Duration::from_secs(30),
        }
    }
}

/// What a store's writer has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteStats {
    /// Writes carried out, failed ones too.
    pub requests: u64,
    /// Transactions that carried them out; each was one flush to disk.
    pub commits: u64,
}
