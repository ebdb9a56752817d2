//! Reading the chain: one escrow contract, its tasks and accounts.

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::{Eip712Domain, SolCall, SolEventInterface as _};
use serde::Deserialize;
use serde_json::{Value, json};
use taskmarket::{Amount, ContentHash, Domain, Task, TaskId, Timestamp};

use crate::abi::{ZORAIComputeEscrow as contract, ZORAIComputeEscrowEvents};
use crate::call::{Call, Calls};
use crate::code;
use crate::revert::RevertReason;
use crate::rpc::{Rpc, RpcError};
use crate::token::IERC20;

/// Where a task's money stands, by the contract: in the domain's words.
pub use taskmarket::Money as Status;

/// How many blocks are asked for events at once: what most nodes allow.
const LOG_RANGE: u64 = 10_000;

/// No place and no time of a chain comes near it, and sums of a few below it do not overflow.
const MAX_NUMBER: u64 = u64::MAX >> 1;

/// Why a chain could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChainError {
    /// No usable answer.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// Nothing stands at the contract's address.
    #[error("there is no contract at {address} on chain {chain_id}")]
    NoContract {
        /// Where.
        address: Address,
        /// On which chain.
        chain_id: u64,
    },
    /// Something else stands there.
    #[error("the contract at {address} on chain {chain_id} is not the escrow that this program knows")]
    OtherContract {
        /// Where.
        address: Address,
        /// On which chain.
        chain_id: u64,
    },
    /// The call reverts.
    #[error("the contract refuses: {0}")]
    Reverted(RevertReason),
    /// An answer that the contract cannot have given.
    #[error("the answer to {what} cannot be read: {why}")]
    Malformed {
        /// What was asked.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
}

/// Which state of the chain a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum At {
    /// The newest block.
    #[default]
    Latest,
    /// The newest block, and what waits to be in the next.
    Pending,
    /// The block of this number.
    Block(u64),
}

impl At {
    fn tag(self) -> String {
        match self {
            Self::Latest => "latest".to_owned(),
            Self::Pending => "pending".to_owned(),
            Self::Block(number) => format!("{number:#x}"),
        }
    }
}

/// What the contract stores of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Who holds the current attempt, or held the last one; zero for nobody.
    pub provider: Address,
    /// The current or last attempt; they count from 1.
    pub attempt: u32,
    /// When the status' time ends: the lease, the dispute window or the arbiter's window.
    pub until: Timestamp,
    /// Where the money stands. A lease that is over still reads [`Status::Accepted`]: see [`Record::is_lapsed`].
    pub status: Status,
}

impl Record {
    /// Whether a lease was taken and is over at `now` by the chain's clock, so that the task counts as funded.
    pub fn is_lapsed(&self, now: Timestamp) -> bool {
        self.status == Status::Accepted && self.until <= now
    }
}

/// A provider's stake in one token that no task holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stake {
    /// All of it.
    pub free: Amount,
    /// How much of it is announced to leave.
    pub leaving: Amount,
    /// From when on that may leave.
    pub leaves_at: Timestamp,
}

impl Stake {
    /// What stays for a day at least: that much an acceptance can rely on.
    pub fn reliable(&self) -> Amount {
        self.free.checked_sub(self.leaving).unwrap_or(Amount::ZERO)
    }
}

/// A block's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
    /// The hash of the one before.
    pub parent: B256,
    /// The chain's clock in it.
    pub time: Timestamp,
    /// What gas costs at least in it, in the native coin's smallest unit.
    pub base_fee: u128,
}

#[cfg(feature = "tx")]
impl Block {
    /// The base fee as far as it fits, which is beyond any cap.
    pub(crate) fn base_fee_u64(&self) -> u64 {
        u64::try_from(self.base_fee).unwrap_or(u64::MAX)
    }
}

/// One event of the contract, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// The block's number.
    pub block: u64,
    /// The block's hash.
    pub block_hash: B256,
    /// The transaction.
    pub tx: B256,
    /// Its place among the block's events.
    pub index: u64,
    /// What it says.
    pub event: ZORAIComputeEscrowEvents,
}

/// One escrow contract on one chain. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Chain {
    rpc: Rpc,
    domain: Domain,
}

impl Chain {
    /// Finds the contract and makes sure that it is the escrow: its code is the committed one.
    ///
    /// # Errors
    /// The chain cannot be reached, or something else stands at that address.
    pub async fn connect(rpc: Rpc, escrow: Address) -> Result<Self, ChainError> {
        let chain_id = rpc.chain_id().await?;
        let chain = Self { rpc, domain: Domain { chain_id, verifying_contract: escrow } };
        let found = chain.code(escrow).await?;
        if found.is_empty() {
            return Err(ChainError::NoContract { address: escrow, chain_id });
        }
        if !code::is_escrow(&found) {
            return Err(ChainError::OtherContract { address: escrow, chain_id });
        }
        Ok(chain)
    }

    /// The signing domain of tasks whose money this contract holds.
    pub fn domain(&self) -> Domain {
        self.domain
    }

    /// The contract's address.
    pub fn escrow(&self) -> Address {
        self.domain.verifying_contract
    }

    /// Calls to this contract.
    pub fn calls(&self) -> Calls {
        Calls::new(self.escrow())
    }

    /// The endpoints.
    pub fn rpc(&self) -> &Rpc {
        &self.rpc
    }

    /// The newest block.
    ///
    /// # Errors
    /// [`ChainError`]
    pub async fn head(&self) -> Result<Block, ChainError> {
        block(&self.rpc, At::Latest).await?.ok_or_else(|| malformed("the newest block", "there is none"))
    }

    /// The block of this number, if there is one.
    ///
    /// # Errors
    /// [`ChainError`]
    pub async fn block(&self, number: u64) -> Result<Option<Block>, ChainError> {
        block(&self.rpc, At::Block(number)).await
    }

    /// What is stored of a task.
    ///
    /// # Errors
    /// [`ChainError`]
    pub async fn record(&self, id: TaskId) -> Result<Record, ChainError> {
        self.record_at(id, At::Latest).await
    }

    /// What was stored of a task at some block.
    ///
    /// # Errors
    /// [`ChainError`]
    pub async fn record_at(&self, id: TaskId, at: At) -> Result<Record, ChainError> {
        let record = self.read(self.escrow(), &contract::recordOfCall { taskId: id.0 }, at).await?;
        let status = Status::ALL.get(usize::from(record.status)).copied();
        let status = status.ok_or_else(|| malformed("recordOf", "a status that is not known"))?;
        Ok(Record {
            provider: record.provider,
            attempt: record.attempt,
            until: Timestamp::from_unix(record.until.to::<u64>()),
            status,
        })
    }

    /// The hash of the result that stands while a task is proven or disputed, else [`ContentHash::UNPINNED`].
    ///
    /// # Errors
    /// [`ChainError`]
    pub async fn result_of(&self, id: TaskId) -> Result<ContentHash, ChainError> {
        self.read(self.escrow(), &contract::resultOfCall { taskId: id.0 }, At::Latest).await.map(ContentHash)
    }

    /// The task's id as the contract computes it. Equal to [`Task::id`] under [`Chain::domain`], or nothing should be signed.
    ///
    /// # Errors
    /// [`ChainError`]
    pub async fn task_id(&self, task: &Task) -> Result<TaskId, ChainError> {
        self.read(self.escrow(), &contract::taskIdOfCall { task: task.into() }, At::Latest).await.map(TaskId)
    }

    /// A provider's free stake.
    ///
    /// # Errors
    /// [`ChainError`]
    pub async fn stake(&self, token: Address, provider: Address) -> Result<Stake, ChainError> {
        let stake = self.read(self.escrow(), &contract::stakeOfCall { token, provider }, At::Latest).await?;
        Ok(Stake {
            free: Amount(stake.free),
            leaving: Amount(stake.leaving),
            leaves_at: Timestamp::from_unix(stake.leavesAt),
        })
    }

    /// What an account has from tasks and may withdraw now.
    ///
    /// # Errors
    /// [`ChainError`]
    pub async fn withdrawable(&self, token: Address, account: Address) -> Result<Amount, ChainError> {
        self.read(self.escrow(), &contract::creditOfCall { token, account }, At::Latest).await.map(Amount)
    }

    /// What an account has outside the escrow; the token zero is the native coin.
    ///
    /// # Errors
    /// [`ChainError`]
    pub async fn balance(&self, token: Address, account: Address) -> Result<Amount, ChainError> {
        if token.is_zero() {
            return Ok(Amount(self.rpc.request("eth_getBalance", json!([account, "latest"])).await?));
        }
        self.read(token, &IERC20::balanceOfCall { account }, At::Latest).await.map(Amount)
    }

    /// The Permit2 that the contract uses.
    ///
    /// # Errors
    /// [`ChainError`]
    pub async fn permit2(&self) -> Result<Address, ChainError> {
        self.read(self.escrow(), &contract::PERMIT2Call {}, At::Latest).await
    }

    /// The EIP-712 domain separator of the domain that the contract says it has.
    ///
    /// # Errors
    /// [`ChainError`]
    pub async fn contract_separator(&self) -> Result<B256, ChainError> {
        let said = self.read(self.escrow(), &contract::eip712DomainCall {}, At::Latest).await?;
        let domain = Eip712Domain::new(
            Some(said.name.into()),
            Some(said.version.into()),
            Some(said.chainId),
            Some(said.verifyingContract),
            None,
        );
        Ok(domain.separator())
    }

    /// The contract's events of blocks `from..=to`, in their order. With an id, those of that task alone.
    ///
    /// # Errors
    /// [`ChainError`]; nodes refuse ranges that are too wide for them.
    pub async fn logs(&self, from: u64, to: u64, task: Option<TaskId>) -> Result<Vec<Log>, ChainError> {
        let topics = task.map_or_else(|| json!([]), |id| json!([null, id.0]));
        self.filtered(from, to, topics).await
    }

    async fn filtered(&self, from: u64, to: u64, topics: Value) -> Result<Vec<Log>, ChainError> {
        let filter = json!({
            "address": self.escrow(), "fromBlock": format!("{from:#x}"), "toBlock": format!("{to:#x}"), "topics": topics,
        });
        let raw: Vec<RawLog> = self.rpc.request("eth_getLogs", json!([filter])).await?;
        let own = |log: RawLog| match log.address == self.escrow() {
            true => Log::try_from(log),
            false => Err(malformed("eth_getLogs", "an event of another contract")),
        };
        raw.into_iter().filter(|log| !log.removed).map(own).collect()
    }

    /// The contract's events of blocks `from..=to` that are about an account, in their order.
    ///
    /// # Errors
    /// [`ChainError`]
    pub async fn account_logs(&self, from: u64, to: u64, account: Address) -> Result<Vec<Log>, ChainError> {
        let topic = account.into_word();
        let mut logs = Vec::new();
        let mut first = from;
        while first <= to {
            let last = to.min(first.saturating_add(LOG_RANGE - 1));
            // Events of tasks name the account second, those of accounts first.
            for topics in [json!([null, topic]), json!([null, null, topic])] {
                logs.extend(self.filtered(first, last, topics).await?);
            }
            first = last + 1;
        }
        logs.sort_by_key(|log| (log.block, log.index));
        logs.dedup_by_key(|log| (log.block, log.index));
        Ok(logs)
    }

    /// The events of one transaction of the contract, and its block; `None` where it is in no block.
    ///
    /// # Errors
    /// [`ChainError`]
    pub async fn transaction_logs(&self, tx: B256) -> Result<Option<Vec<Log>>, ChainError> {
        let receipt: Option<ReceiptLogs> = self.rpc.request("eth_getTransactionReceipt", json!([tx])).await?;
        let Some(receipt) = receipt else { return Ok(None) };
        receipt
            .logs
            .into_iter()
            .filter(|log| log.address == self.escrow())
            .map(Log::try_from)
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// What a call would do, without sending it.
    ///
    /// # Errors
    /// [`ChainError::Reverted`] where it would be refused.
    pub async fn simulate(&self, call: &Call, from: Address, at: At) -> Result<Bytes, ChainError> {
        simulate(&self.rpc, call, Some(from), at).await
    }

    async fn code(&self, address: Address) -> Result<Bytes, ChainError> {
        Ok(self.rpc.request("eth_getCode", json!([address, "latest"])).await?)
    }

    pub(crate) async fn read<C: SolCall>(
        &self,
        to: Address,
        call: &C,
        at: At,
    ) -> Result<C::Return, ChainError> {
        let call = Call { to: Some(to), value: U256::ZERO, data: call.abi_encode().into() };
        let answer = simulate(&self.rpc, &call, None, at).await?;
        C::abi_decode_returns(&answer).map_err(|error| malformed(C::SIGNATURE, &error.to_string()))
    }
}

pub(crate) async fn simulate(
    rpc: &Rpc,
    call: &Call,
    from: Option<Address>,
    at: At,
) -> Result<Bytes, ChainError> {
    rpc.request("eth_call", json!([request(call, from), at.tag()])).await.map_err(or_revert)
}

/// A call as JSON-RPC takes it.
pub(crate) fn request(call: &Call, from: Option<Address>) -> Value {
    let mut request = json!({ "value": call.value, "data": call.data });
    if let Some(to) = call.to {
        request["to"] = json!(to);
    }
    if let Some(from) = from {
        request["from"] = json!(from);
    }
    request
}

/// A refusal that carries what a contract reverted with is the contract's word.
pub(crate) fn or_revert(error: RpcError) -> ChainError {
    match error {
        RpcError::Refused { data: Some(data), .. } => ChainError::Reverted(RevertReason::decode(&data)),
        RpcError::Refused { code: 3, message, .. } => {
            ChainError::Reverted(RevertReason { name: "unknown".to_owned(), details: message, hint: None })
        }
        other @ (RpcError::Setup(_)
        | RpcError::Unreachable(_)
        | RpcError::Refused { .. }
        | RpcError::Malformed { .. }) => ChainError::Rpc(other),
    }
}

pub(crate) async fn block(rpc: &Rpc, at: At) -> Result<Option<Block>, ChainError> {
    let raw: Option<RawBlock> = rpc.request("eth_getBlockByNumber", json!([at.tag(), false])).await?;
    let Some(raw) = raw else { return Ok(None) };
    let what = "eth_getBlockByNumber";
    let base_fee = u128::try_from(raw.base_fee_per_gas.unwrap_or_default());
    Ok(Some(Block {
        number: number(what, raw.number)?,
        hash: raw.hash,
        parent: raw.parent_hash,
        time: Timestamp::from_unix(number(what, raw.timestamp)?),
        base_fee: base_fee.map_err(|_| malformed(what, "a base fee beyond all money"))?,
    }))
}

/// A place or a time as an endpoint tells it.
fn number(what: &'static str, told: U256) -> Result<u64, ChainError> {
    let number = u64::try_from(told).ok().filter(|number| *number <= MAX_NUMBER);
    number.ok_or_else(|| malformed(what, "a number beyond 63 bits"))
}

fn malformed(what: &'static str, why: &str) -> ChainError {
    ChainError::Malformed { what, why: why.to_owned() }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawBlock {
    number: U256,
    hash: B256,
    parent_hash: B256,
    timestamp: U256,
    base_fee_per_gas: Option<U256>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawLog {
    address: Address,
    topics: Vec<B256>,
    data: Bytes,
    block_number: U256,
    block_hash: B256,
    transaction_hash: B256,
    log_index: U256,
    #[serde(default)]
    removed: bool,
}

#[derive(Deserialize)]
struct ReceiptLogs {
    logs: Vec<RawLog>,
}

impl TryFrom<RawLog> for Log {
    type Error = ChainError;

    fn try_from(raw: RawLog) -> Result<Self, ChainError> {
        let event = ZORAIComputeEscrowEvents::decode_raw_log(&raw.topics, &raw.data)
            .map_err(|error| malformed("an event", &error.to_string()))?;
        Ok(Self {
            block: number("an event's block", raw.block_number)?,
            block_hash: raw.block_hash,
            tx: raw.transaction_hash,
            index: number("an event's place", raw.log_index)?,
            event,
        })
    }
}
