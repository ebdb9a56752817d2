//! What attempts say: read while they run, and its end kept with their records.

use std::collections::VecDeque;

use bytes::Bytes;
use rpc::node::{ComputeStatus, LogLine, LogStream};
use taskmarket::TaskId;
use tokio::sync::watch;

use super::{Executor, on_disk};
use crate::results::Record;
use crate::runtime::{self, Logs};

/// How much of what an attempt said is kept once it has ended, in bytes of the file: its end.
const KEPT_BYTES: usize = 64 << 10;

/// The lines of one piece of an answer.
const LINES_AT_ONCE: usize = 256;

/// Reads the lines of one attempt, some at a time.
pub(crate) struct LogReader {
    from: u64,
    follow: bool,
    source: Source,
}

enum Source {
    Running { logs: Logs, record: watch::Receiver<Record> },
    Kept(Option<Bytes>),
}

impl Executor {
    /// A reader of what a task's newest attempt said, from line `from` on, if the task is known. With `follow` it waits
    /// for more until the attempt ends.
    pub(crate) async fn logs(
        &self,
        task: TaskId,
        from: u64,
        follow: bool,
    ) -> Option<std::io::Result<LogReader>> {
        let (logs, record) = {
            let tasks = self.tasks();
            let entry = tasks.get(&task)?;
            (entry.logs.clone(), entry.record.subscribe())
        };
        if let Some(logs) = logs {
            return Some(Ok(LogReader { from, follow, source: Source::Running { logs, record } }));
        }
        let (results, status) = (self.0.results.clone(), record.borrow().status.clone());
        let kept = on_disk(move || results.read_log(status.task_id, status.attempt)).await;
        Some(kept.map(|kept| LogReader { from, follow, source: Source::Kept(Some(after(kept, from))) }))
    }

    /// Writes the end of what an attempt said beside its record: how many bytes. Where that fails the task loses its logs,
    /// not its result.
    pub(super) async fn keep_logs(&self, status: &ComputeStatus, logs: &Logs) -> u64 {
        let end = end(logs);
        if end.is_empty() {
            return 0;
        }
        let (results, task, attempt, size) =
            (self.0.results.clone(), status.task_id, status.attempt, end.len());
        match on_disk(move || results.store_log(task, attempt, &end)).await {
            Ok(()) => size as u64,
            Err(error) => {
                tracing::warn!(%error, "cannot keep the logs");
                0
            }
        }
    }

    /// From now on the task's lines are read from the disk.
    pub(super) fn end_logs(&self, status: &ComputeStatus) {
        if let Some(entry) = self.tasks().get_mut(&status.task_id) {
            entry.logs = None;
        }
    }
}

impl LogReader {
    /// The next lines, as newline-delimited JSON; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        let (logs, record) = match &mut self.source {
            Source::Kept(kept) => return kept.take().filter(|kept| !kept.is_empty()),
            Source::Running { logs, record } => (logs, record),
        };
        let mut lines = logs.next();
        loop {
            // Looked at first: what is written after the end is nothing.
            let over = record.has_changed().is_err() || record.borrow_and_update().ended_at.is_some();
            let some = logs.since(self.from, LINES_AT_ONCE);
            if let Some(last) = some.last() {
                self.from = last.number + 1;
                return Some(some.into_iter().flat_map(|line| json(&line)).collect());
            }
            if over || !self.follow {
                return None;
            }
            tokio::select! {
                _ = lines.wait_for(|next| *next > self.from) => {}
                _ = record.changed() => {}
            }
        }
    }
}

/// The last lines, as newline-delimited JSON, of at most [`KEPT_BYTES`].
fn end(logs: &Logs) -> Vec<u8> {
    let mut kept: VecDeque<Vec<u8>> = VecDeque::new();
    let mut bytes = 0;
    for line in logs.since(0, usize::MAX).iter().rev() {
        let line = json(line);
        bytes += line.len();
        if bytes > KEPT_BYTES {
            break;
        }
        kept.push_front(line);
    }
    kept.into_iter().flatten().collect()
}

fn json(line: &runtime::LogLine) -> Vec<u8> {
    let stream = match line.stream {
        runtime::LogStream::Stdout => LogStream::Stdout,
        runtime::LogStream::Stderr => LogStream::Stderr,
    };
    let line = LogLine { n: line.number, stream, text: line.text.clone() };
    let mut json = serde_json::to_vec(&line).expect("numbers and strings always serialise");
    json.push(b'\n');
    json
}

/// The kept lines from number `from` on.
fn after(kept: Vec<u8>, from: u64) -> Bytes {
    let is_before = |line: &&[u8]| serde_json::from_slice::<LogLine>(line).is_ok_and(|line| line.n < from);
    let lines = kept.split_inclusive(|byte| *byte == b'\n');
    let skipped: usize = lines.take_while(is_before).map(<[u8]>::len).sum();
    Bytes::from(kept).slice(skipped..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_and_can_be_read_from_any_line() {
        let logs = Logs::default();
        for number in 0..3000 {
            logs.write(runtime::LogStream::Stderr, format!("line {number}\n").as_bytes());
        }
        let kept = end(&logs);
        assert!(kept.len() <= KEPT_BYTES && kept.len() > KEPT_BYTES - 100);
        let text = String::from_utf8(after(kept.clone(), 2999).to_vec()).unwrap();
        assert_eq!(text, "{\"n\":2999,\"stream\":\"stderr\",\"text\":\"line 2999\"}\n");
        assert_eq!(after(kept.clone(), 0).len(), kept.len());
        assert!(after(kept, 3000).is_empty());
    }
}
