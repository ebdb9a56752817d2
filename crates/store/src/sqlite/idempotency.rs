//! Requests that may be sent again.

use async_trait::async_trait;
use rusqlite::{Connection, params};
use taskmarket::Timestamp;

use super::{Sqlite, to_sql};
use crate::idempotency::Entry;
use crate::{Begun, Idempotency, KeyId, StoreError, StoredAnswer};

#[async_trait]
impl Idempotency for Sqlite {
    async fn begin(
        &self,
        owner: &KeyId,
        key: &str,
        request: [u8; 32],
        now: Timestamp,
    ) -> Result<Begun, StoreError> {
        let (owner, key) = (owner.clone(), key.to_owned());
        self.write(move |connection| {
            if let Some(entry) = entry(connection, &owner, &key)? {
                let begun = entry.again(&request, now);
                if begun != Begun::New {
                    return Ok(begun);
                }
            }
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO idempotency (owner, key, request, began_at) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute((owner.as_str(), &key, request, to_sql(now.unix())))?;
            Ok(Begun::New)
        })
        .await
    }

    async fn renew(
        &self,
        owner: &KeyId,
        key: &str,
        before: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let (owner, key) = (owner.clone(), key.to_owned());
        self.write(move |connection| {
            let renewed = connection
                .prepare_cached(
                    "UPDATE idempotency SET began_at = ?4
                     WHERE owner = ?1 AND key = ?2 AND began_at = ?3 AND status IS NULL",
                )?
                .execute((owner.as_str(), &key, to_sql(before.unix()), to_sql(now.unix())))?;
            Ok(renewed > 0)
        })
        .await
    }

    async fn finish(&self, owner: &KeyId, key: &str, answer: StoredAnswer) -> Result<(), StoreError> {
        let (owner, key) = (owner.clone(), key.to_owned());
        let headers = answer.headers_text()?;
        self.write(move |connection| {
            let StoredAnswer { status, content_type, body, .. } = &answer;
            connection
                .prepare_cached(
                    "UPDATE idempotency SET status = ?3, content_type = ?4, body = ?5, headers = ?6
                     WHERE owner = ?1 AND key = ?2 AND status IS NULL",
                )?
                .execute(params![owner.as_str(), key, status, content_type, body, headers])?;
            Ok(())
        })
        .await
    }

    async fn abandon(&self, owner: &KeyId, key: &str) -> Result<(), StoreError> {
        let (owner, key) = (owner.clone(), key.to_owned());
        self.write(move |connection| {
            connection
                .prepare_cached("DELETE FROM idempotency WHERE owner = ?1 AND key = ?2 AND status IS NULL")?
                .execute((owner.as_str(), &key))?;
            Ok(())
        })
        .await
    }

    async fn prune_idempotency(&self, before: Timestamp) -> Result<u64, StoreError> {
        self.write(move |connection| {
            let forgotten = connection
                .prepare_cached("DELETE FROM idempotency WHERE began_at < ?1")?
                .execute([to_sql(before.unix())])?;
            Ok(forgotten as u64)
        })
        .await
    }
}

fn entry(connection: &Connection, owner: &KeyId, key: &str) -> Result<Option<Entry>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT request, began_at, status, content_type, body, headers FROM idempotency
         WHERE owner = ?1 AND key = ?2",
    )?;
    let mut rows = statement.query((owner.as_str(), key))?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let answer = match row.get(2)? {
        Some(status) => {
            let headers = StoredAnswer::headers_of(row.get::<_, Option<String>>(5)?.as_deref())?;
            Some(StoredAnswer { status, content_type: row.get(3)?, headers, body: row.get(4)? })
        }
        None => None,
    };
    Ok(Some(Entry { request: row.get(0)?, began_at: Timestamp::from_unix(row.get(1)?), answer }))
}
