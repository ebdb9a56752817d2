//! Refusals: what a relay, or a provider's engine through it, says of a request that it does not serve, and what helps.

use reqwest::StatusCode;
use rpc::error::ErrorCode;
use rpc::inference::InferenceKind;
use serde_json::Value;

use crate::failure::{Exit, Failure};
use crate::ui::clean;

/// An error in OpenAI's shape, or near it, made safe to show.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// For people.
    pub(crate) message: String,
    /// A stable word.
    pub(crate) code: Option<String>,
}

impl Refusal {
    /// The error of an answer's body. Engines differ in what they put there.
    pub(crate) fn of_body(body: &Value) -> Option<Self> {
        let error = body.get("error").or_else(|| body.get("detail"))?;
        Some(Self::of_error(error))
    }

    /// An error object, or its bare text.
    pub(crate) fn of_error(error: &Value) -> Self {
        let text =
            |name: &str| error.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(clean);
        let bare = || error.as_str().map_or_else(|| clean(&error.to_string()), clean);
        let message = text("message").unwrap_or_else(bare);
        Self { message, code: text("code").or_else(|| text("type")) }
    }

    /// It as a failure.
    pub(crate) fn failure(self, what: &str, exit: Exit) -> Failure {
        let Self { message, code } = self;
        match code {
            Some(code) => Failure::new(exit, format_args!("{what}: {message} ({code})")).with_code(code),
            None => Failure::new(exit, format_args!("{what}: {message}")),
        }
    }
}

/// What to do about a refusal of this code and status at this path.
pub(crate) fn hint(
    code: Option<&str>,
    status: StatusCode,
    path: &str,
    has_key: bool,
) -> Option<&'static str> {
    let code = code.and_then(|code| ErrorCode::ALL.iter().copied().find(|known| known.as_str() == code));
    let is_inference = path.ends_with("/v1/models")
        || path.contains("/v1/models/")
        || InferenceKind::ALL.iter().any(|kind| path.ends_with(kind.path()));
    match (code, status) {
        (_, StatusCode::UNAUTHORIZED) if !has_key && path.contains("/v1/tasks/0x") => Some(
            "give the relay's API key: set ZORAI_AI_API_KEY, or --api-key-file FILE; or the key of the task's requester or provider: \
             --key-file FILE",
        ),
        (_, StatusCode::UNAUTHORIZED) if !has_key => {
            Some("give the relay's API key: set ZORAI_AI_API_KEY, or --api-key-file FILE")
        }
        (_, StatusCode::UNAUTHORIZED) => {
            Some("the API key is not one of this relay's; ask its operator for one")
        }
        (Some(ErrorCode::WrongParty), _) => {
            Some("sign with the key that published the task: --key-file FILE")
        }
        (Some(ErrorCode::Forbidden), _) if is_inference => Some(
            "ask the relay's operator for a key that may call models: compute-relay keys create --scope inference",
        ),
        (Some(ErrorCode::Forbidden), _) => Some("use the API key that published the task"),
        (Some(ErrorCode::ModelNotFound), _) => Some("`zorai-compute models` lists those that there are"),
        (Some(ErrorCode::NoProviderAvailable), _) => {
            Some("wait and try again, or choose another model: `zorai-compute models`")
        }
        (Some(ErrorCode::Conflict), _) if path.ends_with("/cancel") => Some(
            "a task is withdrawn before a provider holds it; `zorai-compute status TASK_ID` shows what became of it, and \
             `zorai-compute dispute` objects to a result",
        ),
        (Some(ErrorCode::NotFound), _) if path.contains("/v1/receipts/") => {
            Some("a receipt is shown to the API key that made the request, for as long as the relay keeps it")
        }
        (Some(ErrorCode::NotFound), _) if path.contains("/v1/providers/") => Some(
            "check the address and --relay: a provider is known at the relays that its agents connect to",
        ),
        (Some(ErrorCode::NotFound), _) => {
            Some("check the id and --relay: a task is known at the relay that it was published at")
        }
        (Some(_) | None, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_of_all_engines_are_read_and_made_safe() {
        for (body, message, code) in [
            (json!({"error": {"message": "no\u{1b}[2J", "type": "t", "code": "c"}}), "no[2J", Some("c")),
            (
                json!({"error": {"message": "m", "type": "exceed_context_size_error", "code": 400}}),
                "m",
                Some("exceed_context_size_error"),
            ),
            (json!({"error": "bare"}), "bare", None),
            (json!({"detail": [{"msg": "field required"}]}), "[{\"msg\":\"field required\"}]", None),
        ] {
            let refusal = Refusal::of_body(&body).unwrap();
            assert_eq!((refusal.message.as_str(), refusal.code.as_deref()), (message, code));
        }
        assert_eq!(Refusal::of_body(&json!({"choices": []})), None);
    }

    #[test]
    fn hints_fit_what_was_asked() {
        let forbidden = |path| hint(Some("forbidden"), StatusCode::FORBIDDEN, path, true).unwrap();
        assert!(forbidden("/zorai/v1/chat/completions").contains("--scope inference"));
        assert!(forbidden("/v1/tasks/0x12/result").contains("published the task"));
        let missing = |code, path| hint(Some(code), StatusCode::NOT_FOUND, path, true).unwrap();
        assert!(missing("model_not_found", "/v1/models/x").contains("zorai-compute models"));
        assert!(missing("not_found", "/v1/receipts/x").contains("receipt"));
        let conflict =
            |verb| hint(Some("conflict"), StatusCode::CONFLICT, &format!("/v1/tasks/0x12/{verb}"), true);
        assert!(conflict("cancel").unwrap().contains("zorai-compute status"));
        assert_eq!(conflict("approve"), None);
        assert_eq!(hint(Some("of an engine"), StatusCode::BAD_REQUEST, "/v1/chat/completions", true), None);
    }
}
