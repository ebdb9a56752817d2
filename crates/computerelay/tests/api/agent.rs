//! A provider's host as far as the relay can see it: it registers, accepts every offer and reports what it is told to.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use rpc::link::{
    Assignment, DeviceKind, DeviceView, Heartbeat, HeldAttempt, Hello, NodeMetadata, Register, Welcome,
};
use rpc::tasks::SignedMutation;
use taskmarket::{AcceptTask, B256, Bytes32, Domain, RegisterNode, Runtime, keccak256, latest_lease};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wallet::Wallet;

use crate::rig::{PATIENCE, Rig, now};

pub(crate) struct Agent {
    pub(crate) wallet: Arc<Wallet>,
    /// What the relay offered and this accepted.
    pub(crate) taken: mpsc::Receiver<Assignment>,
    pub(crate) hello: Hello,
    /// What this host reports next.
    pub(crate) reports: mpsc::Sender<Heartbeat>,
    _stop: tokio_util::sync::DropGuard,
}

pub(crate) fn metadata() -> NodeMetadata {
    NodeMetadata {
        agent_version: "0.0.0".to_owned(),
        node_version: "0.0.0".to_owned(),
        platform: "linux/x86_64".to_owned(),
        devices: vec![DeviceView { kind: DeviceKind::Cpu, name: "CPU".to_owned(), vram_mb: 0, uuid: None }],
        runtimes: vec![Runtime::Wasm],
        slots: 4,
    }
}

pub(crate) fn registration(wallet: &Wallet, rig: &Rig, hello: &Hello, metadata: &str) -> RegisterNode {
    RegisterNode {
        provider: wallet.address(),
        node_id: Bytes32(B256::repeat_byte(7)),
        relay_id: hello.relay_id.clone(),
        relay_url: format!("ws://{}/v1/provider/connect", rig.addr),
        session_id: hello.session_id.clone(),
        nonce: hello.nonce,
        timestamp: now(),
        metadata_hash: Bytes32(keccak256(metadata.as_bytes())),
    }
}

impl Agent {
    pub(crate) async fn connect(rig: &Rig) -> Self {
        Self::connect_as(rig, Arc::new(Wallet::random()), Vec::new()).await
    }

    /// Connects a provider's host, which holds these attempts.
    pub(crate) async fn connect_as(rig: &Rig, wallet: Arc<Wallet>, attempts: Vec<HeldAttempt>) -> Self {
        tokio::time::timeout(PATIENCE, Self::open(rig, wallet, attempts)).await.unwrap()
    }

    async fn open(rig: &Rig, wallet: Arc<Wallet>, attempts: Vec<HeldAttempt>) -> Self {
        let url = format!("ws://{}/v1/provider/connect", rig.addr).parse().unwrap();
        let mut handshake = loop {
            match link::connect(&url, None, link::Config::default()).await {
                Ok(handshake) => break handshake,
                // The relay takes sessions a moment after it takes requests.
                Err(error) if error.is_retryable() => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        };
        let hello: Hello = serde_json::from_str(&handshake.recv().await.unwrap()).unwrap();
        let metadata = serde_json::to_string(&metadata()).unwrap();
        let message = registration(&wallet, rig, &hello, &metadata);
        let signed = wallet.sign(&message, &Domain::UNSETTLED).unwrap();
        let register = Register {
            registration: signed.message,
            metadata,
            signature: signed.signature,
            attempts: attempts.clone(),
            unacked_proofs: Vec::new(),
        };
        handshake.send(&serde_json::to_string(&register).unwrap()).await.unwrap();
        let _: Welcome = serde_json::from_str(&handshake.recv().await.unwrap()).unwrap();

        let (offers, taken) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let (reports, to_report) = mpsc::channel(16);
        reports.send(report(attempts)).await.unwrap();
        let host =
            Arc::new(Host { wallet: Arc::clone(&wallet), offers, to_report: Mutex::new(Some(to_report)) });
        let service = hyper::service::service_fn(move |request| serve(Arc::clone(&host), request));
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(handshake.serve(service, stopped));
        Self { wallet, taken, hello, reports, _stop: stop.drop_guard() }
    }

    /// The next assignment that this took.
    pub(crate) async fn next(&mut self) -> Assignment {
        tokio::time::timeout(PATIENCE, self.taken.recv()).await.unwrap().unwrap()
    }
}

type Answer = http::Response<BoxBody<Bytes, Infallible>>;

struct Host {
    wallet: Arc<Wallet>,
    offers: mpsc::Sender<Assignment>,
    to_report: Mutex<Option<mpsc::Receiver<Heartbeat>>>,
}

async fn serve(host: Arc<Host>, request: http::Request<Incoming>) -> Result<Answer, hyper::Error> {
    match (request.method().as_str(), request.uri().path()) {
        ("GET", "/heartbeat") => {
            let reports = host.to_report.lock().unwrap().take().expect("the relay listens once");
            Ok(answer(200, BodyExt::boxed(StreamBody::new(lines(reports)))))
        }
        ("POST", "/tasks") => {
            let offer: Assignment = serde_json::from_slice(&request.collect().await?.to_bytes()).unwrap();
            let message = AcceptTask {
                task_id: offer.task_id,
                provider: host.wallet.address(),
                attempt: offer.attempt,
                lease_until: latest_lease(&offer.task, now()),
            };
            let accept = SignedMutation::from(host.wallet.sign(&message, &Domain::UNSETTLED).unwrap());
            host.offers.send(offer).await.unwrap();
            Ok(answer(202, full(serde_json::to_vec(&accept).unwrap())))
        }
        _ => Ok(answer(204, full(Vec::new()))),
    }
}

fn answer(status: u16, body: BoxBody<Bytes, Infallible>) -> Answer {
    let mut response = http::Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
    response
}

fn full(bytes: Vec<u8>) -> BoxBody<Bytes, Infallible> {
    Full::new(Bytes::from(bytes)).boxed()
}

/// A report of a host that holds these attempts.
pub(crate) fn report(attempts: Vec<HeldAttempt>) -> Heartbeat {
    Heartbeat {
        at: now(),
        busy: u32::try_from(attempts.len()).unwrap(),
        slots: 4,
        free_vram_mb: Vec::new(),
        warm_models: Vec::new(),
        models: Vec::new(),
        unhealthy: None,
        attempts,
    }
}

fn lines(
    reports: mpsc::Receiver<Heartbeat>,
) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync {
    futures_util::stream::unfold(reports, async |mut reports| {
        let line = serde_json::to_string(&reports.recv().await?).unwrap() + "\n";
        Some((Ok(Frame::data(Bytes::from(line))), reports))
    })
}
