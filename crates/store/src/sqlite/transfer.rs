//! Raw rows, for moving a market.

use async_trait::async_trait;
use rusqlite::types::ValueRef;
use rusqlite::{Row, params_from_iter};

use super::{Sqlite, collect};
use crate::transfer::{insert, select};
use crate::{StoreError, Table, Transfer, Value};

#[async_trait]
impl Transfer for Sqlite {
    async fn rows(
        &self,
        table: &'static Table,
        after: Option<Vec<Value>>,
        limit: usize,
    ) -> Result<Vec<Vec<Value>>, StoreError> {
        self.read(move |connection| {
            let (sql, values) = select(table, after, limit, parameter);
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query(params_from_iter(values))?;
            collect(rows, |row| (0..table.columns.len()).map(|place| value(row, place)).collect())
        })
        .await
    }

    async fn add_rows(&self, table: &'static Table, rows: Vec<Vec<Value>>) -> Result<(), StoreError> {
        self.write(move |connection| {
            let mut statement = connection.prepare_cached(&insert(table, parameter))?;
            for row in &rows {
                statement.execute(params_from_iter(row))?;
            }
            Ok(())
        })
        .await
    }

    async fn finish_rows(&self, _: &'static Table) -> Result<(), StoreError> {
        // SQLite numbers rows after the greatest that is there.
        Ok(())
    }
}

fn parameter(number: usize) -> String {
    format!("?{number}")
}

fn value(row: &Row<'_>, place: usize) -> Result<Value, StoreError> {
    Ok(match row.get_ref(place)? {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Int(number),
        ValueRef::Text(text) => Value::Text(String::from_utf8(text.to_vec()).map_err(StoreError::corrupt)?),
        ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
        ValueRef::Real(number) => {
            return Err(StoreError::corrupt(format_args!("{number} is no whole number")));
        }
    })
}
