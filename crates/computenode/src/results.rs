//! What came of tasks, on disk: it outlives the process.
//!
//! Each task has a record (`<task>.json`) and, once it has ended, its result (`<task>.<attempt>`) and the end of its logs
//! (`<task>.<attempt>.log`) beside it, as far as there are any. They are written before the record that names them, and
//! all appear whole or not at all.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use artifact::{Digest, Hasher};
use daemon::private_file;
use rpc::node::{ComputeOutcome, ComputeRequest, ComputeStatus};
use rpc::tasks::{FailureView, Phase};
use serde::{Deserialize, Serialize};
use taskmarket::{TaskId, Timestamp};

use crate::attempt::Failure;

/// The failure of attempts that ended with the node rather than by themselves.
const NODE_RESTARTED: &str = "node_restarted";

/// What is kept of a task: its newest attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// How it is, as the API shows it.
    pub(crate) status: ComputeStatus,
    /// When it was taken.
    pub(crate) started_at: Timestamp,
    /// When it ended, if it did.
    pub(crate) ended_at: Option<Timestamp>,
    /// The size of its log's file; zero if there is none.
    #[serde(default)]
    pub(crate) log_bytes: u64,
}

/// Why an attempt gave no result.
pub(crate) enum Ended {
    /// It was called off.
    Cancelled,
    /// The node ended first.
    NodeRestarted,
    /// It failed by itself.
    Failed(Failure),
}

impl Record {
    /// The record of an attempt that begins, after `previous` of the same task.
    pub(crate) fn first(request: &ComputeRequest, previous: Option<&Self>) -> Self {
        let status = ComputeStatus {
            task_id: request.task_id,
            attempt: request.attempt,
            phase: Phase::Fetching,
            percent: None,
            revision: previous.map_or(1, |previous| previous.status.revision + 1),
            held: false,
            outcome: None,
            failure: None,
        };
        Self { status, started_at: now(), ended_at: None, log_bytes: 0 }
    }

    /// Notes how the attempt ended.
    pub(crate) fn end(&mut self, outcome: Result<ComputeOutcome, Ended>) {
        let failed = |code: &str, message: String| Some(FailureView { code: code.to_owned(), message });
        self.ended_at = Some(now());
        let status = &mut self.status;
        status.revision += 1;
        (status.percent, status.held) = (None, false);
        (status.phase, status.outcome, status.failure) = match outcome {
            Ok(outcome) => (Phase::Done, Some(outcome), None),
            Err(Ended::Cancelled) => (Phase::Cancelled, None, None),
            Err(Ended::NodeRestarted) => {
                (Phase::Failed, None, failed(NODE_RESTARTED, "the node ended while the task ran".to_owned()))
            }
            Err(Ended::Failed(failure)) => (Phase::Failed, None, failed(&failure.code, failure.message)),
        };
    }
}

/// This moment, in whole seconds.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(since.as_secs())
}

/// The folder of records and results. Its methods block on the disk.
#[derive(Debug, Clone)]
pub(crate) struct Results {
    folder: PathBuf,
}

impl Results {
    /// Opens the folder, which is made if missing, and reads its records. What cannot be read is logged and left alone.
    pub(crate) fn open(folder: PathBuf) -> io::Result<(Self, Vec<Record>)> {
        fs::create_dir_all(&folder)?;
        let mut records = Vec::new();
        let mut all_read = true;
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "tmp") {
                fs::remove_file(&path)?;
            } else if path.extension().is_some_and(|extension| extension == "json") {
                match read_record(&path) {
                    Ok(record) => records.push(record),
                    Err(error) => {
                        tracing::error!(path = %path.display(), %error, "unreadable record");
                        all_read = false;
                    }
                }
            }
        }
        let results = Self { folder };
        if all_read {
            results.remove_orphans(&records)?;
        }
        Ok((results, records))
    }

    /// Stores a task's record durably, in place of its last one.
    pub(crate) fn store_record(&self, record: &Record) -> io::Result<()> {
        private_file::create(&self.record_path(record.status.task_id), &serde_json::to_vec(record)?)
    }

    /// Stores the result of an attempt durably.
    pub(crate) fn store_result(&self, task: TaskId, attempt: u32, bytes: &[u8]) -> io::Result<()> {
        private_file::create(&self.result_path(task, attempt), bytes)
    }

    /// Takes the file at `path` as the result of an attempt, durably: its digest and its size, of at most `limit` bytes.
    pub(crate) fn take_result(
        &self,
        task: TaskId,
        attempt: u32,
        path: &Path,
        limit: u64,
    ) -> io::Result<(Digest, u64)> {
        let mut file = File::open(path)?;
        let mut hasher = Hasher::new();
        let mut piece = vec![0; 64 << 10];
        loop {
            match file.read(&mut piece)? {
                0 => break,
                read => hasher.update(&piece[..read]),
            }
            if hasher.len() > limit {
                return Err(io::Error::other(format!("the result is larger than {limit} bytes")));
            }
        }
        file.sync_all()?;
        fs::rename(path, self.result_path(task, attempt))?;
        File::open(&self.folder)?.sync_all()?;
        Ok((hasher.digest(), hasher.len()))
    }

    /// Opens the result of an attempt.
    pub(crate) fn open_result(&self, task: TaskId, attempt: u32) -> io::Result<File> {
        File::open(self.result_path(task, attempt))
    }

    /// Stores the end of an attempt's logs.
    pub(crate) fn store_log(&self, task: TaskId, attempt: u32, bytes: &[u8]) -> io::Result<()> {
        private_file::create(&self.log_path(task, attempt), bytes)
    }

    /// Reads the end of an attempt's logs; empty if there is none.
    pub(crate) fn read_log(&self, task: TaskId, attempt: u32) -> io::Result<Vec<u8>> {
        match fs::read(self.log_path(task, attempt)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read,
        }
    }

    /// Removes the result and the logs of an attempt, if there are any.
    pub(crate) fn remove_result(&self, task: TaskId, attempt: u32) -> io::Result<()> {
        remove(&self.result_path(task, attempt))?;
        remove(&self.log_path(task, attempt))
    }

    /// Removes all that is kept of a task.
    pub(crate) fn remove(&self, task: TaskId, attempt: u32) -> io::Result<()> {
        remove(&self.record_path(task))?;
        self.remove_result(task, attempt)
    }

    /// Removes results and logs that no record names: left by a crash before the record was written.
    fn remove_orphans(&self, records: &[Record]) -> io::Result<()> {
        let mut named: HashSet<PathBuf> = HashSet::new();
        for Record { status, log_bytes, .. } in records {
            let (task, attempt) = (status.task_id, status.attempt);
            named.extend(status.outcome.is_some().then(|| self.result_path(task, attempt)));
            named.extend((*log_bytes > 0).then(|| self.log_path(task, attempt)));
        }
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let is_record = path.extension().is_some_and(|extension| extension == "json");
            if !is_record && !named.contains(&path) {
                tracing::info!(path = %path.display(), "removing a file without a record");
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn record_path(&self, task: TaskId) -> PathBuf {
        self.folder.join(format!("{task}.json"))
    }

    fn log_path(&self, task: TaskId, attempt: u32) -> PathBuf {
        self.folder.join(format!("{task}.{attempt}.log"))
    }

    fn result_path(&self, task: TaskId, attempt: u32) -> PathBuf {
        self.folder.join(format!("{task}.{attempt}"))
    }
}

fn read_record(path: &Path) -> io::Result<Record> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
