//! One look at the chain: what was signed is followed, what is planned is signed and sent.

use alloy_consensus::{SignableTransaction as _, TxEip1559};
use alloy_primitives::{Address, B256, Bytes, TxKind, U256};
use serde::Deserialize;
use serde_json::{Value, json};
use wallet::Wallet;

use super::entry::{Entry, FailureReason, Mined, Pending, Signed, State, Trouble};
use super::fees::{AboveCap, Fees};
use super::outbox::{OutboxConfig, OutboxError, now};
use super::store::Store;
use crate::call::Call;
use crate::chain::{self, At, Block, ChainError};
use crate::revert::RevertReason;
use crate::rpc::{Rpc, RpcError};

/// What is added to a node's estimate of gas, in percent: the state may have moved on when the transaction is mined.
const GAS_MARGIN_PERCENT: u64 = 25;

/// Signs, sends and follows the transactions of one account. One step at a time: the outbox sees to it.
#[derive(Debug)]
pub(super) struct Sender {
    rpc: Rpc,
    wallet: Wallet,
    chain_id: u64,
    store: Store,
    config: OutboxConfig,
}

/// The chain as one step sees it.
struct View {
    head: Block,
    /// The account's nonce in the newest block.
    nonce: u64,
    /// The account's nonce in the newest block that is final.
    final_nonce: u64,
    /// What a node says is usual for the block's maker.
    tip: Option<u64>,
}

impl Sender {
    pub(super) fn new(rpc: Rpc, wallet: Wallet, chain_id: u64, store: Store, config: OutboxConfig) -> Self {
        Self { rpc, wallet, chain_id, store, config }
    }

    pub(super) fn account(&self) -> Address {
        self.wallet.address()
    }

    pub(super) fn rpc(&self) -> &Rpc {
        &self.rpc
    }

    pub(super) async fn step(&self) -> Result<(), OutboxError> {
        let mut entries = self.store.unfinished().await?;
        if entries.is_empty() {
            return Ok(());
        }
        let view = self.view().await?;
        for entry in &mut entries {
            if entry.pending().is_some() {
                self.follow(entry, &view).await?;
            }
        }
        if let Some(gap) = self.gap(&entries, &view).await? {
            entries.push(gap);
        }
        for index in 0..entries.len() {
            if matches!(entries[index].state, State::Planned { .. }) {
                let mut entry = entries[index].clone();
                self.begin(&mut entry, &entries, &view).await?;
                entries[index] = entry;
            }
        }
        Ok(())
    }

    async fn view(&self) -> Result<View, OutboxError> {
        let head = chain::block(&self.rpc, At::Latest).await?.ok_or_else(|| ChainError::Malformed {
            what: "the newest block",
            why: "there is none".to_owned(),
        })?;
        let nonce = self.nonce("latest").await?;
        let last_final = (head.number + 1).saturating_sub(self.config.confirmations.max(1));
        let final_nonce = self.nonce(&format!("{last_final:#x}")).await?;
        let tip = match self.rpc.request::<U256>("eth_maxPriorityFeePerGas", json!([])).await {
            Ok(tip) => Some(tip.saturating_to()),
            // Not every node has the method.
            Err(error) if error.is_answer() => None,
            Err(error) => return Err(error.into()),
        };
        Ok(View { head, nonce, final_nonce, tip })
    }

    async fn nonce(&self, tag: &str) -> Result<u64, OutboxError> {
        let nonce: U256 = self.rpc.request("eth_getTransactionCount", json!([self.account(), tag])).await?;
        Ok(nonce.saturating_to())
    }

    /// Sees what became of what was done: where its nonce is free, as if it had only been sent.
    pub(super) async fn recheck(&self, entry: &mut Entry) -> Result<(), OutboxError> {
        let Some(pending) = entry.done_by.clone() else { return Ok(()) };
        let view = self.view().await?;
        if view.nonce > pending.nonce {
            // No receipt tells nothing: nodes forget those of old blocks.
            return match self.receipt(&pending).await? {
                Some(receipt) => self.mined(entry, pending, &receipt, &view).await,
                None => Ok(()),
            };
        }
        entry.done_by = None;
        entry.state = State::Sent(pending);
        self.save(entry).await?;
        self.follow(entry, &view).await
    }

    /// The receipt of what was signed, of which at most one can be mined.
    async fn receipt(&self, pending: &Pending) -> Result<Option<Receipt>, OutboxError> {
        for signed in &pending.signed {
            let receipt: Option<Receipt> =
                self.rpc.request("eth_getTransactionReceipt", json!([signed.hash])).await?;
            if receipt.is_some() {
                return Ok(receipt);
            }
        }
        Ok(None)
    }

    /// Sees what became of what was signed.
    async fn follow(&self, entry: &mut Entry, view: &View) -> Result<(), OutboxError> {
        let Some(mut pending) = entry.pending().cloned() else { return Ok(()) };
        if let Some(receipt) = self.receipt(&pending).await? {
            return self.mined(entry, pending, &receipt, view).await;
        }
        if view.nonce > pending.nonce {
            return self.lost(entry, pending, view).await;
        }
        // Also where it was mined, and a reorganisation dropped the block.
        pending.lost_since = None;
        let acknowledged = matches!(entry.state, State::Sent(_) | State::Mined { .. });
        let last = pending.signed.last().cloned();
        entry.state =
            if acknowledged { State::Sent(pending.clone()) } else { State::Signed(pending.clone()) };
        let Some(last) = last else { return self.save(entry).await };
        if now().saturating_sub(last.signed_at) >= self.config.stuck_after.as_secs()
            && view.nonce == pending.nonce
        {
            return self.replace(entry, pending, &last, view).await;
        }
        if acknowledged {
            let known: Option<Value> =
                self.rpc.request("eth_getTransactionByHash", json!([last.hash])).await?;
            if known.is_some() {
                return self.save(entry).await;
            }
        }
        self.broadcast(entry).await
    }

    async fn mined(
        &self,
        entry: &mut Entry,
        pending: Pending,
        receipt: &Receipt,
        view: &View,
    ) -> Result<(), OutboxError> {
        let mined = Mined {
            tx: receipt.transaction_hash,
            block: receipt.block_number.saturating_to(),
            gas_used: receipt.gas_used.saturating_to(),
            gas_price: receipt.effective_gas_price.saturating_to(),
            contract: receipt.contract_address,
        };
        entry.trouble = None;
        entry.done_by = None;
        let confirmations = (view.head.number + 1).saturating_sub(mined.block);
        entry.state = if confirmations < self.config.confirmations {
            State::Mined { pending: Pending { lost_since: None, ..pending }, mined }
        } else if receipt.status.is_zero() {
            let reason = self.why_reverted(&entry.call, mined.block).await?;
            State::Failed(FailureReason::Reverted {
                tx: mined.tx,
                name: reason.name.clone(),
                text: reason.to_string(),
            })
        } else {
            entry.done_by = Some(Pending { lost_since: None, ..pending });
            State::Done(mined)
        };
        self.save(entry).await
    }

    /// Asks again what the contract says, in the state in which it said it, as far as the node still has that.
    async fn why_reverted(&self, call: &Call, block: u64) -> Result<RevertReason, OutboxError> {
        match chain::simulate(&self.rpc, call, Some(self.account()), At::Block(block)).await {
            Err(ChainError::Reverted(reason)) => Ok(reason),
            Err(ChainError::Rpc(error)) if !error.is_answer() => Err(error.into()),
            Ok(_) | Err(_) => Ok(RevertReason {
                name: "unknown".to_owned(),
                details: "the reason cannot be had any more".to_owned(),
                hint: None,
            }),
        }
    }

    /// The nonce is used, and nothing tells that it was by what was signed. Once that is final and stays so for a while, another
    /// transaction has it: what was signed can never be mined, and the purpose gets a new nonce.
    async fn lost(&self, entry: &mut Entry, mut pending: Pending, view: &View) -> Result<(), OutboxError> {
        let nonce = pending.nonce;
        if view.final_nonce <= nonce {
            return Ok(());
        }
        // Receipts may come late: from an endpoint that is behind the one that was asked for the nonce, or whose index is.
        let Some(since) = pending.lost_since else {
            pending.lost_since = Some(now());
            entry.state = State::Sent(pending);
            return self.save(entry).await;
        };
        if now().saturating_sub(since) < self.config.stuck_after.as_secs() {
            return Ok(());
        }
        tracing::warn!(purpose = entry.purpose, nonce, "another transaction took the nonce");
        entry.state = State::Planned { nonce: None };
        entry.trouble = Some(Trouble::NonceTaken { nonce });
        self.save(entry).await
    }

    /// Signs again with higher fees.
    async fn replace(
        &self,
        entry: &mut Entry,
        mut pending: Pending,
        last: &Signed,
        view: &View,
    ) -> Result<(), OutboxError> {
        let cap = self.config.max_fee_per_gas;
        let fees = Fees::choose(view.head.base_fee_u64(), view.tip, cap)
            .and_then(|usual| Fees::bump(last, usual, cap));
        match fees {
            Ok(fees) => {
                let signed = self.sign(&entry.call, pending.nonce, pending.gas_limit, fees)?;
                tracing::info!(
                    purpose = entry.purpose,
                    nonce = pending.nonce,
                    max_fee = fees.max,
                    "a stuck transaction is replaced"
                );
                pending.signed.push(signed);
                entry.state = State::Signed(pending);
                entry.trouble = None;
            }
            Err(AboveCap(needed)) => entry.trouble = Some(Trouble::FeesAboveCap { needed, cap }),
        }
        self.save(entry).await?;
        self.broadcast(entry).await
    }

    /// Sends what was signed last. Sending the same twice does nothing.
    async fn broadcast(&self, entry: &mut Entry) -> Result<(), OutboxError> {
        let Some(pending) = entry.pending().cloned() else { return Ok(()) };
        let Some(last) = pending.signed.last() else { return Ok(()) };
        match self.rpc.request::<B256>("eth_sendRawTransaction", json!([last.raw])).await {
            Ok(_) => {
                entry.trouble = None;
                entry.state = State::Sent(pending);
            }
            Err(RpcError::Refused { message, .. }) => match refusal(&message) {
                Refusal::Known => entry.state = State::Sent(pending),
                // The next step finds out whose nonce it was.
                Refusal::NonceUsed => {}
                Refusal::InsufficientFunds => {
                    let balance = self.balance().await?;
                    entry.trouble =
                        Some(Trouble::InsufficientFunds { needed: cost(&entry.call, &pending), balance });
                }
                Refusal::Other => entry.trouble = Some(Trouble::Node { text: message }),
            },
            Err(error) => {
                self.save(entry).await?;
                return Err(error.into());
            }
        }
        self.save(entry).await
    }

    /// Gives a planned transaction gas, fees and a nonce; keeps it signed; sends it.
    async fn begin(&self, entry: &mut Entry, all: &[Entry], view: &View) -> Result<(), OutboxError> {
        let earlier = all.iter().filter_map(|other| Some((other, other.pending()?)));
        let in_flight: Vec<(&Entry, &Pending)> = earlier.collect();
        entry.trouble = match self.prepare(entry, &in_flight, view).await? {
            Ok((nonce, gas_limit, fees)) => {
                let signed = self.sign(&entry.call, nonce, gas_limit, fees)?;
                entry.state =
                    State::Signed(Pending { nonce, gas_limit, signed: vec![signed], lost_since: None });
                entry.trouble = None;
                self.save(entry).await?;
                return self.broadcast(entry).await;
            }
            Err(Halt::Refused(reason)) => {
                let text = reason.to_string();
                entry.state = State::Failed(FailureReason::Refused { name: reason.name, text });
                None
            }
            Err(Halt::Trouble(trouble)) => Some(trouble),
        };
        self.save(entry).await
    }

    async fn prepare(
        &self,
        entry: &Entry,
        in_flight: &[(&Entry, &Pending)],
        view: &View,
    ) -> Result<Result<(u64, u64, Fees), Halt>, OutboxError> {
        let cap = self.config.max_fee_per_gas;
        let fees = match Fees::choose(view.head.base_fee_u64(), view.tip, cap) {
            Ok(fees) => fees,
            Err(AboveCap(needed)) => return Ok(Err(Halt::Trouble(Trouble::FeesAboveCap { needed, cap }))),
        };
        let taken: U256 = in_flight.iter().map(|(other, pending)| cost(&other.call, pending)).sum();
        let balance = self.balance().await?;
        let short = |gas_limit: u64| {
            let needed = entry.call.value + U256::from(gas_limit) * U256::from(fees.max);
            (needed + taken > balance)
                .then_some(Halt::Trouble(Trouble::InsufficientFunds { needed, balance }))
        };
        // Nodes refuse to estimate what the account cannot pay; 21,000 is the least that any transaction uses.
        if let Some(halt) = short(21_000) {
            return Ok(Err(halt));
        }
        let gas_limit = match self.estimate(&entry.call).await? {
            Ok(gas) => gas,
            Err(reason) if in_flight.is_empty() => return Ok(Err(Halt::Refused(reason))),
            Err(reason) => {
                return Ok(Err(Halt::Trouble(Trouble::WaitsForEarlier { text: reason.to_string() })));
            }
        };
        if gas_limit > self.config.max_gas {
            return Ok(Err(Halt::Trouble(Trouble::GasAboveCap {
                needed: gas_limit,
                cap: self.config.max_gas,
            })));
        }
        if let Some(halt) = short(gas_limit) {
            return Ok(Err(halt));
        }
        let nonce = match entry.state {
            State::Planned { nonce: Some(nonce) } => nonce,
            State::Planned { nonce: None }
            | State::Signed(_)
            | State::Sent(_)
            | State::Mined { .. }
            | State::Done(_)
            | State::Failed(_) => {
                let after_ours = in_flight.iter().map(|(_, pending)| pending.nonce + 1).max().unwrap_or(0);
                self.nonce("pending").await?.max(view.nonce).max(after_ours)
            }
        };
        Ok(Ok((nonce, gas_limit, fees)))
    }

    async fn estimate(&self, call: &Call) -> Result<Result<u64, RevertReason>, OutboxError> {
        let request = chain::request(call, Some(self.account()));
        match self
            .rpc
            .request::<U256>("eth_estimateGas", json!([request, "latest"]))
            .await
            .map_err(chain::or_revert)
        {
            Ok(gas) => {
                let gas: u64 = gas.saturating_to();
                Ok(Ok(gas.saturating_add(gas / 100 * GAS_MARGIN_PERCENT)))
            }
            Err(ChainError::Reverted(reason)) => Ok(Err(reason)),
            Err(other) => Err(other.into()),
        }
    }

    async fn balance(&self) -> Result<U256, OutboxError> {
        Ok(self.rpc.request("eth_getBalance", json!([self.account(), "latest"])).await?)
    }

    fn sign(&self, call: &Call, nonce: u64, gas_limit: u64, fees: Fees) -> Result<Signed, OutboxError> {
        let transaction = TxEip1559 {
            chain_id: self.chain_id,
            nonce,
            gas_limit,
            max_fee_per_gas: u128::from(fees.max),
            max_priority_fee_per_gas: u128::from(fees.tip),
            to: call.to.map_or(TxKind::Create, TxKind::Call),
            value: call.value,
            access_list: Default::default(),
            input: call.data.clone(),
        };
        let signature = self.wallet.sign_transaction_hash(transaction.signature_hash())?;
        let parity = signature.as_bytes()[64] == 28;
        let signature =
            alloy_primitives::Signature::from_bytes_and_parity(&signature.as_bytes()[..64], parity);
        let signed = transaction.into_signed(signature);
        let mut raw = Vec::new();
        signed.eip2718_encode(&mut raw);
        Ok(Signed {
            hash: *signed.hash(),
            raw: Bytes::from(raw),
            max_fee_per_gas: fees.max,
            max_priority_fee_per_gas: fees.tip,
            signed_at: now(),
        })
    }

    /// Where a nonce before all of ours is missing (another program's transaction was dropped), nothing of ours can be mined. After a
    /// while the gap is filled by a transaction that does nothing.
    async fn gap(&self, entries: &[Entry], view: &View) -> Result<Option<Entry>, OutboxError> {
        let Some(first) = entries.iter().filter_map(Entry::pending).min_by_key(|pending| pending.nonce)
        else {
            return Ok(None);
        };
        let waited = first.signed.last().map_or(0, |signed| now().saturating_sub(signed.signed_at));
        let planned = entries.iter().any(|entry| matches!(entry.state, State::Planned { nonce: Some(_) }));
        if first.nonce <= view.nonce || planned || waited < self.config.stuck_after.as_secs() {
            return Ok(None);
        }
        let nonce = self.nonce("pending").await?;
        if nonce >= first.nonce {
            return Ok(None);
        }
        let entry = Entry {
            purpose: format!("gap:{nonce}"),
            call: Call { to: Some(self.account()), value: U256::ZERO, data: Bytes::new() },
            created_at: now(),
            state: State::Planned { nonce: Some(nonce) },
            trouble: None,
            done_by: None,
        };
        let kept = self.store.insert(entry).await?;
        Ok(matches!(kept.state, State::Planned { .. }).then_some(kept))
    }

    async fn save(&self, entry: &Entry) -> Result<(), OutboxError> {
        if self.store.get(&entry.purpose).await?.as_ref() != Some(entry) {
            self.store.update(entry).await?;
        }
        Ok(())
    }
}

/// Why a transaction is not signed now.
enum Halt {
    /// It would be reverted.
    Refused(RevertReason),
    /// Something that may pass.
    Trouble(Trouble),
}

/// What a node means when it does not take a transaction. The words are those of geth, reth, nethermind, erigon, besu and anvil.
enum Refusal {
    Known,
    NonceUsed,
    InsufficientFunds,
    Other,
}

fn refusal(message: &str) -> Refusal {
    let message = message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&["already known", "already imported", "known transaction", "alreadyknown"]) {
        Refusal::Known
    } else if says(&["nonce too low", "oldnonce", "nonce is too low"]) {
        Refusal::NonceUsed
    } else if says(&["insufficient funds", "insufficientfunds", "upfront cost exceeds"]) {
        Refusal::InsufficientFunds
    } else {
        Refusal::Other
    }
}

/// What a transaction costs at most.
fn cost(call: &Call, pending: &Pending) -> U256 {
    let fee = pending.signed.last().map_or(0, |signed| signed.max_fee_per_gas);
    call.value + U256::from(pending.gas_limit) * U256::from(fee)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Receipt {
    transaction_hash: B256,
    block_number: U256,
    gas_used: U256,
    effective_gas_price: U256,
    status: U256,
    contract_address: Option<Address>,
}
