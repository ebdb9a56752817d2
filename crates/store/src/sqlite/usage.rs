//! The use that is made of API keys.

use async_trait::async_trait;

use super::{Sqlite, collect, to_sql};
use crate::{KeyId, StoreError, Usage, UsageFilter, Usages};

#[async_trait]
impl Usages for Sqlite {
    async fn add_usage(&self, usage: Vec<Usage>) -> Result<(), StoreError> {
        self.write(move |connection| {
            let mut statement = connection.prepare_cached(
                "INSERT INTO usage (day, owner, requests) VALUES (?1, ?2, ?3)
                 ON CONFLICT (day, owner) DO UPDATE SET requests = requests + excluded.requests",
            )?;
            for usage in &usage {
                statement.execute((to_sql(usage.day), usage.owner.as_str(), to_sql(usage.requests)))?;
            }
            Ok(())
        })
        .await
    }

    async fn usage(
        &self,
        filter: UsageFilter,
        after: Option<(u64, KeyId)>,
        limit: usize,
    ) -> Result<Vec<Usage>, StoreError> {
        self.read(move |connection| {
            // The empty text comes before any key.
            let (day, owner) =
                after.as_ref().map_or((filter.from, ""), |(day, owner)| (*day, owner.as_str()));
            let mut statement = connection.prepare_cached(
                "SELECT owner, day, requests FROM usage
                 WHERE (day, owner) > (?1, ?2) AND day BETWEEN ?3 AND ?4 AND (?5 IS NULL OR owner = ?5)
                 ORDER BY day, owner LIMIT ?6",
            )?;
            let rows = statement.query((
                to_sql(day),
                owner,
                to_sql(filter.from),
                to_sql(filter.to),
                filter.owner.as_ref().map(KeyId::as_str),
                to_sql(limit as u64),
            ))?;
            collect(rows, |row| {
                Ok(Usage {
                    owner: row.get::<_, String>(0)?.parse()?,
                    day: row.get(1)?,
                    requests: row.get(2)?,
                })
            })
        })
        .await
    }
}
