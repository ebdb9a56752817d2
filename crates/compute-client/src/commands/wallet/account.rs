//! `wallet balance|stake|unstake|withdraw|history`: an account's money in the escrow contract and outside it.

use escrow::Log;
use escrow::abi::ZORAIComputeEscrowEvents as Event;
use serde_json::{Value, json};
use taskmarket::{Address, Amount, B256, U256};
use wallet::Wallet;

use crate::cli::{Global, parse_address};
use crate::failure::Outcome;
use crate::follow::now;
use crate::key::{self, IfMissing};
use crate::money::{ChainArgs, Coins, Purse, chain_failure};
use crate::ui::Ui;

/// How far back a history goes unless told otherwise, in blocks: a week of twelve-second blocks.
const HISTORY_BLOCKS: u64 = 50_400;

/// Which account's money in which token.
#[derive(Debug, clap::Args)]
pub(crate) struct Account {
    /// The token [default: the chain's coin]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    token: Option<Address>,
    #[command(flatten)]
    chain: ChainArgs,
}

/// How much stake.
#[derive(Debug, clap::Args)]
pub(crate) struct Stake {
    /// How much, in the token's smallest unit
    amount: Amount,
    #[command(flatten)]
    account: Account,
}

/// Where money goes.
#[derive(Debug, clap::Args)]
pub(crate) struct Withdraw {
    /// Who receives it [default: the account itself]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    to: Option<Address>,
    #[command(flatten)]
    account: Account,
}

/// How far back.
#[derive(Debug, clap::Args)]
pub(crate) struct History {
    /// The first block [default: some 50,000 before the newest]
    #[arg(long, value_name = "N")]
    from_block: Option<u64>,
    #[command(flatten)]
    chain: ChainArgs,
}

/// Which way stake goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Into the contract.
    In,
    /// Announced to leave.
    Out,
}

/// Shows what an account has.
pub(crate) async fn balance(global: &Global, args: &Account, ui: &Ui) -> Outcome {
    let wallet = key::load(global, ui, IfMissing::Refuse).await?;
    let chain = args.chain.connect(global, None).await?;
    let (token, account) = (args.token.unwrap_or(Address::ZERO), wallet.address());
    let coins = Coins::of(&chain, token).await?;
    let has = chain.balance(token, account).await.map_err(chain_failure)?;
    let stake = chain.stake(token, account).await.map_err(chain_failure)?;
    let withdrawable = chain.withdrawable(token, account).await.map_err(chain_failure)?;
    if ui.json {
        return ui.print_json(&json!({
            "account": account, "token": token, "balance": has, "withdrawable": withdrawable,
            "stake": { "free": stake.free, "leaving": stake.leaving, "leaves_at": stake.leaves_at },
        }));
    }
    let leaving = if stake.leaving == Amount::ZERO {
        String::new()
    } else {
        format!(", of which {} leave at {}", coins.show(stake.leaving), stake.leaves_at)
    };
    for (name, value) in [
        ("account", account.to_string()),
        ("has", coins.show(has)),
        ("stake", format!("{} free{leaving}", coins.show(stake.free))),
        ("withdraw", coins.show(withdrawable)),
    ] {
        ui.print(format_args!("{name:<9} {value}"))?;
    }
    Ok(())
}

/// Adds stake, or announces that some is to leave.
pub(crate) async fn stake(global: &Global, args: &Stake, way: Way, ui: &Ui) -> Outcome {
    let (purse, token) = purse(global, &args.account, ui).await?;
    let calls = purse.chain.calls();
    // Each is one of its own: a salt tells it from those before.
    let salt = now().unix();
    let mined = match way {
        Way::In => {
            if !token.is_zero() {
                let allow = calls.allow(token, args.amount);
                purse.send(&format!("allow:stake:{token}:{salt}"), allow, ui).await?;
            }
            purse.send(&format!("stake:{token}:{salt}"), calls.stake(token, args.amount), ui).await?
        }
        Way::Out => {
            purse.send(&format!("unstake:{token}:{salt}"), calls.unstake(token, args.amount), ui).await?
        }
    };
    print_tx(mined.tx, ui)
}

/// Withdraws.
pub(crate) async fn withdraw(global: &Global, args: &Withdraw, ui: &Ui) -> Outcome {
    let (purse, token) = purse(global, &args.account, ui).await?;
    let to = args.to.unwrap_or(purse.account());
    let call = purse.chain.calls().withdraw(token, to);
    let mined = purse.send(&format!("withdraw:{token}:{}", now().unix()), call, ui).await?;
    let logs = purse.chain.transaction_logs(mined.tx).await.map_err(chain_failure)?.unwrap_or_default();
    let coins = Coins::of(&purse.chain, token).await?;
    for log in logs {
        if let Event::Withdrawn(event) = &log.event {
            ui.say(format_args!("sent {} to {}", coins.show(Amount(event.amount)), event.to));
        }
    }
    print_tx(mined.tx, ui)
}

/// Lists events, the oldest first.
pub(crate) async fn history(global: &Global, args: &History, ui: &Ui) -> Outcome {
    let wallet = key::load(global, ui, IfMissing::Refuse).await?;
    let chain = args.chain.connect(global, None).await?;
    let head = chain.head().await.map_err(chain_failure)?.number;
    let from = args.from_block.unwrap_or_else(|| head.saturating_sub(HISTORY_BLOCKS));
    let logs = chain.account_logs(from, head, wallet.address()).await.map_err(chain_failure)?;
    if ui.json {
        let events: Vec<Value> = logs.iter().map(as_json).collect();
        return ui.print_json(
            &json!({ "account": wallet.address(), "from_block": from, "to_block": head, "events": events }),
        );
    }
    for log in &logs {
        let Line { word, task, amount } = line(&log.event);
        let task = task.map(|task| format!(" task {task}")).unwrap_or_default();
        let amount = amount.map(|amount| format!(" {amount}")).unwrap_or_default();
        ui.print(format_args!("{:>10} {word}{amount}{task} in {}", log.block, log.tx))?;
    }
    if logs.is_empty() {
        ui.say(format_args!("nothing since block {from}; --from-block looks further back"));
    }
    Ok(())
}

async fn purse(global: &Global, args: &Account, ui: &Ui) -> Outcome<(Purse, Address)> {
    let wallet: Wallet = key::load(global, ui, IfMissing::Refuse).await?;
    let purse = args.chain.purse(global, None, &wallet).await?;
    Ok((purse, args.token.unwrap_or(Address::ZERO)))
}

fn print_tx(tx: B256, ui: &Ui) -> Outcome {
    if ui.json { ui.print_json(&json!({ "tx": tx })) } else { ui.print(tx) }
}

/// An event as a history shows it.
struct Line {
    word: &'static str,
    task: Option<B256>,
    amount: Option<U256>,
}

fn line(event: &Event) -> Line {
    let (word, task, amount) = match event {
        Event::TaskFunded(event) => ("funded", Some(event.taskId), Some(event.budget)),
        Event::TaskAccepted(event) => ("accepted", Some(event.taskId), None),
        Event::TaskFailed(event) => ("failed", Some(event.taskId), None),
        Event::LeaseLapsed(event) => ("lapsed", Some(event.taskId), Some(event.stake)),
        Event::TaskProven(event) => ("proven", Some(event.taskId), None),
        Event::TaskPaid(event) => ("paid", Some(event.taskId), Some(event.amount)),
        Event::TaskDisputed(event) => ("disputed", Some(event.taskId), None),
        Event::TaskResolved(event) => ("resolved", Some(event.taskId), Some(event.toProvider)),
        Event::TaskTimedOut(event) => ("timed out", Some(event.taskId), Some(event.toProvider)),
        Event::TaskRefunded(event) => ("refunded", Some(event.taskId), Some(event.amount)),
        Event::TaskCancelled(event) => ("cancelled", Some(event.taskId), Some(event.amount)),
        Event::Staked(event) => ("staked", None, Some(event.amount)),
        Event::UnstakeAnnounced(event) => ("stake to leave", None, Some(event.amount)),
        Event::Withdrawn(event) => ("withdrawn", None, Some(event.amount)),
        Event::EIP712DomainChanged(_) => ("domain changed", None, None),
    };
    Line { word, task, amount }
}

fn as_json(log: &Log) -> Value {
    let Line { word, task, amount } = line(&log.event);
    json!({ "block": log.block, "tx": log.tx, "event": word, "task_id": task, "amount": amount.map(Amount) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_words_and_amounts() {
        let staked = escrow::abi::ZORAIComputeEscrow::Staked {
            provider: Address::ZERO,
            token: Address::ZERO,
            amount: U256::from(7),
        };
        let shown = line(&Event::Staked(staked));
        assert_eq!((shown.word, shown.task, shown.amount), ("staked", None, Some(U256::from(7))));
    }
}
