//! Bytes that no honest peer sends, at each stage: the connection ends with a reason, and nothing panics.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::service::service_fn;
use link::{Closed, Config, Handshake, HandshakeError, close_code};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::support::*;
use crate::upgrade::{answer_once, dial_websocket, switching};

/// The close code that comes to a peer after what it did.
async fn code_of_close<S>(peer: &mut WebSocketStream<S>) -> u16
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    loop {
        match within(peer.next()).await {
            Some(Ok(Message::Close(Some(frame)))) => return frame.code.into(),
            Some(Ok(_)) => {}
            other => panic!("ended without a Close: {other:?}"),
        }
    }
}

/// What a relay makes of a first message of the peer's, and the code that it answers.
async fn first_message(config: Config, messages: Vec<Message>) -> (HandshakeError, u16) {
    let mut relay = Relay::start(config).await;
    let mut peer = dial_websocket(&relay).await;
    let mut end = relay.handshake().await;
    let misbehave = async {
        for message in messages {
            let _ = peer.feed(message).await;
        }
        let _ = peer.flush().await;
        code_of_close(&mut peer).await
    };
    let (received, code) = within(async { tokio::join!(end.recv(), misbehave) }).await;
    (received.unwrap_err(), code)
}

#[tokio::test]
async fn broken_handshakes_are_told_so() {
    let config = Config { max_message: 1024, timeout: Duration::from_millis(200), ..Config::default() };
    let (error, code) = first_message(config.clone(), vec![Message::binary(vec![1])]).await;
    assert_eq!((error, code), (HandshakeError::NotText, close_code::BAD_HANDSHAKE));
    let (error, code) = first_message(config.clone(), vec![Message::Ping(Bytes::new()); 17]).await;
    assert_eq!((error, code), (HandshakeError::Flood, close_code::BAD_HANDSHAKE));
    let (error, code) = first_message(config, vec![Message::text("x".repeat(1025))]).await;
    assert!(matches!(error, HandshakeError::Closed(Closed::Protocol(_))), "{error}");
    assert_eq!(code, close_code::PROTOCOL_ERROR);
}

#[tokio::test]
async fn unmasked_frames_are_refused_by_the_relay() {
    let mut relay = Relay::start(Config::default()).await;
    let peer = dial_websocket(&relay).await;
    let mut end = relay.handshake().await;
    let mut tcp = peer.into_inner();
    tcp.write_all(b"\x81\x02hi").await.unwrap();
    let answer = async {
        let mut bytes = [0; 4];
        tcp.read_exact(&mut bytes).await.unwrap();
        drop(tcp);
        bytes
    };
    let (received, answer) = within(async { tokio::join!(end.recv(), answer) }).await;
    assert!(matches!(received, Err(HandshakeError::Closed(Closed::Protocol(_)))), "{received:?}");
    // A Close frame, of some length, with code 1002.
    assert_eq!((answer[0], u16::from_be_bytes([answer[2], answer[3]])), (0x88, 1002));
}

#[tokio::test]
async fn texts_too_long_to_send_are_not_sent() {
    let config = Config { max_message: 8, ..Config::default() };
    let mut relay = Relay::start(Config::default()).await;
    let mut agent = link::connect(&relay.url, None, config).await.unwrap();
    let mut end = relay.handshake().await;
    let (sent, received) = within(async { tokio::join!(agent.send("123456789"), end.recv()) }).await;
    assert_eq!(sent, Err(HandshakeError::TooLong { length: 9, max: 8 }));
    match received {
        Err(HandshakeError::Closed(Closed::Peer { code, .. })) => {
            assert_eq!(code, close_code::BAD_HANDSHAKE);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn text_and_garbage_after_the_handshake_are_refused_by_the_relay() {
    for message in [Message::text("hello?"), Message::binary(vec![0xff; 100])] {
        let mut relay = Relay::start(Config::default()).await;
        let mut peer = dial_websocket(&relay).await;
        let session = relay.handshake().await.into_client().await.unwrap();
        peer.send(message).await.unwrap();
        assert_eq!(code_of_close(&mut peer).await, close_code::PROTOCOL_ERROR);
        drop(peer);
        let closed = within(session.closed()).await;
        assert!(matches!(closed, Closed::Protocol(_)), "{closed}");
        assert!(session.is_closed());
    }
}

/// An agent whose relay is one of bytes, after the `101`.
async fn agent_and_bytes(config: Config) -> (Handshake, TcpStream) {
    let (url, server) = answer_once(|head| switching(head).into_bytes()).await;
    let agent = within(link::connect(&url, None, config)).await.unwrap();
    (agent, server.await.unwrap())
}

async fn serve(agent: Handshake) -> Closed {
    let service = service_fn(async |_| Ok::<_, std::convert::Infallible>(http::Response::new(text("hi"))));
    agent.serve(service, std::future::pending()).await
}

#[tokio::test]
async fn text_and_garbage_after_the_handshake_are_refused_by_the_agent() {
    for message in [Message::text("hello?"), Message::binary(vec![0xff; 100])] {
        let (agent, tcp) = agent_and_bytes(Config::default()).await;
        let agent = tokio::spawn(serve(agent));
        let mut peer = WebSocketStream::from_raw_socket(tcp, Role::Server, None).await;
        peer.send(message).await.unwrap();
        assert_eq!(code_of_close(&mut peer).await, close_code::PROTOCOL_ERROR);
        drop(peer);
        let closed = within(agent).await.unwrap();
        assert!(matches!(closed, Closed::Protocol(_)), "{closed}");
    }
}

/// What comes at a stage, in pieces, and whether the peer then hangs up or stays silent.
fn hostile_bytes() -> impl Strategy<Value = (Vec<Vec<u8>>, bool)> {
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        // Frames with a plausible head: of any kind, masked or not, of a small length or a huge one.
        (any::<u8>(), any::<u8>(), proptest::collection::vec(any::<u8>(), 0..140))
            .prop_map(|(first, second, rest)| [vec![first & 0x8f, second], rest].concat()),
    ];
    (proptest::collection::vec(bytes, 1..4), any::<bool>())
}

fn run(test: impl Future<Output = Result<(), TestCaseError>>) -> Result<(), TestCaseError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(within(test))
}

/// Sends what it is given, then hangs up or only reads.
async fn attack(mut tcp: TcpStream, (pieces, hang_up): (Vec<Vec<u8>>, bool)) {
    for piece in pieces {
        if tcp.write_all(&piece).await.is_err() {
            return;
        }
    }
    if !hang_up {
        let _ = tokio::io::copy(&mut tcp, &mut tokio::io::sink()).await;
    }
}

/// Chance may make whole texts; it never makes texts without end.
async fn first_error(mut end: Handshake) -> HandshakeError {
    loop {
        if let Err(error) = end.recv().await {
            return error;
        }
    }
}

/// Whether an end says what the peer did, rather than that the driving task is gone.
fn is_a_reason(closed: &Closed) -> bool {
    match closed {
        Closed::Peer { .. } | Closed::TimedOut { .. } | Closed::Protocol(_) => true,
        Closed::Lost(why) => why != "the runtime stopped",
        Closed::Local { .. } => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_instead_of_http_open_no_handshake(bytes in hostile_bytes()) {
        run(async {
            let mut relay = Relay::start(hasty()).await;
            let tcp = TcpStream::connect(relay.address()).await.unwrap();
            let _ = tokio::time::timeout(hasty().timeout, attack(tcp, bytes)).await;
            prop_assert!(relay.handshakes.try_recv().is_err());
            Ok(())
        })?;
    }

    #[test]
    fn bytes_instead_of_frames_end_the_handshake(bytes in hostile_bytes()) {
        run(async {
            let mut relay = Relay::start(hasty()).await;
            let tcp = dial_websocket(&relay).await.into_inner();
            let end = relay.handshake().await;
            let (error, ()) = tokio::join!(first_error(end), attack(tcp, bytes.clone()));
            prop_assert!(!error.to_string().is_empty());
            let (agent, tcp) = agent_and_bytes(hasty()).await;
            let (error, ()) = tokio::join!(first_error(agent), attack(tcp, bytes));
            prop_assert!(!error.to_string().is_empty());
            Ok(())
        })?;
    }

    #[test]
    fn bytes_instead_of_http2_end_the_session(bytes in hostile_bytes(), framed in any::<bool>()) {
        // In the payload of binary messages, or instead of WebSocket frames.
        let framed = |bytes: (Vec<Vec<u8>>, bool), masked: bool| {
            let frame = |piece: Vec<u8>| {
                let mask = if masked { 0x80 } else { 0 };
                let head = vec![0x82, mask | 126, 0, u8::try_from(piece.len()).unwrap()];
                [head, vec![0; if masked { 4 } else { 0 }], piece].concat()
            };
            if framed { (bytes.0.into_iter().map(frame).collect(), bytes.1) } else { bytes }
        };
        run(async {
            let mut relay = Relay::start(hasty()).await;
            let tcp = dial_websocket(&relay).await.into_inner();
            let session = relay.handshake().await.into_client().await.unwrap();
            let (closed, ()) = tokio::join!(session.closed(), attack(tcp, framed(bytes.clone(), true)));
            prop_assert!(is_a_reason(&closed), "{}", closed);
            let (agent, tcp) = agent_and_bytes(hasty()).await;
            let (closed, ()) = tokio::join!(serve(agent), attack(tcp, framed(bytes, false)));
            prop_assert!(is_a_reason(&closed), "{}", closed);
            Ok(())
        })?;
    }
}
