//! What is known of the artifacts in the relay's blob store. The bytes are elsewhere.

use async_trait::async_trait;
use taskmarket::{ContentHash, Timestamp};

use crate::{KeyId, StoreError};

/// Artifacts' metadata.
///
/// Every method fails with [`StoreError`] as its variants say.
#[async_trait]
pub trait Artifacts: Send + Sync {
    /// Keeps an artifact's metadata. What is kept of the same artifact already stays as it is.
    async fn add_artifact(
        &self,
        digest: ContentHash,
        size: u64,
        owner: KeyId,
        at: Timestamp,
    ) -> Result<(), StoreError>;

    /// An artifact's metadata, if it is known.
    async fn artifact(&self, digest: ContentHash) -> Result<Option<ArtifactMeta>, StoreError>;
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
}
