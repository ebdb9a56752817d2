//! The gateway: inference requests, in OpenAI's form, brought to hosts that serve the model, and their answers back.
//!
//! - [`directory`] knows which host serves what, by the heartbeats; [`choose`] picks one, [`breaker`] and [`affinity`] help it.
//! - [`ask`] reads of a request what routing needs, and nothing else of it.
//! - [`route`] brings it to a host that answers, past those that fail before their first byte; [`words`] reads what they say of it.
//! - [`answer`] passes the answer on as it comes; [`meter`] counts it, [`nesting`] tells whether it is whole, and [`tally`] draws the line
//!   below it.
//! - [`records`] keeps what was served, with the providers' receipts; [`counts`] counts it for Prometheus.
//! - [`room`] bounds what bodies take of the memory.

mod affinity;
mod answer;
mod ask;
mod breaker;
mod choose;
mod config;
mod counts;
mod directory;
mod meter;
mod nesting;
mod records;
mod room;
mod route;
mod tally;
mod words;

use std::hash::RandomState;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};
use rpc::inference::{InferenceKind, ModelView};
use store::{KeyId, Store};
use taskmarket::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{GatewayArgs, GatewayConfig, ModelDeadline};
pub(crate) use counts::{Counts, GatewayTotals};
pub(crate) use directory::Directory;
pub(crate) use room::Content;

use crate::error::ApiError;
use crate::idempotency::Whole;
use crate::keys::Caller;
use crate::limits::{Buckets, Standing};
use affinity::Affinity;
use ask::{Ask, Patience};
use directory::Totals;
use records::{Keeper, Records};
use room::Room;
use route::Call;

/// See the module.
pub(crate) struct Gateway {
    relay_id: Arc<str>,
    config: GatewayConfig,
    directory: Arc<Directory>,
    affinity: Affinity,
    /// Keeps clients from guessing which conversations fall together.
    hasher: RandomState,
    /// Places for requests that wait for a host.
    queue: Semaphore,
    room: Room,
    counts: Arc<Counts>,
    tokens: Buckets<KeyId>,
    records: Records,
    keeper: Mutex<Option<Keeper>>,
    /// Answers that are delivered and wait for their receipts.
    settling: TaskTracker,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Who asks for what.
pub(crate) struct Request {
    /// Who.
    pub(crate) caller: Caller,
    /// At which endpoint.
    pub(crate) kind: InferenceKind,
    /// The relay's id of the request.
    pub(crate) request_id: HeaderValue,
    /// The request's headers.
    pub(crate) headers: HeaderMap,
    /// Its body.
    pub(crate) content: Content,
    /// The time.
    pub(crate) at: Timestamp,
}

impl Gateway {
    /// A gateway to the hosts of a directory, whose records go into a store.
    pub(crate) fn new(
        relay_id: &str,
        config: GatewayConfig,
        directory: Arc<Directory>,
        store: Arc<dyn Store>,
    ) -> Arc<Self> {
        let (records, keeper) = records::records(store);
        Arc::new(Self {
            relay_id: relay_id.into(),
            directory,
            affinity: Affinity::default(),
            hasher: RandomState::new(),
            queue: Semaphore::new(config.max_queued),
            room: Room::new(config.max_bodies_bytes, config.max_body_bytes),
            counts: Arc::default(),
            tokens: Buckets::default(),
            records,
            keeper: Mutex::new(Some(keeper)),
            settling: TaskTracker::new(),
            config,
        })
    }

    /// The largest body of a request, in bytes.
    pub(crate) fn max_body_bytes(&self) -> usize {
        self.config.max_body_bytes
    }

    /// Takes room for a body, whose length the client may have said.
    ///
    /// # Errors
    /// 503 where there is none.
    pub(crate) async fn room(&self, declared: Option<u64>) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        let most = self.config.max_body_bytes as u64;
        self.room.take(declared.unwrap_or(most).min(most)).await
    }

    /// How long a caller's request may take in all, by its key and its headers.
    ///
    /// # Errors
    /// 400 where a header is no number.
    pub(crate) fn patience(&self, caller: &Caller, headers: &HeaderMap) -> Result<Duration, ApiError> {
        Ok(Patience::read(headers, false, &caller.deadlines, &self.config)?.total)
    }

    /// What is counted.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// All of it in numbers, as it is now.
    pub(crate) fn totals(&self) -> GatewayTotals {
        let Totals { slots, under_way, open, trying } = self.directory.totals();
        let waiting = self.config.max_queued.saturating_sub(self.queue.available_permits()) as u64;
        GatewayTotals { waiting, under_way, slots, open, trying }
    }

    /// How long records are kept.
    pub(crate) fn keep_receipts(&self) -> Duration {
        self.config.keep_receipts
    }

    /// Keeps records until `stopping` is cancelled, and then what is left of them.
    pub(crate) async fn run(self: Arc<Self>, stopping: CancellationToken) {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper {
            let settled = CancellationToken::new();
            let settling = async {
                stopping.cancelled().await;
                self.settling.close();
                self.settling.wait().await;
                settled.cancel();
            };
            tokio::join!(keeper.run(settled.clone()), settling);
        }
    }

    /// Answers a request.
    ///
    /// # Errors
    /// What is wrong with it, or why nobody can serve it.
    pub(crate) async fn serve(
        self: &Arc<Self>,
        request: Request,
    ) -> Result<axum::response::Response, ApiError> {
        let Request { caller, kind, request_id, headers, content, at } = request;
        let begun = Instant::now();
        self.check_tokens(&caller)?;
        let ask = Ask::read(&content.body)?;
        let patience = Patience::read(&headers, ask.stream, &caller.deadlines, &self.config)?;
        let is_stream = ask.stream;
        let call =
            Arc::new(Call { caller, kind, request_id, ask, patience, at, begun, whole: Whole::default() });
        let mut opening: answer::Opening = Box::pin(self.counted(Arc::clone(&call), content));
        if !is_stream {
            return Ok(answer::answer(self, &call, opening.await?));
        }
        match timeout(self.config.keep_alive, &mut opening).await {
            Ok(opened) => Ok(answer::answer(self, &call, opened?)),
            Err(_) => Ok(answer::answer_early(self, &call, opening)),
        }
    }

    /// Opens a request, and counts it where that fails.
    fn counted(
        self: &Arc<Self>,
        call: Arc<Call>,
        content: Content,
    ) -> impl Future<Output = Result<route::Opened, ApiError>> + Send + use<> {
        let (counts, opening) = (Arc::clone(&self.counts), Arc::clone(self).open(call, content));
        async move { opening.await.inspect_err(|error| counts.refused(error.code())) }
    }

    /// The models that hosts serve, by name.
    pub(crate) fn models(&self) -> Vec<ModelView> {
        self.directory.models()
    }

    /// A model that hosts serve.
    ///
    /// # Errors
    /// 404, naming the nearest ones.
    pub(crate) fn model(&self, name: &str) -> Result<ModelView, ApiError> {
        self.directory.model(name).ok_or_else(|| self.unknown(name))
    }

    /// Waits until what was served before now can be read in the store.
    pub(crate) async fn flush(&self) {
        self.records.flush().await;
    }

    /// Where a key stands with the tokens that it may use, if it has a limit.
    pub(crate) fn tokens_left(&self, caller: &Caller) -> Option<Standing> {
        let limit = caller.tokens_per_minute?;
        Some(self.tokens.peek(caller.id.clone(), limit, Instant::now()))
    }

    fn check_tokens(&self, caller: &Caller) -> Result<(), ApiError> {
        self.tokens_left(caller).map_or(Ok(()), |standing| standing.check("this API key", "use", "tokens"))
    }

    fn charge(&self, caller: &Caller, tokens: u64) {
        if let Some(limit) = caller.tokens_per_minute {
            self.tokens.charge(caller.id.clone(), limit, tokens, Instant::now());
        }
    }
}
