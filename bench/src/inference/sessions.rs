//! What providers' sessions cost a relay in memory: real sessions with TLS, registered, reporting, and asked for answers.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use rpc::inference::{InferenceKind, ModelOffer};
use rpc::link::{DeviceKind, DeviceView, Heartbeat, Hello, NodeMetadata, Register, Welcome};
use rustls::ClientConfig;
use taskmarket::{Amount, B256, Bytes32, Domain, RegisterNode, Runtime, Timestamp, U256, keccak256};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use url::Url;
use wallet::Wallet;

use super::chains::{RELAY_ID, trusting};
use super::child::{self, Target};
use super::load::NAME;
use super::upstream::MODEL;

/// Hosts that connect at the same time.
const DIALLING: usize = 32;
/// How often a host that was turned away tries again.
const RETRIES: usize = 50;
/// The pause before that.
const PAUSE: Duration = Duration::from_millis(200);
/// What each answers: as short as it can be.
const ANSWER: &[u8] = br#"{"choices":[{"message":{"role":"assistant","content":"hi"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#;

/// See the module.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Hosts {
    #[command(flatten)]
    pub(super) target: Target,
    /// How many.
    #[arg(long)]
    pub(super) hosts: usize,
}

impl Hosts {
    /// Connects, says so, and serves until nobody holds the other end of standard input any more.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let certificate = self.target.certificate.as_deref().context("sessions are measured with TLS")?;
        let tls = trusting(certificate)?;
        let url = format!("wss://{NAME}:{}{}", self.target.address.port(), rpc::PROVIDER_CONNECT_PATH);
        let url = Arc::new(Url::parse(&url)?);
        let wallet = Arc::new(Wallet::random());
        let places = Arc::new(Semaphore::new(DIALLING));
        let mut dialling = JoinSet::new();
        for number in 0..self.hosts {
            let (tls, url, wallet) = (Arc::clone(&tls), Arc::clone(&url), Arc::clone(&wallet));
            let places = Arc::clone(&places);
            dialling.spawn(async move {
                let _place = places.acquire().await?;
                host(number, &url, &tls, &wallet).await
            });
        }
        let mut serving = JoinSet::new();
        while let Some(host) = dialling.join_next().await {
            let (handshake, heartbeat) = host??;
            let service = service_fn(move |request| answer(request, heartbeat));
            serving.spawn(handshake.serve(service, pending()));
        }
        child::say(&"ready")?;
        tokio::select! {
            () = child::orphaned() => Ok(()),
            Some(ended) = serving.join_next() => anyhow::bail!("a session ended: {ended:?}"),
        }
    }
}

/// One host's connection, and how often the relay wants to hear of it.
async fn host(
    number: usize,
    url: &Url,
    tls: &Arc<ClientConfig>,
    wallet: &Wallet,
) -> anyhow::Result<(link::Handshake, Duration)> {
    let mut tries = 0;
    let mut handshake = loop {
        match link::connect(url, Some(Arc::clone(tls)), link::Config::default()).await {
            Ok(handshake) => break handshake,
            Err(error) if error.is_retryable() && tries < RETRIES => {
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    let hello: Hello = serde_json::from_str(&handshake.recv().await?)?;
    let register = register(number, wallet, &hello, url)?;
    handshake.send(&serde_json::to_string(&register)?).await?;
    let welcome: Welcome = serde_json::from_str(&handshake.recv().await?).context("not welcome")?;
    Ok((handshake, Duration::from_secs(welcome.heartbeat_secs)))
}

fn register(number: usize, wallet: &Wallet, hello: &Hello, url: &Url) -> anyhow::Result<Register> {
    let cpu = DeviceView { kind: DeviceKind::Cpu, name: "CPU".to_owned(), vram_mb: 0, uuid: None };
    let metadata = serde_json::to_string(&NodeMetadata {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        node_version: env!("CARGO_PKG_VERSION").to_owned(),
        platform: "linux-x86_64".to_owned(),
        devices: vec![cpu],
        runtimes: vec![Runtime::Wasm],
        slots: 1,
    })?;
    let registration = RegisterNode {
        provider: wallet.address(),
        node_id: Bytes32(B256::from(U256::from(number + 1))),
        relay_id: RELAY_ID.to_owned(),
        relay_url: url.to_string(),
        session_id: hello.session_id.clone(),
        nonce: hello.nonce,
        timestamp: now(),
        metadata_hash: Bytes32(keccak256(metadata.as_bytes())),
    };
    let signed = wallet.sign(&registration, &Domain::UNSETTLED)?;
    Ok(Register {
        registration: signed.message,
        metadata,
        signature: signed.signature,
        attempts: Vec::new(),
        unacked_proofs: Vec::new(),
    })
}

async fn answer(
    request: Request<Incoming>,
    heartbeat: Duration,
) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, hyper::Error> {
    if request.uri().path() == "/heartbeat" {
        let beats = stream::unfold(true, move |is_first| async move {
            if !is_first {
                tokio::time::sleep(heartbeat).await;
            }
            let line = serde_json::to_string(&beat()).ok()?;
            Some((Ok(Frame::data(Bytes::from(line + "\n"))), false))
        });
        return Ok(Response::new(StreamBody::new(beats).boxed_unsync()));
    }
    request.into_body().collect().await?;
    let mut response = Response::new(Full::new(Bytes::from_static(ANSWER)).boxed_unsync());
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    Ok(response)
}

fn beat() -> Heartbeat {
    let offer = ModelOffer {
        id: MODEL.to_owned(),
        engine: "bench".to_owned(),
        quantization: String::new(),
        context_tokens: None,
        slots: 1,
        busy: 0,
        kinds: vec![InferenceKind::Chat],
        warm: None,
        prompt_price: Amount(U256::ZERO),
        completion_price: Amount(U256::ZERO),
    };
    Heartbeat {
        at: now(),
        busy: 0,
        slots: 1,
        free_vram_mb: Vec::new(),
        warm_models: Vec::new(),
        models: vec![offer],
        unhealthy: None,
        attempts: Vec::new(),
    }
}

pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(since.as_secs())
}
