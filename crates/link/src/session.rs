//! The relay's end: an HTTP/2 client over the link.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, Connection, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::h2::{
    self, CONNECTION_WINDOW, NonEmpty, PING_PATIENCE, SEND_BUFFER, STREAM_WINDOW, Spawner, Tasks,
};
use crate::ws::WsIo;
use crate::{Closed, Config, Handshake, close_code};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type RequestBody = NonEmpty<Bytes, BoxError>;
type Http2 = Connection<TokioIo<WsIo>, RequestBody, Spawner>;

/// An open link to one agent. Clones share it. It ends on [`close`](Self::close), with the peer or the connection, or when
/// the last clone and the last [`ResponseBody`] are dropped (Close 1000).
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
}

struct Shared {
    sender: SendRequest<RequestBody>,
    streams: Arc<Semaphore>,
    /// The close code and reason, once somebody asked for the end. The task that drives the connection sees it, and
    /// sees it dropped.
    stop: watch::Sender<Option<(u16, String)>>,
    closed: watch::Receiver<Option<Closed>>,
}

/// Why a request got no response.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The session has ended or the agent is about to stop. The request was not sent: it can go elsewhere.
    #[error("session takes no more requests")]
    Unavailable,
    /// [`Config::max_concurrent_streams`] requests are open. The request was not sent: it can go elsewhere.
    #[error("too many requests are open on the session")]
    Busy,
    /// The URI cannot be sent over HTTP/2.
    #[error("request URI: {0}")]
    Uri(#[from] http::uri::InvalidUriParts),
    /// The session or the stream failed after the request may have been sent.
    #[error("request interrupted: {}", h2::chain(.0))]
    Interrupted(hyper::Error),
}

impl RequestError {
    /// Whether the agent may have seen the request.
    pub fn may_have_been_sent(&self) -> bool {
        match self {
            Self::Interrupted(_) => true,
            Self::Unavailable | Self::Busy | Self::Uri(_) => false,
        }
    }
}

impl Handshake {
    /// Makes this side the HTTP client of the connection. The session drives itself in a task of its own, which ends
    /// with it.
    ///
    /// # Errors
    /// [`Closed`] when the connection is over already.
    pub async fn into_client(self) -> Result<Session, Closed> {
        let Self { io, config, .. } = self;
        let tasks = Tasks::new();
        let streams = config.max_concurrent_streams as usize;
        let started = Builder::new(tasks.spawner())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(streams)
            .max_send_buf_size(SEND_BUFFER)
            // Answers to cancelled requests are on their way still: HTTP/2 must know those streams a while, and not
            // count such frames as faults of the agent, which would end the session in time.
            .max_concurrent_reset_streams(streams)
            .max_local_error_reset_streams(None)
            .keep_alive_interval(config.heartbeat)
            .keep_alive_timeout(config.heartbeat * PING_PATIENCE)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(io.clone()))
            .await;
        let (sender, http2) = match started {
            Ok(started) => started,
            Err(error) => {
                let closed = h2::cause(&io, Some(error), &config).await;
                h2::close(&io, &closed, &config).await;
                return Err(closed);
            }
        };
        let (stop, stopped) = watch::channel(None);
        let (ended, closed) = watch::channel(None);
        tokio::spawn(drive(io, http2, tasks, config, stopped, ended));
        let streams = Arc::new(Semaphore::new(streams));
        Ok(Session { shared: Arc::new(Shared { sender, streams, stop, closed }) })
    }
}

impl Session {
    /// Sends a request and gives the response as soon as its head is there. Both bodies are streamed, with back-pressure.
    /// Dropping this future or the [`ResponseBody`] cancels the request at the agent. Without a scheme and an authority
    /// the URI gets `http://agent`. There is no deadline here except the session's end.
    ///
    /// # Errors
    /// [`RequestError`], which tells whether the request may have been sent.
    pub async fn request<B>(&self, request: Request<B>) -> Result<Response<ResponseBody>, RequestError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if self.is_closed() {
            return Err(RequestError::Unavailable);
        }
        let permit = Arc::clone(&self.shared.streams).try_acquire_owned().map_err(|_| RequestError::Busy)?;
        let (mut head, body) = request.into_parts();
        head.uri = absolute(head.uri)?;
        let request = Request::from_parts(head, NonEmpty::new(body.map_err(Into::into)));
        let sent = self.shared.sender.clone().try_send_request(request).await;
        match sent {
            Ok(response) => Ok(response.map(|incoming| ResponseBody {
                incoming,
                is_over: false,
                _permit: permit,
                _session: self.clone(),
            })),
            Err(mut error) => match error.take_message() {
                Some(_) => Err(RequestError::Unavailable),
                None => Err(RequestError::Interrupted(error.into_error())),
            },
        }
    }

    /// Ends the session: open streams are cut off, the agent gets a WebSocket Close with a code of
    /// [`close_code`] and a reason, which is cut to 123 bytes. Only the first call counts. Await
    /// [`closed`](Self::closed) to know that it is done.
    pub fn close(&self, code: u16, reason: &str) {
        self.shared.stop.send_if_modified(|order| {
            let first = order.is_none();
            if first {
                *order = Some((code, reason.to_owned()));
            }
            first
        });
    }

    /// Waits for the end of the session, and says why it ended. After [`close`](Self::close) that takes
    /// [`Config::timeout`] at most; without it, as long as the session lives.
    pub async fn closed(&self) -> Closed {
        let mut closed = self.shared.closed.clone();
        let ended = closed.wait_for(Option::is_some).await;
        match ended.ok().and_then(|closed| closed.clone()) {
            Some(closed) => closed,
            None => Closed::Lost("the runtime stopped".into()),
        }
    }

    /// Whether the session takes no more requests: it has ended, was told to end, or the agent is about to stop. The last
    /// shows once a request was refused for it.
    pub fn is_closed(&self) -> bool {
        self.shared.stop.borrow().is_some()
            || self.shared.closed.borrow().is_some()
            || self.shared.sender.is_closed()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("closed", &*self.shared.closed.borrow()).finish_non_exhaustive()
    }
}

/// The streamed body of a response. It keeps its session open, and its place among the open requests. It ends only where the agent
/// ended its stream: one that breaks off in any other way is an error.
pub struct ResponseBody {
    incoming: Incoming,
    /// Whether its end, or its breaking off, was told.
    is_over: bool,
    _permit: OwnedSemaphorePermit,
    _session: Session,
}

/// Why a response's body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The session or the stream failed.
    #[error("body interrupted: {}", h2::chain(.0))]
    Interrupted(hyper::Error),
    /// The agent gave the stream up before its end, without naming an error.
    #[error("the stream was given up before its end")]
    GivenUp,
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        let is_over = std::mem::replace(&mut self.is_over, !matches!(frame, Some(Ok(_))));
        Poll::Ready(match frame {
            // hyper takes RST_STREAM and GOAWAY with NO_ERROR for the body's end: only END_STREAM is one.
            None if !is_over && !self.incoming.is_end_stream() => Some(Err(BodyError::GivenUp)),
            None => None,
            Some(frame) => Some(frame.map_err(BodyError::Interrupted)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ResponseBody").field(&self.incoming).finish()
    }
}

/// Drives a session from its first to its last byte, and says how it ended.
async fn drive(
    io: WsIo,
    http2: Http2,
    tasks: Tasks,
    config: Config,
    mut stopped: watch::Receiver<Option<(u16, String)>>,
    ended: watch::Sender<Option<Closed>>,
) {
    let closed = tokio::select! {
        closed = async {
            // Consumed, so that requests still waiting for it are handed back.
            let result = http2.await;
            // After a GOAWAY the streams that are open go on; otherwise their tasks end now.
            tasks.ended().await;
            h2::cause(&io, result.err(), &config).await
        } => closed,
        () = io.silent_for(config.silence()) => Closed::TimedOut { silence: config.silence() },
        order = stop_order(&mut stopped) => order,
    };
    tracing::debug!(%closed, "link session ended");
    tasks.end().await;
    h2::close(&io, &closed, &config).await;
    ended.send_replace(Some(closed));
}

async fn stop_order(stopped: &mut watch::Receiver<Option<(u16, String)>>) -> Closed {
    let order = match stopped.wait_for(Option::is_some).await {
        Ok(order) => order.clone(),
        Err(_) => None,
    };
    let (code, reason) = order.unwrap_or((close_code::NORMAL, String::new()));
    Closed::Local { code, reason }
}

/// HTTP/2 wants a scheme and an authority, which mean nothing on a link.
fn absolute(uri: Uri) -> Result<Uri, http::uri::InvalidUriParts> {
    let mut parts = uri.into_parts();
    parts.scheme.get_or_insert(Scheme::HTTP);
    parts.authority.get_or_insert(Authority::from_static("agent"));
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    Uri::from_parts(parts)
}
