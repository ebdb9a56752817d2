//! The sessions of providers' hosts.

use std::sync::PoisonError;

use async_trait::async_trait;
use taskmarket::{Address, Bytes32, NodeStatus, Timestamp};
use tokio_postgres::Row;

use super::Postgres;
use super::claim::Claim;
use super::row::RowExt;
use crate::row::to_sql;
use crate::sessions::{PRUNED_AT_ONCE, SUPERSEDED, parse_node_status};
use crate::{NewSession, Sessions, StoreError, StoredSession};

#[async_trait]
impl Sessions for Postgres {
    async fn open_session(&self, session: NewSession) -> Result<u64, StoreError> {
        let rows = self
            .write(
                "SELECT open_session($1, $2, $3, $4, $5, $6, $7)",
                &[
                    &session.session_id,
                    &session.provider.as_slice(),
                    &session.node_id.0.as_slice(),
                    &session.relay_id,
                    &session.metadata_json,
                    &to_sql(session.at.unix()),
                    &SUPERSEDED,
                ],
            )
            .await?;
        rows.first().map_or(Err(StoreError::corrupt("open_session answers nothing")), |row| row.number(0))
    }

    async fn update_session_metadata(
        &self,
        session_id: &str,
        metadata_json: &str,
    ) -> Result<bool, StoreError> {
        let sql = "UPDATE sessions SET metadata = $2 WHERE session_id = $1 AND ended_at IS NULL";
        Ok(self.execute(sql, &[&session_id, &metadata_json]).await? > 0)
    }

    async fn close_session(&self, session_id: &str, at: Timestamp, reason: &str) -> Result<bool, StoreError> {
        let sql = "UPDATE sessions SET ended_at = $2, reason = $3 WHERE session_id = $1 AND ended_at IS NULL";
        Ok(self.execute(sql, &[&session_id, &to_sql(at.unix()), &reason]).await? > 0)
    }

    async fn claim_relay(&self, relay_id: &str) -> Result<bool, StoreError> {
        let claim = Claim::take(self.config.clone(), self.tls.clone(), relay_id.to_owned()).await?;
        let is_ours = claim.is_some();
        // One that is held already stays so where another is refused.
        if is_ours {
            *self.claim.lock().unwrap_or_else(PoisonError::into_inner) = claim;
        }
        Ok(is_ours)
    }

    async fn claim_lost(&self) {
        let lost = self.claim.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Claim::lost);
        match lost {
            Some(lost) => lost.await,
            None => std::future::pending().await,
        }
    }

    async fn relays_clock(&self, _own: Timestamp) -> Result<Timestamp, StoreError> {
        let rows = self.query("SELECT floor(extract(epoch FROM now()))::bigint", &[]).await?;
        rows.first().map_or(Err(StoreError::corrupt("the clock answers nothing")), |row| row.time(0))
    }

    async fn relay_lives(&self, relay_id: &str, at: Timestamp) -> Result<(), StoreError> {
        let sql = "INSERT INTO relays (relay_id, alive_at) VALUES ($1, $2)
                   ON CONFLICT (relay_id) DO UPDATE SET alive_at = greatest(relays.alive_at, excluded.alive_at)";
        self.execute(sql, &[&relay_id, &to_sql(at.unix())]).await?;
        Ok(())
    }

    async fn close_sessions_of(
        &self,
        relay_id: &str,
        at: Timestamp,
        reason: &str,
    ) -> Result<u64, StoreError> {
        let sql = "UPDATE sessions SET reason = $3, ended_at = greatest(connected_at, least($2,
                       coalesce((SELECT alive_at FROM relays WHERE relay_id = $1), $2)))
                   WHERE relay_id = $1 AND ended_at IS NULL";
        self.execute(sql, &[&relay_id, &to_sql(at.unix()), &reason]).await
    }

    async fn close_sessions_of_silent(
        &self,
        silent_since: Timestamp,
        reason: &str,
    ) -> Result<u64, StoreError> {
        let sql = "UPDATE sessions SET reason = $2, ended_at = greatest(connected_at, alive_at)
                   FROM relays WHERE relays.relay_id = sessions.relay_id AND alive_at < $1 AND ended_at IS NULL";
        self.execute(sql, &[&to_sql(silent_since.unix()), &reason]).await
    }

    async fn sessions_ended_for(
        &self,
        session_ids: Vec<String>,
        reason: &str,
    ) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT session_id FROM sessions
                   WHERE session_id = ANY($1) AND ended_at IS NOT NULL AND reason = $2";
        let rows = self.query(sql, &[&session_ids, &reason]).await?;
        rows.iter().map(|row| row.column(0)).collect()
    }

    async fn living_relays(&self, since: Timestamp) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT relay_id FROM relays WHERE alive_at >= $1 ORDER BY relay_id";
        let rows = self.query(sql, &[&to_sql(since.unix())]).await?;
        rows.iter().map(|row| row.column(0)).collect()
    }

    async fn sessions(&self, provider: Address, limit: usize) -> Result<Vec<StoredSession>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM sessions WHERE provider = $1 ORDER BY id DESC LIMIT $2");
        let rows = self.query(&sql, &[&provider.as_slice(), &to_sql(limit as u64)]).await?;
        rows.iter().map(|row| session(provider, row)).collect()
    }

    async fn newest_session(
        &self,
        provider: Address,
        node_id: Bytes32,
    ) -> Result<Option<StoredSession>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM sessions WHERE provider = $1 AND node_id = $2 ORDER BY generation DESC LIMIT 1"
        );
        let row = self.query_opt(&sql, &[&provider.as_slice(), &node_id.0.as_slice()]).await?;
        row.map(|row| session(provider, &row)).transpose()
    }

    async fn sessions_since(
        &self,
        provider: Address,
        since: Timestamp,
        limit: usize,
    ) -> Result<Vec<StoredSession>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM sessions WHERE provider = $1 AND (ended_at IS NULL OR ended_at >= $2)
             ORDER BY id DESC LIMIT $3"
        );
        let rows =
            self.query(&sql, &[&provider.as_slice(), &to_sql(since.unix()), &to_sql(limit as u64)]).await?;
        rows.iter().map(|row| session(provider, row)).collect()
    }

    async fn prune_sessions(&self, before: Timestamp) -> Result<u64, StoreError> {
        let sql = "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE ended_at < $1 LIMIT $2)";
        let mut pruned = 0;
        loop {
            let part = self.execute(sql, &[&to_sql(before.unix()), &to_sql(PRUNED_AT_ONCE)]).await?;
            pruned += part;
            if part < PRUNED_AT_ONCE {
                return Ok(pruned);
            }
        }
    }

    async fn set_node_status(
        &self,
        provider: Address,
        node_id: Bytes32,
        status: NodeStatus,
        issued_at: Timestamp,
    ) -> Result<bool, StoreError> {
        let sql =
            "INSERT INTO node_statuses AS kept (provider, node_id, status, issued_at) VALUES ($1, $2, $3, $4)
                   ON CONFLICT (provider, node_id)
                   DO UPDATE SET status = excluded.status, issued_at = excluded.issued_at
                   WHERE excluded.issued_at > kept.issued_at";
        let values: super::Params<'_> =
            &[&provider.as_slice(), &node_id.0.as_slice(), &status.as_str(), &to_sql(issued_at.unix())];
        Ok(self.execute(sql, values).await? > 0)
    }

    async fn node_status(
        &self,
        provider: Address,
        node_id: Bytes32,
    ) -> Result<Option<NodeStatus>, StoreError> {
        let sql = "SELECT status FROM node_statuses WHERE provider = $1 AND node_id = $2";
        let row = self.query_opt(sql, &[&provider.as_slice(), &node_id.0.as_slice()]).await?;
        row.map(|row| parse_node_status(row.column(0)?)).transpose()
    }
}

const COLUMNS: &str = "session_id, node_id, relay_id, metadata, generation, connected_at, ended_at, reason";

/// Reads a row of [`COLUMNS`].
fn session(provider: Address, row: &Row) -> Result<StoredSession, StoreError> {
    let reason: Option<String> = row.column(7)?;
    Ok(StoredSession {
        session_id: row.column(0)?,
        provider,
        node_id: row.bytes32(1)?,
        relay_id: row.column(2)?,
        metadata_json: row.column(3)?,
        generation: row.number(4)?,
        connected_at: row.time(5)?,
        ended: row.opt_time(6)?.map(|at| (at, reason.unwrap_or_default())),
    })
}
