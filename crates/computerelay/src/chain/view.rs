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

    /// What the chain says of a task that is not final yet.
    pub(crate) fn pending(&self, task: TaskId) -> Option<PendingFact> {
        let state = self.lock();
        let head = state.head?.block;
        let fact = state.pending.get(&task)?.last()?;
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
