//! What the agent holds, on disk: one file per attempt, written before the relay hears of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use daemon::private_file;
use rpc::link::AttemptKey;
use rpc::node::ComputeOutcome;
use rpc::tasks::{FailureView, SignedMutation};
use serde::{Deserialize, Serialize};
use taskmarket::{AcceptTask, ComputeProof, Domain, Task, Timestamp};
use tokio::sync::Mutex;

/// One attempt. It holds the attempt's token, so it has no `Debug`, and its file is its owner's alone.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The task.
    pub(crate) task: Task,
    /// Where it is signed for, which decides the money.
    #[serde(default = "unsettled")]
    pub(crate) domain: Domain,
    /// What the agent signed for.
    pub(crate) accept: SignedMutation<AcceptTask>,
    /// Reads the task's artifacts at the relay and stores its result there; empty once the attempt is over.
    pub(crate) attempt_token: String,
    /// How far it is.
    pub(crate) stage: Stage,
}

/// How far an attempt is.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub(crate) enum Stage {
    /// The node has it.
    Computing,
    /// There is a result; the relay has not acknowledged it yet.
    Delivering {
        /// What came out.
        outcome: ComputeOutcome,
        /// The proof, once the result is with the relay.
        proof: Option<Box<SignedMutation<ComputeProof>>>,
    },
    /// There is none; the relay has not acknowledged that yet.
    Failing {
        /// Why.
        failure: FailureView,
    },
    /// The relay has acknowledged the proof. Kept for a while, so that the result can be handed in again where it is asked for.
    Done {
        /// What came out.
        outcome: ComputeOutcome,
        /// Since when.
        at: Timestamp,
    },
}

impl Entry {
    /// Which attempt it is.
    pub(crate) fn key(&self) -> AttemptKey {
        AttemptKey { task_id: self.accept.mutation.task_id, attempt: self.accept.mutation.attempt }
    }
}

/// The folder with the entries. Reading and writing happen off the runtime's threads and one at a time, in the order asked for, so
/// that an entry that was removed is not written again by a write that was given up.
#[derive(Clone)]
pub(crate) struct Journal {
    folder: PathBuf,
    turn: Arc<Mutex<()>>,
}

impl Journal {
    /// The journal in a folder that exists.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, turn: Arc::default() }
    }

    /// Writes an entry; it is durable on return.
    pub(crate) async fn save(&self, entry: &Entry) -> io::Result<()> {
        let text = serde_json::to_vec(entry)?;
        let path = self.path(&entry.key());
        self.in_turn(move || private_file::create(&path, &text)).await
    }

    /// Reads an entry, if there is one.
    pub(crate) async fn load(&self, key: &AttemptKey) -> io::Result<Option<Entry>> {
        let path = self.path(key);
        let loaded = self.in_turn(move || read(&path)).await;
        match loaded {
            Ok(entry) => Ok(Some(entry)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes an entry, if there is one.
    pub(crate) async fn remove(&self, key: &AttemptKey) -> io::Result<()> {
        let path = self.path(key);
        self.in_turn(move || match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        })
        .await
    }

    /// All entries that are not over, after removing what is older than `oldest`. What cannot be read is left where it is and said.
    pub(crate) async fn unfinished(&self, oldest: Timestamp) -> io::Result<Vec<Entry>> {
        let folder = self.folder.clone();
        self.in_turn(move || {
            let mut entries = Vec::new();
            for file in fs::read_dir(&folder)? {
                let path = file?.path();
                if path.extension().is_none_or(|extension| extension != "json") {
                    continue;
                }
                match read(&path) {
                    Ok(entry) if is_older(&entry, oldest) => fs::remove_file(&path)?,
                    Ok(Entry { stage: Stage::Done { .. }, .. }) => {}
                    Ok(entry) => entries.push(entry),
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "an entry of the journal cannot be read; left alone");
                    }
                }
            }
            Ok(entries)
        })
        .await
    }

    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        done.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    fn path(&self, key: &AttemptKey) -> PathBuf {
        self.folder.join(format!("{}-{}.json", key.task_id, key.attempt))
    }
}

fn unsettled() -> Domain {
    Domain::UNSETTLED
}

fn read(path: &Path) -> io::Result<Entry> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn is_older(entry: &Entry, oldest: Timestamp) -> bool {
    match &entry.stage {
        Stage::Done { at, .. } => *at < oldest,
        Stage::Computing | Stage::Delivering { .. } | Stage::Failing { .. } => {
            entry.accept.mutation.lease_until < oldest
        }
    }
}
