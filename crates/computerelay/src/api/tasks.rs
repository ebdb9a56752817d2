//! Publishing tasks, and reading them.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode};
use rpc::error::ErrorCode;
use rpc::tasks::{Explanation, PublishTask, PublishedTask, TaskPage, TaskQuery, TaskView};
use store::{StoredTask, TaskFilter};
use taskmarket::{Address, Domain, MAX_GPU_NAME_BYTES, Signed, Status, TaskId};

use super::extract::{Json, Key, Query, TaskPath};
use super::reader::{By, Reader};
use super::{App, MAX_PAGE, blob};
use crate::error::{ApiError, MarketError};
use crate::keys::Caller;

/// Tasks on a page unless the client says otherwise.
const DEFAULT_PAGE: u32 = 100;

/// `POST /v1/tasks`
pub(super) async fn publish(
    State(app): State<App>,
    Key(key): Key,
    Json(body): Json<PublishTask>,
) -> Result<Response, ApiError> {
    let mut body = body;
    let callback_url = body.callback_url.take();
    if let Some(url) = &callback_url {
        app.webhooks.check_url(url)?;
    }
    let (stored, is_new) = take_in(&app, &key, body).await?;
    let callback_secret = match callback_url {
        None => None,
        Some(_) if !key.may_read(&stored.owner) => {
            let why = "only the API key that published the task can have its events sent";
            return Err(ApiError::new(ErrorCode::Forbidden, why).with_param("callback_url"));
        }
        Some(url) => Some(app.webhooks.add(stored.record.id, url).await?),
    };
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let location = format!("/v1/tasks/{}", stored.record.id);
    let headers = [(http::header::LOCATION, location)];
    let answer = PublishedTask { task: view(&app, &stored, Some(&key)), callback_secret };
    Ok((status, headers, axum::Json(answer)).into_response())
}

/// Takes a signed task in for an API key, or finds it if it is there; the flag says whether it is new. It is carried out to its end, even if
/// the client leaves. An open task that is found is on offer afterwards, whatever became of its first publication.
///
/// # Errors
/// The signature or the domain is wrong, or the market refuses the task.
pub(super) async fn take_in(
    app: &App,
    key: &Caller,
    body: PublishTask,
) -> Result<(StoredTask, bool), ApiError> {
    let domain = domain_of(app, body.verifying_contract)?;
    let task = Signed { message: body.task, signature: body.signature }.verify(&domain)?;
    let (work, owner) = (app.clone(), key.id.clone());
    let publication = Box::pin(async move {
        let (stored, is_new) = work.market.publish(task, owner).await?;
        if !is_new && stored.record.status() == Status::Open {
            work.hub.look_again(stored.record.id).await;
        }
        Ok((stored, is_new))
    });
    app.finish(publication).await
}

/// The domain of a contract.
///
/// # Errors
/// This relay serves none of it.
pub(super) fn domain_of(app: &App, verifying_contract: Address) -> Result<Domain, ApiError> {
    let domains = app.market.domains();
    let domain = domains.iter().find(|domain| domain.verifying_contract == verifying_contract);
    domain.copied().ok_or_else(|| {
        let asked = Domain { verifying_contract, ..Domain::UNSETTLED };
        MarketError::UnknownDomain { asked, takes: domains.to_vec() }.into()
    })
}

/// `GET /v1/tasks`
pub(super) async fn list(
    State(app): State<App>,
    Key(key): Key,
    Query(query): Query<TaskQuery>,
) -> Result<axum::Json<TaskPage>, ApiError> {
    page(&app, &key, query).await.map(axum::Json)
}

/// A page of the tasks that a query asks for, as the holder of a key sees them.
///
/// # Errors
/// The limit or the cursor is wrong, or the store fails.
pub(super) async fn page(app: &App, key: &Caller, query: TaskQuery) -> Result<TaskPage, ApiError> {
    let limit = query.limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        let message = format!("limit: 1 to {MAX_PAGE}");
        return Err(ApiError::new(ErrorCode::InvalidField, message).with_param("limit"));
    }
    if query.gpu_type.as_ref().is_some_and(|name| !taskmarket::is_gpu_name(name)) {
        let message = format!("gpu_type: at most {MAX_GPU_NAME_BYTES} printable bytes");
        return Err(ApiError::new(ErrorCode::InvalidField, message).with_param("gpu_type"));
    }
    let cursor = query.cursor.as_deref().map(str::parse).transpose()?;
    let filter = TaskFilter {
        requester: query.requester,
        provider: query.provider,
        status: query.status,
        gpu_type: query.gpu_type,
        created_from: query.created_from,
        created_before: query.created_before,
    };
    // Read before the page, so that the page has at least what was committed up to it.
    let last_event_id = app.market.store().last_seq().await?;
    let page = app.market.store().list(filter, cursor, limit as usize).await?;
    let tasks = page.tasks.iter().map(|task| view(app, task, Some(key))).collect();
    Ok(TaskPage { tasks, next_cursor: page.next.map(|cursor| cursor.to_string()), last_event_id })
}

/// `GET /v1/tasks/{id}`
pub(super) async fn show(
    State(app): State<App>,
    reader: Reader,
    TaskPath(id): TaskPath,
) -> Result<axum::Json<TaskView>, ApiError> {
    let (task, is_whole) = reader.find(&app, id, By::Parties).await?;
    Ok(axum::Json(shown(&app, &task, is_whole)))
}

/// `GET /v1/tasks/{id}/explain`
pub(super) async fn explain(
    State(app): State<App>,
    reader: Reader,
    TaskPath(id): TaskPath,
) -> Result<axum::Json<Explanation>, ApiError> {
    let task = reader.find_whole(&app, id, By::Requester).await?;
    Ok(axum::Json(app.hub.explain(&task)))
}

/// `GET /v1/tasks/{id}/result`
pub(super) async fn result(
    State(app): State<App>,
    reader: Reader,
    TaskPath(id): TaskPath,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let task = reader.find_whole(&app, id, By::Parties).await?;
    let Some(submission) = task.record.submission() else {
        let status = task.record.status();
        let message = format!("task {id} is {status}: it has no result");
        return Err(ApiError::new(ErrorCode::Conflict, message).with_status(status));
    };
    let digest = artifact::Digest(submission.proof.message.result_hash.0.0);
    let mut response = blob::serve(app.market.artifacts(), digest, &headers).await?;
    let hash = HeaderValue::from_str(&digest.to_string()).expect("hex digits are a header value");
    response.headers_mut().insert(rpc::RESULT_HASH_HEADER, hash);
    Ok(response)
}

/// The task, if there is one.
pub(super) async fn find(app: &App, id: TaskId) -> Result<StoredTask, ApiError> {
    app.market.task(id).await?.ok_or_else(|| MarketError::NotFound(id).into())
}

/// The task, if there is one and this caller may see it whole.
pub(super) async fn find_owned(app: &App, id: TaskId, key: &Caller) -> Result<StoredTask, ApiError> {
    let task = find(app, id).await?;
    if key.may_read(&task.owner) {
        return Ok(task);
    }
    Err(ApiError::new(
        ErrorCode::Forbidden,
        "only the API key that published the task, or an admin's, can read this",
    ))
}

/// A task as the holder of a key sees it: whole if the key published the task, or is an admin's.
pub(super) fn view(app: &App, task: &StoredTask, key: Option<&Caller>) -> TaskView {
    shown(app, task, key.is_some_and(|key| key.may_read(&task.owner)))
}

fn shown(app: &App, task: &StoredTask, is_whole: bool) -> TaskView {
    let mut view = TaskView::new(&task.record, is_whole, app.market.progress(&task.record));
    view.settlement_pending = app.market.chain().and_then(|chain| chain.pending(&task.record));
    view
}
