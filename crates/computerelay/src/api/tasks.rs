//! Publishing tasks, and reading them.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode};
use rpc::error::ErrorCode;
use rpc::tasks::{Explanation, PublishTask, TaskPage, TaskQuery, TaskView};
use store::{KeyId, StoredTask, TaskFilter};
use taskmarket::{Domain, Signed, TaskId};

use super::extract::{Json, Key, Query, TaskPath};
use super::{App, MAX_PAGE, blob};
use crate::error::{ApiError, MarketError};
use crate::market::DOMAINS;

/// Tasks on a page unless the client says otherwise.
const DEFAULT_PAGE: u32 = 100;

/// `POST /v1/tasks`
pub(super) async fn publish(
    State(app): State<App>,
    Key(key): Key,
    Json(body): Json<PublishTask>,
) -> Result<Response, ApiError> {
    let domain = DOMAINS.iter().find(|domain| domain.verifying_contract == body.verifying_contract);
    let Some(domain) = domain else {
        let asked = Domain { verifying_contract: body.verifying_contract, ..Domain::UNSETTLED };
        return Err(MarketError::UnknownDomain { asked, takes: DOMAINS.to_vec() }.into());
    };
    let task = Signed { message: body.task, signature: body.signature }.verify(domain)?;
    let (stored, is_new) = app.market.publish(task, key.clone()).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let location = format!("/v1/tasks/{}", stored.record.id);
    let headers = [(http::header::LOCATION, location)];
    Ok((status, headers, axum::Json(view(&app, &stored, Some(&key)))).into_response())
}

/// `GET /v1/tasks`
pub(super) async fn list(
    State(app): State<App>,
    Key(key): Key,
    Query(query): Query<TaskQuery>,
) -> Result<axum::Json<TaskPage>, ApiError> {
    let limit = query.limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        let message = format!("limit: 1 to {MAX_PAGE}");
        return Err(ApiError::new(ErrorCode::InvalidField, message).with_param("limit"));
    }
    let cursor = query.cursor.as_deref().map(str::parse).transpose()?;
    let filter = TaskFilter {
        requester: query.requester,
        provider: query.provider,
        status: query.status,
        gpu_type: query.gpu_type,
        created_from: None,
        created_before: None,
    };
    let page = app.market.store().list(filter, cursor, limit as usize).await?;
    let tasks = page.tasks.iter().map(|task| view(&app, task, Some(&key))).collect();
    Ok(axum::Json(TaskPage { tasks, next_cursor: page.next.map(|cursor| cursor.to_string()) }))
}

/// `GET /v1/tasks/{id}`
pub(super) async fn show(
    State(app): State<App>,
    Key(key): Key,
    TaskPath(id): TaskPath,
) -> Result<axum::Json<TaskView>, ApiError> {
    let task = find(&app, id).await?;
    Ok(axum::Json(view(&app, &task, Some(&key))))
}

/// `GET /v1/tasks/{id}/explain`
pub(super) async fn explain(
    State(app): State<App>,
    Key(key): Key,
    TaskPath(id): TaskPath,
) -> Result<axum::Json<Explanation>, ApiError> {
    let task = find_owned(&app, id, &key).await?;
    Ok(axum::Json(app.hub.explain(&task)))
}

/// `GET /v1/tasks/{id}/result`
pub(super) async fn result(
    State(app): State<App>,
    Key(key): Key,
    TaskPath(id): TaskPath,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let task = find_owned(&app, id, &key).await?;
    let Some(submission) = task.record.submission() else {
        let status = task.record.status();
        let message = format!("task {id} is {status}: it has no result");
        return Err(ApiError::new(ErrorCode::Conflict, message).with_status(status));
    };
    let digest = artifact::Digest(submission.proof.message.result_hash.0.0);
    let mut response = blob::serve(app.market.blobs(), digest, &headers).await?;
    let hash = HeaderValue::from_str(&digest.to_string()).expect("hex digits are a header value");
    response.headers_mut().insert(rpc::RESULT_HASH_HEADER, hash);
    Ok(response)
}

/// The task, if there is one.
pub(super) async fn find(app: &App, id: TaskId) -> Result<StoredTask, ApiError> {
    app.market.task(id).await?.ok_or_else(|| MarketError::NotFound(id).into())
}

/// The task, if there is one and this key published it.
pub(super) async fn find_owned(app: &App, id: TaskId, key: &KeyId) -> Result<StoredTask, ApiError> {
    let task = find(app, id).await?;
    if task.owner == *key {
        return Ok(task);
    }
    Err(ApiError::new(ErrorCode::Forbidden, "only the API key that published the task can read this"))
}

/// A task as the holder of a key sees it: whole if it published the task.
pub(super) fn view(app: &App, task: &StoredTask, key: Option<&KeyId>) -> TaskView {
    TaskView::new(&task.record, key == Some(&task.owner), app.market.progress(&task.record))
}
