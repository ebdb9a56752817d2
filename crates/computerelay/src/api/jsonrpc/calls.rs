//! What every call passes through: who calls is found out, a call takes its place in what they may ask, its parameters are checked, and
//! it has a deadline.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use jsonrpsee::core::server::{BatchResponseBuilder, ConnectionId, MethodCallback, MethodResponse};
use jsonrpsee::types::error::{INVALID_REQUEST_CODE, PARSE_ERROR_CODE};
use jsonrpsee::types::{ErrorObjectOwned, Id, Params, Request};
use rpc::error::{CallErrorData, ErrorCode};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Endpoint, MAX_ANSWER_BYTES, Sender};
use crate::api::openrpc::{Access, METHODS};
use crate::auth::Identity;
use crate::error::ApiError;
use crate::keys::Caller;

/// Calls in one batch.
const MAX_BATCH: usize = 50;
/// How long carrying out one call may take.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// Who calls, if they sent a good API key. Every call carries it among its extensions.
#[derive(Clone)]
pub(super) struct CalledBy(pub(super) Option<Caller>);

/// Carries out the calls of one message.
pub(super) struct Calls<'a> {
    endpoint: &'a Endpoint,
    sender: &'a Sender,
    /// What the message's first call goes by: finding out who sent the request took it out of what they may ask.
    admitted: Option<Identity>,
    /// Whether any of them may have changed something.
    pub(super) may_change: bool,
}

/// One entry of a batch, or a message that is none.
enum Entry<'a> {
    Call(Request<'a>),
    /// Nothing is done for a notification: whoever wants something done wants to know whether it was.
    Notification,
    /// Neither; the id is what can be told of it.
    Wrong(Id<'static>),
}

impl<'a> Calls<'a> {
    /// Carries out calls of this sender.
    pub(super) fn new(endpoint: &'a Endpoint, sender: &'a Sender) -> Self {
        Self { endpoint, sender, admitted: sender.identity.clone(), may_change: false }
    }

    /// Carries out a message; answers nothing to notifications alone. The calls of a batch are carried out one after another.
    pub(super) async fn carry_out(&mut self, message: &[u8]) -> Option<MethodResponse> {
        let Ok(json) = serde_json::from_slice::<&RawValue>(message) else {
            return Some(wrong(Id::Null, PARSE_ERROR_CODE, "this is not JSON"));
        };
        if !json.get().starts_with('[') {
            return self.entry(json).await;
        }
        let batch: Vec<&RawValue> = serde_json::from_str(json.get()).unwrap_or_default();
        if batch.is_empty() || batch.len() > MAX_BATCH {
            let message = format!("a batch holds 1 to {MAX_BATCH} calls, not {}", batch.len());
            return Some(wrong(Id::Null, INVALID_REQUEST_CODE, &message));
        }
        let mut answers = BatchResponseBuilder::new_with_limit(MAX_ANSWER_BYTES);
        for json in batch {
            if let Some(answer) = self.entry(json).await
                && let Err(too_large) = answers.append(answer)
            {
                return Some(too_large);
            }
        }
        if answers.is_empty() { None } else { Some(MethodResponse::from_batch(answers.finish())) }
    }

    async fn entry(&mut self, json: &RawValue) -> Option<MethodResponse> {
        match entry(json) {
            Entry::Call(request) => Some(self.call(request).await),
            Entry::Notification => None,
            Entry::Wrong(id) => Some(wrong(id, INVALID_REQUEST_CODE, "this is no call of JSON-RPC 2.0")),
        }
    }

    async fn call(&mut self, request: Request<'_>) -> MethodResponse {
        let id = request.id.clone().into_owned();
        let work = AssertUnwindSafe(self.dispatch(request)).catch_unwind();
        let error = match tokio::time::timeout(CALL_DEADLINE, work).await {
            Ok(Ok(Ok(response))) => return response,
            Ok(Ok(Err(error))) => error,
            Ok(Err(_)) => ApiError::internal(&"a method panicked"),
            Err(_) => ApiError::new(ErrorCode::Unavailable, "the relay is too busy to answer in time"),
        };
        MethodResponse::error(id, ErrorObjectOwned::from(error))
    }

    async fn dispatch(&mut self, request: Request<'_>) -> Result<MethodResponse, ApiError> {
        let identity = self.identify().await?;
        let Request { id, method, params, mut extensions, .. } = request;
        let known = METHODS.iter().find(|known| known.name == method);
        let callback = self.endpoint.methods.method(&method);
        let (Some(known), Some(callback)) = (known, callback) else {
            let message = "there is no such method; rpc.discover names those that there are";
            return Err(ApiError::new(ErrorCode::MethodNotAllowed, message).with_param("method"));
        };
        if let Access::Key(scope) = known.access {
            identity.caller()?.require(scope)?;
        }
        known.check(params.as_deref())?;
        self.may_change |= known.access.may_change();
        tracing::debug!(method = known.name, "called");
        extensions.insert(CalledBy(identity.maybe().cloned()));
        let params = Params::new(params.as_ref().map(|params| params.get())).into_owned();
        match callback {
            MethodCallback::Async(callback) => {
                Ok(callback(id.into_owned(), params, ConnectionId(0), MAX_ANSWER_BYTES, extensions).await)
            }
            MethodCallback::Sync(callback) => Ok(callback(id, params, MAX_ANSWER_BYTES, extensions)),
            MethodCallback::Subscription(_) | MethodCallback::Unsubscription(_) => {
                Err(ApiError::internal(&"there are no subscriptions"))
            }
        }
    }

    /// Who calls. Further calls of a message, and those of a connection that stays open, count like requests of their own.
    async fn identify(&mut self) -> Result<Identity, ApiError> {
        match self.admitted.take() {
            Some(identity) => Ok(identity),
            None => {
                let app = &self.endpoint.app;
                app.access.readmit(&self.sender.headers, self.sender.peer, app.market.now()).await
            }
        }
    }
}

/// The members of a call, whatever they hold.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(default, borrow)]
    jsonrpc: Option<&'a RawValue>,
    #[serde(default, borrow)]
    method: Option<&'a RawValue>,
    #[serde(default, borrow)]
    id: Option<&'a RawValue>,
}

fn entry(json: &RawValue) -> Entry<'_> {
    if let Ok(request) = serde_json::from_str::<Request<'_>>(json.get()) {
        return Entry::Call(request);
    }
    let Ok(envelope) = serde_json::from_str::<Envelope<'_>>(json.get()) else {
        return Entry::Wrong(Id::Null);
    };
    let Some(id) = envelope.id else {
        let is_right = envelope.jsonrpc.is_some_and(|version| version.get() == "\"2.0\"")
            && envelope.method.is_some_and(|method| method.get().starts_with('"'));
        return if is_right { Entry::Notification } else { Entry::Wrong(Id::Null) };
    };
    Entry::Wrong(serde_json::from_str::<Id<'_>>(id.get()).map_or(Id::Null, Id::into_owned))
}

fn wrong(id: Id<'_>, code: i32, message: &str) -> MethodResponse {
    let data =
        CallErrorData { code: ErrorCode::MalformedRequest.as_str().to_owned(), param: None, status: None };
    MethodResponse::error(id, ErrorObjectOwned::owned(code, message, Some(data)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(json: &str) -> String {
        let raw: &RawValue = serde_json::from_str(json).unwrap();
        match entry(raw) {
            Entry::Call(request) => format!("call {}", request.method),
            Entry::Notification => "notification".to_owned(),
            Entry::Wrong(id) => format!("wrong {}", serde_json::to_string(&id).unwrap()),
        }
    }

    #[test]
    fn entries_are_told_apart() {
        for (json, expected) in [
            (r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#, "call m"),
            (r#"{"jsonrpc":"2.0","id":"a","method":"m","params":[]}"#, "call m"),
            (r#"{"jsonrpc":"2.0","id":null,"method":"m"}"#, "call m"),
            (r#"{"jsonrpc":"2.0","id":18446744073709551615,"method":"m"}"#, "call m"),
            (r#"{"jsonrpc":"2.0","method":"m"}"#, "notification"),
            (r#"{"jsonrpc":"2.0","id":18446744073709551616,"method":"m"}"#, "wrong null"),
            (r#"{"jsonrpc":"2.0","id":1.5,"method":"m"}"#, "wrong null"),
            (r#"{"jsonrpc":"2.0","id":-1,"method":"m"}"#, "wrong null"),
            (r#"{"jsonrpc":"2.0","id":[],"method":"m"}"#, "wrong null"),
            (r#"{"jsonrpc":"1.0","id":1,"method":"m"}"#, "wrong 1"),
            (r#"{"id":1,"method":"m"}"#, "wrong 1"),
            (r#"{"jsonrpc":"2.0","id":"a","method":5}"#, "wrong \"a\""),
            (r#"{"jsonrpc":"2.0","id":1}"#, "wrong 1"),
            (r#"{"jsonrpc":"2.0"}"#, "wrong null"),
            (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"m"}"#, "wrong null"),
            ("{}", "wrong null"),
            ("1", "wrong null"),
            ("null", "wrong null"),
            (r#""text""#, "wrong null"),
        ] {
            assert_eq!(kind(json), expected, "{json}");
        }
    }
}
