//! How handlers read requests: each part becomes its type or an answer that names what was wrong with it.

use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Path};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{Extensions, HeaderMap, Request};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use rpc::error::ErrorCode;
use serde::de::DeserializeOwned;
use store::{KeyId, Scope};
use taskmarket::TaskId;

use super::App;
use crate::auth::Identity;
use crate::error::ApiError;
use crate::keys::Caller;

/// How long a client may take to send a JSON body.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// Who asks, by the API key of the request: to read where the method only reads, to write where it does more. Without a good key
/// that reaches so far the request ends here, before its body is looked at.
pub(super) struct Key(pub(super) Caller);

impl FromRequestParts<App> for Key {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        let scope = if parts.method.is_safe() { Scope::TasksRead } else { Scope::TasksWrite };
        require_scope(&parts.extensions, scope).map(Self)
    }
}

/// Who asks, by the API key of the request, whatever it may be used for.
pub(super) struct AnyKey(pub(super) Caller);

impl FromRequestParts<App> for AnyKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        require_key(&parts.extensions).map(Self)
    }
}

/// An operator of the relay, by the API key of the request.
pub(super) struct Admin;

impl FromRequestParts<App> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        require_scope(&parts.extensions, Scope::Admin).map(|_| Self)
    }
}

/// Who asks, if the request carries a good API key.
pub(super) struct MaybeKey(pub(super) Option<Caller>);

impl FromRequestParts<App> for MaybeKey {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Self::Rejection> {
        Ok(Self(parts.extensions.get::<Identity>().and_then(Identity::maybe).cloned()))
    }
}

/// Who asks, by the API key of the request whose extensions these are.
///
/// # Errors
/// 401 where it carries none, or one that is not good.
pub(super) fn require_key(extensions: &Extensions) -> Result<Caller, ApiError> {
    let identity = extensions.get::<Identity>();
    let identity = identity.ok_or_else(|| ApiError::internal(&"a request was not identified"))?;
    identity.caller().cloned()
}

/// As [`require_key`], of a key that reaches this far.
///
/// # Errors
/// As of [`require_key`]; 403 where the key has not this scope.
pub(super) fn require_scope(extensions: &Extensions, scope: Scope) -> Result<Caller, ApiError> {
    let caller = require_key(extensions)?;
    caller.require(scope)?;
    Ok(caller)
}

/// The task id in the path.
pub(super) struct TaskPath(pub(super) TaskId);

impl FromRequestParts<App> for TaskPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        path_part(parts, app, "task_id").await.map(Self)
    }
}

/// The id of an API key in the path.
pub(super) struct KeyPath(pub(super) KeyId);

impl FromRequestParts<App> for KeyPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let text: String = path_part(parts, app, "id").await?;
        text.parse().map(Self).map_err(|_| {
            let message = "id in the path: expected the 16 hex digits of an API key's id";
            ApiError::new(ErrorCode::MalformedRequest, message).with_param("id")
        })
    }
}

/// The one parameter of the path, parsed.
pub(super) async fn path_part<T>(parts: &mut Parts, app: &App, name: &'static str) -> Result<T, ApiError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let malformed = |why: String| {
        ApiError::new(ErrorCode::MalformedRequest, format!("{name} in the path: {why}")).with_param(name)
    };
    let Path(text): Path<String> = Path::from_request_parts(parts, app)
        .await
        .map_err(|error: PathRejection| malformed(error.body_text()))?;
    text.parse().map_err(|error: T::Err| malformed(error.to_string()))
}

/// The query, parsed.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let axum::extract::Query(value) =
            axum::extract::Query::from_request_parts(parts, app).await.map_err(|error| {
                ApiError::new(ErrorCode::MalformedRequest, error.body_text()).with_param("query")
            })?;
        Ok(Self(value))
    }
}

/// A JSON body, parsed.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, app: &App) -> Result<Self, ApiError> {
        check_content_type(request.headers())?;
        let (parts, body) = request.into_parts();
        let bytes = read(&parts.headers, body, app.limits.max_body_bytes).await?;
        parse(&bytes).map(Self)
    }
}

/// Checks that a body is said to be JSON.
///
/// # Errors
/// 415 where it is not.
pub(super) fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = format!("the content-type must be application/json, not {essence:?}");
    Err(ApiError::new(ErrorCode::UnsupportedMediaType, message).with_param("content-type"))
}

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// 413 where it is larger, 408 where it takes too long, 400 where it breaks off.
pub(crate) async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let too_large =
        || ApiError::new(ErrorCode::PayloadTooLarge, format!("the body is larger than {limit} bytes"));
    if declared_length(headers).is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let body = Limited::new(body, limit).collect();
    match tokio::time::timeout(BODY_DEADLINE, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => {
            Err(ApiError::new(ErrorCode::MalformedRequest, format!("the body broke off: {error}")))
        }
        Err(_) => {
            let message = format!("the body did not come within {} s", BODY_DEADLINE.as_secs());
            Err(ApiError::new(ErrorCode::RequestTimeout, message))
        }
    }
}

/// How long the body is by the client's word, if it says so.
pub(super) fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Parses JSON.
///
/// # Errors
/// 400, which names the field and the position.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let failed = |message| ApiError::new(ErrorCode::MalformedRequest, message);
        if path == "." {
            failed(error.inner().to_string())
        } else {
            failed(format!("{path}: {}", error.inner())).with_param(path)
        }
    })?;
    deserializer.end().map_err(|error| ApiError::new(ErrorCode::MalformedRequest, error.to_string()))?;
    Ok(value)
}
