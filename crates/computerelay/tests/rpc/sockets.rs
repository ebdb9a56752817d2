//! What is special to the WebSocket: many calls at once, messages that are none, limits, the relay's end.

use futures_util::{SinkExt, StreamExt};
use jsonrpsee::core::client::ClientT;
use rpc::market::MarketClient;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::caller::{call, socket};
use crate::rig::{KEY, PATIENCE, Rig};

type Stream = WebSocketStream<TcpStream>;

async fn open(rig: &Rig) -> Stream {
    let tcp = TcpStream::connect(rig.addr).await.unwrap();
    client_async(format!("ws://{}/rpc", rig.addr), tcp).await.unwrap().0
}

async fn next(stream: &mut Stream) -> Option<Message> {
    tokio::time::timeout(PATIENCE, stream.next()).await.unwrap().map(Result::unwrap)
}

async fn answer(stream: &mut Stream) -> Value {
    loop {
        let message = next(stream).await.unwrap();
        if !message.is_ping() {
            assert!(message.is_text(), "{message:?}");
            return serde_json::from_str(message.to_text().unwrap()).unwrap();
        }
    }
}

fn stats(id: u64) -> Message {
    Message::text(call(id, "zor_getMarketStats", json!([])).to_string())
}

#[tokio::test]
async fn many_calls_at_once_are_all_answered() {
    let rig = Rig::start().await;
    let mut stream = open(&rig).await;
    for id in 0..200 {
        stream.feed(stats(id)).await.unwrap();
    }
    stream.flush().await.unwrap();
    let mut answered = Vec::new();
    for _ in 0..200 {
        answered.push(answer(&mut stream).await["id"].as_u64().unwrap());
    }
    answered.sort_unstable();
    assert_eq!(answered, (0..200).collect::<Vec<_>>());
    rig.stop().await;
}

#[tokio::test]
async fn odd_messages_do_not_end_the_connection() {
    let rig = Rig::start().await;
    let mut stream = open(&rig).await;
    for (message, code) in [
        (Message::text("garbage"), -32700),
        (Message::text(""), -32700),
        (Message::text("[]"), -32600),
        (Message::text("{}"), -32600),
        (Message::binary(b"\xff".to_vec()), -32700),
        (Message::text(call(1, "zor_nothing", json!([])).to_string()), -32601),
        (Message::text(call(1, "zor_getOpenTasks", json!([])).to_string()), -32001),
    ] {
        stream.send(message.clone()).await.unwrap();
        assert_eq!(answer(&mut stream).await["error"]["code"], code, "{message:?}");
    }
    stream
        .send(Message::text(json!({ "jsonrpc": "2.0", "method": "zor_getMarketStats" }).to_string()))
        .await
        .unwrap();
    stream.send(stats(9)).await.unwrap();
    assert_eq!(answer(&mut stream).await["id"], 9, "the notification is not answered");
    stream.send(Message::binary(stats(10).into_data())).await.unwrap();
    assert_eq!(answer(&mut stream).await["id"], 10, "bytes are as good as text");
    rig.stop().await;
}

#[tokio::test]
async fn a_message_that_is_too_large_ends_it() {
    let rig = Rig::start().await;
    let mut stream = open(&rig).await;
    stream.send(Message::text("x".repeat(300_000))).await.unwrap();
    let error = answer(&mut stream).await;
    assert_eq!((&error["error"]["code"], &error["id"]), (&json!(-32013), &Value::Null));
    let Some(Message::Close(Some(frame))) = next(&mut stream).await else { panic!("it is not closed") };
    assert_eq!(frame.code, CloseCode::Size);
    rig.stop().await;
}

#[tokio::test]
async fn the_relays_end_is_told() {
    let rig = Rig::start().await;
    let mut stream = open(&rig).await;
    stream.send(stats(1)).await.unwrap();
    answer(&mut stream).await;
    let closed = async {
        loop {
            let message = next(&mut stream).await.unwrap();
            if !message.is_ping() {
                let Message::Close(Some(frame)) = message else { panic!("{message:?}") };
                return frame.code;
            }
        }
    };
    let (code, _) = tokio::join!(closed, rig.stop());
    assert_eq!(code, CloseCode::Away);
}

#[tokio::test]
async fn a_generated_client_shares_one_connection() {
    let rig = Rig::start().await;
    let client = socket(&rig, Some(KEY)).await;
    let calls = (0..32).map(|_| client.get_market_stats());
    for stats in futures_util::future::join_all(calls).await {
        assert_eq!(stats.unwrap().tasks["open"], 0);
    }
    let document: Value = client.request("rpc.discover", jsonrpsee::rpc_params![]).await.unwrap();
    assert_eq!(document["openrpc"], "1.3.2");
    rig.stop().await;
}
