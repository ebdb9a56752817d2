//! Checking what comes back: the task, the proof and the result, without trusting the relay.

use std::path::Path;
use std::time::Duration;

use indicatif::ProgressBar;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use rpc::tasks::{ShownTask, TaskView};
use serde::Serialize;
use taskmarket::{ComputeProof, ContentHash, Domain, Signed, Task, TaskId};
use tempfile::NamedTempFile;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use crate::content::hash_of;
use crate::failure::{Context as _, Exit, Failure, Outcome};
use crate::relay::{Relay, causes};
use crate::ui::{Ui, binary, is_unfit_for_stdout};

/// The largest result that is fetched, in bytes.
const MAX_RESULT_BYTES: u64 = 32 << 30;

/// How many connections in a row may bring nothing new before a result is given up.
const MAX_BROKEN: u32 = 3;

/// A result whose proof holds.
#[derive(Debug)]
pub(crate) struct Checked {
    /// The task's id.
    pub(crate) id: TaskId,
    /// The domain of the task and of all signatures about it.
    pub(crate) domain: Domain,
    /// What the provider signed.
    pub(crate) proof: ComputeProof,
    /// The result.
    pub(crate) result: ResultFile,
}

/// A result on this machine, gone when dropped.
#[derive(Debug)]
pub(crate) struct ResultFile {
    file: NamedTempFile,
    /// Its SHA-256.
    pub(crate) hash: ContentHash,
    /// Its size in bytes.
    pub(crate) bytes: u64,
}

/// What a checked task came to, for people and programs.
#[derive(Debug, Serialize)]
pub(crate) struct Receipt {
    task_id: TaskId,
    status: taskmarket::Status,
    provider: String,
    attempt: u32,
    device: String,
    model_hash: ContentHash,
    input_hash: ContentHash,
    result_hash: ContentHash,
    result_bytes: u64,
    started_at: taskmarket::Timestamp,
    finished_at: taskmarket::Timestamp,
    ran_secs: u64,
    total_ms: u64,
    /// Where the result was written; null where it was left at the relay.
    output: Option<String>,
}

impl Receipt {
    /// The receipt of a task that took so long from its publication to now.
    pub(crate) fn new(
        checked: &Checked,
        status: taskmarket::Status,
        total: Duration,
        output: Option<&Path>,
    ) -> Self {
        let proof = &checked.proof;
        Self {
            task_id: checked.id,
            status,
            provider: proof.provider.to_string(),
            attempt: proof.attempt,
            device: proof.gpu_name.clone(),
            model_hash: proof.model_hash,
            input_hash: proof.input_hash,
            result_hash: proof.result_hash,
            result_bytes: checked.result.bytes,
            started_at: proof.started_at,
            finished_at: proof.finished_at,
            ran_secs: proof.finished_at.since(proof.started_at),
            total_ms: u64::try_from(total.as_millis()).unwrap_or(u64::MAX),
            output: output.map(|path| path.display().to_string()),
        }
    }

    /// The receipt's lines, for people.
    pub(crate) fn say(&self, ui: &Ui) {
        let (ran, total) = times(self.ran_secs, self.total_ms);
        for (name, value) in [
            ("task", self.task_id.to_string()),
            ("provider", self.provider.clone()),
            ("device", crate::ui::clean(&self.device)),
            ("model", format!("sha256 {}", self.model_hash)),
            ("input", format!("sha256 {}", self.input_hash)),
            ("result", format!("sha256 {}, {}", self.result_hash, crate::ui::size(self.result_bytes))),
            ("time", format!("{ran} at the provider, {total} waited for")),
        ] {
            ui.say(format_args!("  {name:<9}{value}"));
        }
    }
}

/// How long a task ran at its provider, and how long it was waited for here. The provider signs whole seconds of its clock, so that it ran
/// for up to a second more or less than their difference.
fn times(ran_secs: u64, waited_ms: u64) -> (String, String) {
    let more_ms = ran_secs.saturating_mul(1000).saturating_sub(waited_ms);
    // It may well have run within the wait, of which it is more by rounding alone.
    let is_rounded = (1..1000).contains(&more_ms);
    let ran = match ran_secs {
        0 => "under 1 s".to_owned(),
        1 if is_rounded => "under 1 s".to_owned(),
        secs if is_rounded => format!("over {} s", secs - 1),
        secs => format!("about {secs} s"),
    };
    (ran, crate::ui::span(Duration::from_millis(waited_ms)))
}

/// The task of a view, if it is the one asked for and its requester signed it.
///
/// # Errors
/// Exit code 5, or 3 where the relay shows only a part of the task.
pub(crate) fn check_task(view: &TaskView, asked: TaskId) -> Outcome<(Task, Domain)> {
    let domain = Domain { chain_id: view.chain_id, verifying_contract: view.verifying_contract };
    let (ShownTask::Whole(task), Some(signature)) = (&view.task, view.signature) else {
        return Err(Failure::new(
            Exit::NotAuthorised,
            format_args!("the relay shows only the requirements of task {asked}"),
        )
        .hint("use the API key that published the task"));
    };
    let id = task.id(&domain);
    if id != asked {
        return Err(Failure::unverified(format_args!(
            "the relay shows another task: its digest is {id}, not {asked}"
        )));
    }
    let signed = Signed { message: Task::clone(task), signature };
    signed.verify(&domain).map_err(|error| Failure::unverified(format_args!("the task: {error}")))?;
    Ok((Task::clone(task), domain))
}

/// The proof of a view, if its provider signed it and it fits the task.
///
/// # Errors
/// Exit code 5; 1 where there is no proof yet.
pub(crate) fn check_proof(
    view: &TaskView,
    id: TaskId,
    task: &Task,
    domain: &Domain,
) -> Outcome<ComputeProof> {
    let Some(shown) = &view.proof else {
        return Err(Failure::failed(format_args!("task {id} is {}: it has no result", view.status))
            .hint(format_args!("follow it: zorai-compute events {id} --follow")));
    };
    let proof = shown.proof.clone();
    let signed = Signed { message: proof.clone(), signature: shown.signature };
    signed.verify(domain).map_err(|error| Failure::unverified(format_args!("the proof: {error}")))?;
    let wrong = |what: String| Err(Failure::unverified(format_args!("the proof {what}")));
    if proof.task_id != id {
        return wrong(format!("is of task {}, not of {id}", proof.task_id));
    }
    if proof.attempt != view.attempt || view.provider != Some(proof.provider) {
        return wrong(format!(
            "is of attempt {} by {}, but the task's attempt is {} by {}",
            proof.attempt,
            proof.provider,
            view.attempt,
            view.provider.map_or_else(|| "nobody".to_owned(), |provider| provider.to_string())
        ));
    }
    for (what, pin, used) in
        [("model", task.model_hash, proof.model_hash), ("input", task.input_hash, proof.input_hash)]
    {
        if !pin.admits(&used) {
            return wrong(format!("is of another {what}: the task pins {pin}, the provider used {used}"));
        }
    }
    Ok(proof)
}

/// Fetches a task's result and checks all of it: task, proof, bytes.
///
/// # Errors
/// Exit code 5 where something does not hold; no byte of the result is handed out then.
pub(crate) async fn fetch(relay: &Relay, view: &TaskView, id: TaskId, ui: &Ui) -> Outcome<Checked> {
    let (task, domain) = check_task(view, id)?;
    let proof = check_proof(view, id, &task, &domain)?;
    let result = download(relay, id, ui).await?;
    check_result(&proof, result.hash)?;
    Ok(Checked { id, domain, proof, result })
}

/// Whether the bytes are those that the provider signed for.
pub(crate) fn check_result(proof: &ComputeProof, hash: ContentHash) -> Outcome {
    if hash == proof.result_hash {
        return Ok(());
    }
    Err(Failure::unverified(format_args!(
        "the result is not the proven one: its SHA-256 is {hash}, the proof says {}",
        proof.result_hash
    )))
}

/// Fetches a result; where the connection breaks, the next one goes on from there.
async fn download(relay: &Relay, id: TaskId, ui: &Ui) -> Outcome<ResultFile> {
    let file = NamedTempFile::new().or_failed("a file for the result")?;
    let mut sink = tokio::fs::File::from_std(file.reopen().or_failed("a file for the result")?);
    let mut hasher = artifact::Hasher::new();
    let bar = ui.bytes("fetching the result", 0);
    let (mut farthest, mut broken) = (0, 0);
    loop {
        let response = relay.result(id, hasher.len()).await?;
        if !goes_on_at(&response, hasher.len()) {
            // The relay gives all of it again.
            sink.set_len(0).await.or_failed("a file for the result")?;
            sink.rewind().await.or_failed("a file for the result")?;
            hasher = artifact::Hasher::new();
        }
        bar.set_length(hasher.len() + response.content_length().unwrap_or(0));
        match receive(response, &mut sink, &mut hasher, &bar).await? {
            None => break,
            Some(why) => {
                // A connection that came farther than any before was worth its try.
                broken = if hasher.len() > farthest { 0 } else { broken + 1 };
                farthest = farthest.max(hasher.len());
                if broken == MAX_BROKEN {
                    return Err(Failure::new(Exit::Unreachable, format_args!("the result broke off: {why}"))
                        .hint("try again: zorai-compute result TASK_ID"));
                }
                ui.detail(format_args!("the result broke off: {why}; going on at byte {}", hasher.len()));
            }
        }
    }
    sink.flush().await.or_failed("a file for the result")?;
    bar.finish_and_clear();
    Ok(ResultFile { file, hash: hash_of(hasher.digest()), bytes: hasher.len() })
}

/// Whether an answer goes on where the last one broke off.
fn goes_on_at(response: &Response, from: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let starts = range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")));
    from == 0 || (response.status() == StatusCode::PARTIAL_CONTENT && starts)
}

/// Takes what comes of one answer. Gives the reason if it broke off.
async fn receive(
    mut response: Response,
    sink: &mut tokio::fs::File,
    hasher: &mut artifact::Hasher,
    bar: &ProgressBar,
) -> Outcome<Option<String>> {
    loop {
        let piece = match response.chunk().await {
            Ok(Some(piece)) => piece,
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(causes(&error.without_url()))),
        };
        hasher.update(&piece);
        if hasher.len() > MAX_RESULT_BYTES {
            return Err(Failure::failed(format_args!("the result is larger than {MAX_RESULT_BYTES} bytes")));
        }
        sink.write_all(&piece).await.or_failed("a file for the result")?;
        bar.set_position(hasher.len());
    }
}

impl ResultFile {
    /// Whether standard output is a terminal and the result is nothing to show there.
    pub(crate) fn is_unfit_for_stdout(&self) -> Outcome<bool> {
        is_unfit_for_stdout(self.file.path())
    }

    /// Writes the result to a file, whole or not at all, or to standard output.
    pub(crate) async fn write(&self, output: Option<&Path>) -> Outcome {
        let mut source = tokio::fs::File::from_std(self.file.reopen()?);
        source.rewind().await?;
        let Some(path) = output else {
            if self.is_unfit_for_stdout()? {
                return Err(binary("the result"));
            }
            let mut stdout = tokio::io::stdout();
            tokio::io::copy(&mut source, &mut stdout).await?;
            stdout.flush().await?;
            return Ok(());
        };
        let failed = |error: std::io::Error| Failure::failed(format_args!("{}: {error}", path.display()));
        let folder = folder_of(path);
        if path.exists() && !path.is_file() {
            // A device or a pipe: there is nothing to replace.
            let mut sink = tokio::fs::OpenOptions::new().write(true).open(path).await.map_err(failed)?;
            tokio::io::copy(&mut source, &mut sink).await.map_err(failed)?;
            return sink.flush().await.map_err(failed);
        }
        let staged = tempfile::Builder::new().prefix(".zorai-").tempfile_in(folder).map_err(failed)?;
        let mut sink = tokio::fs::File::from_std(staged.reopen().map_err(failed)?);
        tokio::io::copy(&mut source, &mut sink).await.map_err(failed)?;
        sink.flush().await.map_err(failed)?;
        staged.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// The result in memory, if it is no larger than `max_bytes`.
    pub(crate) fn read(&self, max_bytes: u64) -> Outcome<Vec<u8>> {
        if self.bytes > max_bytes {
            return Err(Failure::failed(format_args!(
                "the result has {} bytes, more than {max_bytes}",
                self.bytes
            )));
        }
        Ok(std::fs::read(self.file.path())?)
    }
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Checks that a result can be written there, before anything is done for it.
pub(crate) fn check_output(path: &Path) -> Outcome {
    let folder = folder_of(path);
    if path.as_os_str() == "-" || folder.is_dir() {
        return Ok(());
    }
    Err(Failure::usage(format_args!("--output {}: there is no folder {}", path.display(), folder.display()))
        .hint("make it first, or name another file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_ran_no_longer_than_it_was_waited_for_unless_it_did() {
        for (ran, waited_ms, told, waited) in [
            (0, 200, "under 1 s", "0.2 s"),
            (1, 700, "under 1 s", "0.7 s"),
            (1, 1400, "about 1 s", "1.4 s"),
            (2, 1300, "over 1 s", "1.3 s"),
            (2, 2000, "about 2 s", "2.0 s"),
            // Watched only from its end on.
            (300, 1000, "about 300 s", "1.0 s"),
        ] {
            assert_eq!(times(ran, waited_ms), (told.to_owned(), waited.to_owned()), "{ran} {waited_ms}");
        }
    }
}
