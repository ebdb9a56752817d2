//! What the relay can ask over the link.
//!
//! Beside what [`rpc::link`] tells there is `GET /tasks/{id}/logs?from=N&follow=true`: what the newest attempt of the task said on
//! this host, as newline-delimited JSON of [`rpc::node::LogLine`], from line number `from` on (0 if absent). With `follow` the
//! answer goes on until the attempt, or the session, ends; a line may come late, but none is sent twice. It is 404 for a task that
//! the compute node does not know, and 503 with `Retry-After` where the node is away or too many answers are under way. Lines are
//! read from the node at the relay's pace. `POST /challenge` and `POST /challenge/products/{index}` go to the node as they are: what it
//! computes is checked by the relay. Who may read a task's logs is the relay's to check: the agent answers for every
//! task that its node knows.
//!
//! And `POST /tasks/{id}/approval` with a [`SignedMutation`]`<ApproveResult>`: the requester's word for the result of a settled task, by
//! which the agent takes its payment at once. 204, or 404 where no payment of that task is waited for.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use daemon::quote;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use rpc::error::{ErrorBody, ErrorCode, ErrorDetail};
use rpc::inference::InferenceKind;
use rpc::link::{Assignment, AttemptKey};
use rpc::tasks::SignedMutation;
use serde::Deserialize;
use taskmarket::{ApproveResult, TaskId};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::agent::Shared;
use crate::heartbeat;
use crate::inference;
use crate::node::NodeError;
use crate::offer::{self, Refusal};

/// The largest assignment, in bytes: a task's references and parameters are 20 KiB at most, and JSON may escape them sixfold.
const MAX_ASSIGNMENT_BYTES: usize = 256 * 1024;
/// How long an assignment's body may take to arrive.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// How long a relay waits for a cancelled attempt to be gone.
const CALL_OFF_PATIENCE: Duration = Duration::from_secs(10);
/// The answers with logs that may be under way at once in a session.
const MAX_LOG_READERS: usize = 64;
/// The largest challenge, in bytes.
const MAX_CHALLENGE_BYTES: usize = 4 * 1024;
/// How long the node may take over one: it gives up after a minute.
const CHALLENGE_PATIENCE: Duration = Duration::from_secs(70);
/// When to offer again what found no room, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// The service of one session. `heartbeat` is what the relay asked for; `ending` ends the streams that have no end of their own.
pub(crate) fn service(shared: Arc<Shared>, heartbeat: Duration, ending: CancellationToken) -> Router {
    Router::new()
        .route("/tasks", post(offered))
        .route("/tasks/{id}", delete(cancelled))
        .route("/tasks/{id}/logs", get(logs))
        .route("/tasks/{id}/approval", post(approved))
        .route("/heartbeat", get(beat))
        .route("/challenge", post(challenge))
        .route("/challenge/products/{index}", post(challenge))
        .merge(inference_routes())
        .fallback(async || error(ErrorCode::NotFound, "an agent serves /tasks, their logs and /heartbeat"))
        .method_not_allowed_fallback(async || {
            error(ErrorCode::MethodNotAllowed, "the path knows no such method")
        })
        .with_state(Session {
            shared,
            heartbeat,
            ending,
            log_readers: Arc::new(Semaphore::new(MAX_LOG_READERS)),
        })
}

#[derive(Clone)]
struct Session {
    shared: Arc<Shared>,
    heartbeat: Duration,
    ending: CancellationToken,
    log_readers: Arc<Semaphore>,
}

/// `POST` to each endpoint of inference.
fn inference_routes() -> Router<Session> {
    let routes = InferenceKind::ALL.into_iter();
    routes.fold(Router::new(), |router, kind| router.route(kind.path(), post(infer)))
}

async fn infer(State(session): State<Session>, request: Request) -> Response {
    inference::infer(session.shared, request).await
}

async fn offered(State(session): State<Session>, request: Request) -> Response {
    let body = match tokio::time::timeout(BODY_PATIENCE, read(request.into_body())).await {
        Ok(Ok(body)) => body,
        Ok(Err(response)) => return *response,
        Err(_) => return error(ErrorCode::RequestTimeout, "the assignment did not arrive in time"),
    };
    let assignment: Assignment = match serde_json::from_slice(&body) {
        Ok(assignment) => assignment,
        // The position is enough: the text of the error could repeat the token.
        Err(wrong) => {
            let place = format!("line {} column {}", wrong.line(), wrong.column());
            return error(ErrorCode::MalformedRequest, &format!("no assignment: see {place}"));
        }
    };
    let (task, attempt) = (assignment.task_id, assignment.attempt);
    match offer::take(session.shared, assignment).await {
        Ok(accept) => (StatusCode::ACCEPTED, axum::Json(accept)).into_response(),
        Err(refusal) => {
            tracing::info!(%task, attempt, refusal = quote(&refusal.to_string()), "offer not taken");
            refused(refusal)
        }
    }
}

async fn read(body: Body) -> Result<bytes::Bytes, Box<Response>> {
    to_bytes(body, MAX_ASSIGNMENT_BYTES).await.map_err(|_| {
        let message = format!("an assignment has {MAX_ASSIGNMENT_BYTES} bytes at most");
        Box::new(error(ErrorCode::PayloadTooLarge, &message))
    })
}

#[derive(Deserialize)]
struct CancelQuery {
    attempt: Option<u32>,
}

async fn cancelled(
    State(session): State<Session>,
    Path(id): Path<String>,
    Query(query): Query<CancelQuery>,
) -> Response {
    let Ok(task_id) = id.parse::<TaskId>() else {
        return error(ErrorCode::MalformedRequest, "the path must name a task's id");
    };
    let attempts = &session.shared.attempts;
    let keys = match query.attempt {
        Some(attempt) => vec![AttemptKey { task_id, attempt }],
        None => attempts.of_task(&task_id),
    };
    let over: Vec<_> = keys.iter().filter_map(|key| attempts.call_off(key)).collect();
    let all_over = async {
        for token in &over {
            token.cancelled().await;
        }
    };
    // The driver goes on calling it off where that takes longer.
    let _ = tokio::time::timeout(CALL_OFF_PATIENCE, all_over).await;
    StatusCode::NO_CONTENT.into_response()
}

async fn approved(State(session): State<Session>, Path(id): Path<String>, request: Request) -> Response {
    let body = match tokio::time::timeout(BODY_PATIENCE, read(request.into_body())).await {
        Ok(Ok(body)) => body,
        Ok(Err(response)) => return *response,
        Err(_) => return error(ErrorCode::RequestTimeout, "the approval did not arrive in time"),
    };
    let approval = serde_json::from_slice::<SignedMutation<ApproveResult>>(&body);
    let Some(approval) = approval.ok().filter(|approval| approval.mutation.task_id.to_string() == id) else {
        return error(
            ErrorCode::MalformedRequest,
            "an ApproveResult of the task that the path names is expected",
        );
    };
    let Some(money) = &session.shared.money else {
        return error(ErrorCode::NotFound, "this agent takes no settled tasks");
    };
    match money.approve(approval).await {
        Ok(true) => StatusCode::NO_CONTENT.into_response(),
        Ok(false) => error(ErrorCode::NotFound, "no payment is waited for that this approves"),
        Err(failed) => error(ErrorCode::Unavailable, &quote(&failed.to_string())),
    }
}

#[derive(Deserialize)]
struct LogsQuery {
    #[serde(default)]
    from: u64,
    #[serde(default)]
    follow: bool,
}

async fn logs(
    State(session): State<Session>,
    Path(id): Path<String>,
    query: Result<Query<LogsQuery>, QueryRejection>,
) -> Response {
    let Ok(task_id) = id.parse::<TaskId>() else {
        return error(ErrorCode::MalformedRequest, "the path must name a task's id");
    };
    let Ok(Query(LogsQuery { from, follow })) = query else {
        return error(ErrorCode::MalformedRequest, "from is a number, follow is true or false");
    };
    let Ok(permit) = session.log_readers.try_acquire_owned() else {
        return error(ErrorCode::Unavailable, "too many logs are read at once");
    };
    let lines = match session.shared.node.logs(&task_id, from, follow).await {
        Ok(response) => response.bytes_stream(),
        Err(NodeError::Unknown) => return error(ErrorCode::NotFound, "this host does not know the task"),
        Err(failed @ (NodeError::Token(_) | NodeError::Unreachable(_) | NodeError::Refused(_))) => {
            return error(ErrorCode::Unavailable, &quote(&failed.to_string()));
        }
    };
    // The permit lasts as long as the answer.
    let lines = lines.take_until(session.ending.cancelled_owned()).inspect(move |_| {
        let _ = &permit;
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// The relay asks what a GPU computes. The node answers.
async fn challenge(State(session): State<Session>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("", |path| path.as_str().trim_start_matches('/'));
    let body = match tokio::time::timeout(BODY_PATIENCE, to_bytes(body, MAX_CHALLENGE_BYTES)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return error(ErrorCode::PayloadTooLarge, "a challenge has 4 KiB at most"),
        Err(_) => return error(ErrorCode::RequestTimeout, "the challenge did not arrive in time"),
    };
    let headers =
        HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    match session.shared.node.pass(path, headers, body.into(), CHALLENGE_PATIENCE).await {
        Ok(answer) => (answer.status(), Body::from_stream(answer.bytes_stream())).into_response(),
        Err(failed) => error(ErrorCode::Unavailable, &quote(&failed.to_string())),
    }
}

async fn beat(State(session): State<Session>) -> Response {
    let Session { shared, heartbeat, ending, .. } = session;
    let body = heartbeat::body(shared, heartbeat, ending);
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

fn refused(refusal: Refusal) -> Response {
    let kind = if refusal.status.is_server_error() { "server_error" } else { "invalid_request_error" };
    let detail = ErrorDetail {
        message: refusal.message,
        kind: kind.to_owned(),
        code: refusal.code.to_owned(),
        param: None,
        status: None,
    };
    let mut response = (refusal.status, axum::Json(ErrorBody { error: detail })).into_response();
    if refusal.status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    response
}

fn error(code: ErrorCode, message: &str) -> Response {
    let status = StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, axum::Json(ErrorBody::new(code, message))).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    response
}
