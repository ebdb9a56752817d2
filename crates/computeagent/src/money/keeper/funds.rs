//! The provider's own money at the contract: the stake that goes in, the payments that come out, and what transactions cost.

use std::time::Instant;

use escrow::tx::State;
use escrow::{Block, Status};
use taskmarket::{Address, Amount, U256};

use super::{Keeper, Trouble};

/// The gas of a withdrawal, by the contract's measured figures.
const WITHDRAW_GAS: u64 = 45_000;
/// A withdrawal of the native coin is worth it from so many times its gas on.
const WITHDRAW_WORTH: u64 = 20;
/// What transactions begin with that put stake in, and that let the contract take it.
const STAKE: &str = "stake:";
const ALLOW: &str = "allow:";
/// The number under which the book keeps when withdrawals were looked at last.
const WITHDRAWN_AT: &str = "withdrawn_at";

/// The stake that is put in at the start. What is lost later is for the operator to replace.
#[derive(Debug, Default)]
pub(super) struct Staking {
    stage: Stage,
    /// What was sent for it, the first first.
    sent: Vec<String>,
    /// When the chain was asked last whether it still has that.
    rechecked: Option<Instant>,
}

/// How far it is.
#[derive(Debug, Default)]
enum Stage {
    /// It is to be looked at.
    #[default]
    Begun,
    /// This transaction is on its way.
    Sent(String),
    /// There is nothing more to do.
    Done,
}

impl Keeper<'_> {
    /// Brings the stake up to what was asked for, by one transaction after the other, each looked at again later.
    pub(super) async fn stake(&self, staking: &mut Staking) -> Result<(), Trouble> {
        let Some((token, wanted)) = self.money.config.stake else { return Ok(()) };
        if let Stage::Sent(purpose) = &staking.stage {
            match self.outbox.get(purpose).await?.map(|entry| entry.state) {
                Some(State::Done(_)) if purpose.starts_with(STAKE) => staking.stage = Stage::Done,
                Some(State::Done(_)) | None => staking.stage = Stage::Begun,
                Some(State::Failed(reason)) => {
                    tracing::error!(%purpose, %reason, "no stake was put in; it is tried again at the next start");
                    staking.stage = Stage::Done;
                }
                Some(State::Planned { .. } | State::Signed(_) | State::Sent(_) | State::Mined { .. }) => {}
            }
        }
        match staking.stage {
            Stage::Begun => {}
            Stage::Sent(_) => return Ok(()),
            Stage::Done => return self.restake(staking).await,
        }
        // What was begun before a crash counts first.
        let mut unfinished = self.outbox.unfinished().await?.into_iter().map(|entry| entry.purpose);
        let begun = |purpose: &String| purpose.starts_with(STAKE) || purpose.starts_with(ALLOW);
        let next = match unfinished.find(begun) {
            Some(purpose) => Some(purpose),
            None => self.send_stake(token, wanted).await?,
        };
        staking.sent.extend(next.clone());
        staking.stage = next.map_or(Stage::Done, Stage::Sent);
        Ok(())
    }

    /// Sends again, as it was signed, what a reorganisation took back after it was final; now and then it is looked for.
    async fn restake(&self, staking: &mut Staking) -> Result<(), Trouble> {
        let every = self.money.config.timing.slow_poll;
        if staking.rechecked.get_or_insert_with(Instant::now).elapsed() < every {
            return Ok(());
        }
        // What lets the contract take a token has the lower nonce.
        for purpose in &staking.sent {
            if !self.outbox.recheck(purpose).await?.is_final() {
                tracing::warn!(%purpose, "a reorganisation took it back; it is sent again");
                staking.stage = Stage::Sent(purpose.clone());
            }
        }
        staking.rechecked = Some(Instant::now());
        Ok(())
    }

    /// Sends what brings the stake up next, if anything is missing.
    async fn send_stake(&self, token: Address, wanted: Amount) -> Result<Option<String>, Trouble> {
        let provider = self.money.wallet.address();
        let free = self.chain.stake(token, provider).await?.free;
        let there = free.checked_add(self.locked(token).await?).unwrap_or(Amount(U256::MAX));
        let Some(missing) = wanted.checked_sub(there).filter(|missing| *missing != Amount::ZERO) else {
            return Ok(None);
        };
        let calls = self.chain.calls();
        let escrow = self.chain.escrow();
        let is_allowed = token.is_zero() || self.chain.allowance(token, provider, escrow).await? >= missing;
        let (verb, call) = if is_allowed {
            (STAKE, calls.stake(token, missing))
        } else {
            (ALLOW, calls.allow(token, missing))
        };
        let purpose = format!("{verb}{}", self.money.book.next().await?);
        self.dispatch(&purpose, call).await?;
        Ok(Some(purpose))
    }

    /// The stake that open claims hold, by the chain: what a former life of the agent sent may have been mined at this moment.
    async fn locked(&self, token: Address) -> Result<Amount, Trouble> {
        let claims: Vec<_> = self.money.claims.lock().await.values().map(|open| open.claim.clone()).collect();
        let mut locked = Amount::ZERO;
        for claim in claims.iter().filter(|claim| claim.task.token == token) {
            let record = self.chain.record(claim.key().task_id).await?;
            let holds = matches!(record.status, Status::Accepted | Status::Proven | Status::Disputed);
            if claim.is_of(&record) && holds {
                locked = locked.checked_add(claim.task.provider_stake).unwrap_or(locked);
            }
        }
        Ok(locked)
    }

    /// Takes out what tasks paid, all of it at once and now and then.
    pub(super) async fn withdraw(&self, head: &Block) -> Result<(), Trouble> {
        let book = &self.money.book;
        let last = book.number(WITHDRAWN_AT).await?;
        if head.time.unix() < last.saturating_add(self.money.config.timing.withdraw_every_secs) {
            return Ok(());
        }
        let unfinished = self.outbox.unfinished().await?;
        if unfinished.iter().any(|entry| entry.purpose.starts_with("withdraw:")) {
            return Ok(());
        }
        let provider = self.money.wallet.address();
        let mut tokens = self.money.config.terms.tokens.clone();
        tokens
            .extend(self.money.config.stake.map(|(token, _)| token).filter(|token| !tokens.contains(token)));
        for token in &tokens {
            let credit = self.chain.withdrawable(*token, provider).await?;
            // Announced stake whose day is over goes out with it.
            let stake = self.chain.stake(*token, provider).await?;
            let is_due = stake.leaving != Amount::ZERO && stake.leaves_at <= head.time;
            let leaving = if is_due { stake.leaving.min(stake.free) } else { Amount::ZERO };
            let gas = U256::from(WITHDRAW_GAS * WITHDRAW_WORTH) * U256::from(head.base_fee);
            let least = if token.is_zero() { gas } else { U256::ZERO };
            if credit.0.saturating_add(leaving.0) > least {
                let purpose = format!("withdraw:{}", book.next().await?);
                self.dispatch(&purpose, self.chain.calls().withdraw(*token, provider)).await?;
            }
        }
        Ok(book.set_number(WITHDRAWN_AT, head.time.unix()).await?)
    }

    /// Notes what transactions cost that became final.
    pub(super) async fn count_costs(&self, head: &Block) -> Result<(), Trouble> {
        for purpose in self.money.book.uncounted().await? {
            let cost = match self.outbox.get(&purpose).await?.map(|entry| entry.state) {
                Some(State::Done(mined)) => mined.cost(),
                // Counted anew should it be tried again.
                Some(State::Failed(_)) => U256::ZERO,
                Some(State::Planned { .. } | State::Signed(_) | State::Sent(_) | State::Mined { .. })
                | None => {
                    continue;
                }
            };
            self.money.book.cost(purpose, head.time, cost).await?;
        }
        Ok(())
    }
}
