//! HTTP/2 over an outbound WebSocket.
//!
//! A machine behind NAT (the *agent*) dials a public server (the *relay*) by WebSocket. After a short handshake in
//! text messages the roles turn round: binary messages carry one HTTP/2 connection in which the relay is the HTTP
//! client and the agent is the HTTP server. So whatever the relay asks of the agent is an ordinary HTTP request with
//! streamed bodies, cancellation and back-pressure, and the agent needs no open port.
//!
//! # Use
//!
//! Relay: [`accept`] answers the upgrade request, [`Upgrade::complete`] gives a [`Handshake`], and after the texts
//! [`Handshake::into_client`] gives a [`Session`] with [`Session::request`].
//! Agent: [`connect`] gives a [`Handshake`], and after the texts [`Handshake::serve`] answers requests until the
//! connection ends; [`Backoff`] says when to dial again.
//!
//! # The wire
//!
//! 1. **Upgrade.** RFC 6455 over HTTP/1.1: `GET`, `Connection: Upgrade`, `Upgrade: websocket`,
//!    `Sec-WebSocket-Version: 13`, `Sec-WebSocket-Key`, and `Sec-WebSocket-Protocol` offering [`SUBPROTOCOL`]. The
//!    answer is `101` naming that subprotocol, or an HTTP error with a message in its body. No extension is
//!    negotiated. The dialling side masks its frames, the other does not.
//! 2. **Handshake.** Both sides exchange text messages whose content is not this crate's concern. A binary message,
//!    a message of more than [`Config::max_message`] bytes (128 KiB unless configured), more than 16 control frames
//!    or an exchange longer than [`Config::handshake_timeout`] ends it with a Close ([`close_code::BAD_HANDSHAKE`],
//!    or [`close_code::TIMED_OUT`]).
//! 3. **HTTP/2.** Once both sides regard the handshake as done, the payloads of all binary messages of one direction,
//!    in order, are the byte stream of one HTTP/2 connection with prior knowledge (RFC 9113, section 3.3). The
//!    accepting side sends the client preface. Message boundaries mean nothing; empty messages are allowed. No
//!    message may exceed 128 KiB; this implementation sends at most 64 KiB in one. A text message is now
//!    a violation (Close 1002). The `:scheme` and `:authority` of requests carry no meaning
//!    (`http` and `agent` where the caller gave none). DATA frames without payload are not to be sent except to end
//!    a stream: the h2 library ends a connection that brings more than a hundred. A response is whole only where its
//!    stream ended with END_STREAM: RST_STREAM and GOAWAY break it off, whatever their code.
//! 4. **Windows.** Each side should announce a stream window of 256 KiB and must raise the connection window to
//!    its maximum, 2^31-1: with a smaller one, readers that stall keep it spent and so stall every other stream.
//!    `SETTINGS_MAX_CONCURRENT_STREAMS` is [`Config::max_concurrent_streams`] on the agent.
//! 5. **Keep-alive.** Each side sends an HTTP/2 PING when it has read no frame for [`Config::heartbeat`], and must
//!    answer the other's at once. A side that has received no byte for `heartbeat + timeout` regards the other as
//!    gone. WebSocket pings are answered, and count as life as any byte does.
//! 6. **End.** Either side sends a WebSocket Close with a code of [`close_code`] and a reason of at most 123 bytes,
//!    answers the other's Close with its own, and closes the TCP connection. Streams still open then are lost. An agent
//!    that stops sends GOAWAY first and lets open streams finish for [`Config::drain`]; then it closes with 1001.
//!
//! Both sides set `TCP_NODELAY` on their socket; [`connect`] does, and a relay must do so on the sockets that it
//! accepts, or small messages wait for some 40 ms behind delayed acknowledgements.

mod backoff;
mod closed;
mod config;
mod connect;
mod h2;
mod handshake;
mod serve;
mod session;
mod upgrade;
mod ws;

pub use backoff::Backoff;
pub use closed::{Closed, close_code};
pub use config::Config;
pub use connect::{ConnectError, connect};
pub use handshake::{Handshake, HandshakeError};
pub use session::{BodyError, RequestError, ResponseBody, Session};
pub use upgrade::{Upgrade, UpgradeError, accept};

/// The WebSocket subprotocol that both sides must agree on.
pub const SUBPROTOCOL: &str = "zorai-link.v1";
