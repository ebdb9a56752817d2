//! Artifacts' metadata.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension};
use taskmarket::{B256, ContentHash, Timestamp};

use super::{Sqlite, collect, to_sql};
use crate::artifacts::{LOOKED_AT, PORTION, portion, unfinished_words};
use crate::row::parse;
use crate::{Added, ArtifactMeta, Artifacts, DOOMED_SECS, KeyId, NewArtifact, StoreError, TaskPortion};

#[async_trait]
impl Artifacts for Sqlite {
    async fn add_artifact(&self, new: NewArtifact, quota: Option<u64>) -> Result<Added, StoreError> {
        self.write(move |connection| add(connection, &new, quota)).await
    }

    async fn artifact(&self, digest: ContentHash) -> Result<Option<ArtifactMeta>, StoreError> {
        self.read(move |connection| {
            let row: Option<(u64, String, u64, u64)> = connection
                .prepare_cached(
                    "SELECT size, owner, created_at, used_at FROM artifacts WHERE digest = ?1 AND doomed_at IS NULL",
                )?
                .query_row([digest.0.as_slice()], |row| row.try_into())
                .optional()?;
            let Some((size, owner, created_at, used_at)) = row else { return Ok(None) };
            let (created_at, used_at) = (Timestamp::from_unix(created_at), Timestamp::from_unix(used_at));
            Ok(Some(ArtifactMeta { digest, size, owner: owner.parse()?, created_at, used_at }))
        })
        .await
    }

    async fn stored_bytes(&self, owner: &KeyId) -> Result<u64, StoreError> {
        let owner = owner.clone();
        self.read(move |connection| stored(connection, &owner)).await
    }

    async fn use_artifacts(&self, digests: Vec<ContentHash>, at: Timestamp) -> Result<(), StoreError> {
        self.write(move |connection| {
            let mut statement = connection.prepare_cached(
                "UPDATE artifacts SET used_at = ?2 WHERE digest = ?1 AND used_at < ?2 AND doomed_at IS NULL",
            )?;
            for digest in &digests {
                statement.execute((digest.0.as_slice(), to_sql(at.unix())))?;
            }
            Ok(())
        })
        .await
    }

    async fn unused_artifacts(
        &self,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<ContentHash>, StoreError> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT digest FROM artifacts WHERE used_at < ?1 AND doomed_at IS NULL ORDER BY used_at LIMIT ?2",
            )?;
            let rows = statement.query((to_sql(before.unix()), to_sql(limit as u64)))?;
            collect(rows, |row| Ok(ContentHash(B256::from(row.get::<_, [u8; 32]>(0)?))))
        })
        .await
    }

    async fn doom_artifact(
        &self,
        digest: ContentHash,
        before: Timestamp,
        at: Timestamp,
    ) -> Result<bool, StoreError> {
        self.write(move |connection| {
            let doomed = connection
                .prepare_cached(
                    "UPDATE artifacts SET doomed_at = ?3 WHERE digest = ?1 AND used_at < ?2 AND doomed_at IS NULL",
                )?
                .execute((digest.0.as_slice(), to_sql(before.unix()), to_sql(at.unix())))?;
            Ok(doomed > 0)
        })
        .await
    }

    async fn doom_stray(&self, digest: ContentHash, at: Timestamp) -> Result<bool, StoreError> {
        self.write(move |connection| {
            let doomed = connection
                .prepare_cached(
                    "INSERT INTO artifacts (digest, size, owner, created_at, used_at, doomed_at)
                     VALUES (?1, 0, '', ?2, ?2, ?2) ON CONFLICT DO NOTHING",
                )?
                .execute((digest.0.as_slice(), to_sql(at.unix())))?;
            Ok(doomed > 0)
        })
        .await
    }

    async fn take_doomed(&self, at: Timestamp, limit: usize) -> Result<Vec<ContentHash>, StoreError> {
        self.write(move |connection| {
            let mut statement = connection.prepare_cached(
                "UPDATE artifacts SET doomed_at = ?1
                 WHERE digest IN (SELECT digest FROM artifacts WHERE doomed_at < ?2 LIMIT ?3) RETURNING digest",
            )?;
            let left = at.unix().saturating_sub(DOOMED_SECS);
            let rows = statement.query((to_sql(at.unix()), to_sql(left), to_sql(limit as u64)))?;
            collect(rows, |row| Ok(ContentHash(B256::from(row.get::<_, [u8; 32]>(0)?))))
        })
        .await
    }

    async fn forget_artifact(&self, digest: ContentHash) -> Result<(), StoreError> {
        self.write(move |connection| {
            let gone: Option<(String, i64)> = connection
                .prepare_cached(
                    "DELETE FROM artifacts WHERE digest = ?1 AND doomed_at IS NOT NULL RETURNING owner, size",
                )?
                .query_row([digest.0.as_slice()], |row| row.try_into())
                .optional()?;
            if let Some((owner, size)) = gone {
                connection
                    .prepare_cached("UPDATE artifact_totals SET bytes = bytes - ?2 WHERE owner = ?1")?
                    .execute((owner, size))?;
            }
            Ok(())
        })
        .await
    }

    async fn unfinished_tasks(&self, after: u64) -> Result<TaskPortion, StoreError> {
        let after = to_sql(after);
        self.read(move |connection| {
            let last: i64 = connection
                .prepare_cached("SELECT coalesce(max(id), 0) FROM tasks")?
                .query_row([], |row| row.get(0))?;
            let sql = format!(
                "SELECT id, record FROM tasks WHERE id > ?1 AND id <= ?2 AND status IN ({}) ORDER BY id LIMIT ?3",
                unfinished_words()
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query((after, after.saturating_add(LOOKED_AT), to_sql(PORTION as u64)))?;
            let rows = collect(rows, |row| {
                let number: i64 = row.get(0)?;
                let json = row.get_ref(1)?.as_str().map_err(StoreError::corrupt)?;
                Ok((number, parse(json, || format!("record of task {number}"))?))
            })?;
            Ok(portion(rows, after, last))
        })
        .await
    }
}

fn add(connection: &Connection, new: &NewArtifact, quota: Option<u64>) -> Result<Added, StoreError> {
    let digest = new.digest.0.as_slice();
    let kept: Option<bool> = connection
        .prepare_cached("SELECT doomed_at IS NOT NULL FROM artifacts WHERE digest = ?1")?
        .query_row([digest], |row| row.get(0))
        .optional()?;
    match kept {
        Some(true) => return Ok(Added::Doomed),
        Some(false) => {
            connection
                .prepare_cached("UPDATE artifacts SET used_at = max(used_at, ?2) WHERE digest = ?1")?
                .execute((digest, to_sql(new.at.unix())))?;
            return Ok(Added::Known);
        }
        None => {}
    }
    let after = stored(connection, &new.owner)?.saturating_add(new.size);
    if quota.is_some_and(|quota| after > quota) {
        return Ok(Added::OverQuota);
    }
    connection
        .prepare_cached(
            "INSERT INTO artifacts (digest, size, owner, created_at, used_at) VALUES (?1, ?2, ?3, ?4, ?4)",
        )?
        .execute((digest, to_sql(new.size), new.owner.as_str(), to_sql(new.at.unix())))?;
    connection
        .prepare_cached(
            "INSERT INTO artifact_totals (owner, bytes) VALUES (?1, ?2)
             ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes",
        )?
        .execute((new.owner.as_str(), to_sql(new.size)))?;
    Ok(Added::New)
}

fn stored(connection: &Connection, owner: &KeyId) -> Result<u64, StoreError> {
    let bytes: Option<u64> = connection
        .prepare_cached("SELECT bytes FROM artifact_totals WHERE owner = ?1")?
        .query_row([owner.as_str()], |row| row.get(0))
        .optional()?;
    Ok(bytes.unwrap_or(0))
}
