//! Artifacts' metadata.

use async_trait::async_trait;
use rusqlite::OptionalExtension;
use taskmarket::{ContentHash, Timestamp};

use super::{Sqlite, to_sql};
use crate::{ArtifactMeta, Artifacts, KeyId, StoreError};

#[async_trait]
impl Artifacts for Sqlite {
    async fn add_artifact(
        &self,
        digest: ContentHash,
        size: u64,
        owner: KeyId,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            connection
                .prepare_cached(
                    "INSERT INTO artifacts (digest, size, owner, created_at) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT DO NOTHING",
                )?
                .execute((digest.0.as_slice(), to_sql(size), owner.as_str(), to_sql(at.unix())))?;
            Ok(())
        })
        .await
    }

    async fn artifact(&self, digest: ContentHash) -> Result<Option<ArtifactMeta>, StoreError> {
        self.read(move |connection| {
            let row: Option<(u64, String, u64)> = connection
                .prepare_cached("SELECT size, owner, created_at FROM artifacts WHERE digest = ?1")?
                .query_row([digest.0.as_slice()], |row| row.try_into())
                .optional()?;
            let Some((size, owner, created_at)) = row else { return Ok(None) };
            let created_at = Timestamp::from_unix(created_at);
            Ok(Some(ArtifactMeta { digest, size, owner: owner.parse()?, created_at }))
        })
        .await
    }
}
