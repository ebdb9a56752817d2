//! The use that is made of API keys.

use async_trait::async_trait;

use super::Postgres;
use super::row::RowExt;
use crate::row::to_sql;
use crate::{KeyId, StoreError, Usage, UsageFilter, Usages};

#[async_trait]
impl Usages for Postgres {
    async fn add_usage(&self, mut usage: Vec<Usage>) -> Result<(), StoreError> {
        // In one order everywhere, so that no two relays wait for each other; and one row of a key and day only.
        usage.sort_by(|a, b| (a.day, &a.owner).cmp(&(b.day, &b.owner)));
        usage.dedup_by(|next, first| {
            let is_same = (next.day, &next.owner) == (first.day, &first.owner);
            if is_same {
                first.requests += next.requests;
            }
            is_same
        });
        let days: Vec<i64> = usage.iter().map(|usage| to_sql(usage.day)).collect();
        let owners: Vec<&str> = usage.iter().map(|usage| usage.owner.as_str()).collect();
        let requests: Vec<i64> = usage.iter().map(|usage| to_sql(usage.requests)).collect();
        self.execute(
            "INSERT INTO usage (day, owner, requests)
             SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[])
             ON CONFLICT (day, owner) DO UPDATE SET requests = usage.requests + excluded.requests",
            &[&days, &owners, &requests],
        )
        .await?;
        Ok(())
    }

    async fn usage(
        &self,
        filter: UsageFilter,
        after: Option<(u64, KeyId)>,
        limit: usize,
    ) -> Result<Vec<Usage>, StoreError> {
        let (from, to) = (to_sql(filter.from), to_sql(filter.to));
        // The empty text comes before any key.
        let (day, owner) = after.as_ref().map_or((from, ""), |(day, owner)| (to_sql(*day), owner.as_str()));
        let only = filter.owner.as_ref().map(KeyId::as_str);
        let rows = self
            .query(
                "SELECT owner, day, requests FROM usage
                 WHERE (day, owner) > ($1, $2) AND day BETWEEN $3 AND $4 AND ($5::text IS NULL OR owner = $5)
                 ORDER BY day, owner LIMIT $6",
                &[&day, &owner, &from, &to, &only, &to_sql(limit as u64)],
            )
            .await?;
        let read = |row: &tokio_postgres::Row| {
            let owner = row.column::<&str>(0)?.parse()?;
            Ok(Usage { owner, day: row.number(1)?, requests: row.number(2)? })
        };
        rows.iter().map(read).collect()
    }
}
