//! Artifacts' metadata.

use async_trait::async_trait;
use taskmarket::{ContentHash, Timestamp};

use super::Postgres;
use super::row::RowExt;
use crate::row::to_sql;
use crate::{ArtifactMeta, Artifacts, KeyId, StoreError};

#[async_trait]
impl Artifacts for Postgres {
    async fn add_artifact(
        &self,
        digest: ContentHash,
        size: u64,
        owner: KeyId,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO artifacts (digest, size, owner, created_at) VALUES ($1, $2, $3, $4)
                   ON CONFLICT DO NOTHING";
        let values: super::Params<'_> =
            &[&digest.0.as_slice(), &to_sql(size), &owner.as_str(), &to_sql(at.unix())];
        self.execute(sql, values).await?;
        Ok(())
    }

    async fn artifact(&self, digest: ContentHash) -> Result<Option<ArtifactMeta>, StoreError> {
        let sql = "SELECT size, owner, created_at FROM artifacts WHERE digest = $1";
        let Some(row) = self.query_opt(sql, &[&digest.0.as_slice()]).await? else { return Ok(None) };
        let owner = row.column::<&str>(1)?.parse()?;
        Ok(Some(ArtifactMeta { digest, size: row.number(0)?, owner, created_at: row.time(2)? }))
    }
}
