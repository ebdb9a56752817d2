//! The sessions of providers' hosts.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Row};
use taskmarket::{Address, B256, Bytes32, NodeStatus, Timestamp};

use super::{Sqlite, to_sql};
use crate::sessions::{PRUNED_AT_ONCE, SUPERSEDED, parse_node_status};
use crate::{NewSession, Sessions, StoreError, StoredSession};

#[async_trait]
impl Sessions for Sqlite {
    async fn open_session(&self, session: NewSession) -> Result<u64, StoreError> {
        self.write(move |connection| open(connection, &session)).await
    }

    async fn update_session_metadata(
        &self,
        session_id: &str,
        metadata_json: &str,
    ) -> Result<bool, StoreError> {
        let (session_id, metadata) = (session_id.to_owned(), metadata_json.to_owned());
        self.write(move |connection| {
            let changed = connection
                .prepare_cached(
                    "UPDATE sessions SET metadata = ?2 WHERE session_id = ?1 AND ended_at IS NULL",
                )?
                .execute((&session_id, &metadata))?;
            Ok(changed > 0)
        })
        .await
    }

    async fn close_session(&self, session_id: &str, at: Timestamp, reason: &str) -> Result<bool, StoreError> {
        let (session_id, reason) = (session_id.to_owned(), reason.to_owned());
        self.write(move |connection| {
            let changed = connection
                .prepare_cached(
                    "UPDATE sessions SET ended_at = ?2, reason = ?3 WHERE session_id = ?1 AND ended_at IS NULL",
                )?
                .execute((&session_id, to_sql(at.unix()), &reason))?;
            Ok(changed > 0)
        })
        .await
    }

    async fn claim_relay(&self, _relay_id: &str) -> Result<bool, StoreError> {
        // The folder is one process's.
        Ok(true)
    }

    async fn claim_lost(&self) {
        // The folder stays this process's.
        std::future::pending().await
    }

    async fn relays_clock(&self, own: Timestamp) -> Result<Timestamp, StoreError> {
        // The folder is one machine's.
        Ok(own)
    }

    async fn relay_lives(&self, relay_id: &str, at: Timestamp) -> Result<(), StoreError> {
        let relay_id = relay_id.to_owned();
        self.write(move |connection| {
            connection
                .prepare_cached(
                    "INSERT INTO relays (relay_id, alive_at) VALUES (?1, ?2)
                     ON CONFLICT DO UPDATE SET alive_at = excluded.alive_at",
                )?
                .execute((&relay_id, to_sql(at.unix())))?;
            Ok(())
        })
        .await
    }

    async fn close_sessions_of(
        &self,
        relay_id: &str,
        at: Timestamp,
        reason: &str,
    ) -> Result<u64, StoreError> {
        let (relay_id, reason) = (relay_id.to_owned(), reason.to_owned());
        self.write(move |connection| {
            let changed = connection
                .prepare_cached(
                    "UPDATE sessions SET reason = ?3, ended_at = max(connected_at, min(?2,
                         coalesce((SELECT alive_at FROM relays WHERE relay_id = ?1), ?2)))
                     WHERE relay_id = ?1 AND ended_at IS NULL",
                )?
                .execute((&relay_id, to_sql(at.unix()), &reason))?;
            Ok(changed as u64)
        })
        .await
    }

    async fn close_sessions_of_silent(
        &self,
        silent_since: Timestamp,
        reason: &str,
    ) -> Result<u64, StoreError> {
        let reason = reason.to_owned();
        self.write(move |connection| {
            let changed = connection
                .prepare_cached(
                    "UPDATE sessions SET reason = ?2, ended_at = max(connected_at, alive_at)
                     FROM relays WHERE relays.relay_id = sessions.relay_id AND alive_at < ?1 AND ended_at IS NULL",
                )?
                .execute((to_sql(silent_since.unix()), &reason))?;
            Ok(changed as u64)
        })
        .await
    }

    async fn sessions_ended_for(
        &self,
        session_ids: Vec<String>,
        reason: &str,
    ) -> Result<Vec<String>, StoreError> {
        let reason = reason.to_owned();
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT 1 FROM sessions WHERE session_id = ?1 AND ended_at IS NOT NULL AND reason = ?2",
            )?;
            let mut ended = Vec::new();
            for session_id in session_ids {
                if statement.exists((&session_id, &reason))? {
                    ended.push(session_id);
                }
            }
            Ok(ended)
        })
        .await
    }

    async fn living_relays(&self, since: Timestamp) -> Result<Vec<String>, StoreError> {
        self.read(move |connection| {
            let mut statement = connection
                .prepare_cached("SELECT relay_id FROM relays WHERE alive_at >= ?1 ORDER BY relay_id")?;
            let rows = statement.query_map([to_sql(since.unix())], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn sessions(&self, provider: Address, limit: usize) -> Result<Vec<StoredSession>, StoreError> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM sessions WHERE provider = ?1 ORDER BY id DESC LIMIT ?2"
            ))?;
            let rows = statement
                .query_map((provider.as_slice(), to_sql(limit as u64)), |row| session(provider, row))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn newest_session(
        &self,
        provider: Address,
        node_id: Bytes32,
    ) -> Result<Option<StoredSession>, StoreError> {
        self.read(move |connection| {
            let sql = format!(
                "SELECT {COLUMNS} FROM sessions WHERE provider = ?1 AND node_id = ?2 ORDER BY generation DESC LIMIT 1"
            );
            let found = connection
                .prepare_cached(&sql)?
                .query_row((provider.as_slice(), node_id.0.as_slice()), |row| session(provider, row))
                .optional()?;
            Ok(found)
        })
        .await
    }

    async fn sessions_since(
        &self,
        provider: Address,
        since: Timestamp,
        limit: usize,
    ) -> Result<Vec<StoredSession>, StoreError> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM sessions WHERE provider = ?1 AND (ended_at IS NULL OR ended_at >= ?2)
                 ORDER BY id DESC LIMIT ?3"
            ))?;
            let values = (provider.as_slice(), to_sql(since.unix()), to_sql(limit as u64));
            let rows = statement.query_map(values, |row| session(provider, row))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn prune_sessions(&self, before: Timestamp) -> Result<u64, StoreError> {
        let mut pruned = 0;
        loop {
            let part = self.write(move |connection| prune(connection, before)).await?;
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
        self.write(move |connection| {
            let changed = connection
                .prepare_cached(
                    "INSERT INTO node_statuses (provider, node_id, status, issued_at) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT DO UPDATE SET status = excluded.status, issued_at = excluded.issued_at
                     WHERE excluded.issued_at > issued_at",
                )?
                .execute((
                    provider.as_slice(),
                    node_id.0.as_slice(),
                    status.as_str(),
                    to_sql(issued_at.unix()),
                ))?;
            Ok(changed > 0)
        })
        .await
    }

    async fn node_status(
        &self,
        provider: Address,
        node_id: Bytes32,
    ) -> Result<Option<NodeStatus>, StoreError> {
        self.read(move |connection| {
            let word: Option<String> = connection
                .prepare_cached("SELECT status FROM node_statuses WHERE provider = ?1 AND node_id = ?2")?
                .query_row((provider.as_slice(), node_id.0.as_slice()), |row| row.get(0))
                .optional()?;
            word.map(|word| parse_node_status(&word)).transpose()
        })
        .await
    }
}

fn open(connection: &Connection, session: &NewSession) -> Result<u64, StoreError> {
    let node = (session.provider.as_slice(), session.node_id.0.as_slice());
    let at = to_sql(session.at.unix());
    let last: Option<u64> = connection
        .prepare_cached("SELECT max(generation) FROM sessions WHERE provider = ?1 AND node_id = ?2")?
        .query_row(node, |row| row.get(0))?;
    // Only the last can be open: each one ends the one before it.
    connection
        .prepare_cached(
            "UPDATE sessions SET ended_at = ?4, reason = ?5
             WHERE provider = ?1 AND node_id = ?2 AND generation = ?3 AND ended_at IS NULL",
        )?
        .execute((node.0, node.1, last, at, SUPERSEDED))?;
    let generation = last.unwrap_or(0) + 1;
    connection
        .prepare_cached(
            "INSERT INTO sessions (session_id, provider, node_id, relay_id, generation, metadata, connected_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute((
            &session.session_id,
            node.0,
            node.1,
            &session.relay_id,
            to_sql(generation),
            &session.metadata_json,
            at,
        ))?;
    Ok(generation)
}

/// Removes some of the sessions that ended before a time.
fn prune(connection: &Connection, before: Timestamp) -> Result<u64, StoreError> {
    let removed = connection
        .prepare_cached(
            "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE ended_at < ?1 LIMIT ?2)",
        )?
        .execute((to_sql(before.unix()), to_sql(PRUNED_AT_ONCE)))?;
    Ok(removed as u64)
}

const COLUMNS: &str = "session_id, node_id, relay_id, metadata, generation, connected_at, ended_at, reason";

/// Reads a row of [`COLUMNS`].
fn session(provider: Address, row: &Row<'_>) -> rusqlite::Result<StoredSession> {
    let ended_at: Option<u64> = row.get(6)?;
    let reason: Option<String> = row.get(7)?;
    Ok(StoredSession {
        session_id: row.get(0)?,
        provider,
        node_id: Bytes32(B256::from(row.get::<_, [u8; 32]>(1)?)),
        relay_id: row.get(2)?,
        metadata_json: row.get(3)?,
        generation: row.get(4)?,
        connected_at: Timestamp::from_unix(row.get(5)?),
        ended: ended_at.map(|at| (Timestamp::from_unix(at), reason.unwrap_or_default())),
    })
}
