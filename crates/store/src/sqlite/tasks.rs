//! Tasks and their histories.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use taskmarket::{Address, B256, Bytes32, Recorded, Status, TaskId, TaskRecord, Timestamp};

use super::writer::Transaction;
use super::{Sqlite, attempts, collect, to_sql, webhooks};
use crate::listing::{Dialect, Listing, Order, TASK_COLUMNS};
use crate::row::{EventRow, TaskRow, event_rows, first_event, parse, status, wait_for_events};
use crate::{
    Commit, Cursor, EventFilter, KeyId, Page, Placement, Published, StoreError, StoredEvent, StoredTask,
    TaskFilter, Tasks,
};

#[async_trait]
impl Tasks for Sqlite {
    async fn publish(
        &self,
        record: TaskRecord,
        first: Recorded,
        owner: KeyId,
    ) -> Result<Published, StoreError> {
        // Callers make the texts, so that the one writer has less to do.
        let (row, first) = (TaskRow::of(&record)?, first_event(&record, &first)?);
        self.write(move |connection| publish(connection, &row, &first, &owner)).await
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
        self.write(move |connection| {
            let Some(kept) = kept(connection, row.id, expected_version)? else { return Ok(Commit::Conflict) };
            replace(connection, &kept, &row, placement.as_ref())?;
            let mut seq = 0;
            for event in &events {
                seq = append(connection, kept.row, row.requester, event)?;
                attempts::change(connection, kept.row, event, placement.as_ref())?;
                webhooks::wake(connection, kept.row, event.at)?;
            }
            Ok(Commit::Done { seq })
        })
        .await
    }

    async fn task(&self, id: TaskId) -> Result<Option<StoredTask>, StoreError> {
        self.read(move |connection| load(connection, id)).await
    }

    async fn history(&self, id: TaskId) -> Result<Vec<StoredEvent>, StoreError> {
        let filter = EventFilter { task: Some(id), requester: None };
        self.read(move |connection| events_after(connection, 0, filter, None)).await
    }

    async fn events_after(
        &self,
        seq: u64,
        filter: EventFilter,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        self.read(move |connection| events_after(connection, seq, filter, Some(limit))).await
    }

    async fn last_seq(&self) -> Result<u64, StoreError> {
        self.read(|connection| {
            let seq: Option<u64> =
                connection.prepare_cached("SELECT max(seq) FROM events")?.query_row([], |row| row.get(0))?;
            Ok(seq.unwrap_or(0))
        })
        .await
    }

    async fn wait_for_events(&self, after: u64, within: Duration) -> Result<bool, StoreError> {
        wait_for_events(self, self.writer.committed(), after, within).await
    }

    async fn list(
        &self,
        filter: TaskFilter,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let listing = Listing { filter, cursor, limit, order: Order::NewestFirst };
        self.read(move |connection| page(connection, &listing)).await
    }

    async fn counts(&self) -> Result<BTreeMap<Status, u64>, StoreError> {
        self.read(|connection| {
            let mut counts: BTreeMap<_, _> = Status::ALL.into_iter().map(|status| (status, 0)).collect();
            let mut statement = connection.prepare_cached("SELECT status, tasks FROM task_counts")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                counts.insert(status(row.get_ref(0)?.as_str().map_err(StoreError::corrupt)?)?, row.get(1)?);
            }
            Ok(counts)
        })
        .await
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<TaskId>, StoreError> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT task_id FROM tasks WHERE next_due <= ?1 ORDER BY next_due LIMIT ?2",
            )?;
            let rows = statement
                .query_map((to_sql(now.unix()), to_sql(limit as u64)), |row| row.get::<_, [u8; 32]>(0))?;
            rows.map(|id| Ok(TaskId(B256::from(id?)))).collect()
        })
        .await
    }

    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        self.read(|connection| {
            let due: Option<u64> = connection
                .prepare_cached(
                    "SELECT next_due FROM tasks WHERE next_due IS NOT NULL ORDER BY next_due LIMIT 1",
                )?
                .query_row([], |row| row.get(0))
                .optional()?;
            Ok(due.map(Timestamp::from_unix))
        })
        .await
    }

    async fn open_tasks(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        let filter = TaskFilter { status: Some(Status::Open), ..TaskFilter::default() };
        let listing = Listing { filter, cursor, limit, order: Order::OldestFirst };
        self.read(move |connection| page(connection, &listing)).await
    }

    async fn held(
        &self,
        provider: Option<Address>,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let filter = TaskFilter { status: Some(Status::Accepted), provider, ..TaskFilter::default() };
        let listing = Listing { filter, cursor, limit, order: Order::OldestFirst };
        self.read(move |connection| page(connection, &listing)).await
    }
}

fn publish(
    connection: &Transaction<'_>,
    row: &TaskRow,
    first: &EventRow,
    owner: &KeyId,
) -> Result<Published, StoreError> {
    let inserted = connection
        .prepare_cached(
            "INSERT INTO tasks (task_id, version, status, requester, provider, attempts, gpu_type, created_at,
                                next_due, owner, record)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT (task_id) DO NOTHING",
        )?
        .execute(params![
            row.id.0.as_slice(),
            to_sql(row.version),
            row.status.as_str(),
            row.requester.as_slice(),
            row.provider.as_ref().map(|provider| provider.as_slice()),
            row.attempts,
            row.gpu_type,
            to_sql(row.created_at.unix()),
            row.next_due.map(|due| to_sql(due.unix())),
            owner.as_str(),
            row.record,
        ])?;
    if inserted == 0 {
        let existing = load(connection, row.id)?
            .ok_or_else(|| StoreError::corrupt(format_args!("task {}: indexed but not there", row.id)))?;
        return Ok(Published::Existing(Box::new(existing)));
    }
    let task = connection.last_insert_rowid();
    connection.count(row.status, 1);
    let seq = append(connection, task, row.requester, first)?;
    Ok(Published::New { seq })
}

/// A task's row before a commit.
struct Kept {
    row: i64,
    status: Status,
}

fn kept(connection: &Connection, id: TaskId, version: u64) -> Result<Option<Kept>, StoreError> {
    let row: Option<(i64, String)> = connection
        .prepare_cached("SELECT id, status FROM tasks WHERE task_id = ?1 AND version = ?2")?
        .query_row((id.0.as_slice(), to_sql(version)), |row| row.try_into())
        .optional()?;
    row.map(|(row, word)| Ok(Kept { row, status: status(&word)? })).transpose()
}

fn replace(
    connection: &Transaction<'_>,
    kept: &Kept,
    row: &TaskRow,
    placement: Option<&Placement>,
) -> Result<(), StoreError> {
    // The right-hand sides see the old row: a host that is not named again stays with its attempt.
    connection
        .prepare_cached(
            "UPDATE tasks SET version = ?2, status = ?3, provider = ?4, attempts = ?5, next_due = ?6, record = ?7,
                    node = coalesce(?8, CASE WHEN provider IS ?4 AND attempts = ?5 THEN node END)
             WHERE id = ?1",
        )?
        .execute(params![
            kept.row,
            to_sql(row.version),
            row.status.as_str(),
            row.provider.as_ref().map(|provider| provider.as_slice()),
            row.attempts,
            row.next_due.map(|due| to_sql(due.unix())),
            row.record,
            placement.map(|placement| placement.node_id.0.as_slice()),
        ])?;
    if kept.status != row.status {
        connection.count(kept.status, -1);
        connection.count(row.status, 1);
    }
    Ok(())
}

fn append(
    connection: &Connection,
    task: i64,
    requester: Address,
    event: &EventRow,
) -> Result<u64, StoreError> {
    connection
        .prepare_cached("INSERT INTO events (task, requester, status, recorded) VALUES (?1, ?2, ?3, ?4)")?
        .execute((task, requester.as_slice(), event.status.as_str(), &event.recorded))?;
    // Row ids count up from 1 and events are never deleted.
    Ok(connection.last_insert_rowid().unsigned_abs())
}

fn page(connection: &Connection, listing: &Listing) -> Result<Page, StoreError> {
    let (sql, values) = listing.query(Dialect::Sqlite);
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query(params_from_iter(values))?;
    let rows =
        collect(rows, |row| Ok((Cursor { row: row.get(0)?, created_at: row.get(1)? }, stored_task(row)?)))?;
    Ok(listing.page(rows))
}

fn load(connection: &Connection, id: TaskId) -> Result<Option<StoredTask>, StoreError> {
    let mut statement =
        connection.prepare_cached(&format!("SELECT {TASK_COLUMNS} FROM tasks WHERE task_id = ?1"))?;
    let mut rows = statement.query([id.0.as_slice()])?;
    rows.next()?.map(stored_task).transpose()
}

/// Reads a row of [`TASK_COLUMNS`].
fn stored_task(row: &Row<'_>) -> Result<StoredTask, StoreError> {
    let id = TaskId(B256::from(row.get::<_, [u8; 32]>(2)?));
    let owner: String = row.get(3)?;
    let node: Option<[u8; 32]> = row.get(4)?;
    let json =
        row.get_ref(5)?.as_str().map_err(|error| StoreError::corrupt(format_args!("{id}: {error}")))?;
    let record: TaskRecord = parse(json, || format!("record of task {id}"))?;
    if record.id != id {
        return Err(StoreError::corrupt(format_args!("task {id} has the record of {}", record.id)));
    }
    Ok(StoredTask { record, owner: owner.parse()?, node: node.map(|node| Bytes32(B256::from(node))) })
}

fn events_after(
    connection: &Connection,
    seq: u64,
    filter: EventFilter,
    limit: Option<usize>,
) -> Result<Vec<StoredEvent>, StoreError> {
    let mut values = vec![Value::from(to_sql(seq))];
    let mut conditions = String::from("seq > ?1");
    if let Some(task) = filter.task {
        values.push(task.0.to_vec().into());
        conditions += &format!(" AND task = (SELECT id FROM tasks WHERE task_id = ?{})", values.len());
    }
    if let Some(requester) = filter.requester {
        values.push(requester.to_vec().into());
        conditions += &format!(" AND events.requester = ?{}", values.len());
    }
    // SQLite takes a negative limit for none.
    values.push(limit.map_or(-1, |limit| to_sql(limit as u64)).into());
    let sql = format!(
        "SELECT seq, task_id, events.status, recorded FROM events JOIN tasks ON tasks.id = events.task
         WHERE {conditions} ORDER BY seq LIMIT ?{}",
        values.len()
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query(params_from_iter(values))?;
    collect(rows, stored_event)
}

/// Reads a row of a sequence, a task's id, a status and a recorded event.
pub(super) fn stored_event(row: &Row<'_>) -> Result<StoredEvent, StoreError> {
    let seq: u64 = row.get(0)?;
    let wrong = |error| StoreError::corrupt(format_args!("event {seq}: {error}"));
    Ok(StoredEvent {
        seq,
        task_id: TaskId(B256::from(row.get::<_, [u8; 32]>(1)?)),
        status: status(row.get_ref(2)?.as_str().map_err(wrong)?)?,
        recorded: parse(row.get_ref(3)?.as_str().map_err(wrong)?, || format!("event {seq}"))?,
    })
}
