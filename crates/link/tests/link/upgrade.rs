//! The way to a WebSocket, and what is refused on it.

use http::{Request, StatusCode, Version};
use link::{Config, ConnectError, SUBPROTOCOL, UpgradeError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use url::Url;

use crate::support::*;

/// A peer of the relay's that knows WebSocket and nothing of the link.
pub(crate) async fn dial_websocket(relay: &Relay) -> WebSocketStream<TcpStream> {
    let mut request = relay.url.as_str().into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
    let tcp = TcpStream::connect(relay.address()).await.unwrap();
    within(tokio_tungstenite::client_async(request, tcp)).await.unwrap().0
}

/// Sends bytes as the one answer of a server to one request, and gives the connection.
pub(crate) async fn answer_once(answer: impl FnOnce(&str) -> Vec<u8> + Send + 'static) -> (Url, TcpTask) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/connect", listener.local_addr().unwrap()).parse().unwrap();
    let task = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await.unwrap());
        }
        tcp.write_all(&answer(std::str::from_utf8(&head).unwrap())).await.unwrap();
        tcp
    });
    (url, task)
}

pub(crate) type TcpTask = tokio::task::JoinHandle<TcpStream>;

/// The answer that makes a WebSocket of a request.
pub(crate) fn switching(head: &str) -> String {
    let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {accept}\r\nsec-websocket-protocol: {SUBPROTOCOL}\r\n\r\n"
    )
}

fn good_request() -> Request<()> {
    Request::get("/connect")
        .header("connection", "keep-alive, Upgrade")
        .header("upgrade", "WebSocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-protocol", "other, zorai-link.v1")
        .body(())
        .unwrap()
}

#[test]
fn wrong_requests_are_refused_for_what_is_wrong() {
    type Spoil = fn(&mut Request<()>);
    let set = |request: &mut Request<()>, name: &'static str, value: &str| {
        request.headers_mut().insert(name, value.parse().unwrap());
    };
    let cases: [(Spoil, &str, u16); 11] = [
        (|r| *r.version_mut() = Version::HTTP_2, "http_version", 426),
        (|r| *r.method_mut() = http::Method::POST, "method_not_allowed", 405),
        (|r| drop(r.headers_mut().remove("connection")), "not_websocket", 426),
        (|r| drop(r.headers_mut().remove("upgrade")), "not_websocket", 426),
        (|r| drop(r.headers_mut().remove("sec-websocket-version")), "websocket_version", 426),
        (|r| drop(r.headers_mut().remove("sec-websocket-key")), "websocket_key", 400),
        (|r| drop(r.headers_mut().remove("sec-websocket-protocol")), "websocket_subprotocol", 400),
        (
            |r| drop(r.headers_mut().insert("sec-websocket-version", "8".parse().unwrap())),
            "websocket_version",
            426,
        ),
        (
            |r| drop(r.headers_mut().insert("sec-websocket-key", "short".parse().unwrap())),
            "websocket_key",
            400,
        ),
        (|r| drop(r.headers_mut().insert("upgrade", "h2c".parse().unwrap())), "not_websocket", 426),
        // Right in all its headers, and on no connection that could be upgraded.
        (|_| {}, "not_websocket", 426),
    ];
    for (number, (spoil, code, status)) in cases.into_iter().enumerate() {
        let mut request = good_request();
        spoil(&mut request);
        let error = link::accept(&mut request, Config::default()).unwrap_err();
        assert_eq!((error.code(), error.status().as_u16()), (code, status), "case {number}: {error}");
    }
    let mut request = good_request();
    set(&mut request, "sec-websocket-protocol", "zorai-link.v2, ZORAI-LINK.V1");
    let error = link::accept(&mut request, Config::default()).unwrap_err();
    assert_eq!(error, UpgradeError::Subprotocol("zorai-link.v2, ZORAI-LINK.V1".into()));
    assert!(error.to_string().contains("zorai-link.v2"), "{error}");
}

#[tokio::test]
async fn the_answer_names_the_subprotocol_and_the_key() {
    let relay = Relay::start(Config::default()).await;
    let mut tcp = TcpStream::connect(relay.address()).await.unwrap();
    let mut request = String::from("GET /connect HTTP/1.1\r\nhost: relay\r\n");
    for (name, value) in good_request().headers() {
        request.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    request.push_str("\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(tcp.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(head.contains("sec-websocket-protocol: zorai-link.v1\r\n"), "{head}");
    // The key and its answer are RFC 6455's own example.
    assert!(head.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
}

#[tokio::test]
async fn a_refusal_reaches_the_agent_with_status_and_message() {
    let cases = [
        ("401 Unauthorized", "content-length: 9\r\n\r\nno\tchance", "nochance", false),
        ("426 Upgrade Required", "content-length: 0\r\n\r\n", "", false),
        ("503 Service Unavailable", "retry-after: 7\r\ncontent-length: 8\r\n\r\ndraining", "draining", true),
        ("429 Too Many Requests", "content-length: 0\r\n\r\n", "", true),
        ("302 Found", "location: /x\r\ncontent-length: 0\r\n\r\n", "", false),
    ];
    for (status_line, rest, said, again) in cases {
        let (url, server) =
            answer_once(move |_| format!("HTTP/1.1 {status_line}\r\n{rest}").into_bytes()).await;
        let error = within(link::connect(&url, None, Config::default())).await.unwrap_err();
        assert_eq!(error.is_retryable(), again, "{error}");
        assert!(error.to_string().contains(&format!("127.0.0.1:{}", url.port().unwrap())), "{error}");
        match error {
            ConnectError::Refused { status, message, retry_after, .. } => {
                assert!(status_line.starts_with(status.as_str()));
                assert_eq!(message, said);
                assert_eq!(retry_after.is_some(), status == StatusCode::SERVICE_UNAVAILABLE);
            }
            other => panic!("{other}"),
        }
        drop(server.await);
    }
}

#[tokio::test]
async fn a_long_refusal_is_cut() {
    let (url, server) = answer_once(|_| {
        let mut answer = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 1000000\r\n\r\n".to_vec();
        answer.extend(vec![b'x'; 100_000]);
        answer
    })
    .await;
    match within(link::connect(&url, None, Config::default())).await.unwrap_err() {
        ConnectError::Refused { message, .. } => assert_eq!(message.len(), 4096),
        other => panic!("{other}"),
    }
    drop(server.await);
}

#[tokio::test]
async fn what_is_no_relay_is_found_out() {
    type Spoil = fn(String) -> String;
    let cases: [(Spoil, &str); 3] = [
        (|answer| answer.replace("zorai-link.v1", "zorai-link.v2"), "subprotocol"),
        (|answer| answer.replace("sec-websocket-accept: ", "sec-websocket-accept: x"), "Accept"),
        (|answer| answer.replace("upgrade: websocket", "upgrade: h2c"), "another protocol"),
    ];
    for (spoil, named) in cases {
        let (url, _server) = answer_once(move |head| spoil(switching(head)).into_bytes()).await;
        let error = within(link::connect(&url, None, Config::default())).await.unwrap_err();
        assert!(matches!(error, ConnectError::NotALink { .. }), "{error}");
        assert!(error.to_string().contains(named) && !error.is_retryable(), "{error}");
    }
}

#[tokio::test]
async fn dialling_names_what_failed() {
    let dial = async |url: &str, tls| {
        within(link::connect(&url.parse().unwrap(), tls, Config::default())).await.unwrap_err()
    };
    for url in ["http://127.0.0.1/", "ws://user:secret@127.0.0.1/", "wss://127.0.0.1/"] {
        let error = dial(url, None).await;
        assert!(matches!(error, ConnectError::Url { .. }) && !error.is_retryable(), "{error}");
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    }
    let error = dial("ws://no-such-host.invalid/", None).await;
    assert!(matches!(error, ConnectError::Dns { .. }) && error.is_retryable(), "{error}");
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = dial(&format!("ws://{unused}/"), None).await;
    assert!(matches!(error, ConnectError::Tcp { .. }) && error.is_retryable(), "{error}");
    assert!(error.to_string().contains(&unused.to_string()), "{error}");

    let (server, _) = tls_pair();
    let relay = Relay::start_with(Config::default(), Some(server)).await;
    let error = dial(relay.url.as_str(), Some(distrustful())).await;
    assert!(matches!(error, ConnectError::Tls { .. }) && !error.is_retryable(), "{error}");

    let relay = Relay::start(Config::default()).await;
    let error = dial(relay.url.as_str().replace("ws:", "wss:").as_str(), Some(distrustful())).await;
    assert!(matches!(error, ConnectError::Tls { .. }) && error.is_retryable(), "{error}");
}
