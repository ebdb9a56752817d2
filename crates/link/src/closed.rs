//! How a connection ended, and the close codes that say so on the wire.

use std::time::Duration;

/// WebSocket close codes of the link: those of RFC 6455 that it uses, and its own in the private range.
pub mod close_code {
    /// The session ended as it should.
    pub const NORMAL: u16 = 1000;
    /// The sender is stopping; the peer may connect again, here or elsewhere.
    pub const GOING_AWAY: u16 = 1001;
    /// The peer broke the WebSocket, the HTTP/2 or the link protocol.
    pub const PROTOCOL_ERROR: u16 = 1002;
    /// What a peer that closed without giving a code counts as; never sent.
    pub const NO_CODE: u16 = 1005;
    /// A handshake message was malformed or not what was due.
    pub const BAD_HANDSHAKE: u16 = 4000;
    /// A newer connection of the same provider and node took over: do not connect again.
    pub const SUPERSEDED: u16 = 4001;
    /// The handshake was understood and its sender is not wanted.
    pub const REFUSED: u16 = 4003;
    /// The handshake took too long, or pings went unanswered.
    pub const TIMED_OUT: u16 = 4008;
}

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// This side closed it.
    #[error("closed by this side with code {code}: {reason}")]
    Local {
        /// The code that was sent, see [`close_code`].
        code: u16,
        /// The reason that was sent.
        reason: String,
    },
    /// The peer closed it.
    #[error("closed by the peer with code {code}: {reason}")]
    Peer {
        /// The code that came, see [`close_code`].
        code: u16,
        /// The reason that came, for people to read.
        reason: String,
    },
    /// Nothing came from the peer for so long, pings included.
    #[error("nothing heard from the peer for {silence:?}")]
    TimedOut {
        /// [`Config::heartbeat`](crate::Config::heartbeat) and [`Config::timeout`](crate::Config::timeout) together.
        silence: Duration,
    },
    /// The connection broke without a WebSocket Close.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The peer broke the WebSocket, the HTTP/2 or the link protocol.
    #[error("protocol violated by the peer: {0}")]
    Protocol(String),
}

impl Closed {
    /// The close code to send to the peer, with its reason.
    pub(crate) fn to_wire(&self) -> (u16, String) {
        match self {
            Self::Local { code, reason } => (*code, reason.clone()),
            Self::Peer { .. } | Self::Lost(_) => (close_code::NORMAL, String::new()),
            Self::TimedOut { .. } => (close_code::TIMED_OUT, self.to_string()),
            Self::Protocol(what) => (close_code::PROTOCOL_ERROR, what.clone()),
        }
    }
}
