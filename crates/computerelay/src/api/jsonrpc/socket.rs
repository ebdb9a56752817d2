//! JSON-RPC over a WebSocket: each message is answered by one message, not necessarily in order.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{SinkExt, StreamExt};
use http::HeaderValue;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use rpc::error::ErrorCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};
use tracing::Instrument;

use super::{Endpoint, Sender, error_json};
use crate::error::ApiError;

/// Messages that are carried out at once on one connection. Meanwhile no further one is read from it.
const MAX_IN_FLIGHT: usize = 8;
/// How long the connection may take to change over.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a client may take to take an answer.
const SEND_DEADLINE: Duration = Duration::from_secs(10);
/// How often a client is asked whether it lives.
const PING: Duration = Duration::from_secs(20);
/// How long a client may say nothing.
const SILENCE: Duration = Duration::from_secs(50);
/// How long, and how much, a client may go on sending after it was told that its connection ends.
const LINGER: Duration = Duration::from_secs(1);
const MAX_LINGER_BYTES: usize = 1 << 20;
/// How long messages that are being carried out may go on once the relay is to end.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// `GET /rpc`
pub(super) async fn open(State(endpoint): State<Endpoint>, mut request: Request<Body>) -> Response {
    let response = match create_response_with_body(&request, Body::empty) {
        Ok(response) if request.extensions().get::<OnUpgrade>().is_some() => response,
        Ok(_) => return upgrade_required("this connection cannot change over to WebSocket"),
        Err(error) => return upgrade_required(&error.to_string()),
    };
    let Ok(place) = endpoint.sockets.clone().try_acquire_owned() else {
        let message = "this relay has no room for more WebSockets";
        return ApiError::new(ErrorCode::Unavailable, message).into_response();
    };
    let mut sender = Sender::of(request.headers(), request.extensions());
    sender.identity = None;
    let upgrade = hyper::upgrade::on(&mut request);
    let app = endpoint.app.clone();
    let work = async move {
        let _place = place;
        match tokio::time::timeout(UPGRADE_DEADLINE, upgrade).await {
            Ok(Ok(upgraded)) => Socket::new(endpoint, sender, upgraded).await.serve().await,
            Ok(Err(error)) => tracing::debug!(%error, "the upgrade failed"),
            Err(_) => tracing::debug!("the upgrade took too long"),
        }
    };
    app.requests.spawn(work.in_current_span());
    response
}

fn upgrade_required(why: &str) -> Response {
    let message = format!("POST calls here, or open a WebSocket: {why}");
    ApiError::new(ErrorCode::UpgradeRequired, message)
        .with_header(http::header::UPGRADE, HeaderValue::from_static("websocket"))
        .into_response()
}

struct Socket {
    endpoint: Endpoint,
    sender: Sender,
    stream: WebSocketStream<TokioIo<Upgraded>>,
}

impl Socket {
    async fn new(endpoint: Endpoint, sender: Sender, upgraded: Upgraded) -> Self {
        let limit = endpoint.app.limits.max_body_bytes;
        let config = WebSocketConfig::default()
            .max_message_size(Some(limit))
            .max_frame_size(Some(limit))
            // Their defaults are paid for by each connection.
            .read_buffer_size(4096)
            .write_buffer_size(0);
        let io = TokioIo::new(upgraded);
        let stream = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
        Self { endpoint, sender, stream }
    }

    /// Answers messages until the client leaves or falls silent, or the relay is to end.
    async fn serve(mut self) {
        let stopping = self.endpoint.app.stopping.clone();
        let mut answers = FuturesUnordered::new();
        let mut pings = tokio::time::interval(PING);
        let mut heard = Instant::now();
        let close = loop {
            let has_room = answers.len() < MAX_IN_FLIGHT;
            tokio::select! {
                () = stopping.cancelled() => break Some(CloseCode::Away),
                Some(answer) = answers.next() => {
                    if self.answer(answer).await.is_err() {
                        break None;
                    }
                }
                message = self.stream.next(), if has_room => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(message)) => {
                            if let Some(payload) = payload(message) {
                                answers.push(carry_out(&self.endpoint, &self.sender, payload));
                            }
                        }
                        Some(Err(Error::Capacity(_))) => break Some(CloseCode::Size),
                        Some(Err(Error::Utf8(_))) => break Some(CloseCode::Invalid),
                        Some(Err(_)) | None => break None,
                    }
                }
                _ = pings.tick() => {
                    if !has_room {
                        // Whoever is not read from cannot be heard.
                        heard = Instant::now();
                    }
                    let is_silent = heard.elapsed() > SILENCE;
                    if is_silent || self.send(Message::Ping(Bytes::new())).await.is_err() {
                        break None;
                    }
                }
            }
        };
        let Some(code) = close else { return };
        if code == CloseCode::Away {
            let rest = async {
                while let Some(answer) = answers.next().await {
                    if self.answer(answer).await.is_err() {
                        break;
                    }
                }
            };
            // What is not done by then goes the way of every call whose client left.
            let _ = tokio::time::timeout(DRAIN_DEADLINE, rest).await;
        }
        drop(answers);
        self.close(code).await;
    }

    async fn answer(&mut self, answer: Option<String>) -> Result<(), Gone> {
        match answer {
            Some(answer) => self.send(Message::text(answer)).await,
            None => Ok(()),
        }
    }

    async fn send(&mut self, message: Message) -> Result<(), Gone> {
        match tokio::time::timeout(SEND_DEADLINE, self.stream.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }

    /// Says why the connection ends, where there is more to say than that.
    async fn close(mut self, code: CloseCode) {
        if code == CloseCode::Size {
            let limit = self.endpoint.app.limits.max_body_bytes;
            let message = format!("the message is larger than {limit} bytes");
            let error = error_json(ApiError::new(ErrorCode::PayloadTooLarge, message));
            if self.send(Message::text(error)).await.is_err() {
                return;
            }
        }
        let frame = CloseFrame { code, reason: Utf8Bytes::from_static("") };
        // The client may be gone already.
        if self.send(Message::Close(Some(frame))).await.is_ok() {
            self.linger().await;
        }
    }

    /// Reads past what the client still sends, for a moment: a connection that is closed with unread bytes is reset, and the client may lose
    /// what was said last.
    async fn linger(self) {
        let mut io = self.stream.into_inner();
        let reading = async {
            if io.shutdown().await.is_err() {
                return;
            }
            let (mut left, mut buffer) = (MAX_LINGER_BYTES, [0; 4096]);
            while left > 0 {
                match io.read(&mut buffer).await {
                    Ok(read) if read > 0 => left = left.saturating_sub(read),
                    Ok(_) | Err(_) => break,
                }
            }
        };
        let _ = tokio::time::timeout(LINGER, reading).await;
    }
}

/// The client cannot be reached any more.
struct Gone;

/// What a message carries for JSON-RPC, which may come as text or as bytes.
fn payload(message: Message) -> Option<Bytes> {
    match message {
        Message::Text(text) => Some(text.into()),
        Message::Binary(bytes) => Some(bytes),
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => None,
    }
}

fn carry_out(
    endpoint: &Endpoint,
    sender: &Sender,
    message: Bytes,
) -> impl Future<Output = Option<String>> + Send + use<> {
    let (endpoint, sender) = (endpoint.clone(), sender.clone());
    async move {
        let answer = endpoint.answer(&message, &sender).await;
        answer.map_or_else(|error| Some(error_json(error)), |(answer, _)| answer)
    }
}
