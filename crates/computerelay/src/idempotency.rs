//! `Idempotency-Key`: a POST that is sent again is answered with the first one's answer, and carried out once.
//!
//! It is honoured where the request carries an API key, for [`store::ANSWER_KEPT_SECS`]. What asks to be tried again (408, 429, 5xx) is
//! not kept, nor is an answer that is streamed or larger than [`MAX_KEPT_BYTES`]: then the next request is carried out. Inference, whose
//! answers are mostly streamed, has rules of its own: [`inference`].

mod inference;

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use http_body::Body as _;
use http_body_util::BodyExt;
use rpc::error::ErrorCode;
use rpc::inference::InferenceKind;
use sha2::{Digest, Sha256};
use store::{Begun, IN_FLIGHT_SECS, KeyId, StoredAnswer};
use taskmarket::Timestamp;
use tracing::Instrument;

use crate::api::{App, guarded, read};
use crate::auth::Identity;
use crate::error::ApiError;
pub(crate) use inference::{Keyed, Room, Whole, asked};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// In a replayed answer, the `x-request-id` of the request that was carried out.
const CARRIED_OUT: &str = "idempotency-request-id";
/// The longest idempotency key, in bytes.
const MAX_KEY_BYTES: usize = 255;
/// The largest answer that is kept, in bytes: several times a task with all it may carry.
const MAX_KEPT_BYTES: u64 = 256 * 1024;
/// How long carrying a request out may take: it must end before its mark lapses, or it could be carried out twice at once.
const DEADLINE: Duration = Duration::from_secs(IN_FLIGHT_SECS - 5);
/// How long a client is asked to wait for the first request's answer.
const PATIENCE: HeaderValue = HeaderValue::from_static("1");

/// What is kept in place of an answer's body that must not be kept: it goes into the answer's extensions.
#[derive(Debug, Clone)]
pub(crate) struct KeptBody(pub(crate) Bytes);

/// Marks an answer that is not kept: nothing was changed, and whoever asks again wants to know anew.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unkept;

/// Whose request it is, and what its sender calls it.
struct Name {
    owner: KeyId,
    key: String,
    request_id: String,
}

impl Name {
    fn new(owner: &KeyId, key: String, headers: &HeaderMap) -> Self {
        let request_id = headers.get(rpc::REQUEST_ID_HEADER).and_then(|id| id.to_str().ok());
        Self { owner: owner.clone(), key, request_id: request_id.unwrap_or_default().to_owned() }
    }

    /// Keeps the answer to a request that began, or forgets that it began.
    async fn settle(&self, app: &App, answer: Option<StoredAnswer>) {
        let store = app.market.store();
        let written = match answer {
            Some(answer) => store.finish(&self.owner, &self.key, answer).await,
            None => store.abandon(&self.owner, &self.key).await,
        };
        // The answer stands: at worst the mark lapses, and the request may be carried out again.
        if let Err(error) = written {
            tracing::warn!(%error, "what became of a request with an idempotency key was not written down");
        }
    }
}

/// Every request passes here, behind [`crate::auth::identify`]. Those of inference see to their keys once they have their bodies.
pub(crate) async fn honour(State(app): State<App>, request: Request<Body>, next: Next) -> Response {
    if InferenceKind::ALL.iter().any(|kind| kind.path() == request.uri().path()) {
        return next.run(request).await;
    }
    let owner = request.extensions().get::<Identity>().and_then(Identity::maybe).map(|caller| &caller.id);
    let answer = match (request.method(), owner, request.headers().contains_key(KEY)) {
        (&Method::POST, Some(owner), true) => match key(request.headers()) {
            Ok(key) => {
                let name = Name::new(owner, key, request.headers());
                once(app, name, request, next).await
            }
            Err(refused) => Err(refused),
        },
        _ => Ok(next.run(request).await),
    };
    answer.unwrap_or_else(IntoResponse::into_response)
}

fn key(headers: &HeaderMap) -> Result<String, ApiError> {
    let mut values = headers.get_all(KEY).into_iter();
    let is_fit = |text: &&str| {
        (1..=MAX_KEY_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
    };
    match (values.next().and_then(|value| value.to_str().ok()).filter(is_fit), values.next()) {
        (Some(key), None) => Ok(key.to_owned()),
        (None | Some(_), _) => {
            let message =
                format!("idempotency-key: one of 1 to {MAX_KEY_BYTES} visible ASCII characters is needed");
            Err(ApiError::new(ErrorCode::MalformedRequest, message).with_param(KEY.as_str()))
        }
    }
}

async fn once(app: App, name: Name, request: Request<Body>, next: Next) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let body = read(&parts.headers, body, app.limits.max_body_bytes).await?;
    let request = Request::from_parts(parts, Body::from(body.clone()));
    // Once it has begun it is carried out to its end, even if the client leaves: it may come back for the answer.
    let work = begin(app.clone(), name, request, body, next).in_current_span();
    app.requests.spawn(work).await.unwrap_or_else(|error| Err(ApiError::internal(&error)))
}

async fn begin(
    app: App,
    name: Name,
    request: Request<Body>,
    body: Bytes,
    next: Next,
) -> Result<Response, ApiError> {
    let digest = digest(request.method(), request.uri(), &body);
    // What is carried out has the body itself.
    drop(body);
    match start(&app, &name, digest, app.market.now()).await? {
        Some(answer) => Ok(answer),
        None => Ok(carry_out(app, name, request, next).await),
    }
}

/// Begins a request. If it is not the first under its key, answers what became of that one.
async fn start(
    app: &App,
    name: &Name,
    digest: [u8; 32],
    now: Timestamp,
) -> Result<Option<Response>, ApiError> {
    match app.market.store().begin(&name.owner, &name.key, digest, now).await? {
        Begun::Done(answer) => replay(answer).map(Some),
        Begun::Mismatch => {
            let message = format!("the idempotency key {:?} was used for another request", name.key);
            Err(ApiError::new(ErrorCode::IdempotencyMismatch, message).with_param(KEY.as_str()))
        }
        Begun::InFlight => {
            let message = format!("the request with the idempotency key {:?} is under way", name.key);
            let error = ApiError::new(ErrorCode::Conflict, message).with_param(KEY.as_str());
            Err(error.with_header(RETRY_AFTER, PATIENCE))
        }
        Begun::New => Ok(None),
    }
}

/// Tells requests apart.
fn digest(method: &Method, uri: &Uri, body: &[u8]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    // Neither of the two holds a NUL, so that no two requests look alike.
    for part in [method.as_str(), &uri.to_string()] {
        hasher.update(part);
        hasher.update([0]);
    }
    hasher.update(body);
    hasher.finalize().into()
}

fn replay(answer: StoredAnswer) -> Result<Response, ApiError> {
    let status = StatusCode::from_u16(answer.status).map_err(|error| ApiError::internal(&error))?;
    let mut response = (status, answer.body).into_response();
    let headers = response.headers_mut();
    headers.remove(CONTENT_TYPE);
    if !answer.content_type.is_empty() {
        let kind = HeaderValue::try_from(answer.content_type).map_err(|error| ApiError::internal(&error))?;
        headers.insert(CONTENT_TYPE, kind);
    }
    for (name, value) in answer.headers {
        let name = HeaderName::try_from(name).map_err(|error| ApiError::internal(&error))?;
        headers.append(name, HeaderValue::try_from(value).map_err(|error| ApiError::internal(&error))?);
    }
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(response)
}

/// Carries a request out that began, and keeps its answer or forgets that it began.
async fn carry_out(app: App, name: Name, request: Request<Body>, next: Next) -> Response {
    let answer = tokio::time::timeout(DEADLINE, guarded(next.run(request))).await;
    let response = answer.unwrap_or_else(|_| {
        ApiError::new(ErrorCode::Unavailable, "the request took too long").into_response()
    });
    let (response, kept) = kept(response, &name).await;
    name.settle(&app, kept).await;
    response
}

/// What is to be kept of an answer, and the answer, whole.
async fn kept(response: Response, name: &Name) -> (Response, Option<StoredAnswer>) {
    let status = response.status();
    let is_final = !status.is_server_error()
        && !matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    // Streams do not know their length, and are not waited for.
    let is_small = response.body().size_hint().upper().is_some_and(|size| size <= MAX_KEPT_BYTES);
    if !is_final || !is_small || response.extensions().get::<Unkept>().is_some() {
        return (response, None);
    }
    let (parts, body) = response.into_parts();
    let bytes = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return (ApiError::internal(&error).into_response(), None),
    };
    let body = parts.extensions.get::<KeptBody>().map_or(&bytes, |KeptBody(kept)| kept).to_vec();
    let answer = StoredAnswer { body, ..kept_as(&parts, name) };
    (Response::from_parts(parts, Body::from(bytes)), Some(answer))
}

/// An answer as it is kept, without its body. What the relay puts on every answer is not among its headers yet.
fn kept_as(parts: &Parts, name: &Name) -> StoredAnswer {
    let text = |value: &HeaderValue| String::from_utf8(value.as_bytes().to_vec()).ok();
    let others = parts.headers.iter().filter(|(name, _)| **name != CONTENT_TYPE && **name != CONTENT_LENGTH);
    let mut headers: Vec<_> =
        others.filter_map(|(name, value)| Some((name.as_str().to_owned(), text(value)?))).collect();
    headers.push((CARRIED_OUT.to_owned(), name.request_id.clone()));
    let content_type = parts.headers.get(CONTENT_TYPE).and_then(text).unwrap_or_default();
    StoredAnswer { status: parts.status.as_u16(), content_type, headers, body: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Name {
        Name { owner: KeyId::of_api_key("k"), key: "one".to_owned(), request_id: "r-1".to_owned() }
    }

    async fn is_kept(status: StatusCode, body: Body) -> bool {
        let (response, kept) = kept((status, body).into_response(), &name()).await;
        assert_eq!(response.status(), status);
        kept.is_some()
    }

    #[tokio::test]
    async fn what_asks_to_be_tried_again_is_not_kept() {
        for status in [200, 201, 202, 400, 403, 404, 409, 413, 422] {
            assert!(is_kept(StatusCode::from_u16(status).unwrap(), Body::from("x")).await, "{status}");
        }
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(!is_kept(StatusCode::from_u16(status).unwrap(), Body::from("x")).await, "{status}");
        }
    }

    #[tokio::test]
    async fn what_is_large_or_streamed_goes_through_and_is_not_kept() {
        let largest = vec![b'x'; MAX_KEPT_BYTES as usize];
        assert!(is_kept(StatusCode::OK, Body::from(largest.clone())).await);
        let larger = [largest, vec![b'x']].concat();
        let (response, answer) = kept(Body::from(larger.clone()).into_response(), &name()).await;
        assert!(answer.is_none());
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), larger);
        let pieces = futures_util::stream::iter([Ok::<_, std::io::Error>("a")]);
        assert!(!is_kept(StatusCode::OK, Body::from_stream(pieces)).await);
    }

    #[tokio::test]
    async fn what_is_marked_is_not_kept() {
        let mut response = Body::from("x").into_response();
        response.extensions_mut().insert(Unkept);
        assert!(kept(response, &name()).await.1.is_none());
    }

    #[tokio::test]
    async fn another_body_can_be_kept_than_is_sent() {
        let mut response = Body::from("secret").into_response();
        response.extensions_mut().insert(KeptBody(Bytes::from_static(b"public")));
        let (response, answer) = kept(response, &name()).await;
        assert_eq!(answer.unwrap().body, b"public");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "secret");
    }
}
