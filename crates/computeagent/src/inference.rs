//! Requests for inference that the relay sends over the link: passed to the compute node as they come, its answer passed
//! back as it comes, and a signed receipt after the last byte.
//!
//! Both bodies are hashed while they pass, and the answer is read for what it says of tokens; nothing is held back and
//! nothing is changed. The receipt follows a complete answer of status 2xx alone: a failure costs nobody anything, and
//! an answer that was cut off is no answer.

mod price;
mod usage;

pub use price::{ParsePriceError, Price, Prices};

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use daemon::{chain, quote};
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body::{Body as HttpBody, Frame};
use rpc::REQUEST_ID_HEADER;
use rpc::error::{ErrorBody, ErrorDetail};
use rpc::inference::{MAX_MODEL_ID_BYTES, MODEL_HEADER, RECEIPT_TRAILER};
use rpc::tasks::SignedMutation;
use sha2::{Digest as _, Sha256};
use taskmarket::{B256, ContentHash, Domain, InferenceReceipt};

use self::usage::Usage;
use crate::agent::{Shared, now};
use crate::node::NodeError;

/// The longest id of a request that is signed, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 256;

/// The longest that one request may take, to the last byte of its answer.
const MAX_REQUEST_TIME: Duration = Duration::from_secs(3600);

/// When to ask again what cannot be served now, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// What of a request goes on to the node.
const TO_NODE: [HeaderName; 5] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::ACCEPT,
    HeaderName::from_static(REQUEST_ID_HEADER),
    HeaderName::from_static(MODEL_HEADER),
];

/// Passes a request on. The model stands in [`MODEL_HEADER`].
pub(crate) async fn infer(shared: Arc<Shared>, request: Request) -> Response {
    match pass(shared, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

async fn pass(shared: Arc<Shared>, request: Request) -> Result<Response, Refusal> {
    let started_at = now();
    let (head, body) = request.into_parts();
    let text = |name: &str, max: usize| {
        let value = head.headers.get(name).map(HeaderValue::as_bytes);
        let value = value.and_then(|value| std::str::from_utf8(value).ok());
        value.filter(|value| !value.is_empty() && value.len() <= max).map(str::to_owned)
    };
    let missing = |name: &str| Refusal {
        status: StatusCode::BAD_REQUEST,
        code: "malformed_request",
        message: format!("the header {name} is missing, or too long"),
    };
    let request_id =
        text(REQUEST_ID_HEADER, MAX_REQUEST_ID_BYTES).ok_or_else(|| missing(REQUEST_ID_HEADER))?;
    let model = text(MODEL_HEADER, MAX_MODEL_ID_BYTES).ok_or_else(|| missing(MODEL_HEADER))?;
    if shared.draining.is_cancelled() {
        return Err(not_now("draining", "the agent is stopping"));
    }
    let mut headers = HeaderMap::new();
    for name in &TO_NODE {
        headers.extend(head.headers.get(name).map(|value| (name.clone(), value.clone())));
    }
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let sent = Arc::new(Mutex::new(Sent { announced, ..Sent::default() }));
    let body = reqwest::Body::wrap_stream(Hashed { body: body.into_data_stream(), sent: Arc::clone(&sent) });
    let path = head.uri.path().trim_start_matches('/');
    let answer =
        shared.node.pass(path, headers, body, MAX_REQUEST_TIME).await.map_err(|error| match error {
            NodeError::Token(_) | NodeError::Unreachable(_) | NodeError::Unknown | NodeError::Refused(_) => {
                not_now("node_unavailable", &error.to_string())
            }
        })?;
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    // HTTP/2 has no place for what belongs to the connection with the node.
    daemon::hop_by_hop::strip(&mut headers);
    headers.remove(REQUEST_ID_HEADER);
    let (engine, quantization) = engine_of(&shared, &model);
    let streams = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream"));
    let receipt = InferenceReceipt {
        request_id,
        provider: shared.wallet().address(),
        node_id: shared.home.node_id,
        relay_id: shared.config.relay_id.clone(),
        request_hash: ContentHash::UNPINNED,
        response_hash: ContentHash::UNPINNED,
        model,
        engine,
        quantization,
        prompt_tokens: 0,
        completion_tokens: 0,
        started_at,
        finished_at: started_at,
    };
    let metered = Metered {
        shared,
        body: Some(answer.bytes_stream().boxed()),
        hash: Sha256::new(),
        usage: Usage::new(streams),
        sent,
        receipt: status.is_success().then_some(receipt),
    };
    let mut response = Response::new(Body::new(metered));
    (*response.status_mut(), *response.headers_mut()) = (status, headers);
    Ok(response)
}

/// What the node says of the model.
fn engine_of(shared: &Shared, model: &str) -> (String, String) {
    let host = shared.host.borrow();
    let models = host.report.as_ref().map(|report| report.models.as_slice()).unwrap_or_default();
    let offer = models.iter().find(|offer| offer.id == model);
    offer.map(|offer| (offer.engine.clone(), offer.quantization.clone())).unwrap_or_default()
}

/// How far a request's body has passed.
#[derive(Default)]
struct Sent {
    hash: Sha256,
    bytes: u64,
    /// What the relay announced. Nobody asks for the end of a body whose announced bytes have all come.
    announced: Option<u64>,
    ended: bool,
}

impl Sent {
    fn is_whole(&self) -> bool {
        self.ended || self.announced == Some(self.bytes)
    }
}

/// A request's body that is hashed while it passes.
struct Hashed {
    body: BodyDataStream,
    sent: Arc<Mutex<Sent>>,
}

impl Stream for Hashed {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let chunk = ready!(self.body.poll_next_unpin(cx));
        // A hash is whole after every chunk.
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        match &chunk {
            Some(Ok(bytes)) => {
                sent.hash.update(bytes);
                sent.bytes = sent.bytes.saturating_add(bytes.len() as u64);
            }
            Some(Err(_)) => {}
            None => sent.ended = true,
        }
        drop(sent);
        Poll::Ready(chunk)
    }
}

type Bytestream = Pin<Box<dyn Stream<Item = Result<Bytes, reqwest::Error>> + Send>>;

/// An answer's body that is hashed and metered while it passes, with the receipt as its trailer.
struct Metered {
    shared: Arc<Shared>,
    body: Option<Bytestream>,
    hash: Sha256,
    usage: Usage,
    sent: Arc<Mutex<Sent>>,
    receipt: Option<InferenceReceipt>,
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, reqwest::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        match ready!(body.poll_next_unpin(cx)) {
            Some(Ok(chunk)) => {
                self.hash.update(&chunk);
                self.usage.pass(&chunk);
                Poll::Ready(Some(Ok(Frame::data(chunk))))
            }
            Some(Err(error)) => {
                self.body = None;
                tracing::info!(error = chain(&error), "an engine's answer was cut off");
                Poll::Ready(Some(Err(error)))
            }
            None => {
                self.body = None;
                Poll::Ready(self.trailers().map(|trailers| Ok(Frame::trailers(trailers))))
            }
        }
    }
}

impl Metered {
    /// The receipt, signed, where one is due.
    fn trailers(&mut self) -> Option<HeaderMap> {
        let mut receipt = self.receipt.take()?;
        {
            let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            if !sent.is_whole() {
                tracing::info!(
                    request = receipt.request_id,
                    "answered before the whole request came: no receipt"
                );
                return None;
            }
            receipt.request_hash = content_hash(sent.hash.clone());
        }
        receipt.response_hash = content_hash(self.hash.clone());
        (receipt.prompt_tokens, receipt.completion_tokens) = self.usage.tokens();
        receipt.finished_at = now().max(receipt.started_at);
        match trailer(&self.shared, &receipt) {
            Ok(value) => Some(HeaderMap::from_iter([(HeaderName::from_static(RECEIPT_TRAILER), value)])),
            Err(error) => {
                tracing::error!(request = receipt.request_id, error, "no receipt");
                None
            }
        }
    }
}

fn trailer(shared: &Shared, receipt: &InferenceReceipt) -> Result<HeaderValue, String> {
    let signed = shared.wallet().sign(receipt, &Domain::UNSETTLED).map_err(|error| error.to_string())?;
    let text = serde_json::to_string(&SignedMutation::from(signed)).map_err(|error| error.to_string())?;
    HeaderValue::from_str(&ascii(&text)).map_err(|error| error.to_string())
}

/// JSON with all beyond ASCII escaped, as a header's value has to be.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    text
}

fn content_hash(hash: Sha256) -> ContentHash {
    ContentHash(B256::from_slice(&hash.finalize()))
}

/// Why a request is not passed on.
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

fn not_now(code: &'static str, message: &str) -> Refusal {
    Refusal { status: StatusCode::SERVICE_UNAVAILABLE, code, message: quote(message) }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, code, message } = self;
        let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
        let error =
            ErrorDetail { message, kind: kind.to_owned(), code: code.to_owned(), param: None, status: None };
        let mut response = (status, axum::Json(ErrorBody { error })).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_are_ascii_and_mean_the_same() {
        let json = serde_json::json!({ "model": "modèle-😀" }).to_string();
        let text = ascii(&json);
        assert!(text.is_ascii());
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            serde_json::from_str::<serde_json::Value>(&json).unwrap()
        );
    }
}
