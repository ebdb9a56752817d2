//! The keeper: looks at each open claim, does its next step, and ends what has ended.

use std::time::{Duration, Instant};

use escrow::abi::ZORAIComputeEscrowEvents as Events;
use escrow::tx::{Entry, Outbox, State};
use escrow::{At, Block, Call, Chain, Record, Status};
use rpc::link::AttemptKey;
use rpc::tasks::SignedMutation;
use taskmarket::{AcceptTask, Amount, FailTask, Message, Timestamp, U256};
use tokio_util::sync::CancellationToken;

use super::book::Closing;
use super::check::ACCEPT_MARGIN_SECS;
use super::claim::{Claim, Ending, Standing, Wish};
use super::rest::Hold;
use super::step::{Clock, Margins, Step, next_step};
use super::{Money, Open};
use crate::agent::now;
use crate::driver::failure;

mod batch;
mod funds;

use batch::Batched;
use funds::Staking;

/// How often an acceptance may be refused by the contract before the attempt is given up.
const MAX_REFUSED: u32 = 3;
/// A final transaction without its effect is sent again after so long: a reorganisation deeper than all confirmations removed it.
const EFFECT_PATIENCE: Duration = Duration::from_secs(120);
/// The most blocks whose events are asked for at once.
const LOG_RANGE: u64 = 5_000;

/// Something that keeps the keeper from its work for now.
type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// Keeps the claims until the agent closes.
pub(crate) async fn keep(money: &Money, closing: &CancellationToken) {
    let mut staking = Staking::default();
    let mut troubled = false;
    while !closing.is_cancelled() {
        let looked = closing.run_until_cancelled(Box::pin(look(money, &mut staking))).await;
        match looked {
            None => return,
            Some(Ok(())) => troubled = false,
            Some(Err(error)) => {
                if !troubled {
                    tracing::warn!(%error, "the money of settled tasks cannot be looked after for now");
                }
                troubled = true;
            }
        }
        // Spread, so that many agents do not ask one endpoint in step.
        let pause = money.config.timing.poll.mul_f64(0.75 + 0.5 * rand::random::<f64>());
        tokio::select! {
            () = closing.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
            () = money.changed.notified(), if !troubled => {}
        }
    }
}

/// Looks at all that is due once.
async fn look(money: &Money, staking: &mut Staking) -> Result<(), Trouble> {
    let keeper = Keeper { money, chain: money.chain().await?, outbox: money.outbox().await? };
    let head = keeper.chain.head().await?;
    if let Err(error) = keeper.stake(staking).await {
        tracing::warn!(%error, "the stake cannot be looked at for now");
    }
    // Before the claims are looked at: what is sent and final by then shows in their records.
    let mut quiet = keeper.outbox.unfinished().await?.is_empty();
    let mut batched = Batched::default();
    for claim in keeper.due(&head).await {
        let key = claim.key();
        if let Err(error) = keeper.attend(claim, &head, &mut batched).await {
            quiet = false;
            tracing::warn!(task = %key.task_id, attempt = key.attempt, %error, "its money cannot be looked after for now");
        }
    }
    money.looked(quiet);
    keeper.send_batches(batched, &head).await?;
    keeper.withdraw(&head).await?;
    keeper.count_costs(&head).await
}

/// The money, with the chain at hand.
struct Keeper<'a> {
    money: &'a Money,
    chain: &'a Chain,
    outbox: &'a Outbox,
}

impl Keeper<'_> {
    /// The claims to be looked at now: those whose turn it is, and, so that they are paid together, all whose window has ended.
    async fn due(&self, head: &Block) -> Vec<Claim> {
        let at = Instant::now();
        let claims = self.money.claims.lock().await;
        let is_due =
            |open: &&Open| open.look_at <= at || open.window_until.is_some_and(|until| until <= head.time);
        claims.values().filter(is_due).map(|open| open.claim.clone()).collect()
    }

    /// Looks at a claim and does its next step.
    async fn attend(&self, claim: Claim, head: &Block, batched: &mut Batched) -> Result<(), Trouble> {
        let key = claim.key();
        let slow_poll = self.money.config.timing.slow_poll;
        let record = self.chain.record(key.task_id).await?;
        let clock = Clock { head: head.time, now: head.time.max(now()) };
        let Some(claim) = self.note(&claim, &record, head).await? else { return Ok(()) };
        let step = next_step(&claim, &record, clock, &self.margins());
        let hold = Hold::of(&claim, &record, &step);
        let waits =
            matches!(step, Step::Wait(_)) && matches!(record.status, Status::Proven | Status::Disputed);
        self.open(&key, |open| {
            let window = Duration::from_secs(record.until.since(clock.now));
            let pause = if waits { slow_poll.min(window) } else { Duration::ZERO };
            open.look_at = Instant::now() + pause;
            open.window_until = waits.then_some(record.until);
            // What is asked for since then was not looked at.
            open.hold = if open.claim.wish == claim.wish { hold } else { Hold::Unknown };
            if matches!(step, Step::Wait(_) | Step::Close(_)) {
                open.done_since = None;
            }
        })
        .await;
        self.act(claim, &record, step, head, batched).await
    }

    fn margins(&self) -> Margins {
        let timing = &self.money.config.timing;
        Margins {
            fail: timing.fail_margin_secs,
            accept: ACCEPT_MARGIN_SECS,
            patience: timing.approval_patience_secs,
        }
    }

    async fn act(
        &self,
        claim: Claim,
        record: &Record,
        step: Step,
        head: &Block,
        batched: &mut Batched,
    ) -> Result<(), Trouble> {
        let (key, calls, task) = (claim.key(), self.chain.calls(), &claim.task);
        match step {
            Step::Wait(_) => Ok(()),
            Step::Surrender(code, message) => Ok(self.money.give_up(&key, failure(code, message)).await?),
            Step::Accept(until) => self.accept(claim, until).await,
            Step::Fail => {
                let fail = self.failure(&claim)?;
                self.send(&claim, "fail", calls.fail(task, &fail.into())).await
            }
            Step::Prove => {
                batched.prove(claim);
                Ok(())
            }
            Step::Settle => {
                batched.settle(claim, record.until);
                Ok(())
            }
            Step::Approve | Step::AcceptAndProve => {
                let (Some(approval), Some(proof)) = (claim.approved().cloned(), claim.proof().cloned())
                else {
                    return Ok(());
                };
                let (verb, call) = if step == Step::Approve {
                    ("approve", calls.approve(task, &approval.into()))
                } else {
                    ("pay", calls.accept_and_prove(task, &proof.into(), &approval.into()))
                };
                self.send(&claim, verb, call).await
            }
            Step::Timeout => self.send(&claim, "timeout", calls.timeout(task)).await,
            Step::Close(_) if !self.is_over_for_good(&claim, head).await? => Ok(()),
            Step::Close(ending) => self.close(&claim, ending, head).await,
        }
    }

    /// Notes what the record says of a claim, and tells the work. The answer is the claim as it is now, if it is open.
    async fn note(&self, claim: &Claim, record: &Record, head: &Block) -> Result<Option<Claim>, Trouble> {
        let mine = claim.is_of(record);
        let given_back =
            matches!(claim.wish, Wish::GiveUp { .. }) && self.is_done(&purpose(claim, "fail")).await?;
        let change = |claim: &mut Claim| {
            match record.status {
                Status::Accepted if mine => claim.bound = Some(record.until),
                // By this provider, or the record would still say so.
                Status::Funded if mine && claim.bound.is_some_and(|until| head.time < until) => {
                    claim.bound = None;
                }
                Status::Proven | Status::Disputed if mine => claim.from_block = head.number,
                Status::None
                | Status::Funded
                | Status::Accepted
                | Status::Proven
                | Status::Disputed
                | Status::Paid
                | Status::Split
                | Status::Refunded
                | Status::Cancelled => {}
            }
            if given_back {
                claim.bound = None;
            }
        };
        let Some(claim) = self.money.update(&claim.key(), change).await? else { return Ok(None) };
        let bound = mine && record.status == Status::Accepted && head.time < record.until;
        if bound && !matches!(claim.wish, Wish::GiveUp { .. }) {
            let standing = Standing::Bound(record.until);
            self.open(&claim.key(), |open| {
                open.standing.send_if_modified(|told| std::mem::replace(told, standing.clone()) != standing);
            })
            .await;
        }
        Ok(Some(claim))
    }

    /// Accepts on chain, with what was signed before where that is still good for the purpose.
    async fn accept(&self, mut claim: Claim, until: Timestamp) -> Result<(), Trouble> {
        let verb = format!("accept-{}", until.unix());
        if let Some(Entry { state: State::Failed(reason), .. }) =
            self.outbox.get(&purpose(&claim, &verb)).await?
        {
            if claim.refused >= MAX_REFUSED {
                let why = failure("accept_refused", &reason.to_string());
                return Ok(self.money.give_up(&claim.key(), why).await?);
            }
            self.money.change(&claim.key(), |claim| claim.refused += 1).await?;
        }
        if until != claim.accept.mutation.lease_until {
            let accept = AcceptTask { lease_until: until, ..claim.accept.mutation.clone() };
            let accept = self.sign(&accept)?;
            self.money.change(&claim.key(), |claim| claim.accept = accept.clone()).await?;
            claim.accept = accept;
        }
        let call = self.chain.calls().accept(&claim.task, &claim.accept.clone().into());
        self.send(&claim, &verb, call).await
    }

    fn failure(&self, claim: &Claim) -> Result<SignedMutation<FailTask>, Trouble> {
        let accept = &claim.accept.mutation;
        let reason = match &claim.wish {
            Wish::GiveUp { failure } => failure.clone(),
            Wish::Fetch | Wish::Bind | Wish::Prove { .. } => failure("given_up", "the attempt is given up"),
        };
        self.sign(&FailTask {
            task_id: accept.task_id,
            provider: accept.provider,
            attempt: accept.attempt,
            code: reason.code,
            message: reason.message,
            issued_at: now(),
        })
    }

    fn sign<M: Message>(&self, message: &M) -> Result<SignedMutation<M>, Trouble> {
        Ok(self.money.wallet.sign(message, &self.money.domain())?.into())
    }

    /// Hands a claim's transaction to the outbox, once. What is final without its effect is sent again after a while.
    async fn send(&self, claim: &Claim, verb: &str, call: Call) -> Result<(), Trouble> {
        let purpose = purpose(claim, verb);
        let entry = self.dispatch(&purpose, call).await?;
        let is_done = matches!(entry.state, State::Done(_));
        let mut overdue = false;
        self.open(&claim.key(), |open| {
            let since = is_done.then(|| open.done_since.unwrap_or_else(Instant::now));
            open.done_since = since;
            overdue = since.is_some_and(|since| since.elapsed() >= EFFECT_PATIENCE);
        })
        .await;
        if overdue {
            tracing::warn!(%purpose, "its transaction has no effect any more; sending it again");
            self.money.change(&claim.key(), |claim| claim.round += 1).await?;
        }
        Ok(())
    }

    /// Hands a transaction to the outbox; one that failed is planned anew.
    async fn dispatch(&self, purpose: &str, call: Call) -> Result<Entry, Trouble> {
        let entry = match self.outbox.get(purpose).await? {
            None => {
                self.money.book.sent(purpose.to_owned()).await?;
                tracing::info!(%purpose, "sending a transaction");
                self.outbox.submit(purpose, call).await?
            }
            Some(Entry { state: State::Failed(reason), .. }) => {
                tracing::info!(%purpose, %reason, "the transaction failed; trying again");
                self.money.book.sent(purpose.to_owned()).await?;
                self.outbox.retry(purpose, call).await?
            }
            Some(entry) => entry,
        };
        if let Some(trouble) = &entry.trouble {
            self.money.complain(purpose, trouble);
        }
        Ok(entry)
    }

    async fn is_done(&self, purpose: &str) -> Result<bool, Trouble> {
        let entry = self.outbox.get(purpose).await?;
        Ok(entry.is_some_and(|entry| matches!(entry.state, State::Done(_))))
    }

    /// Whether a claim that is over by the newest block was so by the newest final one: a reorganisation could revive it else.
    async fn is_over_for_good(&self, claim: &Claim, head: &Block) -> Result<bool, Trouble> {
        let depth = self.money.config.confirmations.saturating_sub(1);
        if depth == 0 {
            return Ok(true);
        }
        let last_final = head.number.saturating_sub(depth);
        let Some(block) = self.chain.block(last_final).await? else { return Ok(false) };
        let record = self.chain.record_at(claim.key().task_id, At::Block(last_final)).await?;
        let clock = Clock { head: block.time, now: block.time };
        Ok(matches!(next_step(claim, &record, clock, &self.margins()), Step::Close(_)))
    }

    /// Ends a claim, and says what it came to.
    async fn close(&self, claim: &Claim, ending: Ending, head: &Block) -> Result<(), Trouble> {
        let key = claim.key();
        let (earned, lost) = match ending {
            Ending::Paid => (Some(claim.task.budget), Some(Amount::ZERO)),
            Ending::Split => self.share(claim, head).await?,
            Ending::Lapsed => (Some(Amount::ZERO), Some(claim.task.provider_stake)),
            Ending::GivenUp | Ending::Lost => (Some(Amount::ZERO), Some(Amount::ZERO)),
        };
        let token = claim.task.token;
        self.money.book.close(Closing { key, ending, at: head.time, token, earned, lost }).await?;
        if let Some(open) = self.money.claims.lock().await.remove(&key) {
            open.standing.send_replace(Standing::Over);
        }
        tracing::info!(task = %key.task_id, attempt = key.attempt, ending = ending.as_str(), "its money is decided");
        Ok(())
    }

    /// What a dispute's end gave this provider beside its stake, and took of it.
    async fn share(&self, claim: &Claim, head: &Block) -> Result<(Option<Amount>, Option<Amount>), Trouble> {
        let stake = claim.task.provider_stake.0;
        let mut from = claim.from_block;
        while from <= head.number {
            let to = head.number.min(from.saturating_add(LOG_RANGE - 1));
            for log in self.chain.logs(from, to, Some(claim.key().task_id)).await? {
                let got: U256 = match log.event {
                    Events::TaskResolved(event) => event.toProvider,
                    Events::TaskTimedOut(event) => event.toProvider,
                    Events::LeaseLapsed(_)
                    | Events::Staked(_)
                    | Events::TaskAccepted(_)
                    | Events::TaskCancelled(_)
                    | Events::TaskDisputed(_)
                    | Events::TaskFailed(_)
                    | Events::TaskFunded(_)
                    | Events::TaskPaid(_)
                    | Events::TaskProven(_)
                    | Events::TaskRefunded(_)
                    | Events::UnstakeAnnounced(_)
                    | Events::Withdrawn(_)
                    | Events::EIP712DomainChanged(_) => continue,
                };
                let (earned, lost) = (got.saturating_sub(stake), stake.saturating_sub(got));
                return Ok((Some(Amount(earned)), Some(Amount(lost))));
            }
            from = to.saturating_add(1);
        }
        Ok((None, None))
    }

    async fn open(&self, key: &AttemptKey, change: impl FnOnce(&mut Open)) {
        if let Some(open) = self.money.claims.lock().await.get_mut(key) {
            change(open);
        }
    }
}

/// What the outbox knows a claim's transaction by.
fn purpose(claim: &Claim, verb: &str) -> String {
    let key = claim.key();
    format!("{verb}:{}:{}:{}", key.task_id, key.attempt, claim.round)
}
