//! The limits and deadlines of a link, in one place.

use std::time::Duration;

/// Limits and deadlines of one side of a link. The defaults suit both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// An HTTP/2 PING is sent when nothing was read for so long (default 10 s). More than zero.
    pub heartbeat: Duration,
    /// How long the peer has to answer a PING, and to take part in closing the connection (default 5 s).
    pub timeout: Duration,
    /// Bounds the whole handshake, from dialling or upgrading to the last text message (default 10 s).
    pub handshake_timeout: Duration,
    /// How long open streams may go on after [`Handshake::serve`](crate::Handshake::serve) was told to stop
    /// (default 30 s).
    pub drain: Duration,
    /// The largest WebSocket message taken from the peer, in bytes (default 128 KiB, which the wire format promises
    /// to peers: at least the 64 KiB that this implementation sends at once). It also bounds handshake texts.
    pub max_message: usize,
    /// Requests that may be open on one session at once (default 1024). At the relay further ones fail with
    /// [`RequestError::Busy`](crate::RequestError::Busy); at the agent it bounds what the relay may open. Times the
    /// stream window of 256 KiB it bounds what stalled readers of one session can hold in memory.
    pub max_concurrent_streams: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(10),
            drain: Duration::from_secs(30),
            max_message: 128 * 1024,
            max_concurrent_streams: 1024,
        }
    }
}

impl Config {
    /// Silence after which the peer is regarded as gone.
    pub(crate) fn silence(&self) -> Duration {
        self.heartbeat + self.timeout
    }
}
