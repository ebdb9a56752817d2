//! What can go wrong, and how it is answered: every failure becomes one [`ErrorBody`] with a stable code.

use std::fmt;

use axum::response::{IntoResponse, Response};
use http::header::{self, HeaderValue};
use http::{HeaderName, StatusCode};
use jsonrpsee::types::ErrorObjectOwned;
use rpc::error::{CallErrorData, ErrorBody, ErrorCode};
use store::StoreError;
use taskmarket::{Domain, Rejection, SignatureError, Status, TaskId};

use crate::artifacts::BlobError;

/// How long a client is asked to wait before it tries again, in seconds, with 429 and 503.
const RETRY_AFTER_SECS: u16 = 1;

/// Why the market did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MarketError {
    /// No such task was ever published here.
    #[error("there is no task {0}")]
    NotFound(TaskId),
    /// The rules forbid it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// Signed for a domain that is not served.
    #[error(
        "signed for chain id {}, verifying contract {}; this takes {}",
        asked.chain_id, asked.verifying_contract, DomainList(takes)
    )]
    UnknownDomain {
        /// The message's domain.
        asked: Domain,
        /// The domains that would do.
        takes: Vec<Domain>,
    },
    /// A proof came before its result.
    #[error("the result {0} is not stored here: PUT it to /v1/artifacts/{0} first")]
    ResultMissing(artifact::Digest, Status),
    /// Others kept changing the task in between.
    #[error("task {0} is changing too fast; try again")]
    Contended(TaskId),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The artifacts failed.
    #[error(transparent)]
    Artifacts(#[from] BlobError),
}

/// Domains as a message names them.
struct DomainList<'a>(&'a [Domain]);

impl fmt::Display for DomainList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, domain) in self.0.iter().enumerate() {
            let or = if position == 0 { "" } else { " or " };
            write!(f, "{or}chain id {}, verifying contract {}", domain.chain_id, domain.verifying_contract)?;
        }
        Ok(())
    }
}

/// A refused or failed request, ready to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    code: ErrorCode,
    message: String,
    param: Option<String>,
    status: Option<Status>,
    /// Rare, and boxed so that results stay small.
    header: Option<Box<(HeaderName, HeaderValue)>>,
}

impl ApiError {
    /// An error of this code; the message says what was wrong and what to do.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: None, status: None, header: None }
    }

    /// Its stable code.
    pub(crate) fn code(&self) -> ErrorCode {
        self.code
    }

    /// Names the field, header or path part that was wrong.
    #[must_use]
    pub(crate) fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Names the task's status.
    #[must_use]
    pub(crate) fn with_status(mut self, status: Status) -> Self {
        self.status = Some(status);
        self
    }

    /// Adds a header to the answer.
    #[must_use]
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some(Box::new((name, value)));
        self
    }

    /// The same error, found in a part of a whole: the field that was wrong is named from there.
    #[must_use]
    pub(crate) fn within(mut self, whole: &str) -> Self {
        let (glue, field) = match self.param {
            Some(field) if field.starts_with('[') => ("", field),
            Some(field) => (".", field),
            None => (": ", String::new()),
        };
        self.message = format!("{whole}{glue}{}", self.message);
        self.param = Some(if field.is_empty() { whole.to_owned() } else { format!("{whole}{glue}{field}") });
        self
    }

    /// There is no such thing.
    pub(crate) fn not_found(what: impl fmt::Display) -> Self {
        Self::new(ErrorCode::NotFound, format!("there is no {what}"))
    }

    /// A fault of the relay's own; what it was is for the log, not for the client.
    pub(crate) fn internal(cause: &dyn fmt::Display) -> Self {
        tracing::error!(error = %cause, "request failed");
        Self::new(ErrorCode::Internal, "the relay failed; its operator finds the cause by the x-request-id")
    }
}

/// The body, for those who send it by other ways than HTTP.
impl From<ApiError> for ErrorBody {
    fn from(error: ApiError) -> Self {
        let mut body = Self::new(error.code, error.message);
        body.error.param = error.param;
        body.error.status = error.status;
        body
    }
}

/// The error as JSON-RPC has it.
impl From<ApiError> for ErrorObjectOwned {
    fn from(error: ApiError) -> Self {
        let code = error.code.rpc_code();
        let body: ErrorBody = error.into();
        let message = body.error.message.clone();
        Self::owned(code, message, Some(CallErrorData::from(body.error)))
    }
}

impl IntoResponse for ApiError {
    fn into_response(mut self) -> Response {
        let status =
            StatusCode::from_u16(self.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let extra = self.header.take();
        let body: ErrorBody = self.into();
        let mut response = (status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER_SECS.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some((name, value)) = extra.map(|extra| *extra) {
            headers.insert(name, value);
        }
        response
    }
}

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        let message = rejection.to_string();
        match rejection {
            Rejection::Invalid { field, .. } => Self::new(ErrorCode::InvalidField, message).with_param(field),
            Rejection::WrongParty { .. } => Self::new(ErrorCode::WrongParty, message),
            Rejection::StaleAttempt { status, .. } => {
                Self::new(ErrorCode::StaleAttempt, message).with_param("attempt").with_status(status)
            }
            Rejection::Conflict { status, .. } => Self::new(ErrorCode::Conflict, message).with_status(status),
            Rejection::AwaitingChain => Self::new(ErrorCode::Conflict, message),
        }
    }
}

impl From<SignatureError> for ApiError {
    fn from(error: SignatureError) -> Self {
        Self::new(ErrorCode::InvalidSignature, error.to_string()).with_param("signature")
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::BadCursor => {
                Self::new(ErrorCode::MalformedRequest, error.to_string()).with_param("cursor")
            }
            StoreError::Busy | StoreError::TimedOut | StoreError::Closed => {
                Self::new(ErrorCode::Unavailable, error.to_string())
            }
            StoreError::Corrupt { .. }
            | StoreError::Mismatch { .. }
            | StoreError::Locked { .. }
            | StoreError::Schema { .. }
            | StoreError::Io { .. }
            | StoreError::Backend(_) => Self::internal(&error),
        }
    }
}

impl From<BlobError> for ApiError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Store(error) => error.into(),
            // A bucket that cannot be reached now may be reached in a moment.
            BlobError::Objects(_) => {
                tracing::error!(%error, "request failed");
                Self::new(ErrorCode::Unavailable, "the relay cannot reach its artifacts now")
            }
            BlobError::Io(error) => Self::internal(&error),
        }
    }
}

impl From<MarketError> for ApiError {
    fn from(error: MarketError) -> Self {
        let message = error.to_string();
        match error {
            MarketError::NotFound(_) => Self::new(ErrorCode::NotFound, message).with_param("task_id"),
            MarketError::Rejected(rejection) => rejection.into(),
            MarketError::UnknownDomain { .. } => {
                Self::new(ErrorCode::UnknownDomain, message).with_param("verifying_contract")
            }
            MarketError::ResultMissing(_, status) => {
                Self::new(ErrorCode::ResultMissing, message).with_param("result_hash").with_status(status)
            }
            MarketError::Contended(_) => Self::new(ErrorCode::Unavailable, message),
            MarketError::Store(error) => error.into(),
            MarketError::Artifacts(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_answers_with_its_status() {
        for code in ErrorCode::ALL {
            let response = ApiError::new(*code, "x").into_response();
            assert_eq!(response.status().as_u16(), code.http_status(), "{code:?}");
            let wait = response.headers().contains_key(header::RETRY_AFTER);
            assert_eq!(wait, matches!(code.http_status(), 429 | 503), "{code:?}");
        }
    }

    #[test]
    fn an_unknown_domain_names_those_that_are_served() {
        let error = MarketError::UnknownDomain {
            asked: Domain { chain_id: 5, verifying_contract: taskmarket::Address::repeat_byte(7) },
            takes: vec![Domain::UNSETTLED],
        };
        let text = error.to_string();
        assert!(
            text.contains("chain id 5") && text.contains("chain id 1, verifying contract 0x0000"),
            "{text}"
        );
    }
}
