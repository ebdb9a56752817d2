//! The agent's side: dialling the relay.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, HOST, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use url::{Host, Url};

use crate::h2::chain;
use crate::upgrade::has_token;
use crate::{Config, Handshake, SUBPROTOCOL};

/// As much of the relay's refusal as is kept, in bytes.
const MAX_REFUSAL: usize = 4 * 1024;

/// Dials a relay: `ws://` or `wss://`, the latter with the given TLS configuration (its ALPN is set to `http/1.1`).
/// Sets `TCP_NODELAY`. [`Config::handshake_timeout`] bounds the dialling and the handshake together.
///
/// # Errors
/// [`ConnectError`], which names the address and says whether another attempt may help.
pub async fn connect(
    url: &Url,
    tls: Option<Arc<ClientConfig>>,
    config: Config,
) -> Result<Handshake, ConnectError> {
    let deadline = Instant::now() + config.handshake_timeout;
    let target = Target::parse(url)?;
    let after = config.handshake_timeout;
    let dialled = timeout_at(deadline, dial(url, &target, tls, deadline)).await;
    let upgraded = dialled.map_err(|_| ConnectError::TimedOut { address: target.address(), after })??;
    Ok(Handshake::new(upgraded, Role::Client, config, deadline).await)
}

/// Why a relay could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL is none that can be dialled.
    #[error("relay URL {url}: {reason}")]
    Url {
        /// The URL, without a user name or password.
        url: Url,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The name does not resolve.
    #[error("cannot resolve {address}: {source}")]
    Dns {
        /// Host and port.
        address: String,
        /// From the resolver.
        source: io::Error,
    },
    /// None of the addresses of the name takes a TCP connection.
    #[error("cannot connect to {address}: {source}")]
    Tcp {
        /// Host and port.
        address: String,
        /// From the last address tried.
        source: io::Error,
    },
    /// No TLS session, for instance because the certificate is not trusted.
    #[error("TLS with {address}: {source}")]
    Tls {
        /// Host and port.
        address: String,
        /// From TLS.
        source: io::Error,
    },
    /// The HTTP exchange broke.
    #[error("HTTP with {address}: {}", chain(.source))]
    Http {
        /// Host and port.
        address: String,
        /// From HTTP.
        source: hyper::Error,
    },
    /// The relay answered with another status than 101.
    #[error("{address} refused with HTTP {status}: {message}")]
    Refused {
        /// Host and port.
        address: String,
        /// The status.
        status: StatusCode,
        /// What it said, up to 4 KiB, without control characters.
        message: String,
        /// The seconds of `Retry-After`, if it gave any.
        retry_after: Option<Duration>,
    },
    /// Something answered that does not speak this protocol.
    #[error("{address} is no relay: {reason}")]
    NotALink {
        /// Host and port.
        address: String,
        /// What its answer lacks.
        reason: &'static str,
    },
    /// The deadline passed.
    #[error("no connection to {address} within {after:?}")]
    TimedOut {
        /// Host and port.
        address: String,
        /// [`Config::handshake_timeout`].
        after: Duration,
    },
}

impl ConnectError {
    /// Whether another attempt may help without anybody changing something: not after a wrong URL, an untrusted certificate
    /// or a refusal that blames the request.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Dns { .. } | Self::Tcp { .. } | Self::Http { .. } | Self::TimedOut { .. } => true,
            Self::Url { .. } | Self::NotALink { .. } => false,
            Self::Tls { source, .. } => {
                let tls = source.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
                !matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
            }
            Self::Refused { status, .. } => {
                status.is_server_error()
                    || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS]
                        .contains(status)
            }
        }
    }
}

/// What a URL says about where to connect.
struct Target {
    /// Without the brackets that an IPv6 address has in a URL.
    host: String,
    port: u16,
    tls: bool,
    /// The `Host` header.
    authority: String,
}

impl Target {
    fn parse(url: &Url) -> Result<Self, ConnectError> {
        let wrong = |reason| wrong(url, reason);
        let tls = match url.scheme() {
            "ws" => false,
            "wss" => true,
            _ => return Err(wrong("the scheme must be ws or wss")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("it must hold no user name or password"));
        }
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(ip)) => ip.to_string(),
            Some(Host::Ipv6(ip)) => ip.to_string(),
            None => return Err(wrong("it names no host")),
        };
        let port = url.port_or_known_default().ok_or_else(|| wrong("it names no port"))?;
        let name = url.host_str().unwrap_or_default();
        let authority = match url.port() {
            Some(port) => format!("{name}:{port}"),
            None => name.to_owned(),
        };
        Ok(Self { host, port, tls, authority })
    }

    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

fn wrong(url: &Url, reason: &'static str) -> ConnectError {
    let mut url = url.clone();
    // Fails only where there can be neither.
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    ConnectError::Url { url, reason }
}

async fn dial(
    url: &Url,
    target: &Target,
    tls: Option<Arc<ClientConfig>>,
    deadline: Instant,
) -> Result<Upgraded, ConnectError> {
    if !target.tls {
        let tcp = dial_tcp(target, deadline).await?;
        return upgrade(url, target, tcp).await;
    }
    let wrong = |reason| wrong(url, reason);
    let mut tls = Arc::unwrap_or_clone(tls.ok_or_else(|| wrong("the scheme wss needs a TLS configuration"))?);
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from(target.host.clone()).map_err(|_| wrong("its host is no TLS name"))?;
    let tcp = dial_tcp(target, deadline).await?;
    let stream = TlsConnector::from(Arc::new(tls))
        .connect(name, tcp)
        .await
        .map_err(|source| ConnectError::Tls { address: target.address(), source })?;
    upgrade(url, target, stream).await
}

/// Tries all addresses of the name in turn, each with its share of the time that is left.
async fn dial_tcp(target: &Target, deadline: Instant) -> Result<TcpStream, ConnectError> {
    let dns = |source| ConnectError::Dns { address: target.address(), source };
    let found = lookup_host((target.host.as_str(), target.port)).await.map_err(dns)?;
    let addresses: Vec<_> = found.collect();
    let mut failure = None;
    for (tried, address) in addresses.iter().enumerate() {
        let untried = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(Instant::now()) / untried;
        let connected = match timeout(share, TcpStream::connect(address)).await {
            Ok(connected) => connected,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        match connected.and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp)) {
            Ok(tcp) => return Ok(tcp),
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(source) => Err(ConnectError::Tcp { address: target.address(), source }),
        None => Err(dns(io::Error::other("the name has no address"))),
    }
}

/// Asks for the WebSocket, and makes sure that it is one of ours.
async fn upgrade<T>(url: &Url, target: &Target, stream: T) -> Result<Upgraded, ConnectError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let http = |source| ConnectError::Http { address: target.address(), source };
    let key = generate_key();
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let request = Request::get(path)
        .header(HOST, &target.authority)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key)
        .header(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
        .body(Empty::<Bytes>::new())
        .map_err(|_| wrong(url, "it cannot be sent as HTTP"))?;
    let (mut sender, http1) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(http)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(target, response).await);
        }
        verify(response.headers(), &key)
            .map_err(|reason| ConnectError::NotALink { address: target.address(), reason })?;
        hyper::upgrade::on(response).await.map_err(http)
    };
    alongside(exchange, http1.with_upgrades()).await
}

/// Runs a connection for as long as the exchange on it takes. What ends the one shows in the other.
async fn alongside<T>(exchange: impl Future<Output = T>, connection: impl Future) -> T {
    let mut exchange = pin!(exchange);
    tokio::select! {
        result = &mut exchange => result,
        _ = connection => exchange.await,
    }
}

fn verify(headers: &HeaderMap, key: &str) -> Result<(), &'static str> {
    let is = |name, value: &str| headers.get(name).is_some_and(|held| held.as_bytes() == value.as_bytes());
    if !has_token(headers, UPGRADE, "websocket") || !has_token(headers, CONNECTION, "upgrade") {
        return Err("it switched to another protocol than WebSocket");
    }
    if !is(SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes())) {
        return Err("`Sec-WebSocket-Accept` is wrong");
    }
    if !is(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        return Err("it did not choose the subprotocol zorai-link.v1");
    }
    Ok(())
}

/// Reads what the relay has to say, as far as it comes.
async fn refusal(target: &Target, response: Response<Incoming>) -> ConnectError {
    let (head, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while bytes.len() < MAX_REFUSAL {
        match body.frame().await {
            Some(Ok(frame)) => bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
            Some(Err(_)) | None => break,
        }
    }
    bytes.truncate(MAX_REFUSAL);
    let text = String::from_utf8_lossy(&bytes);
    ConnectError::Refused {
        address: target.address(),
        status: head.status,
        message: text.chars().filter(|c| !c.is_control()).collect(),
        retry_after: head
            .headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Target {
        Target::parse(&url.parse().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn sockets_do_not_wait_to_fill_segments() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = target(&format!("ws://{}/", listener.local_addr().unwrap()));
        let tcp = dial_tcp(&target, Instant::now() + Duration::from_secs(10)).await.unwrap();
        assert!(tcp.nodelay().unwrap());
    }

    #[test]
    fn urls_say_where_to_connect() {
        let plain = target("ws://relay.example/x");
        assert_eq!(
            (plain.address().as_str(), plain.authority.as_str()),
            ("relay.example:80", "relay.example")
        );
        let secure = target("wss://relay.example");
        assert_eq!((secure.address().as_str(), secure.tls), ("relay.example:443", true));
        let six = target("wss://[::1]:8443/x");
        assert_eq!((six.host.as_str(), six.authority.as_str()), ("::1", "[::1]:8443"));
    }
}
