//! Webhooks and their deliveries. Function `commit_task` wakes those that wait.

use async_trait::async_trait;
use taskmarket::{TaskId, Timestamp};
use tokio_postgres::Row;

use super::Postgres;
use super::row::RowExt;
use super::tasks::stored_event;
use crate::row::to_sql;
use crate::{Delivery, DeliveryRetry, NewWebhook, StoreError, StoredWebhook, Webhooks};

#[async_trait]
impl Webhooks for Postgres {
    async fn add_webhook(&self, webhook: NewWebhook) -> Result<bool, StoreError> {
        let sql = "INSERT INTO webhooks (task, url, secret_name, created_at, delivered, next_try, tries)
                   SELECT id, $2, $3, $4, 0, $4, 0 FROM tasks WHERE task_id = $1 ON CONFLICT DO NOTHING";
        let values: super::Params<'_> = &[
            &webhook.task_id.0.as_slice(),
            &webhook.url,
            &webhook.secret_name,
            &to_sql(webhook.created_at.unix()),
        ];
        Ok(self.execute(sql, values).await? > 0)
    }

    async fn take_deliveries(
        &self,
        now: Timestamp,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Delivery>, StoreError> {
        let sql = format!(
            "WITH due AS (
                 SELECT id, next_try FROM webhooks WHERE next_try <= $1 ORDER BY next_try, id LIMIT $3
                 FOR UPDATE SKIP LOCKED
             ), taken AS (
                 UPDATE webhooks SET next_try = $2 FROM due WHERE webhooks.id = due.id
                 RETURNING webhooks.*, due.next_try AS was_due
             )
             SELECT {COLUMNS}, next.seq, tasks.task_id, next.status, next.recorded
             FROM taken AS webhooks JOIN tasks ON tasks.id = webhooks.task
             CROSS JOIN LATERAL (
                 SELECT seq, status, recorded FROM events WHERE task = webhooks.task AND seq > webhooks.delivered
                 ORDER BY seq LIMIT 1
             ) AS next
             ORDER BY was_due, webhooks.id"
        );
        let values: super::Params<'_> = &[&to_sql(now.unix()), &to_sql(until.unix()), &to_sql(limit as u64)];
        let rows = self.write(&sql, values).await?;
        let delivery = |row: &Row| {
            Ok(Delivery { webhook: stored_webhook(row)?, event: stored_event(row, COLUMN_COUNT)? })
        };
        rows.iter().map(delivery).collect()
    }

    async fn next_delivery(&self) -> Result<Option<Timestamp>, StoreError> {
        let sql = "SELECT next_try FROM webhooks WHERE next_try IS NOT NULL ORDER BY next_try LIMIT 1";
        self.query_opt(sql, &[]).await?.map(|row| row.time(0)).transpose()
    }

    async fn delivery_done(&self, webhook: u64, seq: u64, at: Timestamp) -> Result<bool, StoreError> {
        let values: super::Params<'_> = &[&to_sql(webhook), &to_sql(seq), &to_sql(at.unix())];
        let rows = self.write("SELECT finish_delivery($1, $2, $3)", values).await?;
        rows.first().map_or(Ok(false), |row| row.column(0))
    }

    async fn delivery_retry(&self, webhook: u64, seq: u64, retry: DeliveryRetry) -> Result<bool, StoreError> {
        let sql = format!(
            "UPDATE webhooks SET tries = tries + 1, failing_since = coalesce(failing_since, $3), next_try = $4,
                 error = $5
             WHERE {IS_NEXT}"
        );
        let values: super::Params<'_> = &[
            &to_sql(webhook),
            &to_sql(seq),
            &to_sql(retry.at.unix()),
            &to_sql(retry.next_try.unix()),
            &retry.error,
        ];
        Ok(self.execute(&sql, values).await? > 0)
    }

    async fn delivery_dead(
        &self,
        webhook: u64,
        seq: u64,
        at: Timestamp,
        error: &str,
    ) -> Result<bool, StoreError> {
        let sql = format!(
            "UPDATE webhooks SET tries = tries + 1, failing_since = coalesce(failing_since, $3), next_try = NULL,
                 dead_at = $3, error = $4
             WHERE {IS_NEXT}"
        );
        let values: super::Params<'_> = &[&to_sql(webhook), &to_sql(seq), &to_sql(at.unix()), &error];
        Ok(self.execute(&sql, values).await? > 0)
    }

    async fn deliveries(&self, task: TaskId) -> Result<Vec<StoredWebhook>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM webhooks JOIN tasks ON tasks.id = webhooks.task
             WHERE tasks.task_id = $1 ORDER BY webhooks.id"
        );
        self.query(&sql, &[&task.0.as_slice()]).await?.iter().map(stored_webhook).collect()
    }

    async fn replay(&self, task: TaskId, at: Timestamp) -> Result<u64, StoreError> {
        let sql = "UPDATE webhooks SET delivered = 0, next_try = $2, tries = 0, failing_since = NULL, dead_at = NULL,
                       error = NULL
                   WHERE task = (SELECT id FROM tasks WHERE task_id = $1)";
        self.execute(sql, &[&task.0.as_slice(), &to_sql(at.unix())]).await
    }
}

const COLUMNS: &str = "webhooks.id, tasks.task_id, webhooks.url, webhooks.secret_name, webhooks.created_at, \
    webhooks.delivered, webhooks.next_try, webhooks.tries, webhooks.failing_since, webhooks.dead_at, webhooks.error";

/// How many [`COLUMNS`] are.
const COLUMN_COUNT: usize = 11;

/// That event $2 is the one that webhook $1 is to deliver next.
const IS_NEXT: &str = "id = $1 AND dead_at IS NULL \
    AND $2 = (SELECT min(seq) FROM events WHERE task = webhooks.task AND seq > delivered)";

/// Reads a row that begins with [`COLUMNS`].
fn stored_webhook(row: &Row) -> Result<StoredWebhook, StoreError> {
    Ok(StoredWebhook {
        id: row.number(0)?,
        webhook: NewWebhook {
            task_id: row.task_id(1)?,
            url: row.column(2)?,
            secret_name: row.column(3)?,
            created_at: row.time(4)?,
        },
        delivered: row.number(5)?,
        next_try: row.opt_time(6)?,
        tries: row.number(7)?,
        failing_since: row.opt_time(8)?,
        dead_at: row.opt_time(9)?,
        error: row.column(10)?,
    })
}
