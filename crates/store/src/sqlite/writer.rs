//! The thread that writes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use taskmarket::Status;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::{Options, StoreError, WriteStats};

/// The handle of the thread that writes.
#[derive(Debug)]
pub(super) struct Writer {
    requests: Option<mpsc::Sender<Message>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    counters: Arc<Counters>,
    committed: watch::Sender<()>,
    wait: Duration,
    answer: Duration,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    commits: AtomicU64,
}

enum Message {
    Request(Box<dyn Request>),
    Close,
}

impl Writer {
    /// Starts the thread. It keeps the folder locked until it ends, and the thread that takes in the log with it.
    pub(super) fn start(
        connection: Connection,
        log: JoinHandle<()>,
        lock: File,
        options: &Options,
    ) -> Result<Self, StoreError> {
        let (requests, queue) = mpsc::channel(options.queue.max(1));
        let counters = Arc::new(Counters::default());
        let committed = watch::Sender::new(());
        let batch = options.batch.max(1);
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn({
                let (counters, committed) = (counters.clone(), committed.clone());
                move || {
                    serve(&connection, queue, batch, &counters, &committed);
                    drop(connection);
                    if log.join().is_err() {
                        tracing::error!("the thread of the store's log panicked");
                    }
                    drop(lock);
                }
            })
            .map_err(|error| StoreError::Backend(Arc::new(error)))?;
        Ok(Self {
            requests: Some(requests),
            thread: Mutex::new(Some(thread)),
            counters,
            committed,
            wait: options.wait,
            answer: options.answer,
        })
    }

    /// Has `work` done in a transaction, and answers when that is durable. What `work` did before it failed is undone. It is done
    /// again where a write that shares the transaction fails.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        work: impl Fn(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let request = Pending { work, result: None, answer };
        self.send(Message::Request(Box::new(request))).await?;
        let answered = timeout(self.answer, answered).await.map_err(|_| StoreError::TimedOut)?;
        answered.map_err(|_| StoreError::Closed)?
    }

    /// Changes with every commit.
    pub(super) fn committed(&self) -> &watch::Sender<()> {
        &self.committed
    }

    pub(super) async fn close(&self) {
        if matches!(self.send(Message::Close).await, Err(StoreError::Busy)) {
            tracing::error!("the store's queue stayed full; it closes when its last user is gone");
            return;
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let joining = tokio::task::spawn_blocking(move || thread.join());
            if !matches!(timeout(self.answer, joining).await, Ok(Ok(Ok(())))) {
                tracing::error!("the store's writer did not end in order");
            }
        }
    }

    pub(super) fn stats(&self) -> WriteStats {
        WriteStats {
            requests: self.counters.requests.load(Ordering::Relaxed),
            commits: self.counters.commits.load(Ordering::Relaxed),
        }
    }

    async fn send(&self, message: Message) -> Result<(), StoreError> {
        let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
        requests.send_timeout(message, self.wait).await.map_err(|error| match error {
            mpsc::error::SendTimeoutError::Timeout(_) => StoreError::Busy,
            mpsc::error::SendTimeoutError::Closed(_) => StoreError::Closed,
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The thread ends when nobody can send to it any more, after what is queued.
        self.requests = None;
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(_)) = thread.map(JoinHandle::join) {
            tracing::error!("the store's writer panicked");
        }
    }
}

/// The transaction that a write is carried out in, which others share.
pub(super) struct Transaction<'c> {
    connection: &'c Connection,
    counted: RefCell<Vec<(Status, i64)>>,
}

impl Transaction<'_> {
    /// Counts tasks that came to a status, or left it. The counters are written once, with the commit.
    pub(super) fn count(&self, status: Status, change: i64) {
        self.counted.borrow_mut().push((status, change));
    }

    fn write_counts(&self) -> rusqlite::Result<()> {
        let mut changes = BTreeMap::<_, i64>::new();
        for (status, change) in self.counted.take() {
            *changes.entry(status).or_default() += change;
        }
        let mut statement = self.prepare_cached(
            "INSERT INTO task_counts (status, tasks) VALUES (?1, ?2)
             ON CONFLICT DO UPDATE SET tasks = tasks + excluded.tasks",
        )?;
        for (status, change) in changes.into_iter().filter(|(_, change)| *change != 0) {
            statement.execute((status.as_str(), change))?;
        }
        Ok(())
    }
}

impl Deref for Transaction<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection
    }
}

/// A write of any type of answer.
trait Request: Send {
    /// Whether nobody waits for the answer any more.
    fn is_abandoned(&self) -> bool;
    /// Does the work; `false` if it failed and must be undone.
    fn run(&mut self, transaction: &Transaction<'_>) -> bool;
    /// Tells the caller, once the fate of the transaction is known.
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Pending<T, F> {
    work: F,
    result: Option<Result<T, StoreError>>,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Request for Pending<T, F>
where
    T: Send,
    F: Fn(&Transaction<'_>) -> Result<T, StoreError> + Send,
{
    fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }

    fn run(&mut self, transaction: &Transaction<'_>) -> bool {
        let result = (self.work)(transaction);
        self.result.insert(result).is_ok()
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        let result = match (committed, self.result) {
            (Ok(()), Some(result)) => result,
            (Err(error), _) => Err(error),
            (Ok(()), None) => Err(StoreError::Closed),
        };
        // A caller that went away is told nothing.
        let _ = self.answer.send(result);
    }
}

fn serve(
    connection: &Connection,
    mut queue: mpsc::Receiver<Message>,
    batch: usize,
    counters: &Counters,
    committed_any: &watch::Sender<()>,
) {
    let mut requests = Vec::with_capacity(batch);
    let mut closing = false;
    while let Some(first) = queue.blocking_recv() {
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Request(request) if request.is_abandoned() => {}
                Message::Request(request) => requests.push(request),
                Message::Close => closing = true,
            }
            next = if requests.len() < batch { queue.try_recv().ok() } else { None };
        }
        if closing {
            queue.close();
        }
        if requests.is_empty() {
            continue;
        }
        let committed = run_together(connection, &mut requests);
        if let Err(error) = &committed {
            tracing::error!(%error, requests = requests.len(), "a commit of the store failed");
        }
        counters.requests.fetch_add(requests.len() as u64, Ordering::Relaxed);
        counters.commits.fetch_add(1, Ordering::Relaxed);
        committed_any.send_replace(());
        for request in requests.drain(..) {
            request.answer(committed.clone());
        }
    }
}

/// Carries requests out in one transaction, and undoes those that fail, each by itself.
///
/// SQLite copies each page that is changed within a savepoint, which takes as long as the writes themselves. So there is none as long as
/// no request fails; where one does, everything is undone and done again with savepoints.
fn run_together(connection: &Connection, requests: &mut [Box<dyn Request>]) -> Result<(), StoreError> {
    let none_failed =
        transact(connection, |transaction| Ok(requests.iter_mut().all(|request| request.run(transaction))))?;
    if !none_failed {
        transact(connection, |transaction| run_apart(transaction, requests).map(|()| true))?;
    }
    Ok(())
}

fn run_apart(transaction: &Transaction<'_>, requests: &mut [Box<dyn Request>]) -> rusqlite::Result<()> {
    for request in requests {
        execute(transaction, "SAVEPOINT request")?;
        let counted = transaction.counted.borrow().len();
        if !request.run(transaction) {
            execute(transaction, "ROLLBACK TO request")?;
            transaction.counted.borrow_mut().truncate(counted);
        }
        execute(transaction, "RELEASE request")?;
    }
    Ok(())
}

/// Commits what `work` does if it says so, and undoes it otherwise.
fn transact(
    connection: &Connection,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<bool>,
) -> Result<bool, StoreError> {
    let done = try_transact(connection, work);
    // SQLite itself rolls back after some errors.
    if !connection.is_autocommit() {
        let _ = connection
            .execute_batch("ROLLBACK")
            .inspect_err(|error| tracing::error!(%error, "the store could not roll back"));
    }
    Ok(done?)
}

fn try_transact(
    connection: &Connection,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<bool>,
) -> rusqlite::Result<bool> {
    execute(connection, "BEGIN IMMEDIATE")?;
    let transaction = Transaction { connection, counted: RefCell::default() };
    let is_wanted = work(&transaction)?;
    if is_wanted {
        transaction.write_counts()?;
        execute(connection, "COMMIT")?;
    }
    Ok(is_wanted)
}

fn execute(connection: &Connection, sql: &str) -> rusqlite::Result<usize> {
    connection.prepare_cached(sql)?.execute([])
}
