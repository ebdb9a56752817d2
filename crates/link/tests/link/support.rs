//! A relay on a loopback port, pairs of ends, and a service to ask.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use link::{Closed, Config, Handshake, HandshakeError, Session};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use url::Url;

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;
pub(crate) type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// Long enough for a machine that is busy with other tests.
pub(crate) const GENEROUS: Duration = Duration::from_secs(30);

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(GENEROUS, future).await.expect("timed out")
}

/// An HTTP/1.1 server that makes links of the upgrade requests that it gets.
pub(crate) struct Relay {
    pub(crate) url: Url,
    pub(crate) handshakes: mpsc::Receiver<Result<Handshake, HandshakeError>>,
    server: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Relay {
    pub(crate) async fn start(config: Config) -> Self {
        Self::start_with(config, None).await
    }

    pub(crate) async fn start_with(config: Config, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let scheme = if tls.is_some() { "wss" } else { "ws" };
        let url = format!("{scheme}://127.0.0.1:{port}/connect");
        let (handshakes_in, handshakes) = mpsc::channel(64);
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                tcp.set_nodelay(true).unwrap();
                let (config, handshakes, tls) = (config.clone(), handshakes_in.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve_upgrades(tcp, config, handshakes).await,
                        Some(tls) => {
                            if let Ok(stream) = TlsAcceptor::from(tls).accept(tcp).await {
                                serve_upgrades(stream, config, handshakes).await;
                            }
                        }
                    }
                });
            }
        });
        Self { url: url.parse().unwrap(), handshakes, server }
    }

    pub(crate) async fn handshake(&mut self) -> Handshake {
        within(self.handshakes.recv()).await.unwrap().unwrap()
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.url.port().unwrap())
    }
}

async fn serve_upgrades<T>(io: T, config: Config, handshakes: mpsc::Sender<Result<Handshake, HandshakeError>>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (config, handshakes) = (config.clone(), handshakes.clone());
        async move {
            Ok::<_, Infallible>(match link::accept(&mut request, config) {
                Ok((response, upgrade)) => {
                    tokio::spawn(async move {
                        let _ = handshakes.send(upgrade.complete().await).await;
                    });
                    response.map(|body| body.boxed_unsync())
                }
                Err(error) => {
                    let mut response = Response::new(text(&error.to_string()));
                    *response.status_mut() = error.status();
                    response
                }
            })
        }
    });
    let http = hyper::server::conn::http1::Builder::new();
    let _ = http.serve_connection(TokioIo::new(io), service).with_upgrades().await;
}

/// A relay's TLS identity, and what an agent must trust to dial it.
pub(crate) fn tls_pair() -> (Arc<ServerConfig>, Arc<rustls::ClientConfig>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let identity = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let certificate: CertificateDer<'static> = identity.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(identity.signing_key.serialize_der());
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    (Arc::new(server), Arc::new(client_config(provider, roots)))
}

pub(crate) fn distrustful() -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Arc::new(client_config(provider, rustls::RootCertStore::empty()))
}

fn client_config(
    provider: Arc<rustls::crypto::CryptoProvider>,
    roots: rustls::RootCertStore,
) -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Both ends of one link after an empty handshake, the agent serving [`answer`].
pub(crate) struct Pair {
    pub(crate) session: Session,
    pub(crate) agent: JoinHandle<Closed>,
    pub(crate) shutdown: tokio::sync::oneshot::Sender<()>,
    pub(crate) cancelled: mpsc::UnboundedReceiver<&'static str>,
    pub(crate) relay: Relay,
}

impl Pair {
    pub(crate) async fn open(config: Config) -> Self {
        let relay = Relay::start(config.clone()).await;
        let url = relay.url.clone();
        Self::open_at(relay, &url, config).await
    }

    /// With the agent dialling `url`, which leads to the relay in the end.
    pub(crate) async fn open_at(mut relay: Relay, url: &Url, config: Config) -> Self {
        let agent = within(link::connect(url, None, config)).await.unwrap();
        let session = relay.handshake().await.into_client().await.unwrap();
        let (shutdown, stopping) = tokio::sync::oneshot::channel::<()>();
        let (cancellations, cancelled) = mpsc::unbounded_channel();
        let service = service_fn(move |request| answer(request, cancellations.clone()));
        let agent = tokio::spawn(agent.serve(service, async move {
            if stopping.await.is_err() {
                pending().await
            }
        }));
        Self { session, agent, shutdown, cancelled, relay }
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Bytes) {
        within(async {
            let response = self.session.request(get(path)).await.unwrap();
            let status = response.status();
            (status, response.into_body().collect().await.unwrap().to_bytes())
        })
        .await
    }
}

pub(crate) fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(path).body(Empty::new()).unwrap()
}

pub(crate) fn post<B>(path: &str, body: B) -> Request<B> {
    Request::post(path).body(body).unwrap()
}

pub(crate) const BIG: usize = 8 * 1024 * 1024;

/// Says on a channel that it was dropped.
struct OnDrop(&'static str, mpsc::UnboundedSender<&'static str>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.1.send(self.0);
    }
}

/// What the agents of these tests answer.
fn answer(request: Request<Incoming>, cancellations: mpsc::UnboundedSender<&'static str>) -> Answer {
    Box::pin(async move {
        let body = match request.uri().path() {
            "/hello" => text("hello"),
            "/big" => Full::new(Bytes::from(vec![b'x'; BIG])).boxed_unsync(),
            "/empty" => {
                let chunks = (0..1000).map(|_| Ok(Frame::data(Bytes::new())));
                StreamBody::new(stream::iter(chunks)).boxed_unsync()
            }
            // Streams what comes as it comes.
            "/echo" => {
                let chunks = request.into_body().into_data_stream();
                let frames = chunks.map(|chunk| Ok(Frame::data(chunk.unwrap_or_default())));
                StreamBody::new(frames).boxed_unsync()
            }
            // Never reads its body and never answers.
            "/hang" => {
                let _held = (OnDrop("hang", cancellations), request);
                pending().await
            }
            // Answers one chunk and then never more.
            "/drip" => {
                let held = OnDrop("drip", cancellations);
                let frames = stream::iter([Ok(Frame::data(Bytes::from_static(b"drop")))]).chain(
                    stream::once(async move {
                        let _held = held;
                        pending::<Result<Frame<Bytes>, Infallible>>().await
                    }),
                );
                StreamBody::new(frames).boxed_unsync()
            }
            _ => {
                let mut response = Response::new(text("no such path"));
                *response.status_mut() = StatusCode::NOT_FOUND;
                return Ok(response);
            }
        };
        Ok(Response::new(body))
    })
}

pub(crate) fn text(text: &str) -> Body {
    Full::new(Bytes::copy_from_slice(text.as_bytes())).boxed_unsync()
}

/// A configuration that gives up early, for tests in which the peer is hostile or gone.
pub(crate) fn hasty() -> Config {
    Config {
        heartbeat: Duration::from_millis(200),
        timeout: Duration::from_millis(100),
        handshake_timeout: Duration::from_millis(500),
        ..Config::default()
    }
}
