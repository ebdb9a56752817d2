//! Peers that vanish without a word.

use std::time::{Duration, Instant};

use link::{Closed, Config, close_code};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use url::Url;

use crate::support::*;

/// Forwards one connection until it is frozen; then the sockets stay open and nothing passes.
async fn proxy(to: String) -> (Url, watch::Sender<bool>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/connect", listener.local_addr().unwrap()).parse().unwrap();
    let (freeze, frozen) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (near, _) = listener.accept().await.unwrap();
        let far = TcpStream::connect(to).await.unwrap();
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        tokio::join!(pump(near_read, far_write, frozen.clone()), pump(far_read, near_write, frozen));
    });
    (url, freeze, tasks)
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut frozen: watch::Receiver<bool>,
) {
    let mut buffer = [0; 4096];
    loop {
        tokio::select! {
            biased;
            () = async { drop(frozen.wait_for(|frozen| *frozen).await) } => std::future::pending().await,
            count = from.read(&mut buffer) => match count {
                Ok(count) if count > 0 => to.write_all(&buffer[..count]).await.unwrap(),
                _ => return,
            },
        }
    }
}

#[tokio::test]
async fn both_sides_find_a_half_open_connection() {
    let config = hasty();
    let relay = Relay::start(config.clone()).await;
    let (url, freeze, _tasks) = proxy(relay.address()).await;
    let silence = config.heartbeat + config.timeout;
    let pair = Pair::open_at(relay, &url, config).await;
    assert_eq!(pair.get("/hello").await.1, "hello");
    let start = Instant::now();
    freeze.send(true).unwrap();
    let (at_relay, at_agent) = within(async { tokio::join!(pair.session.closed(), pair.agent) }).await;
    let took = start.elapsed();
    assert_eq!(at_relay, Closed::TimedOut { silence });
    assert_eq!(at_agent.unwrap(), Closed::TimedOut { silence });
    assert!(took < silence + Duration::from_secs(2), "took {took:?}");
}

#[tokio::test]
async fn an_idle_link_lives_on_pings() {
    let config = Config {
        heartbeat: Duration::from_millis(200),
        timeout: Duration::from_secs(1),
        ..Config::default()
    };
    let pair = Pair::open(config).await;
    let mut closed = Box::pin(pair.session.closed());
    let lives = tokio::time::timeout(Duration::from_secs(4), &mut closed).await;
    assert!(lives.is_err(), "{lives:?}");
    assert_eq!(pair.get("/hello").await.1, "hello");
}

#[tokio::test]
async fn a_handshake_with_a_silent_peer_ends_at_its_deadline() {
    let mut relay = Relay::start(hasty()).await;
    let mut agent = link::connect(&relay.url, None, Config::default()).await.unwrap();
    let mut end = relay.handshake().await;
    let start = Instant::now();
    let (at_relay, at_agent) = within(async { tokio::join!(end.recv(), agent.recv()) }).await;
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(at_relay, Err(link::HandshakeError::TimedOut(hasty().handshake_timeout)));
    match at_agent {
        Err(link::HandshakeError::Closed(Closed::Peer { code, .. })) => {
            assert_eq!(code, close_code::TIMED_OUT);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn dialling_something_silent_ends_at_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let error = within(link::connect(&url, None, hasty())).await.unwrap_err();
    assert!(matches!(error, link::ConnectError::TimedOut { .. }), "{error}");
    assert!(error.is_retryable());
}
