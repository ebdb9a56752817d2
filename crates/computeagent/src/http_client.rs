//! HTTP to the compute node and to the relay's API: the TLS roots, the client, and what an answer may hold.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use rpc::error::ErrorBody;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// The largest JSON answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// As much of another party's words as goes into logs and errors, in bytes.
const MAX_QUOTE_BYTES: usize = 300;
/// How long a TCP and TLS connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// `--ca-file` cannot be used.
    #[error("--ca-file {}: {why}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The library refuses its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
    /// The HTTP client cannot be made.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(#[from] reqwest::Error),
}

/// The system's roots and those of `ca_file`.
pub(crate) fn tls(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "a root certificate of the system cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = ca_file {
        let wrong = |why: String| TlsError::CaFile { path: path.to_owned(), why };
        let mut count = 0;
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))? {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            count += 1;
        }
        if count == 0 {
            return Err(wrong("it holds no certificate".to_owned()));
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// A client that goes straight to where it is sent: tokens must not follow redirects, nor pass through proxies.
pub(crate) fn client(tls: &Arc<ClientConfig>) -> Result<reqwest::Client, TlsError> {
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(ClientConfig::clone(tls))
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

    #[test]
    fn a_wrong_ca_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        assert!(tls(Some(&path)).unwrap_err().to_string().contains("ca.pem"));
        std::fs::write(&path, "nothing").unwrap();
        assert!(tls(Some(&path)).unwrap_err().to_string().contains("no certificate"));
    }
}
