//! The agent's end: an HTTP/2 server over the link.

use std::future::Future;
use std::pin::pin;

use futures_util::TryFutureExt as _;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::timeout;

use crate::h2::{self, CONNECTION_WINDOW, NonEmpty, PING_PATIENCE, SEND_BUFFER, STREAM_WINDOW, Tasks};
use crate::{Closed, Handshake, close_code};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Handshake {
    /// Makes this side the HTTP server of the connection, and serves until the connection ends; the result says why.
    /// A request that the relay cancels has its future or its response body dropped.
    ///
    /// When `shutdown` resolves, no more requests are taken and those that are open may go on for [`drain`](crate::Config::drain); then
    /// the relay gets Close 1001. Dropping the returned future cuts the connection and ends all requests.
    pub async fn serve<S, B>(self, service: S, shutdown: impl Future<Output = ()>) -> Closed
    where
        S: Service<Request<Incoming>, Response = Response<B>>,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let Self { io, config, .. } = self;
        let tasks = Tasks::new();
        let service =
            service_fn(move |request| service.call(request).map_ok(|response| response.map(NonEmpty::new)));
        let closed = {
            let http2 = Builder::new(tasks.spawner())
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_concurrent_streams(config.max_concurrent_streams)
                .max_send_buf_size(SEND_BUFFER)
                // A relay whose clients cancel in bursts, or late, does nothing wrong.
                .max_pending_accept_reset_streams(config.max_concurrent_streams as usize)
                .max_local_error_reset_streams(None)
                .keep_alive_interval(config.heartbeat)
                .keep_alive_timeout(config.heartbeat * PING_PATIENCE)
                .serve_connection(TokioIo::new(io.clone()), service);
            let mut http2 = pin!(http2);
            let mut silent = pin!(io.silent_for(config.silence()));
            let silence = Closed::TimedOut { silence: config.silence() };
            tokio::select! {
                result = &mut http2 => h2::cause(&io, result.err(), &config).await,
                () = &mut silent => silence,
                () = shutdown => {
                    http2.as_mut().graceful_shutdown();
                    tokio::select! {
                        _ = timeout(config.drain, &mut http2) => io.ended().unwrap_or_else(going_away),
                        () = &mut silent => silence,
                    }
                }
            }
        };
        tracing::debug!(%closed, "link served to its end");
        tasks.end().await;
        h2::close(&io, &closed, &config).await;
        closed
    }
}

fn going_away() -> Closed {
    Closed::Local { code: close_code::GOING_AWAY, reason: "the agent is stopping".into() }
}
