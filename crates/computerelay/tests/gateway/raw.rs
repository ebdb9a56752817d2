//! A host that speaks HTTP/2 frame by frame, as no library would.

use bytes::{Buf as _, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use rpc::link::{Heartbeat, Hello};
use taskmarket::Bytes32;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};
use wallet::Wallet;

use crate::engine::{hosts, offer, register};
use crate::rig::{PATIENCE, Rig, now};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of an answer 200.
pub(crate) fn head(stream: u32, content_type: &str) -> Vec<u8> {
    // In HPACK: `:status: 200`, and a literal value of the name 31, `content-type`.
    let length = u8::try_from(content_type.len()).unwrap();
    frame(HEADERS, END_HEADERS, stream, &[&[0x88, 0x0f, 0x10, length], content_type.as_bytes()].concat())
}

/// A piece of its body.
pub(crate) fn data(stream: u32, piece: &[u8]) -> Vec<u8> {
    frame(DATA, 0, stream, piece)
}

/// The stream is given up, under this code.
pub(crate) fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// The connection is given up without naming an error, and no stream was looked at.
pub(crate) fn go_away() -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[0; 8])
}

/// A host that is connected, and serves `zorai-demo` as the relay knows.
pub(crate) struct RawHost {
    pub(crate) wallet: Wallet,
    task: JoinHandle<()>,
}

impl RawHost {
    /// Connects; what it answers to a request for inference on a stream are these frames.
    pub(crate) async fn start(rig: &Rig, answer: impl Fn(u32) -> Vec<u8> + Send + 'static) -> Self {
        let models = ["zorai-demo".to_owned()];
        let before = hosts(rig, &models).await;
        let wallet = Wallet::random();
        let socket = timeout(PATIENCE, connect(rig, &wallet)).await.unwrap();
        let task = tokio::spawn(serve(socket, answer));
        let known = async {
            while hosts(rig, &models).await == before {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, known).await.unwrap();
        Self { wallet, task }
    }

    pub(crate) fn provider(&self) -> String {
        self.wallet.address().to_string()
    }
}

impl Drop for RawHost {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Socket = WebSocketStream<TcpStream>;

async fn connect(rig: &Rig, wallet: &Wallet) -> Socket {
    let url: url::Url = format!("ws://{}/v1/provider/connect", rig.addr).parse().unwrap();
    let mut socket = loop {
        let mut request = url.as_str().into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", link::SUBPROTOCOL.parse().unwrap());
        let tcp = TcpStream::connect(rig.addr).await.unwrap();
        match tokio_tungstenite::client_async(request, tcp).await {
            Ok((socket, _)) => break socket,
            // The relay takes sessions a moment after it takes requests.
            Err(tungstenite::Error::Http(answer)) if answer.status() == 503 => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    let hello: Hello = serde_json::from_str(&text(&mut socket).await).unwrap();
    let node_id = Bytes32(rand::random::<[u8; 32]>().into());
    let register = serde_json::to_string(&register(wallet, node_id, &hello, &url)).unwrap();
    socket.send(Message::text(register)).await.unwrap();
    text(&mut socket).await;
    socket
}

async fn text(socket: &mut Socket) -> String {
    socket.next().await.unwrap().unwrap().into_text().unwrap().to_string()
}

async fn serve(mut socket: Socket, answer: impl Fn(u32) -> Vec<u8>) {
    socket.send(Message::binary(frame(SETTINGS, 0, 0, &[]))).await.unwrap();
    let (mut bytes, mut is_begun) = (BytesMut::new(), false);
    while let Some(Ok(message)) = socket.next().await {
        let Message::Binary(message) = message else { continue };
        bytes.extend_from_slice(&message);
        if !is_begun && bytes.len() >= PREFACE.len() {
            bytes.advance(PREFACE.len());
            is_begun = true;
        }
        while is_begun && bytes.len() >= FRAME_HEAD {
            let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
            if bytes.len() < FRAME_HEAD + length {
                break;
            }
            let (kind, ends) = (bytes[3], bytes[4] & END_STREAM != 0);
            let stream = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
            bytes.advance(FRAME_HEAD + length);
            let frames = match (kind, ends) {
                // A request without a body asks for heartbeats.
                (HEADERS, true) => {
                    [head(stream, "application/x-ndjson"), data(stream, heartbeat().as_bytes())].concat()
                }
                (DATA, true) => answer(stream),
                _ => continue,
            };
            if socket.send(Message::binary(frames)).await.is_err() {
                return;
            }
        }
    }
}

fn heartbeat() -> String {
    let beat = Heartbeat {
        at: now(),
        busy: 0,
        slots: 4,
        free_vram_mb: Vec::new(),
        warm_models: Vec::new(),
        models: vec![offer("zorai-demo")],
        unhealthy: None,
        attempts: Vec::new(),
    };
    format!("{}\n", serde_json::to_string(&beat).unwrap())
}
