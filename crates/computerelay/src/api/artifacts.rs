//! Artifacts: models, inputs and results, stored under the SHA-256 of their bytes.

use std::time::Duration;

use artifact::{Digest, PutError};
use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use http::header::{ETAG, EXPECT};
use http::request::Parts;
use http::{HeaderMap, Request, StatusCode};
use rpc::error::ErrorCode;
use store::{KeyId, Scope};
use taskmarket::{B256, ContentHash};

use super::App;
use super::attempts::{Attempt, Attempts, Reservation};
use super::blob;
use super::extract::{declared_length, path_part, require_key};
use crate::auth::bearer;
use crate::error::ApiError;

/// How long a client may pause while it sends an artifact.
const PAUSE_DEADLINE: Duration = Duration::from_secs(30);

/// Who asks for an artifact.
pub(super) enum Caller {
    /// The holder of an API key.
    Key(KeyId),
    /// The provider of an attempt.
    Attempt(Box<Attempt>),
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let refused = match require_key(&parts.extensions) {
            Ok(key) => {
                let scope = if parts.method.is_safe() { Scope::TasksRead } else { Scope::TasksWrite };
                key.require(scope)?;
                return Ok(Self::Key(key.id));
            }
            Err(refused) => refused,
        };
        let token = bearer(&parts.headers).ok_or(refused)?;
        Ok(Self::Attempt(Box::new(app.attempts.find(&app.market, token).await?)))
    }
}

/// The digest in the path.
pub(super) struct DigestPath(Digest);

impl FromRequestParts<App> for DigestPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        path_part(parts, app, "sha256").await.map(Self)
    }
}

/// `GET /v1/artifacts/{sha256}`
pub(super) async fn get(
    State(app): State<App>,
    caller: Caller,
    DigestPath(digest): DigestPath,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    check_read(&app, &caller, digest).await?;
    blob::serve(app.market.blobs(), digest, &headers).await
}

/// `HEAD /v1/artifacts/{sha256}`
pub(super) async fn head(
    State(app): State<App>,
    caller: Caller,
    DigestPath(digest): DigestPath,
) -> Result<Response, ApiError> {
    match &caller {
        Caller::Key(_) => {}
        Caller::Attempt(attempt) => Attempts::check_store(attempt, digest)?,
    }
    let response = blob::serve(app.market.blobs(), digest, &HeaderMap::new()).await?;
    let (parts, _) = response.into_parts();
    Ok(Response::from_parts(parts, Body::empty()))
}

async fn check_read(app: &App, caller: &Caller, digest: Digest) -> Result<(), ApiError> {
    match caller {
        // Whoever knows the digest of bytes that no other key may see must know the bytes: the digest is the right to read.
        Caller::Key(_) => Ok(()),
        Caller::Attempt(attempt) => app.attempts.check_read(&app.market, attempt, digest).await,
    }
}

/// `PUT /v1/artifacts/{sha256}`
pub(super) async fn put(
    State(app): State<App>,
    caller: Caller,
    DigestPath(digest): DigestPath,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let declared = declared_length(request.headers());
    let (owner, reservation) = match &caller {
        Caller::Key(key) => (key, None),
        Caller::Attempt(attempt) => (attempt.owner(), Some(app.attempts.reserve(attempt, digest, declared)?)),
    };
    let limit = reservation.as_ref().map_or(app.limits.max_artifact_bytes, Reservation::bytes);
    if declared.is_some_and(|length| length > limit) {
        return Err(put_error(PutError::TooLarge { limit }));
    }
    let blobs = app.market.blobs();
    let is_stored = blobs.contains(&digest).await.map_err(|error| ApiError::internal(&error))?;
    let waits = request.headers().contains_key(EXPECT);
    let body = bounded_pauses(request.into_body());
    if is_stored {
        // A client that waits for `100 Continue` need not send at all; another is heard out, so that it reads the answer.
        if !waits {
            discard(body, limit).await?;
        }
    } else {
        let (_, size) = blobs.put(body, Some(digest), limit).await.map_err(put_error)?;
        if let Some(reservation) = reservation {
            reservation.keep(size);
        }
    }
    remember(&app, digest, owner.clone()).await?;
    let status = if is_stored { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, [(ETAG, format!("\"{digest}\""))]).into_response())
}

/// Keeps whose artifact it is. Also for one that is stored already: a crash may have come in between.
async fn remember(app: &App, digest: Digest, owner: KeyId) -> Result<(), ApiError> {
    let size = app.market.blobs().size_of(&digest).await.map_err(|error| ApiError::internal(&error))?;
    let hash = ContentHash(B256::from(digest.0));
    app.market.store().add_artifact(hash, size.unwrap_or_default(), owner, app.market.now()).await?;
    Ok(())
}

type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The pieces of a body, broken off when none comes for too long.
fn bounded_pauses(body: Body) -> impl Stream<Item = Result<bytes::Bytes, BodyError>> + Send {
    futures_util::stream::unfold(Some(body.into_data_stream()), async |pieces| {
        let mut pieces = pieces?;
        match tokio::time::timeout(PAUSE_DEADLINE, pieces.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(piece))) => Some((Ok(piece), Some(pieces))),
            Ok(Some(Err(error))) => Some((Err(error.into()), None)),
            Err(_) => Some((Err(Paused.into()), None)),
        }
    })
}

/// The client sent nothing for too long.
#[derive(Debug, thiserror::Error)]
#[error("nothing came for {} s", PAUSE_DEADLINE.as_secs())]
struct Paused;

async fn discard(
    body: impl Stream<Item = Result<bytes::Bytes, BodyError>>,
    limit: u64,
) -> Result<(), ApiError> {
    let mut body = std::pin::pin!(body);
    let mut left = limit;
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| put_error(PutError::Source(error)))?;
        left = left.checked_sub(piece.len() as u64).ok_or_else(|| put_error(PutError::TooLarge { limit }))?;
    }
    Ok(())
}

fn put_error(error: PutError) -> ApiError {
    let message = error.to_string();
    match error {
        PutError::HashMismatch { .. } => ApiError::new(ErrorCode::HashMismatch, message).with_param("sha256"),
        PutError::TooLarge { .. } => ApiError::new(ErrorCode::PayloadTooLarge, message),
        PutError::Source(source) if source.is::<Paused>() => {
            ApiError::new(ErrorCode::RequestTimeout, message)
        }
        PutError::Source(_) => ApiError::new(ErrorCode::MalformedRequest, message),
        PutError::Io { .. } => ApiError::internal(&error),
    }
}
