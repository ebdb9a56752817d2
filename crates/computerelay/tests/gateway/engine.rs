//! A host whose engine follows a script: it says what it serves, and answers as it is told.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use rpc::inference::{InferenceKind, MODEL_HEADER, ModelOffer, RECEIPT_TRAILER};
use rpc::link::{DeviceKind, DeviceView, Heartbeat, Hello, NodeMetadata, Register, Welcome};
use rpc::tasks::SignedMutation;
use sha2::{Digest as _, Sha256};
use taskmarket::{
    Amount, Bytes32, ContentHash, Domain, InferenceReceipt, RegisterNode, Runtime, U256, keccak256,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use wallet::Wallet;

use crate::rig::{PATIENCE, Rig, now};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What a host does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Play {
    /// It streams these pieces, and ends.
    Stream(Vec<Bytes>),
    /// It streams these pieces, and breaks off.
    Break(Vec<Bytes>),
    /// It streams these pieces, and then nothing more.
    Stall(Vec<Bytes>),
    /// It streams these pieces, and the others once it is told to play anything else.
    Held(Vec<Bytes>, Vec<Bytes>),
    /// It streams this piece again and again.
    Endless(Bytes),
    /// It answers JSON under this status.
    Json(u16, String),
    /// It answers JSON, and says that it is so long.
    Length(u64, String),
    /// It never answers.
    Hang,
    /// It answers with a header of so many bytes.
    Headers(usize),
    /// It cuts its connection.
    Cut,
}

/// Who a host is, and what it does.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) wallet: Arc<Wallet>,
    pub(crate) play: Play,
    pub(crate) offers: Vec<ModelOffer>,
    /// What it changes of its receipts before it signs them; `None` where it sends none.
    pub(crate) receipt: Option<fn(&mut InferenceReceipt)>,
}

/// A model with four slots that serves everything, at 2 for a prompt token and 3 for another, each a millionth.
pub(crate) fn offer(id: &str) -> ModelOffer {
    ModelOffer {
        id: id.to_owned(),
        engine: "script".to_owned(),
        quantization: "q4_k_m".to_owned(),
        context_tokens: Some(4096),
        slots: 4,
        busy: 0,
        kinds: InferenceKind::ALL.to_vec(),
        warm: None,
        prompt_price: Amount(U256::from(2_000_000)),
        completion_price: Amount(U256::from(3_000_000)),
    }
}

impl Script {
    pub(crate) fn new(play: Play) -> Self {
        Self {
            wallet: Arc::new(Wallet::random()),
            play,
            offers: vec![offer("zorai-demo")],
            receipt: Some(|_| {}),
        }
    }
}

/// What a host saw.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// A host that is connected, and serves as the relay knows.
pub(crate) struct Engine {
    pub(crate) wallet: Arc<Wallet>,
    pub(crate) seen: mpsc::UnboundedReceiver<Seen>,
    /// Answers that are under way.
    pub(crate) open: Arc<AtomicU32>,
    /// Bytes of endless answers that were asked for.
    pub(crate) sent: Arc<AtomicU64>,
    /// When an answer last ended or was cancelled.
    pub(crate) ended: watch::Receiver<Option<Instant>>,
    /// What it says it serves.
    pub(crate) offers: watch::Sender<Vec<ModelOffer>>,
    pub(crate) play: watch::Sender<Play>,
    task: JoinHandle<()>,
}

struct Shared {
    script: Script,
    hello: Hello,
    node_id: Bytes32,
    seen: mpsc::UnboundedSender<Seen>,
    open: Arc<AtomicU32>,
    sent: Arc<AtomicU64>,
    ended: watch::Sender<Option<Instant>>,
    offers: watch::Receiver<Vec<ModelOffer>>,
    play: watch::Receiver<Play>,
    cut: tokio_util::sync::CancellationToken,
}

/// Counts an answer for as long as it lives.
struct Under(Arc<Shared>);

impl Drop for Under {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
        self.0.ended.send_replace(Some(Instant::now()));
    }
}

impl Engine {
    /// Connects, and waits until the relay knows what it serves.
    pub(crate) async fn start(rig: &Rig, script: Script) -> Self {
        let models: Vec<_> = script.offers.iter().map(|offer| offer.id.clone()).collect();
        let before = hosts(rig, &models).await;
        let engine = timeout(PATIENCE, Self::connect(rig, script)).await.unwrap();
        let wait = async {
            while hosts(rig, &models).await == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, wait).await.unwrap();
        engine
    }

    async fn connect(rig: &Rig, script: Script) -> Self {
        let url: url::Url = format!("ws://{}/v1/provider/connect", rig.addr).parse().unwrap();
        let mut handshake = loop {
            match link::connect(&url, None, link::Config::default()).await {
                Ok(handshake) => break handshake,
                // The relay takes sessions a moment after it takes requests.
                Err(error) if error.is_retryable() => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        };
        let hello: Hello = serde_json::from_str(&handshake.recv().await.unwrap()).unwrap();
        let node_id = Bytes32(rand::random::<[u8; 32]>().into());
        let register = register(&script.wallet, node_id, &hello, &url);
        handshake.send(&serde_json::to_string(&register).unwrap()).await.unwrap();
        let _: Welcome = serde_json::from_str(&handshake.recv().await.unwrap()).unwrap();
        let (seen, seeing) = mpsc::unbounded_channel();
        let (ended, ending) = watch::channel(None);
        let (offers, offering) = watch::channel(script.offers.clone());
        let (play, playing) = watch::channel(script.play.clone());
        let (open, wallet) = (Arc::new(AtomicU32::new(0)), Arc::clone(&script.wallet));
        let sent = Arc::new(AtomicU64::new(0));
        let cut = tokio_util::sync::CancellationToken::new();
        let shared = Arc::new(Shared {
            script,
            hello,
            node_id,
            seen,
            open: Arc::clone(&open),
            sent: Arc::clone(&sent),
            ended,
            offers: offering,
            play: playing,
            cut: cut.clone(),
        });
        let task = tokio::spawn(async move {
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(shared.answer(request).await) }
            });
            let serving = handshake.serve(service, pending());
            tokio::select! {
                _ = serving => {}
                () = cut.cancelled() => {}
            }
        });
        Self { wallet, seen: seeing, open, sent, ended: ending, offers, play, task }
    }

    pub(crate) fn provider(&self) -> String {
        self.wallet.address().to_string()
    }

    /// The next request.
    pub(crate) async fn sees(&mut self) -> Seen {
        timeout(PATIENCE, self.seen.recv()).await.unwrap().unwrap()
    }

    /// Waits until no answer is under way.
    pub(crate) async fn is_idle(&mut self) {
        let open = Arc::clone(&self.open);
        let idle = self.ended.wait_for(|_| open.load(Ordering::SeqCst) == 0);
        timeout(PATIENCE, idle).await.unwrap().unwrap();
    }

    /// Cuts the connection without a word.
    pub(crate) async fn cut(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// How many hosts serve each of these.
pub(crate) async fn hosts(rig: &Rig, models: &[String]) -> Vec<u64> {
    let (_, list) = rig.get("/v1/models").await;
    let of = |id: &String| {
        let mut found = list["data"].as_array().unwrap().iter().filter(|model| model["id"] == id.as_str());
        found.next().map_or(0, |model| model["hosts"].as_u64().unwrap())
    };
    models.iter().map(of).collect()
}

pub(crate) fn register(wallet: &Wallet, node_id: Bytes32, hello: &Hello, url: &url::Url) -> Register {
    let metadata = NodeMetadata {
        agent_version: "0.0.0".to_owned(),
        node_version: "0.0.0".to_owned(),
        platform: "linux/x86_64".to_owned(),
        devices: vec![DeviceView { kind: DeviceKind::Cpu, name: "CPU".to_owned(), vram_mb: 0, uuid: None }],
        runtimes: vec![Runtime::Wasm],
        slots: 4,
    };
    let metadata = serde_json::to_string(&metadata).unwrap();
    let registration = RegisterNode {
        provider: wallet.address(),
        node_id,
        relay_id: hello.relay_id.clone(),
        relay_url: url.to_string(),
        session_id: hello.session_id.clone(),
        nonce: hello.nonce,
        timestamp: now(),
        metadata_hash: Bytes32(keccak256(metadata.as_bytes())),
    };
    let signed = wallet.sign(&registration, &Domain::UNSETTLED).unwrap();
    Register {
        registration: signed.message,
        metadata,
        signature: signed.signature,
        attempts: vec![],
        unacked_proofs: vec![],
    }
}

impl Shared {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() == "/heartbeat" {
            return Response::new(self.heartbeat());
        }
        self.open.fetch_add(1, Ordering::SeqCst);
        let under = Under(Arc::clone(&self));
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let seen =
            Seen { path: head.uri.path().to_owned(), headers: head.headers.clone(), body: body.clone() };
        let _ = self.seen.send(seen);
        let play = self.play.borrow().clone();
        let receipt = |pieces: &[Bytes]| self.receipt(&head.headers, &body, pieces);
        let broken = || Err(std::io::Error::other("broken off"));
        match play {
            Play::Stream(pieces) => {
                let trailers = receipt(&pieces).map(|trailers| Ok(Frame::trailers(trailers)));
                let frames = pieces.into_iter().map(|piece| Ok(Frame::data(piece))).chain(trailers);
                events(keep(stream::iter(frames), under))
            }
            Play::Break(pieces) => {
                let frames = pieces.into_iter().map(|piece| Ok(Frame::data(piece)));
                // What was sent before is on its way before it breaks.
                let last = stream::once(async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    broken()
                });
                events(keep(stream::iter(frames).chain(last), under))
            }
            Play::Stall(pieces) => {
                let frames = stream::iter(pieces).map(|piece| Ok(Frame::data(piece)));
                events(keep(frames.chain(stream::pending()), under))
            }
            Play::Held(pieces, rest) => {
                let mut play = self.play.clone();
                play.mark_unchanged();
                let trailers = receipt(&[pieces.clone(), rest.clone()].concat());
                let frames = stream::iter(pieces).map(|piece| Ok(Frame::data(piece)));
                let held = stream::once(async move {
                    let _ = play.changed().await;
                    let rest = rest.into_iter().map(|piece| Ok(Frame::data(piece)));
                    stream::iter(rest.chain(trailers.map(|trailers| Ok(Frame::trailers(trailers)))))
                });
                events(keep(frames.chain(held.flatten()), under))
            }
            Play::Endless(piece) => {
                let sent = Arc::clone(&self.sent);
                let frames = stream::repeat_with(move || {
                    sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
                    Ok(Frame::data(piece.clone()))
                });
                events(keep(frames, under))
            }
            Play::Json(status, text) => {
                let piece = Bytes::from(text);
                let trailers = receipt(std::slice::from_ref(&piece));
                let frames =
                    [Ok(Frame::data(piece))].into_iter().chain(trailers.map(|one| Ok(Frame::trailers(one))));
                let mut response = json(keep(stream::iter(frames), under));
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                response
            }
            Play::Length(length, text) => {
                let mut response = json(keep(stream::iter([Ok(Frame::data(text.into()))]), under));
                response.headers_mut().insert("content-length", length.into());
                response
            }
            Play::Hang => pending().await,
            Play::Headers(bytes) => {
                let mut response =
                    Response::new(Full::default().map_err(|never| match never {}).boxed_unsync());
                for number in 0..bytes / 4096 {
                    let name = HeaderName::try_from(format!("x-{number}")).unwrap();
                    response.headers_mut().insert(name, HeaderValue::from_str(&"x".repeat(4096)).unwrap());
                }
                response
            }
            Play::Cut => {
                self.cut.cancel();
                pending().await
            }
        }
    }

    /// What the agent says of an answer.
    fn receipt(&self, headers: &HeaderMap, body: &[u8], pieces: &[Bytes]) -> Option<HeaderMap> {
        let hash = |bytes: &[u8]| ContentHash(<[u8; 32]>::from(Sha256::digest(bytes)).into());
        let text = |name: &str| headers[name].to_str().unwrap().to_owned();
        let mut receipt = InferenceReceipt {
            request_id: text("x-request-id"),
            provider: self.script.wallet.address(),
            node_id: self.node_id,
            relay_id: self.hello.relay_id.clone(),
            request_hash: hash(body),
            response_hash: hash(&pieces.concat()),
            model: text(MODEL_HEADER),
            engine: "script".to_owned(),
            quantization: String::new(),
            prompt_tokens: 7,
            completion_tokens: 9,
            started_at: now(),
            finished_at: now(),
        };
        self.script.receipt?(&mut receipt);
        let signed = self.script.wallet.sign(&receipt, &Domain::UNSETTLED);
        let signed = SignedMutation::from(signed.unwrap());
        let value = serde_json::to_string(&signed).unwrap().parse().unwrap();
        Some(HeaderMap::from_iter([(HeaderName::from_static(RECEIPT_TRAILER), value)]))
    }

    fn heartbeat(&self) -> Body {
        let offers = self.offers.clone();
        let lines = stream::unfold((offers, true), |(mut offers, is_first)| async move {
            if !is_first {
                // At once where something changed, and often enough anyway.
                let _ = timeout(Duration::from_millis(200), offers.changed()).await;
            }
            let beat = Heartbeat {
                at: now(),
                busy: 0,
                slots: 4,
                free_vram_mb: Vec::new(),
                warm_models: Vec::new(),
                models: offers.borrow_and_update().clone(),
                unhealthy: None,
                attempts: Vec::new(),
            };
            let line = format!("{}\n", serde_json::to_string(&beat).unwrap());
            Some((Ok(Frame::data(Bytes::from(line))), (offers, false)))
        });
        StreamBody::new(lines).boxed_unsync()
    }
}

type Frames = Result<Frame<Bytes>, std::io::Error>;

/// A body that counts as under way until it is dropped.
fn keep(frames: impl stream::Stream<Item = Frames> + Send + 'static, under: Under) -> Body {
    let held = frames.map(move |frame| {
        let _ = &under;
        frame
    });
    StreamBody::new(held).boxed_unsync()
}

fn events(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("text/event-stream; charset=utf-8"));
    response
}

fn json(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response
}

/// A stream of chat chunks: these words, a usage block if asked for, and the end.
pub(crate) fn chat(words: &[&str], with_usage: bool) -> Vec<Bytes> {
    let mut pieces: Vec<Bytes> = words.iter().map(|word| delta(word)).collect();
    if with_usage {
        pieces.push(
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":9,\"total_tokens\":16}}\n\n".into(),
        );
    }
    pieces.push("data: [DONE]\n\n".into());
    pieces
}

/// One chat chunk.
pub(crate) fn delta(word: &str) -> Bytes {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{word}\"}}}}]}}\n\n").into()
}

/// A chat completion that is not streamed.
pub(crate) const COMPLETION: &str = r#"{"id":"c-1","object":"chat.completion","choices":[{"message":{"role":"assistant","content":"hi"}}],"usage":{"prompt_tokens":7,"completion_tokens":9},"odd":[1, 2]}"#;
