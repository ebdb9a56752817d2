//! What an engine says of its failure, for the client that nobody could serve.

use std::time::Duration;

use daemon::quote;
use http_body_util::{BodyExt as _, Limited};
use link::ResponseBody;
use serde_json::Value;
use tokio::time::timeout;

/// As much of a refusal is read, in bytes.
const MAX_BYTES: usize = 16 * 1024;
/// The longest that another host waits to be asked until a refusal was read.
const PATIENCE: Duration = Duration::from_millis(100);

/// What a refusal says, where it is JSON that comes at once.
pub(super) async fn read(body: ResponseBody) -> Option<String> {
    let body = timeout(PATIENCE, Limited::new(body, MAX_BYTES).collect()).await;
    said(&body.ok()?.ok()?.to_bytes())
}

/// What a refusal says, in one line and cut short: as OpenAI, or as FastAPI and older engines have it.
pub(super) fn said(json: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(json).ok()?;
    let places = ["/error/message", "/error", "/response/error/message", "/message", "/detail"];
    let text = places.iter().find_map(|place| value.pointer(place)?.as_str())?;
    let words: Vec<&str> = text.split_whitespace().collect();
    Some(quote(&words.join(" "))).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_say_it_in_several_ways() {
        for (json, expected) in [
            (
                r#"{"error":{"code":500,"message":" out of\n memory ","type":"server_error"}}"#,
                "out of memory",
            ),
            (r#"{"error":"the runner has gone"}"#, "the runner has gone"),
            (r#"{"object":"error","message":"too long","code":400}"#, "too long"),
            (r#"{"detail":"Internal Server Error"}"#, "Internal Server Error"),
            (r#"{"type":"response.failed","response":{"error":{"message":"m"}}}"#, "m"),
        ] {
            assert_eq!(said(json.as_bytes()).as_deref(), Some(expected), "{json}");
        }
        for nothing in
            ["", "<html>", "{}", r#"{"error":{}}"#, r#"{"error":""}"#, r#"{"detail":[{"msg":"m"}]}"#]
        {
            assert_eq!(said(nothing.as_bytes()), None, "{nothing}");
        }
        let long = format!(r#"{{"error":"{}"}}"#, "é".repeat(10_000));
        assert_eq!(said(long.as_bytes()).unwrap().len(), 300);
    }
}
