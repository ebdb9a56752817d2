//! One attempt on its way through the executor: followed, recorded, counted.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use artifact::Digest;
use rpc::node::{ComputeOutcome, ComputeStatus};
use rpc::tasks::Phase;
use taskmarket::{ContentHash, Runtime as RuntimeName};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::place::Taken;
use super::{Executor, on_disk};
use crate::attempt::{Attempt, Failure, Finished};
use crate::results::{Ended, Record, now};
use crate::runtime::{Gpu, Output, Place, Progress, RunError};

/// How long an attempt may be held: its agent may be gone for good.
const HOLD_LIMIT: Duration = Duration::from_secs(900);

/// The code of an attempt that was held so long.
pub(super) const NOT_BEGUN: &str = "not_begun";

/// How often the progress of a running attempt is looked at.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

impl Executor {
    /// Runs an attempt to its end, in its place, and records how it ended.
    pub(super) async fn run(
        self,
        attempt: Attempt,
        record: watch::Sender<Record>,
        cancel: CancellationToken,
        place: Arc<Taken>,
    ) {
        let started = Instant::now();
        let outcome = match follow(&attempt, &place, &record, &cancel).await {
            Ok(finished) => self.keep(&attempt, place.gpus.list(), &record, finished).await,
            Err(failure) if failure.is_cancellation() && self.0.ended.is_cancelled() => {
                Err(Ended::NodeRestarted)
            }
            Err(failure) if failure.is_cancellation() => Err(Ended::Cancelled),
            Err(failure) => Err(Ended::Failed(failure)),
        };
        let mut last = record.borrow().clone();
        last.end(outcome);
        attempt.logs.finish();
        last.log_bytes = self.keep_logs(&last.status, &attempt.logs).await;
        let (results, stored) = (self.0.results.clone(), last.clone());
        if let Err(error) = on_disk(move || results.store_record(&stored)).await {
            // The disk still says that it runs, and after a restart that it failed; so nothing better is said now.
            tracing::error!(%error, "cannot record the end of a task");
            let failure = Failure::new("internal", format!("cannot record the result: {error}"));
            last.end(Err(Ended::Failed(failure)));
        }
        self.count(attempt.task.config.runtime, &last.status, started.elapsed());
        // Whoever hears of the end finds the slot and the GPUs free, or about to be, unless something of the job cannot be ended.
        self.0.leaving.end(place);
        self.end_logs(&last.status);
        record.send_replace(last);
        self.tidy_soon().await;
    }

    /// Stores a result, and says what it is.
    async fn keep(
        &self,
        attempt: &Attempt,
        gpus: &[Gpu],
        record: &watch::Sender<Record>,
        finished: Finished,
    ) -> Result<ComputeOutcome, Ended> {
        let Record { status, started_at, .. } = record.borrow().clone();
        let (task, number) = (status.task_id, status.attempt);
        let settings = &self.0.settings;
        let gpu = match gpus {
            [gpu, ..] => Some(gpu.name.clone()),
            [] if attempt.runtime.uses_gpu() => settings.gpu_name.clone(),
            [] => None,
        };
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

    fn count(&self, runtime: RuntimeName, status: &ComputeStatus, held: Duration) {
        let failure = status.failure.as_ref().map(|failure| failure.code.as_str());
        let bytes = status.outcome.as_ref().map_or(0, |outcome| outcome.result_bytes);
        self.0.metrics.ended(runtime, status.phase, failure, held, bytes);
        let (phase, seconds) = (status.phase.as_str(), held.as_secs_f64());
        tracing::info!(phase, failure, seconds, "task ended");
    }
}

/// Executes the attempt, and shows how far it is.
async fn follow(
    attempt: &Attempt,
    place: &Arc<Taken>,
    record: &watch::Sender<Record>,
    cancel: &CancellationToken,
) -> Result<Finished, Failure> {
    let fetching = Progress::default();
    let fetched = tokio::select! {
        fetched = attempt.fetch(&fetching, cancel) => fetched?,
        never = show(record, Phase::Fetching, &fetching) => match never {},
    };
    hold(attempt, record, cancel).await?;
    let running = Progress::default();
    // The runtime holds it too, for as long as anything of the job runs outside this process.
    let held = (place.gpus.list(), Place::new(Arc::clone(place)));
    tokio::select! {
        finished = attempt.run(fetched, held, &running, cancel) => finished,
        never = show(record, Phase::Running, &running) => match never {},
    }
}

/// Waits until the attempt may begin.
async fn hold(
    attempt: &Attempt,
    record: &watch::Sender<Record>,
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    let set = |held| {
        record.send_if_modified(|Record { status, .. }| {
            let changes = status.held != held;
            if changes {
                status.held = held;
                status.revision += 1;
            }
            changes
        });
    };
    set(!attempt.begin.is_cancelled());
    let begins = tokio::time::timeout(HOLD_LIMIT, attempt.begin.cancelled());
    let begun = cancel.run_until_cancelled(begins).await;
    set(false);
    match begun {
        Some(Ok(())) => Ok(()),
        Some(Err(_)) => Err(Failure::new(NOT_BEGUN, "nobody let the attempt begin")),
        None => Err(RunError::cancelled().into()),
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
