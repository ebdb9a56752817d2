//! Inference, in OpenAI's form: `POST /v1/chat/completions` and its siblings, models, and the records of what was served.

use std::collections::HashMap;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use http::request::Parts;
use rpc::error::ErrorCode;
use rpc::inference::{InferenceKind, ModelList, ModelView, ReceiptView};
use rpc::keys::ModelUsage;
use store::{KeyId, Scope, Usage, UsageFilter};

use super::App;
use super::chat_task;
use super::extract::{AnyKey, check_content_type, declared_length, path_part, read, require_scope};
use crate::error::ApiError;
use crate::gateway::{self, Content};
use crate::idempotency::{Keyed, asked};
use crate::keys::Caller;

/// Models of keys and days that are read for a page of usage at most.
const MAX_MODEL_ROWS: usize = 10_000;

/// Who asks, by an API key that may call models.
pub(super) struct InferenceKey(Caller);

impl FromRequestParts<App> for InferenceKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        require_scope(&parts.extensions, Scope::Inference).map(Self)
    }
}

/// The id in the path: of a model or of a request.
pub(super) struct IdPath(String);

impl FromRequestParts<App> for IdPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        path_part(parts, app, "id").await.map(Self)
    }
}

/// `POST /v1/chat/completions`
pub(super) async fn chat(app: State<App>, key: InferenceKey, request: Request) -> Result<Response, ApiError> {
    serve(app, key, request, InferenceKind::Chat).await
}

/// `POST /v1/completions`
pub(super) async fn complete(
    app: State<App>,
    key: InferenceKey,
    request: Request,
) -> Result<Response, ApiError> {
    serve(app, key, request, InferenceKind::Completions).await
}

/// `POST /v1/embeddings`
pub(super) async fn embed(
    app: State<App>,
    key: InferenceKey,
    request: Request,
) -> Result<Response, ApiError> {
    serve(app, key, request, InferenceKind::Embeddings).await
}

/// `POST /v1/responses`
pub(super) async fn respond(
    app: State<App>,
    key: InferenceKey,
    request: Request,
) -> Result<Response, ApiError> {
    serve(app, key, request, InferenceKind::Responses).await
}

async fn serve(
    State(app): State<App>,
    InferenceKey(caller): InferenceKey,
    request: Request<Body>,
    kind: InferenceKind,
) -> Result<Response, ApiError> {
    check_content_type(request.headers())?;
    let key = asked(request.headers())?;
    let (parts, body) = request.into_parts();
    let room = app.gateway.room(declared_length(&parts.headers)).await?;
    let body = read(&parts.headers, body, app.gateway.max_body_bytes()).await?;
    let keyed = match key {
        Some(key) => Some(Keyed::new(&caller, key, &parts, &body).await?),
        None => None,
    };
    // It is large, and handed on.
    let work = Box::pin(carry_out(&app, caller.clone(), kind, parts.headers, Content::new(body, room)));
    let answer = match keyed {
        Some(keyed) => keyed.once(&app, work).await,
        None => work.await,
    };
    let mut response = answer.into_response();
    // What is used now counts once the answer has ended.
    if let Some(standing) = app.gateway.tokens_left(&caller) {
        standing.tell_tokens(response.headers_mut());
    }
    Ok(response)
}

async fn carry_out(
    app: &App,
    caller: Caller,
    kind: InferenceKind,
    headers: HeaderMap,
    content: Content,
) -> Result<Response, ApiError> {
    if kind == InferenceKind::Chat && chat_task::is_task(&content.body) {
        let patience = app.gateway.patience(&caller, &headers)?;
        // Few requests are tasks: the others need not carry what those wait with.
        return Box::pin(chat_task::serve(app, &caller, content, patience)).await;
    }
    let request_id = headers.get(rpc::REQUEST_ID_HEADER).cloned();
    let request_id = request_id.ok_or_else(|| ApiError::internal(&"a request has no id"))?;
    let at = app.market.now();
    app.gateway.serve(gateway::Request { caller, kind, request_id, headers, content, at }).await
}

/// `GET /v1/models`
pub(super) async fn models(State(app): State<App>, _: InferenceKey) -> axum::Json<ModelList> {
    axum::Json(ModelList { object: "list".to_owned(), data: app.gateway.models() })
}

/// `GET /v1/models/{id}`; ids may hold slashes.
pub(super) async fn model(
    State(app): State<App>,
    _: InferenceKey,
    IdPath(id): IdPath,
) -> Result<axum::Json<ModelView>, ApiError> {
    app.gateway.model(&id).map(axum::Json)
}

/// `GET /v1/receipts/{request_id}`
pub(super) async fn receipt(
    State(app): State<App>,
    AnyKey(caller): AnyKey,
    IdPath(id): IdPath,
) -> Result<axum::Json<ReceiptView>, ApiError> {
    let owner = (!caller.is_admin()).then(|| caller.id.clone());
    let missing = || ApiError::not_found(format_args!("record of a request {id:?} of this API key"));
    // No request has such an id, and no store takes it.
    if id.contains('\0') {
        return Err(missing());
    }
    app.gateway.flush().await;
    let stored = app.market.store().receipt(owner, &id).await?.ok_or_else(missing)?;
    serde_json::from_str(&stored.record).map(axum::Json).map_err(|error| ApiError::internal(&error))
}

/// The models that served what was counted, by key and day.
pub(super) async fn models_used(
    app: &App,
    owner: Option<KeyId>,
    rows: &[Usage],
) -> Result<HashMap<(u64, KeyId), Vec<ModelUsage>>, ApiError> {
    let mut models: HashMap<_, Vec<_>> = HashMap::new();
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(models) };
    let filter = UsageFilter { owner, from: first.day, to: last.day };
    // The rows before the first of the page are of pages before; the empty name comes before any model.
    let after = Some((first.day, first.owner.clone(), String::new()));
    let used = app.market.store().model_usage(filter, after, MAX_MODEL_ROWS + 1).await?;
    if used.len() > MAX_MODEL_ROWS {
        let message = format!("more than {MAX_MODEL_ROWS} models were used: ask for fewer days");
        return Err(ApiError::new(ErrorCode::InvalidField, message).with_param("from"));
    }
    for store::ModelUsage { owner, day, model, requests, prompt_tokens, completion_tokens } in used {
        let usage = ModelUsage { model, requests, prompt_tokens, completion_tokens };
        models.entry((day, owner)).or_default().push(usage);
    }
    Ok(models)
}
