//! Which settled tasks this provider takes, by their terms alone.

use std::time::Duration;

use taskmarket::{Address, Amount, Domain, Task};
use url::Url;

/// Where a contract holds money, and what this provider takes of it.
#[derive(Debug, Clone)]
pub struct EscrowConfig {
    /// The contract.
    pub domain: Domain,
    /// The chain's endpoints, the preferred one first.
    pub rpc_urls: Vec<Url>,
    /// What is taken.
    pub terms: Terms,
    /// The stake that is brought up to this much when the agent starts: of which token, how much.
    pub stake: Option<(Address, Amount)>,
    /// The most that is paid for a unit of gas, in the native coin's smallest unit. While gas costs more than half of it, no settled
    /// task is taken.
    pub max_gas_price: u64,
    /// How many blocks, its own included, make a transaction final.
    pub confirmations: u64,
    /// How often and how long.
    pub timing: EscrowTiming,
}

/// The terms of a settled task that this provider takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// The tokens; zero is the native coin.
    pub tokens: Vec<Address>,
    /// The arbiters. A task without one, which pays on proof, is taken in any case.
    pub arbiters: Vec<Address>,
    /// The largest stake; any if absent.
    pub max_stake: Option<Amount>,
    /// The longest dispute window and arbiter's window, each, in seconds.
    pub max_window_secs: u64,
    /// Whose word for an approval is taken: their tasks are worked on before anybody is bound on chain.
    pub trusted: Vec<Address>,
}

/// How often and how long the chain is dealt with. The defaults suit everybody; tests shorten them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EscrowTiming {
    /// How often a claim that may change at any moment is looked at.
    pub poll: Duration,
    /// How often a claim that waits for a window's end is looked at.
    pub slow_poll: Duration,
    /// An attempt without a result is given up so many seconds before its lease ends.
    pub fail_margin_secs: u64,
    /// How many seconds the approval of a trusted requester is waited for.
    pub approval_patience_secs: u64,
    /// How many seconds the first of several payments that are due may wait for the next.
    pub settle_wait_secs: u64,
    /// How many seconds lie between withdrawals.
    pub withdraw_every_secs: u64,
}

impl Default for EscrowTiming {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(4),
            slow_poll: Duration::from_secs(600),
            fail_margin_secs: 90,
            approval_patience_secs: 600,
            settle_wait_secs: 600,
            withdraw_every_secs: 86_400,
        }
    }
}

impl Terms {
    /// The longest windows that are taken unless said otherwise: a week.
    pub const DEFAULT_MAX_WINDOW_SECS: u64 = 7 * 86_400;

    /// What of a task's terms this provider does not take, if anything.
    pub(crate) fn objection(&self, task: &Task, provider: Address) -> Option<String> {
        if !self.tokens.contains(&task.token) {
            return Some(format!("this host does not take the token {}", task.token));
        }
        if task.arbiter == provider {
            return Some("this provider is the task's arbiter".to_owned());
        }
        if !task.arbiter.is_zero() && !self.arbiters.contains(&task.arbiter) {
            return Some(format!("this host does not trust the arbiter {}", task.arbiter));
        }
        if let Some(most) = self.max_stake.filter(|most| task.provider_stake > *most) {
            return Some(format!("the stake is {}, at most {most} is put up here", task.provider_stake));
        }
        let longest = task.dispute_window.max(task.arbiter_window);
        // Without an arbiter there is no dispute, and the payment comes with the proof.
        if !task.arbiter.is_zero() && longest > self.max_window_secs {
            return Some(format!("its windows are longer than {} s", self.max_window_secs));
        }
        None
    }

    /// Whether a task may be worked on before anybody is bound.
    pub(crate) fn trusts(&self, task: &Task) -> bool {
        self.trusted.contains(&task.requester)
    }
}
