//! Requests to this host's own loopback: to a running node, and to engines that may be there.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::http::{Method, Request, StatusCode, header};
use bytes::Bytes;
use daemon::{Secret, SecretFileError};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rpc::error::ErrorBody;
use rpc::node::NodeReport;

use crate::config::Config;

/// How long a node may take to answer.
const NODE_PATIENCE: Duration = Duration::from_secs(10);

/// The largest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// What a node is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// Finish what runs and take no more tasks.
    Begin,
    /// Take tasks again.
    End,
}

/// Why a node was not told.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// Its token cannot be read.
    #[error(transparent)]
    Token(#[from] SecretFileError),
    /// It does not answer.
    #[error(
        "no compute node answers on {addr}: {reason}\nhint: start it, or give the --listen and --data that it has"
    )]
    Silent {
        /// Where it should listen.
        addr: SocketAddr,
        /// What happened.
        reason: String,
    },
    /// It refuses.
    #[error(
        "the compute node on {addr} refuses: {reason}\nhint: give the --data or --compute-token-file that it has"
    )]
    Refused {
        /// Where it listens.
        addr: SocketAddr,
        /// Its words.
        reason: String,
    },
}

/// Tells the node that runs with this configuration to drain, or to take tasks again. Says how it is then.
///
/// # Errors
/// [`DrainError`]: it cannot be reached, or does not let this user in.
pub async fn set_draining(config: &Config, drain: Drain) -> Result<NodeReport, DrainError> {
    let token = daemon::read_secret_file(&config.token_file)?;
    let addr = reachable(config.listen);
    let method = match drain {
        Drain::Begin => Method::POST,
        Drain::End => Method::DELETE,
    };
    let silent = |reason: String| DrainError::Silent { addr, reason };
    let (status, body) = ask(method, addr, "/drain", Some(&token), NODE_PATIENCE).await.map_err(silent)?;
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|error| silent(error.to_string()));
    }
    let told = serde_json::from_slice::<ErrorBody>(&body).map(|body| body.error.message);
    Err(DrainError::Refused { addr, reason: told.unwrap_or_else(|_| status.to_string()) })
}

/// Where this host reaches what listens on `addr`.
pub(crate) fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        ip if !ip.is_unspecified() => ip,
        std::net::IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, addr.port())
}

/// Sends a request without a body, and reads the answer.
pub(crate) async fn ask(
    method: Method,
    addr: SocketAddr,
    path: &str,
    token: Option<&Secret>,
    patience: Duration,
) -> Result<(StatusCode, Bytes), String> {
    let mut request = Request::builder().method(method).uri(format!("http://{addr}{path}"));
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose()));
    }
    let request = request.body(Full::<Bytes>::default()).map_err(|error| error.to_string())?;
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let answer = async {
        let response = client.request(request).await.map_err(|error| innermost(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
    };
    let answer = tokio::time::timeout(patience, answer).await;
    answer.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

/// The cause of an error, which says more than that there was one.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_everywhere_is_reached_on_loopback() {
        for (listens, reached) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.7:1", "10.0.0.7:1")]
        {
            assert_eq!(reachable(listens.parse().unwrap()), reached.parse().unwrap());
        }
    }
}
