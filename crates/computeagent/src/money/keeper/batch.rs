//! Transactions that several claims share: proofs that are ready together, and payments that are due together.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use escrow::{Block, Call};
use rpc::link::AttemptKey;
use taskmarket::{ComputeProof, Signed, Task, Timestamp};

use super::{Claim, EFFECT_PATIENCE, Keeper, State, Trouble};

/// The most tasks in one transaction: beyond it, another costs as much as one of its own would.
const MAX_BATCH: usize = 50;

/// What was found due in one look at the claims.
#[derive(Debug, Default)]
pub(super) struct Batched {
    proofs: Vec<Claim>,
    payments: Vec<Claim>,
    /// Since when the first of the payments is due.
    first_due: Option<Timestamp>,
}

impl Batched {
    pub(super) fn prove(&mut self, claim: Claim) {
        self.proofs.push(claim);
    }

    pub(super) fn settle(&mut self, claim: Claim, since: Timestamp) {
        self.first_due = Some(self.first_due.map_or(since, |first| first.min(since)));
        self.payments.push(claim);
    }

    /// Whether it is cheaper to wait for the next payment, which is due at `next`, if it comes within `wait` seconds of the first.
    fn waits(&self, next: Option<Timestamp>, now: Timestamp, wait: u64) -> bool {
        let (Some(first), Some(next)) = (self.first_due, next) else { return false };
        let last = first.plus(wait);
        self.payments.len() < MAX_BATCH && next <= last && now < last
    }
}

impl Keeper<'_> {
    /// Sends what is due, together where that is cheaper.
    pub(super) async fn send_batches(&self, batched: Batched, head: &Block) -> Result<(), Trouble> {
        let waits =
            batched.waits(self.next_due(head).await, head.time, self.money.config.timing.settle_wait_secs);
        self.send_group("prove", batched.proofs, false).await?;
        self.send_group("settle", batched.payments, waits).await
    }

    /// When the next window ends of those that claims wait for.
    async fn next_due(&self, head: &Block) -> Option<Timestamp> {
        let claims = self.money.claims.lock().await;
        claims.values().filter_map(|open| open.window_until).filter(|until| *until > head.time).min()
    }

    async fn send_group(&self, verb: &'static str, claims: Vec<Claim>, waits: bool) -> Result<(), Trouble> {
        let mut groups: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
        let (mut fresh, mut alone) = (Vec::new(), Vec::new());
        for claim in claims {
            match claim.batch.clone().filter(|batch| batch.starts_with(verb)) {
                Some(batch) => groups.entry(batch).or_default().push(claim),
                None if self.is_alone(&claim.key()).await => alone.push(claim),
                None => fresh.push(claim),
            }
        }
        for (purpose, group) in groups {
            self.follow(verb, &purpose, &group).await?;
        }
        for claim in alone {
            let call = self.group_call(verb, std::slice::from_ref(&claim));
            self.send(&claim, verb, call).await?;
        }
        if waits {
            return Ok(());
        }
        for group in fresh.chunks(MAX_BATCH) {
            let purpose = format!("{verb}:{}", self.money.book.next().await?);
            // Each knows its transaction before the outbox does: after a crash in between it is handed over again.
            for claim in group {
                let batch = Some(purpose.clone());
                self.money.change(&claim.key(), |claim| claim.batch = batch).await?;
            }
            self.dispatch(&purpose, self.group_call(verb, group)).await?;
        }
        Ok(())
    }

    /// Sees to a transaction of a group that still waits for its effect.
    async fn follow(&self, verb: &'static str, purpose: &str, group: &[Claim]) -> Result<(), Trouble> {
        let entry = self.outbox.get(purpose).await?;
        match entry.map(|entry| entry.state) {
            None => {
                self.dispatch(purpose, self.group_call(verb, group)).await?;
            }
            // Refused because of one of them, or final without effect on these: each goes on by itself.
            Some(State::Failed(_)) => self.part(group, Duration::ZERO).await?,
            Some(State::Done(_)) => self.part(group, EFFECT_PATIENCE).await?,
            Some(State::Planned { .. } | State::Signed(_) | State::Sent(_) | State::Mined { .. }) => {}
        }
        Ok(())
    }

    /// Lets those go on by themselves that have waited so long for the effect of what is final.
    async fn part(&self, group: &[Claim], patience: Duration) -> Result<(), Trouble> {
        for claim in group {
            let mut parts = false;
            self.open(&claim.key(), |open| {
                parts = open.done_since.get_or_insert_with(Instant::now).elapsed() >= patience;
                open.alone |= parts;
            })
            .await;
            if parts {
                self.money.change(&claim.key(), |claim| claim.batch = None).await?;
            }
        }
        Ok(())
    }

    fn group_call(&self, verb: &'static str, group: &[Claim]) -> Call {
        let calls = self.chain.calls();
        let tasks: Vec<&Task> = group.iter().map(|claim| &claim.task).collect();
        if verb == "settle" {
            return match tasks.as_slice() {
                [task] => calls.settle(task),
                _ => calls.settle_batch(tasks),
            };
        }
        let proven: Vec<(&Task, Signed<ComputeProof>)> = group
            .iter()
            .filter_map(|claim| Some((&claim.task, Signed::from(claim.proof()?.clone()))))
            .collect();
        match proven.as_slice() {
            [(task, proof)] => calls.prove(task, proof),
            _ => calls.prove_batch(proven.iter().map(|(task, proof)| (*task, proof))),
        }
    }

    async fn is_alone(&self, key: &AttemptKey) -> bool {
        self.money.claims.lock().await.get(key).is_some_and(|open| open.alone)
    }
}
