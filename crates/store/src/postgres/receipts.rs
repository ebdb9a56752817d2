//! Records of inference, and the use of models.

use async_trait::async_trait;
use taskmarket::Timestamp;

use super::Postgres;
use super::row::RowExt;
use crate::receipts::use_of;
use crate::row::to_sql;
use crate::{KeyId, ModelUsage, Receipt, Receipts, StoreError, StoredReceipt, UsageFilter};

#[async_trait]
impl Receipts for Postgres {
    async fn add_receipts(&self, mut receipts: Vec<Receipt>) -> Result<(), StoreError> {
        let usage = use_of(&receipts);
        // In one order everywhere, so that no two relays wait for each other; and the last of a key's request only.
        receipts.reverse();
        receipts.sort_by(|a, b| (&a.request_id, &a.owner).cmp(&(&b.request_id, &b.owner)));
        receipts.dedup_by(|next, first| (&next.request_id, &next.owner) == (&first.request_id, &first.owner));
        let ids: Vec<&str> = receipts.iter().map(|receipt| receipt.request_id.as_str()).collect();
        let owners: Vec<&str> = receipts.iter().map(|receipt| receipt.owner.as_str()).collect();
        let times: Vec<i64> = receipts.iter().map(|receipt| to_sql(receipt.at.unix())).collect();
        let records: Vec<&str> = receipts.iter().map(|receipt| receipt.record.as_str()).collect();
        let days: Vec<i64> = usage.iter().map(|usage| to_sql(usage.day)).collect();
        let users: Vec<&str> = usage.iter().map(|usage| usage.owner.as_str()).collect();
        let models: Vec<&str> = usage.iter().map(|usage| usage.model.as_str()).collect();
        let requests: Vec<i64> = usage.iter().map(|usage| to_sql(usage.requests)).collect();
        let prompts: Vec<i64> = usage.iter().map(|usage| to_sql(usage.prompt_tokens)).collect();
        let completions: Vec<i64> = usage.iter().map(|usage| to_sql(usage.completion_tokens)).collect();
        self.execute(
            "WITH kept AS (
                 INSERT INTO receipts (request_id, owner, at, record)
                 SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[])
                 ON CONFLICT (request_id, owner) DO UPDATE SET at = excluded.at, record = excluded.record
             )
             INSERT INTO model_usage (day, owner, model, requests, prompt_tokens, completion_tokens)
             SELECT * FROM unnest($5::bigint[], $6::text[], $7::text[], $8::bigint[], $9::bigint[], $10::bigint[])
             ON CONFLICT (day, owner, model) DO UPDATE SET
                 requests = model_usage.requests + excluded.requests,
                 prompt_tokens = model_usage.prompt_tokens + excluded.prompt_tokens,
                 completion_tokens = model_usage.completion_tokens + excluded.completion_tokens",
            &[
                &ids,
                &owners,
                &times,
                &records,
                &days,
                &users,
                &models,
                &requests,
                &prompts,
                &completions,
            ],
        )
        .await?;
        Ok(())
    }

    async fn receipt(
        &self,
        owner: Option<KeyId>,
        request_id: &str,
    ) -> Result<Option<StoredReceipt>, StoreError> {
        let row = self
            .query_opt(
                "SELECT owner, record FROM receipts WHERE request_id = $1 AND ($2::text IS NULL OR owner = $2)
                 ORDER BY at DESC LIMIT 1",
                &[&request_id, &owner.as_ref().map(KeyId::as_str)],
            )
            .await?;
        let read = |row: tokio_postgres::Row| {
            Ok(StoredReceipt { owner: row.column::<&str>(0)?.parse()?, record: row.column(1)? })
        };
        row.map(read).transpose()
    }

    async fn prune_receipts(&self, before: Timestamp) -> Result<u64, StoreError> {
        let before = to_sql(before.unix());
        let mut forgotten = 0;
        // Piece by piece: no statement takes longer than statements may.
        loop {
            let removed = self
                .execute(
                    "DELETE FROM receipts WHERE (request_id, owner) IN
                         (SELECT request_id, owner FROM receipts WHERE at < $1 LIMIT $2)",
                    &[&before, &PIECE],
                )
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
        let (from, to) = (to_sql(filter.from), to_sql(filter.to));
        // The empty text comes before any key.
        let (day, owner, model) = after
            .as_ref()
            .map_or((from, "", ""), |(day, owner, model)| (to_sql(*day), owner.as_str(), model.as_str()));
        let only = filter.owner.as_ref().map(KeyId::as_str);
        let rows = self
            .query(
                "SELECT owner, day, model, requests, prompt_tokens, completion_tokens FROM model_usage
                 WHERE (day, owner, model) > ($1, $2, $3) AND day BETWEEN $4 AND $5
                     AND ($6::text IS NULL OR owner = $6)
                 ORDER BY day, owner, model LIMIT $7",
                &[&day, &owner, &model, &from, &to, &only, &to_sql(limit as u64)],
            )
            .await?;
        let read = |row: &tokio_postgres::Row| {
            Ok(ModelUsage {
                owner: row.column::<&str>(0)?.parse()?,
                day: row.number(1)?,
                model: row.column(2)?,
                requests: row.number(3)?,
                prompt_tokens: row.number(4)?,
                completion_tokens: row.number(5)?,
            })
        };
        rows.iter().map(read).collect()
    }
}

/// Records that are forgotten at once.
const PIECE: i64 = 10_000;
