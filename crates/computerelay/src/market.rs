//! The market: where tasks change. It asks `taskmarket` what may happen, commits that, and tells those who follow.
//!
//! Time acts first: whoever asks for a change finds the task as it is now, not as it was when somebody last looked.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use artifact::{Digest, ReferenceKind};
use rpc::tasks::{Entry, EventView, Progress};
use store::{Commit, KeyId, Placement, Published, Store, StoredEvent, StoredTask};
use taskmarket::{
    Bytes32, ChainFact, ComputeProof, ContentHash, Domain, Event, Mutation, Recorded, Reference, Rejection,
    ReleaseReason, Status, Task, TaskId, TaskRecord, Timestamp, Verified,
};
use tokio::sync::{broadcast, watch};

use crate::artifacts::Artifacts;
use crate::auth::AttemptTokens;
use crate::chain::ChainView;
use crate::error::MarketError;
use crate::metrics::Commits;

/// How often a change is decided again because somebody else's came first. Each round is lost only to a change that
/// succeeded, so a task would have to change this often within milliseconds.
const MAX_ROUNDS: usize = 16;

/// Changes and reports that a slow follower may be behind by before it has to read the store again.
const FOLLOW_CAPACITY: usize = 4096;
/// Own events that [`crate::elsewhere`] may have yet to come across: of more, the oldest are told twice.
const TOLD_CAPACITY: usize = 16 * FOLLOW_CAPACITY;

/// One committed event, as it is told to followers.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    /// Its place in the relay's commit order.
    pub(crate) seq: u64,
    /// The task after it.
    pub(crate) record: Arc<TaskRecord>,
    /// The host that holds, or last held, the task, where one is known.
    pub(crate) node: Option<Bytes32>,
    /// The event.
    pub(crate) recorded: Recorded,
}

/// An event as it is shown.
pub(crate) fn event_view(event: StoredEvent) -> EventView {
    let word = event.recorded.event.word();
    let entry = Entry::Recorded { word, recorded: Box::new(event.recorded) };
    EventView { id: Some(event.seq), task_id: event.task_id, status: event.status, entry }
}

/// What a provider says of a running attempt, as it is told to followers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    /// The task.
    pub(crate) task_id: TaskId,
    /// What happens.
    pub(crate) progress: Progress,
}

/// Every change of every task goes through here.
pub(crate) struct Market {
    store: Arc<dyn Store>,
    artifacts: Artifacts,
    tokens: AttemptTokens,
    changes: broadcast::Sender<Arc<Change>>,
    reports: broadcast::Sender<Report>,
    /// Only of attempts that are held: what a node does is known as long as it does it.
    progress: Mutex<HashMap<TaskId, Progress>>,
    commits: Commits,
    /// Whether other relays of the same store live.
    others: watch::Sender<bool>,
    /// The places of events that were told here and that [`crate::elsewhere`] may come across.
    told: Mutex<BTreeSet<u64>>,
    /// The last place of an event that was told here.
    last_told: AtomicU64,
    /// All events up to this place were told here, or lie before this relay's time or that of the last other one.
    alone_until: AtomicU64,
    /// The domains that are served, unsettled first.
    domains: Vec<Domain>,
    /// The chain of settled tasks, where they are taken.
    chain: Option<Arc<ChainView>>,
}

impl Market {
    /// A market over a store, with the artifacts of tasks, the attempt tokens that give access to them, and the chain of settled tasks.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        artifacts: Artifacts,
        tokens: AttemptTokens,
        chain: Option<ChainView>,
    ) -> Arc<Self> {
        let domains = std::iter::once(Domain::UNSETTLED).chain(chain.as_ref().map(ChainView::domain));
        Arc::new(Self {
            domains: domains.collect(),
            chain: chain.map(Arc::new),
            store,
            artifacts,
            tokens,
            changes: broadcast::Sender::new(FOLLOW_CAPACITY),
            reports: broadcast::Sender::new(FOLLOW_CAPACITY),
            progress: Mutex::default(),
            commits: Commits::default(),
            others: watch::Sender::new(false),
            told: Mutex::default(),
            last_told: AtomicU64::new(0),
            alone_until: AtomicU64::new(0),
        })
    }

    /// The relay's clock.
    pub(crate) fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_unix(since.as_secs())
    }

    /// The domains that are served, unsettled first.
    pub(crate) fn domains(&self) -> &[Domain] {
        &self.domains
    }

    /// The chain of settled tasks, where they are taken.
    pub(crate) fn chain(&self) -> Option<&Arc<ChainView>> {
        self.chain.as_ref()
    }

    /// The store below, for reading.
    pub(crate) fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// The artifacts: inputs, models, results.
    pub(crate) fn artifacts(&self) -> &Artifacts {
        &self.artifacts
    }

    /// The tokens that let the holder of an attempt at its task's artifacts.
    pub(crate) fn tokens(&self) -> &AttemptTokens {
        &self.tokens
    }

    /// How many events were committed here.
    pub(crate) fn commits(&self) -> &Commits {
        &self.commits
    }

    /// Tells of every commit from now on. A follower that lags reads the store again.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<Change>> {
        self.changes.subscribe()
    }

    /// Tells of progress inside attempts from now on. What a follower misses is lost.
    pub(crate) fn subscribe_reports(&self) -> broadcast::Receiver<Report> {
        self.reports.subscribe()
    }

    /// Takes a task in for an API key, or finds it if it is there; the flag says whether it is new. Whoever drops this half done leaves
    /// a task of which nobody is told.
    ///
    /// # Errors
    /// The domain is not served, the rules refuse the task, or the store fails.
    pub(crate) async fn publish(
        &self,
        task: Verified<Task>,
        owner: KeyId,
    ) -> Result<(StoredTask, bool), MarketError> {
        if !self.domains.contains(&task.domain()) {
            return Err(MarketError::UnknownDomain { asked: task.domain(), takes: self.domains.clone() });
        }
        // A task that is there stays there, even where it could not be published now.
        if let Some(existing) = self.store.task(TaskId(task.digest())).await? {
            return Ok((self.with_its_money(existing).await?, false));
        }
        check_reference("model_cid", &task.message().model_cid, task.message().model_hash)?;
        check_reference("input_cid", &task.message().input_cid, task.message().input_hash)?;
        let now = self.now();
        let record = taskmarket::publish(now, &task)?;
        self.artifacts.note_task(task.message()).await?;
        let domain = task.domain();
        let event = Event::Published { task: Box::new(task.into_signed()), domain };
        let first = Recorded { version: record.version, at: now, event };
        match self.store.publish(record.clone(), first.clone(), owner.clone()).await? {
            Published::New { seq } => {
                let task = StoredTask { record, owner, node: None };
                self.tell(seq, Arc::new(task.record.clone()), None, first);
                Ok((self.with_its_money(task).await?, true))
            }
            Published::Existing(task) => Ok((self.with_its_money(*task).await?, false)),
        }
    }

    /// A task as it is found when it is published. It may have been funded before it came here, or while nobody took that up.
    async fn with_its_money(&self, task: StoredTask) -> Result<StoredTask, MarketError> {
        if task.record.status() != Status::Open || !task.record.awaits_money() {
            return Ok(task);
        }
        let record = Arc::unwrap_or_clone(self.take_chain_facts(task.record.id).await?);
        Ok(StoredTask { record, ..task })
    }

    /// Does what a signed message asks. `node` is the host that an accepted attempt runs on; other changes keep it.
    ///
    /// # Errors
    /// There is no such task, the rules refuse the message, its result is not stored yet, or the store fails.
    pub(crate) async fn mutate(
        &self,
        mutation: Mutation,
        node: Option<Bytes32>,
    ) -> Result<Arc<TaskRecord>, MarketError> {
        self.place(mutation, node.map(Placement::from)).await
    }

    /// As [`Market::mutate`], with all that is known of where an accepted attempt runs.
    ///
    /// # Errors
    /// As of [`Market::mutate`].
    pub(crate) async fn place(
        &self,
        mutation: Mutation,
        placement: Option<Placement>,
    ) -> Result<Arc<TaskRecord>, MarketError> {
        self.change(mutation.task_id(), placement, Cause::Signed(&mutation)).await
    }

    /// Releases an attempt by this relay's word, if it is still the one held.
    ///
    /// # Errors
    /// There is no such task, or the store fails.
    pub(crate) async fn release(
        &self,
        id: TaskId,
        attempt: u32,
        reason: ReleaseReason,
    ) -> Result<Arc<TaskRecord>, MarketError> {
        self.change(id, None, Cause::Released(attempt, reason)).await
    }

    /// Ends a task by this relay's word, if a provider signed that it fails anywhere and nobody holds it.
    ///
    /// # Errors
    /// There is no such task, or the store fails.
    pub(crate) async fn end_unworkable(&self, id: TaskId) -> Result<Arc<TaskRecord>, MarketError> {
        self.change(id, None, Cause::Unworkable).await
    }

    /// Lets time act on a task.
    ///
    /// # Errors
    /// There is no such task, or the store fails.
    pub(crate) async fn elapse(&self, id: TaskId) -> Result<Arc<TaskRecord>, MarketError> {
        self.change(id, None, Cause::Time).await
    }

    /// Has a task take the chain's facts that wait for it. A fact that it refuses stays, for whoever looks for the cause.
    ///
    /// # Errors
    /// There is no such task, or the store fails.
    pub(crate) async fn take_chain_facts(&self, id: TaskId) -> Result<Arc<TaskRecord>, MarketError> {
        let facts = self.store.chain_facts(id).await?;
        let mut taken = None;
        for fact in facts {
            match self.change(id, None, Cause::Chain(fact)).await {
                Ok(_) => taken = Some(fact.place()),
                Err(MarketError::Rejected(rejection)) => {
                    tracing::error!(task_id = %id, tx = %fact.tx, log_index = fact.log_index, %rejection,
                        "the chain's fact does not fit the task; was the escrow followed from a block that is too late?");
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(place) = taken {
            self.store.forget_chain_facts(id, place).await?;
        }
        let stored = self.store.task(id).await?.ok_or(MarketError::NotFound(id))?;
        Ok(Arc::new(stored.record))
    }

    /// A task as it is stored, or `None` if there is none.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) async fn task(&self, id: TaskId) -> Result<Option<StoredTask>, MarketError> {
        Ok(self.store.task(id).await?)
    }

    /// Takes in what a provider says of an attempt that it holds; of other attempts it is passed over. Not durable.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) async fn report_progress(
        &self,
        task_id: TaskId,
        progress: Progress,
    ) -> Result<(), MarketError> {
        let before = self.lock_progress().insert(task_id, progress.clone());
        if before.as_ref() == Some(&progress) {
            return Ok(());
        }
        // Inserted first and checked afterwards: an end of the attempt in between is seen by one of the two.
        if before.is_none_or(|before| before.attempt != progress.attempt) {
            let task = self.store.task(task_id).await?;
            let held = task.is_some_and(|task| is_held(&task.record, progress.attempt));
            if !held {
                self.lock_progress().remove(&task_id);
                return Ok(());
            }
        }
        // Without followers there is nobody to tell.
        let _ = self.reports.send(Report { task_id, progress });
        Ok(())
    }

    /// What a task's running attempt does, where its provider has said so.
    pub(crate) fn progress(&self, record: &TaskRecord) -> Option<Progress> {
        let progress = self.lock_progress().get(&record.id).cloned()?;
        is_held(record, progress.attempt).then_some(progress)
    }

    /// Commits what a cause brings about, deciding again when another change came first. Returns the task as it then is.
    async fn change(
        &self,
        id: TaskId,
        placement: Option<Placement>,
        cause: Cause<'_>,
    ) -> Result<Arc<TaskRecord>, MarketError> {
        for _ in 0..MAX_ROUNDS {
            let stored = self.store.task(id).await?.ok_or(MarketError::NotFound(id))?;
            // A clock that was set back must not write a history that runs backwards.
            let now = self.now().max(stored.record.updated_at);
            if let Some(event) = self.elapsed(&stored.record, now, cause) {
                self.commit(stored, now, event, None).await?;
                continue;
            }
            let Some(event) = self.decide(&stored.record, now, cause).await? else {
                return Ok(Arc::new(stored.record));
            };
            if let Some(record) = self.commit(stored, now, event, placement.clone()).await? {
                return Ok(record);
            }
        }
        Err(MarketError::Contended(id))
    }

    /// What time does to a task: the relay's clock to an unsettled one, the chain's to a settled one, after all that the chain said.
    fn elapsed(&self, record: &TaskRecord, now: Timestamp, cause: Cause<'_>) -> Option<Event> {
        let is_fact = matches!(cause, Cause::Chain(_));
        let head = self.chain.as_ref().filter(|_| !is_fact).and_then(|chain| chain.final_head());
        taskmarket::elapse(record, now)
            .or_else(|| head.and_then(|head| taskmarket::elapse_on_chain(record, head)))
    }

    async fn decide(
        &self,
        record: &TaskRecord,
        now: Timestamp,
        cause: Cause<'_>,
    ) -> Result<Option<Event>, MarketError> {
        let mutation = match cause {
            Cause::Signed(mutation) => mutation,
            Cause::Released(attempt, reason) => return Ok(taskmarket::release(record, attempt, reason)),
            Cause::Chain(fact) => return Ok(taskmarket::observe(record, fact)?),
            Cause::Unworkable => return Ok(taskmarket::unworkable(record)),
            Cause::Time => return Ok(None),
        };
        let event = taskmarket::decide(record, now, mutation)?;
        if let Some(Event::Submitted(proof)) = &event {
            self.check_result(record, &proof.message).await?;
        }
        Ok(event)
    }

    /// Applies and commits one event; `None` where another change came first.
    async fn commit(
        &self,
        before: StoredTask,
        now: Timestamp,
        event: Event,
        placement: Option<Placement>,
    ) -> Result<Option<Arc<TaskRecord>>, MarketError> {
        let mut record = before.record;
        let expected = record.version;
        let attempt = (record.attempts, record.provider);
        // The wait in milliseconds is known only to who saw the task become open; in seconds it is known from the record.
        let waited_ms = now.since(record.updated_at).saturating_mul(1000);
        let placement = placement.map(|placement| Placement {
            dispatch_ms: placement.dispatch_ms.or(Some(waited_ms)),
            ..placement
        });
        let node = placement.as_ref().map(|placement| placement.node_id);
        taskmarket::apply(&mut record, now, &event);
        let recorded = Recorded { version: record.version, at: now, event };
        match self.store.commit(expected, &record, vec![recorded.clone()], placement).await? {
            Commit::Done { seq } => {
                let kept = before.node.filter(|_| attempt == (record.attempts, record.provider));
                let record = Arc::new(record);
                self.tell(seq, Arc::clone(&record), node.or(kept), recorded);
                Ok(Some(record))
            }
            Commit::Conflict => Ok(None),
        }
    }

    fn tell(&self, seq: u64, record: Arc<TaskRecord>, node: Option<Bytes32>, recorded: Recorded) {
        if record.lease().is_none() {
            self.lock_progress().remove(&record.id);
        }
        if let Some(chain) = &self.chain {
            chain.follow_due(&record);
        }
        self.commits.count(recorded.event.name());
        self.last_told.fetch_max(seq, Ordering::Relaxed);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.insert(seq);
        if told.len() > TOLD_CAPACITY {
            told.pop_first();
        }
        drop(told);
        // Without followers there is nobody to tell.
        let _ = self.changes.send(Arc::new(Change { seq, record, node, recorded }));
    }

    /// Heeds whether other relays of the same store live. Where none does, all that is in the store was committed here up to `told`, which
    /// is what was [told last](Self::last_told) before one looked for them.
    pub(crate) fn heed_others(&self, are_there: bool, told: u64) {
        if !are_there {
            self.alone_until.fetch_max(told, Ordering::Relaxed);
        }
        self.others.send_replace(are_there);
    }

    /// Whether other relays of the same store live; it is told each time that one looked for them.
    pub(crate) fn others(&self) -> watch::Receiver<bool> {
        self.others.subscribe()
    }

    /// The place of an event up to which no other relay committed anything that was not come across.
    pub(crate) fn alone_until(&self) -> u64 {
        self.alone_until.load(Ordering::Relaxed)
    }

    /// The last place of an event that was told here; zero before the first.
    pub(crate) fn last_told(&self) -> u64 {
        self.last_told.load(Ordering::Relaxed)
    }

    /// Whether an event was told when it was committed here. Those up to it are not asked for again.
    pub(crate) fn was_told(&self, seq: u64) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let later = told.split_off(&seq);
        *told = later;
        told.remove(&seq)
    }

    /// Tells of an event that was found in the store, unless it was told when it was committed here. `record` is as it is now.
    pub(crate) fn tell_found(&self, event: StoredEvent, record: Arc<TaskRecord>, node: Option<Bytes32>) {
        // It may have been told since one looked.
        if self.was_told(event.seq) {
            return;
        }
        if record.lease().is_none() {
            self.lock_progress().remove(&record.id);
        }
        if let Some(chain) = &self.chain {
            chain.follow_due(&record);
        }
        let change = Change { seq: event.seq, record, node, recorded: event.recorded };
        let _ = self.changes.send(Arc::new(change));
    }

    /// A proof counts only with its result: the bytes are stored here, under the hash that it names.
    async fn check_result(&self, record: &TaskRecord, proof: &ComputeProof) -> Result<(), MarketError> {
        let digest = Digest(proof.result_hash.0.0);
        if proof.result_cid.artifact() != Some(proof.result_hash) || proof.result_cid.as_str().ends_with('/')
        {
            let why = format!("must be artifact://{digest}, as result_hash says");
            return Err(Rejection::Invalid { field: "result_cid", why }.into());
        }
        if self.artifacts.contains(&digest).await? {
            Ok(())
        } else {
            Err(MarketError::ResultMissing(digest, record.status()))
        }
    }

    fn lock_progress(&self) -> std::sync::MutexGuard<'_, HashMap<TaskId, Progress>> {
        // Nothing can panic while it is held; if something did, the map is still whole.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a change comes from.
#[derive(Clone, Copy)]
enum Cause<'a> {
    Signed(&'a Mutation),
    Released(u32, ReleaseReason),
    Unworkable,
    Chain(ChainFact),
    /// Time alone, which acts before anything else in any case.
    Time,
}

/// Checks that a reference is one that some node could follow, and that it does not name other bytes than the pinned hash.
fn check_reference(field: &'static str, reference: &Reference, pinned: ContentHash) -> Result<(), Rejection> {
    let invalid = |why: String| Rejection::Invalid { field, why };
    let parsed: artifact::Reference = reference
        .as_str()
        .parse()
        .map_err(|error: artifact::ParseReferenceError| invalid(error.to_string()))?;
    match parsed.kind() {
        ReferenceKind::Artifact { digest, .. } if pinned.is_pinned() && pinned.0.0 != digest.0 => {
            Err(invalid(format!("it names {digest}, but the pinned hash is {pinned}")))
        }
        ReferenceKind::Model { .. } if field != "model_cid" => {
            Err(invalid("model:// names what an engine serves, which is no content".to_owned()))
        }
        ReferenceKind::Model { id }
            if pinned.is_pinned() && parsed.digest() != Some(artifact::Digest(pinned.0.0)) =>
        {
            Err(invalid(format!("the pinned hash is {pinned}, which is not the SHA-256 of {id:?}")))
        }
        ReferenceKind::Model { .. }
        | ReferenceKind::Artifact { .. }
        | ReferenceKind::Web { .. }
        | ReferenceKind::File { .. }
        | ReferenceKind::Ipfs { .. }
        | ReferenceKind::Oci { .. } => Ok(()),
    }
}

fn is_held(record: &TaskRecord, attempt: u32) -> bool {
    record.lease().is_some_and(|lease| lease.attempt == attempt)
}
