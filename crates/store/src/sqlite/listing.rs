//! Listings: tasks by any combination of conditions, in pages.
//!
//! Every index that serves a listing ends in (status, time of creation), with the row's number implied. A listing takes the index of its
//! narrowest condition, reads one page from it for each status that it wants, and merges those: what a page costs does not
//! depend on how many tasks there are, only on how many the further conditions leave out on the way. A page that begins within a
//! second skips the tasks of that second that came before it.

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use taskmarket::Status;

use super::tasks::{TASK_COLUMNS, stored_task};
use super::to_sql;
use crate::{Cursor, Page, StoreError, TaskFilter};

/// A page to read.
pub(super) struct Listing {
    pub(super) filter: TaskFilter,
    pub(super) cursor: Option<Cursor>,
    pub(super) limit: usize,
    pub(super) order: Order,
}

/// Time of creation and row: what listings are ordered by.
type Place = (u64, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    NewestFirst,
    OldestFirst,
}

impl Listing {
    pub(super) fn page(&self, connection: &Connection) -> Result<Page, StoreError> {
        let (sql, values) = self.query();
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params_from_iter(values))?;
        let mut tasks = Vec::new();
        let mut last = None;
        while let Some(row) = rows.next()? {
            if tasks.len() == self.limit {
                return Ok(Page { tasks, next: last });
            }
            last = Some(Cursor { row: row.get(0)?, created_at: row.get(1)? });
            tasks.push(stored_task(row)?);
        }
        Ok(Page { tasks, next: None })
    }

    /// The statement and its parameters. It reads one row more than the page has, to know whether there is a next page.
    fn query(&self) -> (String, Vec<Value>) {
        let mut values = Vec::new();
        let (index, conditions) = self.conditions(&mut values);
        values.push(to_sql((self.limit as u64).saturating_add(1)).into());
        let limit = values.len();
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
                    "SELECT * FROM (SELECT id, created_at FROM tasks INDEXED BY {index}
                     WHERE status = '{status}'{conditions} ORDER BY {order} LIMIT ?{limit})"
                )
            })
            .collect();
        // Without materialising, SQLite merges the parts through one sorter each, at twenty times the cost. The cross join keeps the
        // page's order.
        let sql = format!(
            "WITH parts AS MATERIALIZED ({})
             SELECT {TASK_COLUMNS} FROM (SELECT * FROM parts ORDER BY {order} LIMIT ?{limit}) AS page
             CROSS JOIN tasks ON tasks.id = page.id",
            parts.join(" UNION ALL ")
        );
        (sql, values)
    }

    /// The index to read, and what rows must meet beyond their status.
    fn conditions(&self, values: &mut Vec<Value>) -> (&'static str, String) {
        let filter = &self.filter;
        let by = [
            ("provider", "tasks_by_provider", filter.provider.map(|provider| provider.to_vec().into())),
            ("requester", "tasks_by_requester", filter.requester.map(|requester| requester.to_vec().into())),
            ("gpu_type", "tasks_by_gpu_type", filter.gpu_type.as_ref().map(|gpu| gpu.to_lowercase().into())),
        ];
        let mut index = None;
        let mut conditions = String::new();
        for (column, its_index, value) in by {
            if let Some(value) = value {
                index = index.or(Some(its_index));
                values.push(value);
                conditions += &format!(" AND {column} = ?{}", values.len());
            }
        }
        let (above, below) = self.bounds();
        for (sign, bound) in [(">", above), ("<", below)] {
            if let Some((created_at, row)) = bound {
                values.extend([to_sql(created_at).into(), to_sql(row).into()]);
                conditions +=
                    &format!(" AND (created_at, id) {sign} (?{}, ?{})", values.len() - 1, values.len());
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
            let (sql, values) = listing.query();
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
