//! The node's HTTP API, for the agent on the same host.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequestParts, Json, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use daemon::Secret;
use gpu::DeviceKind;
use gpu::challenge::{Challenge, Commitment};
use rpc::error::{ErrorBody, ErrorCode};
use rpc::link::DeviceView;
use rpc::node::{ComputeRequest, ComputeStatus, NodeReport};
use rpc::tasks::Phase;
use rpc::{REQUEST_ID_HEADER, RESULT_HASH_HEADER};
use serde::Deserialize;
use taskmarket::{ParseError, TaskId};
use tokio::sync::Semaphore;
use tokio_util::io::ReaderStream;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};

use crate::challenge::{Challenges, Unanswered};
use crate::engines::Engines;
use crate::executor::{Executor, TakeError};
use crate::gpus::Health;
use crate::metrics::{Moment, OPENMETRICS};

/// The largest request body, in bytes: a task with the longest references and parameters, several times over.
const MAX_BODY_BYTES: usize = 256 << 10;

/// The requests that are answered at once; each may wait for a change. Beyond them, 503.
const MAX_REQUESTS: usize = 256;

/// The requests to engines that wait for the beginning of their answer at once. Beyond them, 503.
const MAX_INFERENCES: usize = 1024;

/// The longest that a request for a status waits for a change.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The longest that a request takes until its response begins. It leaves room for [`MAX_WAIT`].
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);

/// When a refused caller may come again, in seconds.
const RETRY_AFTER: &str = "1";

/// The answers with logs that may be under way at once; each keeps at most 1 MiB of lines.
const MAX_LOG_READERS: usize = 64;

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Service(Arc<Shared>);

struct Shared {
    executor: Executor,
    engines: Engines,
    challenges: Challenges,
    token: Secret,
    requests: Semaphore,
    inferences: Semaphore,
    log_readers: Arc<Semaphore>,
}

/// An error as the API answers it.
struct Refusal(ErrorCode, String);

impl Service {
    pub(crate) fn new(executor: Executor, engines: Engines, token: Secret) -> Self {
        let requests = Semaphore::new(MAX_REQUESTS);
        let challenges = Challenges::new(executor.gpus().clone());
        Self(Arc::new(Shared {
            executor,
            engines,
            challenges,
            token,
            requests,
            inferences: Semaphore::new(MAX_INFERENCES),
            log_readers: Arc::new(Semaphore::new(MAX_LOG_READERS)),
        }))
    }

    /// The routes, all of them behind the token.
    pub(crate) fn router(self) -> Router {
        let request_id = HeaderName::from_static(REQUEST_ID_HEADER);
        let inference = self.0.engines.router();
        let inference = inference.layer(middleware::from_fn_with_state(self.clone(), guard_inference));
        Router::new()
            .route("/compute", post(take))
            .route("/compute/{task_id}", delete(cancel))
            .route("/status", get(report))
            .route("/status/{task_id}", get(status))
            .route("/result/{task_id}", get(result))
            .route("/logs/{task_id}", get(logs))
            .route("/drain", post(drain).delete(resume))
            .route("/challenge", post(challenge))
            .route("/challenge/products/{index}", post(product))
            .route("/metrics", get(metrics))
            .fallback(|| async { Refusal(ErrorCode::NotFound, "there is no such path".to_owned()) })
            .method_not_allowed_fallback(|| async {
                Refusal(ErrorCode::MethodNotAllowed, "the path knows no such method".to_owned())
            })
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .layer(middleware::from_fn_with_state(self.clone(), guard))
            .merge(inference)
            .layer(middleware::from_fn_with_state(self.clone(), authorize))
            .layer(CatchPanicLayer::custom(|_| {
                Refusal(ErrorCode::Internal, "the request failed".to_owned()).into_response()
            }))
            .layer(PropagateRequestIdLayer::new(request_id.clone()))
            .layer(SetRequestIdLayer::new(request_id, MakeRequestUuid))
            .with_state(self)
    }
}

/// Lets in whoever has the token.
async fn authorize(State(service): State<Service>, request: Request, next: Next) -> Response {
    let presented = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let presented = presented.and_then(|value| value.split_once(' '));
    let token = presented.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    if !token.is_some_and(|(_, token)| service.0.token.matches(token)) {
        service.0.executor.metrics().unauthorized.inc();
        let hint = "give the token of the node's token file as `Authorization: Bearer`";
        return Refusal(ErrorCode::InvalidApiKey, hint.to_owned()).into_response();
    }
    next.run(request).await
}

/// Lets in as many at once as are allowed. The time of each is for the engines' routes to bound.
async fn guard_inference(State(service): State<Service>, request: Request, next: Next) -> Response {
    let Ok(_permit) = service.0.inferences.try_acquire() else {
        return Refusal(ErrorCode::Unavailable, "too many requests at once".to_owned()).into_response();
    };
    next.run(request).await
}

/// Lets in as many at once as are allowed, each for a limited time.
async fn guard(State(service): State<Service>, request: Request, next: Next) -> Response {
    let Ok(_permit) = service.0.requests.try_acquire() else {
        return Refusal(ErrorCode::Unavailable, "too many requests at once".to_owned()).into_response();
    };
    tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await.unwrap_or_else(|_| {
        Refusal(ErrorCode::RequestTimeout, "the request took too long".to_owned()).into_response()
    })
}

async fn take(
    State(service): State<Service>,
    body: Result<Json<ComputeRequest>, JsonRejection>,
) -> Result<(StatusCode, Json<ComputeStatus>), Refusal> {
    let Json(request) = body.map_err(|rejection| {
        let code = match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ErrorCode::PayloadTooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => ErrorCode::UnsupportedMediaType,
            _ => ErrorCode::MalformedRequest,
        };
        Refusal(code, rejection.body_text())
    })?;
    let status = service.0.executor.take(request).await?;
    Ok((StatusCode::ACCEPTED, Json(status)))
}

async fn cancel(
    State(service): State<Service>,
    TaskPath(task): TaskPath,
) -> Result<(StatusCode, Json<ComputeStatus>), Refusal> {
    let status = service.0.executor.cancel(task).ok_or_else(unknown_task)?;
    Ok((StatusCode::ACCEPTED, Json(status)))
}

/// How to ask for the status of a task.
#[derive(Deserialize)]
struct StatusQuery {
    /// Wait this long for a change, in milliseconds.
    #[serde(default)]
    wait_ms: u64,
    /// The revision that the caller knows.
    #[serde(default)]
    seen: u64,
}

async fn status(
    State(service): State<Service>,
    TaskPath(task): TaskPath,
    query: Result<Query<StatusQuery>, QueryRejection>,
) -> Result<Json<ComputeStatus>, Refusal> {
    let Query(StatusQuery { wait_ms, seen }) =
        query.map_err(|rejection| Refusal(ErrorCode::MalformedRequest, rejection.body_text()))?;
    let wait = Duration::from_millis(wait_ms).min(MAX_WAIT);
    let status = service.0.executor.changed_status(task, seen, wait).await;
    status.map(Json).ok_or_else(unknown_task)
}

async fn result(State(service): State<Service>, TaskPath(task): TaskPath) -> Result<Response, Refusal> {
    let status = service.0.executor.status(task).ok_or_else(unknown_task)?;
    let outcome = match (status.phase, &status.outcome) {
        (Phase::Done, Some(outcome)) => outcome,
        (phase, _) => {
            let message = format!("there is no result: the task's phase is {}", phase.as_str());
            return Err(Refusal(ErrorCode::Conflict, message));
        }
    };
    let file = service.0.executor.open_result(&status).await.map_err(|error| {
        tracing::error!(task = %status.task_id, %error, "cannot open a result");
        Refusal(ErrorCode::Internal, "the result cannot be read".to_owned())
    })?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_LENGTH, HeaderValue::from(outcome.result_bytes)),
    ];
    let hash = [(HeaderName::from_static(RESULT_HASH_HEADER), outcome.result_hash.to_string())];
    Ok((headers, hash, Body::from_stream(ReaderStream::with_capacity(file, 64 << 10))).into_response())
}

/// How to ask for the logs of a task.
#[derive(Deserialize)]
struct LogsQuery {
    /// The number of the first line.
    #[serde(default)]
    from: u64,
    /// Go on until the attempt ends.
    #[serde(default)]
    follow: bool,
}

async fn logs(
    State(service): State<Service>,
    TaskPath(task): TaskPath,
    query: Result<Query<LogsQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(LogsQuery { from, follow }) =
        query.map_err(|rejection| Refusal(ErrorCode::MalformedRequest, rejection.body_text()))?;
    let permit = Arc::clone(&service.0.log_readers).try_acquire_owned();
    let permit =
        permit.map_err(|_| Refusal(ErrorCode::Unavailable, "too many logs are read at once".to_owned()))?;
    let reader = service.0.executor.logs(task, from, follow).await.ok_or_else(unknown_task)?;
    let reader = reader.map_err(|error| {
        tracing::error!(%task, %error, "cannot read logs");
        Refusal(ErrorCode::Internal, "the logs cannot be read".to_owned())
    })?;
    // The caller's pace is the stream's: nothing is read ahead.
    let lines = futures_util::stream::unfold((reader, permit), async |(mut reader, permit)| {
        let lines = reader.next().await?;
        Some((Ok::<_, Infallible>(lines), (reader, permit)))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

/// Which device is challenged.
#[derive(Deserialize)]
struct DeviceQuery {
    /// Its place among the devices, counted from 0.
    #[serde(default)]
    device: u32,
}

async fn challenge(
    State(service): State<Service>,
    query: Result<Query<DeviceQuery>, QueryRejection>,
    body: Result<Json<Challenge>, JsonRejection>,
) -> Result<Json<Commitment>, Refusal> {
    let (device, challenge) = challenged(query, body)?;
    Ok(Json(service.0.challenges.commit(device, challenge).await?))
}

async fn product(
    State(service): State<Service>,
    Path(index): Path<u32>,
    query: Result<Query<DeviceQuery>, QueryRejection>,
    body: Result<Json<Challenge>, JsonRejection>,
) -> Result<Response, Refusal> {
    let (device, challenge) = challenged(query, body)?;
    let product = service.0.challenges.open(device, challenge, index).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], product).into_response())
}

fn challenged(
    query: Result<Query<DeviceQuery>, QueryRejection>,
    body: Result<Json<Challenge>, JsonRejection>,
) -> Result<(u32, Challenge), Refusal> {
    let malformed = |text: String| Refusal(ErrorCode::MalformedRequest, text);
    let Query(DeviceQuery { device }) = query.map_err(|rejection| malformed(rejection.body_text()))?;
    let Json(challenge) = body.map_err(|rejection| malformed(rejection.body_text()))?;
    Ok((device, challenge))
}

impl From<Unanswered> for Refusal {
    fn from(why: Unanswered) -> Self {
        let code = match &why {
            Unanswered::NoSuchDevice(_) => ErrorCode::NotFound,
            Unanswered::Busy => ErrorCode::Unavailable,
            Unanswered::Malformed(_) => ErrorCode::InvalidField,
            Unanswered::Failed(_) => ErrorCode::Conflict,
        };
        Self(code, why.to_string())
    }
}

async fn drain(State(service): State<Service>) -> Json<NodeReport> {
    service.0.executor.set_draining(true);
    report(State(service)).await
}

async fn resume(State(service): State<Service>) -> Json<NodeReport> {
    service.0.executor.set_draining(false);
    report(State(service)).await
}

async fn report(State(service): State<Service>) -> Json<NodeReport> {
    let executor = &service.0.executor;
    let gpus = executor.gpus();
    let Health { samples, unhealthy, problems } = gpus.health().await;
    let unhealthy = match unhealthy {
        Some(reason) => Some(reason),
        None => executor.disk_problem().await,
    };
    let of_gpus = gpus.devices().iter().zip(&samples).filter(|(device, _)| device.kind == DeviceKind::Gpu);
    let free = of_gpus.map(|(_, sample)| sample.free_vram_mb);
    Json(NodeReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        devices: gpus.devices().iter().map(device_view).collect(),
        free_vram_mb: free.collect(),
        runtimes: executor.runtimes(),
        slots: executor.slots(),
        busy: executor.busy(),
        warm_models: executor.warm_models(),
        models: service.0.engines.offers(),
        unhealthy,
        draining: executor.is_draining(),
        gpu_problems: problems,
        foreign_gpu_use: gpus.foreign_use(&samples, |pid| service.0.engines.have(pid)),
    })
}

async fn metrics(State(service): State<Service>) -> Result<Response, Refusal> {
    let executor = &service.0.executor;
    let samples = executor.gpus().health().await.samples;
    let moment = Moment {
        slots: executor.slots(),
        busy: executor.busy(),
        draining: executor.is_draining(),
        cache_bytes: executor.cache_bytes().await,
        disk_free: executor.space().await.map(|space| space.free),
        devices: executor.gpus().devices(),
        samples: &samples,
    };
    let text = executor.metrics().text(&moment).map_err(|error| {
        tracing::error!(%error, "cannot write the metrics");
        Refusal(ErrorCode::Internal, "the metrics cannot be written".to_owned())
    })?;
    Ok(([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response())
}

fn device_view(device: &gpu::Device) -> DeviceView {
    DeviceView {
        kind: match device.kind {
            DeviceKind::Gpu => rpc::link::DeviceKind::Gpu,
            DeviceKind::Cpu => rpc::link::DeviceKind::Cpu,
        },
        name: device.name.clone(),
        vram_mb: device.vram_mb,
        uuid: device.uuid.clone(),
    }
}

/// The task that a path names.
struct TaskPath(TaskId);

impl FromRequestParts<Service> for TaskPath {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, service: &Service) -> Result<Self, Refusal> {
        let malformed = |reason: String| Refusal(ErrorCode::MalformedRequest, reason);
        let Path(text) = Path::<String>::from_request_parts(parts, service)
            .await
            .map_err(|rejection| malformed(rejection.body_text()))?;
        text.parse().map(Self).map_err(|error: ParseError| malformed(error.to_string()))
    }
}

fn unknown_task() -> Refusal {
    Refusal(ErrorCode::NotFound, "this node does not know the task".to_owned())
}

impl From<TakeError> for Refusal {
    fn from(error: TakeError) -> Self {
        let code = match &error {
            TakeError::Busy
            | TakeError::GpusBusy(_)
            | TakeError::DiskFull(_)
            | TakeError::Draining
            | TakeError::Closed => ErrorCode::Unavailable,
            TakeError::StaleAttempt { .. } => ErrorCode::StaleAttempt,
            TakeError::Invalid { .. } => ErrorCode::InvalidField,
            TakeError::Disk(_) => ErrorCode::Internal,
        };
        Self(code, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(code, message) = self;
        let status = StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(ErrorBody::new(code, message))).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        response
    }
}
