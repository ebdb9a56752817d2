//! Whether a settled task is taken: its terms, and what the chain says of its money and of ours.

use escrow::{At, Block, Chain, ChainError, Status};
use rpc::link::AttemptKey;
use taskmarket::{Address, Amount, MIN_LEASE_SECS, Task, U256};

use super::{MAX_CLAIMS, Money, Wish};
use crate::agent::now;
use crate::offer::{Refusal, against, not_now};

/// What an acceptance may have less left than it was signed with when it reaches the chain, in seconds.
pub(super) const ACCEPT_MARGIN_SECS: u64 = 30;
/// The gas of an attempt at most, by the contract's measured figures with room for others: accept, and prove or fail.
const ATTEMPT_GAS: u64 = 250_000;

impl Money {
    /// Checks a settled task that is offered. Says whether it is worked on before anybody is bound.
    pub(crate) async fn check(&self, task: &Task, key: &AttemptKey) -> Result<bool, Refusal> {
        if let Some(objection) = self.config.terms.objection(task, self.wallet.address()) {
            return Err(against("terms_not_accepted", objection));
        }
        if let Some(open) = self.claims.lock().await.get(key) {
            return match open.claim.wish {
                Wish::GiveUp { .. } => {
                    Err(not_now("attempt_given_up", "this attempt is being given up here"))
                }
                Wish::Fetch | Wish::Bind | Wish::Prove { .. } => Ok(open.claim.fast),
            };
        }
        let fast = self.config.terms.trusts(task);
        let unreachable = |error: ChainError| not_now("chain_unreachable", error.to_string());
        let chain = self.chain().await.map_err(unreachable)?;
        let head = chain.head().await.map_err(unreachable)?;
        self.check_record(chain, &head, task, key).await?;
        self.check_gas(chain, &head).await?;
        let needed = self.unbound_stake(task.token).await?;
        if !fast {
            let stake = chain.stake(task.token, self.wallet.address()).await.map_err(unreachable)?;
            let free = stake.reliable().checked_sub(needed).unwrap_or_default();
            if free < task.provider_stake {
                let message = format!("the free stake is {free}, the task asks for {}", task.provider_stake);
                return Err(not_now("stake_too_small", message));
            }
        }
        Ok(fast)
    }

    /// Whether the budget is there, beyond what a reorganisation may take back, and the attempt is the next one.
    async fn check_record(
        &self,
        chain: &Chain,
        head: &Block,
        task: &Task,
        key: &AttemptKey,
    ) -> Result<(), Refusal> {
        let time = now().max(head.time);
        let final_block = head.number.saturating_sub(self.config.confirmations.saturating_sub(1));
        for at in [At::Block(final_block), At::Latest] {
            let record = chain.record_at(key.task_id, at).await;
            let record = record.map_err(|error| not_now("chain_unreachable", error.to_string()))?;
            let there = record.status == Status::Funded || record.is_lapsed(time);
            if !there {
                let message = format!("by the chain the task's money is {}", record.status.as_str());
                return Err(against("not_funded", message));
            }
            if record.attempt.checked_add(1) != Some(key.attempt) && at == At::Latest {
                let message = format!("by the chain the next attempt is {}", u64::from(record.attempt) + 1);
                return Err(against("stale_attempt", message));
            }
        }
        let least = MIN_LEASE_SECS + ACCEPT_MARGIN_SECS + self.config.timing.fail_margin_secs;
        if task.deadline < time.plus(least) {
            return Err(against("deadline_too_near", "there is no time to be bound and to work"));
        }
        Ok(())
    }

    /// Whether gas is affordable, with as much again in reserve for what must not wait: giving an attempt back, and proving it.
    async fn check_gas(&self, chain: &Chain, head: &Block) -> Result<(), Refusal> {
        let most = u128::from(self.config.max_gas_price);
        if head.base_fee.saturating_mul(2) > most {
            let message =
                format!("gas costs {}, more than half of the most that is paid here", head.base_fee);
            return Err(not_now("gas_too_dear", message));
        }
        let balance = chain.balance(Address::ZERO, self.wallet.address()).await;
        let balance = balance.map_err(|error| not_now("chain_unreachable", error.to_string()))?;
        let claims = self.claims.lock().await;
        let open = claims.values().filter(|open| matches!(open.claim.wish, Wish::Fetch | Wish::Bind)).count();
        drop(claims);
        let open = u64::try_from(open).unwrap_or(u64::MAX);
        let unpaid = U256::from(open.saturating_add(1)) * U256::from(ATTEMPT_GAS);
        if balance.0 < unpaid * U256::from(head.base_fee.saturating_mul(2)) {
            return Err(not_now("no_gas_money", "the provider's account cannot pay for the gas"));
        }
        Ok(())
    }

    /// The stake that claims which are not bound yet will take of a token.
    async fn unbound_stake(&self, token: Address) -> Result<Amount, Refusal> {
        let claims = self.claims.lock().await;
        if claims.len() >= MAX_CLAIMS {
            return Err(not_now("too_many_claims", "too many payments are waited for"));
        }
        let unbound = claims.values().map(|open| &open.claim).filter(|claim| {
            claim.task.token == token
                && !claim.fast
                && claim.bound.is_none()
                && matches!(claim.wish, Wish::Fetch | Wish::Bind)
        });
        Ok(unbound.fold(Amount::ZERO, |sum, claim| {
            sum.checked_add(claim.task.provider_stake).unwrap_or(Amount(U256::MAX))
        }))
    }
}
