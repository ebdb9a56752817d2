//! Following the contract: what it says block by block, once it is final, and what it says before.
//!
//! A [`Watcher`] goes from the last block that is known to be final towards the chain's head. Each [`step`](Watcher::step) brings the next
//! portion of final blocks with their facts, in the chain's order, and a view of what blocks say that are not final yet: that may be
//! withdrawn, as the next view does not have it any more.
//!
//! Near the head every block is tied to the last final one by its parents' hashes, and every fact to its block by the hash that the log
//! carries; so portions are whole and of one chain, even where endpoints of different opinions take turns. A chain that gives up a block
//! which was final here is never followed: that is [`WatchError::Reorganised`], again and again until the block is back.

use std::collections::BTreeMap;

use taskmarket::{Bytes32, ChainChange, ChainFact, ChainHead, ContentHash, Resolution, TaskId, Timestamp};

use crate::abi::ZORAIComputeEscrowEvents as Events;
use crate::chain::{Block, Chain, ChainError, Log};

/// The most blocks that are asked for at once.
const MAX_RANGE: u64 = 2000;
/// Blocks beyond those that wait for confirmations that are still followed one by one; further behind, only final ones are read.
const NEAR: u64 = 64;
/// After so many portions of a range that was narrowed a wider one is tried: an endpoint that is too slow for it costs a whole
/// request's time.
const WIDEN_AFTER: u32 = 16;
/// The most events of one portion. More in one block are taken whole.
const MAX_EVENTS: usize = 10_000;

/// How a contract is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchConfig {
    /// How many blocks, its own included, make a block final; at least 1.
    pub confirmations: u64,
    /// The first block that is read where nothing was followed before.
    pub from_block: u64,
}

/// Why a step brought nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WatchError {
    /// The chain could not be read.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Answers do not belong together: blocks changed in between, or endpoints differ. The next step asks again.
    #[error("the chain changed while it was read, at block {block}")]
    Unsteady {
        /// Where.
        block: u64,
    },
    /// The chain is shorter than what is final here: an endpoint that lags, most likely.
    #[error("the chain's head is block {head}, before block {final_block}, which is final here")]
    Behind {
        /// The head.
        head: u64,
        /// The last final block.
        final_block: u64,
    },
    /// A block that was final is not on the chain any more. What was told of it cannot be taken back: nothing more is told.
    #[error(
        "block {block} was final as {was}, and is {is} now: the chain went back further than the confirmations allow, or the \
         endpoint is on another chain"
    )]
    Reorganised {
        /// The block.
        block: u64,
        /// Its hash when it became final.
        was: Bytes32,
        /// The hash of the block of this number now.
        is: Bytes32,
    },
}

/// A fact, and which task's.
pub type TaskFact = (TaskId, ChainFact);

/// What a step brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The chain's head.
    pub head: ChainHead,
    /// The next final blocks: the last of them, and their facts in the chain's order.
    pub portion: Option<(ChainHead, Vec<TaskFact>)>,
    /// Whether that was all that is final.
    pub caught_up: bool,
    /// What blocks say that are not final yet, once caught up. It replaces the view of the step before.
    pub pending: Vec<TaskFact>,
    /// How many blocks that were not final were replaced since the step before.
    pub replaced: u64,
}

/// Follows one contract. It keeps the blocks that are not final yet, and nothing else.
#[derive(Debug)]
pub struct Watcher {
    chain: Chain,
    config: WatchConfig,
    /// The last final block, whose facts and those before were told.
    cursor: Option<ChainHead>,
    /// Blocks after it up to the head, by number, each the parent of the next.
    recent: BTreeMap<u64, Block>,
    /// How many blocks are asked for at once.
    range: u64,
    /// Portions of that range since it was changed.
    portions: u32,
}

impl Watcher {
    /// A watcher that goes on after a block, or at [`WatchConfig::from_block`].
    pub fn new(chain: Chain, config: WatchConfig, cursor: Option<ChainHead>) -> Self {
        let config = WatchConfig { confirmations: config.confirmations.max(1), ..config };
        Self { chain, config, cursor, recent: BTreeMap::new(), range: MAX_RANGE, portions: 0 }
    }

    /// The last block whose facts were told.
    pub fn cursor(&self) -> Option<ChainHead> {
        self.cursor
    }

    /// Goes on from another block: where somebody else told more meanwhile.
    pub fn move_to(&mut self, cursor: Option<ChainHead>) {
        self.cursor = cursor;
        self.recent.clear();
    }

    /// Reads the next portion. The cursor moves by [`Watcher::move_on`] only, once that was kept.
    ///
    /// # Errors
    /// [`WatchError`]; the step may be repeated.
    pub async fn step(&mut self) -> Result<Progress, WatchError> {
        let head = self.chain.head().await?;
        let next = self.cursor.map_or(self.config.from_block, |cursor| cursor.block + 1);
        if head.number + 1 < next {
            return Err(WatchError::Behind { head: head.number, final_block: next - 1 });
        }
        let last_final = (head.number + 1).checked_sub(self.config.confirmations);
        let is_near = head.number.saturating_sub(next) <= self.config.confirmations + NEAR;
        let replaced = if is_near { self.follow(head, next).await? } else { self.check_cursor().await? };
        if !is_near {
            // Nothing ties them to the head, so they may be of a chain that is no more.
            self.recent.clear();
        }
        let Some(last_final) = last_final.filter(|last| *last >= next) else {
            let pending = self.all_facts(next, head.number).await?;
            return Ok(Progress { head: as_head(&head), portion: None, caught_up: true, pending, replaced });
        };
        let to = last_final.min(next + self.range - 1);
        let (to, facts) = self.portion(next, to).await?;
        let end = self.header(to).await?;
        let caught_up = to == last_final;
        let pending =
            if caught_up && is_near { self.all_facts(to + 1, head.number).await? } else { Vec::new() };
        let portion = Some((as_head(&end), facts));
        Ok(Progress { head: as_head(&head), portion, caught_up, pending, replaced })
    }

    /// Notes that a portion was kept: the next begins after it.
    pub fn move_on(&mut self, to: ChainHead) {
        self.cursor = Some(to);
        self.recent.retain(|number, _| *number > to.block);
    }

    /// Ties the head to the cursor by parents' hashes. Answers how many blocks known before are not on the chain any more.
    async fn follow(&mut self, head: Block, next: u64) -> Result<u64, WatchError> {
        let mut fresh = vec![head];
        loop {
            let lowest = fresh[fresh.len() - 1];
            if lowest.number < next {
                // The head is the cursor itself.
                self.check_is_cursor(&lowest)?;
                fresh.pop();
                break;
            }
            if lowest.number == next {
                if let Some(cursor) = self.cursor.filter(|cursor| cursor.block_hash.0 != lowest.parent) {
                    return self.gone(cursor).await;
                }
                break;
            }
            let before = lowest.number - 1;
            if self.recent.get(&before).is_some_and(|known| known.hash == lowest.parent) {
                break;
            }
            let parent = self.chain.block(before).await?;
            let unsteady = WatchError::Unsteady { block: before };
            fresh.push(parent.filter(|parent| parent.hash == lowest.parent).ok_or(unsteady)?);
        }
        let from = fresh.last().map_or(next, |block| block.number);
        let replaced = self.recent.split_off(&from);
        let is_gone = |block: &&Block| !fresh.iter().any(|kept| kept.hash == block.hash);
        let gone = replaced.values().filter(is_gone).count() as u64;
        self.recent.extend(fresh.into_iter().map(|block| (block.number, block)));
        Ok(gone)
    }

    /// Makes sure that the chain still has the last final block.
    async fn check_cursor(&self) -> Result<u64, WatchError> {
        if let Some(cursor) = self.cursor {
            self.check_is_cursor(&self.header(cursor.block).await?)?;
        }
        Ok(0)
    }

    fn check_is_cursor(&self, block: &Block) -> Result<(), WatchError> {
        match self.cursor {
            Some(cursor) if cursor.block == block.number && cursor.block_hash.0 != block.hash => {
                Err(reorganised(cursor, block))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The cursor's block is not where the head comes from: says what is there now.
    async fn gone(&self, cursor: ChainHead) -> Result<u64, WatchError> {
        let now = self.header(cursor.block).await?;
        self.check_is_cursor(&now)?;
        Err(WatchError::Unsteady { block: cursor.block })
    }

    /// The facts of blocks from one on, as many blocks as the chain answers for at once; answers up to which.
    async fn portion(&mut self, from: u64, mut to: u64) -> Result<(u64, Vec<TaskFact>), WatchError> {
        loop {
            let is_whole_range = to - from + 1 >= self.range;
            match self.facts(from, to).await {
                Ok(facts) if facts.len() <= MAX_EVENTS || to == from => {
                    self.portions += u32::from(is_whole_range);
                    if self.portions >= WIDEN_AFTER {
                        (self.range, self.portions) = ((self.range * 2).min(MAX_RANGE), 0);
                    }
                    return Ok((to, facts));
                }
                // Too wide a range for the node, or for memory here.
                Ok(_) => to = self.narrow(from, to),
                Err(WatchError::Chain(ChainError::Rpc(error))) if to > from => {
                    to = self.narrow(from, to);
                    // Maybe too wide for the time that a request has. Maybe the endpoints are away: that is said.
                    if !error.is_answer() {
                        return Err(ChainError::Rpc(error).into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Halves the range; answers up to where it reaches.
    fn narrow(&mut self, from: u64, to: u64) -> u64 {
        (self.range, self.portions) = ((to - from).div_ceil(2).max(1), 0);
        let to = from + self.range - 1;
        tracing::debug!(from, to, "fewer blocks are asked for at once");
        to
    }

    /// The facts of all blocks `from..=to`.
    async fn all_facts(&mut self, from: u64, to: u64) -> Result<Vec<TaskFact>, WatchError> {
        let (mut all, mut next) = (Vec::new(), from);
        while next <= to {
            let (last, facts) = self.portion(next, to.min(next + self.range - 1)).await?;
            all.extend(facts);
            next = last + 1;
        }
        Ok(all)
    }

    /// The facts of blocks `from..=to`, each tied to its block.
    async fn facts(&self, from: u64, to: u64) -> Result<Vec<TaskFact>, WatchError> {
        if from > to {
            return Ok(Vec::new());
        }
        let logs = self.chain.logs(from, to, None).await?;
        let mut facts = Vec::with_capacity(logs.len());
        let (mut last, mut block) = (None, None::<Block>);
        for log in &logs {
            let place = (log.block, log.index);
            let unsteady = || WatchError::Unsteady { block: log.block };
            if last.is_some_and(|last| place <= last) || !(from..=to).contains(&log.block) {
                return Err(unsteady());
            }
            last = Some(place);
            let header = match block {
                Some(known) if known.number == log.block => known,
                Some(_) | None => self.header(log.block).await?,
            };
            if header.hash != log.block_hash {
                return Err(unsteady());
            }
            block = Some(header);
            facts.extend(fact(log, header.time));
        }
        Ok(facts)
    }

    async fn header(&self, number: u64) -> Result<Block, WatchError> {
        if let Some(known) = self.recent.get(&number) {
            return Ok(*known);
        }
        let block = self.chain.block(number).await?;
        block.ok_or(WatchError::Unsteady { block: number })
    }
}

/// Whether the chain has this very fact of this task, in the block that the fact names.
///
/// # Errors
/// [`ChainError`] where that cannot be found out.
pub async fn is_on_chain(chain: &Chain, task: TaskId, told: &ChainFact) -> Result<bool, ChainError> {
    let Some(logs) = chain.transaction_logs(told.tx.0).await? else { return Ok(false) };
    let Some(block) = chain.block(told.block).await? else { return Ok(false) };
    let is_meant = |log: &&Log| log.index == told.log_index && log.block == told.block;
    let found = logs.iter().find(is_meant).and_then(|log| fact(log, block.time));
    Ok(block.hash == told.block_hash.0 && found == Some((task, *told)))
}

/// The fact that an event of the contract is, and which task's; `None` for events about accounts. `time` is its block's.
pub fn fact(log: &Log, time: Timestamp) -> Option<TaskFact> {
    let at = Timestamp::from_unix;
    let (task, change) = match &log.event {
        Events::TaskFunded(event) => (event.taskId, ChainChange::Funded),
        Events::TaskAccepted(event) => (
            event.taskId,
            ChainChange::Accepted {
                provider: event.provider,
                attempt: event.attempt,
                lease_until: at(event.leaseUntil),
            },
        ),
        Events::TaskFailed(event) => {
            (event.taskId, ChainChange::Failed { provider: event.provider, attempt: event.attempt })
        }
        Events::LeaseLapsed(event) => {
            (event.taskId, ChainChange::Lapsed { provider: event.provider, attempt: event.attempt })
        }
        Events::TaskProven(event) => (
            event.taskId,
            ChainChange::Proven {
                provider: event.provider,
                attempt: event.attempt,
                result_hash: ContentHash(event.resultHash),
                dispute_until: at(event.disputeUntil),
            },
        ),
        Events::TaskPaid(event) => (
            event.taskId,
            ChainChange::Paid {
                provider: event.provider,
                attempt: event.attempt,
                result_hash: ContentHash(event.resultHash),
            },
        ),
        Events::TaskDisputed(event) => (
            event.taskId,
            ChainChange::Disputed {
                provider: event.provider,
                attempt: event.attempt,
                reason_hash: Bytes32(event.reasonHash),
                evidence_hash: Bytes32(event.evidenceHash),
                resolve_until: at(event.resolveUntil),
            },
        ),
        Events::TaskResolved(event) => (
            event.taskId,
            ChainChange::Split {
                provider: event.provider,
                attempt: event.attempt,
                resolution: Resolution::Arbiter { provider_bps: event.providerBps },
            },
        ),
        Events::TaskTimedOut(event) => (
            event.taskId,
            ChainChange::Split {
                provider: event.provider,
                attempt: event.attempt,
                resolution: Resolution::Timeout,
            },
        ),
        Events::TaskRefunded(event) => (event.taskId, ChainChange::Refunded),
        Events::TaskCancelled(event) => (event.taskId, ChainChange::Cancelled),
        Events::Staked(_)
        | Events::UnstakeAnnounced(_)
        | Events::Withdrawn(_)
        | Events::EIP712DomainChanged(_) => {
            return None;
        }
    };
    let fact = ChainFact {
        tx: Bytes32(log.tx),
        log_index: log.index,
        block: log.block,
        block_hash: Bytes32(log.block_hash),
        block_time: time,
        change,
    };
    Some((TaskId(task), fact))
}

fn as_head(block: &Block) -> ChainHead {
    ChainHead { block: block.number, block_hash: Bytes32(block.hash), block_time: block.time }
}

fn reorganised(cursor: ChainHead, now: &Block) -> WatchError {
    WatchError::Reorganised { block: cursor.block, was: cursor.block_hash, is: Bytes32(now.hash) }
}
