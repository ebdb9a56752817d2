//! The exchange of text messages before HTTP/2.

use std::fmt;

use hyper::upgrade::Upgraded;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::ws::{WsIo, closed_by_error, closed_by_peer};
use crate::{Closed, Config, close_code};

/// An honest peer needs none; some WebSocket libraries send a few of their own accord.
const MAX_CONTROL_FRAMES: usize = 16;

/// A WebSocket on which both sides exchange opaque texts, until it becomes a [`Session`](crate::Session) at the relay
/// ([`into_client`](Self::into_client)) or a server at the agent ([`serve`](Self::serve)). Dropping it cuts the
/// connection without a Close.
pub struct Handshake {
    pub(crate) io: WsIo,
    pub(crate) config: Config,
    deadline: Instant,
    control_frames: usize,
}

/// Why a handshake failed. The peer was told by a Close and the connection is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The HTTP connection broke before it became a WebSocket.
    #[error("upgrade not completed: {0}")]
    Upgrade(String),
    /// The whole handshake took longer than [`Config::handshake_timeout`].
    #[error("handshake not finished in {0:?}")]
    TimedOut(std::time::Duration),
    /// A binary message came.
    #[error("binary message in the handshake")]
    NotText,
    /// The text to send is longer than [`Config::max_message`]; one that comes from the peer is
    /// [`Closed::Protocol`].
    #[error("handshake text of {length} bytes is longer than {max}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The most bytes allowed.
        max: usize,
    },
    /// Pings or pongs without end.
    #[error("more than {MAX_CONTROL_FRAMES} control frames in the handshake")]
    Flood,
    /// The connection ended: closed by the peer with a code, lost, or ended because of a broken protocol.
    #[error("handshake ended: {0}")]
    Closed(#[from] Closed),
}

impl Handshake {
    pub(crate) async fn new(upgraded: Upgraded, role: Role, config: Config, deadline: Instant) -> Self {
        let io = WsIo::new(upgraded, role, config.max_message).await;
        Self { io, config, deadline, control_frames: 0 }
    }

    /// Sends one text.
    ///
    /// # Errors
    /// [`HandshakeError`]; the connection is then closed.
    pub async fn send(&mut self, text: &str) -> Result<(), HandshakeError> {
        let sent = self.try_send(text).await;
        self.closed_on_error(sent).await
    }

    /// The next text of the peer.
    ///
    /// # Errors
    /// [`HandshakeError`]; the connection is then closed.
    pub async fn recv(&mut self) -> Result<String, HandshakeError> {
        let received = self.try_recv().await;
        self.closed_on_error(received).await
    }

    /// Sends a Close with a code of [`close_code`] and a reason, which is cut to 123 bytes, and ends the connection
    /// within [`Config::timeout`].
    pub async fn close(self, code: u16, reason: &str) {
        self.io.close(code, reason, self.config.timeout).await;
    }

    async fn try_send(&self, text: &str) -> Result<(), HandshakeError> {
        let max = self.config.max_message;
        if text.len() > max {
            return Err(HandshakeError::TooLong { length: text.len(), max });
        }
        let sent = timeout_at(self.deadline, self.io.send(Message::text(text))).await;
        sent.map_err(|_| self.timed_out())?.map_err(failed)
    }

    async fn try_recv(&mut self) -> Result<String, HandshakeError> {
        loop {
            let next = timeout_at(self.deadline, self.io.next()).await.map_err(|_| self.timed_out())?;
            match next {
                Some(Ok(Message::Text(text))) => return Ok(text.to_string()),
                Some(Ok(Message::Binary(_) | Message::Frame(_))) => return Err(HandshakeError::NotText),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {
                    self.control_frames += 1;
                    if self.control_frames > MAX_CONTROL_FRAMES {
                        return Err(HandshakeError::Flood);
                    }
                }
                Some(Ok(Message::Close(frame))) => return Err(closed_by_peer(frame).into()),
                Some(Err(error)) => return Err(failed(error)),
                None => return Err(Closed::Lost("ended without a Close".into()).into()),
            }
        }
    }

    async fn closed_on_error<T>(&self, result: Result<T, HandshakeError>) -> Result<T, HandshakeError> {
        if let Err(error) = &result {
            let (code, reason) = match error {
                HandshakeError::TimedOut(_) => (close_code::TIMED_OUT, error.to_string()),
                HandshakeError::Upgrade(_)
                | HandshakeError::NotText
                | HandshakeError::TooLong { .. }
                | HandshakeError::Flood => (close_code::BAD_HANDSHAKE, error.to_string()),
                HandshakeError::Closed(closed) => closed.to_wire(),
            };
            self.io.close(code, &reason, self.config.timeout).await;
        }
        result
    }

    fn timed_out(&self) -> HandshakeError {
        HandshakeError::TimedOut(self.config.handshake_timeout)
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").field("config", &self.config).finish_non_exhaustive()
    }
}

fn failed(error: Error) -> HandshakeError {
    closed_by_error(error).into()
}
