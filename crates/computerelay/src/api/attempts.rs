//! What an attempt token opens: the artifacts that its task names, for reading, and the place of its result, for storing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use artifact::Digest;
use rpc::error::ErrorCode;
use store::StoredTask;
use taskmarket::{Address, State, Submission, TaskId};

use crate::artifacts::{Account, Uploader, named_by};
use crate::auth::Grant;
use crate::error::ApiError;
use crate::hub::Hub;
use crate::market::Market;

/// Attempts whose uploads are counted. More than are held at once; beyond it the counting begins anew.
const MAX_COUNTED: usize = 16_384;
/// Artifacts of one attempt that are kept in mind. One is the result; further ones are counted and forgotten.
const MAX_OWN: usize = 16;

/// The access of attempts to artifacts.
pub(crate) struct Attempts {
    stored: Arc<Accounts>,
    max_bytes: u64,
}

/// What each attempt stored.
type Accounts = Mutex<HashMap<(TaskId, u32), Stored>>;

/// What an attempt stored.
#[derive(Debug, Default)]
struct Stored {
    /// In bytes, those on their way included.
    bytes: u64,
    own: Vec<Digest>,
}

/// An attempt that a token proved, while it lasts.
pub(super) struct Attempt {
    task: StoredTask,
    attempt: u32,
    provider: Address,
    /// It is on offer to its host, which has not accepted it yet.
    is_offer: bool,
}

impl Attempt {
    fn key(&self) -> (TaskId, u32) {
        (self.task.record.id, self.attempt)
    }

    /// Whose its uploads are: its own, for the API key that published the task.
    pub(super) fn uploader(&self) -> Uploader {
        let (task_id, attempt) = self.key();
        Uploader::Attempt { task_id, attempt, provider: self.provider, owner: self.task.owner.clone() }
    }
}

impl Attempts {
    /// No attempt may store more than this in all, in bytes.
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self { stored: Arc::default(), max_bytes }
    }

    /// The attempt that a token is of, if it is on offer to the token's host, held by it or proven by it.
    ///
    /// # Errors
    /// 401 for a token that this relay did not make, 403 for one whose attempt is over or another host's, 503 for one whose attempt is
    /// not accepted yet.
    pub(super) async fn find(&self, market: &Market, hub: &Hub, token: &str) -> Result<Attempt, ApiError> {
        let unknown = || {
            let message = "neither an API key nor an attempt token that is known here";
            ApiError::new(ErrorCode::InvalidApiKey, message).with_param("authorization")
        };
        let grant = market.tokens().check(token).ok_or_else(unknown)?;
        let Grant { task_id, attempt, provider, node_id } = grant;
        // Looked up before the record: an acceptance that comes in between is seen there.
        let is_on_offer = hub.is_on_offer(task_id, provider, node_id);
        let task = market.task(task_id).await?.ok_or_else(unknown)?;
        let status = task.record.status();
        match standing(&task, &grant) {
            Standing::Holder => Ok(Attempt { task, attempt, provider, is_offer: false }),
            Standing::Next if is_on_offer => Ok(Attempt { task, attempt, provider, is_offer: true }),
            Standing::Next => Err(not_accepted(task_id, attempt).with_status(status)),
            Standing::Over => {
                let message = format!("attempt {attempt} of task {task_id} is over, or another host's");
                Err(ApiError::new(ErrorCode::Forbidden, message).with_status(status))
            }
        }
    }

    /// Checks that an attempt may read an artifact: it runs, or is on offer, and its task names the artifact.
    ///
    /// # Errors
    /// 403 otherwise.
    pub(super) async fn check_read(
        &self,
        market: &Market,
        attempt: &Attempt,
        digest: Digest,
    ) -> Result<(), ApiError> {
        let record = &attempt.task.record;
        if record.submission().is_some() {
            let message = "the attempt is proven: it may only store its result again";
            return Err(ApiError::new(ErrorCode::Forbidden, message).with_status(record.status()));
        }
        let named = named_by(&record.task);
        if named.iter().any(|(named, _)| *named == digest) {
            return Ok(());
        }
        for (folder, _) in named.into_iter().filter(|(_, is_folder)| *is_folder) {
            if market.artifacts().files_of(folder).await?.contains(&digest) {
                return Ok(());
            }
        }
        Err(ApiError::new(
            ErrorCode::Forbidden,
            format!("task {} does not name artifact {digest}", record.id),
        ))
    }

    /// Checks that an attempt may ask whether an artifact is there: one that it stored, its proven result, or one that it may read.
    ///
    /// # Errors
    /// 403 otherwise.
    pub(super) async fn check_ask(
        &self,
        market: &Market,
        attempt: &Attempt,
        digest: Digest,
    ) -> Result<(), ApiError> {
        if self.is_own(attempt, digest) {
            return Ok(());
        }
        self.check_read(market, attempt, digest).await
    }

    /// Whether an attempt stored an artifact, or proved it as its result.
    pub(super) fn is_own(&self, attempt: &Attempt, digest: Digest) -> bool {
        let proven = attempt.task.record.submission();
        proven.is_some_and(|proven| is_result(proven, digest))
            || self.lock_stored().get(&attempt.key()).is_some_and(|stored| stored.own.contains(&digest))
    }

    /// Checks that an attempt may store an artifact, and opens an account for its bytes, unless they are its own already.
    ///
    /// # Errors
    /// 503 before the attempt is accepted, 403 where it is proven and this is not its result, 413 where it would store too much.
    pub(super) fn reserve(
        &self,
        attempt: &Attempt,
        digest: Digest,
        declared: Option<u64>,
    ) -> Result<Option<Reservation>, ApiError> {
        let record = &attempt.task.record;
        if attempt.is_offer {
            return Err(not_accepted(record.id, attempt.attempt).with_status(record.status()));
        }
        if record.submission().is_some_and(|proven| !is_result(proven, digest)) {
            let message = "the attempt is proven: only its result may be stored again";
            return Err(ApiError::new(ErrorCode::Forbidden, message).with_status(record.status()));
        }
        if self.is_own(attempt, digest) {
            return Ok(None);
        }
        let mut stored = self.lock_stored();
        if stored.len() >= MAX_COUNTED && !stored.contains_key(&attempt.key()) {
            stored.clear();
        }
        let left = self.max_bytes.saturating_sub(stored.entry(attempt.key()).or_default().bytes);
        if left == 0 || declared.is_some_and(|declared| declared > left) {
            return Err(self.too_much(left));
        }
        let stored = Arc::clone(&self.stored);
        Ok(Some(Reservation { stored, key: attempt.key(), max: self.max_bytes, bytes: 0 }))
    }

    fn too_much(&self, left: u64) -> ApiError {
        let message = format!("an attempt may store {} bytes in all; {left} are left", self.max_bytes);
        ApiError::new(ErrorCode::PayloadTooLarge, message)
    }

    fn lock_stored(&self) -> MutexGuard<'_, HashMap<(TaskId, u32), Stored>> {
        lock(&self.stored)
    }
}

fn lock(accounts: &Accounts) -> MutexGuard<'_, HashMap<(TaskId, u32), Stored>> {
    accounts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bytes of one upload of an attempt, charged as they come. Those that are not kept fall back when this is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    stored: Arc<Accounts>,
    key: (TaskId, u32),
    max: u64,
    bytes: u64,
}

impl Account for Reservation {
    fn charge(&mut self, came: u64) -> bool {
        let mut stored = lock(&self.stored);
        let sum = &mut stored.entry(self.key).or_default().bytes;
        let after = sum.saturating_add(came);
        if after > self.max {
            return false;
        }
        *sum = after;
        self.bytes += came;
        true
    }

    fn stored(&mut self, digest: Digest) {
        self.bytes = 0;
        let mut stored = lock(&self.stored);
        let own = &mut stored.entry(self.key).or_default().own;
        if own.len() < MAX_OWN && !own.contains(&digest) {
            own.push(digest);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(stored) = lock(&self.stored).get_mut(&self.key) {
            stored.bytes = stored.bytes.saturating_sub(self.bytes);
        }
    }
}

/// Where a host stands with an attempt that it was offered.
enum Standing {
    /// It holds the attempt, or proved it.
    Holder,
    /// The attempt would be the next.
    Next,
    Over,
}

fn standing(task: &StoredTask, grant: &Grant) -> Standing {
    let record = &task.record;
    let is_holder = |provider: Address, attempt: u32| {
        (provider, attempt) == (grant.provider, grant.attempt)
            && task.node.is_none_or(|node| node == grant.node_id)
    };
    let holder = match &record.state {
        State::Open if grant.attempt == record.attempts.saturating_add(1) => return Standing::Next,
        State::Accepted { lease } => is_holder(lease.provider, lease.attempt),
        State::Submitted { submission, .. }
        | State::Completed { submission, .. }
        | State::Disputed { submission, .. }
        | State::Resolved { submission, .. } => {
            let proof = &submission.proof.message;
            is_holder(proof.provider, proof.attempt)
        }
        State::Open | State::Cancelled | State::Expired | State::Failed => false,
    };
    if holder { Standing::Holder } else { Standing::Over }
}

fn is_result(proven: &Submission, digest: Digest) -> bool {
    proven.proof.message.result_hash.0.0 == digest.0
}

/// The host may try again in a moment: its acceptance may be on its way.
fn not_accepted(task_id: TaskId, attempt: u32) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, format!("attempt {attempt} of task {task_id} is not accepted yet"))
}
