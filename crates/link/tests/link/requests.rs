//! Requests, bodies, cancellation, and the ways to end.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::StatusCode;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::service::service_fn;
use link::{Closed, Config, RequestError, close_code};
use tokio::sync::mpsc;

use crate::support::*;

#[tokio::test]
async fn texts_then_requests_go_round() {
    let mut relay = Relay::start(Config::default()).await;
    let mut agent = link::connect(&relay.url, None, Config::default()).await.unwrap();
    let mut end = relay.handshake().await;
    end.send(r#"{"nonce":1}"#).await.unwrap();
    assert_eq!(agent.recv().await.unwrap(), r#"{"nonce":1}"#);
    agent.send("ζ").await.unwrap();
    assert_eq!(end.recv().await.unwrap(), "ζ");
    // The agent may read HTTP/2 right behind the last text.
    end.send("accepted").await.unwrap();
    let session = end.into_client().await.unwrap();
    assert_eq!(agent.recv().await.unwrap(), "accepted");
    let serving = tokio::spawn(agent.serve(
        service_fn(async |request: http::Request<hyper::body::Incoming>| {
            let seen = format!("{} {}", request.method(), request.uri());
            Ok::<_, std::convert::Infallible>(http::Response::new(text(&seen)))
        }),
        std::future::pending(),
    ));
    let response = session.request(post("/a?b=c", Full::new(Bytes::from_static(b"x")))).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "POST http://agent/a?b=c");
    session.close(close_code::NORMAL, "done");
    let closed = Closed::Peer { code: 1000, reason: "done".into() };
    assert_eq!(within(serving).await.unwrap(), closed);
}

#[tokio::test]
async fn requests_go_over_tls() {
    let (server, client) = tls_pair();
    let mut relay = Relay::start_with(Config::default(), Some(server)).await;
    let agent = link::connect(&relay.url, Some(client), Config::default()).await.unwrap();
    let session = relay.handshake().await.into_client().await.unwrap();
    let serving = tokio::spawn(agent.serve(
        service_fn(async |request: http::Request<hyper::body::Incoming>| {
            Ok::<_, std::convert::Infallible>(http::Response::new(request.into_body()))
        }),
        std::future::pending(),
    ));
    let sent = Bytes::from(vec![7; BIG]);
    let response = within(session.request(post("/", Full::new(sent.clone())))).await.unwrap();
    assert!(within(response.into_body().collect()).await.unwrap().to_bytes() == sent);
    drop(session);
    let closed = within(serving).await.unwrap();
    assert_eq!(closed, Closed::Peer { code: close_code::NORMAL, reason: String::new() });
}

/// A request body that a test feeds.
fn fed_body() -> (
    mpsc::Sender<Bytes>,
    impl http_body::Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static,
) {
    let (feed, chunks) = mpsc::channel(1);
    let stream = futures_util::stream::unfold(chunks, async |mut chunks: mpsc::Receiver<Bytes>| {
        let chunk = chunks.recv().await?;
        Some((Ok(Frame::data(chunk)), chunks))
    });
    (feed, StreamBody::new(stream))
}

async fn rest_of(mut body: http_body_util::BodyDataStream<link::ResponseBody>) -> Bytes {
    let mut rest = Vec::new();
    while let Some(chunk) = within(body.next()).await {
        rest.extend(chunk.unwrap());
    }
    rest.into()
}

/// Bodies of both directions flow while the request goes on, and without the 40 ms that a socket without
/// `TCP_NODELAY` takes for a small write behind another.
#[tokio::test]
async fn small_chunks_stream_both_ways_without_delay() {
    let pair = Pair::open(Config::default()).await;
    let (feed, body) = fed_body();
    let response = within(pair.session.request(post("/echo", body))).await.unwrap();
    let mut echoed = response.into_body().into_data_stream();
    let mut times = Vec::new();
    for round in 0..101u8 {
        let sent = Bytes::from(vec![round; 2]);
        let start = std::time::Instant::now();
        // Two writes in a row: the second is what Nagle's algorithm would hold back.
        for part in [sent.slice(..1), sent.slice(1..)] {
            feed.send(part).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut received = 0;
        while received < sent.len() {
            received += within(echoed.next()).await.unwrap().unwrap().len();
        }
        times.push(start.elapsed());
    }
    times.sort();
    let median = times[times.len() / 2];
    assert!(median < Duration::from_millis(20), "median of {median:?}");
    drop(feed);
    assert_eq!(rest_of(echoed).await, "");
}

#[tokio::test]
async fn dropping_a_request_or_its_response_reaches_the_service() {
    let mut pair = Pair::open(Config::default()).await;
    {
        let request = pair.session.request(get("/hang"));
        tokio::pin!(request);
        // Sent, as this one was sent behind it and answered.
        let hello = async { pair.session.request(get("/hello")).await.unwrap().status() };
        tokio::select! {
            biased;
            _ = &mut request => panic!("nobody answers this"),
            status = hello => assert_eq!(status, StatusCode::OK),
        }
        assert!(pair.cancelled.try_recv().is_err());
    }
    assert_eq!(within(pair.cancelled.recv()).await, Some("hang"));

    let response = within(pair.session.request(get("/drip"))).await.unwrap();
    let mut body = response.into_body();
    assert_eq!(within(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "drop");
    assert!(pair.cancelled.try_recv().is_err());
    drop(body);
    assert_eq!(within(pair.cancelled.recv()).await, Some("drip"));
    assert_eq!(pair.get("/hello").await.1, "hello");
}

/// HTTP/2 libraries count cancelled streams against a peer; clients that hang up must not cost the session.
#[tokio::test]
async fn a_session_outlives_thousands_of_cancelled_requests() {
    let pair = Pair::open(Config::default()).await;
    let body = Bytes::from(vec![0; 128 * 1024]);
    for _ in 0..60 {
        let big = (0..50).map(|_| pair.session.request(get("/big")));
        let responses = within(futures_util::future::join_all(big)).await;
        assert!(responses.iter().all(Result::is_ok), "{responses:?}");
        drop(responses);
        // Some are cancelled while they are on their way.
        let mut hanging =
            Box::pin(futures_util::future::join_all((0..50).map(|_| pair.session.request(get("/hang")))));
        let _ = futures_util::poll!(&mut hanging);
        tokio::task::yield_now().await;
        drop(hanging);
        // And some have bodies that the agent does not want.
        let unread = (0..50).map(|_| pair.session.request(post("/hello", Full::new(body.clone()))));
        within(futures_util::future::join_all(unread)).await;
    }
    assert_eq!(pair.get("/hello").await.1, "hello");
    assert!(!pair.session.is_closed());
}

/// HTTP/2 libraries bear with few empty frames in the life of a connection, and streams of others may hold any number.
#[tokio::test]
async fn a_session_outlives_bodies_of_empty_chunks() {
    let pair = Pair::open(Config::default()).await;
    let chunks = (0..1000).map(|_| Ok::<_, std::convert::Infallible>(Frame::data(Bytes::new())));
    let body = StreamBody::new(futures_util::stream::iter(chunks));
    let response = within(pair.session.request(post("/echo", body))).await.unwrap();
    assert_eq!(rest_of(response.into_body().into_data_stream()).await, "");
    assert_eq!(pair.get("/empty").await.1, "");
    assert_eq!(pair.get("/hello").await.1, "hello");
}

#[tokio::test]
async fn requests_beyond_the_limit_are_busy_and_places_come_back() {
    let config = Config { max_concurrent_streams: 2, ..Config::default() };
    let pair = Pair::open(config).await;
    let first = within(pair.session.request(get("/drip"))).await.unwrap();
    let _second = within(pair.session.request(get("/drip"))).await.unwrap();
    let refused = within(pair.session.request(get("/hello"))).await;
    assert!(matches!(refused, Err(RequestError::Busy)), "{refused:?}");
    assert!(!refused.unwrap_err().may_have_been_sent());
    drop(first);
    assert_eq!(pair.get("/hello").await.1, "hello");
}

#[tokio::test]
async fn a_close_of_the_relay_reaches_the_agent_with_code_and_reason() {
    let pair = Pair::open(Config::default()).await;
    let open = within(pair.session.request(get("/drip"))).await.unwrap();
    let (code, reason) = (close_code::SUPERSEDED, "a newer connection took over");
    pair.session.close(code, reason);
    pair.session.close(close_code::NORMAL, "too late to count");
    assert!(pair.session.is_closed());
    let at_relay = within(pair.session.closed()).await;
    assert_eq!(at_relay, Closed::Local { code, reason: reason.into() });
    let at_agent = within(pair.agent).await.unwrap();
    assert_eq!(at_agent, Closed::Peer { code, reason: reason.into() });
    assert!(within(open.into_body().collect()).await.is_err(), "an open stream is cut off");
    let late = within(pair.session.request(get("/hello"))).await.unwrap_err();
    assert!(matches!(late, RequestError::Unavailable), "{late:?}");
}

#[tokio::test]
async fn long_reasons_are_cut_between_characters() {
    let pair = Pair::open(Config::default()).await;
    pair.session.close(close_code::REFUSED, &"ä".repeat(100));
    let at_agent = within(pair.agent).await.unwrap();
    assert_eq!(at_agent, Closed::Peer { code: close_code::REFUSED, reason: "ä".repeat(61) });
}

#[tokio::test]
async fn a_handshake_can_be_refused_with_a_code() {
    let mut relay = Relay::start(Config::default()).await;
    let mut agent = link::connect(&relay.url, None, Config::default()).await.unwrap();
    let end = relay.handshake().await;
    let ((), received) = tokio::join!(end.close(close_code::REFUSED, "unknown provider"), agent.recv());
    let closed = Closed::Peer { code: close_code::REFUSED, reason: "unknown provider".into() };
    assert_eq!(received, Err(closed.into()));
}

#[tokio::test]
async fn an_agent_that_stops_lets_open_requests_finish() {
    let pair = Pair::open(Config::default()).await;
    let (feed, body) = fed_body();
    let response = within(pair.session.request(post("/echo", body))).await.unwrap();
    let mut echoed = response.into_body().into_data_stream();
    pair.shutdown.send(()).unwrap();
    // Requests that pass the notice on its way are served; after it they are refused unsent.
    let refused = within(async {
        loop {
            match pair.session.request(get("/hello")).await {
                Ok(served) => assert_eq!(served.status(), StatusCode::OK),
                Err(error) => return error,
            }
        }
    })
    .await;
    assert!(matches!(refused, RequestError::Unavailable), "{refused:?}");
    assert!(pair.session.is_closed());
    feed.send(Bytes::from_static(b"still here")).await.unwrap();
    assert_eq!(within(echoed.next()).await.unwrap().unwrap(), "still here");
    drop(feed);
    assert_eq!(rest_of(echoed).await, "");
    let gone = |closed: Closed| match closed {
        Closed::Local { code, .. } | Closed::Peer { code, .. } => assert_eq!(code, close_code::GOING_AWAY),
        other => panic!("{other}"),
    };
    gone(within(pair.agent).await.unwrap());
    gone(within(pair.session.closed()).await);
}

#[tokio::test]
async fn an_agent_that_stops_cuts_requests_off_at_the_deadline() {
    let config = Config { drain: Duration::from_millis(100), ..Config::default() };
    let mut pair = Pair::open(config).await;
    let response = within(pair.session.request(get("/drip"))).await.unwrap();
    pair.shutdown.send(()).unwrap();
    assert_eq!(within(pair.cancelled.recv()).await, Some("drip"));
    let closed = within(pair.agent).await.unwrap();
    assert!(matches!(closed, Closed::Local { code: close_code::GOING_AWAY, .. }), "{closed}");
    assert!(within(response.into_body().collect()).await.is_err());
    let closed = within(pair.session.closed()).await;
    assert!(matches!(closed, Closed::Peer { code: close_code::GOING_AWAY, .. }), "{closed}");
}

#[tokio::test]
async fn a_dropped_agent_is_a_lost_connection() {
    let mut pair = Pair::open(Config::default()).await;
    let response = within(pair.session.request(get("/drip"))).await.unwrap();
    pair.agent.abort();
    let closed = within(pair.session.closed()).await;
    assert!(matches!(closed, Closed::Lost(_)), "{closed}");
    assert!(within(response.into_body().collect()).await.is_err());
    assert_eq!(within(pair.cancelled.recv()).await, Some("drip"), "its requests end with it");
    let _relay = pair.relay;
}
