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
use crate::config::Config;
use crate::places::{Place, Places};
use activity::Activity;

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

/// How long clients may take, and connections last without use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadlines {
    /// For the TLS handshake.
    tls: Duration,
    /// To send a request's head; so long may an HTTP/1.1 connection idle, too.
    head: Duration,
    /// Without a request under way.
    idle: Duration,
    /// Until an answer's reader reads on.
    read: Duration,
    /// How often connections are looked at for both.
    look: Duration,
    /// To say so, once a connection is to end.
    farewell: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self {
            tls: secs(10),
            head: secs(30),
            idle: secs(60),
            read: secs(60),
            look: secs(5),
            farewell: secs(5),
        }
    }
}

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
    /// How long its clients may take.
    pub(crate) deadlines: Deadlines,
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
        let handshake = tokio::time::timeout(self.deadlines.tls, acceptor.accept(socket));
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
        let deadlines = self.deadlines;
        let builder = builder(Tracked(self.tasks), deadlines.head);
        let mut connection = pin!(builder.serve_connection_with_upgrades(io, service));
        // hyper's deadlines begin once it knows which HTTP is spoken; a client that never says ends here.
        let mut look = tokio::time::interval(deadlines.look);
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
                    let idle_deadline = if activity.has_spoken() { deadlines.idle } else { deadlines.head };
                    if end.is_none()
                        && let Some(why) = activity.verdict(now, idle_deadline, deadlines.read)
                    {
                        tracing::debug!(why, "the connection is closed");
                        connection.as_mut().graceful_shutdown();
                        end = Some(now + deadlines.farewell);
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

/// Lets this process open as many files as the system allows, and lowers the numbers of connections and of sessions to what then fits.
pub(crate) fn fit_open_files(config: &mut Config) {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => fit(config, usize::try_from(limit).unwrap_or(usize::MAX)),
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}

/// An eighth of the files that may be open is for the store and artifacts. Providers' sessions come next, as long as they leave the
/// listeners a quarter; the listeners' connections get the rest, and further ones wait to be accepted.
fn fit(config: &mut Config, open_files: usize) {
    let listeners = 1 + usize::from(config.tls.is_some());
    let sessions = (open_files / 8 * 5).max(1);
    if config.max_sessions > sessions {
        tracing::warn!(
            open_files,
            max_sessions = sessions,
            hint = "raise the hard limit of open files (LimitNOFILE= of systemd, ulimit -Hn), or lower --max-sessions",
            "few files may be open: fewer providers may connect"
        );
        config.max_sessions = sessions;
    }
    let room = (open_files / 8 * 7).saturating_sub(config.max_sessions);
    let connections = (room / listeners).max(1);
    if config.max_connections > connections {
        tracing::debug!(
            open_files,
            max_connections = connections,
            "connections are as many as files may be open"
        );
        config.max_connections = connections;
    }
}

fn builder(executor: Tracked, head_deadline: Duration) -> auto::Builder<Tracked> {
    let mut builder = auto::Builder::new(executor);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(head_deadline).max_buf_size(MAX_HEAD_BYTES);
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

#[cfg(test)]
mod tests;
