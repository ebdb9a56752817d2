//! Requests to an OpenAI-compatible engine of this node: one, or a batch of lines.
//!
//! The model is `model://<id>`, which an engine of the node serves. The input is one request, either the body alone or
//! `{"method", "url", "body"}`, or up to 50,000 lines in OpenAI's batch format (see `input`). The result
//! has one line for each request, in the order of the input, in OpenAI's batch output format: `id`, `custom_id` (null
//! for a single request), `response` with `status_code`, `request_id` and `body` (the engine's own, on one line), and
//! `error`. A line that cannot be sent has an error of its own; the task goes on.
//!
//! What an engine answered is kept beside the task until the task is done (see `partial`), so that
//! another attempt of the same task on this node goes on where the last one ended. Engines sample: the same job may
//! give other bytes again.

mod input;
mod partial;

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use artifact::Digest;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use daemon::chain;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt};
use serde::Serialize;
use serde_json::value::RawValue;
use taskmarket::params::Params;
use tokio::io::{AsyncWriteExt, BufWriter};
use tokio::time::Instant;

use self::input::{Input, Line, LineError, Request};
use self::partial::Partial;
use super::{Context, Job, ModelFiles, ModelShape, Output, Progress, RunCode, RunError, Runtime, Stop};
use crate::engines::{BodyError, Content, Engines, Lease, RouteError, read_body};

/// The most requests of one task that are at an engine at once, whatever its slots.
const MAX_CONCURRENCY: u32 = 64;

/// The largest answer to one request, in bytes.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// How often a request is tried where the engine fails.
const TRIES: u32 = 3;

/// The delay before the second try; it doubles.
const RETRY: Duration = Duration::from_millis(250);

/// How much of the result's digest names a line of it.
const ID_DIGITS: usize = 24;

/// Runs requests against the node's engines.
pub struct OpenaiRuntime {
    engines: Engines,
    /// Where unfinished work is kept.
    partial: PathBuf,
}

/// One job that runs.
struct Batch {
    engines: Engines,
    model: String,
    /// The kinds of request that the model's engine answers.
    kinds: Vec<rpc::inference::InferenceKind>,
    partial: Option<Partial>,
}

/// What an engine answered: its own body, on one line.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) request_id: String,
    pub(super) body: Box<RawValue>,
}

#[derive(Serialize)]
struct OutputLine<'a> {
    id: String,
    custom_id: Option<&'a str>,
    response: Option<OutputResponse<'a>>,
    error: Option<&'a LineError>,
}

#[derive(Serialize)]
struct OutputResponse<'a> {
    status_code: u16,
    request_id: &'a str,
    body: &'a RawValue,
}

impl OpenaiRuntime {
    /// A runtime on these engines that keeps unfinished work in `partial`.
    pub fn new(engines: Engines, partial: PathBuf) -> Self {
        Self { engines, partial }
    }

    async fn batch(&self, job: &Job, progress: &Progress) -> Result<Output, RunError> {
        let ModelFiles::Named(model) = &job.model.files else {
            return Err(RunError::new(RunCode::BadModel, "the model is named by model://<id>"));
        };
        let params = Params::parse(taskmarket::params::Runtime::Openai, &job.params)
            .map_err(|error| RunError::new(RunCode::BadParams, error.to_string()))?;
        let Params::Openai(params) = params else {
            return Err(RunError::new(RunCode::BadParams, "these are another runtime's parameters"));
        };
        if params.concurrency == Some(0) {
            return Err(RunError::new(RunCode::BadParams, "concurrency: at least one request at once"));
        }
        let input = Input::look(&job.input).await?;
        let slots = self.slots(model).await?;
        let concurrency = params.concurrency.unwrap_or(MAX_CONCURRENCY).min(slots).clamp(1, MAX_CONCURRENCY);
        let batch = Arc::new(Batch {
            kinds: self.engines.kinds(model),
            engines: self.engines.clone(),
            model: model.clone(),
            partial: Partial::open(&self.partial, &job.label, job.limits.output_bytes).await.map_err(disk)?,
        });
        let output = job.folder.join("output.jsonl");
        write(&batch, &input, concurrency as usize, &output, job.limits.output_bytes, progress).await?;
        if let Some(partial) = &batch.partial {
            partial.remove().await;
        }
        Ok(Output::File(output))
    }

    /// How many requests the engines of a model work on at once. Waits for one that is away.
    async fn slots(&self, model: &str) -> Result<u32, RunError> {
        found(&self.engines, model).await?;
        let offers = self.engines.offers();
        Ok(offers.iter().find(|offer| offer.id == model).map_or(1, |offer| offer.slots))
    }
}

impl Runtime for OpenaiRuntime {
    fn run<'a>(&'a self, job: Job, context: &'a Context) -> BoxFuture<'a, Result<Output, RunError>> {
        Box::pin(async move {
            let (stop, _ends_with_this_future) = Stop::guarded(job.limits.wall, context);
            tokio::select! {
                biased;
                why = stop.stopped() => Err(why),
                ended = self.batch(&job, &context.progress) => ended,
            }
        })
    }

    fn model_shape(&self) -> ModelShape {
        ModelShape::Named
    }
}

/// Runs all lines, and writes what comes out in their order.
async fn write(
    batch: &Arc<Batch>,
    input: &Input,
    concurrency: usize,
    output: &Path,
    limit: u64,
    progress: &Progress,
) -> Result<(), RunError> {
    let file = tokio::fs::File::create(output).await.map_err(disk)?;
    let mut file = BufWriter::new(file);
    let (mut done, mut bytes) = (0_u64, 0_u64);
    let outputs = input.lines().map_ok(|line| Arc::clone(batch).run(line)).try_buffered(concurrency);
    let mut outputs = std::pin::pin!(outputs);
    while let Some(line) = outputs.next().await {
        let line = line?;
        bytes = bytes.saturating_add(line.len() as u64);
        if bytes > limit {
            return Err(RunError::output_too_large(limit));
        }
        file.write_all(line.as_bytes()).await.map_err(disk)?;
        done += 1;
        progress.report(u8::try_from(done * 100 / input.count().max(1)).unwrap_or(100));
    }
    file.flush().await.map_err(disk)
}

impl Batch {
    /// Runs one line, and gives its line of the result.
    async fn run(self: Arc<Self>, line: Line) -> Result<String, RunError> {
        let (digest, request) = (line.digest, line.request(&self.model, &self.kinds));
        let (custom_id, ended) = match request {
            Ok(request) => {
                let ended = self.answer(line.index, digest, &request).await?;
                (request.custom_id, ended)
            }
            Err((custom_id, error)) => (custom_id, Err(error)),
        };
        let mut id = String::from("batch_req_");
        let seed = Digest::of(format!("{digest}.{}", line.index).as_bytes());
        // Writing to a string cannot fail.
        let _ = write!(id, "{:.*}", ID_DIGITS, seed.to_string());
        let response = ended.as_ref().ok().map(|answer| OutputResponse {
            status_code: answer.status,
            request_id: &answer.request_id,
            body: &answer.body,
        });
        let output =
            OutputLine { id, custom_id: custom_id.as_deref(), response, error: ended.as_ref().err() };
        let mut text = serde_json::to_string(&output)
            .map_err(|error| RunError::new(RunCode::Internal, format!("cannot write a line: {error}")))?;
        text.push('\n');
        Ok(text)
    }

    /// The engine's answer, had before or now. What the engine says of the request is an answer too.
    async fn answer(
        &self,
        index: u64,
        digest: Digest,
        request: &Request,
    ) -> Result<Result<Answer, LineError>, RunError> {
        if let Some(partial) = &self.partial
            && let Some(answer) = partial.get(index, digest).await
        {
            return Ok(Ok(answer));
        }
        let answer = self.ask(request).await?;
        if let (Ok(answer), Some(partial)) = (&answer, &self.partial)
            && answer.status < 500
        {
            partial.put(index, digest, answer).await.map_err(disk)?;
        }
        Ok(answer)
    }

    async fn ask(&self, request: &Request) -> Result<Result<Answer, LineError>, RunError> {
        let mut last = LineError::new("engine_failed", "the engine did not answer");
        for again in 0..TRIES {
            if again > 0 {
                tokio::time::sleep(RETRY * 2_u32.pow(again - 1)).await;
            }
            let lease = take(&self.engines, &self.model).await?;
            match send(&lease, request).await {
                Ok(answer) if again + 1 < TRIES && matches!(answer.status, 429 | 500..) => {}
                Ok(answer) => return Ok(Ok(answer)),
                Err(Failed::Connection(problem)) => {
                    lease.lost();
                    last = LineError::new("engine_failed", &problem);
                }
                Err(Failed::Answer(problem)) => {
                    return Ok(Err(LineError::new("invalid_response", &problem)));
                }
            }
        }
        Ok(Err(last))
    }
}

/// Waits for a slot: as long as it takes while the engine works, and for a while if it is away.
async fn take(engines: &Engines, model: &str) -> Result<Lease, RunError> {
    wait(engines, || match engines.acquire(model) {
        Ok(lease) => Ok(Some(lease)),
        Err(RouteError::Busy(_)) => Ok(None),
        Err(error) => Err(error),
    })
    .await
}

/// Waits until an engine is there, whether it has a free slot or not; for a while if it is away.
async fn found(engines: &Engines, model: &str) -> Result<(), RunError> {
    wait(engines, || match engines.acquire(model) {
        Ok(_) | Err(RouteError::Busy(_)) => Ok(Some(())),
        Err(error) => Err(error),
    })
    .await
}

/// Looks again whenever something changes at the engines, until there is what is looked for, or the engine was away for
/// too long.
async fn wait<T>(engines: &Engines, look: impl Fn() -> Result<Option<T>, RouteError>) -> Result<T, RunError> {
    let mut changes = engines.changes();
    let mut away_since = None;
    loop {
        changes.mark_unchanged();
        let error = match look() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {
                away_since = None;
                // The sender lives as long as the engines.
                let _ = changes.changed().await;
                continue;
            }
            Err(error @ RouteError::ModelNotFound(_)) => {
                return Err(RunError::new(RunCode::ModelNotFound, error.to_string()));
            }
            Err(error @ (RouteError::Unavailable(_) | RouteError::Busy(_))) => error,
        };
        let until = *away_since.get_or_insert_with(Instant::now) + engines.absence();
        if tokio::time::timeout_at(until, changes.changed()).await.is_err() {
            return Err(RunError::new(RunCode::EngineUnavailable, error.to_string()));
        }
    }
}

/// Why a request got no answer.
enum Failed {
    /// The engine went away, or never was there.
    Connection(String),
    /// What it said is no JSON, or too much.
    Answer(String),
}

async fn send(lease: &Lease, request: &Request) -> Result<Answer, Failed> {
    let url = lease.url(request.path).map_err(Failed::Connection)?;
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    let content = Content::Whole(request.body.clone().into());
    let answer = lease
        .send(url, headers, content)
        .await
        .map_err(|error| Failed::Connection(chain(&error.without_url())))?;
    let status = answer.status().as_u16();
    let request_id = answer.headers().get(rpc::REQUEST_ID_HEADER).and_then(|id| id.to_str().ok());
    let request_id: String = request_id.unwrap_or_default().chars().take(256).collect();
    if answer.content_length().is_some_and(|length| length > MAX_ANSWER_BYTES as u64) {
        return Err(Failed::Answer(format!("an answer of more than {MAX_ANSWER_BYTES} bytes")));
    }
    let mut body = read_body(answer, MAX_ANSWER_BYTES).await.map_err(|error| match error {
        BodyError::TooLarge(_) => Failed::Answer(error.to_string()),
        BodyError::Cut(_) => Failed::Connection(error.to_string()),
    })?;
    // Between the tokens of JSON a line's end is white space, and within them it cannot stand.
    body.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
    let body = String::from_utf8(body).map_err(|_| Failed::Answer("the answer is no UTF-8".to_owned()))?;
    let body = RawValue::from_string(body)
        .map_err(|error| Failed::Answer(format!("the answer is no JSON: {error}")))?;
    Ok(Answer { status, request_id, body })
}

fn disk(error: io::Error) -> RunError {
    RunError::new(RunCode::Internal, format!("the disk: {error}"))
}
