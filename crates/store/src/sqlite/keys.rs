//! API keys.

use async_trait::async_trait;
use rusqlite::{Row, params};
use taskmarket::Timestamp;

use super::{Sqlite, collect, to_sql};
use crate::{Deadlines, KeyId, Keys, NewKey, Scope, StoreError, StoredKey};

#[async_trait]
impl Keys for Sqlite {
    async fn add_key(&self, key: NewKey) -> Result<bool, StoreError> {
        self.write(move |connection| {
            let added = connection
                .prepare_cached(
                    "INSERT INTO api_keys (id, hash, name, scopes, requests_per_minute, tokens_per_minute,
                                           inference_timeout_secs, first_byte_timeout_secs, token_timeout_secs,
                                           created_at, expires_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT DO NOTHING",
                )?
                .execute(params![
                    key.id.as_str(),
                    key.hash,
                    key.name,
                    Scope::join(&key.scopes),
                    key.requests_per_minute,
                    key.tokens_per_minute,
                    key.deadlines.total,
                    key.deadlines.first_byte,
                    key.deadlines.between_tokens,
                    to_sql(key.created_at.unix()),
                    key.expires_at.map(|at| to_sql(at.unix())),
                ])?;
            Ok(added > 0)
        })
        .await
    }

    async fn key(&self, id: &KeyId) -> Result<Option<StoredKey>, StoreError> {
        let id = id.clone();
        self.read(move |connection| {
            let mut statement =
                connection.prepare_cached(&format!("SELECT {COLUMNS} FROM api_keys WHERE id = ?1"))?;
            let mut rows = statement.query([id.as_str()])?;
            rows.next()?.map(stored_key).transpose()
        })
        .await
    }

    async fn keys(&self, after: Option<KeyId>, limit: usize) -> Result<Vec<StoredKey>, StoreError> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM api_keys WHERE id > ?1 ORDER BY id LIMIT ?2"
            ))?;
            let after = after.as_ref().map_or("", KeyId::as_str);
            let rows = statement.query((after, to_sql(limit as u64)))?;
            collect(rows, stored_key)
        })
        .await
    }

    async fn revoke_key(&self, id: &KeyId, at: Timestamp) -> Result<bool, StoreError> {
        let id = id.clone();
        self.write(move |connection| {
            let changed = connection
                .prepare_cached("UPDATE api_keys SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL")?
                .execute((id.as_str(), to_sql(at.unix())))?;
            Ok(changed > 0)
        })
        .await
    }
}

const COLUMNS: &str =
    "id, hash, name, scopes, requests_per_minute, tokens_per_minute, inference_timeout_secs,
    first_byte_timeout_secs, token_timeout_secs, created_at, expires_at, revoked_at";

/// Reads a row of [`COLUMNS`].
fn stored_key(row: &Row<'_>) -> Result<StoredKey, StoreError> {
    let time = |column| Ok::<_, StoreError>(row.get::<_, Option<u64>>(column)?.map(Timestamp::from_unix));
    let key = NewKey {
        id: row.get::<_, String>(0)?.parse()?,
        hash: row.get(1)?,
        name: row.get(2)?,
        scopes: Scope::split(&row.get::<_, String>(3)?)?,
        requests_per_minute: row.get(4)?,
        tokens_per_minute: row.get(5)?,
        deadlines: Deadlines { total: row.get(6)?, first_byte: row.get(7)?, between_tokens: row.get(8)? },
        created_at: Timestamp::from_unix(row.get(9)?),
        expires_at: time(10)?,
    };
    Ok(StoredKey { key, revoked_at: time(11)? })
}
