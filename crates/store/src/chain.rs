//! What a chain said: how far it was followed, and facts that their tasks have not taken yet.
//!
//! A relay that follows the chain keeps each portion of final facts together with how far they reach, in one transaction, and only then
//! tells the tasks. So a crash loses no fact and repeats none; and a task that is published after it was funded finds its facts here.

use async_trait::async_trait;
use taskmarket::{ChainFact, ChainHead, ChainPlace, Domain, TaskId, Timestamp};

use crate::StoreError;

/// The chain's word.
///
/// Every method fails with [`StoreError`] as its variants say.
#[async_trait]
pub trait Chains: Send + Sync {
    /// The last block of this domain's chain up to which all facts are kept; `None` before the first.
    async fn chain_cursor(&self, domain: Domain) -> Result<Option<ChainHead>, StoreError>;

    /// Keeps facts, and that they are all up to a block, if the cursor is still where the caller found it. `false` where another relay
    /// moved it.
    async fn advance_chain(
        &self,
        domain: Domain,
        from: Option<ChainHead>,
        to: ChainHead,
        facts: Vec<(TaskId, ChainFact)>,
    ) -> Result<bool, StoreError>;

    /// A task's facts that wait, in the chain's order.
    async fn chain_facts(&self, task: TaskId) -> Result<Vec<ChainFact>, StoreError>;

    /// Tasks that are here and for which facts wait, after this one in the order of their ids, `limit` at most.
    async fn tasks_with_chain_facts(
        &self,
        after: Option<TaskId>,
        limit: usize,
    ) -> Result<Vec<TaskId>, StoreError>;

    /// Forgets a task's facts up to a place, once its history has them.
    async fn forget_chain_facts(&self, task: TaskId, through: ChainPlace) -> Result<(), StoreError>;

    /// Forgets facts of tasks that never came, from blocks before a time; answers how many.
    async fn prune_chain_facts(&self, before: Timestamp) -> Result<u64, StoreError>;
}
