//! What every request passes through: it gets an id, a tracing span and a place in the metrics, and a panic becomes an answer.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue};
use tracing::Instrument;

use super::App;
use crate::error::ApiError;

const REQUEST_ID: HeaderName = HeaderName::from_static(rpc::REQUEST_ID_HEADER);
/// The longest request id that is taken from a client, in bytes.
const MAX_ID_BYTES: usize = 64;

/// Runs a request.
pub(super) async fn observe(State(app): State<App>, mut request: Request<Body>, next: Next) -> Response {
    let id = request_id(request.headers());
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default(), %method, route);
    let begun = Instant::now();
    let work = async {
        let response = guarded(next.run(request)).await;
        tracing::debug!(status = response.status().as_u16(), ms = begun.elapsed().as_millis(), "answered");
        response
    };
    let mut response = work.instrument(span).await;
    app.metrics.answered(&method, &route, response.status(), begun.elapsed());
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// A panic is the fault of one request: it becomes that request's answer, and the relay goes on.
pub(crate) async fn guarded(answer: impl Future<Output = Response>) -> Response {
    let answer = AssertUnwindSafe(answer).catch_unwind().await;
    answer.unwrap_or_else(|_| ApiError::internal(&"a handler panicked").into_response())
}

/// The client's own id, where it is fit to be logged and sent back; else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let fit = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        !bytes.is_empty() && bytes.len() <= MAX_ID_BYTES && bytes.iter().all(is_plain)
    };
    headers.get(REQUEST_ID).filter(fit).cloned().unwrap_or_else(|| {
        let id = format!("{:032x}", rand::random::<u128>());
        HeaderValue::from_str(&id).expect("hex digits are a header value")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_answer() {
        let response = guarded(async { panic!("a fault of the relay's") }).await;
        assert_eq!(response.status(), http::StatusCode::INTERNAL_SERVER_ERROR);
        let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
        let body: rpc::error::ErrorBody = serde_json::from_slice(&body).unwrap();
        assert_eq!(body.error.code, "internal");
        assert!(!body.error.message.contains("fault of"), "causes are for the log");
    }

    #[test]
    fn only_plain_ids_are_taken_over() {
        let asked = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            request_id(&headers).to_str().unwrap().to_owned()
        };
        assert_eq!(asked("abc-1.2_3"), "abc-1.2_3");
        for odd in ["", "a b", "a\"b", "{}", &"a".repeat(65)] {
            let id = asked(odd);
            assert!(id != odd && id.len() == 32, "{odd:?} became {id:?}");
        }
    }
}
