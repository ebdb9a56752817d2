//! The hub: where providers' hosts connect, tasks are offered to them, and time acts.
//!
//! - [`session`] lets a host in and serves its session; [`registration`] is what it checks first; [`heartbeat`] listens to its reports.
//! - [`dispatch`] follows the market, brings tasks that wait to hosts that fit ([`offer`]), and releases what hosts gave up or lost.
//! - [`vain`] finds tasks that nobody may have any more.
//! - [`reservation`] lets providers take tasks of their own accord.
//! - [`reconcile`] compares what a host that comes back holds with what the store says.
//! - [`alive`] says that this relay lives, and ends what silent ones left open.
//! - [`timer`] lets time act on tasks.
//! - [`logs`] reads what attempts say; [`challenge`] has hosts prove what their GPUs compute.
//! - [`explain`] and [`view`] say why a task waits, and who is here.
//!
//! The [`floor`] is what all of them share, and where hosts are chosen ([`choice`]): memory only, rebuilt from the store and the sessions
//! whenever it may have missed something.

mod alive;
mod challenge;
mod choice;
mod config;
mod dispatch;
mod entries;
mod explain;
mod floor;
mod heartbeat;
mod logs;
mod node;
mod offer;
mod reconcile;
mod registration;
mod reservation;
mod scores;
mod session;
mod timer;
mod tries;
mod vain;
mod view;

use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::response::IntoResponse as _;
use http::{HeaderValue, Request, header};
use rpc::error::ErrorCode;
use rpc::relay::ProviderView;
use rpc::tasks::SignedMutation;
use scheduler::NodeKey;
use store::{StoreError, StoredTask};
use taskmarket::{
    Address, ApproveResult, Bytes32, Domain, Lease, NodeStatus, RegisterNode, ReleaseReason, Runtime, TaskId,
    TaskRecord, UpdateNodeStatus, Verified, Word,
};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use config::HubConfig;
pub(crate) use reservation::Reservation;

use crate::auth::Peer;
use crate::error::ApiError;
use crate::gateway::Directory;
use crate::market::Market;
use crate::places::Places;
use entries::CallOff;
use floor::{Backoff, Floor, keys_of};

/// Calls that tell hosts to stop an attempt, at once.
const MAX_CALLS: usize = 1024;

/// See the module.
pub(crate) struct Hub {
    market: Arc<Market>,
    config: HubConfig,
    floor: Mutex<Floor>,
    /// What models the hosts serve.
    models: Arc<Directory>,
    challenges: challenge::Challenges,
    /// Set off when tasks that wait may fit.
    wake: Notify,
    /// Places for handshakes, of all together and of each peer.
    handshakes: Arc<Semaphore>,
    peers: Places,
    /// Places for calling attempts off.
    calls: Arc<Semaphore>,
    /// The task of each connection, and of each call beside them.
    sessions: TaskTracker,
    /// Whether [`Hub::run`] has set up what sessions need.
    open: AtomicBool,
    /// Cancelled when nobody new is let in, and nothing is offered any more.
    closing: CancellationToken,
    /// Cancelled when all sessions are to end.
    stop: CancellationToken,
}

/// How long to wait before an attempt is released again that could not be.
const RELEASE_RETRY: Duration = Duration::from_secs(1);

/// Whose an attempt is to release.
enum Whose {
    /// This relay's.
    Ours,
    /// Another one's, to which its host is connected, or was within its grace.
    AnotherRelays,
    /// Nobody's: it is over.
    Over,
}

/// The hub in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HubTotals {
    /// Hosts online.
    pub(crate) providers_online: u64,
    /// Slots of all hosts online.
    pub(crate) slots: u64,
    /// Slots in use.
    pub(crate) slots_busy: u64,
    /// GPUs of all hosts online.
    pub(crate) gpus: u64,
    /// Open tasks that wait in memory for a host.
    pub(crate) waiting: u64,
    /// Offers that hosts have not answered yet.
    pub(crate) offers: u64,
    /// Attempts that are held.
    pub(crate) held: u64,
}

impl Hub {
    /// A hub over a market. It lets nobody in before it [runs](Self::run).
    pub(crate) fn new(market: Arc<Market>, config: HubConfig) -> Arc<Self> {
        let backoff = Backoff {
            failed: config.failed_backoff,
            blamed: config.refused_backoff,
            max: config.max_backoff,
        };
        let mut floor = Floor::new(backoff, config.grace);
        floor.patience.alone = config.alone.max(config.grace);
        Arc::new(Self {
            market,
            floor: Mutex::new(floor),
            models: Arc::default(),
            challenges: challenge::Challenges::new(),
            wake: Notify::new(),
            handshakes: Arc::new(Semaphore::new(config.max_handshakes)),
            peers: Places::new(config.max_handshakes_per_ip),
            calls: Arc::new(Semaphore::new(MAX_CALLS)),
            sessions: TaskTracker::new(),
            open: AtomicBool::new(false),
            closing: CancellationToken::new(),
            stop: CancellationToken::new(),
            config,
        })
    }

    /// Works until `stopping` is cancelled. Then it lets nobody in any more and stops offering; the sessions there are go on, for
    /// answers of theirs are on their way. When `leaving` is cancelled it closes all sessions so that their hosts connect again, here
    /// later or elsewhere, and waits for that, [`HubConfig::drain`] at most. Attempts that are held stay with their hosts.
    pub(crate) async fn run(self: Arc<Self>, stopping: CancellationToken, leaving: CancellationToken) {
        let stop = async {
            stopping.cancelled().await;
            self.closing.cancel();
            leaving.cancelled().await;
            self.stop.cancel();
            self.sessions.close();
            if timeout(self.config.drain, self.sessions.wait()).await.is_err() {
                tracing::warn!(sessions = self.sessions.len(), "sessions did not close in time");
            }
        };
        tokio::join!(stop, timer::run(&self), dispatch::run(&self));
    }

    /// Answers `GET /v1/provider/connect`.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        mut request: Request<axum::body::Body>,
    ) -> axum::response::Response {
        let unavailable = |why| ApiError::new(ErrorCode::Unavailable, why).into_response();
        if !self.open.load(Ordering::Acquire) || self.closing.is_cancelled() {
            return unavailable("this relay is starting or stopping");
        }
        if self.floor().places() >= self.config.max_sessions {
            return unavailable("this relay has no room for more sessions");
        }
        let peer = request.extensions().get().map(|Peer(peer)| *peer);
        let Some(place) = peer.map_or(Some(None), |peer| self.peers.take(peer).map(Some)) else {
            return unavailable("too many providers are connecting from this address at once");
        };
        let Ok(permit) = Arc::clone(&self.handshakes).try_acquire_owned() else {
            return unavailable("too many providers are connecting at once");
        };
        let permit = session::Permit { _permit: permit, _place: place };
        match link::accept(&mut request, self.config.link.clone()) {
            Ok((response, upgrade)) => {
                self.sessions.spawn(session::serve(Arc::clone(self), upgrade, permit));
                response.map(axum::body::Body::new)
            }
            Err(error) => refuse_upgrade(&error),
        }
    }

    /// The hosts that are connected, in the order of their keys: the first `limit` after this one.
    pub(crate) fn providers(&self, after: Option<NodeKey>, limit: usize) -> Vec<ProviderView> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let floor = self.floor();
        floor.nodes((after, Bound::Unbounded)).take(limit).map(|node| self.view(node)).collect()
    }

    /// The hosts of a provider that are connected.
    pub(crate) fn providers_of(&self, provider: Address) -> Vec<ProviderView> {
        self.floor().nodes(keys_of(provider)).map(|node| self.view(node)).collect()
    }

    fn view(&self, node: &node::Node) -> ProviderView {
        ProviderView {
            provider: node.live.key.provider,
            node_id: node.live.key.node_id,
            endpoint: format!("relay://{}/{}", self.config.relay_id, node.live.session_id),
            generation: node.live.generation,
            connected_at: node.live.connected_at,
            status: node.status,
            metadata: node.metadata.clone(),
            closed_for: node.closed_for(),
            busy: node.busy(),
            measured: self.challenges.of(&node.live.key),
        }
    }

    /// The runtimes that connected hosts offer.
    pub(crate) fn runtimes(&self) -> Vec<Runtime> {
        self.floor().index.totals().runtimes.into_iter().collect()
    }

    /// Whether a task is on offer to this host, here and now.
    pub(crate) fn is_on_offer(&self, task_id: TaskId, provider: Address, node_id: Bytes32) -> bool {
        self.floor().offered_to(task_id) == Some(NodeKey { provider, node_id })
    }

    /// Replaces what the host of an open session offers.
    ///
    /// # Errors
    /// The registration is not of the session that is open, is older than its last one, or its metadata does not hold; or the store
    /// fails.
    pub(crate) async fn refresh(
        &self,
        registration: &Verified<RegisterNode>,
        metadata: &str,
    ) -> Result<(), ApiError> {
        self.renew(registration, metadata)?;
        let word = registration::to_keep(registration.signed(), metadata);
        let session_id = &registration.message().session_id;
        self.market.store().update_session_metadata(session_id, &word).await?;
        Ok(())
    }

    /// The part of [`Hub::refresh`] that is done in memory.
    fn renew(&self, registration: &Verified<RegisterNode>, metadata: &str) -> Result<(), ApiError> {
        let message = registration.message();
        let no_session = |why| Err(ApiError::new(ErrorCode::NoSession, why));
        if registration.domain() != Domain::UNSETTLED {
            return Err(ApiError::new(
                ErrorCode::UnknownDomain,
                "sessions are signed for the unsettled domain",
            ));
        }
        let refused = |refusal: registration::Refusal| refusal.error;
        registration::check_time(message, self.market.now()).map_err(refused)?;
        let metadata = registration::check_metadata(registration, metadata).map_err(refused)?;
        let key = NodeKey { provider: message.provider, node_id: message.node_id };
        let mut floor = self.floor();
        let Some(node) = floor.node(&key) else { return no_session("this host has no session here") };
        let live = &node.live;
        if message.relay_id != self.config.relay_id
            || message.session_id != live.session_id
            || message.nonce != live.nonce
        {
            return no_session("the registration is of another session than the one that is open");
        }
        if message.timestamp < node.registered_at {
            return Err(ApiError::new(ErrorCode::Conflict, "a later registration was taken already")
                .with_param("timestamp"));
        }
        let generation = live.generation;
        floor.update(&key, generation, |node| {
            node.metadata = metadata;
            node.registered_at = message.timestamp;
        });
        drop(floor);
        self.wake.notify_one();
        Ok(())
    }

    /// Keeps whether a host takes work, and heeds it at once if the host is connected.
    ///
    /// # Errors
    /// The host never had a session, a later word of it was taken already, or the store fails.
    pub(crate) async fn set_status(&self, update: &Verified<UpdateNodeStatus>) -> Result<(), ApiError> {
        if update.domain() != Domain::UNSETTLED {
            return Err(ApiError::new(
                ErrorCode::UnknownDomain,
                "a host's status is signed for the unsettled domain",
            ));
        }
        let message = update.message();
        let now = self.market.now();
        if now.distance(message.issued_at) > taskmarket::CLOCK_TOLERANCE_SECS {
            let why = format!("{} is too far from the relay's clock ({now}); sign again", message.issued_at);
            return Err(ApiError::new(ErrorCode::InvalidField, why).with_param("issued_at"));
        }
        let (provider, node_id) = (message.provider, message.node_id);
        let store = self.market.store();
        self.check_known(NodeKey { provider, node_id }).await?;
        let newer = store.set_node_status(provider, node_id, message.status, message.issued_at).await?;
        // What is stored counts: another update may have come in between, and a replay says nothing new.
        let stored = store.node_status(provider, node_id).await?;
        if !newer && stored != Some(message.status) {
            return Err(ApiError::new(ErrorCode::Conflict, "a later status of this host was taken already")
                .with_param("issued_at"));
        }
        if let Some(status) = stored {
            let key = NodeKey { provider, node_id };
            self.floor().set_status(&key, status);
            self.models.set_open(key, status == NodeStatus::Online);
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Checks that a host is connected, or was: what anybody signs of hosts that never were is not kept.
    async fn check_known(&self, key: NodeKey) -> Result<(), ApiError> {
        if self.floor().node(&key).is_some() {
            return Ok(());
        }
        if self.market.store().newest_session(key.provider, key.node_id).await?.is_some() {
            return Ok(());
        }
        Err(ApiError::new(ErrorCode::NoSession, "this host never had a session here").with_param("node_id"))
    }

    /// What models the connected hosts serve.
    pub(crate) fn models(&self) -> &Arc<Directory> {
        &self.models
    }

    /// Has tasks that wait brought to hosts, as something changed that they waited for.
    pub(crate) fn look_for_work(&self) {
        self.wake.notify_one();
    }

    /// The hub in numbers.
    pub(crate) fn totals(&self) -> HubTotals {
        self.floor().totals()
    }

    /// Releases an attempt and looks at what became of the task. `false` if the store failed.
    async fn release(&self, task_id: TaskId, attempt: u32, reason: ReleaseReason) -> bool {
        match self.market.release(task_id, attempt, reason).await {
            Ok(record) if record.is_bound() && record.attempts == attempt => {
                tracing::debug!(%task_id, attempt, "the chain has bound the attempt: only it releases it");
                true
            }
            Ok(_) => {
                tracing::info!(%task_id, attempt, reason = reason.as_str(), "attempt released");
                self.look_again(task_id).await;
                true
            }
            Err(error) => {
                tracing::warn!(%task_id, attempt, %error, "attempt not released");
                false
            }
        }
    }

    /// Ends a task that fails anywhere, as providers say.
    async fn end_vain(&self, task_id: TaskId) {
        match self.market.end_unworkable(task_id).await {
            Ok(record) => {
                tracing::info!(%task_id, status = %record.status(), "task ended: it fails anywhere")
            }
            Err(error) => tracing::warn!(%task_id, %error, "task that fails anywhere not ended"),
        }
        self.look_again(task_id).await;
    }

    /// Releases an attempt whose host stayed away from here beyond its grace, unless the attempt is another relay's to release. While the
    /// store cannot be read, nobody knows, and nothing is released.
    async fn give_up(&self, task_id: TaskId, attempt: u32) {
        let again = match self.whose(task_id, attempt).await {
            Ok(Whose::Over) => {
                self.look_again(task_id).await;
                None
            }
            Ok(Whose::Ours) => {
                let is_done = self.release(task_id, attempt, ReleaseReason::SessionLost).await;
                (!is_done).then_some(RELEASE_RETRY)
            }
            Ok(Whose::AnotherRelays) => Some(self.config.grace),
            Err(error) => {
                tracing::warn!(%task_id, %error, "sessions not read");
                Some(self.config.grace.max(RELEASE_RETRY))
            }
        };
        if let Some(after) = again {
            self.floor().forsake_again(task_id, Instant::now() + after);
        }
    }

    /// Whose an attempt is to release that the floor holds. A host may just be on its way back to another relay of the same store: there it
    /// has its grace as well.
    async fn whose(&self, task_id: TaskId, attempt: u32) -> Result<Whose, StoreError> {
        let Some(holder) = self.floor().held.get(&task_id).map(|held| held.key) else {
            return Ok(Whose::Over);
        };
        let store = self.market.store();
        let Some(stored) = store.task(task_id).await? else { return Ok(Whose::Over) };
        let is_meant = |lease: &Lease| (lease.provider, lease.attempt) == (holder.provider, attempt);
        if !stored.record.lease().is_some_and(is_meant) {
            return Ok(Whose::Over);
        }
        let Some(node) = stored.node else { return Ok(Whose::Ours) };
        let session = store.newest_session(holder.provider, node).await?;
        let (now, grace) = (self.market.now(), self.config.grace.as_secs());
        let is_elsewhere = session.is_some_and(|session| {
            let is_kept = session.ended.is_none_or(|(at, _)| now < at.plus(grace));
            session.relay_id != self.config.relay_id && is_kept
        });
        Ok(if is_elsewhere { Whose::AnotherRelays } else { Whose::Ours })
    }

    /// Brings the floor up to date on a task by reading the store: for when a change may have been missed.
    pub(crate) async fn look_again(&self, task_id: TaskId) {
        match self.market.task(task_id).await {
            Ok(Some(stored)) => {
                self.absorb(&stored.record, stored.node, None);
                self.wake.notify_one();
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%task_id, %error, "task not read"),
        }
    }

    /// Has the floor follow a task, and calls off the attempt that so came to its end, if its host does not know yet.
    fn absorb(&self, record: &TaskRecord, node: Option<Bytes32>, word: Option<Word>) {
        let call_off = self.floor().absorb(record, node, word, Instant::now());
        if let Some(call_off) = call_off {
            self.call_off(call_off);
        }
    }

    /// Tells a host to stop an attempt, beside whatever else is done.
    fn call_off(&self, CallOff { task_id, attempt, live }: CallOff) {
        let Ok(permit) = Arc::clone(&self.calls).try_acquire_owned() else {
            // The host finds out by its next proof or connection.
            return tracing::warn!(%task_id, attempt, "too many calls at once; attempt not called off");
        };
        let deadline = self.config.offer_timeout;
        self.sessions.spawn(async move {
            offer::call_off(&live, task_id, attempt, deadline).await;
            drop(permit);
        });
    }

    /// Hands the requester's approval of a settled task to the host that has its last attempt, if it is connected here. Nothing hangs on it:
    /// the approval counts once it is on chain, where anybody can bring it.
    pub(crate) fn pass_approval(&self, task: &StoredTask, approval: &SignedMutation<ApproveResult>) {
        let (Some(provider), Some(node_id)) = (task.record.provider, task.node) else { return };
        let key = NodeKey { provider: provider.0, node_id };
        let Some(live) = self.floor().node(&key).map(|node| Arc::clone(&node.live)) else { return };
        let task_id = task.record.id;
        let Ok(permit) = Arc::clone(&self.calls).try_acquire_owned() else {
            return tracing::warn!(%task_id, "too many calls at once; approval not passed on");
        };
        let (approval, deadline) = (approval.clone(), self.config.offer_timeout);
        self.sessions.spawn(async move {
            offer::pass_approval(&live, &approval, deadline).await;
            drop(permit);
        });
    }

    fn floor(&self) -> MutexGuard<'_, Floor> {
        // Nothing can panic while it is held; if something did, the floor is put right by the next look at the store.
        self.floor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refuse_upgrade(error: &link::UpgradeError) -> axum::response::Response {
    let code = match error.status().as_u16() {
        426 => ErrorCode::UpgradeRequired,
        405 => ErrorCode::MethodNotAllowed,
        _ => ErrorCode::MalformedRequest,
    };
    let answer = ApiError::new(code, error.to_string());
    if code == ErrorCode::UpgradeRequired {
        answer.with_header(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")).into_response()
    } else {
        answer.into_response()
    }
}
