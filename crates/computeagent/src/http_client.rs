//! HTTP to the compute node and to the relay's API: the client, and what an answer may hold.

use std::time::Duration;

use reqwest::StatusCode;
use rpc::error::ErrorBody;
use rustls::ClientConfig;

/// The largest JSON answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// As much of another party's words as goes into logs and errors, in bytes.
const MAX_QUOTE_BYTES: usize = 300;
/// How long a TCP and TLS connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no HTTP client.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client cannot be set up: {0}")]
pub struct ClientError(#[from] reqwest::Error);

/// A client that goes straight to where it is sent: tokens must not follow redirects, nor pass through proxies.
pub(crate) fn client(tls: &ClientConfig) -> Result<reqwest::Client, ClientError> {
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .user_agent(concat!("compute-agent/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .build()?)
}

/// Reads a body of at most [`MAX_ANSWER_BYTES`].
pub(crate) async fn body(mut response: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
        if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(format!("an answer of more than {MAX_ANSWER_BYTES} bytes"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// A refusal in the other party's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("HTTP {status}, {code}: {message}")]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: StatusCode,
    /// The stable code, or empty.
    pub(crate) code: String,
    /// The reason, cut to what a log line holds.
    pub(crate) message: String,
}

/// Reads a refusal as far as it can be read.
pub(crate) async fn refusal(response: reqwest::Response) -> Answer {
    let status = response.status();
    let bytes = body(response).await.unwrap_or_default();
    match serde_json::from_slice::<ErrorBody>(&bytes) {
        Ok(ErrorBody { error }) => {
            Answer { status, code: quote(&error.code), message: quote(&error.message) }
        }
        Err(_) => Answer { status, code: String::new(), message: quote(&String::from_utf8_lossy(&bytes)) },
    }
}

/// Another party's words, safe for a log line: without control characters, and not too many of them.
pub(crate) fn quote(text: &str) -> String {
    clean(text, MAX_QUOTE_BYTES)
}

/// A text without control characters, cut to so many bytes.
pub(crate) fn clean(text: &str, max_bytes: usize) -> String {
    let mut cleaned: String = text.chars().filter(|c| !c.is_control()).take(max_bytes).collect();
    cleaned.truncate(cleaned.floor_char_boundary(max_bytes));
    cleaned
}

/// An error with its causes in one line; a client's own first line names only the URL.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    quote(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_are_cut_at_a_character() {
        assert_eq!(clean("a\u{1b}[31m\nb", 100), "a[31mb");
        assert_eq!(clean("aéé", 4), "aé");
        assert_eq!(quote(&"é".repeat(10_000)).len(), MAX_QUOTE_BYTES);
    }
}
