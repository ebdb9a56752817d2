//! Tasks and their histories.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use taskmarket::{Address, Recorded, Status, TaskId, TaskRecord, Timestamp};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::Postgres;
use super::row::RowExt;
use super::writer::Write;
use crate::listing::{Dialect, Listing, Order, TASK_COLUMNS};
use crate::row::{TaskRow, event_rows, first_event, parse, status, to_sql, wait_for_events};
use crate::value::Value;
use crate::{
    Commit, Cursor, EventFilter, KeyId, Page, Placement, Published, StoreError, StoredEvent, StoredTask,
    TaskFilter, Tasks,
};

#[async_trait]
impl Tasks for Postgres {
    async fn publish(
        &self,
        record: TaskRecord,
        first: Recorded,
        owner: KeyId,
    ) -> Result<Published, StoreError> {
        let (row, first) = (TaskRow::of(&record)?, first_event(&record, &first)?);
        if let Some(seq) = self.writer.write(Write::Publish { row, first, owner }).await? {
            return Ok(Published::New { seq });
        }
        let existing = self
            .task(record.id)
            .await?
            .ok_or_else(|| StoreError::corrupt(format_args!("task {}: indexed but not there", record.id)))?;
        Ok(Published::Existing(Box::new(existing)))
    }

    async fn commit(
        &self,
        expected_version: u64,
        record: &TaskRecord,
        events: Vec<Recorded>,
        placement: Option<Placement>,
    ) -> Result<Commit, StoreError> {
        let Some(events) = event_rows(self, expected_version, record, &events).await? else {
            return Ok(Commit::Conflict);
        };
        let row = TaskRow::of(record)?;
        let write = Write::Commit { expected: expected_version, row, events, placement };
        Ok(self.writer.write(write).await?.map_or(Commit::Conflict, |seq| Commit::Done { seq }))
    }

    async fn task(&self, id: TaskId) -> Result<Option<StoredTask>, StoreError> {
        let sql = format!("SELECT {TASK_COLUMNS} FROM tasks WHERE task_id = $1");
        self.query_opt(&sql, &[&id.0.as_slice()]).await?.as_ref().map(stored_task).transpose()
    }

    async fn history(&self, id: TaskId) -> Result<Vec<StoredEvent>, StoreError> {
        self.events(0, EventFilter { task: Some(id), requester: None }, i64::MAX).await
    }

    async fn events_after(
        &self,
        seq: u64,
        filter: EventFilter,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        self.events(seq, filter, to_sql(limit as u64)).await
    }

    async fn last_seq(&self) -> Result<u64, StoreError> {
        let row = self.query_opt("SELECT coalesce(max(seq), 0) FROM events", &[]).await?;
        row.map_or(Ok(0), |row| row.number(0))
    }

    async fn wait_for_events(&self, after: u64, within: Duration) -> Result<bool, StoreError> {
        wait_for_events(self, &self.committed, after, within).await
    }

    async fn list(
        &self,
        filter: TaskFilter,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        self.page(&Listing { filter, cursor, limit, order: Order::NewestFirst }).await
    }

    async fn counts(&self) -> Result<BTreeMap<Status, u64>, StoreError> {
        let mut counts: BTreeMap<_, _> = Status::ALL.into_iter().map(|status| (status, 0)).collect();
        for row in self.query("SELECT status, tasks FROM task_counts", &[]).await? {
            counts.insert(status(row.column(0)?)?, row.number(1)?);
        }
        Ok(counts)
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<TaskId>, StoreError> {
        let sql = "SELECT task_id FROM tasks WHERE next_due <= $1 ORDER BY next_due LIMIT $2";
        let rows = self.query(sql, &[&to_sql(now.unix()), &to_sql(limit as u64)]).await?;
        rows.iter().map(|row| row.task_id(0)).collect()
    }

    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        let sql = "SELECT next_due FROM tasks WHERE next_due IS NOT NULL ORDER BY next_due LIMIT 1";
        self.query_opt(sql, &[]).await?.map(|row| row.time(0)).transpose()
    }

    async fn open_tasks(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        let filter = TaskFilter { status: Some(Status::Open), ..TaskFilter::default() };
        self.page(&Listing { filter, cursor, limit, order: Order::OldestFirst }).await
    }

    async fn held(
        &self,
        provider: Option<Address>,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let filter = TaskFilter { status: Some(Status::Accepted), provider, ..TaskFilter::default() };
        self.page(&Listing { filter, cursor, limit, order: Order::OldestFirst }).await
    }
}

impl Postgres {
    async fn page(&self, listing: &Listing) -> Result<Page, StoreError> {
        let (sql, values) = listing.query(Dialect::Postgres);
        let rows = self.query(&sql, &params(&values)).await?;
        let rows = rows
            .iter()
            .map(|row| Ok((Cursor { row: row.number(0)?, created_at: row.number(1)? }, stored_task(row)?)))
            .collect::<Result<_, StoreError>>()?;
        Ok(listing.page(rows))
    }

    async fn events(
        &self,
        seq: u64,
        filter: EventFilter,
        limit: i64,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let mut values = vec![Value::Int(to_sql(seq)), Value::Int(limit)];
        let mut conditions = String::new();
        if let Some(task) = filter.task {
            values.push(Value::Bytes(task.0.to_vec()));
            conditions += &format!(" AND task = (SELECT id FROM tasks WHERE task_id = ${})", values.len());
        }
        if let Some(requester) = filter.requester {
            values.push(Value::Bytes(requester.to_vec()));
            conditions += &format!(" AND events.requester = ${}", values.len());
        }
        let sql = format!(
            "SELECT seq, task_id, events.status, recorded FROM events JOIN tasks ON tasks.id = events.task
             WHERE seq > $1{conditions} ORDER BY seq LIMIT $2"
        );
        self.query(&sql, &params(&values)).await?.iter().map(|row| stored_event(row, 0)).collect()
    }
}

/// Values as a statement's parameters.
pub(super) fn params(values: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    values.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}

/// Reads a row of [`TASK_COLUMNS`].
fn stored_task(row: &Row) -> Result<StoredTask, StoreError> {
    let id = row.task_id(2)?;
    let record: TaskRecord = parse(row.column(5)?, || format!("record of task {id}"))?;
    if record.id != id {
        return Err(StoreError::corrupt(format_args!("task {id} has the record of {}", record.id)));
    }
    Ok(StoredTask { record, owner: row.column::<&str>(3)?.parse()?, node: row.opt_bytes32(4)? })
}

/// Reads a sequence, a task's id, a status and a recorded event, from a place on.
pub(super) fn stored_event(row: &Row, from: usize) -> Result<StoredEvent, StoreError> {
    let seq = row.number(from)?;
    Ok(StoredEvent {
        seq,
        task_id: row.task_id(from + 1)?,
        status: status(row.column(from + 2)?)?,
        recorded: parse(row.column(from + 3)?, || format!("event {seq}"))?,
    })
}
