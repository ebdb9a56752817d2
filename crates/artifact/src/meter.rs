//! Counts what one fetch has brought, over all its files, and tells how far it is.

use std::sync::atomic::{AtomicU64, Ordering};

/// Called with the bytes done and, if known, the bytes in all.
pub(crate) type Progress<'a> = &'a (dyn Fn(u64, Option<u64>) + Send + Sync);

/// Stands for a total that is not known.
const UNKNOWN: u64 = u64::MAX;

/// The bytes of one fetch, shared by downloads that run side by side.
pub(crate) struct Meter<'a> {
    done: AtomicU64,
    total: AtomicU64,
    limit: u64,
    progress: Progress<'a>,
}

impl<'a> Meter<'a> {
    /// Nothing is done yet; no more than `limit` bytes may come.
    pub(crate) fn new(limit: u64, total: Option<u64>, progress: Progress<'a>) -> Self {
        let total = total.unwrap_or(UNKNOWN);
        Self { done: AtomicU64::new(0), total: AtomicU64::new(total), limit, progress }
    }

    /// The most bytes that may come.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// The bytes in all have become known.
    pub(crate) fn set_total(&self, total: Option<u64>) {
        self.total.store(total.unwrap_or(UNKNOWN), Ordering::Relaxed);
        self.report();
    }

    /// Counts bytes that came, and tells whether they are within the limit.
    #[must_use]
    pub(crate) fn add(&self, bytes: u64) -> bool {
        let before = self.done.fetch_add(bytes, Ordering::Relaxed);
        self.report();
        before.saturating_add(bytes) <= self.limit
    }

    /// Bytes that were counted are fetched anew.
    pub(crate) fn take_back(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn report(&self) {
        let total = self.total.load(Ordering::Relaxed);
        (self.progress)(self.done.load(Ordering::Relaxed), (total != UNKNOWN).then_some(total));
    }
}
