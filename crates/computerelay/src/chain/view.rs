//! What the relay knows of the chain now.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use escrow::{Progress, TaskFact};
use rpc::relay::ChainStatus;
use rpc::tasks::PendingFact;
use taskmarket::{ChainFact, ChainHead, Domain, TaskId, TaskRecord, Timestamp, chain_due};

/// How long the last good answer counts as the chain's state. While there is none, no settled task is offered.
const STALE_AFTER: Duration = Duration::from_secs(60);
/// The most facts that are not final yet that are shown; further ones are shown once they are final.
const MAX_PENDING: usize = 10_000;

/// The chain as the follower sees it.
#[derive(Debug)]
pub(crate) struct ChainView {
    domain: Domain,
    confirmations: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    head: Option<ChainHead>,
    /// All facts up to here are in the histories of their tasks.
    final_head: Option<ChainHead>,
    caught_up: bool,
    last_answer: Option<Instant>,
    error: Option<String>,
    /// By task, in the chain's order.
    pending: HashMap<TaskId, Vec<ChainFact>>,
    /// When the chain's time acts on which task next.
    dues: BTreeSet<(Timestamp, TaskId)>,
    due_of: HashMap<TaskId, Timestamp>,
}

impl ChainView {
    /// Nothing is known yet.
    pub(crate) fn new(domain: Domain, confirmations: u64) -> Self {
        Self { domain, confirmations, state: Mutex::default() }
    }

    /// The domain of the tasks whose money is there.
    pub(crate) fn domain(&self) -> Domain {
        self.domain
    }

    /// The last final block whose facts all tasks have.
    pub(crate) fn final_head(&self) -> Option<ChainHead> {
        self.lock().final_head
    }

    /// Whether what is known is the chain's state of now. If not, why.
    pub(crate) fn trouble(&self) -> Option<String> {
        let state = self.lock();
        if let Some(error) = &state.error {
            return Some(error.clone());
        }
        match state.last_answer {
            None => Some("it was not reached yet".to_owned()),
            Some(at) if at.elapsed() > STALE_AFTER => Some("it gave no answer lately".to_owned()),
            Some(_) if !state.caught_up => Some("its past is still being read".to_owned()),
            Some(_) => None,
        }
    }

    /// What the chain says of a task that is not final yet. What its record has taken already is final, even where the view does not
    /// know so yet.
    pub(crate) fn pending(&self, task: &TaskRecord) -> Option<PendingFact> {
        let state = self.lock();
        let head = state.head?.block;
        let facts = state.pending.get(&task.id)?;
        let fact = facts.iter().rev().find(|fact| !task.settlement.facts.contains(&fact.id()))?;
        Some(PendingFact {
            fact: *fact,
            confirmations: (head + 1).saturating_sub(fact.block),
            needed: self.confirmations,
        })
    }

    /// The chain as it is shown; `now` is the relay's clock.
    pub(crate) fn status(&self, now: Timestamp) -> ChainStatus {
        let error = self.trouble();
        let state = self.lock();
        ChainStatus {
            chain_id: self.domain.chain_id,
            escrow: self.domain.verifying_contract,
            confirmations: self.confirmations,
            head: state.head,
            final_head: state.final_head,
            lag_secs: state.final_head.map(|head| now.since(head.block_time)),
            error,
        }
    }

    /// Takes in what a step of the follower saw. Says whether the trouble was over by it.
    pub(super) fn saw(&self, progress: &Progress) {
        let mut state = self.lock();
        state.head = Some(progress.head);
        state.last_answer = Some(Instant::now());
        state.caught_up = progress.caught_up;
        state.error = None;
        if progress.caught_up {
            state.pending.clear();
            for (task, fact) in progress.pending.iter().take(MAX_PENDING) {
                state.pending.entry(*task).or_default().push(*fact);
            }
        }
    }

    /// Notes why the chain cannot be followed now.
    pub(super) fn failed(&self, error: String) {
        self.lock().error = Some(error);
    }

    /// All tasks have the facts up to this block; these were among them.
    pub(super) fn settled_up_to(&self, head: ChainHead, facts: &[TaskFact]) {
        let mut state = self.lock();
        state.final_head = Some(head);
        for (task, _) in facts {
            if let Some(pending) = state.pending.get_mut(task) {
                pending.retain(|fact| fact.block > head.block);
            }
        }
        state.pending.retain(|_, facts| !facts.is_empty());
    }

    /// Notes when the chain's time acts on a task next.
    pub(crate) fn follow_due(&self, record: &TaskRecord) {
        if record.domain != self.domain {
            return;
        }
        let due = chain_due(record);
        let mut state = self.lock();
        let before = match due {
            Some(due) => state.due_of.insert(record.id, due),
            None => state.due_of.remove(&record.id),
        };
        if let Some(before) = before {
            state.dues.remove(&(before, record.id));
        }
        if let Some(due) = due {
            state.dues.insert((due, record.id));
        }
    }

    /// Tasks on which the chain's time acted up to the last final block, most overdue first.
    pub(super) fn due(&self, limit: usize) -> Vec<TaskId> {
        let state = self.lock();
        let Some(head) = state.final_head else { return Vec::new() };
        let due = state.dues.iter().take_while(|(due, _)| *due <= head.block_time);
        due.map(|(_, task)| *task).take(limit).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing can panic while it is held; if something did, the next step puts it right.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use taskmarket::{
        Address, Amount, B256, Bytes32, ChainChange, ContentHash, Event, Runtime, Task, TaskConfig, U256,
        apply, publish,
    };

    use super::*;

    const DOMAIN: Domain = Domain { chain_id: 31337, verifying_contract: Address::repeat_byte(0x5e) };

    fn now() -> Timestamp {
        Timestamp::from_unix(1_800_000_000)
    }

    fn record() -> TaskRecord {
        let wallet = wallet::Wallet::random();
        let pin = ContentHash(B256::repeat_byte(1));
        let task = Task {
            requester: wallet.address(),
            model_cid: format!("artifact://{pin}").parse().unwrap(),
            model_hash: pin,
            input_cid: format!("artifact://{pin}").parse().unwrap(),
            input_hash: pin,
            config: TaskConfig {
                runtime: Runtime::Wasm,
                params: "{}".to_owned(),
                gpu_type: String::new(),
                gpu_count: 0,
                min_vram: 0,
                max_duration: 60,
                max_attempts: 1,
            },
            token: Address::ZERO,
            budget: Amount(U256::from(1)),
            provider_stake: Amount::ZERO,
            dispute_bond: Amount::ZERO,
            deadline: now().plus(3600),
            dispute_window: 0,
            arbiter_window: 0,
            arbiter: Address::ZERO,
            salt: Bytes32(B256::ZERO),
        };
        publish(now(), &wallet.sign(&task, &DOMAIN).unwrap().verify(&DOMAIN).unwrap()).unwrap()
    }

    #[test]
    fn what_a_task_has_taken_is_pending_no_more() {
        let view = ChainView::new(DOMAIN, 2);
        let mut record = record();
        let head = ChainHead { block: 8, block_hash: Bytes32(B256::repeat_byte(8)), block_time: now() };
        let fact = ChainFact {
            tx: Bytes32(B256::repeat_byte(7)),
            log_index: 0,
            block: head.block,
            block_hash: head.block_hash,
            block_time: now(),
            change: ChainChange::Funded,
        };
        let pending = vec![(record.id, fact)];
        view.saw(&Progress { head, portion: None, caught_up: true, pending, replaced: 0 });
        let shown = view.pending(&record).unwrap();
        assert_eq!((shown.fact, shown.confirmations, shown.needed), (fact, 1, 2));
        // The task is written before the view hears that the block is final.
        apply(&mut record, now(), &Event::Chain(fact));
        assert_eq!(view.pending(&record), None);
    }
}
