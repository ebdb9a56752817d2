//! Listings: tasks by any combination of conditions, in pages, as one statement for either database.
//!
//! Every index that serves a listing ends in (status, time of creation), with the row's number implied. A listing takes the index of its
//! narrowest condition, reads one page from it for each status that it wants, and merges those: what a page costs does not
//! depend on how many tasks there are, only on how many the further conditions leave out on the way. A page that begins within a
//! second skips the tasks of that second that came before it.

use taskmarket::Status;

use crate::row::to_sql;
use crate::value::Value;
use crate::{Cursor, Page, StoredTask, TaskFilter};

/// A page to read.
pub(crate) struct Listing {
    pub(crate) filter: TaskFilter,
    pub(crate) cursor: Option<Cursor>,
    pub(crate) limit: usize,
    pub(crate) order: Order,
}

/// Time of creation and row: what listings are ordered by.
type Place = (u64, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    NewestFirst,
    OldestFirst,
}

/// Whose SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    /// The place of a parameter, from 1.
    fn parameter(self, number: usize) -> String {
        match self {
            Self::Sqlite => format!("?{number}"),
            Self::Postgres => format!("${number}"),
        }
    }
}

/// The columns that a listing reads, and a task's row is read from, of a table called `tasks`.
pub(crate) const TASK_COLUMNS: &str =
    "tasks.id, tasks.created_at, tasks.task_id, tasks.owner, tasks.node, tasks.record";

impl Listing {
    /// The page that the statement's rows make, each as its cursor and task.
    pub(crate) fn page(&self, rows: Vec<(Cursor, StoredTask)>) -> Page {
        let more = rows.len() > self.limit;
        let (cursors, tasks): (Vec<_>, Vec<_>) = rows.into_iter().take(self.limit).unzip();
        Page { next: cursors.last().copied().filter(|_| more), tasks }
    }

    /// The statement and its parameters. It reads one row more than the page has, to know whether there is a next page.
    pub(crate) fn query(&self, dialect: Dialect) -> (String, Vec<Value>) {
        let mut values = Vec::new();
        let (index, conditions) = self.conditions(dialect, &mut values);
        let hint = match dialect {
            Dialect::Sqlite => format!("INDEXED BY {index}"),
            Dialect::Postgres => String::new(),
        };
        values.push(Value::Int(to_sql((self.limit as u64).saturating_add(1))));
        let limit = dialect.parameter(values.len());
        let order = match self.order {
            Order::NewestFirst => "created_at DESC, id DESC",
            Order::OldestFirst => "created_at, id",
        };
        let wanted = match &self.filter.status {
            Some(status) => std::slice::from_ref(status),
            None => &Status::ALL,
        };
        let parts: Vec<_> = wanted
            .iter()
            .map(|status| {
                format!(
                    "SELECT * FROM (SELECT id, created_at FROM tasks {hint}
                     WHERE status = '{status}'{conditions} ORDER BY {order} LIMIT {limit}) AS part"
                )
            })
            .collect();
        // Without materialising, SQLite merges the parts through one sorter each, at twenty times the cost. There the cross join keeps
        // the page's order; PostgreSQL is told it again.
        let tail = match (dialect, self.order) {
            (Dialect::Sqlite, _) => "CROSS JOIN tasks ON tasks.id = page.id",
            (Dialect::Postgres, Order::NewestFirst) => {
                "JOIN tasks ON tasks.id = page.id ORDER BY page.created_at DESC, page.id DESC"
            }
            (Dialect::Postgres, Order::OldestFirst) => {
                "JOIN tasks ON tasks.id = page.id ORDER BY page.created_at, page.id"
            }
        };
        let sql = format!(
            "WITH parts AS MATERIALIZED ({})
             SELECT {TASK_COLUMNS} FROM (SELECT * FROM parts ORDER BY {order} LIMIT {limit}) AS page {tail}",
            parts.join(" UNION ALL ")
        );
        (sql, values)
    }

    /// The index to read, and what rows must meet beyond their status.
    fn conditions(&self, dialect: Dialect, values: &mut Vec<Value>) -> (&'static str, String) {
        let filter = &self.filter;
        let by = [
            (
                "provider",
                "tasks_by_provider",
                filter.provider.map(|provider| Value::Bytes(provider.to_vec())),
            ),
            (
                "requester",
                "tasks_by_requester",
                filter.requester.map(|requester| Value::Bytes(requester.to_vec())),
            ),
            (
                "gpu_type",
                "tasks_by_gpu_type",
                filter.gpu_type.as_ref().map(|gpu| Value::Text(gpu.to_lowercase())),
            ),
        ];
        let mut index = None;
        let mut conditions = String::new();
        for (column, its_index, value) in by {
            if let Some(value) = value {
                index = index.or(Some(its_index));
                values.push(value);
                conditions += &format!(" AND {column} = {}", dialect.parameter(values.len()));
            }
        }
        let (above, below) = self.bounds();
        for (sign, bound) in [(">", above), ("<", below)] {
            if let Some((created_at, row)) = bound {
                values.extend([Value::Int(to_sql(created_at)), Value::Int(to_sql(row))]);
                let [at, row] = [values.len() - 1, values.len()].map(|number| dialect.parameter(number));
                conditions += &format!(" AND (created_at, id) {sign} ({at}, {row})");
            }
        }
        (index.unwrap_or("tasks_by_status"), conditions)
    }

    /// What (time of creation, row) lies above and below, both exclusive: the filter's range, narrowed by the cursor.
    fn bounds(&self) -> (Option<Place>, Option<Place>) {
        // Rows count from 1, so that row 0 of a second lies before all of that second.
        let from = self.filter.created_from.map(|from| (from.unix(), 0));
        let before = self.filter.created_before.map(|before| (before.unix(), 0));
        let cursor = self.cursor.map(|cursor| (cursor.created_at, cursor.row));
        match self.order {
            Order::NewestFirst => (from, before.into_iter().chain(cursor).min()),
            Order::OldestFirst => (from.max(cursor), before),
        }
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::params_from_iter;
    use taskmarket::{Address, Timestamp};

    use super::*;
    use crate::sqlite::schema;

    /// Each way to combine conditions, with a cursor, in both orders.
    fn listings() -> impl Iterator<Item = Listing> {
        (0_u32..128).map(|bits| {
            let has = |bit: u32| bits & 1 << bit != 0;
            let filter = TaskFilter {
                requester: has(0).then_some(Address::ZERO),
                provider: has(1).then_some(Address::ZERO),
                status: has(2).then_some(Status::Open),
                gpu_type: has(3).then(|| "A100".to_owned()),
                created_from: has(4).then_some(Timestamp::from_unix(5)),
                created_before: has(4).then_some(Timestamp::from_unix(9)),
            };
            let cursor = has(5).then_some(Cursor { created_at: 7, row: 3 });
            let order = if has(6) { Order::NewestFirst } else { Order::OldestFirst };
            Listing { filter, cursor, limit: 50, order }
        })
    }

    #[test]
    fn every_listing_seeks_its_page_in_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay.db");
        std::fs::File::create(&path).unwrap();
        let connection = schema::open_writer(&path).unwrap();
        for listing in listings() {
            let (sql, values) = listing.query(Dialect::Sqlite);
            let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let steps: Vec<String> = plan
                .query_map(params_from_iter(values), |row| row.get(3))
                .unwrap()
                .collect::<Result<_, _>>()
                .unwrap();
            let parts = if listing.filter.status.is_some() { 1 } else { Status::ALL.len() };
            let seeks = steps.iter().filter(|step| step.starts_with("SEARCH tasks USING")).count();
            assert!(!steps.iter().any(|step| step.starts_with("SCAN tasks")), "{steps:#?}");
            assert_eq!(seeks, parts + 1, "{steps:#?}");
        }
    }
}
