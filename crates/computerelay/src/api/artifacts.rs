//! Artifacts: models, inputs and results, stored under the SHA-256 of their bytes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use artifact::Digest;
use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use http::header::{CONTENT_RANGE, ETAG, EXPECT};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Request, StatusCode};
use rpc::error::ErrorCode;
use store::{KeyId, Scope};
use taskmarket::ReadTask;
use tokio::time::Instant;

use super::App;
use super::attempts::Attempt;
use super::blob;
use super::extract::{declared_length, path_part, require_key};
use super::reader::{is_party, signed_reader, stranger};
use super::tasks::find;
use crate::artifacts::{PutError, Room, Space, Uploader};
use crate::auth::bearer;
use crate::error::ApiError;

/// How long a client may pause while it sends an artifact.
const PAUSE_DEADLINE: Duration = Duration::from_secs(30);
/// How long sending may take in all, besides the time for its bytes.
const SEND_DEADLINE: Duration = Duration::from_secs(60);
/// As many bytes of what is refused are read before the answer, so that clients which send first and read then get to see it.
const HEARD_OUT: u64 = 64 << 20;
/// The slowest that bytes may come on average, in a second.
const SLOWEST: u64 = 16 * 1024;

const UPLOAD_OFFSET: HeaderName = HeaderName::from_static(rpc::UPLOAD_OFFSET_HEADER);

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
        Ok(Self::Attempt(Box::new(app.attempts.find(&app.market, &app.hub, token).await?)))
    }
}

/// Who asks to read an artifact.
pub(super) enum Asker {
    /// Whoever may store some too.
    Caller(Caller),
    /// A task's requester or provider, who may fetch its result.
    Party(Box<ReadTask>),
}

impl FromRequestParts<App> for Asker {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        match signed_reader(&parts.headers, app.market.now())? {
            Some(read) if bearer(&parts.headers).is_none() => Ok(Self::Party(Box::new(read))),
            Some(_) | None => Caller::from_request_parts(parts, app).await.map(Self::Caller),
        }
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
    asker: Asker,
    DigestPath(digest): DigestPath,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    match &asker {
        // Whoever knows the digest of bytes that no other key may see must know the bytes: the digest is the right to read.
        Asker::Caller(Caller::Key(_)) => {}
        Asker::Caller(Caller::Attempt(attempt)) => {
            app.attempts.check_read(&app.market, attempt, digest).await?;
        }
        Asker::Party(read) => check_result(&app, read, digest).await?,
    }
    blob::serve(app.market.artifacts(), digest, &headers).await
}

/// `HEAD /v1/artifacts/{sha256}`
pub(super) async fn head(
    State(app): State<App>,
    asker: Asker,
    DigestPath(digest): DigestPath,
) -> Result<Response, ApiError> {
    let artifacts = app.market.artifacts();
    let mut came = None;
    match &asker {
        Asker::Caller(Caller::Key(key)) => came = artifacts.came(&Uploader::Key(key.clone()), digest),
        Asker::Caller(Caller::Attempt(attempt)) => {
            came = artifacts.came(&attempt.uploader(), digest);
            match app.attempts.check_ask(&app.market, attempt, digest).await {
                // Of bytes that it began to send it hears how many came, and not whether others have them.
                Ok(()) => {}
                Err(refused) => {
                    let Some(came) = came else { return Err(refused) };
                    return Err(blob::missing(digest).with_header(UPLOAD_OFFSET, came.into()));
                }
            }
        }
        Asker::Party(read) => check_result(&app, read, digest).await?,
    }
    let described = blob::describe(artifacts, digest).await;
    match (described, came) {
        (Err(missing), Some(came)) => Err(missing.with_header(UPLOAD_OFFSET, came.into())),
        (described, _) => described,
    }
}

/// Checks that who asks is a party of the task that they name, and that this is its result.
async fn check_result(app: &App, read: &ReadTask, digest: Digest) -> Result<(), ApiError> {
    let task = find(app, read.task_id).await?;
    let proof = task.record.submission().map(|submission| &submission.proof.message);
    let is_result = proof.is_some_and(|proof| proof.result_hash.0.0 == digest.0);
    if is_party(&task.record, read) && is_result { Ok(()) } else { Err(stranger()) }
}

/// `PUT /v1/artifacts/{sha256}`
pub(super) async fn put(
    State(app): State<App>,
    caller: Caller,
    DigestPath(digest): DigestPath,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let from = offset(request.headers())?;
    let declared = declared_length(request.headers());
    let artifacts = app.market.artifacts();
    let (uploader, reservation) = match &caller {
        Caller::Key(key) => (Uploader::Key(key.clone()), None),
        Caller::Attempt(attempt) => {
            let uploader = attempt.uploader();
            if from == 0 {
                // What it sends anew it does not pay for twice.
                artifacts.forget(&uploader);
            }
            (uploader, app.attempts.reserve(attempt, digest, declared)?)
        }
    };
    let limit = app.limits.max_artifact_bytes;
    if declared.is_some_and(|length| length.saturating_add(from) > limit) {
        return Err(put_error(PutError::TooLarge { limit }));
    }
    // To an attempt the relay does not tell whether it has bytes of others: those it has to send.
    let is_shown = match &caller {
        Caller::Key(_) => true,
        Caller::Attempt(attempt) => app.attempts.is_own(attempt, digest),
    };
    let is_stored = is_shown && artifacts.contains(&digest).await?;
    let waits = request.headers().contains_key(EXPECT);
    if is_stored {
        artifacts.note_use(digest).await?;
        // A client that waits for `100 Continue` need not send at all; another is heard out, so that it reads the answer.
        if !waits {
            discard(bounded(request.into_body(), None), limit).await?;
        }
        return Ok(stored(StatusCode::OK, digest));
    }
    let upload = if from > 0 {
        artifacts.take_up(&uploader, digest, from).ok_or_else(|| not_kept(digest, from))
    } else {
        let room: Result<Room, ApiError> = match (&caller, reservation) {
            (Caller::Key(key), _) => {
                let space = artifacts.reserve(key, declared).await;
                space.map(|space| Arc::new(Mutex::new(space)) as Room).map_err(put_error)
            }
            (Caller::Attempt(_), Some(reservation)) => Ok(Arc::new(Mutex::new(reservation))),
            (Caller::Attempt(_), None) => Ok(Arc::new(Mutex::new(Space::unbounded()))),
        };
        room.map(|room| artifacts.begin(digest, uploader, room))
    };
    match upload {
        Ok(upload) => {
            let full = match &caller {
                Caller::Key(_) => Full::Key,
                Caller::Attempt(_) => Full::Attempt,
            };
            let body = bounded(request.into_body(), Some((upload.room(), full)));
            artifacts.put_upload(upload, body, digest, limit).await.map_err(put_error)?;
        }
        Err(refused) => {
            // As above, but not for long: whoever sends more finds the connection closed.
            if !waits {
                let _ = discard(bounded(request.into_body(), None), HEARD_OUT).await;
            }
            return Err(refused);
        }
    }
    Ok(stored(StatusCode::CREATED, digest))
}

/// Where the bytes of a request belong in the artifact: `Content-Range: bytes FROM-TO/ALL`, up to its end (RFC 9110, section 14.5).
fn offset(headers: &HeaderMap) -> Result<u64, ApiError> {
    let Some(range) = headers.get(CONTENT_RANGE) else { return Ok(0) };
    let read = || {
        let (range, all) = range.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
        let (from, to) = range.split_once('-')?;
        let [from, to, all] = [from, to, all].map(|number| number.parse::<u64>().ok());
        (to?.checked_add(1)? == all? && from? <= to?).then_some(from?)
    };
    read().ok_or_else(|| {
        let message = "bytes come as `Content-Range: bytes FROM-TO/ALL`, up to the artifact's end";
        ApiError::new(ErrorCode::MalformedRequest, message).with_param("content-range")
    })
}

fn not_kept(digest: Digest, from: u64) -> ApiError {
    let message = format!(
        "no upload of artifact {digest} that broke off after {from} bytes is kept: ask by HEAD how many came (`upload-offset`), or send all"
    );
    ApiError::new(ErrorCode::RangeNotSatisfiable, message).with_param("content-range")
}

fn stored(status: StatusCode, digest: Digest) -> Response {
    (status, [(ETAG, format!("\"{digest}\""))]).into_response()
}

type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The pieces of a body, broken off when none comes for too long, when they come too slowly, or when there is no room for them.
fn bounded(
    body: Body,
    account: Option<(Room, Full)>,
) -> impl Stream<Item = Result<bytes::Bytes, BodyError>> + Send {
    let begun = (body.into_data_stream(), account, Instant::now(), 0u64);
    futures_util::stream::unfold(Some(begun), async |begun| {
        let (mut pieces, account, since, came) = begun?;
        let last = since + SEND_DEADLINE + Duration::from_secs(came / SLOWEST);
        let deadline = last.min(Instant::now() + PAUSE_DEADLINE);
        match tokio::time::timeout_at(deadline, pieces.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(piece))) => {
                let length = piece.len() as u64;
                let is_charged =
                    |room: &Room| room.lock().unwrap_or_else(PoisonError::into_inner).charge(length);
                if let Some((_, full)) = account.as_ref().filter(|(room, _)| !is_charged(room)) {
                    return Some((Err((*full).into()), None));
                }
                Some((Ok(piece), Some((pieces, account, since, came.saturating_add(length)))))
            }
            Ok(Some(Err(error))) => Some((Err(error.into()), None)),
            Err(_) => Some((Err(Paused.into()), None)),
        }
    })
}

/// The client sent nothing for too long, or too little.
#[derive(Debug, thiserror::Error)]
#[error("nothing came for {} s, or less than {SLOWEST} bytes a second", PAUSE_DEADLINE.as_secs())]
struct Paused;

/// Who may store no more.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum Full {
    #[error("the API key would store more than it may: what is not used any more makes room in time")]
    Key,
    #[error("the attempt would store more than it may")]
    Attempt,
}

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
        PutError::Source(source) => match source.downcast_ref() {
            Some(Full::Key) => ApiError::new(ErrorCode::QuotaExceeded, message),
            Some(Full::Attempt) => ApiError::new(ErrorCode::PayloadTooLarge, message),
            None => ApiError::new(ErrorCode::MalformedRequest, message),
        },
        PutError::OverQuota { .. } => ApiError::new(ErrorCode::QuotaExceeded, message),
        PutError::Busy | PutError::Doomed => ApiError::new(ErrorCode::Unavailable, message),
        PutError::Store(error) => error.into(),
    }
}
