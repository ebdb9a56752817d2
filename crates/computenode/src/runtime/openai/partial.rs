//! What engines answered for a task that is not done, for another attempt of the same task to go on with.
//!
//! One file for each task, `<task id>.jsonl`, with a line for each answer, added as it comes. An answer counts for the
//! line of the input with the same number and the same bytes. A line that was not written to its end is cut off.

use std::collections::HashMap;
use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use artifact::Digest;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, BufReader};
use tokio::sync::Mutex;

use super::Answer;
use super::input::read_line;

/// How long the answers of an unfinished task are kept.
const KEEP: Duration = Duration::from_secs(7 * 86_400);

/// How much room the answers of all unfinished tasks may take, in bytes; the oldest go first.
const KEEP_BYTES: u64 = 4 << 30;

/// The answers of one task.
pub(super) struct Partial {
    path: PathBuf,
    limit: u64,
    state: Mutex<State>,
}

struct State {
    file: File,
    /// Where the next line begins.
    end: u64,
    places: HashMap<u64, Place>,
}

#[derive(Clone, Copy)]
struct Place {
    digest: Digest,
    offset: u64,
    length: usize,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    index: u64,
    digest: String,
    status: u16,
    request_id: String,
    body: Box<RawValue>,
}

impl Partial {
    /// Opens the answers of an attempt's task, `label` being `<task id>.<attempt>`, and removes what is too old of other
    /// tasks. At most `limit` bytes are kept. There is nothing to open for a label that no task has.
    pub(super) async fn open(folder: &Path, label: &str, limit: u64) -> io::Result<Option<Self>> {
        let Some((task, _)) = label.rsplit_once('.') else { return Ok(None) };
        if task.is_empty() || !task.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Ok(None);
        }
        let path = folder.join(format!("{task}.jsonl"));
        let (tidied, own) = (folder.to_owned(), path.clone());
        tokio::task::spawn_blocking(move || tidy(&tidied, &own)).await.map_err(io::Error::other)??;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).await?;
        let mut reader = BufReader::new(file);
        let (mut end, mut places) = (0, HashMap::new());
        while let Some(Some(line)) = read_line(&mut reader).await? {
            let Ok(kept) = serde_json::from_slice::<Kept>(&line) else { break };
            let Ok(digest) = kept.digest.parse() else { break };
            if line.last() != Some(&b'\n') {
                break;
            }
            places.insert(kept.index, Place { digest, offset: end, length: line.len() });
            end += line.len() as u64;
        }
        let file = reader.into_inner();
        file.set_len(end).await?;
        Ok(Some(Self { path, limit, state: Mutex::new(State { file, end, places }) }))
    }

    /// The answer to a line, if it came before.
    pub(super) async fn get(&self, index: u64, digest: Digest) -> Option<Answer> {
        let mut state = self.state.lock().await;
        let place = state.places.get(&index).copied().filter(|place| place.digest == digest)?;
        let mut line = vec![0; place.length];
        state.file.seek(SeekFrom::Start(place.offset)).await.ok()?;
        state.file.read_exact(&mut line).await.ok()?;
        let kept: Kept = serde_json::from_slice(&line).ok()?;
        Some(Answer { status: kept.status, request_id: kept.request_id, body: kept.body })
    }

    /// Keeps the answer to a line, where there is room.
    pub(super) async fn put(&self, index: u64, digest: Digest, answer: &Answer) -> io::Result<()> {
        let kept = Kept {
            index,
            digest: digest.to_string(),
            status: answer.status,
            request_id: answer.request_id.clone(),
            body: answer.body.clone(),
        };
        let mut line = serde_json::to_vec(&kept)?;
        line.push(b'\n');
        let mut state = self.state.lock().await;
        let end = state.end;
        if end.saturating_add(line.len() as u64) > self.limit {
            return Ok(());
        }
        state.file.seek(SeekFrom::Start(end)).await?;
        state.file.write_all(&line).await?;
        // The node may be killed at any time; a machine that crashes may lose the last answers.
        state.file.flush().await?;
        state.end += line.len() as u64;
        state.places.insert(index, Place { digest, offset: end, length: line.len() });
        Ok(())
    }

    /// The task is done.
    pub(super) async fn remove(&self) {
        if let Err(error) = tokio::fs::remove_file(&self.path).await {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the answers of a task that is done");
        }
    }
}

/// Makes the folder, and removes what is too old in it, or too much; never `own`.
fn tidy(folder: &Path, own: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // A file that goes meanwhile needs no removal.
        if let Ok(metadata) = entry.metadata()
            && entry.path() != own
        {
            files.push((metadata.modified()?, metadata.len(), entry.path()));
        }
    }
    // The newest first: what is kept is a beginning of this list.
    files.sort_by_key(|(modified, ..)| std::cmp::Reverse(*modified));
    let oldest = SystemTime::now().checked_sub(KEEP);
    let mut bytes = 0_u64;
    for (modified, size, path) in files {
        bytes = bytes.saturating_add(size);
        if oldest.is_some_and(|oldest| modified < oldest) || bytes > KEEP_BYTES {
            tracing::info!(path = %path.display(), "answers of an unfinished task removed: too old, or no more room");
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Answer {
        let body = RawValue::from_string(format!("{{\"a\": {text:?}}}")).unwrap();
        Answer { status: 200, request_id: "r".to_owned(), body }
    }

    async fn open(folder: &Path) -> Partial {
        Partial::open(folder, "0xab.2", 10_000).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn answers_survive_and_a_torn_line_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let partial = open(folder.path()).await;
        partial.put(0, one, &answer("first")).await.unwrap();
        partial.put(7, two, &answer("second")).await.unwrap();
        drop(partial);
        let path = folder.path().join("0xab.jsonl");
        let mut text = std::fs::read_to_string(&path).unwrap();
        let whole = text.len();
        text.push_str(&text.clone()[..20]);
        std::fs::write(&path, text).unwrap();

        let partial = open(folder.path()).await;
        assert_eq!(std::fs::metadata(&path).unwrap().len() as usize, whole);
        assert_eq!(partial.get(7, two).await.unwrap().body.get(), r#"{"a": "second"}"#);
        assert!(partial.get(7, one).await.is_none(), "the line of the input has changed");
        assert!(partial.get(1, one).await.is_none());
        partial.put(1, one, &answer("third")).await.unwrap();
        assert_eq!(partial.get(0, one).await.unwrap().body.get(), r#"{"a": "first"}"#);
        assert_eq!(partial.get(1, one).await.unwrap().body.get(), r#"{"a": "third"}"#);
        partial.put(2, one, &answer(&"x".repeat(10_000))).await.unwrap();
        assert!(partial.get(2, one).await.is_none(), "there is no room for it");
        partial.remove().await;
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn labels_of_no_task_have_no_file() {
        let folder = tempfile::tempdir().unwrap();
        for label in ["", "task", "../x.1", ".1"] {
            assert!(Partial::open(folder.path(), label, 1).await.unwrap().is_none(), "{label}");
        }
    }
}
