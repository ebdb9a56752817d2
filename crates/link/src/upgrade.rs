//! The relay's side of the WebSocket upgrade.

use bytes::Bytes;
use http::header::{
    CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Empty;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::{Config, Handshake, HandshakeError, SUBPROTOCOL};

/// 16 bytes in base64.
const KEY_LENGTH: usize = 24;

/// Answers a request that asks for the link: the `101` response to send, and the upgrade to complete in a task of its
/// own once that response is on its way. The server must serve HTTP/1.1 with upgrades, and set `TCP_NODELAY`.
///
/// # Errors
/// [`UpgradeError`], which gives the status to answer with.
pub fn accept<B>(
    request: &mut Request<B>,
    config: Config,
) -> Result<(Response<Empty<Bytes>>, Upgrade), UpgradeError> {
    if request.version() != Version::HTTP_11 {
        return Err(UpgradeError::HttpVersion(request.version()));
    }
    if request.method() != Method::GET {
        return Err(UpgradeError::Method(request.method().clone()));
    }
    let headers = request.headers();
    if !has_token(headers, CONNECTION, "upgrade") || !has_token(headers, UPGRADE, "websocket") {
        return Err(UpgradeError::NotWebSocket);
    }
    let version = joined(headers, SEC_WEBSOCKET_VERSION);
    if version != "13" {
        return Err(UpgradeError::WebSocketVersion(version));
    }
    let key =
        headers.get(SEC_WEBSOCKET_KEY).filter(|key| key.len() == KEY_LENGTH).ok_or(UpgradeError::Key)?;
    // Subprotocol names are case-sensitive, unlike the tokens above.
    let offered = joined(headers, SEC_WEBSOCKET_PROTOCOL);
    if !offered.split(',').any(|name| name.trim() == SUBPROTOCOL) {
        return Err(UpgradeError::Subprotocol(offered));
    }
    let accept_key =
        HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_| UpgradeError::Key)?;

    if request.extensions().get::<OnUpgrade>().is_none() {
        return Err(UpgradeError::NotWebSocket);
    }
    let upgrade = Upgrade { upgraded: hyper::upgrade::on(request), config };
    let mut response = Response::new(Empty::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept_key);
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    Ok((response, upgrade))
}

/// An accepted upgrade, to be completed after the `101` was sent.
#[derive(Debug)]
pub struct Upgrade {
    upgraded: OnUpgrade,
    config: Config,
}

impl Upgrade {
    /// Waits for the connection to change over. The handshake's deadline runs from here.
    ///
    /// # Errors
    /// [`HandshakeError::Upgrade`] when the connection broke, [`HandshakeError::TimedOut`].
    pub async fn complete(self) -> Result<Handshake, HandshakeError> {
        let deadline = Instant::now() + self.config.handshake_timeout;
        let upgraded = timeout_at(deadline, self.upgraded)
            .await
            .map_err(|_| HandshakeError::TimedOut(self.config.handshake_timeout))?
            .map_err(|error| HandshakeError::Upgrade(error.to_string()))?;
        Ok(Handshake::new(upgraded, Role::Server, self.config, deadline).await)
    }
}

/// Why a request cannot become a link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// Not HTTP/1.1.
    #[error("a WebSocket upgrade needs HTTP/1.1, not {0:?}")]
    HttpVersion(Version),
    /// Not `GET`.
    #[error("a WebSocket upgrade is a GET, not {0}")]
    Method(Method),
    /// No `Connection: Upgrade` with `Upgrade: websocket`, or the server does not upgrade connections.
    #[error("not a WebSocket upgrade: `Connection: Upgrade` and `Upgrade: websocket` are needed")]
    NotWebSocket,
    /// `Sec-WebSocket-Version` is not 13; what came instead.
    #[error("`Sec-WebSocket-Version: 13` is needed, not `{0}`")]
    WebSocketVersion(String),
    /// `Sec-WebSocket-Key` is missing or not 16 bytes in base64.
    #[error("`Sec-WebSocket-Key` is missing or malformed")]
    Key,
    /// `Sec-WebSocket-Protocol` does not offer [`SUBPROTOCOL`]; what it offered.
    #[error("`Sec-WebSocket-Protocol` must offer `{SUBPROTOCOL}`, and offered `{0}`")]
    Subprotocol(String),
}

impl UpgradeError {
    /// The HTTP status to answer with. With 426 RFC 6455 wants a header `Sec-WebSocket-Version: 13`.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::HttpVersion(_) | Self::NotWebSocket | Self::WebSocketVersion(_) => {
                StatusCode::UPGRADE_REQUIRED
            }
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Key | Self::Subprotocol(_) => StatusCode::BAD_REQUEST,
        }
    }

    /// A stable name for programs to read.
    pub fn code(&self) -> &'static str {
        match self {
            Self::HttpVersion(_) => "http_version",
            Self::Method(_) => "method_not_allowed",
            Self::NotWebSocket => "not_websocket",
            Self::WebSocketVersion(_) => "websocket_version",
            Self::Key => "websocket_key",
            Self::Subprotocol(_) => "websocket_subprotocol",
        }
    }
}

/// Whether a comma-separated header holds a token, in any case.
pub(crate) fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    joined(headers, name).split(',').any(|item| item.trim().eq_ignore_ascii_case(token))
}

/// All values of a header as one list; what is not visible ASCII is replaced.
fn joined(headers: &HeaderMap, name: HeaderName) -> String {
    let values: Vec<_> =
        headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    values.join(", ")
}
