//! The relay's HTTP API: routes and what every request passes through. Handlers are thin; what they do is the market's or the hub's.

mod artifacts;
mod attempts;
mod blob;
mod chat_task;
mod events;
mod evidence;
mod extract;
mod inference;
mod jsonrpc;
mod keys;
mod lasting;
mod logs;
mod mutations;
mod observe;
mod openapi;
mod openrpc;
mod overview;
mod providers;
mod reader;
mod reports;
mod tasks;
mod webhooks;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use rpc::error::ErrorCode;
use rpc::relay::Limits;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::auth::{Access, identify};
use crate::error::ApiError;
use crate::gateway::Gateway;
use crate::hub::Hub;
use crate::idempotency::{self, honour};
use crate::market::Market;
use crate::metrics::Metrics;
use crate::webhooks::Webhooks;
pub(crate) use attempts::Attempts;
pub(crate) use chat_task::ChatTasks;
pub(crate) use events::EventStreams;
pub(crate) use extract::read;
pub(crate) use logs::LogReaders;
pub(crate) use observe::guarded;

/// How long a request may take until its answer begins, unless it carries an artifact. Bodies have deadlines of their own.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// The most tasks on a page of a listing.
pub(crate) const MAX_PAGE: u32 = 1000;

/// What handlers work with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App(Arc<Shared>);

/// What all clones of [`App`] share.
pub(crate) struct Shared {
    /// The relay's name.
    pub(crate) relay_id: String,
    /// Who may ask.
    pub(crate) access: Access,
    /// Owns the requests that are carried out even if their clients leave.
    pub(crate) requests: TaskTracker,
    /// The tasks.
    pub(crate) market: Arc<Market>,
    /// The providers.
    pub(crate) hub: Arc<Hub>,
    /// Inference.
    pub(crate) gateway: Arc<Gateway>,
    /// Where tasks' events are sent to.
    pub(crate) webhooks: Arc<Webhooks>,
    /// What attempt tokens open.
    pub(crate) attempts: Attempts,
    /// Who reads logs now.
    pub(crate) logs: LogReaders,
    /// Who follows events now.
    pub(crate) streams: EventStreams,
    /// Chat requests that wait for their tasks.
    pub(crate) chat_tasks: ChatTasks,
    /// Answers to be kept for their idempotency keys.
    pub(crate) answers: idempotency::Room,
    /// What is counted.
    pub(crate) metrics: Metrics,
    /// The largest bodies.
    pub(crate) limits: BodyLimits,
    /// How long a lost session keeps its attempts.
    pub(crate) session_grace: Duration,
    /// Cancelled when the relay is to end.
    pub(crate) stopping: CancellationToken,
}

/// The largest bodies, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimits {
    /// Of JSON.
    pub(crate) max_body_bytes: usize,
    /// Of an artifact.
    pub(crate) max_artifact_bytes: u64,
}

impl std::ops::Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl App {
    /// An app of these parts.
    pub(crate) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// Carries work out to its end, even if its client leaves: what is durable is told as well.
    ///
    /// # Errors
    /// The work's; 500 where it panicked.
    async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    ) -> Result<T, ApiError> {
        let done = self.requests.spawn(work.in_current_span()).await;
        done.unwrap_or_else(|error| Err(ApiError::internal(&error)))
    }

    /// What the relay takes at most, as it tells clients.
    fn limits_view(&self) -> Limits {
        Limits {
            max_body_bytes: self.limits.max_body_bytes as u64,
            max_artifact_bytes: self.limits.max_artifact_bytes,
            max_page: MAX_PAGE,
            session_grace_secs: self.session_grace.as_secs(),
        }
    }
}

/// All routes.
pub(crate) fn router(app: App) -> Router {
    let prompt = Router::new()
        .route("/v1/tasks", post(tasks::publish).get(tasks::list))
        .route("/v1/tasks/{id}", get(tasks::show))
        .route("/v1/tasks/{id}/events", get(events::events))
        .route("/v1/tasks/{id}/evidence", get(evidence::evidence))
        .route("/v1/tasks/{id}/webhooks", get(webhooks::list))
        .route("/v1/tasks/{id}/webhooks/replay", post(webhooks::replay))
        .route("/v1/events", get(events::requester_events))
        .route("/v1/tasks/{id}/explain", get(tasks::explain))
        .route("/v1/tasks/{id}/logs", get(logs::logs))
        .route("/v1/tasks/{id}/result", get(tasks::result))
        .route("/v1/tasks/{id}/cancel", post(mutations::cancel))
        .route("/v1/tasks/{id}/accept", post(mutations::accept))
        .route("/v1/tasks/{id}/fail", post(mutations::fail))
        .route("/v1/tasks/{id}/proof", post(mutations::proof))
        .route("/v1/tasks/{id}/approve", post(mutations::approve))
        .route("/v1/tasks/{id}/dispute", post(mutations::dispute))
        .route("/v1/tasks/{id}/resolve", post(mutations::resolve))
        .route("/v1/keys", post(keys::create).get(keys::list))
        .route("/v1/keys/{id}", get(keys::show).delete(keys::revoke))
        .route("/v1/usage", get(keys::usage))
        .route("/v1/models", get(inference::models))
        .route("/v1/models/{*id}", get(inference::model))
        .route("/v1/receipts/{request_id}", get(inference::receipt))
        .route("/v1/info", get(overview::info))
        .route("/v1/providers", get(providers::list))
        .route("/v1/providers/{address}", get(reports::show))
        .route("/v1/providers/{address}/sessions", get(reports::sessions))
        .route("/v1/providers/{address}/registration", post(providers::refresh))
        .route("/v1/providers/{address}/status", post(providers::set_status))
        .route(rpc::PROVIDER_CONNECT_PATH, get(providers::connect))
        .route("/v1/stats", get(overview::stats))
        .route("/healthz", get(overview::healthz))
        .route("/readyz", get(overview::readyz))
        .route("/metrics", get(overview::metrics))
        .route("/openapi.json", get(openapi::serve))
        .route("/openrpc.json", get(openrpc::serve))
        .route_layer(from_fn(within_deadline));
    let artifacts = Router::new()
        .route("/v1/artifacts/{sha256}", get(artifacts::get).head(artifacts::head).put(artifacts::put));
    // They have deadlines of their own.
    let inference = Router::new()
        .route("/v1/chat/completions", post(inference::chat))
        .route("/v1/completions", post(inference::complete))
        .route("/v1/embeddings", post(inference::embed))
        .route("/v1/responses", post(inference::respond));
    prompt
        .merge(artifacts)
        .merge(inference)
        .merge(jsonrpc::router(app.clone()))
        .fallback(async || ApiError::not_found("such path; GET /v1/info says what this is"))
        .method_not_allowed_fallback(async || {
            ApiError::new(ErrorCode::MethodNotAllowed, "this path knows no such method; see the Allow header")
        })
        // Every body is bounded where it is read, by limits of its own.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(app.clone(), honour))
        .layer(from_fn_with_state(app.clone(), identify))
        .layer(from_fn_with_state(app.clone(), observe::observe))
        .with_state(app)
}

async fn within_deadline(request: Request<Body>, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            ApiError::new(ErrorCode::Unavailable, "the relay is too busy to answer in time").into_response()
        }
    }
}
