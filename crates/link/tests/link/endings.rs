//! How a response may end: by END_STREAM, and by nothing else.

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::BodyExt as _;
use link::{BodyError, Config, Session};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::*;
use crate::upgrade::dial_websocket;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200`, in HPACK.
const OK: &[u8] = &[0x88];
/// The stream of a session's first request.
const FIRST: u32 = 1;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn reset(code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, FIRST, &code.to_be_bytes())
}

/// A session, and the other end of it, which speaks HTTP/2 frame by frame.
async fn session_and_frames() -> (Relay, Session, WebSocketStream<TcpStream>) {
    let mut relay = Relay::start(Config::default()).await;
    let mut peer = dial_websocket(&relay).await;
    let session = relay.handshake().await.into_client().await.unwrap();
    peer.send(Message::binary(frame(SETTINGS, 0, 0, &[]))).await.unwrap();
    (relay, session, peer)
}

/// Reads until the head of the first request has come.
async fn asked(peer: &mut WebSocketStream<TcpStream>) {
    let mut bytes = BytesMut::new();
    let mut is_begun = false;
    loop {
        let Message::Binary(message) = within(peer.next()).await.unwrap().unwrap() else { continue };
        bytes.extend_from_slice(&message);
        if !is_begun && bytes.len() >= 24 {
            bytes.advance("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len());
            is_begun = true;
        }
        while is_begun && bytes.len() >= 9 {
            let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
            if bytes.len() < 9 + length {
                break;
            }
            if bytes[3] == HEADERS {
                return;
            }
            bytes.advance(9 + length);
        }
    }
}

/// What comes of a response that the agent answers with these frames.
async fn body_of(frames: &[Vec<u8>]) -> Result<Bytes, BodyError> {
    let (_relay, session, mut peer) = session_and_frames().await;
    let answer = async {
        asked(&mut peer).await;
        peer.send(Message::binary(frames.concat())).await.unwrap();
    };
    let (response, ()) = within(async { tokio::join!(session.request(get("/")), answer) }).await;
    within(response.unwrap().into_body().collect()).await.map(|body| body.to_bytes())
}

#[tokio::test]
async fn a_body_ends_with_its_stream_and_nothing_else_ends_it() {
    let head = frame(HEADERS, END_HEADERS, FIRST, OK);
    let half = frame(DATA, 0, FIRST, b"half");
    for code in [0, 2, 8] {
        let cut = body_of(&[head.clone(), half.clone(), reset(code)]).await;
        assert!(cut.is_err(), "RST_STREAM({code}) is no end: {cut:?}");
        let cut = body_of(&[head.clone(), reset(code)]).await;
        assert!(cut.is_err(), "RST_STREAM({code}) is no end: {cut:?}");
    }
    let none_was_processed = frame(GOAWAY, 0, 0, &[0; 8]);
    let cut = body_of(&[head.clone(), half.clone(), none_was_processed]).await;
    assert!(cut.is_err(), "GOAWAY is no end: {cut:?}");

    let whole = frame(DATA, END_STREAM, FIRST, b"whole");
    assert_eq!(body_of(&[head.clone(), half.clone(), whole.clone()]).await.unwrap(), "halfwhole");
    // What comes behind the end takes nothing back.
    assert_eq!(body_of(&[head.clone(), whole, reset(0)]).await.unwrap(), "whole");
    let trailers = frame(HEADERS, END_HEADERS | END_STREAM, FIRST, &[]);
    assert_eq!(body_of(&[head, half, trailers]).await.unwrap(), "half");
}
