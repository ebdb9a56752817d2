//! Runs attempts in a bounded number of slots, tells how they are, and keeps what came of them.
//!
//! Nothing waits in a queue: a task that finds no free slot is refused, and its agent tries again or lets another
//! provider have it. A task that is taken is recorded on disk before anybody hears that it is.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use artifact::{Fetcher, Origin};
use gpu::AllocateError;
use rpc::node::{ComputeRequest, ComputeStatus};
use rpc::tasks::Phase;
use taskmarket::{ContentHash, Runtime as RuntimeName, TaskId};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use self::place::{Leaving, Taken};
use self::tidy::Tidied;
use crate::attempt::Attempt;
use crate::disk::MinFreeDisk;
use crate::gpus::{Gpus, Held};
use crate::metrics::Metrics;
use crate::remove::remove_folder;
use crate::results::{Ended, Record, Results};
use crate::runtime::{Limits, Logs, Runtime};

mod logs;
mod place;
mod run;
#[cfg(test)]
mod tests;
mod tidy;

/// How long a runtime may take to clear up after a former life of the node.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(60);

/// How long cancelled tasks may take to end, and runtimes to end what those have outside this process.
const ENDING_PATIENCE: Duration = Duration::from_secs(20);

/// What the executor needs to know.
pub(crate) struct Settings {
    pub(crate) slots: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) result_bytes: u64,
    /// Where everything lies that the node keeps.
    pub(crate) data: PathBuf,
    /// Where running attempts have their folders.
    pub(crate) work: PathBuf,
    /// The room on the disk of `data` without which no task is taken.
    pub(crate) min_free_disk: MinFreeDisk,
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
    gpus: Gpus,
    fetcher: Fetcher,
    results: Results,
    tasks: Mutex<HashMap<TaskId, Entry>>,
    /// Held while a task is taken, so that no request is answered before its task is on disk.
    taking: tokio::sync::Mutex<()>,
    slots: Arc<Semaphore>,
    leaving: Leaving,
    tidied: Tidied,
    running: TaskTracker,
    /// Whether the operator wants no more tasks for now.
    draining: AtomicBool,
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
    /// Cancelled once the attempt may begin.
    begin: CancellationToken,
    /// What the attempt says, while it runs.
    logs: Option<Logs>,
}

/// Why a task is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeError {
    /// Every slot is in use.
    #[error("all slots are in use")]
    Busy,
    /// The GPUs are in use, or unwell.
    #[error("{0}")]
    GpusBusy(String),
    /// The disk is too full.
    #[error("{0}")]
    DiskFull(String),
    /// The operator wants no more tasks for now.
    #[error("the node is draining")]
    Draining,
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
        gpus: Gpus,
        fetcher: Fetcher,
        results: Results,
        records: Vec<Record>,
    ) -> io::Result<Self> {
        let mut tasks = HashMap::new();
        for mut record in records {
            if record.ended_at.is_none() {
                record.end(Err(Ended::NodeRestarted));
                results.store_record(&record)?;
            }
            let (task, cancel) = (record.status.task_id, CancellationToken::new());
            let begin = CancellationToken::new();
            tasks.insert(task, Entry { record: watch::Sender::new(record), cancel, begin, logs: None });
        }
        let slots = Arc::new(Semaphore::new(settings.slots as usize));
        let executor = Self(Arc::new(Inner {
            settings,
            runtimes,
            gpus,
            fetcher,
            results,
            tasks: Mutex::new(tasks),
            taking: tokio::sync::Mutex::default(),
            slots,
            leaving: Leaving::default(),
            tidied: Tidied::default(),
            running: TaskTracker::new(),
            draining: AtomicBool::new(false),
            closed: CancellationToken::new(),
            ended: CancellationToken::new(),
            metrics: Metrics::default(),
        }));
        Ok(executor)
    }

    /// Takes an attempt and starts it. The same attempt again changes nothing, unless it is held and may begin now, or was
    /// called off: then it begins anew. A newer one of the same task cancels the older.
    pub(crate) async fn take(&self, request: ComputeRequest) -> Result<ComputeStatus, TakeError> {
        let inner = &self.0;
        let _taking = inner.taking.lock().await;
        let previous = self.record(request.task_id);
        if let Some(known) = previous.as_ref().map(|record| &record.status) {
            if request.attempt == known.attempt && !self.is_called_off(request.task_id) {
                if !request.hold {
                    self.begin(request.task_id);
                }
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
        if self.is_draining() {
            return Err(TakeError::Draining);
        }
        // Two attempts of one task never run side by side: the older ends first, and the caller comes again.
        let older_runs = previous.as_ref().is_some_and(|record| record.ended_at.is_none());
        if older_runs {
            self.cancel(request.task_id);
        }
        let taken = if older_runs { Err(TakeError::Busy) } else { self.take_place(&request).await };
        let place = taken.inspect_err(|error| {
            if matches!(error, TakeError::Busy) {
                inner.metrics.refused_busy.inc();
            }
        })?;
        if let Some(reason) = self.make_room().await {
            return Err(TakeError::DiskFull(reason));
        }
        let record = Record::first(&request, previous.as_ref());
        self.start(attempt, record.clone(), previous, place).await?;
        Ok(record.status)
    }

    /// Records an attempt, and runs it.
    async fn start(
        &self,
        attempt: Attempt,
        record: Record,
        previous: Option<Record>,
        place: Arc<Taken>,
    ) -> io::Result<()> {
        let (results, first) = (self.0.results.clone(), record.clone());
        on_disk(move || {
            results.store_record(&first)?;
            previous.map_or(Ok(()), |old| results.remove_result(old.status.task_id, old.status.attempt))
        })
        .await?;
        let cancel = self.0.ended.child_token();
        let task = record.status.task_id;
        let span = tracing::info_span!("attempt", %task, attempt = record.status.attempt);
        let record = watch::Sender::new(record);
        let entry = Entry {
            record: record.clone(),
            cancel: cancel.clone(),
            begin: attempt.begin.clone(),
            logs: Some(attempt.logs.clone()),
        };
        self.tasks().insert(task, entry);
        let executor = self.clone();
        let running = async move { executor.run(attempt, record, cancel, place).await };
        self.0.running.spawn(running.instrument(span));
        Ok(())
    }

    async fn hold_gpus(&self, request: &ComputeRequest) -> Result<Held, TakeError> {
        let held = self.0.gpus.hold(&request.task.config).await;
        held.map_err(|error| match error {
            AllocateError::Busy { .. } => TakeError::GpusBusy(error.to_string()),
            AllocateError::Never { .. } | AllocateError::EmptyShare => {
                TakeError::Invalid { field: "task.config.gpu_count", reason: error.to_string() }
            }
        })
    }

    /// Removes what a former life of the node left behind: what its runtimes started, and then the folders of its attempts,
    /// into which nothing writes any more. What cannot be removed is logged: it takes room, and harms no task.
    pub(crate) async fn recover(&self) {
        for (name, runtime) in &self.0.runtimes {
            match tokio::time::timeout(RECOVERY_PATIENCE, runtime.recover()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!(runtime = %name, %error, "cannot clear up after a former life")
                }
                Err(_) => tracing::error!(runtime = %name, "clearing up after a former life takes too long"),
            }
        }
        let work = self.0.settings.work.clone();
        if let Err(error) = on_disk(move || remove_folder(&work)).await {
            tracing::error!(%error, "cannot remove the folders of former attempts");
        }
    }

    /// Takes no more tasks, or some again. What runs goes on.
    pub(crate) fn set_draining(&self, draining: bool) {
        if self.0.draining.swap(draining, Ordering::Relaxed) != draining {
            tracing::info!(draining, running = self.busy(), "drain");
        }
    }

    /// Whether the operator wants no more tasks for now.
    pub(crate) fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }

    /// Cancels a task's attempt if it runs. Says how the task is, if it is known.
    pub(crate) fn cancel(&self, task: TaskId) -> Option<ComputeStatus> {
        let tasks = self.tasks();
        let entry = tasks.get(&task)?;
        entry.cancel.cancel();
        Some(entry.record.borrow().status.clone())
    }

    /// Lets a task's attempt begin.
    fn begin(&self, task: TaskId) {
        if let Some(entry) = self.tasks().get(&task) {
            entry.begin.cancel();
        }
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

    /// How many tasks may run; zero while the node drains.
    pub(crate) fn slots(&self) -> u32 {
        if self.0.closed.is_cancelled() || self.is_draining() { 0 } else { self.0.settings.slots }
    }

    /// The GPUs.
    pub(crate) fn gpus(&self) -> &Gpus {
        &self.0.gpus
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

    /// Takes no more tasks, gives running ones `grace`, and then ends them with all that they have outside this process.
    pub(crate) async fn drain(&self, grace: Duration) {
        let inner = &self.0;
        inner.closed.cancel();
        // A task that is being taken at this moment is waited for too.
        drop(inner.taking.lock().await);
        inner.running.close();
        if daemon::drain("running tasks", grace, inner.running.wait()).await.is_none() {
            inner.ended.cancel();
        }
        let ends = inner.runtimes.values().map(|runtime| runtime.end());
        // Also when no task is left: one that has ended may have left its container to be removed.
        let ending = futures_util::future::join(futures_util::future::join_all(ends), inner.running.wait());
        daemon::drain("cancelled tasks", ENDING_PATIENCE, ending).await;
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
        let begin = CancellationToken::new();
        if !request.hold {
            begin.cancel();
        }
        Ok(Attempt {
            task: request.task.clone(),
            runtime: Arc::clone(runtime),
            origin,
            fetcher: self.0.fetcher.clone(),
            logs: Logs::default(),
            begin,
            label: format!("{}.{}", request.task_id, request.attempt),
            work: settings.work.clone(),
            limits: Limits {
                wall: Duration::from_secs(request.task.config.max_duration),
                memory_bytes: settings.memory_bytes,
                output_bytes: settings.result_bytes,
            },
        })
    }

    fn record(&self, task: TaskId) -> Option<Record> {
        self.tasks().get(&task).map(|entry| entry.record.borrow().clone())
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<TaskId, Entry>> {
        // Every change is one insertion or removal, so the map is whole after a panic elsewhere.
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs work that blocks on the disk.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}
