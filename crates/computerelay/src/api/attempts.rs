//! What an attempt token opens: the artifacts that its task names, for reading, and the place of its result, for storing.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use artifact::{BlobStore, Digest, FolderManifest, Reference};
use rpc::error::ErrorCode;
use store::{KeyId, StoredTask};
use taskmarket::{State, Submission, Task, TaskId};
use tokio::io::AsyncReadExt;

use crate::error::ApiError;
use crate::market::Market;

/// The largest folder manifest that is read, in bytes: the most that crate `artifact` takes.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;
/// Folders whose files are kept in mind. Each takes 2 MiB at most.
const MAX_FOLDERS: usize = 16;
/// Attempts whose uploads are counted. More than are held at once; beyond it the counting begins anew.
const MAX_COUNTED: usize = 16_384;

/// The access of attempts to artifacts.
pub(crate) struct Attempts {
    folders: Mutex<HashMap<Digest, Arc<HashSet<Digest>>>>,
    /// Bytes that each attempt stored.
    stored: Mutex<HashMap<(TaskId, u32), u64>>,
    max_bytes: u64,
}

/// An attempt that a token proved, while it lasts.
pub(super) struct Attempt {
    task: StoredTask,
    attempt: u32,
}

impl Attempt {
    /// The API key that published the task: it owns what the attempt stores.
    pub(super) fn owner(&self) -> &KeyId {
        &self.task.owner
    }
}

impl Attempts {
    /// No attempt may store more than this in all, in bytes.
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self { folders: Mutex::default(), stored: Mutex::default(), max_bytes }
    }

    /// The attempt that a token is of, if it is the task's next, current or proven one.
    ///
    /// # Errors
    /// 401 for a token that this relay did not make, 403 for one whose attempt is over.
    pub(super) async fn find(&self, market: &Market, token: &str) -> Result<Attempt, ApiError> {
        let unknown = || {
            let message = "neither an API key nor an attempt token that is known here";
            ApiError::new(ErrorCode::InvalidApiKey, message).with_param("authorization")
        };
        let (task_id, attempt) = market.tokens().check(token).ok_or_else(unknown)?;
        let task = market.task(task_id).await?.ok_or_else(unknown)?;
        let (record, is_alive) = (&task.record, is_alive(&task, attempt));
        if is_alive {
            return Ok(Attempt { task, attempt });
        }
        let message = format!("attempt {attempt} of task {task_id} is over");
        Err(ApiError::new(ErrorCode::Forbidden, message).with_status(record.status()))
    }

    /// Checks that an attempt may read an artifact: it runs, or may begin at once, and its task names the artifact.
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
            if self.files_of(market.blobs(), folder).await?.contains(&digest) {
                return Ok(());
            }
        }
        Err(ApiError::new(
            ErrorCode::Forbidden,
            format!("task {} does not name artifact {digest}", record.id),
        ))
    }

    /// Checks that an attempt may store an artifact, and so may ask whether it is there.
    ///
    /// # Errors
    /// 403 where the attempt is proven and this is not its result.
    pub(super) fn check_store(attempt: &Attempt, digest: Digest) -> Result<(), ApiError> {
        let record = &attempt.task.record;
        let is_other = |proven: &Submission| proven.proof.message.result_hash.0.0 != digest.0;
        if record.submission().is_some_and(is_other) {
            let message = "the attempt is proven: only its result may be stored again";
            return Err(ApiError::new(ErrorCode::Forbidden, message).with_status(record.status()));
        }
        Ok(())
    }

    /// Checks that an attempt may store an artifact, and sets bytes aside for it: as many as it declares, or all that are left.
    ///
    /// # Errors
    /// As of [`Attempts::check_store`]; 413 where the attempt would store too much.
    pub(super) fn reserve(
        &self,
        attempt: &Attempt,
        digest: Digest,
        declared: Option<u64>,
    ) -> Result<Reservation<'_>, ApiError> {
        Self::check_store(attempt, digest)?;
        let key = (attempt.task.record.id, attempt.attempt);
        let mut stored = self.lock_stored();
        if stored.len() >= MAX_COUNTED && !stored.contains_key(&key) {
            stored.clear();
        }
        let sum = stored.entry(key).or_default();
        let left = self.max_bytes.saturating_sub(*sum);
        let bytes = declared.unwrap_or(left);
        if left == 0 || bytes > left {
            let message = format!("an attempt may store {} bytes in all; {left} are left", self.max_bytes);
            return Err(ApiError::new(ErrorCode::PayloadTooLarge, message));
        }
        *sum += bytes;
        Ok(Reservation { attempts: self, key, bytes })
    }

    /// The files that a folder's manifest lists; none if it is not stored or no manifest.
    async fn files_of(&self, blobs: &BlobStore, folder: Digest) -> Result<Arc<HashSet<Digest>>, ApiError> {
        if let Some(files) = self.lock_folders().get(&folder) {
            return Ok(Arc::clone(files));
        }
        let failed = |error: std::io::Error| ApiError::internal(&error);
        let bytes = match blobs.open_blob(&folder).await.map_err(failed)? {
            Some((file, size)) if size <= MAX_MANIFEST_BYTES => {
                let mut bytes = Vec::new();
                file.take(MAX_MANIFEST_BYTES).read_to_end(&mut bytes).await.map_err(failed)?;
                bytes
            }
            // It may be stored later: nothing to remember.
            Some(_) | None => return Ok(Arc::default()),
        };
        let entries = FolderManifest::parse(&bytes);
        let files: HashSet<Digest> =
            entries.iter().flat_map(FolderManifest::entries).map(|entry| entry.digest).collect();
        let files = Arc::new(files);
        let mut folders = self.lock_folders();
        if folders.len() >= MAX_FOLDERS {
            folders.clear();
        }
        folders.insert(folder, Arc::clone(&files));
        Ok(files)
    }

    fn lock_folders(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Arc<HashSet<Digest>>>> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_stored(&self) -> std::sync::MutexGuard<'_, HashMap<(TaskId, u32), u64>> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes set aside for what an attempt stores. Those that are not kept fall back when this is dropped.
pub(super) struct Reservation<'a> {
    attempts: &'a Attempts,
    key: (TaskId, u32),
    bytes: u64,
}

impl Reservation<'_> {
    /// How many were set aside.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// So many were stored.
    pub(super) fn keep(mut self, stored: u64) {
        self.bytes = self.bytes.saturating_sub(stored);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if let Some(sum) = self.attempts.lock_stored().get_mut(&self.key) {
            *sum = sum.saturating_sub(self.bytes);
        }
    }
}

fn is_alive(task: &StoredTask, attempt: u32) -> bool {
    match &task.record.state {
        State::Open => attempt == task.record.attempts.saturating_add(1),
        State::Accepted { lease } => attempt == lease.attempt,
        State::Submitted { .. }
        | State::Completed { .. }
        | State::Disputed { .. }
        | State::Resolved { .. } => attempt == task.record.attempts,
        State::Cancelled | State::Expired | State::Failed => false,
    }
}

/// The artifacts that a task names, each with whether it is a folder's manifest.
fn named_by(task: &Task) -> Vec<(Digest, bool)> {
    let mut named = Vec::new();
    for (reference, hash) in [(&task.model_cid, task.model_hash), (&task.input_cid, task.input_hash)] {
        let parsed: Option<Reference> = reference.as_str().parse().ok();
        let is_folder = parsed.as_ref().is_some_and(Reference::is_folder);
        if let Some(digest) = reference.artifact() {
            named.push((Digest(digest.0.0), is_folder));
        }
        if hash.is_pinned() {
            named.push((Digest(hash.0.0), is_folder));
        }
    }
    named
}
