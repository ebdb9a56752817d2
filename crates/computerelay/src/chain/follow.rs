//! The loop that follows the chain: it keeps what is final in the store, and has the tasks take it.
//!
//! Each portion of final blocks goes three steps: the store keeps its facts with how far they reach; the tasks take them; only then is the
//! block's time let act on tasks. Whatever a crash leaves half done is taken up at the next start.

use std::sync::Arc;
use std::time::Duration;

use escrow::{Chain, Rpc, RpcConfig, WatchConfig, WatchError, Watcher};
use rustls::ClientConfig;
use store::{StoreError, TaskFilter};
use taskmarket::{ChainHead, Status, TaskId, Timestamp};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{ChainView, EscrowConfig};
use crate::error::MarketError;
use crate::hub::Hub;
use crate::market::Market;

/// The longest pause after a failure; it begins at the polling interval and doubles.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// How long the endpoints may take together to answer: so long until it shows that the chain is out of reach.
const RPC_TIMEOUT: Duration = Duration::from_secs(10);
/// Tasks that are read or worked on at once.
const PAGE: usize = 256;
/// How often live tasks are read again, since another relay of the same store may have changed them.
const REREAD_EVERY: Duration = Duration::from_secs(600);
/// How long facts of tasks that never came are kept, in seconds: the furthest deadline and both windows at their longest, and a day.
const KEEP_FACTS_SECS: u64 = taskmarket::MAX_DEADLINE_SECS + 2 * taskmarket::MAX_WINDOW_SECS + 86_400;

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Market(#[from] MarketError),
}

/// Follows the chain until `stopping` is cancelled.
pub(crate) async fn follow(
    config: EscrowConfig,
    tls: Arc<ClientConfig>,
    market: Arc<Market>,
    hub: Arc<Hub>,
    stopping: CancellationToken,
) {
    let Some(mut follower) = Follower::new(config, tls, market, hub) else { return };
    let work = async {
        let mut pause = follower.config.poll;
        loop {
            match follower.round(Instant::now()).await {
                Ok(caught_up) => {
                    pause = follower.config.poll;
                    if caught_up {
                        sleep(pause).await;
                    }
                }
                Err(error) => {
                    follower.report(&error);
                    sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
    };
    stopping.run_until_cancelled(Box::pin(work)).await;
}

struct Follower {
    config: EscrowConfig,
    tls: Arc<ClientConfig>,
    market: Arc<Market>,
    hub: Arc<Hub>,
    view: Arc<ChainView>,
    watcher: Option<Watcher>,
    /// When all live tasks are read again.
    reread_at: Option<Instant>,
    /// Whether tasks have facts to take that the store keeps already.
    owing: bool,
}

impl Follower {
    /// A follower that has not looked yet; none where no settled tasks are taken.
    fn new(config: EscrowConfig, tls: Arc<ClientConfig>, market: Arc<Market>, hub: Arc<Hub>) -> Option<Self> {
        let view = Arc::clone(market.chain()?);
        Some(Self { config, tls, market, hub, view, watcher: None, reread_at: None, owing: true })
    }

    /// One look at the chain. Says whether there is nothing more to read now.
    async fn round(&mut self, now: Instant) -> Result<bool, FollowError> {
        let mut watcher = match self.watcher.take() {
            Some(watcher) => watcher,
            None => self.start().await?,
        };
        let result = self.step(&mut watcher, now).await;
        // A watcher that met a block which is final no more asks for it again; everything else may go on as well.
        self.watcher = Some(watcher);
        result
    }

    /// Finds the contract, and where the last run stopped.
    async fn start(&mut self) -> Result<Watcher, FollowError> {
        let domain = self.config.domain;
        let rpc_config = RpcConfig {
            total_timeout: RPC_TIMEOUT,
            ..RpcConfig::new(self.config.rpc_urls.clone(), Some(domain.chain_id))
        };
        let rpc = Rpc::new(rpc_config, &self.tls).map_err(|error| WatchError::Chain(error.into()))?;
        let chain = Chain::connect(rpc, domain.verifying_contract).await.map_err(WatchError::Chain)?;
        let config =
            WatchConfig { confirmations: self.config.confirmations, from_block: self.config.from_block };
        let cursor = self.market.store().chain_cursor(domain).await?;
        let watcher = Watcher::new(chain, config, cursor);
        tracing::info!(chain_id = domain.chain_id, escrow = %domain.verifying_contract, "following the escrow");
        Ok(watcher)
    }

    async fn step(&mut self, watcher: &mut Watcher, now: Instant) -> Result<bool, FollowError> {
        let store = self.market.store();
        let had = self.view.trouble();
        if self.owing {
            // Time must not act on a task before it has all that the chain said until then.
            self.catch_up_tasks(watcher.cursor()).await?;
            self.owing = false;
        }
        let progress = watcher.step().await?;
        if progress.replaced > 0 {
            tracing::warn!(blocks = progress.replaced, "the chain replaced blocks that were not final");
        }
        if let Some((to, facts)) = &progress.portion {
            self.owing = true;
            if !store.advance_chain(self.config.domain, watcher.cursor(), *to, facts.clone()).await? {
                // Another relay of the same store was first.
                let cursor = store.chain_cursor(self.config.domain).await?;
                watcher.move_to(cursor);
                return Ok(false);
            }
            watcher.move_on(*to);
            for task in in_order(facts.iter().map(|(task, _)| *task)) {
                self.take_facts(task).await?;
            }
            self.view.settled_up_to(*to, facts);
            self.owing = false;
        }
        self.view.saw(&progress);
        if self.reread_at.is_none_or(|at| at <= now) {
            // A relay of the same store may have ended between the publication of a task and its facts.
            self.catch_up_tasks(None).await?;
            self.read_dues().await?;
            self.forget_strays().await?;
            self.reread_at = Some(now + REREAD_EVERY);
        }
        self.let_time_act().await?;
        if let Some(trouble) = had.filter(|_| self.view.trouble().is_none()) {
            tracing::info!(%trouble, "the chain is followed up to its head");
            self.hub.look_for_work();
        }
        Ok(progress.caught_up)
    }

    /// Has tasks take the facts that wait for them, up to a cursor.
    async fn catch_up_tasks(&self, cursor: Option<ChainHead>) -> Result<(), FollowError> {
        let store = self.market.store();
        let mut after = None;
        loop {
            let tasks = store.tasks_with_chain_facts(after, PAGE).await?;
            let Some(last) = tasks.last() else { break };
            after = Some(*last);
            for task in &tasks {
                self.take_facts(*task).await?;
            }
        }
        if let Some(cursor) = cursor {
            self.view.settled_up_to(cursor, &[]);
        }
        Ok(())
    }

    /// Forgets facts of tasks that never came and cannot come any more.
    async fn forget_strays(&self) -> Result<(), FollowError> {
        let Some(head) = self.view.final_head() else { return Ok(()) };
        let before = head.block_time.unix().saturating_sub(KEEP_FACTS_SECS);
        match self.market.store().prune_chain_facts(Timestamp::from_unix(before)).await? {
            0 => {}
            facts => tracing::info!(facts, "facts of tasks that never came were forgotten"),
        }
        Ok(())
    }

    async fn take_facts(&self, task: TaskId) -> Result<(), FollowError> {
        match self.market.take_chain_facts(task).await {
            Ok(_) | Err(MarketError::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets the chain's time act on all tasks on which it is due.
    async fn let_time_act(&self) -> Result<(), FollowError> {
        let mut last = Vec::new();
        loop {
            let due = self.view.due(PAGE);
            // What stays due has facts from later blocks already.
            if due.is_empty() || due == last {
                return Ok(());
            }
            for task in &due {
                // What it was told while nobody took that up comes first: afterwards the chain's order has passed it.
                self.take_facts(*task).await?;
                let record = self.market.elapse(*task).await?;
                self.view.follow_due(&record);
            }
            last = due;
        }
    }

    /// Reads from the store when the chain's time acts on which task.
    async fn read_dues(&self) -> Result<(), FollowError> {
        for status in [Status::Open, Status::Accepted, Status::Submitted, Status::Disputed] {
            let mut cursor = None;
            loop {
                let filter = TaskFilter { status: Some(status), ..TaskFilter::default() };
                let page = self.market.store().list(filter, cursor, PAGE).await?;
                for stored in &page.tasks {
                    self.view.follow_due(&stored.record);
                }
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn report(&self, error: &FollowError) {
        match error {
            FollowError::Watch(WatchError::Unsteady { .. }) => {
                return tracing::debug!(%error, "the chain is asked again");
            }
            FollowError::Watch(WatchError::Reorganised { .. }) => {
                tracing::error!(%error, "the chain is not followed any further: settled tasks stand still until that block is back");
            }
            FollowError::Watch(WatchError::Chain(_) | WatchError::Behind { .. })
            | FollowError::Store(_)
            | FollowError::Market(_) => tracing::warn!(%error, "the chain cannot be followed now"),
        }
        self.view.failed(error.to_string());
    }
}

/// Each task once, in the order of first appearance.
fn in_order(tasks: impl Iterator<Item = TaskId>) -> Vec<TaskId> {
    let mut seen = std::collections::HashSet::new();
    tasks.filter(|task| seen.insert(*task)).collect()
}

#[cfg(test)]
mod tests;
