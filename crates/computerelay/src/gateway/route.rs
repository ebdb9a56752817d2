//! A request's way to a host: it waits for a free one, and goes to the next where one fails before the first byte of its answer.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use link::{RequestError, ResponseBody};
use rpc::error::ErrorCode;
use rpc::inference::{InferenceKind, MODEL_HEADER, RECEIPT_TRAILER};
use scheduler::NodeKey;
use taskmarket::Timestamp;
use tokio::sync::SemaphorePermit;
use tokio::time::{sleep, timeout, timeout_at};

use super::Gateway;
use super::ask::{Ask, Patience};
use super::breaker::Failure;
use super::choose::{NoChoice, Want};
use super::config::GatewayConfig;
use super::directory::{Lease, Suspicion};
use super::meter::{EngineError, Fault, Form, Meter};
use super::room::Content;
use super::tally::{RequestHash, hash};
use super::words;
use crate::error::ApiError;
use crate::idempotency::Whole;
use crate::keys::Caller;

/// How often a request that waits looks for a host even if it is told of none.
const LOOK: Duration = Duration::from_millis(100);
/// The longest that a host which says it is busy is left in peace, before a request that waits asks it again.
const LONGEST_LOOK: Duration = Duration::from_secs(1);
/// As much of an answer that is not a stream is held back until it is whole, in bytes: until then, another host can take over, and
/// its cost can stand in a header.
const HELD_BYTES: usize = 1 << 20;
/// As much of a stream's comments is held back until its first event, in bytes: until then, another host can take over. One whose
/// comments are more is cut off.
const HELD_COMMENTS: usize = 64 * 1024;
/// The word of a host that has no place for a request just now: it has not failed, and may be asked again.
const BUSY: &str = "busy";
/// How long clients are asked to wait where nobody can serve them, in seconds.
const RETRY_SECS: u16 = 5;

/// A request on its way.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) caller: Caller,
    pub(super) kind: InferenceKind,
    pub(super) request_id: HeaderValue,
    pub(super) ask: Ask,
    pub(super) patience: Patience,
    pub(super) at: Timestamp,
    pub(super) begun: Instant,
    /// Whether all of a streamed answer came.
    pub(super) whole: Whole,
}

impl Call {
    /// Until when the answer must be whole.
    pub(super) fn deadline(&self) -> Instant {
        self.begun + self.patience.total
    }
}

/// An answer that has begun.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) lease: Lease,
    pub(super) model: String,
    pub(super) status: StatusCode,
    pub(super) content_type: Option<HeaderValue>,
    /// What can be passed on already.
    pub(super) first: Bytes,
    pub(super) meter: Meter,
    /// The rest, unless there is none.
    pub(super) body: Option<ResponseBody>,
    pub(super) receipt: Option<HeaderValue>,
    /// Of the body that was sent.
    pub(super) request_hash: RequestHash,
    pub(super) attempts: u32,
    pub(super) queued: Duration,
    /// From when the host was asked.
    pub(super) first_byte: Duration,
}

/// What a request has met on its way.
#[derive(Debug, Default)]
struct Way {
    /// Hosts that were asked.
    asked: HashSet<NodeKey>,
    /// Those that failed it.
    tried: Vec<NodeKey>,
    /// Those that said that they are busy since it last waited.
    full: Vec<NodeKey>,
    /// How often it waited for such.
    waits: u32,
    /// How long it waited in all.
    queued: Duration,
    /// Why a host failed it last.
    last: Option<String>,
    /// The failures, by model, of which it is not known yet whose they are.
    suspicions: Vec<(String, Suspicion)>,
}

impl Way {
    /// How long to wait before looking again.
    fn pause(&self) -> Duration {
        if self.full.is_empty() {
            LOOK
        } else {
            LOOK.saturating_mul(1 << self.waits.min(8)).min(LONGEST_LOOK)
        }
    }

    /// It waited: who was busy may be so no more.
    fn waited(&mut self) {
        if !self.full.is_empty() {
            self.full.clear();
            self.waits = self.waits.saturating_add(1);
        }
    }
}

/// Why a host did not serve a request.
#[derive(Debug)]
struct Failed {
    /// In a word, of which there are few.
    word: &'static str,
    why: String,
    /// In the engine's own words, which may repeat the request: for the client alone.
    said: Option<String>,
    blame: Blame,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy)]
enum Blame {
    /// The host's.
    Host(Failure),
    /// The host's or the request's: engines answer so to requests that they cannot digest, and where they are out of order. If another
    /// host serves the request, it was the host.
    Unclear,
    Nobody,
}

impl Failed {
    fn new(word: &'static str, why: impl Into<String>, blame: Blame) -> Self {
        Self { word, why: why.into(), said: None, blame }
    }

    fn plain(word: &'static str, why: impl Into<String>) -> Self {
        Self::new(word, why, Blame::Host(Failure::Plain))
    }

    fn unasked(why: impl Into<String>) -> Self {
        Self::new("unreachable", why, Blame::Nobody)
    }

    /// For the client.
    fn told(&self) -> String {
        self.said.as_ref().map_or_else(|| self.why.clone(), |said| format!("{}: {said}", self.why))
    }
}

impl Gateway {
    /// Brings a request to a host that answers.
    pub(super) async fn open(self: Arc<Self>, call: Arc<Call>, content: Content) -> Result<Opened, ApiError> {
        let mut way = Way::default();
        let too_late = || deadline_exceeded(call.patience.total);
        while way.tried.len() < self.max_attempts() {
            let leased = timeout_at(call.deadline().into(), self.lease(&call, &mut way)).await;
            let (mut lease, model) = leased.map_err(|_| too_late())??;
            let key = lease.listing.key;
            way.asked.insert(key);
            match self.attempt(&call, &content, &lease, &model).await {
                Ok(answer) => {
                    lease.answered();
                    let served = |(asked, _): &mut (String, _)| answer.status.is_success() && *asked == model;
                    way.suspicions.extract_if(.., served).for_each(|(_, suspicion)| suspicion.confirmed());
                    if let Some(conversation) = self.conversation(&call, &model) {
                        self.affinity.note(conversation, key);
                    }
                    let Answer { status, content_type, first, meter, body, receipt, sent } = answer;
                    let first_byte = lease.begun.elapsed();
                    // From here no other host takes over: the request's body is let go as soon as it is hashed.
                    let request_hash = hash(sent, content);
                    return Ok(Opened {
                        lease,
                        model,
                        status,
                        content_type,
                        first,
                        meter,
                        body,
                        receipt,
                        request_hash,
                        attempts: u32::try_from(way.asked.len()).unwrap_or(u32::MAX),
                        queued: way.queued,
                        first_byte,
                    });
                }
                Err(failed) => {
                    let Failed { word, why, blame, .. } = &failed;
                    self.counts.failed(word);
                    tracing::info!(provider = %key.provider, node_id = %key.node_id, model, why, "a host failed an inference request");
                    match *blame {
                        Blame::Host(failure) => lease.failed(failure),
                        Blame::Unclear => way.suspicions.push((model, lease.suspected())),
                        Blame::Nobody => {}
                    }
                    if Instant::now() >= call.deadline() {
                        return Err(too_late());
                    }
                    if *word == BUSY {
                        lease.refused();
                        way.full.push(key);
                    } else {
                        way.last = Some(format!("{} {}", key.provider, failed.told()));
                        way.tried.push(key);
                    }
                }
            }
        }
        Err(no_provider(way.last.as_deref().unwrap_or_default()))
    }

    /// How many hosts may fail a request, and how many it asks that are busy before it waits.
    fn max_attempts(&self) -> usize {
        self.config.max_attempts as usize
    }

    /// Tells a key's conversations with a model apart.
    fn conversation(&self, call: &Call, model: &str) -> Option<u64> {
        use std::hash::BuildHasher as _;
        let beginning = call.ask.beginning?;
        Some(self.hasher.hash_one((&call.caller.id, model, beginning)))
    }

    /// A place at a host, as soon as there is one.
    async fn lease(&self, call: &Call, way: &mut Way) -> Result<(Lease, String), ApiError> {
        let begun = Instant::now();
        let mut place: Option<SemaphorePermit<'_>> = None;
        loop {
            // Before looking, so that what is freed meanwhile is not missed.
            let freed = call.ask.models.iter().find_map(|model| self.directory.freed(model));
            let freed = freed.as_ref().map(|freed| freed.notified());
            let (reason, model) = match self.choose(call, way) {
                Ok(found) => {
                    way.queued += begun.elapsed();
                    return Ok(found);
                }
                Err(reason) => reason,
            };
            let usual = if reason == NoChoice::Busy { self.config.queue } else { Duration::ZERO };
            let patience = call.patience.queue.unwrap_or(usual);
            let left = patience.saturating_sub(way.queued + begun.elapsed());
            let is_hopeless = matches!(reason, NoChoice::Unknown | NoChoice::WrongKind)
                || (reason == NoChoice::Failing && way.last.is_some());
            if left.is_zero() || is_hopeless {
                return Err(self.none(call, reason, &model, way.last.take()));
            }
            if place.is_none() {
                let taken = self.queue.try_acquire();
                place = Some(taken.map_err(|_| no_provider("too many requests wait for a host"))?);
            }
            let woken = async {
                match freed {
                    Some(freed) => freed.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = woken => {}
                () = sleep(way.pause().min(left)) => {}
            }
            way.waited();
        }
    }

    /// A place, or what keeps the request from the model that is nearest to being served.
    fn choose(&self, call: &Call, way: &Way) -> Result<(Lease, String), (NoChoice, String)> {
        let Way { tried, full, .. } = way;
        if full.len() >= self.max_attempts() {
            return Err((NoChoice::Busy, call.ask.models.first().cloned().unwrap_or_default()));
        }
        let mut nearest: Option<(NoChoice, &String)> = None;
        for model in &call.ask.models {
            let favourite = self.conversation(call, model).and_then(|one| self.affinity.find(one));
            let want = Want { kind: call.kind, preferences: &call.ask.preferences, tried, full, favourite };
            match self.directory.choose(model, &want) {
                Ok(lease) => return Ok((lease, model.clone())),
                Err(reason) if nearest.is_none_or(|(before, _)| reason.rank() > before.rank()) => {
                    nearest = Some((reason, model));
                }
                Err(_) => {}
            }
        }
        let (reason, model) =
            nearest.map_or((NoChoice::Unknown, String::new()), |(reason, model)| (reason, model.clone()));
        Err((reason, model))
    }

    /// Why there is nobody.
    fn none(&self, call: &Call, reason: NoChoice, asked: &str, last: Option<String>) -> ApiError {
        match (reason, last) {
            (_, Some(last)) => no_provider(&last),
            (NoChoice::Unknown, None) => self.unknown(asked),
            (NoChoice::WrongKind, None) => {
                let message = format!("model {asked:?} does not serve {}", call.kind.path());
                ApiError::new(ErrorCode::InvalidField, message).with_param("model")
            }
            (
                NoChoice::Gone | NoChoice::Excluded | NoChoice::Failing | NoChoice::Closed | NoChoice::Busy,
                None,
            ) => no_provider(&format!("model {asked:?}: {reason}")),
        }
    }

    /// There is no such model.
    pub(super) fn unknown(&self, asked: &str) -> ApiError {
        let nearest = self.directory.nearest(asked);
        let hint = if nearest.is_empty() {
            "GET /v1/models lists those that there are".to_owned()
        } else {
            format!("did you mean {}?", nearest.join(", "))
        };
        ApiError::new(ErrorCode::ModelNotFound, format!("there is no model {asked:?}; {hint}"))
            .with_param("model")
    }

    /// Asks one host, until its answer has begun.
    async fn attempt(
        &self,
        call: &Call,
        content: &Content,
        lease: &Lease,
        model: &str,
    ) -> Result<Answer, Failed> {
        let sent = call.ask.body_for(&content.body, model);
        let listing = &lease.listing;
        let own = self.config.first_byte(model);
        let model = HeaderValue::from_bytes(model.as_bytes())
            .map_err(|_| Failed::unasked("serves a model whose name cannot be sent"))?;
        let mut request = Request::post(call.kind.path())
            .body(Full::new(sent.clone()))
            .map_err(|error| Failed::unasked(format!("could not be asked: {error}")))?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(rpc::REQUEST_ID_HEADER, call.request_id.clone());
        headers.insert(MODEL_HEADER, model);
        let left = call.deadline().saturating_duration_since(Instant::now());
        let most = if call.ask.stream { own.min(left) } else { left };
        let patience = call.patience.first_byte.map_or(most, |asked| asked.min(most));
        let answered = async {
            let response = listing.link.request(request).await.map_err(unsent)?;
            begin(response, call, self.config.max_answer_bytes).await
        };
        match timeout(patience, answered).await {
            Ok(answer) => answer.map(|answer| Answer { sent, ..answer }),
            // Who is in more of a hurry than the relay says nothing of the host.
            Err(_) => {
                let is_fair = patience >= self.fair_patience(call, own);
                let blame = if is_fair { Blame::Host(Failure::Plain) } else { Blame::Nobody };
                let why = format!("sent nothing for {} ms", patience.as_millis());
                Err(Failed::new("silent", why, blame))
            }
        }
    }

    /// How long a host has been silent at least where that is its fault: of an answer that is not streamed nothing comes until it is
    /// whole, for which it has all the time that waiting for it may leave.
    fn fair_patience(&self, call: &Call, first_byte: Duration) -> Duration {
        let GatewayConfig { total, queue, .. } = self.config;
        if call.ask.stream { first_byte } else { total.saturating_sub(queue).max(first_byte) }
    }
}

/// An answer that has begun, as its host sent it.
struct Answer {
    status: StatusCode,
    content_type: Option<HeaderValue>,
    first: Bytes,
    meter: Meter,
    body: Option<ResponseBody>,
    receipt: Option<HeaderValue>,
    sent: Bytes,
}

fn unsent(error: RequestError) -> Failed {
    let was_sent = error.may_have_been_sent();
    let blame = if was_sent { Blame::Host(Failure::Plain) } else { Blame::Nobody };
    Failed::new("unreachable", format!("could not be asked: {error}"), blame)
}

/// Reads an answer's beginning: of a stream its first whole lines, of anything else all of it, or as much as is held back.
async fn begin(response: http::Response<ResponseBody>, call: &Call, max: u64) -> Result<Answer, Failed> {
    let (head, mut body) = response.into_parts();
    let status = head.status;
    if status == StatusCode::TOO_MANY_REQUESTS {
        return Err(Failed::new(BUSY, "is busy", Blame::Nobody));
    }
    // Of what a client can be told to have done wrong, these are the host's own.
    let is_own = matches!(status.as_u16(), 401 | 403 | 404 | 405 | 408);
    if is_own || !(status.is_success() || status.is_client_error()) {
        let why = format!("answered {}", status.as_u16());
        let blame = match status.as_u16() {
            // What an engine does not offer says nothing of what it does: others may go on asking for that.
            404 | 405 | 501 => Blame::Nobody,
            401 | 403 | 408 | 500 => Blame::Unclear,
            _ => Blame::Host(Failure::Plain),
        };
        return Err(Failed { said: words::read(body).await, ..Failed::new("refused", why, blame) });
    }
    let content_type = head.headers.get(CONTENT_TYPE).cloned();
    let is = |form: &[u8]| {
        content_type.as_ref().is_some_and(|given| given.as_bytes().to_ascii_lowercase().starts_with(form))
    };
    let form = if is(b"text/event-stream") { Form::Events } else { Form::Whole };
    let mut meter = Meter::new(form, call.kind, max);
    if status.is_success() && is(b"application/json") {
        meter.expect_json();
    }
    let mut held = BytesMut::new();
    let broken = |why: &dyn std::fmt::Display| Failed::plain("broken_off", format!("broke off: {why}"));
    let faulty = |fault: Fault| match fault {
        Fault::Unfinished => broken(&fault),
        Fault::TooLong(_) | Fault::LongLine | Fault::NoEvent | Fault::Malformed => {
            let why = format!("was cut off: {fault}");
            Failed::new("cut_off", why, Blame::Host(fault.failure()))
        }
    };
    let mut receipt = None;
    let answer = |first, meter, body, receipt| Answer {
        status,
        content_type: content_type.clone(),
        first,
        meter,
        body,
        receipt,
        sent: Bytes::new(),
    };
    loop {
        match body.frame().await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(piece) => {
                    let out = meter.take(piece).map_err(faulty)?;
                    is_served(&meter)?;
                    let is_first = held.is_empty();
                    if form == Form::Events && is_first && meter.has_begun() {
                        return Ok(answer(out, meter, Some(body), receipt));
                    }
                    held.extend_from_slice(&out);
                    let has_begun = match form {
                        Form::Events => meter.has_begun(),
                        Form::Whole => held.len() > HELD_BYTES,
                    };
                    if form == Form::Events && !has_begun && held.len() > HELD_COMMENTS {
                        return Err(faulty(Fault::NoEvent));
                    }
                    if has_begun {
                        return Ok(answer(held.freeze(), meter, Some(body), receipt));
                    }
                }
                Err(frame) => receipt = receipt_in(frame).or(receipt),
            },
            Some(Err(error)) => return Err(broken(&error)),
            None => {
                let rest = meter.end().map_err(faulty)?;
                is_served(&meter)?;
                held.extend_from_slice(&rest);
                meter.read_whole(&held);
                return Ok(answer(held.freeze(), meter, None, receipt));
            }
        }
    }
}

/// Whether what came of an answer serves the request: an engine whose stream begins with its failure does not, and another may.
fn is_served(meter: &Meter) -> Result<(), Failed> {
    match meter.error() {
        None | Some(EngineError::Request) => Ok(()),
        Some(EngineError::Own) => {
            let why = "said in its stream that it failed";
            let said = meter.said().map(str::to_owned);
            Err(Failed { said, ..Failed::new("refused", why, Blame::Unclear) })
        }
    }
}

/// The receipt among the trailers.
pub(super) fn receipt_in(frame: http_body::Frame<Bytes>) -> Option<HeaderValue> {
    frame.into_trailers().ok()?.remove(RECEIPT_TRAILER)
}

/// Nobody can serve a request now.
pub(super) fn no_provider(why: &str) -> ApiError {
    ApiError::new(ErrorCode::NoProviderAvailable, format!("no provider can serve this now: {why}"))
        .with_header(RETRY_AFTER, HeaderValue::from(RETRY_SECS))
}

/// A request took too long.
pub(super) fn deadline_exceeded(after: Duration) -> ApiError {
    let message = format!("the request took longer than its {} ms", after.as_millis());
    ApiError::new(ErrorCode::DeadlineExceeded, message)
}
