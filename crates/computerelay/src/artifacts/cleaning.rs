//! What goes: artifacts that were not used for long and that no unfinished task needs, and bytes that nothing is known of.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use artifact::Digest;
use futures_util::StreamExt;
use store::DOOMED_SECS;
use taskmarket::{TaskRecord, Timestamp};
use tokio::time::timeout;

use super::{Artifacts, BlobError, USE_GRAIN, digest_of, hash_of, named_by, now};

/// Unused artifacts that are looked at, at once. For each lot all unfinished tasks are read.
const LOT: usize = 16_384;
/// Artifacts that are taken over from other relays at once.
const TAKEN: usize = 16;
/// How long one removal may take. Those that are taken over together take less than the time after which others take them over.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(DOOMED_SECS / 2 / TAKEN as u64);
/// How old bytes are before their metadata is missed: it comes right after them, but their age counts from when the upload began.
const STRAY_AGE: Duration = Duration::from_secs(24 * 60 * 60);

impl Artifacts {
    /// Removes artifacts that were not used for `keep` and that no unfinished task may need. Answers how many.
    ///
    /// # Errors
    /// A store fails; what was done until then stays done.
    pub(crate) async fn expire(&self, keep: Duration) -> Result<u64, BlobError> {
        self.expire_at(now(), keep).await
    }

    pub(super) async fn expire_at(&self, now: Timestamp, keep: Duration) -> Result<u64, BlobError> {
        let mut removed = self.finish_others(now).await?;
        let before = Timestamp::from_unix(now.unix().saturating_sub((keep + USE_GRAIN).as_secs()));
        loop {
            let unused = self.0.store.unused_artifacts(before, LOT).await?;
            let (some, is_last) = (!unused.is_empty(), unused.len() < LOT);
            let mut unused: HashSet<Digest> = unused.into_iter().map(digest_of).collect();
            let needed = if some { self.take_needed(&mut unused).await? } else { Vec::new() };
            // To be needed is to be used; so the next lot has others.
            self.0.store.use_artifacts(needed.into_iter().map(hash_of).collect(), now).await?;
            for digest in unused {
                if self.0.store.doom_artifact(hash_of(digest), before, now).await? {
                    removed += u64::from(self.remove_doomed(digest).await?);
                }
            }
            if is_last {
                return Ok(removed);
            }
        }
    }

    /// Removes bytes that nothing is known of: their upload ended between the two. Answers how many.
    ///
    /// # Errors
    /// As of [`Artifacts::expire`].
    pub(crate) async fn remove_strays(&self) -> Result<u64, BlobError> {
        self.remove_strays_of(SystemTime::now() - STRAY_AGE).await
    }

    pub(super) async fn remove_strays_of(&self, before: SystemTime) -> Result<u64, BlobError> {
        self.0.objects.clear_staged().await?;
        let mut removed = 0;
        let mut listed = self.0.objects.list(before);
        while let Some(digest) = listed.next().await {
            let digest = digest?;
            if self.meta(&digest).await?.is_none() {
                removed += u64::from(self.remove_stray(digest).await?);
            }
        }
        Ok(removed)
    }

    /// Removes bytes that nothing is known of. `false` if something is.
    pub(super) async fn remove_stray(&self, digest: Digest) -> Result<bool, BlobError> {
        Ok(self.0.store.doom_stray(hash_of(digest), now()).await? && self.remove_doomed(digest).await?)
    }

    /// Finishes removals that relays began and did not end.
    async fn finish_others(&self, now: Timestamp) -> Result<u64, BlobError> {
        let mut removed = 0;
        loop {
            let doomed = self.0.store.take_doomed(now, TAKEN).await?;
            if doomed.is_empty() {
                return Ok(removed);
            }
            for digest in doomed {
                removed += u64::from(self.remove_doomed(digest_of(digest)).await?);
            }
        }
    }

    /// Removes what this relay has doomed. `false` if that took too long: then it stays doomed, for a later try.
    async fn remove_doomed(&self, digest: Digest) -> Result<bool, BlobError> {
        match timeout(REMOVAL_PATIENCE, self.0.objects.remove(&digest)).await {
            Ok(removed) => removed?,
            Err(_) => {
                tracing::warn!(%digest, "an artifact was not removed in time");
                return Ok(false);
            }
        }
        self.0.store.forget_artifact(hash_of(digest)).await?;
        Ok(true)
    }

    /// Takes those that unfinished tasks may need out of `unused`, and answers them.
    async fn take_needed(&self, unused: &mut HashSet<Digest>) -> Result<Vec<Digest>, BlobError> {
        let (mut needed, mut after) = (Vec::new(), Some(0));
        while let Some(from) = after {
            let portion = self.0.store.unfinished_tasks(from).await?;
            for record in &portion.tasks {
                self.take_needed_by(record, unused, &mut needed).await?;
            }
            after = portion.next;
        }
        Ok(needed)
    }

    async fn take_needed_by(
        &self,
        record: &TaskRecord,
        unused: &mut HashSet<Digest>,
        needed: &mut Vec<Digest>,
    ) -> Result<(), BlobError> {
        let mut take = |digest: &Digest| needed.extend(unused.take(digest));
        if let Some(submission) = record.submission() {
            take(&digest_of(submission.proof.message.result_hash));
        }
        for (digest, is_folder) in named_by(&record.task) {
            if is_folder {
                self.files_of(digest).await?.iter().for_each(&mut take);
            }
            take(&digest);
        }
        Ok(())
    }
}
