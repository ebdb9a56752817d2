//! Settled tasks kept on this machine: with one of them its money can be taken back even where no relay has heard of it.

use std::io;
use std::path::{Path, PathBuf};

use daemon::{default_data_dir, private_file};
use serde::{Deserialize, Serialize};
use taskmarket::{Address, Domain, Signature, Signed, Task, TaskId};

use crate::cli::Global;
use crate::failure::{Context as _, Failure, Outcome};
use crate::proof;
use crate::ui::Ui;

/// A task and where its money is.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// The task.
    pub(crate) task: Task,
    /// Under which domain it is signed.
    pub(crate) domain: Domain,
    /// The requester's signature, where this machine kept it.
    pub(crate) signature: Option<Signature>,
}

#[derive(Serialize, Deserialize)]
struct File {
    domain: Domain,
    task: Task,
    signature: Signature,
}

/// Keeps a signed task in this folder, durably: this comes before its money moves.
pub(crate) async fn keep(home: &Path, signed: &Signed<Task>, domain: Domain) -> Outcome {
    let file = File { domain, task: signed.message.clone(), signature: signed.signature };
    let path = path(home, file.task.id(&domain));
    let text = serde_json::to_vec_pretty(&file).map_err(Failure::failed)?;
    let shown = path.display().to_string();
    tokio::task::spawn_blocking(move || private_file::create(&path, &text))
        .await
        .map_err(Failure::failed)?
        .or_failed(format_args!("{shown} cannot be written"))
}

/// Finds a task: on this machine, else at the relay. Its id is checked in both.
pub(crate) async fn find(global: &Global, id: TaskId, ui: &Ui) -> Outcome<Found> {
    let home = default_data_dir("client");
    let kept = tokio::task::spawn_blocking(move || read(&home, id)).await.map_err(Failure::failed)?;
    if let Some((Signed { message: task, signature }, domain)) =
        kept.or_failed(format_args!("the kept task {id} cannot be read"))?
    {
        if task.id(&domain) != id {
            return Err(Failure::unverified(format_args!("what is kept as task {id} is another one")));
        }
        return Ok(Found { task, domain, signature: Some(signature) });
    }
    let view = global.reading_relay(ui).await?.task(id).await?;
    let (task, domain) = proof::check_task(&view, id)?;
    Ok(Found { task, domain, signature: None })
}

/// Reads what is kept under a task's id, if something is.
pub(super) fn read(home: &Path, id: TaskId) -> io::Result<Option<(Signed<Task>, Domain)>> {
    let text = match std::fs::read(path(home, id)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let File { domain, task, signature } = serde_json::from_slice(&text)?;
    Ok(Some((Signed { message: task, signature }, domain)))
}

/// The tokens of the tasks that this machine has paid under this domain, each once. What cannot be read is left out: there is
/// money to be shown besides.
pub(crate) fn tokens(domain: Domain) -> Vec<Address> {
    let folder = std::fs::read_dir(default_data_dir("client").join("tasks"));
    let files = folder.into_iter().flatten().flatten().filter_map(|entry| std::fs::read(entry.path()).ok());
    let kept = files.filter_map(|text| serde_json::from_slice::<File>(&text).ok());
    let mut tokens: Vec<_> = kept
        .filter(|file| file.domain == domain && !file.task.token.is_zero())
        .map(|file| file.task.token)
        .collect();
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

fn path(home: &Path, id: TaskId) -> PathBuf {
    home.join("tasks").join(format!("{id}.json"))
}
