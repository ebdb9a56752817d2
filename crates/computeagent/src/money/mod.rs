//! The money of settled tasks: what the escrow contract holds of it, by this agent's own endpoints and never on the relay's word.
//!
//! Work and money are two things. The driver of an attempt does the work and says what it wants of the money ([`Wish`]); the keeper
//! ([`keep`]) reads the chain's record of each open claim and does the next step, and tells the driver where it stands
//! ([`Standing`]). All that the keeper goes by is the book, the chain and the outbox, so that it may die between any two lines.

mod book;
mod check;
mod claim;
mod earnings;
mod keeper;
mod rest;
mod step;
mod terms;
mod unstake;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use escrow::tx::{Outbox, OutboxConfig, OutboxError, Trouble};
use escrow::{Chain, Rpc, RpcConfig, RpcError};
use rpc::link::AttemptKey;
use rpc::tasks::{FailureView, SignedMutation};
use taskmarket::{AcceptTask, ApproveResult, ComputeProof, Domain, Signed, Task, Timestamp};
use tokio::sync::{Mutex, Notify, OnceCell, watch};
use tokio_util::sync::CancellationToken;
use wallet::Wallet;

pub(crate) use book::Book;
pub use book::BookError;
pub(crate) use claim::{Claim, Standing, Wish};
pub use earnings::{EarningsArgs, EarningsError};
pub(crate) use keeper::keep;
use rest::Hold;
pub use terms::{EscrowConfig, EscrowTiming, Terms};
pub use unstake::{UnstakeArgs, UnstakeError, Unstaked, unstake};

use crate::agent::now;

/// Claims that may be open at once, most of which wait for a window's end.
const MAX_CLAIMS: usize = 10_000;
/// How long one endpoint may take to answer.
const ENDPOINT_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a question may take in all: a relay waits for the answer to its offer.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(8);
/// How often the log tells of transactions that wait.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// The longest pause between two looks of the outbox at the chain.
const OUTBOX_POLL: Duration = Duration::from_secs(2);

/// Why the money cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum MoneyError {
    /// The endpoints.
    #[error("--rpc-url: {0}")]
    Rpc(#[from] RpcError),
    /// The book.
    #[error(transparent)]
    Book(#[from] BookError),
    /// The outbox.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
}

/// The money of one contract.
pub(crate) struct Money {
    config: EscrowConfig,
    wallet: Wallet,
    folder: PathBuf,
    rpc: Rpc,
    book: Book,
    chain: OnceCell<Chain>,
    outbox: OnceCell<Outbox>,
    claims: Mutex<BTreeMap<AttemptKey, Open>>,
    /// Told when a claim changed.
    changed: Notify,
    /// Whether nothing was on its way when the keeper last looked at all claims.
    quiet: AtomicBool,
    /// When the log last told of a transaction that waits.
    complained: std::sync::Mutex<Option<Instant>>,
}

/// An open claim.
struct Open {
    claim: Claim,
    standing: watch::Sender<Standing>,
    /// Whether it may be left alone, by the last look.
    hold: Hold,
    /// When the chain is asked about it next.
    look_at: Instant,
    /// It is not put into a batch any more, since the contract refused one with it.
    alone: bool,
    /// When the window ends that it waits for.
    window_until: Option<Timestamp>,
    /// Since when a step is called for though its transaction is final.
    done_since: Option<Instant>,
}

impl Open {
    fn new(claim: Claim) -> Self {
        let standing = match &claim.wish {
            Wish::GiveUp { failure } => Standing::GivenUp(failure.clone()),
            Wish::Fetch | Wish::Bind | Wish::Prove { .. } => Standing::Reserved,
        };
        let standing = watch::Sender::new(standing);
        Self {
            claim,
            standing,
            hold: Hold::Unknown,
            look_at: Instant::now(),
            alone: false,
            window_until: None,
            done_since: None,
        }
    }
}

impl Money {
    /// Opens the book in the data folder. Nothing is asked of the chain yet.
    pub(crate) fn open(
        config: EscrowConfig,
        folder: &Path,
        tls: &rustls::ClientConfig,
        wallet: Wallet,
    ) -> Result<Self, MoneyError> {
        let endpoints = RpcConfig {
            endpoint_timeout: ENDPOINT_TIMEOUT,
            total_timeout: TOTAL_TIMEOUT,
            ..RpcConfig::new(config.rpc_urls.clone(), Some(config.domain.chain_id))
        };
        let rpc = Rpc::new(endpoints, tls)?;
        Ok(Self {
            config,
            wallet,
            folder: folder.to_owned(),
            rpc,
            book: Book::open(folder)?,
            chain: OnceCell::new(),
            outbox: OnceCell::new(),
            claims: Mutex::default(),
            changed: Notify::new(),
            quiet: AtomicBool::new(true),
            complained: std::sync::Mutex::default(),
        })
    }

    /// Takes the open claims on this contract up again, and opens the outbox. Those on others stay in the book: this contract knows
    /// nothing of them.
    pub(crate) async fn restore(&self) -> Result<(), MoneyError> {
        self.outbox().await?;
        let domain = self.domain();
        let mut claims = self.claims.lock().await;
        for claim in self.book.claims().await? {
            let key = claim.key();
            if claim.task.id(&domain) == key.task_id {
                claims.insert(key, Open::new(claim));
            } else {
                tracing::warn!(
                    task = %key.task_id, attempt = key.attempt, lease_end = %claim.lease_end(),
                    "its money is left alone: --escrow does not name its contract"
                );
            }
        }
        Ok(())
    }

    /// Where tasks are signed for whose money this is.
    pub(crate) fn domain(&self) -> Domain {
        self.config.domain
    }

    /// So many seconds before a lease ends an attempt without a result is given up.
    pub(crate) fn fail_margin_secs(&self) -> u64 {
        self.config.timing.fail_margin_secs
    }

    /// Opens a claim before its acceptance leaves the house. One that is open goes on with the newer acceptance.
    pub(crate) async fn claim(
        &self,
        task: Task,
        accept: SignedMutation<AcceptTask>,
        fast: bool,
    ) -> Result<(), BookError> {
        let claim = Claim {
            task,
            accept,
            fast,
            wish: Wish::Fetch,
            approval: None,
            bound: None,
            batch: None,
            refused: 0,
            round: 0,
            from_block: 0,
        };
        let key = claim.key();
        if !self.claims.lock().await.contains_key(&key) {
            self.book.save(&claim).await?;
            self.claims.lock().await.entry(key).or_insert_with(|| Open::new(claim));
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Forgets a claim whose acceptance did not leave the house.
    pub(crate) async fn discard(&self, key: &AttemptKey) -> Result<(), BookError> {
        let mut claims = self.claims.lock().await;
        self.book.remove(key).await?;
        claims.remove(key);
        Ok(())
    }

    /// Whether there is a result for which payment is asked: then the claim goes on, whatever becomes of the work.
    pub(crate) async fn is_proving(&self, key: &AttemptKey) -> bool {
        self.claims.lock().await.get(key).is_some_and(|open| open.claim.proof().is_some())
    }

    /// Where an attempt's money stands, and each change of it; `None` where no claim on it is open.
    pub(crate) async fn standing(&self, key: &AttemptKey) -> Option<watch::Receiver<Standing>> {
        self.claims.lock().await.get(key).map(|open| open.standing.subscribe())
    }

    /// Model and input are here: the work may begin once this provider is bound.
    pub(crate) async fn bind(&self, key: &AttemptKey) -> Result<(), BookError> {
        self.wish(key, Wish::Bind).await
    }

    /// There is a result.
    pub(crate) async fn prove(
        &self,
        key: &AttemptKey,
        proof: SignedMutation<ComputeProof>,
    ) -> Result<(), BookError> {
        self.wish(key, Wish::Prove { proof: Box::new(proof), since: now() }).await
    }

    /// There will be none.
    pub(crate) async fn give_up(&self, key: &AttemptKey, failure: FailureView) -> Result<(), BookError> {
        self.wish(key, Wish::GiveUp { failure }).await
    }

    /// Gives up the claims for which nobody works any more, as after a crash before the work was written down.
    pub(crate) async fn give_up_others(&self, worked_on: &[AttemptKey]) -> Result<(), BookError> {
        let keys: Vec<_> = self.claims.lock().await.keys().copied().collect();
        for key in keys.iter().filter(|key| !worked_on.contains(key)) {
            let message = "the agent was restarted before it took the attempt up";
            let failure = FailureView { code: "agent_restarted".to_owned(), message: message.to_owned() };
            self.give_up(key, failure).await?;
        }
        Ok(())
    }

    /// Takes the requester's word for a result, if it is theirs. `false` where no claim on it is open, or it is not theirs.
    pub(crate) async fn approve(&self, approval: SignedMutation<ApproveResult>) -> Result<bool, BookError> {
        let key = AttemptKey { task_id: approval.mutation.task_id, attempt: approval.mutation.attempt };
        let verified = Signed::from(approval.clone()).verify(&self.domain());
        let signer = verified.map(|verified| verified.signer());
        let mut theirs = false;
        self.change(&key, |claim| {
            theirs = signer == Ok(claim.task.requester)
                && approval.mutation.provider == claim.accept.mutation.provider;
            if theirs {
                claim.approval = Some(approval);
            }
        })
        .await?;
        Ok(theirs)
    }

    /// Sets what the work asks for, unless it asked for something final before, or for more.
    async fn wish(&self, key: &AttemptKey, wish: Wish) -> Result<(), BookError> {
        self.change(key, |claim| {
            let goes_on = match (&claim.wish, &wish) {
                (Wish::Prove { .. } | Wish::GiveUp { .. }, _) | (Wish::Bind, Wish::Fetch | Wish::Bind) => {
                    false
                }
                (Wish::Fetch, _) | (Wish::Bind, Wish::Prove { .. } | Wish::GiveUp { .. }) => true,
            };
            if goes_on {
                claim.wish = wish;
            }
        })
        .await
    }

    /// Changes a claim, keeps it, and has it looked at.
    async fn change(&self, key: &AttemptKey, change: impl FnOnce(&mut Claim)) -> Result<(), BookError> {
        let mut changed = false;
        let update = |claim: &mut Claim| {
            let before = claim.clone();
            change(claim);
            changed = *claim != before;
        };
        self.update(key, update).await?;
        if changed {
            if let Some(open) = self.claims.lock().await.get_mut(key) {
                (open.look_at, open.hold) = (Instant::now(), Hold::Unknown);
            }
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Changes a claim and keeps it. The answer is the claim after that, if it is open.
    async fn update(
        &self,
        key: &AttemptKey,
        change: impl FnOnce(&mut Claim),
    ) -> Result<Option<Claim>, BookError> {
        // Held while it is written, so that changes reach the book in their order.
        let mut claims = self.claims.lock().await;
        let Some(open) = claims.get_mut(key) else { return Ok(None) };
        let mut claim = open.claim.clone();
        change(&mut claim);
        if claim != open.claim {
            self.book.save(&claim).await?;
            if let Wish::GiveUp { failure } = &claim.wish {
                open.standing.send_replace(Standing::GivenUp(failure.clone()));
            }
            open.claim = claim.clone();
        }
        Ok(Some(claim))
    }

    /// Tells the log what holds a transaction up, not too often.
    fn complain(&self, purpose: &str, trouble: &Trouble) {
        let mut last = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= COMPLAIN_EVERY) {
            *last = Some(Instant::now());
            tracing::warn!(purpose, %trouble, "a transaction waits");
        }
    }

    /// The contract, once the chain was reached and the contract was found to be the escrow.
    async fn chain(&self) -> Result<&Chain, escrow::ChainError> {
        let connect = || Chain::connect(self.rpc.clone(), self.config.domain.verifying_contract);
        self.chain.get_or_try_init(connect).await
    }

    async fn outbox(&self) -> Result<&Outbox, OutboxError> {
        let config = OutboxConfig {
            confirmations: self.config.confirmations,
            max_fee_per_gas: self.config.max_gas_price,
            poll: self.config.timing.poll.min(OUTBOX_POLL),
            ..OutboxConfig::default()
        };
        let open = || Outbox::open(&self.folder, self.rpc.clone(), self.wallet.clone(), config);
        self.outbox.get_or_try_init(open).await
    }
}

/// Runs the outbox and the keeper until the agent closes.
pub(crate) async fn run(money: &Money, closing: &CancellationToken) {
    let sending = async {
        if let Ok(outbox) = money.outbox().await {
            outbox.run(closing.clone()).await;
        }
    };
    tokio::join!(sending, keep(money, closing));
}
