//! JSON-RPC 2.0 on `/rpc`: the market's methods by POST, and by the messages of a WebSocket.
//!
//! [`calls`] is what every call passes through, [`methods`] what the methods do, [`socket`] the WebSocket. One message, single or batch, is
//! read and answered the same way wherever it came from. The methods are `jsonrpsee`'s; its servers are not used: the one for WebSocket
//! carries out any number of messages of one connection at once, in tasks that nobody owns, and both take a call with an id that they
//! cannot read for a notification.

mod calls;
mod methods;
mod socket;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Extensions, HeaderMap, StatusCode};
use jsonrpsee::core::server::{MethodResponse, Methods};
use jsonrpsee::types::{ErrorObjectOwned, Id};
use rpc::error::ErrorCode;
use tokio::sync::Semaphore;

use super::App;
use super::extract::{check_content_type, read};
use crate::auth::{Identity, Peer};
use crate::error::ApiError;
use crate::idempotency::Unkept;
use calls::Calls;

/// Where JSON-RPC is served.
pub(super) const PATH: &str = "/rpc";
/// How long carrying out one message may take, all calls of its batch together.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(60);
/// The largest answer to one message, in bytes: a full page of the largest tasks.
const MAX_ANSWER_BYTES: usize = 32 << 20;
/// WebSockets at once. Further ones are refused.
const MAX_SOCKETS: usize = 4096;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Serves JSON-RPC.
pub(super) fn router(app: App) -> Router<App> {
    let endpoint = Endpoint {
        methods: methods::methods(app.clone()),
        sockets: Arc::new(Semaphore::new(MAX_SOCKETS)),
        app,
    };
    Router::new().route(PATH, get(socket::open).post(post)).with_state(endpoint)
}

/// What serves JSON-RPC. Cheap to clone.
#[derive(Clone)]
struct Endpoint {
    app: App,
    methods: Methods,
    sockets: Arc<Semaphore>,
}

/// Who sends messages, as far as the HTTP request says.
#[derive(Clone)]
struct Sender {
    /// Those of the request, for the key among them.
    headers: Arc<HeaderMap>,
    /// Where it comes from.
    peer: Option<Peer>,
    /// Who the request came from, as far as that is good for its one message. A connection that stays open has none: a key may be revoked.
    identity: Option<Identity>,
}

impl Sender {
    fn of(headers: &HeaderMap, extensions: &Extensions) -> Self {
        Self {
            headers: Arc::new(headers.clone()),
            peer: extensions.get().copied(),
            identity: extensions.get().cloned(),
        }
    }
}

/// `POST /rpc`
async fn post(State(endpoint): State<Endpoint>, request: Request<Body>) -> Response {
    let sender = Sender::of(request.headers(), request.extensions());
    let (parts, body) = request.into_parts();
    let message = match check_content_type(&parts.headers) {
        Ok(()) => read(&parts.headers, body, endpoint.app.limits.max_body_bytes).await,
        Err(error) => Err(error),
    };
    let answer = match message {
        Ok(message) => endpoint.answer(&message, &sender).await,
        Err(error) => Err(error),
    };
    let (answer, may_change) = match answer {
        Ok(answer) => answer,
        Err(error) => return refusal(error),
    };
    let mut response = match answer {
        Some(answer) => ([(CONTENT_TYPE, JSON)], answer).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    };
    if !may_change {
        response.extensions_mut().insert(Unkept);
    }
    response
}

impl Endpoint {
    /// Carries one message out, single or batch; answers the answer's JSON, or nothing to a notification, and whether any call may have
    /// changed something.
    ///
    /// # Errors
    /// 503 where it took too long as a whole; what is wrong with the message or its calls is part of the answer.
    async fn answer(&self, message: &[u8], sender: &Sender) -> Result<(Option<String>, bool), ApiError> {
        let mut calls = Calls::new(self, sender);
        match tokio::time::timeout(MESSAGE_DEADLINE, calls.carry_out(message)).await {
            Ok(answer) => Ok((answer.map(json), calls.may_change)),
            Err(_) => Err(ApiError::new(ErrorCode::Unavailable, "the relay is too busy to answer in time")),
        }
    }
}

/// The answer to a message that could not be read: a JSON-RPC error of no call, under the status of the error in HTTP.
fn refusal(error: ApiError) -> Response {
    let body = error_json(error.clone());
    let mut response = error.into_response();
    *response.body_mut() = Body::from(body);
    response
}

/// A JSON-RPC error of no call.
fn error_json(error: ApiError) -> String {
    json(MethodResponse::error(Id::Null, ErrorObjectOwned::from(error)))
}

fn json(answer: MethodResponse) -> String {
    Box::<str>::from(answer.into_json()).into_string()
}
