//! Artifacts' metadata.

use async_trait::async_trait;
use taskmarket::{B256, ContentHash, Timestamp};
use tokio_postgres::Row;

use super::Postgres;
use super::row::RowExt;
use crate::artifacts::{LOOKED_AT, PORTION, portion, unfinished_words};
use crate::row::{parse, to_sql};
use crate::{Added, ArtifactMeta, Artifacts, DOOMED_SECS, KeyId, NewArtifact, StoreError, TaskPortion};

#[async_trait]
impl Artifacts for Postgres {
    async fn add_artifact(&self, new: NewArtifact, quota: Option<u64>) -> Result<Added, StoreError> {
        let quota = quota.map(to_sql);
        let values: super::Params<'_> = &[
            &new.digest.0.as_slice(),
            &to_sql(new.size),
            &new.owner.as_str(),
            &to_sql(new.at.unix()),
            &quota,
        ];
        let rows = self.write("SELECT add_artifact($1, $2, $3, $4, $5)", values).await?;
        match rows.first().map(|row| row.column::<&str>(0)).transpose()? {
            Some("new") => Ok(Added::New),
            Some("known") => Ok(Added::Known),
            Some("doomed") => Ok(Added::Doomed),
            Some("over_quota") => Ok(Added::OverQuota),
            other => Err(StoreError::corrupt(format_args!("add_artifact answered {other:?}"))),
        }
    }

    async fn artifact(&self, digest: ContentHash) -> Result<Option<ArtifactMeta>, StoreError> {
        let sql =
            "SELECT size, owner, created_at, used_at FROM artifacts WHERE digest = $1 AND doomed_at IS NULL";
        let Some(row) = self.query_opt(sql, &[&digest.0.as_slice()]).await? else { return Ok(None) };
        Ok(Some(ArtifactMeta {
            digest,
            size: row.number(0)?,
            owner: row.column::<&str>(1)?.parse()?,
            created_at: row.time(2)?,
            used_at: row.time(3)?,
        }))
    }

    async fn stored_bytes(&self, owner: &KeyId) -> Result<u64, StoreError> {
        let sql = "SELECT bytes FROM artifact_totals WHERE owner = $1";
        let row = self.query_opt(sql, &[&owner.as_str()]).await?;
        row.map_or(Ok(0), |row| row.number(0))
    }

    async fn use_artifacts(&self, digests: Vec<ContentHash>, at: Timestamp) -> Result<(), StoreError> {
        let mut digests: Vec<&[u8]> = digests.iter().map(|digest| digest.0.as_slice()).collect();
        digests.sort_unstable();
        // Rows are locked in one order, so that two relays do not wait for each other.
        let sql = "UPDATE artifacts SET used_at = $2 WHERE digest IN (
                       SELECT digest FROM artifacts WHERE digest = ANY($1) AND used_at < $2 AND doomed_at IS NULL
                       ORDER BY digest FOR UPDATE
                   )";
        self.execute(sql, &[&digests, &to_sql(at.unix())]).await?;
        Ok(())
    }

    async fn unused_artifacts(
        &self,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<ContentHash>, StoreError> {
        let sql =
            "SELECT digest FROM artifacts WHERE used_at < $1 AND doomed_at IS NULL ORDER BY used_at LIMIT $2";
        let rows = self.query(sql, &[&to_sql(before.unix()), &to_sql(limit as u64)]).await?;
        rows.iter().map(digest).collect()
    }

    async fn doom_artifact(
        &self,
        digest: ContentHash,
        before: Timestamp,
        at: Timestamp,
    ) -> Result<bool, StoreError> {
        let sql =
            "UPDATE artifacts SET doomed_at = $3 WHERE digest = $1 AND used_at < $2 AND doomed_at IS NULL";
        let values: super::Params<'_> = &[&digest.0.as_slice(), &to_sql(before.unix()), &to_sql(at.unix())];
        Ok(self.execute(sql, values).await? > 0)
    }

    async fn doom_stray(&self, digest: ContentHash, at: Timestamp) -> Result<bool, StoreError> {
        let sql = "INSERT INTO artifacts (digest, size, owner, created_at, used_at, doomed_at)
                   VALUES ($1, 0, '', $2, $2, $2) ON CONFLICT DO NOTHING";
        Ok(self.execute(sql, &[&digest.0.as_slice(), &to_sql(at.unix())]).await? > 0)
    }

    async fn take_doomed(&self, at: Timestamp, limit: usize) -> Result<Vec<ContentHash>, StoreError> {
        let sql = "UPDATE artifacts SET doomed_at = $1 WHERE digest IN (
                       SELECT digest FROM artifacts WHERE doomed_at < $2 LIMIT $3 FOR UPDATE SKIP LOCKED
                   ) RETURNING digest";
        let left = to_sql(at.unix().saturating_sub(DOOMED_SECS));
        let rows = self.write(sql, &[&to_sql(at.unix()), &left, &to_sql(limit as u64)]).await?;
        rows.iter().map(digest).collect()
    }

    async fn forget_artifact(&self, digest: ContentHash) -> Result<(), StoreError> {
        self.write("SELECT forget_artifact($1)", &[&digest.0.as_slice()]).await?;
        Ok(())
    }

    async fn unfinished_tasks(&self, after: u64) -> Result<TaskPortion, StoreError> {
        let after = to_sql(after);
        let last = self.query_opt("SELECT coalesce(max(id), 0) FROM tasks", &[]).await?;
        let last = last.map_or(Ok(0), |row| row.int(0))?;
        let sql = format!(
            "SELECT id, record FROM tasks WHERE id > $1 AND id <= $2 AND status IN ({}) ORDER BY id LIMIT $3",
            unfinished_words()
        );
        let until = after.saturating_add(LOOKED_AT);
        let rows = self.query(&sql, &[&after, &until, &to_sql(PORTION as u64)]).await?;
        let rows = rows.iter().map(|row| {
            let number = row.int(0)?;
            Ok((number, parse(row.column(1)?, || format!("record of task {number}"))?))
        });
        Ok(portion(rows.collect::<Result<_, StoreError>>()?, after, last))
    }
}

fn digest(row: &Row) -> Result<ContentHash, StoreError> {
    Ok(ContentHash(B256::from(row.array::<32>(0)?)))
}
