//! The outbox: what callers use.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy_primitives::{Address, U256};
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wallet::Wallet;

use super::entry::{Entry, FailureReason, Mined, State, Trouble};
use super::send::Sender;
use super::store::{Store, StoreError};
use crate::call::Call;
use crate::chain::ChainError;
use crate::rpc::{Rpc, RpcError};

/// How long what has ended is remembered, so that it is not sent again: longer than a task can last by the contract's limits (90
/// days to its deadline, and 30 for each of its windows).
const REMEMBERED: Duration = Duration::from_secs(180 * 24 * 60 * 60);

/// How transactions are sent.
#[derive(Debug, Clone)]
pub struct OutboxConfig {
    /// How many blocks, its own included, make a transaction final.
    pub confirmations: u64,
    /// The most that is paid for each unit of gas, in the native coin's smallest unit.
    pub max_fee_per_gas: u64,
    /// The most gas that one transaction may use.
    pub max_gas: u64,
    /// How long a transaction may wait to be mined before its fees are raised, and how long its receipt is waited for before its nonce
    /// counts as taken by another.
    pub stuck_after: Duration,
    /// How often the chain is looked at while something is on its way.
    pub poll: Duration,
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self {
            confirmations: 1,
            max_fee_per_gas: 200_000_000_000,
            max_gas: 15_000_000,
            stuck_after: Duration::from_secs(60),
            poll: Duration::from_secs(2),
        }
    }
}

/// Why a transaction cannot be sent, or what became of it cannot be said.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The folder cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Another process sends for this account.
    #[error("another process sends transactions of this account from {}", path.display())]
    InUse {
        /// The lock's file.
        path: PathBuf,
    },
    /// What is kept cannot be read or written.
    #[error("the outbox cannot be used: {0}")]
    Store(#[from] StoreError),
    /// The chain cannot be reached, or answers nonsense.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Signing failed.
    #[error(transparent)]
    Sign(#[from] wallet::SignError),
    /// The account cannot pay. The transaction stays planned, and is sent once the account can.
    #[error(
        "{account} has {balance} of the native coin's smallest unit, and {needed} are needed for {purpose}"
    )]
    InsufficientFunds {
        /// Whose money.
        account: Address,
        /// For what.
        purpose: String,
        /// What it costs at most.
        needed: U256,
        /// What there is.
        balance: U256,
    },
    /// The transaction did nothing, for good.
    #[error("{purpose}: {reason}")]
    Failed {
        /// What it was for.
        purpose: String,
        /// Why.
        reason: FailureReason,
    },
    /// It is not final within the time given. It stays on its way.
    #[error("{purpose} is not final yet{}", why.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    TimedOut {
        /// What it is for.
        purpose: String,
        /// What holds it up.
        why: Option<Trouble>,
    },
    /// Nothing was planned for this purpose.
    #[error("nothing is planned for {purpose}")]
    Unknown {
        /// The purpose.
        purpose: String,
    },
    /// The last transaction for this purpose did not fail, so there is nothing to try again.
    #[error("{purpose} has not failed")]
    NotFailed {
        /// The purpose.
        purpose: String,
    },
}

impl From<RpcError> for OutboxError {
    fn from(error: RpcError) -> Self {
        Self::Chain(error.into())
    }
}

/// Sends the transactions of one account on one chain. Cheap to clone; the folder's lock lasts as long as any clone.
#[derive(Debug, Clone)]
pub struct Outbox {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    sender: Sender,
    /// Held by whoever looks at the chain, so that one does at a time.
    turn: Mutex<()>,
    /// Told after each look at the chain.
    looked: Notify,
    /// Told after each new entry.
    planned: Notify,
    poll: Duration,
    _lock: File,
}

impl Outbox {
    /// Opens the outbox of the wallet's account on the endpoints' chain, in a folder that may hold those of others too.
    ///
    /// # Errors
    /// The folder cannot be used, another process uses this account's outbox, or no endpoint says which chain it serves.
    pub async fn open(
        folder: &Path,
        rpc: Rpc,
        wallet: Wallet,
        config: OutboxConfig,
    ) -> Result<Self, OutboxError> {
        let chain_id = rpc.chain_id().await?;
        let name = format!("outbox-{chain_id}-{}", wallet.address());
        let lock = lock(folder, &format!("{name}.lock"))?;
        let store =
            Store::open(&folder.join(format!("{name}.db")), now().saturating_sub(REMEMBERED.as_secs()))?;
        let poll = config.poll;
        let sender = Sender::new(rpc, wallet, chain_id, store.clone(), config);
        Ok(Self {
            inner: Arc::new(Inner {
                store,
                sender,
                turn: Mutex::new(()),
                looked: Notify::new(),
                planned: Notify::new(),
                poll,
                _lock: lock,
            }),
        })
    }

    /// Whose transactions these are.
    pub fn account(&self) -> Address {
        self.inner.sender.account()
    }

    /// The chain's endpoints.
    pub fn rpc(&self) -> &Rpc {
        self.inner.sender.rpc()
    }

    /// Keeps a transaction to be sent; durable on return. Where the purpose is known already, nothing changes, and what is known is
    /// the answer, whatever `call` says now.
    ///
    /// # Errors
    /// The outbox cannot be written.
    pub async fn submit(&self, purpose: &str, call: Call) -> Result<Entry, OutboxError> {
        let entry = self.inner.store.insert(planned(purpose, call)).await?;
        self.inner.planned.notify_one();
        Ok(entry)
    }

    /// Plans anew what failed: a call that came too early, say.
    ///
    /// # Errors
    /// [`OutboxError::NotFailed`] where the last one did not fail, or the outbox cannot be written.
    pub async fn retry(&self, purpose: &str, call: Call) -> Result<Entry, OutboxError> {
        let _turn = self.inner.turn.lock().await;
        let purpose = purpose.to_owned();
        match self.inner.store.get(&purpose).await? {
            None => return Err(OutboxError::Unknown { purpose }),
            Some(Entry { state: State::Failed(_), .. }) => {}
            Some(_) => return Err(OutboxError::NotFailed { purpose }),
        }
        let entry = planned(&purpose, call);
        self.inner.store.update(&entry).await?;
        self.inner.planned.notify_one();
        Ok(entry)
    }

    /// Asks the chain again about what is done. Where its nonce is free again, as after a reorganisation deeper than the confirmations,
    /// it is on its way again as it was signed. Where the nonce is used it stays done, though no endpoint has a receipt. Gives what is
    /// known then; what is not done stays as it is.
    ///
    /// # Errors
    /// The chain cannot be reached, nothing was planned for this purpose, or the outbox cannot be used.
    pub async fn recheck(&self, purpose: &str) -> Result<Entry, OutboxError> {
        let _turn = self.inner.turn.lock().await;
        let mut entry = self.known(purpose).await?;
        if matches!(entry.state, State::Done(_)) {
            self.inner.sender.recheck(&mut entry).await?;
            self.inner.planned.notify_one();
        }
        Ok(entry)
    }

    /// Plans anew what has ended, done or failed: for what is used up, such as an allowance. What is on its way stays as it is.
    ///
    /// # Errors
    /// Nothing was planned for this purpose, or the outbox cannot be written.
    pub async fn renew(&self, purpose: &str, call: Call) -> Result<Entry, OutboxError> {
        let _turn = self.inner.turn.lock().await;
        let entry = self.known(purpose).await?;
        if !entry.is_final() {
            return Ok(entry);
        }
        let entry = planned(purpose, call);
        self.inner.store.update(&entry).await?;
        self.inner.planned.notify_one();
        Ok(entry)
    }

    /// Forgets what is done, so that the same purpose can be paid once more.
    ///
    /// # Errors
    /// The outbox cannot be read or written.
    pub async fn close(&self, purpose: &str) -> Result<(), OutboxError> {
        let _turn = self.inner.turn.lock().await;
        if let Some(Entry { state: State::Done(_), .. }) = self.inner.store.get(purpose).await? {
            self.inner.store.remove(purpose).await?;
        }
        Ok(())
    }

    /// Forgets what is planned and has nothing signed that may be mined. Says whether nothing of this purpose can be sent any more,
    /// also where nothing was planned; what is on its way or has ended stays.
    ///
    /// # Errors
    /// The outbox cannot be read or written.
    pub async fn withdraw(&self, purpose: &str) -> Result<bool, OutboxError> {
        let _turn = self.inner.turn.lock().await;
        match self.inner.store.get(purpose).await? {
            None => Ok(true),
            Some(Entry { state: State::Planned { .. }, .. }) => {
                self.inner.store.remove(purpose).await?;
                Ok(true)
            }
            Some(_) => Ok(false),
        }
    }

    /// What is known of a purpose.
    ///
    /// # Errors
    /// The outbox cannot be read.
    pub async fn get(&self, purpose: &str) -> Result<Option<Entry>, OutboxError> {
        Ok(self.inner.store.get(purpose).await?)
    }

    async fn known(&self, purpose: &str) -> Result<Entry, OutboxError> {
        self.get(purpose).await?.ok_or_else(|| OutboxError::Unknown { purpose: purpose.to_owned() })
    }

    /// All that is on its way, the oldest first.
    ///
    /// # Errors
    /// The outbox cannot be read.
    pub async fn unfinished(&self) -> Result<Vec<Entry>, OutboxError> {
        Ok(self.inner.store.unfinished().await?)
    }

    /// Waits until a transaction is final: [`State::Done`] or [`State::Failed`]. Sends what is to be sent meanwhile, where nobody
    /// else does.
    ///
    /// # Errors
    /// [`OutboxError::InsufficientFunds`] as soon as the account cannot pay; [`OutboxError::TimedOut`]; nothing was planned for this
    /// purpose. In each case the transaction stays as it is, and can be waited for again.
    pub async fn wait(&self, purpose: &str, time: Duration) -> Result<Entry, OutboxError> {
        let deadline = Instant::now() + time;
        loop {
            let others = self.inner.looked.notified();
            let looked = match self.inner.turn.try_lock() {
                Ok(_turn) => Some(self.inner.sender.step().await),
                Err(_) => None,
            };
            if looked.is_some() {
                self.inner.looked.notify_waiters();
            }
            let entry = self.known(purpose).await?;
            if entry.is_final() {
                return Ok(entry);
            }
            if let Some(Trouble::InsufficientFunds { needed, balance }) = entry.trouble {
                let account = self.account();
                return Err(OutboxError::InsufficientFunds {
                    account,
                    purpose: purpose.to_owned(),
                    needed,
                    balance,
                });
            }
            if Instant::now() >= deadline {
                return Err(match looked {
                    Some(Err(error)) => error,
                    Some(Ok(())) | None => {
                        OutboxError::TimedOut { purpose: purpose.to_owned(), why: entry.trouble }
                    }
                });
            }
            let pause = self.inner.poll.min(deadline - Instant::now());
            if looked.is_some() {
                tokio::time::sleep(pause).await;
            } else {
                // Somebody else looks; should they give up, this one goes on after the pause.
                let _ = tokio::time::timeout(pause, others).await;
            }
        }
    }

    /// Submits, and waits until it is done.
    ///
    /// # Errors
    /// [`OutboxError::Failed`] where it failed; else as [`Outbox::wait`].
    pub async fn send(&self, purpose: &str, call: Call, time: Duration) -> Result<Mined, OutboxError> {
        self.submit(purpose, call).await?;
        let entry = self.wait(purpose, time).await?;
        match entry.state {
            State::Done(mined) => Ok(mined),
            State::Failed(reason) => Err(OutboxError::Failed { purpose: purpose.to_owned(), reason }),
            State::Planned { .. } | State::Signed(_) | State::Sent(_) | State::Mined { .. } => {
                Err(OutboxError::TimedOut { purpose: purpose.to_owned(), why: entry.trouble })
            }
        }
    }

    /// Looks at the chain once: what was signed is followed, what is planned is signed and sent.
    ///
    /// # Errors
    /// The chain cannot be reached, or the outbox cannot be used. Nothing is lost: the next step goes on.
    pub async fn step(&self) -> Result<(), OutboxError> {
        let turn = self.inner.turn.lock().await;
        let result = self.inner.sender.step().await;
        drop(turn);
        self.inner.looked.notify_waiters();
        result
    }

    /// Steps until the token is cancelled: at once after each new entry, and every so often while something is on its way.
    pub async fn run(&self, token: CancellationToken) {
        loop {
            let open = match self.step().await {
                Ok(()) => self.unfinished().await.map_or(true, |entries| !entries.is_empty()),
                Err(error) => {
                    tracing::warn!(%error, "transactions wait");
                    true
                }
            };
            let pause = if open { self.inner.poll } else { Duration::from_secs(3600) };
            tokio::select! {
                () = token.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.inner.planned.notified() => {}
            }
        }
    }
}

fn planned(purpose: &str, call: Call) -> Entry {
    Entry {
        purpose: purpose.to_owned(),
        call,
        created_at: now(),
        state: State::Planned { nonce: None },
        trouble: None,
        done_by: None,
    }
}

/// Unix seconds of this machine's clock.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn lock(folder: &Path, name: &str) -> Result<File, OutboxError> {
    let failed = |action, path: &Path, source| OutboxError::Io { action, path: path.to_owned(), source };
    fs::create_dir_all(folder).map_err(|source| failed("create", folder, source))?;
    let path = folder.join(name);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| failed("open", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OutboxError::InUse { path }),
        Err(TryLockError::Error(source)) => Err(failed("lock", &path, source)),
    }
}
