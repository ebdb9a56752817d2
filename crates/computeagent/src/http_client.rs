//! HTTP to the compute node and to the relay's API: the client, and what an answer may hold.

use std::time::Duration;

use daemon::{chain, quote};
use reqwest::StatusCode;
use rpc::error::ErrorBody;
use rustls::ClientConfig;

/// The largest JSON answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
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
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error.without_url()))? {
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
