//! The listeners: they accept connections, with or without TLS, and serve HTTP/1.1 and HTTP/2 on them.

mod activity;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::rt::{Executor, Read, Write};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::Instrument;

use crate::auth::Peer;
use crate::places::{Place, Places};
use activity::Activity;

/// How long a client may take for the TLS handshake.
const TLS_DEADLINE: Duration = Duration::from_secs(10);
/// How long a client may take to send a request's head, and how long an HTTP/1.1 connection may idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// How long a connection may be open without a request under way.
const IDLE_DEADLINE: Duration = Duration::from_secs(60);
/// How long an answer may wait for its reader to read on.
const READ_DEADLINE: Duration = Duration::from_secs(60);
/// How often connections are looked at for both.
const LOOK: Duration = Duration::from_secs(5);
/// How long a connection that is to end may take to say so.
const FAREWELL: Duration = Duration::from_secs(5);
/// The pause after a failed accept, which mostly means that the process has too many files open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The largest request head, in bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;
/// What a client may send ahead on one HTTP/2 request, in bytes; uploads over long distances need some.
const STREAM_WINDOW: u32 = 1 << 20;
/// What a client may send ahead on one HTTP/2 connection, in bytes.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// How often an idle HTTP/2 connection is asked whether it lives, and how long it has to answer.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));

/// What all listeners have in common.
#[derive(Clone)]
pub(crate) struct Server {
    /// What is served.
    pub(crate) router: Router,
    /// Owns every connection and everything that runs for one.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when no more connections are to be accepted and those that are open are to finish.
    pub(crate) stopping: CancellationToken,
    /// Cancelled when connections that are still open are to be dropped.
    pub(crate) dropping: CancellationToken,
    /// The connections of each address.
    pub(crate) peers: Places,
}

impl Server {
    /// Accepts connections until the wish to end, at most `max_connections` at once.
    pub(crate) async fn listen(
        self,
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        max_connections: usize,
    ) {
        let places = Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
        while let Some((place, socket, peer)) = self.accept(&listener, &places).await {
            let Some(own_place) = self.peers.take(peer.ip()) else {
                tracing::debug!(%peer, "too many connections from this address");
                continue;
            };
            let place = (place, own_place);
            let span = tracing::info_span!("connection", %peer, tls = tls.is_some());
            let connection = self.clone().connection(place, socket, peer, tls.clone());
            self.tasks.spawn(connection.instrument(span));
        }
    }

    /// The next connection; `None` at the end.
    async fn accept(
        &self,
        listener: &TcpListener,
        places: &Arc<Semaphore>,
    ) -> Option<(OwnedSemaphorePermit, TcpStream, SocketAddr)> {
        let next = async {
            // The semaphore is never closed.
            let place = Arc::clone(places).acquire_owned().await.ok()?;
            loop {
                match listener.accept().await {
                    Ok((socket, peer)) => return Some((place, socket, peer)),
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        self.stopping.run_until_cancelled(next).await?
    }

    async fn connection(
        self,
        _place: (OwnedSemaphorePermit, Place),
        socket: TcpStream,
        peer: SocketAddr,
        tls: Option<TlsAcceptor>,
    ) {
        // Without it small messages wait some 40 ms behind delayed acknowledgements.
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        let Some(acceptor) = tls else { return self.serve(TokioIo::new(socket), peer).await };
        let handshake = tokio::time::timeout(TLS_DEADLINE, acceptor.accept(socket));
        match self.stopping.run_until_cancelled(handshake).await {
            Some(Ok(Ok(stream))) => self.serve(TokioIo::new(stream), peer).await,
            Some(Ok(Err(error))) => tracing::debug!(%error, "the TLS handshake failed"),
            Some(Err(_)) => tracing::debug!("the TLS handshake took too long"),
            None => {}
        }
    }

    /// Serves one connection until it ends, finishing what is under way when the relay is to end.
    async fn serve(self, io: impl Read + Write + Unpin + Send + 'static, peer: SocketAddr) {
        let activity = Activity::new();
        let service = {
            let (router, activity) = (self.router, activity.clone());
            hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
                let under_way = activity.begin();
                request.extensions_mut().insert(Peer(peer.ip()));
                let answer = router.clone().oneshot(request.map(Body::new));
                async move { Ok::<_, Infallible>(answer.await?.map(|body| under_way.answer(body))) }
            })
        };
        let builder = builder(Tracked(self.tasks));
        let mut connection = pin!(builder.serve_connection_with_upgrades(io, service));
        // hyper's deadlines begin once it knows which HTTP is spoken; a client that never says ends here.
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut is_stopping, mut end) = (false, None);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "the connection broke");
                    }
                    return;
                }
                now = look.tick() => {
                    if end.is_some_and(|end| now >= end) {
                        return;
                    }
                    let idle_deadline = if activity.has_spoken() { IDLE_DEADLINE } else { HEAD_DEADLINE };
                    if end.is_none()
                        && let Some(why) = activity.verdict(now, idle_deadline, READ_DEADLINE)
                    {
                        tracing::debug!(why, "the connection is closed");
                        connection.as_mut().graceful_shutdown();
                        end = Some(now + FAREWELL);
                    }
                }
                () = self.stopping.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = self.dropping.cancelled() => return,
            }
        }
    }
}

/// Lets this process open as many files as the system allows, and lowers the number of connections to what then fits beside the
/// providers' sessions.
pub(crate) fn fit_open_files(max_connections: &mut usize) {
    let limit = match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
        Err(error) => return tracing::warn!(%error, "the limit of open files cannot be raised"),
    };
    let fits = connections_that_fit(limit);
    if *max_connections > fits {
        tracing::warn!(limit, max_connections = fits, "few files may be open: fewer connections are served");
        *max_connections = fits;
    }
}

/// Half of the files that may be open: sessions, the store and artifacts need the others.
fn connections_that_fit(open_files: usize) -> usize {
    (open_files / 2).max(1)
}

fn builder(executor: Tracked) -> auto::Builder<Tracked> {
    let mut builder = auto::Builder::new(executor);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1);
    builder
}

/// Runs what hyper spawns for HTTP/2 requests where it is owned.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> Executor<F> for Tracked
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}
