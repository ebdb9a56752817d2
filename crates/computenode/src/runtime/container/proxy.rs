//! The proxy on a container's loopback: plain HTTP and `CONNECT`, to granted domains only, within bounds.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use artifact::AddressClass;
use bytes::Bytes;
use http::header::{
    CONNECTION, HOST, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::egress::{Domain, EgressPolicy};

/// How long a name may take to be resolved, and a connection to be made.
const CONNECT_TIME: Duration = Duration::from_secs(15);

/// How long a request's head may take.
const HEAD_TIME: Duration = Duration::from_secs(30);

/// How much is copied at once.
const CHUNK: usize = 64 << 10;

type Body = BoxBody<Bytes, hyper::Error>;

/// Where the proxy leads, and how far.
pub(super) struct Rules {
    domains: Vec<Domain>,
    ports: Vec<u16>,
    allow_private: bool,
    /// The bytes that may still go through.
    room: AtomicU64,
    connections: Arc<Semaphore>,
}

impl Rules {
    pub(super) fn new(policy: &EgressPolicy, domains: Vec<Domain>) -> Arc<Self> {
        Arc::new(Self {
            domains,
            ports: policy.ports.clone(),
            allow_private: policy.allow_private_addresses,
            room: AtomicU64::new(policy.max_bytes),
            connections: Arc::new(Semaphore::new(policy.max_connections.min(Semaphore::MAX_PERMITS))),
        })
    }

    /// Takes `bytes` from what may still go through.
    fn spend(&self, bytes: usize) -> io::Result<()> {
        let spent =
            self.room.try_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(bytes as u64));
        spent.map(drop).map_err(|_| io::Error::other("the task has sent and received all that it may"))
    }

    /// Connects to a host, if it may be reached.
    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, Refused> {
        if !self.domains.iter().any(|domain| domain.admits(host)) || !self.ports.contains(&port) {
            return Err(Refused(StatusCode::FORBIDDEN, "the task may not reach this host"));
        }
        let connecting = async {
            let unknown = |_| Refused(StatusCode::BAD_GATEWAY, "the host's name cannot be resolved");
            let found = tokio::net::lookup_host((host, port)).await.map_err(unknown)?;
            let admitted: Vec<SocketAddr> = found.filter(|address| self.admits(*address)).collect();
            if admitted.is_empty() {
                return Err(Refused(StatusCode::FORBIDDEN, "the host has no public address"));
            }
            let unreachable = |_| Refused(StatusCode::BAD_GATEWAY, "the host cannot be reached");
            let stream = TcpStream::connect(admitted.as_slice()).await.map_err(unreachable)?;
            // It matters only for speed.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        };
        let connected = tokio::time::timeout(CONNECT_TIME, connecting).await;
        connected.unwrap_or(Err(Refused(StatusCode::GATEWAY_TIMEOUT, "the host does not answer")))
    }

    fn admits(&self, address: SocketAddr) -> bool {
        match AddressClass::of(address.ip()) {
            AddressClass::Public => true,
            AddressClass::Private => self.allow_private,
            AddressClass::Never => false,
        }
    }
}

/// Why a request is not carried out.
struct Refused(StatusCode, &'static str);

/// Serves on `listener` until `closed`.
pub(super) fn spawn(listener: TcpListener, rules: Arc<Rules>, closed: CancellationToken) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let until = closed.clone();
    tokio::spawn(until.run_until_cancelled_owned(async move {
        loop {
            // Whoever has as many connections as it may waits for one to end.
            let Ok(permit) = Arc::clone(&rules.connections).acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else { return };
            let _ = stream.set_nodelay(true);
            let serving = serve(stream, Arc::clone(&rules), permit, closed.clone());
            tokio::spawn(closed.clone().run_until_cancelled_owned(serving));
        }
    }));
    Ok(())
}

/// Serves one connection. It counts among the connections until its tunnel has ended too.
async fn serve(
    stream: TcpStream,
    rules: Arc<Rules>,
    permit: OwnedSemaphorePermit,
    closed: CancellationToken,
) {
    let permit = Arc::new(permit);
    let service = service_fn(move |request| {
        let (rules, permit, closed) = (Arc::clone(&rules), Arc::clone(&permit), closed.clone());
        async move {
            let answered = if request.method() == Method::CONNECT {
                tunnel(request, rules, permit, closed).await
            } else {
                forward(request, rules, permit, closed).await
            };
            Ok::<_, Infallible>(answered.unwrap_or_else(|Refused(status, reason)| {
                let body = Full::from(reason).map_err(|never| match never {}).boxed();
                let mut response = Response::new(body);
                *response.status_mut() = status;
                response
            }))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection of a container's proxy ended");
    }
}

async fn tunnel(
    request: Request<Incoming>,
    rules: Arc<Rules>,
    permit: Arc<OwnedSemaphorePermit>,
    closed: CancellationToken,
) -> Result<Response<Body>, Refused> {
    let (host, port) = target(request.uri(), None)?;
    let far = rules.connect(&host, port).await?;
    let tunnelling = async move {
        let _permit = permit;
        let Ok(near) = hyper::upgrade::on(request).await else { return };
        let (near_read, near_write) = tokio::io::split(TokioIo::new(near));
        let (far_read, far_write) = far.into_split();
        let ends = tokio::join!(copy(near_read, far_write, &rules), copy(far_read, near_write, &rules),);
        tracing::debug!(?ends, "a tunnel ended");
    };
    tokio::spawn(closed.run_until_cancelled_owned(tunnelling));
    Ok(Response::new(Full::default().map_err(|never| match never {}).boxed()))
}

/// Copies to the end, and says it there. An error ends the other direction with this one's halves.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    rules: &Rules,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = from.read(&mut chunk).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        if let Err(error) = rules.spend(read) {
            to.shutdown().await?;
            return Err(error);
        }
        to.write_all(&chunk[..read]).await?;
    }
}

async fn forward(
    mut request: Request<Incoming>,
    rules: Arc<Rules>,
    permit: Arc<OwnedSemaphorePermit>,
    closed: CancellationToken,
) -> Result<Response<Body>, Refused> {
    if request.uri().scheme_str() != Some("http") {
        return Err(Refused(StatusCode::BAD_REQUEST, "this is a proxy"));
    }
    let (host, port) = target(request.uri(), Some(80))?;
    let stream = rules.connect(&host, port).await?;
    let failed = |_| Refused(StatusCode::BAD_GATEWAY, "the host does not speak HTTP");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(closed.run_until_cancelled_owned(async move {
        let _permit = permit;
        // Its end is the response's end, which is seen there.
        let _ = connection.await;
    }));
    let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    let host = HeaderValue::from_str(&authority)
        .map_err(|_| Refused(StatusCode::BAD_REQUEST, "the host has no name"))?;
    strip(request.headers_mut());
    // The name that was checked, whatever the request says.
    request.headers_mut().insert(HOST, host);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() =
        path.parse().map_err(|_| Refused(StatusCode::BAD_REQUEST, "the address has no path"))?;
    let request = request.map(|body| counted(body, Arc::clone(&rules)));
    let mut response = sender.send_request(request).await.map_err(failed)?;
    strip(response.headers_mut());
    Ok(response.map(|body| counted(body, rules)))
}

/// A body that ends when the task has sent and received all that it may.
fn counted(body: Incoming, rules: Arc<Rules>) -> Body {
    let stream = futures_util::stream::unfold(Some(body), move |body| {
        let rules = Arc::clone(&rules);
        async move {
            let mut body = body?;
            let frame = body.frame().await?;
            let spent = frame
                .as_ref()
                .ok()
                .and_then(|frame| frame.data_ref())
                .map_or(Ok(()), |data| rules.spend(data.len()));
            spent.is_ok().then_some((frame, Some(body)))
        }
    });
    http_body_util::StreamBody::new(stream).boxed()
}

/// Removes what concerns one connection only.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let fixed = [CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, UPGRADE];
    let other = ["keep-alive", "proxy-connection"].map(HeaderName::from_static);
    for name in named.into_iter().chain(fixed).chain(other) {
        headers.remove(name);
    }
}

fn target(uri: &Uri, port: Option<u16>) -> Result<(String, u16), Refused> {
    let nowhere = || Refused(StatusCode::BAD_REQUEST, "the address names no host and port");
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(nowhere)?;
    let port = uri.port_u16().or(port).ok_or_else(nowhere)?;
    Ok((host.to_owned(), port))
}
