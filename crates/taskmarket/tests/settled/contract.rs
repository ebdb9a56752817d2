//! The model: the contract's source once more, call by call.

use taskmarket::{Address, Bytes32, ChainChange, ContentHash, Money, Resolution, Task, Timestamp, keccak256};

/// What the contract stores of a task.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Contract {
    pub(crate) task: Task,
    pub(crate) status: Money,
    pub(crate) provider: Address,
    pub(crate) attempt: u32,
    pub(crate) until: u64,
    pub(crate) result: ContentHash,
}

/// A call, by whoever may make it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Call {
    Fund,
    Accept { provider: Address, attempt: u32, lease_until: u64 },
    Fail { provider: Address, attempt: u32 },
    Prove { provider: Address, attempt: u32, result: ContentHash },
    Approve,
    AcceptAndProve { provider: Address, attempt: u32, result: ContentHash },
    Settle,
    Dispute,
    Resolve { bps: u32 },
    Timeout,
    Refund,
    Cancel,
}

impl Contract {
    pub(crate) fn holds(&self, provider: Address, attempt: u32, now: u64) -> bool {
        self.status == Money::Accepted
            && (self.provider, self.attempt) == (provider, attempt)
            && now < self.until
    }

    pub(crate) fn is_unheld(&self, now: u64) -> bool {
        self.status == Money::Funded || self.status == Money::Accepted && now >= self.until
    }

    pub(crate) fn takes_next(&self, provider: Address, attempt: u32, now: u64) -> bool {
        self.is_unheld(now)
            && now < self.task.deadline.unix()
            && attempt == self.attempt + 1
            && attempt <= self.task.config.max_attempts
            && provider != self.task.arbiter
    }

    pub(crate) fn end_lapsed(&self, events: &mut Vec<ChainChange>) {
        if self.status == Money::Accepted {
            events.push(ChainChange::Lapsed { provider: self.provider, attempt: self.attempt });
        }
    }

    pub(crate) fn moved(&mut self, status: Money, until: u64) {
        self.status = status;
        self.until = until;
    }

    pub(crate) fn pay(&mut self, result_hash: ContentHash, events: &mut Vec<ChainChange>) {
        self.moved(Money::Paid, 0);
        events.push(ChainChange::Paid { provider: self.provider, attempt: self.attempt, result_hash });
    }

    /// What the call emits, or `None` where it reverts.
    pub(crate) fn call(&mut self, call: Call, now: u64) -> Option<Vec<ChainChange>> {
        let mut events = Vec::new();
        let (provider, attempt) = (self.provider, self.attempt);
        match call {
            Call::Fund => {
                (self.status == Money::None && now < self.task.deadline.unix()).then_some(())?;
                self.status = Money::Funded;
                events.push(ChainChange::Funded);
            }
            Call::Accept { provider, attempt, lease_until } => {
                let latest = self.task.deadline.unix().min(now + self.task.config.max_duration + 600);
                let fits = (now + 300..=latest).contains(&lease_until);
                (self.takes_next(provider, attempt, now) && fits).then_some(())?;
                self.end_lapsed(&mut events);
                (self.provider, self.attempt) = (provider, attempt);
                self.moved(Money::Accepted, lease_until);
                let lease_until = Timestamp::from_unix(lease_until);
                events.push(ChainChange::Accepted { provider, attempt, lease_until });
            }
            Call::Fail { provider, attempt } => {
                self.holds(provider, attempt, now).then_some(())?;
                self.moved(Money::Funded, 0);
                events.push(ChainChange::Failed { provider, attempt });
            }
            Call::Prove { provider, attempt, result } => {
                self.holds(provider, attempt, now).then_some(())?;
                if self.task.dispute_window == 0 {
                    self.pay(result, &mut events);
                } else {
                    self.result = result;
                    self.moved(Money::Proven, now + self.task.dispute_window);
                    let dispute_until = Timestamp::from_unix(self.until);
                    events.push(ChainChange::Proven {
                        provider,
                        attempt,
                        result_hash: result,
                        dispute_until,
                    });
                }
            }
            Call::Approve => {
                (self.status == Money::Proven).then_some(())?;
                self.pay(self.result, &mut events);
            }
            Call::AcceptAndProve { provider, attempt, result } => {
                self.takes_next(provider, attempt, now).then_some(())?;
                self.end_lapsed(&mut events);
                (self.provider, self.attempt) = (provider, attempt);
                self.pay(result, &mut events);
            }
            Call::Settle => {
                (self.status == Money::Proven && now >= self.until).then_some(())?;
                self.pay(self.result, &mut events);
            }
            Call::Dispute => {
                (self.status == Money::Proven && now < self.until).then_some(())?;
                self.moved(Money::Disputed, now + self.task.arbiter_window);
                events.push(ChainChange::Disputed {
                    provider,
                    attempt,
                    reason_hash: Bytes32(keccak256(b"it is wrong")),
                    evidence_hash: Bytes32(keccak256(b"")),
                    resolve_until: Timestamp::from_unix(self.until),
                });
            }
            Call::Resolve { bps } => {
                (self.status == Money::Disputed && now < self.until && bps <= 10_000).then_some(())?;
                self.moved(Money::Split, 0);
                let resolution = Resolution::Arbiter { provider_bps: bps };
                events.push(ChainChange::Split { provider, attempt, resolution });
            }
            Call::Timeout => {
                (self.status == Money::Disputed && now >= self.until).then_some(())?;
                self.moved(Money::Split, 0);
                events.push(ChainChange::Split { provider, attempt, resolution: Resolution::Timeout });
            }
            Call::Refund => {
                (self.is_unheld(now) && now >= self.task.deadline.unix()).then_some(())?;
                self.end_lapsed(&mut events);
                self.moved(Money::Refunded, 0);
                events.push(ChainChange::Refunded);
            }
            Call::Cancel => {
                (self.status == Money::None || self.is_unheld(now)).then_some(())?;
                self.end_lapsed(&mut events);
                self.moved(Money::Cancelled, 0);
                events.push(ChainChange::Cancelled);
            }
        }
        Some(events)
    }
}

/// What a liar would say that the call did.
pub(crate) fn forgery(call: Call, contract: &Contract, now: u64) -> Option<ChainChange> {
    let (provider, attempt) = (contract.provider, contract.attempt);
    let at = Timestamp::from_unix;
    Some(match call {
        Call::Fund => ChainChange::Funded,
        Call::Accept { provider, attempt, lease_until } => {
            ChainChange::Accepted { provider, attempt, lease_until: at(lease_until) }
        }
        Call::Fail { provider, attempt } => ChainChange::Failed { provider, attempt },
        Call::Prove { provider, attempt, result } if contract.task.dispute_window > 0 => {
            let dispute_until = at(now + contract.task.dispute_window);
            ChainChange::Proven { provider, attempt, result_hash: result, dispute_until }
        }
        Call::Prove { provider, attempt, result } | Call::AcceptAndProve { provider, attempt, result } => {
            ChainChange::Paid { provider, attempt, result_hash: result }
        }
        Call::Approve if !contract.result.is_pinned() => return None,
        Call::Approve => ChainChange::Paid { provider, attempt, result_hash: contract.result },
        // The same event as of an approval, which needs no time.
        Call::Settle => return None,
        Call::Dispute => ChainChange::Disputed {
            provider,
            attempt,
            reason_hash: Bytes32(keccak256(b"it is wrong")),
            evidence_hash: Bytes32(keccak256(b"")),
            resolve_until: at(now + contract.task.arbiter_window),
        },
        Call::Resolve { bps } => {
            ChainChange::Split { provider, attempt, resolution: Resolution::Arbiter { provider_bps: bps } }
        }
        Call::Timeout => ChainChange::Split { provider, attempt, resolution: Resolution::Timeout },
        Call::Refund => ChainChange::Refunded,
        Call::Cancel => ChainChange::Cancelled,
    })
}
