//! Attempts.

use async_trait::async_trait;
use rusqlite::{Connection, Row, params};
use taskmarket::{Address, B256, Bytes32, TaskId, Timestamp};

use super::{Sqlite, collect, to_sql};
use crate::attempts::AttemptChange;
use crate::row::EventRow;
use crate::{Attempts, Outcome, Placement, StoreError, StoredAttempt};

#[async_trait]
impl Attempts for Sqlite {
    async fn attempts(
        &self,
        provider: Address,
        since: Timestamp,
        limit: usize,
    ) -> Result<Vec<StoredAttempt>, StoreError> {
        self.read(move |connection| {
            // Each half seeks in the index by end.
            let mut statement = connection.prepare_cached(
                "SELECT task_id, attempt, attempts.provider, attempts.node, session_id, accepted_at, dispatch_ms,
                        ended_at, outcome
                 FROM attempts JOIN tasks ON tasks.id = attempts.task
                 WHERE attempts.provider = ?1 AND (ended_at IS NULL OR ended_at >= ?2)
                 ORDER BY accepted_at DESC, attempts.task DESC, attempt DESC LIMIT ?3",
            )?;
            let rows =
                statement.query((provider.as_slice(), to_sql(since.unix()), to_sql(limit as u64)))?;
            collect(rows, stored_attempt)
        })
        .await
    }
}

fn stored_attempt(row: &Row<'_>) -> Result<StoredAttempt, StoreError> {
    let outcome = row.get::<_, Option<String>>(8)?.map(|word| Outcome::parse(&word)).transpose()?;
    let ended_at = row.get::<_, Option<u64>>(7)?.map(Timestamp::from_unix);
    Ok(StoredAttempt {
        task_id: TaskId(B256::from(row.get::<_, [u8; 32]>(0)?)),
        attempt: row.get(1)?,
        provider: Address::from(row.get::<_, [u8; 20]>(2)?),
        node_id: row.get::<_, Option<[u8; 32]>>(3)?.map(|node| Bytes32(B256::from(node))),
        session_id: row.get(4)?,
        accepted_at: Timestamp::from_unix(row.get(5)?),
        dispatch_ms: row.get(6)?,
        ended: ended_at.zip(outcome),
    })
}

/// Does to a task's attempts what an event does.
pub(super) fn change(
    connection: &Connection,
    task: i64,
    event: &EventRow,
    placement: Option<&Placement>,
) -> Result<(), StoreError> {
    let at = to_sql(event.at.unix());
    match &event.attempt {
        None => {}
        Some(AttemptChange::Ends(outcome)) => {
            connection
                .prepare_cached(
                    "UPDATE attempts SET ended_at = ?2, outcome = ?3 WHERE task = ?1 AND ended_at IS NULL",
                )?
                .execute((task, at, outcome.as_str()))?;
        }
        Some(AttemptChange::Begins { attempt, provider }) => {
            connection
                .prepare_cached(
                    "UPDATE attempts SET ended_at = ?2, outcome = ?3
                     WHERE task = ?1 AND ended_at IS NULL AND (attempt, provider) <> (?4, ?5)",
                )?
                .execute((task, at, Outcome::AttemptDropped.as_str(), attempt, provider.as_slice()))?;
            connection
                .prepare_cached(
                    "INSERT INTO attempts (task, attempt, provider, node, session_id, accepted_at, dispatch_ms)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                     -- One of a settled task that the chain never bound may be taken once more.
                     ON CONFLICT DO UPDATE
                         SET node = coalesce(excluded.node, node), session_id = excluded.session_id,
                             accepted_at = excluded.accepted_at, dispatch_ms = excluded.dispatch_ms,
                             ended_at = NULL, outcome = NULL
                         WHERE ended_at IS NOT NULL",
                )?
                .execute(params![
                    task,
                    attempt,
                    provider.as_slice(),
                    placement.map(|placement| placement.node_id.0.as_slice()),
                    placement.and_then(|placement| placement.session_id.as_deref()),
                    at,
                    placement.and_then(|placement| placement.dispatch_ms).map(to_sql),
                ])?;
        }
    }
    Ok(())
}
