//! Tells a request that is too long for its model from a failure of the engine's own: some engines answer 500 to both.

use daemon::quote;
use serde_json::Value;

/// What engines say of such a request, in small letters: llama.cpp (two), its Python bindings, vLLM (three), SGLang, Ollama.
const WORDS: [&str; 8] = [
    "exceeds the available context size",
    "context size has been exceeded",
    "exceed context window of",
    "maximum context length",
    "longer than the maximum model length",
    "too long to fit into the model",
    "longer than the model's context length",
    "input length exceeds the context length",
];

/// What llama.cpp calls it, and OpenAI.
const NAMES: [&str; 2] = ["exceed_context_size_error", "context_length_exceeded"];

/// The engine's words for a request that is too long, if its error says that.
pub(super) fn said(json: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(json).ok()?;
    let error = value.get("error").unwrap_or(&value);
    let text = [error.get("message"), error.get("detail"), Some(error)];
    let text = text.into_iter().flatten().find_map(Value::as_str).unwrap_or_default();
    let is_named = ["type", "code"].iter().any(|field| {
        let name = error.get(field).and_then(Value::as_str);
        name.is_some_and(|name| NAMES.contains(&name))
    });
    let lower = text.to_ascii_lowercase();
    (is_named || WORDS.iter().any(|words| lower.contains(words))).then(|| quote(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_say_it_in_their_own_ways() {
        for error in [
            r#"{"error":{"code":500,"message":"Context size has been exceeded.","type":"server_error"}}"#,
            r#"{"error":{"code":500,"message":"m","type":"exceed_context_size_error","n_prompt_tokens":9,"n_ctx":8}}"#,
            r#"{"error":{"message":"Requested tokens (20) exceed context window of 8","type":"internal_server_error"}}"#,
            r#"{"object":"error","message":"This model's maximum context length is 8 tokens.","code":500}"#,
            r#"{"detail":"The decoder prompt (length 9) is longer than the maximum model length of 8."}"#,
            r#"{"error":{"message":"The input (9 tokens) is longer than the model's context length (8 tokens)."}}"#,
            r#"{"error":"the input length exceeds the context length"}"#,
        ] {
            let said = said(error.as_bytes());
            assert!(said.as_ref().is_some_and(|said| error.contains(said)), "{error}: {said:?}");
        }
        for other in [
            "",
            "no JSON: maximum context length",
            r#"{"error":{"message":"out of memory","code":500}}"#,
            r#"{"detail":"Internal Server Error"}"#,
            r#"{"choices":["maximum context length"]}"#,
        ] {
            assert_eq!(said(other.as_bytes()), None, "{other}");
        }
    }
}
