//! Records of inference, and the use of models.

use async_trait::async_trait;
use taskmarket::Timestamp;

use super::{Sqlite, collect, to_sql};
use crate::receipts::use_of;
use crate::{KeyId, ModelUsage, Receipt, Receipts, StoreError, StoredReceipt, UsageFilter};

#[async_trait]
impl Receipts for Sqlite {
    async fn add_receipts(&self, receipts: Vec<Receipt>) -> Result<(), StoreError> {
        self.write(move |connection| {
            let mut keep = connection.prepare_cached(
                "INSERT INTO receipts (request_id, owner, at, record) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (request_id, owner) DO UPDATE SET at = excluded.at, record = excluded.record",
            )?;
            for receipt in &receipts {
                let at = to_sql(receipt.at.unix());
                keep.execute((&receipt.request_id, receipt.owner.as_str(), at, &receipt.record))?;
            }
            let mut count = connection.prepare_cached(
                "INSERT INTO model_usage (day, owner, model, requests, prompt_tokens, completion_tokens)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (day, owner, model) DO UPDATE SET
                     requests = requests + excluded.requests,
                     prompt_tokens = prompt_tokens + excluded.prompt_tokens,
                     completion_tokens = completion_tokens + excluded.completion_tokens",
            )?;
            for usage in use_of(&receipts) {
                count.execute((
                    to_sql(usage.day),
                    usage.owner.as_str(),
                    usage.model,
                    to_sql(usage.requests),
                    to_sql(usage.prompt_tokens),
                    to_sql(usage.completion_tokens),
                ))?;
            }
            Ok(())
        })
        .await
    }

    async fn receipt(
        &self,
        owner: Option<KeyId>,
        request_id: &str,
    ) -> Result<Option<StoredReceipt>, StoreError> {
        let request_id = request_id.to_owned();
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT owner, record FROM receipts WHERE request_id = ?1 AND (?2 IS NULL OR owner = ?2)
                 ORDER BY at DESC LIMIT 1",
            )?;
            let mut rows = statement.query((request_id, owner.as_ref().map(KeyId::as_str)))?;
            let Some(row) = rows.next()? else { return Ok(None) };
            Ok(Some(StoredReceipt { owner: row.get::<_, String>(0)?.parse()?, record: row.get(1)? }))
        })
        .await
    }

    async fn prune_receipts(&self, before: Timestamp) -> Result<u64, StoreError> {
        let before = to_sql(before.unix());
        let mut forgotten = 0;
        // Piece by piece: other writes wait for one piece only.
        loop {
            let removed = self
                .write(move |connection| {
                    let mut statement = connection.prepare_cached(
                        "DELETE FROM receipts WHERE (request_id, owner) IN
                             (SELECT request_id, owner FROM receipts WHERE at < ?1 LIMIT ?2)",
                    )?;
                    Ok(statement.execute((before, PIECE))? as u64)
                })
                .await?;
            forgotten += removed;
            if removed < PIECE as u64 {
                return Ok(forgotten);
            }
        }
    }

    async fn model_usage(
        &self,
        filter: UsageFilter,
        after: Option<(u64, KeyId, String)>,
        limit: usize,
    ) -> Result<Vec<ModelUsage>, StoreError> {
        self.read(move |connection| {
            // The empty text comes before any key.
            let (day, owner, model) = after
                .as_ref()
                .map_or((filter.from, "", ""), |(day, owner, model)| (*day, owner.as_str(), model.as_str()));
            let mut statement = connection.prepare_cached(
                "SELECT owner, day, model, requests, prompt_tokens, completion_tokens FROM model_usage
                 WHERE (day, owner, model) > (?1, ?2, ?3) AND day BETWEEN ?4 AND ?5
                     AND (?6 IS NULL OR owner = ?6)
                 ORDER BY day, owner, model LIMIT ?7",
            )?;
            let rows = statement.query((
                to_sql(day),
                owner,
                model,
                to_sql(filter.from),
                to_sql(filter.to),
                filter.owner.as_ref().map(KeyId::as_str),
                to_sql(limit as u64),
            ))?;
            collect(rows, |row| {
                Ok(ModelUsage {
                    owner: row.get::<_, String>(0)?.parse()?,
                    day: row.get(1)?,
                    model: row.get(2)?,
                    requests: row.get(3)?,
                    prompt_tokens: row.get(4)?,
                    completion_tokens: row.get(5)?,
                })
            })
        })
        .await
    }
}

/// Records that are forgotten at once.
const PIECE: i64 = 10_000;
