//! Webhooks and their deliveries.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Row, params};
use taskmarket::{B256, TaskId, Timestamp};

use super::tasks::stored_event;
use super::{Sqlite, collect, to_sql};
use crate::{Delivery, DeliveryRetry, NewWebhook, StoreError, StoredWebhook, Webhooks};

#[async_trait]
impl Webhooks for Sqlite {
    async fn add_webhook(&self, webhook: NewWebhook) -> Result<bool, StoreError> {
        self.write(move |connection| {
            let added = connection
                .prepare_cached(
                    "INSERT INTO webhooks (task, url, secret_name, created_at, delivered, next_try, tries)
                     SELECT id, ?2, ?3, ?4, 0, ?4, 0 FROM tasks WHERE task_id = ?1 ON CONFLICT DO NOTHING",
                )?
                .execute(params![
                    webhook.task_id.0.as_slice(),
                    webhook.url,
                    webhook.secret_name,
                    to_sql(webhook.created_at.unix()),
                ])?;
            Ok(added > 0)
        })
        .await
    }

    async fn take_deliveries(
        &self,
        now: Timestamp,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Delivery>, StoreError> {
        self.write(move |connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM webhooks JOIN tasks ON tasks.id = webhooks.task
                 WHERE next_try <= ?1 ORDER BY next_try, webhooks.id LIMIT ?2"
            ))?;
            let rows = statement.query((to_sql(now.unix()), to_sql(limit as u64)))?;
            let due = collect(rows, stored_webhook)?;
            let mut deliveries = Vec::with_capacity(due.len());
            for mut webhook in due {
                let mut statement = connection.prepare_cached(
                    "SELECT seq, task_id, events.status, recorded FROM events JOIN tasks ON tasks.id = events.task
                     WHERE task_id = ?1 AND seq > ?2 ORDER BY seq LIMIT 1",
                )?;
                let task = webhook.webhook.task_id;
                let mut rows = statement.query((task.0.as_slice(), to_sql(webhook.delivered)))?;
                let event = rows.next()?.map(stored_event).transpose()?;
                webhook.next_try = event.is_some().then_some(until);
                connection
                    .prepare_cached("UPDATE webhooks SET next_try = ?2 WHERE id = ?1")?
                    .execute((to_sql(webhook.id), webhook.next_try.map(|at| to_sql(at.unix()))))?;
                deliveries.extend(event.map(|event| Delivery { webhook, event }));
            }
            Ok(deliveries)
        })
        .await
    }

    async fn next_delivery(&self) -> Result<Option<Timestamp>, StoreError> {
        self.read(|connection| {
            let at: Option<u64> = connection
                .prepare_cached(
                    "SELECT next_try FROM webhooks WHERE next_try IS NOT NULL ORDER BY next_try LIMIT 1",
                )?
                .query_row([], |row| row.get(0))
                .optional()?;
            Ok(at.map(Timestamp::from_unix))
        })
        .await
    }

    async fn delivery_done(&self, webhook: u64, seq: u64, at: Timestamp) -> Result<bool, StoreError> {
        self.write(move |connection| {
            if !is_next(connection, webhook, seq)? {
                return Ok(false);
            }
            let changed = connection
                .prepare_cached(
                    "UPDATE webhooks SET delivered = ?2, tries = 0, failing_since = NULL, error = NULL,
                         next_try = (SELECT ?3 FROM events WHERE task = webhooks.task AND seq > ?2 LIMIT 1)
                     WHERE id = ?1 AND dead_at IS NULL",
                )?
                .execute((to_sql(webhook), to_sql(seq), to_sql(at.unix())))?;
            Ok(changed > 0)
        })
        .await
    }

    async fn delivery_retry(&self, webhook: u64, seq: u64, retry: DeliveryRetry) -> Result<bool, StoreError> {
        self.write(move |connection| {
            if !is_next(connection, webhook, seq)? {
                return Ok(false);
            }
            let changed = connection
                .prepare_cached(
                    "UPDATE webhooks SET tries = tries + 1, failing_since = coalesce(failing_since, ?2),
                         next_try = ?3, error = ?4
                     WHERE id = ?1 AND dead_at IS NULL",
                )?
                .execute((
                    to_sql(webhook),
                    to_sql(retry.at.unix()),
                    to_sql(retry.next_try.unix()),
                    &retry.error,
                ))?;
            Ok(changed > 0)
        })
        .await
    }

    async fn delivery_dead(
        &self,
        webhook: u64,
        seq: u64,
        at: Timestamp,
        error: &str,
    ) -> Result<bool, StoreError> {
        let error = error.to_owned();
        self.write(move |connection| {
            if !is_next(connection, webhook, seq)? {
                return Ok(false);
            }
            let changed = connection
                .prepare_cached(
                    "UPDATE webhooks SET tries = tries + 1, failing_since = coalesce(failing_since, ?2),
                         next_try = NULL, dead_at = ?2, error = ?3
                     WHERE id = ?1 AND dead_at IS NULL",
                )?
                .execute((to_sql(webhook), to_sql(at.unix()), &error))?;
            Ok(changed > 0)
        })
        .await
    }

    async fn deliveries(&self, task: TaskId) -> Result<Vec<StoredWebhook>, StoreError> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM webhooks JOIN tasks ON tasks.id = webhooks.task
                 WHERE task_id = ?1 ORDER BY webhooks.id"
            ))?;
            let rows = statement.query([task.0.as_slice()])?;
            collect(rows, stored_webhook)
        })
        .await
    }

    async fn replay(&self, task: TaskId, at: Timestamp) -> Result<u64, StoreError> {
        self.write(move |connection| {
            let changed = connection
                .prepare_cached(
                    "UPDATE webhooks SET delivered = 0, next_try = ?2, tries = 0, failing_since = NULL,
                         dead_at = NULL, error = NULL
                     WHERE task = (SELECT id FROM tasks WHERE task_id = ?1)",
                )?
                .execute((task.0.as_slice(), to_sql(at.unix())))?;
            Ok(changed as u64)
        })
        .await
    }
}

const COLUMNS: &str = "webhooks.id, task_id, url, secret_name, webhooks.created_at, delivered, next_try, tries, \
    failing_since, dead_at, error";

/// Reads a row of [`COLUMNS`].
fn stored_webhook(row: &Row<'_>) -> Result<StoredWebhook, StoreError> {
    let time = |column| Ok::<_, StoreError>(row.get::<_, Option<u64>>(column)?.map(Timestamp::from_unix));
    Ok(StoredWebhook {
        id: row.get(0)?,
        webhook: NewWebhook {
            task_id: TaskId(B256::from(row.get::<_, [u8; 32]>(1)?)),
            url: row.get(2)?,
            secret_name: row.get(3)?,
            created_at: Timestamp::from_unix(row.get(4)?),
        },
        delivered: row.get(5)?,
        next_try: time(6)?,
        tries: row.get(7)?,
        failing_since: time(8)?,
        dead_at: time(9)?,
        error: row.get(10)?,
    })
}

/// Whether an event is the one that a webhook is to deliver next.
fn is_next(connection: &Connection, webhook: u64, seq: u64) -> Result<bool, StoreError> {
    let next: Option<u64> = connection
        .prepare_cached(
            "SELECT min(events.seq) FROM webhooks JOIN events ON events.task = webhooks.task AND seq > delivered
             WHERE webhooks.id = ?1",
        )?
        .query_row([to_sql(webhook)], |row| row.get(0))?;
    Ok(next == Some(seq))
}

/// Wakes the webhooks that wait for a task's next event.
pub(super) fn wake(connection: &Connection, task: i64, at: Timestamp) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE webhooks SET next_try = ?2 WHERE task = ?1 AND next_try IS NULL AND dead_at IS NULL",
        )?
        .execute((task, to_sql(at.unix())))?;
    Ok(())
}
