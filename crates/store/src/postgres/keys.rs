//! API keys.

use async_trait::async_trait;
use taskmarket::Timestamp;
use tokio_postgres::Row;

use super::Postgres;
use super::row::RowExt;
use crate::row::to_sql;
use crate::{Deadlines, KeyId, Keys, NewKey, Scope, StoreError, StoredKey};

#[async_trait]
impl Keys for Postgres {
    async fn add_key(&self, key: NewKey) -> Result<bool, StoreError> {
        let added = self
            .execute(
                "INSERT INTO api_keys (id, hash, name, scopes, requests_per_minute, tokens_per_minute,
                                       inference_timeout_secs, first_byte_timeout_secs, token_timeout_secs,
                                       created_at, expires_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING",
                &[
                    &key.id.as_str(),
                    &key.hash.as_slice(),
                    &key.name,
                    &Scope::join(&key.scopes),
                    &key.requests_per_minute.map(i64::from),
                    &key.tokens_per_minute.map(i64::from),
                    &key.deadlines.total.map(i64::from),
                    &key.deadlines.first_byte.map(i64::from),
                    &key.deadlines.between_tokens.map(i64::from),
                    &to_sql(key.created_at.unix()),
                    &key.expires_at.map(|at| to_sql(at.unix())),
                ],
            )
            .await?;
        Ok(added > 0)
    }

    async fn key(&self, id: &KeyId) -> Result<Option<StoredKey>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM api_keys WHERE id = $1");
        self.query_opt(&sql, &[&id.as_str()]).await?.as_ref().map(stored_key).transpose()
    }

    async fn keys(&self, after: Option<KeyId>, limit: usize) -> Result<Vec<StoredKey>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM api_keys WHERE id > $1 ORDER BY id LIMIT $2");
        let after = after.as_ref().map_or("", KeyId::as_str);
        self.query(&sql, &[&after, &to_sql(limit as u64)]).await?.iter().map(stored_key).collect()
    }

    async fn revoke_key(&self, id: &KeyId, at: Timestamp) -> Result<bool, StoreError> {
        let sql = "UPDATE api_keys SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL";
        Ok(self.execute(sql, &[&id.as_str(), &to_sql(at.unix())]).await? > 0)
    }
}

const COLUMNS: &str =
    "id, hash, name, scopes, requests_per_minute, tokens_per_minute, inference_timeout_secs,
    first_byte_timeout_secs, token_timeout_secs, created_at, expires_at, revoked_at";

/// Reads a row of [`COLUMNS`].
fn stored_key(row: &Row) -> Result<StoredKey, StoreError> {
    let key = NewKey {
        id: row.column::<&str>(0)?.parse()?,
        hash: row.array(1)?,
        name: row.column(2)?,
        scopes: Scope::split(row.column(3)?)?,
        requests_per_minute: row.opt_number(4)?,
        tokens_per_minute: row.opt_number(5)?,
        deadlines: Deadlines {
            total: row.opt_number(6)?,
            first_byte: row.opt_number(7)?,
            between_tokens: row.opt_number(8)?,
        },
        created_at: row.time(9)?,
        expires_at: row.opt_time(10)?,
    };
    Ok(StoredKey { key, revoked_at: row.opt_time(11)? })
}
