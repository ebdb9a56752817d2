//! The floor of PostgreSQL: the same rows into the store's own tables, one statement a table for a whole group.

use std::sync::Arc;

use anyhow::Context;
use store::{Options, Table, Value};
use tokio::runtime::Handle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use crate::floor::{Group, Rows};
use crate::place::{Place, connect};

/// Starts the floor in a place.
pub(crate) async fn start(place: &Place, rows: Arc<Rows>) -> anyhow::Result<Group> {
    place.open(Options::default()).await?.close().await;
    let client = connect(&place.location()?).await?;
    let mut inserts = Vec::new();
    for (table, _) in &rows.tables {
        inserts.push(prepare(&client, table).await.with_context(|| format!("table {}", table.name))?);
    }
    let runtime = Handle::current();
    Group::start(move |places| Ok(runtime.block_on(insert(&client, &inserts, &rows, places))?))
}

/// The statement that adds rows to a table, given as one array for each column.
async fn prepare(client: &Client, table: &Table) -> anyhow::Result<Statement> {
    let mut arrays = Vec::new();
    for (place, column) in table.columns.iter().enumerate() {
        let kind: String = client
            .query_one(
                "SELECT format_type(atttypid, atttypmod) FROM pg_attribute
                 WHERE attrelid = $1::text::regclass AND attname = $2::text",
                &[&table.name, column],
            )
            .await?
            .get(0);
        arrays.push(format!("${}::{kind}[]", place + 1));
    }
    let columns = table.columns.join(", ");
    let sql = format!("INSERT INTO {} ({columns}) SELECT * FROM unnest({})", table.name, arrays.join(", "));
    Ok(client.prepare(&sql).await?)
}

async fn insert(
    client: &Client,
    inserts: &[Statement],
    rows: &Rows,
    places: &[usize],
) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("BEGIN").await?;
    for ((table, rows), statement) in rows.tables.iter().zip(inserts) {
        let columns: Vec<Vec<&Value>> = (0..table.columns.len())
            .map(|column| places.iter().map(|place| &rows[*place][column]).collect())
            .collect();
        let arrays: Vec<&(dyn ToSql + Sync)> =
            columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect();
        client.execute(statement, &arrays).await?;
    }
    client.batch_execute("COMMIT").await
}
