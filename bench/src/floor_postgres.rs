//! The floor of PostgreSQL: the same rows into tables of the same columns and indexes, one statement a table for a whole group.

use std::sync::Arc;

use anyhow::Context;
use store::{Table, Value};
use tokio::runtime::Handle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Statement};

use crate::floor::{Group, Rows};

/// The schema that the floor's tables are in. It is dropped before each run.
const SCHEMA: &str = "market_bench";

/// Starts the floor on the database that the store is in.
pub(crate) async fn start(url: &str, rows: Arc<Rows>) -> anyhow::Result<Group> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.context("the floor's connection")?;
    // It ends with the client.
    tokio::spawn(connection);
    client.batch_execute(&format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE; CREATE SCHEMA {SCHEMA}")).await?;
    let mut inserts = Vec::new();
    for (table, _) in &rows.tables {
        inserts.push(prepare(&client, table).await?);
    }
    let runtime = Handle::current();
    Group::start(move |places| Ok(runtime.block_on(insert(&client, &inserts, &rows, places))?))
}

/// Makes a table like the store's, and the statement that adds rows to it, given as one array for each column.
async fn prepare(client: &Client, table: &Table) -> anyhow::Result<Statement> {
    let name = table.name;
    client.batch_execute(&format!("CREATE TABLE {SCHEMA}.{name} (LIKE public.{name} INCLUDING ALL)")).await?;
    let mut arrays = Vec::new();
    for (place, column) in table.columns.iter().enumerate() {
        let kind: String = client
            .query_one(
                "SELECT format_type(atttypid, atttypmod) FROM pg_attribute
                 WHERE attrelid = $1::text::regclass AND attname = $2::text",
                &[&format!("{SCHEMA}.{name}"), column],
            )
            .await?
            .get(0);
        arrays.push(format!("${}::{kind}[]", place + 1));
    }
    let columns = table.columns.join(", ");
    let sql = format!("INSERT INTO {SCHEMA}.{name} ({columns}) SELECT * FROM unnest({})", arrays.join(", "));
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
