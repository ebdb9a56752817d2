//! Runs attempts in a bounded number of slots, tells how they are, and keeps what came of them.
//!
//! Nothing waits in a queue: a task that finds no free slot is refused, and its agent tries again or lets another
//! provider have it. A task that is taken is recorded on disk before anybody hears that it is.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use artifact::{Digest, Fetcher, Origin};
use rpc::node::{ComputeOutcome, ComputeRequest, ComputeStatus};
use rpc::tasks::Phase;
use taskmarket::{ContentHash, Runtime as RuntimeName, TaskId, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::{Attempt, Failure, Finished, remove_folder};
use crate::cache::{self, InUse};
use crate::metrics::Metrics;
use crate::results::{Ended, Record, Results, now};
use crate::runtime::{Limits, Logs, Output, Progress, Runtime};

/// The most tasks that are remembered, whatever room they take: some 100 MB of memory.
const MAX_RECORDS: usize = 100_000;

/// What a record takes at least on a disk, in bytes.
const RECORD_BYTES: u64 = 4096;

/// How often the progress of a running attempt is looked at.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// What the executor needs to know.
pub(crate) struct Settings {
    pub(crate) slots: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) result_bytes: u64,
    /// Where running attempts have their folders.
    pub(crate) work: PathBuf,
    pub(crate) keep: Duration,
    pub(crate) keep_bytes: u64,
    pub(crate) keep_artifacts_bytes: u64,
    /// What proofs name as the device of work on the GPU, and of other work.
    pub(crate) gpu_name: Option<String>,
    pub(crate) cpu_name: String,
}

/// Runs attempts. Clones are the same executor.
#[derive(Clone)]
pub(crate) struct Executor(Arc<Inner>);

struct Inner {
    settings: Settings,
    runtimes: BTreeMap<RuntimeName, Arc<dyn Runtime>>,
    fetcher: Fetcher,
    in_use: InUse,
    results: Results,
    tasks: Mutex<HashMap<TaskId, Entry>>,
    /// Held while a task is taken, so that no request is answered before its task is on disk.
    taking: tokio::sync::Mutex<()>,
    slots: Arc<Semaphore>,
    running: TaskTracker,
    /// Cancelled when no more tasks are taken.
    closed: CancellationToken,
    /// Cancelled when running attempts have to end with the node.
    ended: CancellationToken,
    metrics: Metrics,
}

/// A task that is known, in its newest attempt.
struct Entry {
    record: watch::Sender<Record>,
    cancel: CancellationToken,
}

/// Why a task is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeError {
    /// Every slot is in use.
    #[error("all slots are in use")]
    Busy,
    /// The node is about to end.
    #[error("the node is shutting down")]
    Closed,
    /// A newer attempt of the task is known.
    #[error("attempt {known} of this task is known already")]
    StaleAttempt { known: u32 },
    /// The request cannot be carried out whatever the node does.
    #[error("{field}: {reason}")]
    Invalid { field: &'static str, reason: String },
    /// The disk fails.
    #[error("the task cannot be recorded: {0}")]
    Disk(#[from] io::Error),
}

impl Executor {
    /// Starts with what `results` holds: attempts that ran when the node ended have failed. Blocks on the disk.
    pub(crate) fn new(
        settings: Settings,
        runtimes: BTreeMap<RuntimeName, Arc<dyn Runtime>>,
        fetcher: Fetcher,
        results: Results,
        records: Vec<Record>,
    ) -> io::Result<Self> {
        // What attempts of a former life left: nothing reads it any more.
        remove_folder(&settings.work)?;
        let mut tasks = HashMap::new();
        for mut record in records {
            if record.ended_at.is_none() {
                record.end(Err(Ended::NodeRestarted));
                results.store_record(&record)?;
            }
            let (task, cancel) = (record.status.task_id, CancellationToken::new());
            tasks.insert(task, Entry { record: watch::Sender::new(record), cancel });
        }
        let slots = Arc::new(Semaphore::new(settings.slots as usize));
        let executor = Self(Arc::new(Inner {
            settings,
            runtimes,
            fetcher,
            in_use: InUse::default(),
            results,
            tasks: Mutex::new(tasks),
            taking: tokio::sync::Mutex::default(),
            slots,
            running: TaskTracker::new(),
            closed: CancellationToken::new(),
            ended: CancellationToken::new(),
            metrics: Metrics::default(),
        }));
        Ok(executor)
    }

    /// Takes an attempt and starts it. The same attempt again changes nothing, unless it was called off: then it begins
    /// anew. A newer one of the same task cancels the older.
    pub(crate) async fn take(&self, request: ComputeRequest) -> Result<ComputeStatus, TakeError> {
        let inner = &self.0;
        let _taking = inner.taking.lock().await;
        let previous = self.record(request.task_id);
        if let Some(known) = previous.as_ref().map(|record| &record.status) {
            if request.attempt == known.attempt && !self.is_called_off(request.task_id) {
                return Ok(known.clone());
            }
            if request.attempt < known.attempt {
                return Err(TakeError::StaleAttempt { known: known.attempt });
            }
        }
        let attempt = self.prepare(&request)?;
        if inner.closed.is_cancelled() {
            return Err(TakeError::Closed);
        }
        // Two attempts of one task never run side by side: the older ends first, and the caller comes again.
        let older_runs = previous.as_ref().is_some_and(|record| record.ended_at.is_none());
        if older_runs {
            self.cancel(request.task_id);
        }
        let permit = Arc::clone(&inner.slots).try_acquire_owned().ok().filter(|_| !older_runs);
        let Some(permit) = permit else {
            inner.metrics.refused_busy.add(1);
            return Err(TakeError::Busy);
        };
        let record = Record::first(&request, previous.as_ref());
        self.start(attempt, record.clone(), previous, permit).await?;
        Ok(record.status)
    }

    /// Records an attempt, and runs it.
    async fn start(
        &self,
        attempt: Attempt,
        record: Record,
        previous: Option<Record>,
        permit: OwnedSemaphorePermit,
    ) -> io::Result<()> {
        let (results, first) = (self.0.results.clone(), record.clone());
        on_disk(move || {
            results.store_record(&first)?;
            previous.map_or(Ok(()), |old| results.remove_result(old.status.task_id, old.status.attempt))
        })
        .await?;
        let cancel = self.0.ended.child_token();
        let task = record.status.task_id;
        let record = watch::Sender::new(record);
        self.tasks().insert(task, Entry { record: record.clone(), cancel: cancel.clone() });
        let executor = self.clone();
        self.0.running.spawn(async move { executor.run(attempt, record, cancel, permit).await });
        Ok(())
    }

    /// Cancels a task's attempt if it runs. Says how the task is, if it is known.
    pub(crate) fn cancel(&self, task: TaskId) -> Option<ComputeStatus> {
        let tasks = self.tasks();
        let entry = tasks.get(&task)?;
        entry.cancel.cancel();
        Some(entry.record.borrow().status.clone())
    }

    /// Whether a task's newest attempt was called off: an offer that came to nothing may come again.
    fn is_called_off(&self, task: TaskId) -> bool {
        let tasks = self.tasks();
        tasks.get(&task).is_some_and(|entry| {
            let status = &entry.record.borrow().status;
            let running = status.outcome.is_none() && status.failure.is_none();
            running && (entry.cancel.is_cancelled() || status.phase == Phase::Cancelled)
        })
    }

    /// How a task is, if it is known.
    pub(crate) fn status(&self, task: TaskId) -> Option<ComputeStatus> {
        self.record(task).map(|record| record.status)
    }

    /// As [`Self::status`], once its revision is beyond `seen` or `wait` is over, or the node ends.
    pub(crate) async fn changed_status(
        &self,
        task: TaskId,
        seen: u64,
        wait: Duration,
    ) -> Option<ComputeStatus> {
        let mut receiver = self.tasks().get(&task)?.record.subscribe();
        let changed = receiver.wait_for(|record| record.status.revision > seen);
        // Each way to end is followed by a look at what is known then.
        tokio::select! {
            changed = tokio::time::timeout(wait, changed) => drop(changed),
            () = self.0.closed.cancelled() => {}
        }
        self.status(task)
    }

    /// Opens the result of a task that is done.
    pub(crate) async fn open_result(&self, status: &ComputeStatus) -> io::Result<tokio::fs::File> {
        let (results, task, attempt) = (self.0.results.clone(), status.task_id, status.attempt);
        let file = on_disk(move || results.open_result(task, attempt)).await?;
        Ok(tokio::fs::File::from_std(file))
    }

    /// How many tasks run.
    pub(crate) fn busy(&self) -> u32 {
        let free = u32::try_from(self.0.slots.available_permits()).unwrap_or(u32::MAX);
        self.0.settings.slots.saturating_sub(free)
    }

    /// How many tasks may run; zero once the node is about to end.
    pub(crate) fn slots(&self) -> u32 {
        if self.0.closed.is_cancelled() { 0 } else { self.0.settings.slots }
    }

    /// What the node can execute.
    pub(crate) fn runtimes(&self) -> Vec<RuntimeName> {
        self.0.runtimes.keys().copied().collect()
    }

    /// The models in memory.
    pub(crate) fn warm_models(&self) -> Vec<ContentHash> {
        let digests = self.0.runtimes.values().flat_map(|runtime| runtime.warm_models());
        digests.filter_map(|digest| digest.parse().ok()).collect()
    }

    /// What the node counts.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Takes no more tasks, gives running ones `grace`, and then cancels them.
    pub(crate) async fn drain(&self, grace: Duration) {
        let inner = &self.0;
        inner.closed.cancel();
        // A task that is being taken at this moment is waited for too.
        drop(inner.taking.lock().await);
        inner.running.close();
        if daemon::drain("running tasks", grace, inner.running.wait()).await.is_none() {
            inner.ended.cancel();
            daemon::drain("cancelled tasks", Duration::from_secs(5), inner.running.wait()).await;
        }
    }

    /// Removes results and fetched files that are too old, or too much.
    pub(crate) async fn tidy(&self) {
        // What has ended changes only by being taken again, and nothing begins to read while nothing is taken.
        let _taking = self.0.taking.lock().await;
        let executor = self.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || executor.sweep()).await {
            tracing::error!(%error, "removing old results failed");
        }
        let room = self.0.settings.keep_artifacts_bytes;
        if let Err(error) = cache::trim(self.0.fetcher.store(), room, &self.0.in_use).await {
            tracing::error!(%error, "cannot remove fetched files");
        }
    }

    /// Removes results that are too old, or too much. Blocks on the disk; nothing may be taken meanwhile.
    fn sweep(&self) {
        struct Ended {
            at: Timestamp,
            task: TaskId,
            attempt: u32,
            bytes: u64,
        }
        let mut ended: Vec<Ended> = Vec::new();
        for entry in self.tasks().values() {
            let Record { status, ended_at, .. } = &*entry.record.borrow();
            let bytes = status.outcome.as_ref().map_or(0, |outcome| outcome.result_bytes).max(RECORD_BYTES);
            ended.extend(ended_at.map(|at| Ended {
                at,
                task: status.task_id,
                attempt: status.attempt,
                bytes,
            }));
        }
        // The newest first: what is kept is a beginning of this list.
        ended.sort_by_key(|task| std::cmp::Reverse((task.at, task.task)));
        let settings = &self.0.settings;
        let oldest = now().unix().saturating_sub(settings.keep.as_secs());
        let mut bytes = 0u64;
        for (index, Ended { at, task, attempt, bytes: size }) in ended.into_iter().enumerate() {
            bytes = bytes.saturating_add(size);
            if at.unix() >= oldest && bytes <= settings.keep_bytes && index < MAX_RECORDS {
                continue;
            }
            match self.0.results.remove(task, attempt) {
                Ok(()) => {
                    tracing::info!(%task, "result removed: too old, or no more room");
                    self.tasks().remove(&task);
                }
                Err(error) => tracing::error!(%task, %error, "cannot remove a result"),
            }
        }
    }

    fn prepare(&self, request: &ComputeRequest) -> Result<Attempt, TakeError> {
        let invalid = |field, reason: String| TakeError::Invalid { field, reason };
        let name = request.task.config.runtime;
        let runtime = self.0.runtimes.get(&name).ok_or_else(|| {
            invalid("task.config.runtime", format!("this node does not have the runtime {name}"))
        })?;
        let origin = Origin::new(&request.relay_url, &request.attempt_token)
            .map_err(|error| invalid("relay_url", error.to_string()))?;
        let settings = &self.0.settings;
        Ok(Attempt {
            task: request.task.clone(),
            runtime: Arc::clone(runtime),
            origin,
            fetcher: self.0.fetcher.clone(),
            in_use: self.0.in_use.clone(),
            logs: Logs::default(),
            label: format!("{}.{}", request.task_id, request.attempt),
            work: settings.work.clone(),
            limits: Limits {
                wall: Duration::from_secs(request.task.config.max_duration),
                memory_bytes: settings.memory_bytes,
                output_bytes: settings.result_bytes,
            },
        })
    }

    async fn run(
        self,
        attempt: Attempt,
        record: watch::Sender<Record>,
        cancel: CancellationToken,
        permit: OwnedSemaphorePermit,
    ) {
        let started = Instant::now();
        let outcome = match follow(&attempt, &record, &cancel).await {
            Ok(finished) => self.keep(&attempt, &record, finished).await,
            Err(failure) if failure.is_cancellation() && self.0.ended.is_cancelled() => {
                Err(Ended::NodeRestarted)
            }
            Err(failure) if failure.is_cancellation() => Err(Ended::Cancelled),
            Err(failure) => Err(Ended::Failed(failure)),
        };
        let mut last = record.borrow().clone();
        last.end(outcome);
        let (results, stored) = (self.0.results.clone(), last.clone());
        if let Err(error) = on_disk(move || results.store_record(&stored)).await {
            // The disk still says that it runs, and after a restart that it failed; so nothing better is said now.
            tracing::error!(task = %last.status.task_id, %error, "cannot record the end of a task");
            let failure = Failure::new("internal", format!("cannot record the result: {error}"));
            last.end(Err(Ended::Failed(failure)));
        }
        self.count(&last.status, started.elapsed());
        // Whoever hears of the end finds the slot free.
        drop(permit);
        record.send_replace(last);
        self.tidy().await;
    }

    /// Stores a result, and says what it is.
    async fn keep(
        &self,
        attempt: &Attempt,
        record: &watch::Sender<Record>,
        finished: Finished,
    ) -> Result<ComputeOutcome, Ended> {
        let Record { status, started_at, .. } = record.borrow().clone();
        let (task, number) = (status.task_id, status.attempt);
        let settings = &self.0.settings;
        let gpu = if attempt.runtime.uses_gpu() { settings.gpu_name.clone() } else { None };
        let results = self.0.results.clone();
        let Finished { model, input, result, folder } = finished;
        let limit = attempt.limits.output_bytes;
        let stored = on_disk(move || {
            let stored = match result {
                Output::Bytes(bytes) => {
                    results.store_result(task, number, &bytes)?;
                    (Digest::of(&bytes), bytes.len() as u64)
                }
                Output::File(path) => results.take_result(task, number, &path, limit)?,
            };
            drop(folder);
            Ok(stored)
        });
        let (digest, size) = stored.await.map_err(|error| {
            Ended::Failed(Failure::new("internal", format!("cannot store the result: {error}")))
        })?;
        Ok(ComputeOutcome {
            model_hash: content_hash(model),
            input_hash: content_hash(input),
            result_hash: content_hash(digest),
            result_bytes: size,
            started_at,
            finished_at: now(),
            device: gpu.unwrap_or_else(|| settings.cpu_name.clone()),
        })
    }

    fn count(&self, status: &ComputeStatus, held: Duration) {
        let metrics = &self.0.metrics;
        metrics.busy_milliseconds.add(u64::try_from(held.as_millis()).unwrap_or(u64::MAX));
        metrics.result_bytes.add(status.outcome.as_ref().map_or(0, |outcome| outcome.result_bytes));
        match status.phase {
            Phase::Done => metrics.done.add(1),
            Phase::Cancelled => metrics.cancelled.add(1),
            Phase::Fetching | Phase::Running | Phase::Uploading | Phase::Failed => metrics.failed.add(1),
        }
        let failure = status.failure.as_ref().map(|failure| failure.code.as_str());
        tracing::info!(
            task = %status.task_id, attempt = status.attempt, phase = status.phase.as_str(), failure,
            seconds = held.as_secs_f64(), "task ended"
        );
    }

    fn record(&self, task: TaskId) -> Option<Record> {
        self.tasks().get(&task).map(|entry| entry.record.borrow().clone())
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<TaskId, Entry>> {
        // Every change is one insertion or removal, so the map is whole after a panic elsewhere.
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Executes the attempt, and shows how far it is.
async fn follow(
    attempt: &Attempt,
    record: &watch::Sender<Record>,
    cancel: &CancellationToken,
) -> Result<Finished, Failure> {
    let fetching = Progress::default();
    let fetched = tokio::select! {
        fetched = attempt.fetch(&fetching, cancel) => fetched?,
        never = show(record, Phase::Fetching, &fetching) => match never {},
    };
    let running = Progress::default();
    tokio::select! {
        finished = attempt.run(fetched, &running, cancel) => finished,
        never = show(record, Phase::Running, &running) => match never {},
    }
}

/// Shows how far a phase is, for as long as it is polled.
async fn show(record: &watch::Sender<Record>, phase: Phase, progress: &Progress) -> Infallible {
    let mut interval = tokio::time::interval(PROGRESS_INTERVAL);
    loop {
        interval.tick().await;
        let percent = Some(progress.percent());
        record.send_if_modified(|Record { status, .. }| {
            let modified = (status.phase, status.percent) != (phase, percent);
            if modified {
                (status.phase, status.percent) = (phase, percent);
                status.revision += 1;
            }
            modified
        });
    }
}

fn content_hash(digest: Digest) -> ContentHash {
    ContentHash(digest.0.into())
}

/// Runs work that blocks on the disk.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
