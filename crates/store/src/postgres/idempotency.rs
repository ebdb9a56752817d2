//! Requests that may be sent again.

use async_trait::async_trait;
use taskmarket::Timestamp;

use super::Postgres;
use super::row::RowExt;
use crate::idempotency::{ANSWER_KEPT_SECS, Entry, IN_FLIGHT_SECS};
use crate::row::to_sql;
use crate::{Begun, Idempotency, KeyId, StoreError, StoredAnswer};

/// How often a beginning is tried whose entry goes away between two looks at it.
const ROUNDS: usize = 4;

#[async_trait]
impl Idempotency for Postgres {
    async fn begin(
        &self,
        owner: &KeyId,
        key: &str,
        request: [u8; 32],
        now: Timestamp,
    ) -> Result<Begun, StoreError> {
        let before = |seconds| to_sql(now.unix().saturating_sub(seconds));
        for _ in 0..ROUNDS {
            let begun = self
                .execute(
                    "INSERT INTO idempotency AS kept (owner, key, request, began_at) VALUES ($1, $2, $3, $4)
                     ON CONFLICT (owner, key) DO UPDATE SET request = excluded.request, began_at = excluded.began_at,
                         status = NULL, content_type = NULL, body = NULL, headers = NULL
                     WHERE kept.began_at <= $5
                         OR (kept.began_at <= $6 AND kept.request = excluded.request AND kept.status IS NULL)",
                    &[
                        &owner.as_str(),
                        &key,
                        &request.as_slice(),
                        &to_sql(now.unix()),
                        &before(ANSWER_KEPT_SECS),
                        &before(IN_FLIGHT_SECS),
                    ],
                )
                .await?;
            if begun > 0 {
                return Ok(Begun::New);
            }
            let again = self.entry(owner, key).await?.map(|entry| entry.again(&request, now));
            match again {
                Some(begun @ (Begun::InFlight | Begun::Done(_) | Begun::Mismatch)) => return Ok(begun),
                // Abandoned or pruned in between.
                Some(Begun::New) | None => {}
            }
        }
        Err(StoreError::Busy)
    }

    async fn renew(
        &self,
        owner: &KeyId,
        key: &str,
        before: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let sql = "UPDATE idempotency SET began_at = $4
                   WHERE owner = $1 AND key = $2 AND began_at = $3 AND status IS NULL";
        let (before, now) = (to_sql(before.unix()), to_sql(now.unix()));
        Ok(self.execute(sql, &[&owner.as_str(), &key, &before, &now]).await? > 0)
    }

    async fn finish(&self, owner: &KeyId, key: &str, answer: StoredAnswer) -> Result<(), StoreError> {
        let sql = "UPDATE idempotency SET status = $3, content_type = $4, body = $5, headers = $6
                   WHERE owner = $1 AND key = $2 AND status IS NULL";
        let (status, headers) = (i64::from(answer.status), answer.headers_text()?);
        let StoredAnswer { content_type, body, .. } = &answer;
        self.execute(sql, &[&owner.as_str(), &key, &status, content_type, body, &headers]).await?;
        Ok(())
    }

    async fn abandon(&self, owner: &KeyId, key: &str) -> Result<(), StoreError> {
        let sql = "DELETE FROM idempotency WHERE owner = $1 AND key = $2 AND status IS NULL";
        self.execute(sql, &[&owner.as_str(), &key]).await?;
        Ok(())
    }

    async fn prune_idempotency(&self, before: Timestamp) -> Result<u64, StoreError> {
        self.execute("DELETE FROM idempotency WHERE began_at < $1", &[&to_sql(before.unix())]).await
    }
}

impl Postgres {
    async fn entry(&self, owner: &KeyId, key: &str) -> Result<Option<Entry>, StoreError> {
        let sql = "SELECT request, began_at, status, content_type, body, headers FROM idempotency
                   WHERE owner = $1 AND key = $2";
        let Some(row) = self.query_opt(sql, &[&owner.as_str(), &key]).await? else { return Ok(None) };
        let answer = match row.opt_number(2)? {
            Some(status) => {
                let headers = StoredAnswer::headers_of(row.column(5)?)?;
                Some(StoredAnswer { status, content_type: row.column(3)?, headers, body: row.column(4)? })
            }
            None => None,
        };
        Ok(Some(Entry { request: row.column(0)?, began_at: row.time(1)?, answer }))
    }
}
