//! Errors as every HTTP endpoint answers them: OpenAI's shape, with stable codes.

use serde::{Deserialize, Serialize};

/// An error's JSON body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorDetail {
    /// For people: what was wrong and what to do.
    pub message: String,
    /// OpenAI's coarse class.
    #[serde(rename = "type")]
    pub kind: String,
    /// A stable word for programs: one of [`ErrorCode`] in a relay's own errors.
    pub code: String,
    /// The field or header that was wrong, where one was.
    #[serde(default)]
    pub param: Option<String>,
    /// The task's status, where that forbids the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<taskmarket::Status>,
}

/// The `data` of a JSON-RPC error: what the same error says in REST, apart from its message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CallErrorData {
    /// A stable word for programs: one of [`ErrorCode`].
    pub code: String,
    /// The parameter, or the field in it, that was wrong, where one was.
    #[serde(default)]
    pub param: Option<String>,
    /// The task's status, where that forbids the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<taskmarket::Status>,
}

impl From<ErrorDetail> for CallErrorData {
    fn from(error: ErrorDetail) -> Self {
        Self { code: error.code, param: error.param, status: error.status }
    }
}

impl ErrorBody {
    /// A body with a code of the list and a message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            error: ErrorDetail {
                message: message.into(),
                kind: code.kind().to_owned(),
                code: code.as_str().to_owned(),
                param: None,
                status: None,
            },
        }
    }

    /// Names the field or header that was wrong.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.error.param = Some(param.into());
        self
    }

    /// Names the task's status.
    #[must_use]
    pub fn with_status(mut self, status: taskmarket::Status) -> Self {
        self.error.status = Some(status);
        self
    }
}

/// Declares the codes with their HTTP status and JSON-RPC code in one table.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $http:literal, $rpc:literal;)*) => {
        /// The stable codes of a relay's errors.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
        }

        impl ErrorCode {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The word in JSON.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// The HTTP status that goes with it.
            pub fn http_status(self) -> u16 {
                match self { $(Self::$name => $http,)* }
            }

            /// The JSON-RPC 2.0 code that goes with it.
            pub fn rpc_code(self) -> i32 {
                match self { $(Self::$name => $rpc,)* }
            }
        }
    };
}

codes! {
    /// The request's JSON, path, query or headers cannot be read.
    MalformedRequest = "malformed_request", 400, -32602;
    /// A field holds what the rules forbid; `param` names it.
    InvalidField = "invalid_field", 400, -32602;
    /// A signature is malformed or not of the party that the message names.
    InvalidSignature = "invalid_signature", 400, -32602;
    /// The task in a chat request has no signature; `typed_data` is what to sign.
    SignatureRequired = "signature_required", 400, -32602;
    /// The task is signed for a domain that this relay does not serve.
    UnknownDomain = "unknown_domain", 400, -32602;
    /// The bytes do not have the hash that they were sent under.
    HashMismatch = "hash_mismatch", 400, -32602;
    /// There is no API key, or it is not known.
    InvalidApiKey = "invalid_api_key", 401, -32001;
    /// The signature is right, but it is not theirs to say.
    WrongParty = "wrong_party", 403, -32003;
    /// The key or token does not reach this.
    Forbidden = "forbidden", 403, -32003;
    /// There is no such thing.
    NotFound = "not_found", 404, -32004;
    /// No host that ever was here lately serves this model; the message names those with the nearest names.
    ModelNotFound = "model_not_found", 404, -32004;
    /// The path knows no such method.
    MethodNotAllowed = "method_not_allowed", 405, -32601;
    /// The client took too long.
    RequestTimeout = "request_timeout", 408, -32008;
    /// The task's state forbids it; `status` says where it is.
    Conflict = "conflict", 409, -32009;
    /// The message is about an older attempt.
    StaleAttempt = "stale_attempt", 409, -32009;
    /// The provider has no live session here.
    NoSession = "no_session", 409, -32009;
    /// The result's bytes must be stored before its proof is taken.
    ResultMissing = "result_missing", 409, -32009;
    /// The request under this idempotency key was carried out, and its answer could not be kept.
    AnswerNotKept = "answer_not_kept", 410, -32010;
    /// The body is larger than this relay takes.
    PayloadTooLarge = "payload_too_large", 413, -32013;
    /// The API key would store more than it may.
    QuotaExceeded = "quota_exceeded", 413, -32013;
    /// The body's `content-type` is not one this path takes.
    UnsupportedMediaType = "unsupported_media_type", 415, -32602;
    /// The range asked for is not within the content.
    RangeNotSatisfiable = "range_not_satisfiable", 416, -32602;
    /// The same idempotency key came with another body.
    IdempotencyMismatch = "idempotency_mismatch", 422, -32022;
    /// The client must speak WebSocket with the right subprotocol here.
    UpgradeRequired = "upgrade_required", 426, -32602;
    /// Too many requests; wait as `Retry-After` says.
    RateLimited = "rate_limited", 429, -32029;
    /// A fault of the relay's own.
    Internal = "internal", 500, -32603;
    /// The host's answer broke off after it had begun. It stands in the stream, for its status was sent.
    ProviderFailed = "provider_failed", 502, -32052;
    /// All attempts of a task failed, or it was cancelled.
    TaskFailed = "task_failed", 502, -32052;
    /// The relay cannot serve this now; wait as `Retry-After` says.
    Unavailable = "unavailable", 503, -32053;
    /// No host can serve this model now, or those that were asked failed; wait as `Retry-After` says.
    NoProviderAvailable = "no_provider_available", 503, -32053;
    /// The request took longer than its deadline.
    DeadlineExceeded = "deadline_exceeded", 504, -32054;
    /// A task's deadline passed without a result.
    TaskExpired = "task_expired", 504, -32054;
}

impl ErrorCode {
    /// OpenAI's coarse class.
    pub fn kind(self) -> &'static str {
        match self.http_status() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }
}
