//! Tasks that are being paid and are not published yet. Each is noted on this machine before its money moves, until it is published: the
//! same `run` goes on with it in place of paying for another.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use daemon::private_file;
use escrow::Status;
use serde::{Deserialize, Serialize};
use taskmarket::{Signed, Task, TaskId};

use crate::failure::{Context as _, Exit, Failure, Outcome};
use crate::follow::now;
use crate::money::tokens::{allowance, none};
use crate::money::{Purse, chain_failure, fund_purpose, is_done, is_under_way, kept};
use crate::ui::Ui;

/// A task that is noted as not published. No other command takes it up while this is held.
#[derive(Debug)]
pub(crate) struct Draft {
    id: TaskId,
    note: Note,
    folder: PathBuf,
    _lock: File,
}

/// What is noted beside a task that is about to be paid.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Note {
    /// Whether another account was given the transaction, and may send it at any time.
    pub(crate) handed: bool,
    /// How many seconds after the command the deadline was set, where it was given so.
    #[serde(default)]
    pub(crate) deadline_in: Option<u64>,
}

/// A task to go on with.
#[derive(Debug)]
pub(crate) struct Unpublished {
    /// The task.
    pub(crate) signed: Signed<Task>,
    /// Its note.
    pub(crate) draft: Draft,
    /// How far its money is.
    pub(crate) paid: Paid,
}

/// Where the money of a task is that is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Money {
    /// The task can be gone on with.
    Open(Paid),
    /// In the contract, and the deadline has passed without a proof.
    Expired,
    /// Not in the contract, and nothing brings it there.
    Nowhere,
}

/// How far the money is of a task to go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paid {
    /// The contract has it, or had it until it was paid out.
    Whole,
    /// A transaction of this account is planned, signed or sent.
    OnItsWay,
    /// Another account may send it.
    ByAnother,
}

impl Draft {
    /// Notes that a task is about to be paid; durable on return.
    ///
    /// # Errors
    /// Exit code 1 where another command is at the same task, or the note cannot be written.
    pub(crate) async fn begin(purse: &Purse, id: TaskId, note: Note) -> Outcome<Self> {
        let folder = folder(&purse.home);
        let shown = folder.display().to_string();
        let begin = move || {
            let _turn = turn(&folder)?;
            let path = path(&folder, id);
            if path.try_exists()? && take(&path)?.is_none() {
                return Ok(None);
            }
            private_file::create(&path, &serde_json::to_vec(&note)?)?;
            let lock = take(&path)?.ok_or(io::ErrorKind::WouldBlock)?;
            Ok::<_, io::Error>(Some(Self { id, note, folder, _lock: lock }))
        };
        blocking(begin).await?.or_failed(format_args!("{shown} cannot be used"))?.ok_or_else(|| {
            Failure::failed(format_args!("another command is paying task {id}"))
                .hint("a --salt of your own makes another task")
        })
    }

    /// Forgets the task: it is published, or there is nothing to publish.
    pub(crate) async fn end(self) -> Outcome {
        let end = move || {
            let _turn = turn(&self.folder)?;
            match fs::remove_file(path(&self.folder, self.id)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            }
        };
        blocking(end).await?.or_failed("the note of an unpublished task cannot be removed")
    }

    /// How far the task's money is, by the contract and by this account's outbox.
    async fn money(&self, purse: &Purse, task: &Task) -> Outcome<Money> {
        let id = self.id;
        let read = async { Ok((purse.chain.head().await?.time, purse.chain.record(id).await?.status)) };
        let (time, status) = read.await.map_err(chain_failure)?;
        let open = |paid| Ok(Money::Open(paid));
        match status {
            Status::Funded | Status::Accepted if time >= task.deadline => Ok(Money::Expired),
            // With a proof the relay had it, whatever became of its answer.
            Status::Funded
            | Status::Accepted
            | Status::Proven
            | Status::Disputed
            | Status::Paid
            | Status::Split => open(Paid::Whole),
            Status::None if time >= task.deadline => Ok(Money::Nowhere),
            Status::None if self.note.handed => open(Paid::ByAnother),
            Status::None if may_be_paid(purse, id).await? => open(Paid::OnItsWay),
            Status::None | Status::Refunded | Status::Cancelled => Ok(Money::Nowhere),
        }
    }

    /// Goes on with the task, where its money lets it: gives how far that is. Else says what is left to do, and forgets the task.
    pub(crate) async fn go_on(self, purse: &Purse, task: &Task, ui: &Ui) -> Outcome<Option<(Self, Paid)>> {
        match self.money(purse, task).await? {
            Money::Open(paid) => return Ok(Some((self, paid))),
            Money::Expired => ui.warn(format_args!("{}; {}", expired(self.id), refund(self.id))),
            Money::Nowhere => {}
        }
        self.end().await?;
        Ok(None)
    }

    /// Says how to go on where paying or publishing failed. The task is forgotten where there is nothing to go on with.
    pub(crate) async fn advise(self, purse: &Purse, task: &Task, failure: Failure) -> Failure {
        let id = self.id;
        let unsure = Money::Open(Paid::OnItsWay);
        let money = if failure.exit() == Exit::Interrupted {
            // Who stops a command does not wait for the chain, or for another command's turn.
            unsure
        } else {
            // A chain out of reach tells nothing: the money may have moved.
            self.money(purse, task).await.unwrap_or(unsure)
        };
        let is = match money {
            Money::Open(Paid::Whole) => "is paid",
            Money::Open(Paid::OnItsWay | Paid::ByAnother) => "may be paid",
            Money::Expired | Money::Nowhere => {
                let failure = match self.end().await {
                    Ok(()) => failure,
                    Err(kept) => failure.hint(kept.message()),
                };
                return if money == Money::Expired {
                    failure.hint(expired(id)).hint(refund(id))
                } else {
                    failure.hint(format_args!("nothing is paid for task {id}, which is not published"))
                };
            }
        };
        failure
            .hint(format_args!(
                "task {id} {is} and not published: the same command goes on with it, and so does `zorai-compute watch {id}`"
            ))
            .hint(format_args!(
                "or get the budget back: zorai-compute cancel {id}; from {} on: zorai-compute refund {id}",
                task.deadline
            ))
    }
}

fn expired(id: TaskId) -> String {
    format!("task {id} is paid and has no proof, and its deadline has passed")
}

fn refund(id: TaskId) -> String {
    format!("get the budget back: zorai-compute refund {id}")
}

/// A task of these terms that this machine has begun to pay and has not published, if there is one that no other command is at.
pub(crate) async fn unpublished(
    purse: &Purse,
    same: impl Fn(&Task, Note) -> bool,
    ui: &Ui,
) -> Outcome<Option<Unpublished>> {
    for id in noted(&purse.home).await? {
        let (signed, draft) = match take_up(purse, id).await {
            Ok(Some(both)) => both,
            Ok(None) => continue,
            Err(failure) => {
                ui.warn(failure.message());
                continue;
            }
        };
        let is_same = same(&signed.message, draft.note);
        if !is_same && now() < signed.message.deadline {
            continue;
        }
        if let Some((draft, paid)) = draft.go_on(purse, &signed.message, ui).await?
            && is_same
        {
            return Ok(Some(Unpublished { signed, draft, paid }));
        }
    }
    Ok(None)
}

/// Takes this task up, where it is noted and no other command is at it.
pub(crate) async fn take_up(purse: &Purse, id: TaskId) -> Outcome<Option<(Signed<Task>, Draft)>> {
    let (home, domain) = (purse.home.clone(), purse.chain.domain());
    let take_up = move || {
        let folder = folder(&home);
        let _turn = turn(&folder)?;
        let path = path(&folder, id);
        let Some(lock) = take(&path)? else { return Ok(None) };
        let note = serde_json::from_slice(&fs::read(&path)?)?;
        let Some((signed, of)) = kept::read(&home, id)? else { return Ok(None) };
        Ok::<_, io::Error>(
            (of == domain && signed.message.id(&of) == id)
                .then_some((signed, Draft { id, note, folder, _lock: lock })),
        )
    };
    blocking(take_up).await?.or_failed(format_args!("the note of task {id} cannot be read"))
}

/// Whether something that pays this task is planned, signed or sent, or was done.
async fn may_be_paid(purse: &Purse, id: TaskId) -> Outcome<bool> {
    let outbox = purse.outbox().await?;
    let funding = fund_purpose(id);
    let allowance = allowance(&funding);
    for purpose in [&funding, &allowance, &none(&allowance)] {
        if is_under_way(&outbox, purpose).await? {
            return Ok(true);
        }
    }
    // Done, and not in the chain: a reorganisation took it back.
    is_done(&outbox, &funding).await
}

fn folder(home: &Path) -> PathBuf {
    home.join("unpublished")
}

fn path(folder: &Path, id: TaskId) -> PathBuf {
    folder.join(format!("{id}.json"))
}

/// The ids of the tasks that are noted.
async fn noted(home: &Path) -> Outcome<Vec<TaskId>> {
    let folder = folder(home);
    let names = move || match fs::read_dir(&folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let names = blocking(names).await?.or_failed("the notes of unpublished tasks cannot be read")?;
    Ok(names.iter().filter_map(|name| name.to_str()?.strip_suffix(".json")?.parse().ok()).collect())
}

/// Held while notes are made, taken and removed, a moment each: what is locked is then what has the name.
fn turn(folder: &Path) -> io::Result<File> {
    fs::create_dir_all(folder)?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(folder.join("lock"))?;
    file.lock()?;
    Ok(file)
}

/// Locks a note, where there is one and nobody holds it.
fn take(path: &Path) -> io::Result<Option<File>> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
    tokio::task::spawn_blocking(work).await.map_err(Failure::failed)
}
