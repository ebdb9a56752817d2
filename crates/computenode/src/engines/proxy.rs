//! Requests for inference, passed to an engine as they come, and its answers as they come.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Json, Request, State};
use axum::http::response::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response as HttpResponse, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use daemon::chain;
use futures_util::StreamExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use rpc::REQUEST_ID_HEADER;
use rpc::error::{ErrorBody, ErrorDetail};
use rpc::inference::{InferenceKind, MODEL_HEADER};
use serde::Deserialize;
use serde_json::json;

use super::{Content, Engines, Lease, RouteError, overflow};

/// The largest request, in bytes: images come inside it.
const MAX_REQUEST_BYTES: usize = 64 << 20;

/// The largest request whose model has to be read out of its body, in bytes.
const MAX_READ_BYTES: usize = 32 << 20;

/// The largest request that is read before it is sent, in bytes.
const MAX_WHOLE_BYTES: usize = 1 << 20;

/// The longest answer to a request that failed of which the reason is looked for, in bytes.
const MAX_ERROR_BYTES: u64 = 64 << 10;

/// When to come again, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// The headers of a request that mean something to an engine. What else a caller sends, its token above all, stays here.
const TO_ENGINE: [HeaderName; 4] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::ACCEPT,
    HeaderName::from_static(REQUEST_ID_HEADER),
];

/// The headers of an answer that are the node's own to set, besides those of its connection.
const NOT_FROM_ENGINE: [HeaderName; 4] =
    [header::SERVER, header::DATE, header::SET_COOKIE, HeaderName::from_static(REQUEST_ID_HEADER)];

/// A refusal in OpenAI's shape, with a code of its own.
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

pub(super) fn router<S: Clone + Send + Sync + 'static>(engines: Engines) -> Router<S> {
    let router = Router::new().route("/v1/models", get(models));
    let kinds = InferenceKind::ALL.into_iter();
    kinds.fold(router, |router, kind| router.route(kind.path(), post(infer))).with_state(engines)
}

async fn models(State(engines): State<Engines>) -> Response {
    let model = |offer: &rpc::inference::ModelOffer| {
        json!({
            "id": offer.id, "object": "model", "created": 0, "owned_by": offer.engine,
            "max_model_len": offer.context_tokens,
        })
    };
    let data: Vec<_> = engines.offers().iter().map(model).collect();
    Json(json!({ "object": "list", "data": data })).into_response()
}

async fn infer(State(engines): State<Engines>, request: Request) -> Result<Response, Refusal> {
    let (head, body) = request.into_parts();
    let length = head.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: usize| length > MAX_REQUEST_BYTES) {
        return Err(too_large(MAX_REQUEST_BYTES));
    }
    let (model, content) = match head.headers.get(MODEL_HEADER) {
        Some(model) => {
            let model = std::str::from_utf8(model.as_bytes());
            let model = model.map_err(|_| malformed("the model's name is no UTF-8"))?.to_owned();
            let content = match length {
                Some(length) if length <= MAX_WHOLE_BYTES => {
                    Content::Whole(read(body, MAX_WHOLE_BYTES).await?)
                }
                _ => {
                    let body = Limited::new(body, MAX_REQUEST_BYTES).into_data_stream();
                    Content::Stream(reqwest::Body::wrap_stream(body))
                }
            };
            (model, content)
        }
        None => {
            let bytes = read(body, MAX_READ_BYTES).await?;
            (model_in(&bytes)?, Content::Whole(bytes))
        }
    };
    let lease = engines.acquire(&model).map_err(|error| refuse(&engines, error))?;
    let path = head.uri.path();
    let mut headers = HeaderMap::new();
    for name in &TO_ENGINE {
        headers.extend(head.headers.get(name).map(|value| (name.clone(), value.clone())));
    }
    let url = lease.url(path).map_err(|problem| unreachable(&model, &problem))?;
    match lease.send(url, headers, content).await {
        Ok(answer) if tells_why(&answer) => explain(answer, lease, &model).await,
        Ok(answer) => Ok(pass_on(answer, lease)),
        Err(error) if is_too_large(&error) => Err(too_large(MAX_REQUEST_BYTES)),
        Err(error) if error.is_body() => Err(malformed("the request's body ended early")),
        Err(error) => {
            if error.is_connect() {
                lease.lost();
            }
            Err(unreachable(&model, &chain(&error.without_url())))
        }
    }
}

/// The engine's answer, which keeps its slot until its last byte, or until nobody reads it any more.
fn pass_on(answer: reqwest::Response, lease: Lease) -> Response {
    let head = head(&answer);
    let body = answer.bytes_stream().map(move |chunk| {
        let _held = &lease;
        chunk
    });
    Response::from_parts(head, Body::from_stream(body))
}

/// Whether the answer is a failure of which the engine says why.
fn tells_why(answer: &reqwest::Response) -> bool {
    let length = answer.content_length();
    answer.status() == StatusCode::INTERNAL_SERVER_ERROR
        && length.is_some_and(|length| length <= MAX_ERROR_BYTES)
}

/// A failure of the engine's as it came, unless the request is to blame: then no other host is to be asked, and nobody has failed.
async fn explain(answer: reqwest::Response, lease: Lease, model: &str) -> Result<Response, Refusal> {
    let head = head(&answer);
    let body = answer.bytes().await.map_err(|error| unreachable(model, &chain(&error.without_url())))?;
    drop(lease);
    match overflow::said(&body) {
        Some(message) => {
            Err(Refusal { status: StatusCode::BAD_REQUEST, code: "context_length_exceeded", message })
        }
        None => Ok(Response::from_parts(head, Body::from(body))),
    }
}

/// What is passed on of an answer's head.
fn head(answer: &reqwest::Response) -> Parts {
    let mut head = HttpResponse::new(()).into_parts().0;
    (head.status, head.headers) = (answer.status(), answer.headers().clone());
    daemon::hop_by_hop::strip(&mut head.headers);
    for name in &NOT_FROM_ENGINE {
        head.headers.remove(name);
    }
    head
}

fn unreachable(model: &str, problem: &str) -> Refusal {
    Refusal {
        status: StatusCode::BAD_GATEWAY,
        code: "engine_unavailable",
        message: format!("the engine of {model:?} cannot be reached: {problem}"),
    }
}

/// Reads a body that has so many bytes at most.
async fn read(body: Body, most: usize) -> Result<Bytes, Refusal> {
    let read = Limited::new(body, most).collect().await.map_err(|error| {
        if is_too_large(&*error) { too_large(most) } else { malformed("the request's body ended early") }
    });
    Ok(read?.to_bytes())
}

fn model_in(body: &[u8]) -> Result<String, Refusal> {
    #[derive(Deserialize)]
    struct Named {
        model: String,
    }
    let named: Named = serde_json::from_slice(body)
        .map_err(|error| malformed(&format!("no request that names its model: {error}")))?;
    Ok(named.model)
}

fn refuse(engines: &Engines, error: RouteError) -> Refusal {
    let mut message = error.to_string();
    let (status, code) = match error {
        RouteError::ModelNotFound(_) => {
            let offers = engines.offers();
            let served: Vec<&str> = offers.iter().take(10).map(|offer| &*offer.id).collect();
            message = format!("{message}; it serves {}", served.join(", "));
            (StatusCode::NOT_FOUND, "model_not_found")
        }
        RouteError::Unavailable(_) => (StatusCode::BAD_GATEWAY, "engine_unavailable"),
        RouteError::Busy(_) => (StatusCode::TOO_MANY_REQUESTS, "engine_busy"),
    };
    Refusal { status, code, message }
}

fn too_large(limit: usize) -> Refusal {
    let mut message = format!("a request has {limit} bytes at most");
    if limit < MAX_REQUEST_BYTES {
        message = format!("{message}, or {MAX_REQUEST_BYTES} if the header {MODEL_HEADER} names its model");
    }
    Refusal { status: StatusCode::PAYLOAD_TOO_LARGE, code: "payload_too_large", message }
}

/// Whether a body was not read or sent because it is larger than its limit.
fn is_too_large(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.into_iter().any(|error| error.is::<LengthLimitError>())
}

fn malformed(message: &str) -> Refusal {
    Refusal { status: StatusCode::BAD_REQUEST, code: "malformed_request", message: message.to_owned() }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, code, message } = self;
        let kind = match status.as_u16() {
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let error =
            ErrorDetail { message, kind: kind.to_owned(), code: code.to_owned(), param: None, status: None };
        let mut response = (status, Json(ErrorBody { error })).into_response();
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}
