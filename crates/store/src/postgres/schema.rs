//! Tables and their versions.

use deadpool_postgres::Object;

use super::failure::{reading, writing};
use super::row::RowExt;
use crate::StoreError;

/// What takes each schema version to the next; table `schema_version` says how many have run. Only ever added to.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/1.sql"),
    include_str!("migrations/2.sql"),
    include_str!("migrations/3.sql"),
    include_str!("migrations/4.sql"),
    include_str!("migrations/5.sql"),
    include_str!("migrations/6.sql"),
    include_str!("migrations/7.sql"),
    include_str!("migrations/8.sql"),
    include_str!("migrations/9.sql"),
];

/// Brings the tables up to date, or waits for another relay that does.
pub(super) async fn migrate(client: &mut Object, database: &str) -> Result<(), StoreError> {
    let transaction = client.transaction().await.map_err(reading)?;
    // Migrations of a large market take longer than calls may.
    transaction
        .batch_execute(
            "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '10min';
             SELECT pg_advisory_xact_lock(7206100, 1);
             CREATE TABLE IF NOT EXISTS schema_version (version bigint NOT NULL)",
        )
        .await
        .map_err(reading)?;
    let rows = transaction.query("SELECT version FROM schema_version", &[]).await.map_err(reading)?;
    let found = rows.first().map_or(Ok(0), |row| row.int(0))?;
    let known = MIGRATIONS.len() as i64;
    let Some(pending) = usize::try_from(found).ok().and_then(|found| MIGRATIONS.get(found..)) else {
        return Err(StoreError::Schema { path: database.into(), found, known });
    };
    for (version, migration) in (found + 1..).zip(pending) {
        transaction.batch_execute(migration).await.map_err(writing)?;
        tracing::debug!(version, database, "store schema migrated");
    }
    if !pending.is_empty() {
        transaction.batch_execute("DELETE FROM schema_version").await.map_err(writing)?;
        let insert = "INSERT INTO schema_version (version) VALUES ($1)";
        transaction.execute(insert, &[&known]).await.map_err(writing)?;
        tracing::info!(from = found, version = known, database, "store schema brought up to date");
    }
    transaction.commit().await.map_err(writing)
}
