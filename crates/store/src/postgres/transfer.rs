//! Raw rows, for moving a market.

use async_trait::async_trait;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::Postgres;
use super::failure::{reading, writing};
use super::row::RowExt;
use super::tasks::params;
use crate::transfer::{insert, select};
use crate::{StoreError, Table, Transfer, Value};

#[async_trait]
impl Transfer for Postgres {
    async fn rows(
        &self,
        table: &'static Table,
        after: Option<Vec<Value>>,
        limit: usize,
    ) -> Result<Vec<Vec<Value>>, StoreError> {
        let (sql, values) = select(table, after, limit, parameter);
        self.query(&sql, &params(&values)).await?.iter().map(raw).collect()
    }

    async fn add_rows(&self, table: &'static Table, rows: Vec<Vec<Value>>) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await.map_err(reading)?;
        let statement = transaction.prepare_cached(&insert(table, parameter)).await.map_err(reading)?;
        for row in rows {
            transaction.execute(&statement, &params(&row)).await.map_err(writing)?;
        }
        transaction.commit().await.map_err(writing)
    }

    async fn finish_rows(&self, table: &'static Table) -> Result<(), StoreError> {
        if table.numbered {
            let sql = format!(
                "SELECT setval(pg_get_serial_sequence('{name}', 'id'), max(id)) FROM {name} HAVING max(id) > 0",
                name = table.name
            );
            self.write(&sql, &[]).await?;
        }
        Ok(())
    }
}

fn parameter(number: usize) -> String {
    format!("${number}")
}

fn raw(row: &Row) -> Result<Vec<Value>, StoreError> {
    let columns = row.columns().iter().enumerate();
    columns
        .map(|(place, column)| match *column.type_() {
            Type::INT8 => Ok(row.column::<Option<i64>>(place)?.map_or(Value::Null, Value::Int)),
            Type::BYTEA => Ok(row.column::<Option<Vec<u8>>>(place)?.map_or(Value::Null, Value::Bytes)),
            _ => Ok(row.column::<Option<String>>(place)?.map_or(Value::Null, Value::Text)),
        })
        .collect()
}
