//! Having hosts prove what their GPUs compute: the verifier's side of [`gpu::challenge`], over a host's connection.
//!
//! A host is asked some time after it connected, while it runs nothing, and again every so often. The work begins small and
//! grows until it takes the GPU a second, so that a host without the GPU that it names is soon done with it. What is found is
//! shown with the host, in this relay's memory alone.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use gpu::challenge::{Challenge, Commitment, Terms, Verdict, Verifier};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use rpc::link::{DeviceKind, NodeMetadata};
use rpc::relay::MeasuredGpu;
use scheduler::NodeKey;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::Hub;
use super::node::Live;

/// Hosts that are challenged at once: each may hold two products of 16 MiB here.
const MAX_AT_ONCE: usize = 4;
/// The hosts whose results are kept.
const MAX_KNOWN: usize = 20_000;
/// The GPUs of one host that are challenged.
const MAX_GPUS: usize = 64;
/// How long a host may take for one answer. Hosts give up after a minute.
const PATIENCE: Duration = Duration::from_secs(75);
/// How long after a host connected it is first asked at most, and how long until a busy one is asked again; less where proofs are
/// wanted more often than that.
const PAUSE: Duration = Duration::from_secs(60);
/// Shorter work says little: the way there and back is in the time.
const ENOUGH: Duration = Duration::from_secs(1);
/// What is asked for: `n` and the number of products, more and more until it is enough. The last takes the fastest GPUs a tenth of a
/// second, which has to do.
const STEPS: [(u32, u32); 6] = [(512, 1), (512, 64), (2048, 8), (2048, 64), (2048, 512), (2048, 4096)];
/// The products that are looked at in full.
const OPENINGS: u32 = 2;

/// What was found, and whose turn it is.
#[derive(Debug)]
pub(super) struct Challenges {
    turns: Semaphore,
    known: Mutex<HashMap<NodeKey, Known>>,
}

#[derive(Debug)]
struct Known {
    at: Instant,
    gpus: Vec<MeasuredGpu>,
}

impl Challenges {
    pub(super) fn new() -> Self {
        Self { turns: Semaphore::new(MAX_AT_ONCE), known: Mutex::default() }
    }

    /// What is known of a host's GPUs.
    pub(super) fn of(&self, key: &NodeKey) -> Vec<MeasuredGpu> {
        self.known().get(key).map(|known| known.gpus.clone()).unwrap_or_default()
    }

    /// How long until a host is to be asked.
    fn wait(&self, key: &NodeKey, every: Duration) -> Duration {
        let since = self.known().get(key).map(|known| known.at.elapsed());
        let due = since.map_or(Duration::ZERO, |since| every.saturating_sub(since));
        // Hosts that connect together, after a restart say, are not asked together.
        due + PAUSE.min(every).mul_f64(rand::random())
    }

    fn note(&self, key: NodeKey, gpus: Vec<MeasuredGpu>) {
        let mut known = self.known();
        if known.len() >= MAX_KNOWN && !known.contains_key(&key) {
            let oldest = known.iter().min_by_key(|(_, known)| known.at).map(|(key, _)| *key);
            oldest.and_then(|oldest| known.remove(&oldest));
        }
        known.insert(key, Known { at: Instant::now(), gpus });
    }

    fn known(&self) -> MutexGuard<'_, HashMap<NodeKey, Known>> {
        // Nothing is ever half done with the map.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The places of the GPUs among a host's devices.
pub(super) fn gpus(metadata: &NodeMetadata) -> Vec<u32> {
    let devices = (0..).zip(&metadata.devices);
    let gpus = devices.filter(|(_, device)| device.kind == DeviceKind::Gpu).map(|(place, _)| place);
    gpus.take(MAX_GPUS).collect()
}

/// Challenges a host's GPUs for as long as its session lasts.
pub(super) async fn run(hub: &Hub, live: &Live, gpus: &[u32]) -> Infallible {
    let every = hub.config.challenge_every.filter(|_| !gpus.is_empty());
    let Some(every) = every else { return pending().await };
    loop {
        sleep(hub.challenges.wait(&live.key, every)).await;
        let Ok(_turn) = hub.challenges.turns.acquire().await else { return pending().await };
        let is_busy = hub.floor().node(&live.key).is_some_and(|node| node.busy() > 0);
        if is_busy {
            continue;
        }
        let mut measured = Vec::with_capacity(gpus.len());
        for &device in gpus {
            measured.push(measure(hub, live, device).await);
        }
        hub.challenges.note(live.key, measured);
    }
}

/// What one GPU computes.
async fn measure(hub: &Hub, live: &Live, device: u32) -> MeasuredGpu {
    let outcome = climb(live, device).await;
    let verified_at = hub.market.now();
    match outcome {
        Ok(Verdict { multiply_adds_per_second, .. }) => {
            tracing::info!(device, multiply_adds_per_second, "GPU measured");
            let multiply_adds_per_second = Some(multiply_adds_per_second);
            MeasuredGpu { device, multiply_adds_per_second, problem: None, verified_at }
        }
        Err(problem) => {
            tracing::warn!(device, problem, "GPU not proven");
            MeasuredGpu { device, multiply_adds_per_second: None, problem: Some(problem), verified_at }
        }
    }
}

/// Asks for more and more, until it takes the GPU long enough to say something.
async fn climb(live: &Live, device: u32) -> Result<Verdict, String> {
    let mut last = Err("nothing was asked".to_owned());
    for (n, products) in STEPS {
        let terms = Terms { n, products, openings: OPENINGS.min(products), ..Terms::default() };
        let verdict = prove(live, device, &terms).await?;
        let is_enough = Duration::from_micros(verdict.elapsed_us) >= ENOUGH;
        last = Ok(verdict);
        if is_enough {
            break;
        }
    }
    last
}

/// One challenge, from its question to its verdict.
async fn prove(live: &Live, device: u32, terms: &Terms) -> Result<Verdict, String> {
    let (verifier, challenge) = Verifier::start(terms, rand::random()).map_err(|error| error.to_string())?;
    let asked = Instant::now();
    // A digest is 64 digits, two quotes and a comma.
    let most = 128 * (challenge.products as usize + 1);
    let answer = ask(live, &format!("/challenge?device={device}"), &challenge, most).await?;
    let elapsed = asked.elapsed();
    let commitment: Commitment =
        serde_json::from_slice(&answer).map_err(|_| "its answer cannot be read".to_owned())?;
    let mut audit = verifier.commitment(commitment, elapsed).map_err(|error| error.to_string())?;
    let wanted: Vec<u32> = audit.wanted().collect();
    for index in wanted {
        let path = format!("/challenge/products/{index}?device={device}");
        let product = ask(live, &path, &challenge, challenge.product_bytes()).await?;
        let checked = tokio::task::spawn_blocking(move || {
            let verdict = audit.check(&product);
            (audit, verdict)
        });
        let (same, verdict) = checked.await.map_err(|error| error.to_string())?;
        audit = same;
        if let Some(verdict) = verdict.map_err(|error| error.to_string())? {
            return Ok(verdict);
        }
    }
    Err("nothing was to be opened".to_owned())
}

/// Posts the challenge to the host; at most so many bytes come back.
async fn ask(live: &Live, path: &str, challenge: &Challenge, most: usize) -> Result<Bytes, String> {
    let body = serde_json::to_vec(challenge).map_err(|error| error.to_string())?;
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    let request = request.body(Full::new(Bytes::from(body))).map_err(|error| error.to_string())?;
    let answer = async {
        let response = live.link.request(request).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        let is_ok = head.status == StatusCode::OK;
        let body = Limited::new(body, most.max(16 * 1024)).collect().await;
        let body = body.map_err(|error| format!("its answer broke off: {error}"))?.to_bytes();
        if is_ok {
            Ok(body)
        } else {
            Err(format!("it answered {}: {}", head.status.as_u16(), super::offer::reason(&body)))
        }
    };
    timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(format!("no answer in {PATIENCE:?}")))
}
