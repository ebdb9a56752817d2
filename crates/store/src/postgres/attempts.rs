//! Attempts. Function `commit_task` writes them.

use async_trait::async_trait;
use taskmarket::{Address, Timestamp};
use tokio_postgres::Row;

use super::Postgres;
use super::row::RowExt;
use crate::row::to_sql;
use crate::{Attempts, Outcome, StoreError, StoredAttempt};

#[async_trait]
impl Attempts for Postgres {
    async fn attempts(
        &self,
        provider: Address,
        since: Timestamp,
        limit: usize,
    ) -> Result<Vec<StoredAttempt>, StoreError> {
        let sql =
            "SELECT task_id, attempt, attempts.provider, attempts.node, session_id, accepted_at, dispatch_ms,
                          ended_at, outcome
                   FROM attempts JOIN tasks ON tasks.id = attempts.task
                   WHERE attempts.provider = $1 AND (ended_at IS NULL OR ended_at >= $2)
                   ORDER BY accepted_at DESC, attempts.task DESC, attempt DESC LIMIT $3";
        let rows =
            self.query(sql, &[&provider.as_slice(), &to_sql(since.unix()), &to_sql(limit as u64)]).await?;
        rows.iter().map(stored_attempt).collect()
    }
}

fn stored_attempt(row: &Row) -> Result<StoredAttempt, StoreError> {
    let outcome = row.column::<Option<&str>>(8)?.map(Outcome::parse).transpose()?;
    Ok(StoredAttempt {
        task_id: row.task_id(0)?,
        attempt: row.number(1)?,
        provider: row.address(2)?,
        node_id: row.opt_bytes32(3)?,
        session_id: row.column(4)?,
        accepted_at: row.time(5)?,
        dispatch_ms: row.opt_number(6)?,
        ended: row.opt_time(7)?.zip(outcome),
    })
}
