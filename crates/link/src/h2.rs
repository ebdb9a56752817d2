//! What both ends of the HTTP/2 connection share: its settings, its tasks, its bodies, and how it ends.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::rt::Executor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ws::WsIo;
use crate::{Closed, Config};

/// What one stalled reader can hold back.
pub(crate) const STREAM_WINDOW: u32 = 256 * 1024;
/// The maximum. With less, readers that stall use it up and stall all other streams of the session.
pub(crate) const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// What may wait in memory to be sent, per stream.
pub(crate) const SEND_BUFFER: usize = 256 * 1024;
/// hyper's own verdict on an unanswered ping, in heartbeats. It is never reached: silence ends the connection before,
/// and a ping that is late because data is queued before it does no harm.
pub(crate) const PING_PATIENCE: u32 = 360;

/// Runs the tasks of one HTTP/2 connection, all of which end when this is dropped or [`Tasks::end`] is called.
pub(crate) struct Tasks {
    spawner: Spawner,
}

/// Hands tasks of a connection to its [`Tasks`].
#[derive(Clone)]
pub(crate) struct Spawner {
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Tasks {
    pub(crate) fn new() -> Self {
        Self { spawner: Spawner { tracker: TaskTracker::new(), cancel: CancellationToken::new() } }
    }

    pub(crate) fn spawner(&self) -> Spawner {
        self.spawner.clone()
    }

    /// Waits until the tasks have ended of their own accord.
    pub(crate) async fn ended(&self) {
        self.spawner.tracker.close();
        self.spawner.tracker.wait().await;
    }

    /// Ends the tasks and waits until they have.
    pub(crate) async fn end(self) {
        self.spawner.cancel.cancel();
        self.ended().await;
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.spawner.cancel.cancel();
    }
}

impl<F> Executor<F> for Spawner
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        let cancel = self.cancel.clone();
        self.tracker.spawn(async move {
            let _ = cancel.run_until_cancelled(task).await;
        });
    }
}

/// A body without its empty chunks: HTTP/2 makes a frame of each, and the h2 library ends a connection that brings more
/// than a hundred of them in its life.
pub(crate) struct NonEmpty<D, E>(UnsyncBoxBody<D, E>);

impl<D: Buf, E> NonEmpty<D, E> {
    pub(crate) fn new(body: impl Body<Data = D, Error = E> + Send + 'static) -> Self {
        Self(body.boxed_unsync())
    }
}

impl<D: Buf, E> Body for NonEmpty<D, E> {
    type Data = D;
    type Error = E;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<D>, E>>> {
        loop {
            let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            if data.is_none_or(Buf::has_remaining) {
                return Poll::Ready(frame);
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// Why a connection whose HTTP/2 came to an end is over: what the WebSocket saw, or the error of HTTP/2, or else the
/// Close that a peer which finished in order sends next.
pub(crate) async fn cause(io: &WsIo, http2: Option<hyper::Error>, config: &Config) -> Closed {
    if let Some(closed) = io.ended() {
        return closed;
    }
    match http2 {
        Some(error) => Closed::Protocol(chain(&error)),
        None => io
            .ends_within(config.timeout)
            .await
            .unwrap_or_else(|| Closed::Protocol("HTTP/2 ended without a WebSocket Close".into())),
    }
}

/// Tells the peer why the connection is over and closes it.
pub(crate) async fn close(io: &WsIo, closed: &Closed, config: &Config) {
    let patience = match closed {
        Closed::TimedOut { .. } => std::time::Duration::ZERO,
        Closed::Local { .. } | Closed::Peer { .. } | Closed::Lost(_) | Closed::Protocol(_) => config.timeout,
    };
    let (code, reason) = closed.to_wire();
    io.close(code, &reason, patience).await;
}

/// An error with its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
