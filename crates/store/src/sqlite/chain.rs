//! The chain's word.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, params};
use taskmarket::{B256, Bytes32, ChainFact, ChainHead, ChainPlace, Domain, TaskId, Timestamp};

use super::{Sqlite, collect, to_sql};
use crate::row::{parse, text};
use crate::{Chains, StoreError};

#[async_trait]
impl Chains for Sqlite {
    async fn chain_cursor(&self, domain: Domain) -> Result<Option<ChainHead>, StoreError> {
        self.read(move |connection| cursor(connection, domain)).await
    }

    async fn advance_chain(
        &self,
        domain: Domain,
        from: Option<ChainHead>,
        to: ChainHead,
        facts: Vec<(TaskId, ChainFact)>,
    ) -> Result<bool, StoreError> {
        let facts = facts
            .iter()
            .map(|(task, fact)| Ok((*task, fact.place(), fact.block_time, text(fact)?)))
            .collect::<Result<Vec<_>, StoreError>>()?;
        self.write(move |connection| {
            if cursor(connection, domain)? != from {
                return Ok(false);
            }
            for (task, place, time, fact) in &facts {
                connection
                    .prepare_cached(
                        "INSERT INTO chain_facts (task_id, block, log_index, block_time, fact)
                         VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
                    )?
                    .execute(params![
                        task.0.as_slice(),
                        to_sql(place.block),
                        to_sql(place.log_index),
                        to_sql(time.unix()),
                        fact,
                    ])?;
            }
            connection
                .prepare_cached(
                    "INSERT INTO chain_cursors (chain_id, contract, block, block_hash, block_time)
                     VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (chain_id, contract)
                     DO UPDATE SET block = ?3, block_hash = ?4, block_time = ?5",
                )?
                .execute(params![
                    to_sql(domain.chain_id),
                    domain.verifying_contract.as_slice(),
                    to_sql(to.block),
                    to.block_hash.0.as_slice(),
                    to_sql(to.block_time.unix()),
                ])?;
            Ok(true)
        })
        .await
    }

    async fn chain_facts(&self, task: TaskId) -> Result<Vec<ChainFact>, StoreError> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT fact FROM chain_facts WHERE task_id = ?1 ORDER BY block, log_index",
            )?;
            let rows = statement.query([task.0.as_slice()])?;
            collect(rows, |row| {
                let fact = row.get_ref(0)?.as_str().map_err(StoreError::corrupt)?;
                parse(fact, || format!("chain fact of task {task}"))
            })
        })
        .await
    }

    async fn tasks_with_chain_facts(
        &self,
        after: Option<TaskId>,
        limit: usize,
    ) -> Result<Vec<TaskId>, StoreError> {
        let after = after.map_or(Vec::new(), |task| task.0.to_vec());
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT DISTINCT task_id FROM chain_facts
                 WHERE task_id > ?1 AND EXISTS (SELECT 1 FROM tasks WHERE tasks.task_id = chain_facts.task_id)
                 ORDER BY task_id LIMIT ?2",
            )?;
            let rows = statement.query((after, to_sql(limit as u64)))?;
            collect(rows, |row| Ok(TaskId(B256::from(row.get::<_, [u8; 32]>(0)?))))
        })
        .await
    }

    async fn forget_chain_facts(&self, task: TaskId, through: ChainPlace) -> Result<(), StoreError> {
        self.write(move |connection| {
            connection
                .prepare_cached(
                    "DELETE FROM chain_facts WHERE task_id = ?1 AND (block, log_index) <= (?2, ?3)",
                )?
                .execute((task.0.as_slice(), to_sql(through.block), to_sql(through.log_index)))?;
            Ok(())
        })
        .await
    }

    async fn prune_chain_facts(&self, before: Timestamp) -> Result<u64, StoreError> {
        self.write(move |connection| {
            let mut statement = connection.prepare_cached("DELETE FROM chain_facts WHERE block_time < ?1")?;
            Ok(statement.execute([to_sql(before.unix())])? as u64)
        })
        .await
    }
}

fn cursor(connection: &Connection, domain: Domain) -> Result<Option<ChainHead>, StoreError> {
    let row = connection
        .prepare_cached(
            "SELECT block, block_hash, block_time FROM chain_cursors WHERE chain_id = ?1 AND contract = ?2",
        )?
        .query_row((to_sql(domain.chain_id), domain.verifying_contract.as_slice()), |row| {
            Ok(ChainHead {
                block: row.get(0)?,
                block_hash: Bytes32(B256::from(row.get::<_, [u8; 32]>(1)?)),
                block_time: Timestamp::from_unix(row.get(2)?),
            })
        })
        .optional()?;
    Ok(row)
}
