//! What a request comes to: however its answer ends, its tokens are counted, its host is judged, and a record of it is kept.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use rpc::inference::{Outcome, ReceiptView};
use sha2::{Digest as _, Sha256};
use taskmarket::{Amount, U256};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::task::TaskTracker;

use super::Gateway;
use super::breaker::Failure;
use super::directory::Lease;
use super::meter::{Count, EngineError, Meter};
use super::records::Record;
use super::room::Content;
use super::route::{Call, Opened};

/// Bodies that are larger are hashed on a thread of their own, in bytes.
const LARGE_BODY_BYTES: usize = 64 * 1024;
/// What prices are for, in tokens.
const MILLION: u64 = 1_000_000;

/// See the module. Dropped before it was finished, the client left.
#[derive(Debug)]
pub(super) struct Tally {
    gateway: Arc<Gateway>,
    call: Arc<Call>,
    pub(super) lease: Lease,
    model: String,
    status: StatusCode,
    pub(super) meter: Meter,
    pub(super) receipt: Option<HeaderValue>,
    request_hash: RequestHash,
    attempts: u32,
    first_byte: Duration,
    is_finished: bool,
}

/// SHA-256 of a request's body, which takes a while where that is large.
#[derive(Debug)]
pub(super) enum RequestHash {
    Known([u8; 32]),
    Pending(JoinHandle<[u8; 32]>),
    /// The record has it.
    Taken,
}

impl Tally {
    /// Takes what of an answer is to be tallied; the rest is what is to be passed on.
    pub(super) fn of(gateway: &Arc<Gateway>, call: &Arc<Call>, opened: Opened) -> (Self, Rest) {
        let Opened { lease, model, status, meter, receipt, request_hash, attempts, first_byte, .. } = opened;
        let rest = Rest { first: opened.first, body: opened.body };
        let (gateway, call) = (Arc::clone(gateway), Arc::clone(call));
        let tally = Self {
            gateway,
            call,
            lease,
            model,
            status,
            meter,
            receipt,
            request_hash,
            attempts,
            first_byte,
            is_finished: false,
        };
        (tally, rest)
    }

    /// The request as it came.
    pub(super) fn call(&self) -> &Call {
        &self.call
    }

    /// What was used, and what that costs.
    pub(super) fn cost(&self) -> (Count, Amount) {
        let count = self.meter.count();
        let offer = &self.lease.listing.offer;
        let cost = cost((count.prompt, offer.prompt_price), (count.completion, offer.completion_price));
        (count, cost)
    }

    /// The answer failed by its host's fault.
    pub(super) fn failed(&mut self, failure: Failure) {
        self.lease.failed(failure);
        self.finish(Outcome::Failed);
    }

    /// All of the answer came: it is served, unless its engine said in it what kept it from going on.
    pub(super) fn completed(&mut self) {
        match self.meter.error() {
            None => {}
            Some(EngineError::Own) => return self.failed(Failure::Plain),
            Some(EngineError::Request) => return self.finish(Outcome::Failed),
        }
        self.lease.succeeded();
        let count = self.meter.count();
        if self.status.is_success() {
            let total = self.lease.begun.elapsed();
            self.lease.listing.load.served(self.first_byte, total, count.completion);
        }
        self.finish(Outcome::Completed);
    }

    /// The answer ends so, and the host is not judged by it.
    pub(super) fn finish(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.is_finished, true) || !self.status.is_success() {
            return;
        }
        let (count, cost) = self.cost();
        // An answer that broke off costs nobody anything: its provider signed nothing for it.
        let cost = if outcome == Outcome::Failed { Amount::ZERO } else { cost };
        self.gateway.counts.served(&self.model, self.call.kind, outcome, count, self.first_byte);
        self.gateway.charge(&self.call.caller, count.prompt.saturating_add(count.completion));
        let listing = &self.lease.listing;
        let view = ReceiptView {
            request_id: self.call.request_id.to_str().unwrap_or_default().to_owned(),
            at: self.call.at,
            kind: self.call.kind,
            model: std::mem::take(&mut self.model),
            provider: listing.key.provider,
            node_id: listing.key.node_id,
            outcome,
            attempts: self.attempts,
            first_byte_ms: millis(self.first_byte),
            total_ms: millis(self.lease.begun.elapsed()),
            prompt_tokens: count.prompt,
            completion_tokens: count.completion,
            usage_source: count.source,
            cost,
            prompt_price: Some(listing.offer.prompt_price),
            completion_price: Some(listing.offer.completion_price),
            receipt: None,
            fault: None,
        };
        self.gateway.records.keep(Record {
            owner: self.call.caller.id.clone(),
            view,
            receipt: self.receipt.take().map(|receipt| receipt.as_bytes().to_vec()),
            relay_id: Arc::clone(&self.gateway.relay_id),
            request_hash: std::mem::replace(&mut self.request_hash, RequestHash::Taken),
            response_hash: self.meter.hash(),
        });
    }

    /// Answers that only wait for their receipts.
    pub(super) fn settling(&self) -> &TaskTracker {
        &self.gateway.settling
    }

    /// How long the relay itself lets a host pause.
    pub(super) fn relays_patience(&self) -> Duration {
        self.gateway.config.between_tokens
    }

    /// Until when the answer must be whole.
    pub(super) fn deadline(&self) -> Instant {
        self.call.deadline()
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.finish(Outcome::Cancelled);
    }
}

/// What so many tokens in and out cost at these prices for a million, rounded up.
pub(super) fn cost(prompt: (u64, Amount), completion: (u64, Amount)) -> Amount {
    let part = |(tokens, price): (u64, Amount)| price.0.saturating_mul(U256::from(tokens));
    Amount(part(prompt).saturating_add(part(completion)).div_ceil(U256::from(MILLION)))
}

/// What of an answer is to be passed on.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) first: Bytes,
    pub(super) body: Option<link::ResponseBody>,
}

/// Hashes what was sent, and lets it and what came go.
pub(super) fn hash(sent: Bytes, content: Content) -> RequestHash {
    let digest = |body: &Bytes| -> [u8; 32] { Sha256::digest(body).into() };
    if sent.len() <= LARGE_BODY_BYTES {
        return RequestHash::Known(digest(&sent));
    }
    RequestHash::Pending(spawn_blocking(move || {
        let hash = digest(&sent);
        drop((sent, content));
        hash
    }))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
