//! What is known of the artifacts in the relay's blob store. The bytes are elsewhere.
//!
//! An artifact's bytes are stored before its metadata, and removed in three steps: its metadata is doomed, its bytes are removed, its
//! metadata is forgotten. While it is doomed it counts as not stored, and cannot be added again, so that no relay removes bytes which
//! another one has just promised to keep. What a relay that ended in between left doomed is taken over after [`DOOMED_SECS`].

use async_trait::async_trait;
use taskmarket::{ContentHash, TaskRecord, Timestamp};

use crate::{KeyId, StoreError};

/// After this time, in seconds, a doomed artifact is another relay's to remove. No relay may work at a removal for as long.
pub const DOOMED_SECS: u64 = 600;

/// Rows of tasks that [`Artifacts::unfinished_tasks`] looks at, at once.
pub(crate) const LOOKED_AT: i64 = 20_000;
/// Tasks that it answers with at once. A record can have some tens of KiB.
pub(crate) const PORTION: usize = 500;

/// Artifacts' metadata.
///
/// Every method fails with [`StoreError`] as its variants say.
#[async_trait]
pub trait Artifacts: Send + Sync {
    /// Keeps the metadata of an artifact whose bytes are stored. What is kept of the same artifact already stays, but counts as used.
    ///
    /// With a quota, its owner may store no more than so many bytes in all.
    async fn add_artifact(&self, new: NewArtifact, quota: Option<u64>) -> Result<Added, StoreError>;

    /// An artifact's metadata, if it is known and not doomed.
    async fn artifact(&self, digest: ContentHash) -> Result<Option<ArtifactMeta>, StoreError>;

    /// How many bytes an API key stored that are still kept.
    async fn stored_bytes(&self, owner: &KeyId) -> Result<u64, StoreError>;

    /// Notes that artifacts were used; those that are unknown or doomed are passed over.
    async fn use_artifacts(&self, digests: Vec<ContentHash>, at: Timestamp) -> Result<(), StoreError>;

    /// Artifacts that were not used since `before`, the longest unused first, `limit` at most.
    async fn unused_artifacts(&self, before: Timestamp, limit: usize)
    -> Result<Vec<ContentHash>, StoreError>;

    /// Dooms an artifact that was not used since `before`. `true` if it is the caller's to remove now.
    async fn doom_artifact(
        &self,
        digest: ContentHash,
        before: Timestamp,
        at: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Dooms bytes that were found without metadata. `true` if they are the caller's to remove now; `false` if there is metadata.
    async fn doom_stray(&self, digest: ContentHash, at: Timestamp) -> Result<bool, StoreError>;

    /// Takes over artifacts that were doomed [`DOOMED_SECS`] before `at`, `limit` at most.
    async fn take_doomed(&self, at: Timestamp, limit: usize) -> Result<Vec<ContentHash>, StoreError>;

    /// Forgets a doomed artifact, whose bytes are gone.
    async fn forget_artifact(&self, digest: ContentHash) -> Result<(), StoreError>;

    /// Tasks that are not at their end, some at a time: of those after `after`, beginning with 0. Each task that is unfinished all the
    /// while comes once, whatever else happens to it.
    async fn unfinished_tasks(&self, after: u64) -> Result<TaskPortion, StoreError>;
}

/// An artifact to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewArtifact {
    /// Its SHA-256.
    pub digest: ContentHash,
    /// Its size in bytes.
    pub size: u64,
    /// The API key that stored it.
    pub owner: KeyId,
    /// The time.
    pub at: Timestamp,
}

/// What became of an artifact to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// It is kept.
    New,
    /// It was kept already.
    Known,
    /// A relay is removing it: it can be stored again in a moment.
    Doomed,
    /// Its owner would store too much. Nothing is kept.
    OverQuota,
}

/// What is kept of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactMeta {
    /// Its SHA-256.
    pub digest: ContentHash,
    /// Its size in bytes.
    pub size: u64,
    /// The API key that stored it first.
    pub owner: KeyId,
    /// When that was.
    pub created_at: Timestamp,
    /// When it was used last, as far as that was noted.
    pub used_at: Timestamp,
}

/// Some of the unfinished tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskPortion {
    /// The tasks.
    pub tasks: Vec<TaskRecord>,
    /// What to ask for next; `None` at the end.
    pub next: Option<u64>,
}

/// The portion that rows of tasks after `after` make; `last` is the last task's row.
pub(crate) fn portion(rows: Vec<(i64, TaskRecord)>, after: i64, last: i64) -> TaskPortion {
    let reached = match rows.last() {
        Some((row, _)) if rows.len() == PORTION => *row,
        Some(_) | None => after.saturating_add(LOOKED_AT),
    };
    let next = (reached < last).then(|| u64::try_from(reached).unwrap_or_default());
    TaskPortion { tasks: rows.into_iter().map(|(_, record)| record).collect(), next }
}

/// The words of the statuses of unfinished tasks, as SQL has a list.
pub(crate) fn unfinished_words() -> String {
    let unfinished = taskmarket::Status::ALL.into_iter().filter(|status| !status.is_final());
    unfinished.map(|status| format!("'{status}'")).collect::<Vec<_>>().join(", ")
}
