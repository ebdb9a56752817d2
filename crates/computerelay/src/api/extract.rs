//! How handlers read requests: each part becomes its type or an answer that names what was wrong with it.

use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Path};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use rpc::error::ErrorCode;
use serde::de::DeserializeOwned;
use store::KeyId;
use taskmarket::TaskId;

use super::App;
use crate::auth::bearer;
use crate::error::ApiError;

/// How long a client may take to send a JSON body.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// The API key of the request. Without a known one the request ends here with 401, before its body is looked at.
pub(super) struct Key(pub(super) KeyId);

impl FromRequestParts<App> for Key {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        require_key(&parts.headers, app).map(Self)
    }
}

/// The API key of the request, if it carries a known one.
pub(super) struct MaybeKey(pub(super) Option<KeyId>);

impl FromRequestParts<App> for MaybeKey {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        Ok(Self(bearer(&parts.headers).and_then(|key| app.keys.find(key))))
    }
}

/// The API key that a request carries.
///
/// # Errors
/// 401 where it carries none, or an unknown one.
pub(super) fn require_key(headers: &HeaderMap, app: &App) -> Result<KeyId, ApiError> {
    let Some(key) = bearer(headers) else {
        let how = "an API key is needed: send it as `Authorization: Bearer <key>`";
        return Err(ApiError::new(ErrorCode::InvalidApiKey, how).with_param("authorization"));
    };
    app.keys.find(key).ok_or_else(|| {
        ApiError::new(ErrorCode::InvalidApiKey, "this API key is not known here").with_param("authorization")
    })
}

/// The task id in the path.
pub(super) struct TaskPath(pub(super) TaskId);

impl FromRequestParts<App> for TaskPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        path_part(parts, app, "task_id").await.map(Self)
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
        let bytes = read(request, app.limits.max_body_bytes).await?;
        parse(&bytes).map(Self)
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = format!("the content-type must be application/json, not {essence:?}");
    Err(ApiError::new(ErrorCode::UnsupportedMediaType, message).with_param("content-type"))
}

async fn read(request: Request<Body>, limit: usize) -> Result<Bytes, ApiError> {
    let too_large =
        || ApiError::new(ErrorCode::PayloadTooLarge, format!("the body is larger than {limit} bytes"));
    if declared_length(request.headers()).is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let body = Limited::new(request.into_body(), limit).collect();
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

/// Parses JSON; an error names the field and the position.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
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
