//! Tasks and their histories.

use std::collections::BTreeMap;

use async_trait::async_trait;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use serde::Serialize;
use serde::de::DeserializeOwned;
use taskmarket::{Address, B256, Bytes32, Provider, Recorded, Status, TaskId, TaskRecord, Timestamp};

use super::listing::{self, Listing};
use super::{Sqlite, to_sql};
use crate::{
    Commit, Cursor, EventFilter, KeyId, Page, Published, StoreError, StoredEvent, StoredTask, TaskFilter,
    Tasks,
};

#[async_trait]
impl Tasks for Sqlite {
    async fn publish(
        &self,
        record: TaskRecord,
        first: Recorded,
        owner: KeyId,
    ) -> Result<Published, StoreError> {
        if (first.version, record.version) != (1, 1) {
            return Err(StoreError::Mismatch { expected: 0, version: record.version });
        }
        // Callers make the texts, so that the one writer has less to do.
        let (row, first) = (TaskRow::of(&record)?, text(&first)?);
        self.write(move |connection| publish(connection, &row, &first, &owner)).await
    }

    async fn commit(
        &self,
        expected_version: u64,
        record: &TaskRecord,
        events: Vec<Recorded>,
        node: Option<Bytes32>,
    ) -> Result<Commit, StoreError> {
        let leads = !events.is_empty()
            && events.iter().map(|event| event.version).eq(expected_version + 1..=record.version);
        if !leads {
            return Err(StoreError::Mismatch { expected: expected_version, version: record.version });
        }
        let row = TaskRow::of(record)?;
        let texts = events.iter().map(text).collect::<Result<Vec<_>, _>>()?;
        self.write(move |connection| {
            let Some(kept) = kept(connection, row.id, expected_version)? else { return Ok(Commit::Conflict) };
            let statuses = statuses(connection, &kept, &row, &events)?;
            replace(connection, &kept, &row, node)?;
            let mut seq = 0;
            for (status, text) in statuses.iter().zip(&texts) {
                seq = append(connection, kept.row, row.requester, *status, text)?;
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

    async fn list(
        &self,
        filter: TaskFilter,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let listing = Listing { filter, cursor, limit, order: listing::Order::NewestFirst };
        self.read(move |connection| listing.page(connection)).await
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
        let listing = Listing { filter, cursor, limit, order: listing::Order::OldestFirst };
        self.read(move |connection| listing.page(connection)).await
    }

    async fn held(
        &self,
        provider: Option<Address>,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let filter = TaskFilter { status: Some(Status::Accepted), provider, ..TaskFilter::default() };
        let listing = Listing { filter, cursor, limit, order: listing::Order::OldestFirst };
        self.read(move |connection| listing.page(connection)).await
    }
}

/// A task's columns.
struct TaskRow {
    id: TaskId,
    version: u64,
    status: Status,
    requester: Address,
    provider: Option<Address>,
    attempts: u32,
    gpu_type: String,
    created_at: Timestamp,
    next_due: Option<Timestamp>,
    record: String,
}

impl TaskRow {
    fn of(record: &TaskRecord) -> Result<Self, StoreError> {
        Ok(Self {
            id: record.id,
            version: record.version,
            status: record.status(),
            requester: record.task.requester,
            provider: record.provider.map(|Provider(provider)| provider),
            attempts: record.attempts,
            gpu_type: record.task.config.gpu_type.to_lowercase(),
            created_at: record.created_at,
            next_due: taskmarket::next_due(record),
            record: text(record)?,
        })
    }
}

fn publish(
    connection: &Connection,
    row: &TaskRow,
    first: &str,
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
    count(connection, row.status, 1)?;
    let seq = append(connection, task, row.requester, row.status, first)?;
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

/// The status after each event. Only the last one's is the new record's; those before it take folding the events again.
fn statuses(
    connection: &Connection,
    kept: &Kept,
    row: &TaskRow,
    events: &[Recorded],
) -> Result<Vec<Status>, StoreError> {
    let Some((_, before)) = events.split_last().filter(|(_, before)| !before.is_empty()) else {
        return Ok(vec![row.status]);
    };
    let old: String = connection
        .prepare_cached("SELECT record FROM tasks WHERE id = ?1")?
        .query_row([kept.row], |row| row.get(0))?;
    let mut record: TaskRecord = parse(&old, || format!("record of task {}", row.id))?;
    let mut statuses: Vec<_> = before
        .iter()
        .map(|recorded| {
            taskmarket::apply(&mut record, recorded.at, &recorded.event);
            record.status()
        })
        .collect();
    statuses.push(row.status);
    Ok(statuses)
}

fn replace(
    connection: &Connection,
    kept: &Kept,
    row: &TaskRow,
    node: Option<Bytes32>,
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
            node.as_ref().map(|node| node.0.as_slice()),
        ])?;
    if kept.status != row.status {
        count(connection, kept.status, -1)?;
        count(connection, row.status, 1)?;
    }
    Ok(())
}

fn count(connection: &Connection, status: Status, change: i64) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO task_counts (status, tasks) VALUES (?1, ?2)
             ON CONFLICT DO UPDATE SET tasks = tasks + excluded.tasks",
        )?
        .execute((status.as_str(), change))?;
    Ok(())
}

fn append(
    connection: &Connection,
    task: i64,
    requester: Address,
    status: Status,
    recorded: &str,
) -> Result<u64, StoreError> {
    connection
        .prepare_cached("INSERT INTO events (task, requester, status, recorded) VALUES (?1, ?2, ?3, ?4)")?
        .execute((task, requester.as_slice(), status.as_str(), recorded))?;
    // Row ids count up from 1 and events are never deleted.
    Ok(connection.last_insert_rowid().unsigned_abs())
}

/// The columns that [`stored_task`] reads, of a table called `tasks`.
pub(super) const TASK_COLUMNS: &str =
    "tasks.id, tasks.created_at, tasks.task_id, tasks.owner, tasks.node, tasks.record";

fn load(connection: &Connection, id: TaskId) -> Result<Option<StoredTask>, StoreError> {
    let mut statement =
        connection.prepare_cached(&format!("SELECT {TASK_COLUMNS} FROM tasks WHERE task_id = ?1"))?;
    let mut rows = statement.query([id.0.as_slice()])?;
    rows.next()?.map(stored_task).transpose()
}

/// Reads a row of [`TASK_COLUMNS`].
pub(super) fn stored_task(row: &Row<'_>) -> Result<StoredTask, StoreError> {
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
    let mut rows = statement.query(params_from_iter(values))?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        events.push(stored_event(row)?);
    }
    Ok(events)
}

fn stored_event(row: &Row<'_>) -> Result<StoredEvent, StoreError> {
    let seq: u64 = row.get(0)?;
    let wrong = |error| StoreError::corrupt(format_args!("event {seq}: {error}"));
    Ok(StoredEvent {
        seq,
        task_id: TaskId(B256::from(row.get::<_, [u8; 32]>(1)?)),
        status: status(row.get_ref(2)?.as_str().map_err(wrong)?)?,
        recorded: parse(row.get_ref(3)?.as_str().map_err(wrong)?, || format!("event {seq}"))?,
    })
}

fn status(word: &str) -> Result<Status, StoreError> {
    word.parse().map_err(StoreError::corrupt)
}

fn text(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Backend(std::sync::Arc::new(error)))
}

fn parse<T: DeserializeOwned>(json: &str, what: impl FnOnce() -> String) -> Result<T, StoreError> {
    serde_json::from_str(json).map_err(|error| StoreError::corrupt(format_args!("{}: {error}", what())))
}
