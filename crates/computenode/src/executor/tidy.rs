//! Room on the disk: what is too old, or too much, goes.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use artifact::{Scrubbed, Trimmed};
use taskmarket::{TaskId, Timestamp};
use tokio::time::Instant;

use super::{Executor, Settings, on_disk};
use crate::disk::Space;
use crate::results::{Record, now};

/// The most tasks that are remembered, whatever room they take: some 100 MB of memory.
const MAX_RECORDS: usize = 100_000;

/// What a record takes at least on a disk, in bytes.
const RECORD_BYTES: u64 = 4096;

/// The shortest time from one look for what is too old or too much to the next, while tasks end: a look goes through all that is kept.
const TIDY_PAUSE: Duration = Duration::from_secs(1);

/// When it was looked for what is too old or too much.
#[derive(Default)]
pub(super) struct Tidied {
    last: tokio::sync::Mutex<Option<Instant>>,
    /// Whether somebody is about to look.
    due: AtomicBool,
}

impl Executor {
    /// As [`Self::tidy`], after a task: what ends within a moment is looked at once.
    pub(super) async fn tidy_soon(&self) {
        let Tidied { last, due } = &self.0.tidied;
        if due.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut last = last.lock().await;
        if let Some(last) = *last {
            let pause = tokio::time::sleep_until(last + TIDY_PAUSE);
            self.0.closed.run_until_cancelled(pause).await;
        }
        due.store(false, Ordering::SeqCst);
        self.tidy().await;
        *last = Some(Instant::now());
    }

    /// Removes results and fetched files that are too old, or too much.
    pub(crate) async fn tidy(&self) {
        // What has ended changes only by being taken again, and nothing begins to read while nothing is taken.
        let _taking = self.0.taking.lock().await;
        let executor = self.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || executor.sweep()).await {
            tracing::error!(%error, "removing old results failed");
        }
        let room = self.0.settings.keep_artifacts_bytes;
        self.trim(room).await;
    }

    /// After a crash, reads all fetched files once, and removes those that are damaged.
    pub(crate) async fn scrub(&self) {
        let store = self.0.fetcher.store();
        if !store.is_in_doubt() {
            return;
        }
        match store.scrub().await {
            Ok(Scrubbed { blobs, removed }) => {
                tracing::info!(blobs, removed, "fetched files checked after a crash");
            }
            Err(error) => tracing::error!(%error, "cannot check the fetched files"),
        }
    }

    /// Removes fetched files that no attempt reads until the others take no more than `limit` bytes.
    async fn trim(&self, limit: u64) {
        match self.0.fetcher.store().trim(limit).await {
            Ok(Trimmed { blobs: 0, .. }) => {}
            Ok(Trimmed { blobs, bytes, left }) => {
                tracing::info!(blobs, bytes, left, "fetched files removed: no more room");
            }
            Err(error) => tracing::error!(%error, "cannot remove fetched files"),
        }
    }

    /// Sees to it that the disk has the room that is to be kept, by removing fetched files. Says why there is too little, if
    /// there still is.
    pub(super) async fn make_room(&self) -> Option<String> {
        let Settings { data, min_free_disk, .. } = &self.0.settings;
        let space = self.space().await?;
        let missing = space.missing(*min_free_disk);
        if missing == 0 {
            return None;
        }
        tracing::warn!(data = %data.display(), missing, "the disk is nearly full: removing fetched files");
        if let Some(stored) = self.cache_bytes().await {
            self.trim(stored.saturating_sub(missing)).await;
        }
        self.disk_problem().await
    }

    /// Why the disk allows no more tasks, if it does not.
    pub(crate) async fn disk_problem(&self) -> Option<String> {
        let (space, min) = (self.space().await?, self.0.settings.min_free_disk);
        (space.missing(min) > 0).then(|| space.too_full(min))
    }

    /// How much the fetched files take, in bytes, where the disk tells.
    pub(crate) async fn cache_bytes(&self) -> Option<u64> {
        let usage = self.0.fetcher.store().usage().await;
        usage
            .inspect_err(|error| tracing::debug!(%error, "the fetched files cannot be counted"))
            .ok()
            .map(|usage| usage.bytes)
    }

    /// The room on the disk of the data folder. A file system that does not tell is no reason to stop.
    pub(crate) async fn space(&self) -> Option<Space> {
        let data = self.0.settings.data.clone();
        let space = on_disk(move || Space::of(&data)).await;
        space.inspect_err(|error| tracing::debug!(%error, "the file system does not tell its room")).ok()
    }

    /// Removes results that are too old, or too much. Blocks on the disk; nothing may be taken meanwhile.
    fn sweep(&self) {
        struct Ended {
            at: Timestamp,
            task: TaskId,
            attempt: u32,
            bytes: u64,
        }
        let mut ended: Vec<Ended> = Vec::new();
        for entry in self.tasks().values() {
            let Record { status, ended_at, log_bytes, .. } = &*entry.record.borrow();
            let result = status.outcome.as_ref().map_or(0, |outcome| outcome.result_bytes);
            let bytes = result.max(RECORD_BYTES) + log_bytes;
            ended.extend(ended_at.map(|at| Ended {
                at,
                task: status.task_id,
                attempt: status.attempt,
                bytes,
            }));
        }
        // The newest first: what is kept is a beginning of this list.
        ended.sort_by_key(|task| Reverse((task.at, task.task)));
        let settings = &self.0.settings;
        let oldest = now().unix().saturating_sub(settings.keep.as_secs());
        let mut bytes = 0u64;
        for (index, Ended { at, task, attempt, bytes: size }) in ended.into_iter().enumerate() {
            bytes = bytes.saturating_add(size);
            if at.unix() >= oldest && bytes <= settings.keep_bytes && index < MAX_RECORDS {
                continue;
            }
            match self.0.results.remove(task, attempt) {
                Ok(()) => {
                    tracing::info!(%task, "result removed: too old, or no more room");
                    self.tasks().remove(&task);
                }
                Err(error) => tracing::error!(%task, %error, "cannot remove a result"),
            }
        }
    }
}
