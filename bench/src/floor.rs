//! The floors: what the disk, and the databases by themselves, do with the same rows.
//!
//! As in the store, one thread takes the writes that wait, carries them out together, and answers when that is on disk.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, anyhow};
use rusqlite::{Connection, params_from_iter};
use store::{Options, Sqlite, Store, Table, Value};
use tokio::sync::{mpsc, oneshot};

/// The rows that the store made of published tasks, one task and one event for each.
#[derive(Debug)]
pub(crate) struct Rows {
    /// Of the tables that a publication adds a row to: the table, and its rows.
    pub(crate) tables: Vec<(&'static Table, Vec<Vec<Value>>)>,
    /// How many publications.
    pub(crate) count: usize,
}

impl Rows {
    /// Reads the first rows of a store.
    pub(crate) async fn of(store: &dyn Store, count: usize) -> anyhow::Result<Arc<Self>> {
        let mut tables = Vec::new();
        for table in store::TABLES.iter().filter(|table| ["tasks", "events"].contains(&table.name)) {
            tables.push((table, store.rows(table, None, count).await?));
        }
        Ok(Arc::new(Self { tables, count }))
    }

    /// The bytes of one publication's rows.
    fn bytes(&self, place: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for value in self.tables.iter().filter_map(|(_, rows)| rows.get(place)).flatten() {
            match value {
                Value::Null => {}
                Value::Int(number) => bytes.extend(number.to_le_bytes()),
                Value::Text(text) => bytes.extend(text.as_bytes()),
                Value::Bytes(value) => bytes.extend(value),
            }
        }
        bytes
    }

    /// The mean size of one publication's rows.
    pub(crate) fn mean_bytes(&self) -> f64 {
        let all: usize = (0..self.count).map(|place| self.bytes(place).len()).sum();
        all as f64 / self.count.max(1) as f64
    }
}

/// A thread that carries writes out in groups.
#[derive(Debug)]
pub(crate) struct Group {
    requests: mpsc::Sender<Request>,
    thread: JoinHandle<anyhow::Result<()>>,
}

/// The handle by which callers write.
pub(crate) type Requests = mpsc::Sender<Request>;

/// One write, by the place of its rows.
#[derive(Debug)]
pub(crate) struct Request {
    place: usize,
    answer: oneshot::Sender<()>,
}

impl Group {
    /// Starts the thread, with the store's limits; `commit` makes some writes durable.
    pub(crate) fn start(
        mut commit: impl FnMut(&[usize]) -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let options = Options::default();
        let (requests, mut queue) = mpsc::channel::<Request>(options.queue);
        let thread = std::thread::Builder::new().name("floor".to_owned()).spawn(move || {
            let mut group = Vec::with_capacity(options.batch);
            let mut places = Vec::with_capacity(options.batch);
            while let Some(first) = queue.blocking_recv() {
                let mut next = Some(first);
                while let Some(request) = next {
                    places.push(request.place);
                    group.push(request.answer);
                    next = if group.len() < options.batch { queue.try_recv().ok() } else { None };
                }
                commit(&places)?;
                places.clear();
                for answer in group.drain(..) {
                    answer.send(()).map_err(|()| anyhow!("a caller went away"))?;
                }
            }
            Ok(())
        })?;
        Ok(Self { requests, thread })
    }

    /// What callers write by.
    pub(crate) fn requests(&self) -> Requests {
        self.requests.clone()
    }

    /// Ends the thread, once every caller has let go of [`Group::requests`].
    pub(crate) async fn finish(self) -> anyhow::Result<()> {
        drop(self.requests);
        let ended = tokio::task::spawn_blocking(|| self.thread.join()).await?;
        ended.map_err(|_| anyhow!("the floor's thread panicked"))?
    }
}

/// Writes one publication's rows, and waits until they are durable.
pub(crate) async fn write(requests: Requests, place: usize) -> anyhow::Result<()> {
    let (answer, answered) = oneshot::channel();
    requests.send(Request { place, answer }).await.context("the floor's thread ended")?;
    answered.await.context("the floor's thread ended")
}

/// Rows appended to a file, and flushed.
pub(crate) fn file(dir: &Path, rows: Arc<Rows>) -> anyhow::Result<Group> {
    let mut file = File::create(dir.join("floor"))?;
    Group::start(move |places| {
        let bytes: Vec<u8> = places.iter().flat_map(|place| rows.bytes(*place)).collect();
        file.write_all(&bytes)?;
        Ok(file.sync_data()?)
    })
}

/// Rows inserted into the store's own tables, with their indexes, and nothing else.
pub(crate) async fn sqlite(dir: &Path, rows: Arc<Rows>) -> anyhow::Result<Group> {
    let connection = connect(dir).await?;
    let inserts: Vec<_> = rows.tables.iter().map(|(table, _)| insert(table)).collect();
    Group::start(move |places| {
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        for place in places {
            for ((_, rows), sql) in rows.tables.iter().zip(&inserts) {
                connection.prepare_cached(sql)?.execute(params_from_iter(&rows[*place]))?;
            }
        }
        connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    })
}

/// A connection to a new database with the store's tables, set as the store's writer is.
pub(crate) async fn connect(dir: &Path) -> anyhow::Result<Connection> {
    Sqlite::open(dir).await?.close().await;
    let connection = Connection::open(dir.join("relay.db"))?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "cache_size", -64 * 1024)?;
    connection.pragma_update(None, "wal_autocheckpoint", 4000)?;
    Ok(connection)
}

/// The statement that adds a row to a table.
pub(crate) fn insert(table: &Table) -> String {
    let places: Vec<_> = (1..=table.columns.len()).map(|place| format!("?{place}")).collect();
    format!("INSERT INTO {} ({}) VALUES ({})", table.name, table.columns.join(", "), places.join(", "))
}
