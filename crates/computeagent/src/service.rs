//! What the relay can ask over the link.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use http::{HeaderValue, StatusCode, header};
use rpc::error::{ErrorBody, ErrorCode, ErrorDetail};
use rpc::link::{Assignment, AttemptKey};
use serde::Deserialize;
use taskmarket::TaskId;
use tokio_util::sync::CancellationToken;

use crate::agent::Shared;
use crate::heartbeat;
use crate::http_client::quote;
use crate::offer::{self, Refusal};

/// The largest assignment, in bytes: a task's references and parameters are 20 KiB at most, and JSON may escape them sixfold.
const MAX_ASSIGNMENT_BYTES: usize = 256 * 1024;
/// How long an assignment's body may take to arrive.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// How long a relay waits for a cancelled attempt to be gone.
const CALL_OFF_PATIENCE: Duration = Duration::from_secs(10);
/// When to offer again what found no room, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// The service of one session. `heartbeat` is what the relay asked for; `ending` ends the streams that have no end of their own.
pub(crate) fn service(shared: Arc<Shared>, heartbeat: Duration, ending: CancellationToken) -> Router {
    Router::new()
        .route("/tasks", post(offered))
        .route("/tasks/{id}", delete(cancelled))
        .route("/heartbeat", get(beat))
        .fallback(async || error(ErrorCode::NotFound, "an agent serves /tasks and /heartbeat"))
        .method_not_allowed_fallback(async || {
            error(ErrorCode::MethodNotAllowed, "the path knows no such method")
        })
        .with_state(Session { shared, heartbeat, ending })
}

#[derive(Clone)]
struct Session {
    shared: Arc<Shared>,
    heartbeat: Duration,
    ending: CancellationToken,
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

async fn beat(State(session): State<Session>) -> Response {
    let Session { shared, heartbeat, ending } = session;
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
    (status, axum::Json(ErrorBody::new(code, message))).into_response()
}
