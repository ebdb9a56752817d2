//! The byte stream over the binary messages of a WebSocket.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, error::ProtocolError};

use crate::{Closed, close_code};

/// Writes are gathered into messages of at most this many bytes.
const MAX_SENT_MESSAGE: usize = 64 * 1024;
/// Kept per session, so small: the default of 128 KiB would be paid by every idle session.
const READ_BUFFER: usize = 4 * 1024;
/// RFC 6455 allows 125 bytes in a control frame, of which the code takes two.
const MAX_REASON: usize = 123;

/// One WebSocket, shared by the HTTP/2 connection, which reads and writes bytes, and the task that drives the
/// connection, which closes it afterwards. They do not use it at once, so the lock is free when it is taken.
#[derive(Clone)]
pub(crate) struct WsIo(Arc<Mutex<Wire>>);

struct Wire {
    ws: WebSocketStream<Metered>,
    /// The rest of the binary message that is being read.
    unread: Bytes,
    /// What was written since the last flush.
    unsent: BytesMut,
    /// Set when reading ended: the stream is at its end from then on.
    ended: Option<Closed>,
}

impl WsIo {
    pub(crate) async fn new(upgraded: Upgraded, role: Role, max_message: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_message_size(Some(max_message))
            .max_frame_size(Some(max_message));
        let io = Metered { inner: TokioIo::new(upgraded), heard: Instant::now() };
        let ws = WebSocketStream::from_raw_socket(io, role, Some(config)).await;
        Self(Arc::new(Mutex::new(Wire { ws, unread: Bytes::new(), unsent: BytesMut::new(), ended: None })))
    }

    /// The next message of whatever kind; `None` when there can be no more.
    pub(crate) async fn next(&self) -> Option<Result<Message, Error>> {
        poll_fn(|cx| self.wire().ws.poll_next_unpin(cx)).await
    }

    /// Sends one message and waits until the socket has taken it.
    pub(crate) async fn send(&self, message: Message) -> Result<(), Error> {
        poll_fn(|cx| self.wire().ws.poll_ready_unpin(cx)).await?;
        self.wire().ws.start_send_unpin(message)?;
        poll_fn(|cx| self.wire().ws.poll_flush_unpin(cx)).await
    }

    /// Why reading ended, if it has.
    pub(crate) fn ended(&self) -> Option<Closed> {
        self.wire().ended.clone()
    }

    /// Resolves when no byte has come from the peer for `silence`.
    pub(crate) async fn silent_for(&self, silence: Duration) {
        loop {
            let due = self.wire().ws.get_ref().heard + silence;
            if due <= Instant::now() {
                return;
            }
            sleep_until(due).await;
        }
    }

    /// Waits for the peer to end the connection, which it is about to do; `None` when it has not within `patience`.
    pub(crate) async fn ends_within(&self, patience: Duration) -> Option<Closed> {
        let mut scratch = [0; 1024];
        let end = poll_fn(|cx| {
            loop {
                let mut buffer = ReadBuf::new(&mut scratch);
                ready!(self.wire().poll_read(cx, &mut buffer));
                if let Some(closed) = self.ended() {
                    return Poll::Ready(closed);
                }
            }
        });
        timeout(patience, end).await.ok()
    }

    /// Sends a Close unless one was sent, waits for the peer's, and closes the connection, all within `patience`; with
    /// none it does what can be done without waiting. What goes wrong is of no more interest.
    pub(crate) async fn close(&self, code: u16, reason: &str, patience: Duration) {
        let frame = CloseFrame { code: code.into(), reason: truncated(reason).into() };
        let goodbye = async {
            if self.send(Message::Close(Some(frame))).await.is_err() {
                // A Close that answers the peer's is queued already and needs but flushing.
                let _ = poll_fn(|cx| self.wire().ws.poll_flush_unpin(cx)).await;
            }
            while let Some(Ok(_)) = self.next().await {}
            // Closing a socket with unread input resets it, and the peer could lose the Close: read to the end.
            let _ = poll_fn(|cx| Pin::new(self.wire().ws.get_mut()).poll_shutdown(cx)).await;
            let mut scratch = [0; 1024];
            poll_fn(|cx| {
                loop {
                    let mut buffer = ReadBuf::new(&mut scratch);
                    let read = ready!(Pin::new(self.wire().ws.get_mut()).poll_read(cx, &mut buffer));
                    if read.is_err() || buffer.filled().is_empty() {
                        return Poll::Ready(());
                    }
                }
            })
            .await;
        };
        let _ = timeout(patience, goodbye).await;
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        // A poisoned wire is as good as another: its state is checked on each use.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for WsIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.wire().poll_read(cx, buffer).map(Ok)
    }
}

impl AsyncWrite for WsIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.wire().poll_gather(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.wire().poll_gather(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire().poll_flush(cx)
    }

    /// Only flushes: the Close is sent by [`WsIo::close`], with a code that HTTP/2 does not know.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire().poll_flush(cx)
    }
}

impl Wire {
    /// Bytes of binary messages; none at the end, when `ended` says why.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<()> {
        while self.unread.is_empty() && self.ended.is_none() {
            match ready!(self.ws.poll_next_unpin(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.unread = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Text(_) | Message::Frame(_))) => {
                    self.ended = Some(Closed::Protocol("text message after the handshake".into()));
                }
                Some(Ok(Message::Close(frame))) => self.ended = Some(closed_by_peer(frame)),
                Some(Err(error)) => self.ended = Some(closed_by_error(error)),
                None => self.ended = Some(Closed::Lost("ended without a Close".into())),
            }
        }
        let count = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        Poll::Ready(())
    }

    /// Takes as much as fits in one message, and sends that message first when it is full.
    fn poll_gather(&mut self, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let Some(closed) = &self.ended {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, closed.clone())));
        }
        if self.unsent.len() >= MAX_SENT_MESSAGE {
            ready!(self.poll_send(cx))?;
        }
        let before = self.unsent.len();
        for slice in slices {
            let room = MAX_SENT_MESSAGE - self.unsent.len();
            self.unsent.extend_from_slice(&slice[..slice.len().min(room)]);
        }
        Poll::Ready(Ok(self.unsent.len() - before))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.unsent.is_empty() {
            ready!(self.poll_send(cx))?;
        }
        self.ws.poll_flush_unpin(cx).map_err(io::Error::other)
    }

    /// Hands what was gathered to the WebSocket once the message before is with the socket, so that at most two
    /// messages are ever held.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.ws.poll_ready_unpin(cx)).map_err(io::Error::other)?;
        let message = Message::Binary(self.unsent.split().freeze());
        Poll::Ready(self.ws.start_send_unpin(message).map_err(io::Error::other))
    }
}

/// The connection below the WebSocket, which remembers when it last brought a byte. Bytes count rather than messages, so
/// that a long message on a slow line is a sign of life.
struct Metered {
    inner: TokioIo<Upgraded>,
    heard: Instant,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = ready!(Pin::new(&mut self.inner).poll_read(cx, buffer));
        if buffer.filled().len() > before {
            self.heard = Instant::now();
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// What a Close from the peer means.
pub(crate) fn closed_by_peer(frame: Option<CloseFrame>) -> Closed {
    match frame {
        // The reason goes into logs and answers as it is: a control character could forge lines there.
        Some(frame) => Closed::Peer {
            code: frame.code.into(),
            reason: frame.reason.chars().filter(|c| !c.is_control()).collect(),
        },
        None => Closed::Peer { code: close_code::NO_CODE, reason: String::new() },
    }
}

/// What a failed read or write means.
pub(crate) fn closed_by_error(error: Error) -> Closed {
    match error {
        Error::Io(_)
        | Error::Tls(_)
        | Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Closed::Lost(error.to_string()),
        Error::Capacity(_)
        | Error::Protocol(_)
        | Error::WriteBufferFull(_)
        | Error::Utf8(_)
        | Error::AttackAttempt
        | Error::Url(_)
        | Error::Http(_)
        | Error::HttpFormat(_) => Closed::Protocol(error.to_string()),
    }
}

fn truncated(reason: &str) -> String {
    reason[..reason.floor_char_boundary(MAX_REASON)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_reason_is_one_line() {
        let frame =
            CloseFrame { code: close_code::NORMAL.into(), reason: "a\n2026 \u{1b}[31mINFO forged\r".into() };
        let reason = "a2026 [31mINFO forged".to_owned();
        assert_eq!(closed_by_peer(Some(frame)), Closed::Peer { code: close_code::NORMAL, reason });
    }
}
