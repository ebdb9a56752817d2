//! Peers that do not read: they delay nobody else and cost bounded memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, stream};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use link::Config;
use tokio_tungstenite::tungstenite::Message;

use crate::support::*;
use crate::upgrade::dial_websocket;

const STALLED: usize = 40;

#[tokio::test]
async fn stalled_readers_of_answers_delay_no_other_request() {
    let pair = Pair::open(Config::default()).await;
    let big = (0..STALLED).map(|_| pair.session.request(get("/big")));
    let mut stalled = within(futures_util::future::join_all(big)).await;
    for _ in 0..50 {
        assert_eq!(pair.get("/hello").await.1, "hello");
    }
    // One more big answer passes them too, and those that stalled are whole when they are read at last.
    assert_eq!(pair.get("/big").await.1.len(), BIG);
    let late = stalled.pop().unwrap().unwrap();
    assert_eq!(within(late.into_body().collect()).await.unwrap().to_bytes().len(), BIG);
}

#[tokio::test]
async fn stalled_readers_of_requests_delay_no_other_request() {
    let mut pair = Pair::open(Config::default()).await;
    let mut stalled = tokio::task::JoinSet::new();
    let body = Bytes::from(vec![1; BIG]);
    for _ in 0..STALLED {
        let (session, body) = (pair.session.clone(), body.clone());
        stalled.spawn(async move { session.request(post("/hang", Full::new(body))).await.map(drop) });
    }
    for _ in 0..50 {
        let echo = pair.session.request(post("/echo", Full::new(Bytes::from_static(b"through"))));
        let response = within(echo).await.unwrap();
        assert_eq!(within(response.into_body().collect()).await.unwrap().to_bytes(), "through");
    }
    // A big body passes them too.
    let echo = within(pair.session.request(post("/echo", Full::new(body)))).await.unwrap();
    assert_eq!(within(echo.into_body().collect()).await.unwrap().to_bytes().len(), BIG);
    assert!(stalled.try_join_next().is_none() && pair.cancelled.try_recv().is_err(), "all 40 stall still");
}

/// The peer opens all windows of HTTP/2 and then reads nothing more, so that only the WebSocket can hold writes back.
#[tokio::test]
async fn a_peer_that_never_reads_makes_writes_wait() {
    let config = Config { heartbeat: Duration::from_secs(600), ..Config::default() };
    let mut relay = Relay::start(config).await;
    let mut peer = dial_websocket(&relay).await;
    let session = relay.handshake().await.into_client().await.unwrap();
    // SETTINGS with INITIAL_WINDOW_SIZE = 2^31-1, and a WINDOW_UPDATE that takes the connection there.
    let mut frames = vec![0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff];
    frames.extend([0, 0, 4, 8, 0, 0, 0, 0, 0]);
    frames.extend((0x7fff_ffff_u32 - 65_535).to_be_bytes());
    peer.send(Message::binary(frames)).await.unwrap();

    let produced = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&produced);
    let chunk = Bytes::from(vec![0; 64 * 1024]);
    let endless = stream::repeat_with(move || {
        counter.fetch_add(chunk.len(), Ordering::Relaxed);
        Ok::<_, std::convert::Infallible>(Frame::data(chunk.clone()))
    });
    let asking = tokio::spawn(async move { session.request(post("/", StreamBody::new(endless))).await });
    let bound = 32 * 1024 * 1024;
    within(async {
        let mut before = usize::MAX;
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = produced.load(Ordering::Relaxed);
            assert!(now < bound, "{now} bytes taken for a peer that reads nothing");
            if now == before && now > 1024 * 1024 {
                return;
            }
            before = now;
        }
    })
    .await;
    asking.abort();
}
