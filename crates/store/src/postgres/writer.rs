//! The thread that writes tasks.
//!
//! It has a runtime of its own, for its one connection and nothing else: on its callers' it would wait behind the signatures that they
//! check.

use std::collections::HashSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use deadpool_postgres::{Client, Pool};
use futures_util::future::maybe_done;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_postgres::{Error, Statement};

use super::failure::{connecting, is_lost, reading, writing};
use super::listener::CHANNEL;
use crate::attempts::AttemptChange;
use crate::row::{EventRow, TaskRow, to_sql};
use crate::{KeyId, Options, Outcome, Placement, StoreError, WriteStats};

/// Keeps those of many tasks that are new, each with its first event. Answers which they are, and their events' places in the commit
/// sequence. The arrays have one element for each task, and no task twice. Nobody else publishes meanwhile: whoever runs this holds the
/// commit lock.
const PUBLISH: &str = "
    WITH fresh AS MATERIALIZED (
        SELECT nextval('tasks_id_seq') AS id, given.*,
            (SELECT coalesce(max(seq), 0) FROM events) + row_number() OVER (ORDER BY place) AS seq
        FROM unnest($1::bytea[], $2::text[], $3::bytea[], $4::text[], $5::bigint[], $6::bigint[], $7::text[], $8::text[], $9::text[])
            WITH ORDINALITY
            AS given (task_id, status, requester, gpu_type, created_at, next_due, owner, record, recorded, place)
        WHERE NOT EXISTS (SELECT FROM tasks WHERE tasks.task_id = given.task_id)
    ), kept AS (
        INSERT INTO tasks
            (id, task_id, version, status, requester, attempts, gpu_type, created_at, next_due, owner, record)
        SELECT id, task_id, 1, status, requester, 0, gpu_type, created_at, next_due, owner, record FROM fresh
    ), appended AS (
        INSERT INTO events (seq, task, requester, status, recorded)
        SELECT seq, id, requester, status, recorded FROM fresh
    ), counted AS (
        INSERT INTO task_counts (status, tasks) SELECT status, count(*) FROM fresh GROUP BY status
        ON CONFLICT (status) DO UPDATE SET tasks = task_counts.tasks + excluded.tasks
    )
    SELECT place, seq FROM fresh";
const COMMIT: &str =
    "SELECT commit_task($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)";

/// A write of a task.
pub(super) enum Write {
    Publish { row: TaskRow, first: EventRow, owner: KeyId },
    Commit { expected: u64, row: TaskRow, events: Vec<EventRow>, placement: Option<Placement> },
}

/// The last event's place in the commit sequence; `None` where the task was not as the write expects it.
type Answer = Result<Option<u64>, StoreError>;

/// The handle of the thread that writes.
pub(super) struct Writer {
    requests: mpsc::Sender<Message>,
    thread: Mutex<Option<JoinHandle<()>>>,
    counters: Arc<Counters>,
    wait: Duration,
    answer: Duration,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    commits: AtomicU64,
}

enum Message {
    Request(Box<Request>),
    Close,
}

struct Request {
    write: Write,
    answer: oneshot::Sender<Answer>,
}

impl Writer {
    /// Starts the thread. It ends when it is closed, or after what is queued when nobody can send to it any more.
    pub(super) fn start(pool: Pool, options: &Options) -> Result<Self, StoreError> {
        let failed = |error| StoreError::Backend(Arc::new(error));
        let (requests, queue) = mpsc::channel(options.queue.max(1));
        let counters = Arc::new(Counters::default());
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let serving = serve(pool, queue, options.batch.max(1), counters.clone());
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || runtime.block_on(serving))
            .map_err(failed)?;
        Ok(Self {
            requests,
            thread: Mutex::new(Some(thread)),
            counters,
            wait: options.wait,
            answer: options.answer,
        })
    }

    /// Has a write done, and answers when it is durable.
    pub(super) async fn write(&self, write: Write) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.send(Message::Request(Box::new(Request { write, answer }))).await?;
        let answered = timeout(self.answer, answered).await.map_err(|_| StoreError::TimedOut)?;
        answered.map_err(|_| StoreError::Closed)?
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
        self.requests.send_timeout(message, self.wait).await.map_err(|error| match error {
            mpsc::error::SendTimeoutError::Timeout(_) => StoreError::Busy,
            mpsc::error::SendTimeoutError::Closed(_) => StoreError::Closed,
        })
    }
}

async fn serve(pool: Pool, mut queue: mpsc::Receiver<Message>, batch: usize, counters: Arc<Counters>) {
    let mut requests = Vec::with_capacity(batch);
    while let Some(first) = queue.recv().await {
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Request(request) if request.answer.is_closed() => {}
                Message::Request(request) => requests.push(request),
                Message::Close => queue.close(),
            }
            next = if requests.len() < batch { queue.try_recv().ok() } else { None };
        }
        if requests.is_empty() {
            continue;
        }
        let group: Vec<_> = requests.iter().map(|request| &request.write).collect();
        let answers = carry_out(&pool, &group, &counters).await;
        for (request, answer) in requests.drain(..).zip(answers) {
            // A caller that went away is told nothing.
            let _ = request.answer.send(answer);
        }
    }
}

/// Carries writes out in one transaction. If the server refuses one, each is carried out by itself, so that it harms no other.
async fn carry_out(pool: &Pool, group: &[&Write], counters: &Counters) -> Vec<Answer> {
    counters.requests.fetch_add(group.len() as u64, Ordering::Relaxed);
    let client = match pool.get().await.map_err(connecting) {
        Ok(client) => client,
        Err(error) => return vec![Err(error); group.len()],
    };
    let together = carry_out_together(&client, group, counters).await;
    let error = match together {
        Ok(seqs) => return seqs.into_iter().map(Ok).collect(),
        Err(error) => error,
    };
    let is_one_writes_fault = matches!(error, StoreError::Backend(_) | StoreError::Corrupt { .. });
    if !is_one_writes_fault || group.len() == 1 {
        tracing::error!(%error, writes = group.len(), "a commit of the store failed");
        return vec![Err(error); group.len()];
    }
    let mut answers = Vec::with_capacity(group.len());
    for write in group {
        let alone = carry_out_together(&client, &[*write], counters).await;
        answers.push(alone.map(|seqs| seqs.into_iter().next().flatten()));
    }
    answers
}

async fn carry_out_together(
    client: &Client,
    group: &[&Write],
    counters: &Counters,
) -> Result<Vec<Option<u64>>, StoreError> {
    let publish = client.prepare_cached(PUBLISH).await.map_err(reading)?;
    let commit = client.prepare_cached(COMMIT).await.map_err(reading)?;
    counters.commits.fetch_add(1, Ordering::Relaxed);
    let end = format!("NOTIFY {CHANNEL}; COMMIT");
    // What follows the lock sees all that was committed before it.
    let mut steps = vec![step(batch(client, "BEGIN; SELECT take_commit_lock()"))];
    // No write of a group knows of another, so that their order is free.
    steps.push(step(run_publish(client, &publish, group)));
    for (place, write) in group.iter().enumerate() {
        if let Write::Commit { expected, row, events, placement } = write {
            let placement = placement.as_ref();
            steps.push(step(run_commit(client, &commit, place, *expected, row, events, placement)));
        }
    }
    steps.push(step(batch(client, &end)));
    let results = send_all(steps).await;
    // After a failure the server refuses what follows and ends the transaction without its changes; the first error says why.
    let mut seqs = vec![None; group.len()];
    for result in results {
        match result {
            Ok(done) => done.into_iter().for_each(|(place, seq)| seqs[place] = Some(seq)),
            Err(error) => {
                if !is_lost(&error) {
                    // Where the failure was the last step's own, the transaction may be open still.
                    let _ = client.batch_execute("ROLLBACK").await;
                }
                return Err(writing(error));
            }
        }
    }
    Ok(seqs)
}

/// Which writes of the group were done, by their places, and where their last events are in the commit sequence.
type Done = Result<Vec<(usize, u64)>, Error>;

type Step<'a> = Pin<Box<dyn Future<Output = Done> + Send + 'a>>;

fn step<'a>(step: impl Future<Output = Done> + Send + 'a) -> Step<'a> {
    Box::pin(step)
}

/// Sends all steps in their order without waiting for answers in between, and then waits for all.
async fn send_all(steps: Vec<Step<'_>>) -> Vec<Done> {
    let mut sent: Vec<_> = steps.into_iter().map(maybe_done).collect();
    // The first poll sends.
    for step in &mut sent {
        poll_fn(|context| Poll::Ready(Pin::new(&mut *step).poll(context).is_ready())).await;
    }
    let mut results = Vec::with_capacity(sent.len());
    for mut step in sent {
        (&mut step).await;
        results.extend(Pin::new(&mut step).take_output());
    }
    results
}

async fn batch(client: &Client, sql: &str) -> Done {
    client.batch_execute(sql).await.map(|()| Vec::new())
}

/// Carries out all publications of a group.
async fn run_publish(client: &Client, statement: &Statement, group: &[&Write]) -> Done {
    let mut ids = HashSet::new();
    let mut places = Vec::with_capacity(group.len());
    let mut tasks = Vec::with_capacity(group.len());
    for (place, write) in group.iter().enumerate() {
        // Of a task that is given twice, the second finds the first.
        if let Write::Publish { row, first, owner } = write
            && ids.insert(row.id)
        {
            places.push(place);
            tasks.push((row, first, owner));
        }
    }
    if tasks.is_empty() {
        return Ok(Vec::new());
    }
    let rows = client
        .query(
            statement,
            &[
                &tasks.iter().map(|(row, ..)| row.id.0.as_slice()).collect::<Vec<_>>(),
                &tasks.iter().map(|(row, ..)| row.status.as_str()).collect::<Vec<_>>(),
                &tasks.iter().map(|(row, ..)| row.requester.as_slice()).collect::<Vec<_>>(),
                &tasks.iter().map(|(row, ..)| row.gpu_type.as_str()).collect::<Vec<_>>(),
                &tasks.iter().map(|(row, ..)| to_sql(row.created_at.unix())).collect::<Vec<_>>(),
                &tasks.iter().map(|(row, ..)| row.next_due.map(|due| to_sql(due.unix()))).collect::<Vec<_>>(),
                &tasks.iter().map(|(.., owner)| owner.as_str()).collect::<Vec<_>>(),
                &tasks.iter().map(|(row, ..)| row.record.as_str()).collect::<Vec<_>>(),
                &tasks.iter().map(|(_, first, _)| first.recorded.as_str()).collect::<Vec<_>>(),
            ],
        )
        .await?;
    // The statement counts from 1.
    rows.iter()
        .map(|row| {
            let (place, seq): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            Ok((places[place.unsigned_abs() as usize - 1], seq.unsigned_abs()))
        })
        .collect()
}

async fn run_commit(
    client: &Client,
    statement: &Statement,
    place: usize,
    expected: u64,
    row: &TaskRow,
    events: &[EventRow],
    placement: Option<&Placement>,
) -> Done {
    let begun = |event: &EventRow| match &event.attempt {
        Some(AttemptChange::Begins { attempt, provider }) => Some((i64::from(*attempt), provider.to_vec())),
        Some(AttemptChange::Ends(_)) | None => None,
    };
    let outcome = |event: &EventRow| match &event.attempt {
        Some(AttemptChange::Ends(outcome)) => Some(outcome.as_str()),
        // Of the attempt that is overtaken, if there is one.
        Some(AttemptChange::Begins { .. }) => Some(Outcome::AttemptDropped.as_str()),
        None => None,
    };
    let found = client
        .query_one(
            statement,
            &[
                &row.id.0.as_slice(),
                &to_sql(expected),
                &to_sql(row.version),
                &row.status.as_str(),
                &row.provider.as_ref().map(|provider| provider.as_slice()),
                &i64::from(row.attempts),
                &row.next_due.map(|due| to_sql(due.unix())),
                &row.record,
                &placement.map(|placement| placement.node_id.0.as_slice()),
                &placement.and_then(|placement| placement.session_id.as_deref()),
                &placement.and_then(|placement| placement.dispatch_ms).map(to_sql),
                &events.iter().map(|event| to_sql(event.at.unix())).collect::<Vec<_>>(),
                &events.iter().map(|event| event.status.as_str()).collect::<Vec<_>>(),
                &events.iter().map(|event| event.recorded.as_str()).collect::<Vec<_>>(),
                &events.iter().map(|event| begun(event).map(|(attempt, _)| attempt)).collect::<Vec<_>>(),
                &events.iter().map(|event| begun(event).map(|(_, provider)| provider)).collect::<Vec<_>>(),
                &events.iter().map(outcome).collect::<Vec<_>>(),
            ],
        )
        .await?;
    let seq: Option<i64> = found.try_get(0)?;
    Ok(seq.map(|seq| (place, seq.unsigned_abs())).into_iter().collect())
}
