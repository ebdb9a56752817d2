//! The proxy on a container's loopback: plain HTTP and `CONNECT`, to granted domains only, within bounds.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use artifact::AddressClass;
use bytes::Bytes;
use daemon::hop_by_hop;
use futures_util::StreamExt;
use http::header::HOST;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::{Frame, Incoming};
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

type Body = BoxBody<Bytes, BodyError>;
type BodyError = Box<dyn std::error::Error + Send + Sync>;

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
    hop_by_hop::strip(request.headers_mut());
    // The name that was checked, whatever the request says.
    request.headers_mut().insert(HOST, host);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() =
        path.parse().map_err(|_| Refused(StatusCode::BAD_REQUEST, "the address has no path"))?;
    let request = request.map(|body| counted(body, Arc::clone(&rules)));
    let mut response = sender.send_request(request).await.map_err(failed)?;
    hop_by_hop::strip(response.headers_mut());
    Ok(response.map(|body| counted(body, rules)))
}

/// A body that fails when the task has sent and received all that it may: what is cut off must not look whole.
fn counted(body: Incoming, rules: Arc<Rules>) -> Body {
    let counting = move |frame: Frame<Bytes>| {
        frame.data_ref().map_or(Ok(()), |data| rules.spend(data.len()))?;
        Ok(frame)
    };
    let frames = BodyStream::new(body).map(move |frame| counting(frame.map_err(BodyError::from)?));
    BodyExt::boxed(StreamBody::new(frames))
}

fn target(uri: &Uri, port: Option<u16>) -> Result<(String, u16), Refused> {
    let nowhere = || Refused(StatusCode::BAD_REQUEST, "the address names no host and port");
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(nowhere)?;
    let port = uri.port_u16().or(port).ok_or_else(nowhere)?;
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::PrivatePkcs8KeyDer;

    use super::*;

    /// A proxy to `localhost` at `port`, through which so many bytes may go.
    struct Proxy {
        addr: SocketAddr,
        closed: CancellationToken,
    }

    impl Proxy {
        fn start(port: u16, max_bytes: u64) -> Self {
            let policy = EgressPolicy {
                domains: Vec::new(),
                ports: vec![port],
                allow_private_addresses: true,
                max_bytes,
                ..EgressPolicy::default()
            };
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let (addr, closed) = (listener.local_addr().unwrap(), CancellationToken::new());
            let domains = vec![Domain::Exactly("localhost".to_owned())];
            spawn(listener, Rules::new(&policy, domains), closed.clone()).unwrap();
            Self { addr, closed }
        }

        fn client(&self, tls: rustls::ClientConfig) -> reqwest::Client {
            let proxy = reqwest::Proxy::all(format!("http://{}", self.addr)).unwrap();
            reqwest::Client::builder().proxy(proxy).tls_backend_preconfigured(tls).build().unwrap()
        }
    }

    impl Drop for Proxy {
        fn drop(&mut self) {
            self.closed.cancel();
        }
    }

    /// Answers each connection with `body` once a request's head has come.
    async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, body: &[u8]) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap_or(0) > 0 {}
        let text = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
        let chunk = format!("{:x}\r\n", body.len());
        // A client that was cut off reads no more.
        let _ = stream.write_all(&[text.as_bytes(), chunk.as_bytes(), body, b"\r\n0\r\n\r\n"].concat()).await;
        let _ = stream.shutdown().await;
    }

    #[tokio::test]
    async fn tls_goes_through_a_tunnel_as_it_is() {
        let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()).into(),
            )
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(key.cert.der().clone()).unwrap();
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(stream) = acceptor.accept(stream).await {
                    answer(stream, b"through the tunnel").await;
                }
            }
        });
        let proxy = Proxy::start(port, 1 << 20);
        let url = format!("https://localhost:{port}/");
        let response = proxy.client(tls.clone()).get(&url).send().await.unwrap();
        assert_eq!(response.text().await.unwrap(), "through the tunnel");

        let small = Proxy::start(port, 1000);
        assert!(small.client(tls.clone()).get(&url).send().await.is_err(), "more went through than may");
        let other = Proxy::start(port, 1 << 20);
        for refused in [format!("https://127.0.0.1:{port}/"), "https://localhost:1/".to_owned()] {
            assert!(other.client(tls.clone()).get(&refused).send().await.is_err(), "{refused}");
        }
        serving.abort();
    }

    #[tokio::test]
    async fn an_answer_that_is_cut_off_does_not_look_whole() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async { answer(stream, &vec![b'x'; 100_000]).await });
            }
        });
        let url = format!("http://localhost:{port}/");
        let tls = daemon::tls::client_config(None).unwrap();
        let proxy = Proxy::start(port, 150_000);
        let client = proxy.client(tls);
        let whole = client.get(&url).send().await.unwrap().bytes().await.unwrap();
        assert_eq!(whole.len(), 100_000);
        let cut = match client.get(&url).send().await {
            Ok(response) => response.bytes().await.map(|bytes| bytes.len()),
            Err(error) => Err(error),
        };
        assert!(cut.is_err(), "{cut:?}");
        serving.abort();
    }
}
