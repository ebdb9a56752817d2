//! The chain's word.

use async_trait::async_trait;
use taskmarket::{ChainFact, ChainHead, ChainPlace, Domain, TaskId, Timestamp};

use super::Postgres;
use super::failure::{reading, writing};
use super::row::RowExt;
use crate::row::{parse, text, to_sql};
use crate::{Chains, StoreError};

#[async_trait]
impl Chains for Postgres {
    async fn chain_cursor(&self, domain: Domain) -> Result<Option<ChainHead>, StoreError> {
        let sql =
            "SELECT block, block_hash, block_time FROM chain_cursors WHERE chain_id = $1 AND contract = $2";
        let (chain_id, contract) = (to_sql(domain.chain_id), domain.verifying_contract);
        let row = self.query_opt(sql, &[&chain_id, &contract.as_slice()]).await?;
        let head = |row: tokio_postgres::Row| {
            Ok(ChainHead { block: row.number(0)?, block_hash: row.bytes32(1)?, block_time: row.time(2)? })
        };
        row.map(head).transpose()
    }

    async fn advance_chain(
        &self,
        domain: Domain,
        from: Option<ChainHead>,
        to: ChainHead,
        facts: Vec<(TaskId, ChainFact)>,
    ) -> Result<bool, StoreError> {
        let (chain_id, contract) = (to_sql(domain.chain_id), domain.verifying_contract);
        let (block, time) = (to_sql(to.block), to_sql(to.block_time.unix()));
        let hash = to.block_hash.0;
        let mut client = self.client().await?;
        let transaction = client.transaction().await.map_err(reading)?;
        // Of two relays that move the cursor at once, the second waits for the first and then finds it elsewhere.
        let moved = match from {
            None => {
                let sql = "INSERT INTO chain_cursors (chain_id, contract, block, block_hash, block_time)
                           VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
                let first: super::Params<'_> =
                    &[&chain_id, &contract.as_slice(), &block, &hash.as_slice(), &time];
                transaction.execute(sql, first).await.map_err(writing)?
            }
            Some(from) => {
                let sql = "UPDATE chain_cursors SET block = $3, block_hash = $4, block_time = $5
                           WHERE chain_id = $1 AND contract = $2 AND block = $6 AND block_hash = $7";
                let next: super::Params<'_> = &[
                    &chain_id,
                    &contract.as_slice(),
                    &block,
                    &hash.as_slice(),
                    &time,
                    &to_sql(from.block),
                    &from.block_hash.0.as_slice(),
                ];
                transaction.execute(sql, next).await.map_err(writing)?
            }
        };
        if moved == 0 {
            return Ok(false);
        }
        let insert = "INSERT INTO chain_facts (task_id, block, log_index, block_time, fact)
                      VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
        let insert = transaction.prepare_cached(insert).await.map_err(reading)?;
        for (task, fact) in &facts {
            let place = fact.place();
            let row: super::Params<'_> = &[
                &task.0.as_slice(),
                &to_sql(place.block),
                &to_sql(place.log_index),
                &to_sql(fact.block_time.unix()),
                &text(fact)?,
            ];
            transaction.execute(&insert, row).await.map_err(writing)?;
        }
        transaction.commit().await.map_err(writing)?;
        Ok(true)
    }

    async fn chain_facts(&self, task: TaskId) -> Result<Vec<ChainFact>, StoreError> {
        let sql = "SELECT fact FROM chain_facts WHERE task_id = $1 ORDER BY block, log_index";
        let rows = self.query(sql, &[&task.0.as_slice()]).await?;
        rows.iter().map(|row| parse(row.column(0)?, || format!("chain fact of task {task}"))).collect()
    }

    async fn tasks_with_chain_facts(
        &self,
        after: Option<TaskId>,
        limit: usize,
    ) -> Result<Vec<TaskId>, StoreError> {
        let sql = "SELECT DISTINCT task_id FROM chain_facts
                   WHERE task_id > $1 AND EXISTS (SELECT FROM tasks WHERE tasks.task_id = chain_facts.task_id)
                   ORDER BY task_id LIMIT $2";
        let after = after.map_or(Vec::new(), |task| task.0.to_vec());
        let rows = self.query(sql, &[&after, &to_sql(limit as u64)]).await?;
        rows.iter().map(|row| row.task_id(0)).collect()
    }

    async fn forget_chain_facts(&self, task: TaskId, through: ChainPlace) -> Result<(), StoreError> {
        let sql = "DELETE FROM chain_facts WHERE task_id = $1 AND (block, log_index) <= ($2, $3)";
        let (block, log_index) = (to_sql(through.block), to_sql(through.log_index));
        self.execute(sql, &[&task.0.as_slice(), &block, &log_index]).await?;
        Ok(())
    }

    async fn prune_chain_facts(&self, before: Timestamp) -> Result<u64, StoreError> {
        self.execute("DELETE FROM chain_facts WHERE block_time < $1", &[&to_sql(before.unix())]).await
    }
}
