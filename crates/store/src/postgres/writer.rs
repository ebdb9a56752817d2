//! The task that writes tasks.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use deadpool_postgres::{Client, Pool};
use futures_util::future::maybe_done;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::{Error, Statement};

use super::failure::{connecting, is_lost, reading, writing};
use super::listener::CHANNEL;
use crate::attempts::AttemptChange;
use crate::row::{EventRow, TaskRow, to_sql};
use crate::{KeyId, Options, Outcome, Placement, StoreError, WriteStats};

const PUBLISH: &str = "SELECT publish_task($1, $2, $3, $4, $5, $6, $7, $8, $9)";
const COMMIT: &str =
    "SELECT commit_task($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)";

/// A write of a task.
pub(super) enum Write {
    Publish { row: TaskRow, first: EventRow, owner: KeyId },
    Commit { expected: u64, row: TaskRow, events: Vec<EventRow>, placement: Option<Placement> },
}

/// The last event's place in the commit sequence; `None` where the task was not as the write expects it.
type Answer = Result<Option<u64>, StoreError>;

/// The handle of the task that writes.
pub(super) struct Writer {
    requests: mpsc::Sender<Message>,
    task: Mutex<Option<JoinHandle<()>>>,
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
    /// Starts the task. It ends when it is closed, or after what is queued when nobody can send to it any more.
    pub(super) fn start(pool: Pool, options: &Options) -> Self {
        let (requests, queue) = mpsc::channel(options.queue.max(1));
        let counters = Arc::new(Counters::default());
        let task = tokio::spawn(serve(pool, queue, options.batch.max(1), counters.clone()));
        Self { requests, task: Mutex::new(Some(task)), counters, wait: options.wait, answer: options.answer }
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
        if let Some(task) = self.task.lock().await.take()
            && !matches!(timeout(self.answer, task).await, Ok(Ok(())))
        {
            tracing::error!("the store's writer did not end in order");
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
    let mut steps = vec![step(batch(client, "BEGIN"))];
    for write in group {
        steps.push(match write {
            Write::Publish { row, first, owner } => step(run_publish(client, &publish, row, first, owner)),
            Write::Commit { expected, row, events, placement } => {
                step(run_commit(client, &commit, *expected, row, events, placement.as_ref()))
            }
        });
    }
    steps.push(step(batch(client, &end)));
    let results = send_all(steps).await;
    // After a failure the server refuses what follows and ends the transaction without its changes; the first error says why.
    let mut seqs = Vec::with_capacity(group.len());
    for result in results {
        match result {
            Ok(seq) => seqs.push(seq.map(i64::unsigned_abs)),
            Err(error) => {
                if !is_lost(&error) {
                    // Where the failure was the last step's own, the transaction may be open still.
                    let _ = client.batch_execute("ROLLBACK").await;
                }
                return Err(writing(error));
            }
        }
    }
    // Beginning and end are no writes.
    seqs.pop();
    seqs.remove(0);
    Ok(seqs)
}

type Step<'a> = Pin<Box<dyn Future<Output = Result<Option<i64>, Error>> + Send + 'a>>;

fn step<'a>(step: impl Future<Output = Result<Option<i64>, Error>> + Send + 'a) -> Step<'a> {
    Box::pin(step)
}

/// Sends all steps in their order without waiting for answers in between, and then waits for all.
async fn send_all(steps: Vec<Step<'_>>) -> Vec<Result<Option<i64>, Error>> {
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

async fn batch(client: &Client, sql: &str) -> Result<Option<i64>, Error> {
    client.batch_execute(sql).await.map(|()| None)
}

async fn run_publish(
    client: &Client,
    statement: &Statement,
    row: &TaskRow,
    first: &EventRow,
    owner: &KeyId,
) -> Result<Option<i64>, Error> {
    let found = client
        .query_one(
            statement,
            &[
                &row.id.0.as_slice(),
                &row.status.as_str(),
                &row.requester.as_slice(),
                &row.gpu_type,
                &to_sql(row.created_at.unix()),
                &row.next_due.map(|due| to_sql(due.unix())),
                &owner.as_str(),
                &row.record,
                &first.recorded,
            ],
        )
        .await?;
    found.try_get(0)
}

async fn run_commit(
    client: &Client,
    statement: &Statement,
    expected: u64,
    row: &TaskRow,
    events: &[EventRow],
    placement: Option<&Placement>,
) -> Result<Option<i64>, Error> {
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
    found.try_get(0)
}
