//! `wallet balance|stake|unstake|withdraw|history`: an account's money in the escrow contract and outside it.

use escrow::abi::ZORAIComputeEscrowEvents as Event;
use escrow::{Call, Chain, Log};
use serde::Serialize;
use serde_json::{Value, json};
use taskmarket::{Address, Amount, B256, Timestamp, U256};
use wallet::Wallet;

use crate::cli::{Global, parse_address};
use crate::failure::{Failure, Outcome};
use crate::key::{self, IfMissing};
use crate::money::{self, ChainArgs, Coins, Purse, Untold, chain_failure, told, untold};
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

/// What an account has, in which tokens.
#[derive(Debug, clap::Args)]
pub(crate) struct Balance {
    /// A token to show besides the chain's coin and the tokens of the tasks that were paid from this machine; repeat it for several
    #[arg(long = "token", value_name = "ADDRESS", value_delimiter = ',', value_parser = parse_address)]
    tokens: Vec<Address>,
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

/// What an account has in one token.
#[derive(Debug, Clone, Serialize)]
struct Holding {
    token: Address,
    balance: Amount,
    withdrawable: Amount,
    stake: StakeShown,
}

#[derive(Debug, Clone, Serialize)]
struct StakeShown {
    free: Amount,
    leaving: Amount,
    leaves_at: Timestamp,
}

impl Holding {
    async fn of(chain: &Chain, token: Address, account: Address) -> Outcome<Self> {
        let read = async {
            let balance = chain.balance(token, account).await?;
            let escrow::Stake { free, leaving, leaves_at } = chain.stake(token, account).await?;
            let withdrawable = chain.withdrawable(token, account).await?;
            Ok(Self { token, balance, withdrawable, stake: StakeShown { free, leaving, leaves_at } })
        };
        read.await.map_err(chain_failure)
    }

    fn show(&self, coins: &Coins, ui: &Ui) -> Outcome {
        let StakeShown { free, leaving, leaves_at } = &self.stake;
        let leaving = if *leaving == Amount::ZERO {
            String::new()
        } else {
            format!(", of which {} leave at {leaves_at}", coins.show(*leaving))
        };
        for (name, value) in [
            ("has", coins.show(self.balance)),
            ("stake", format!("{} free{leaving}", coins.show(*free))),
            ("withdraw", coins.show(self.withdrawable)),
        ] {
            ui.print(format_args!("{name:<9} {value}"))?;
        }
        Ok(())
    }
}

/// Shows what an account has. In JSON, what is outside of `tokens` is about the first token named, or else the chain's coin.
pub(crate) async fn balance(global: &Global, args: &Balance, ui: &Ui) -> Outcome {
    let wallet = key::load(global, ui, IfMissing::Refuse).await?;
    let chain = args.chain.connect(global, None).await?;
    let account = wallet.address();
    let mut tokens = vec![Address::ZERO];
    for token in args.tokens.iter().copied().chain(money::tokens(chain.domain())) {
        if !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    let mut holdings = Vec::new();
    for token in tokens {
        holdings.push(Holding::of(&chain, token, account).await?);
    }
    if ui.json {
        let asked = args.tokens.first().copied().unwrap_or(Address::ZERO);
        let first = holdings.iter().find(|holding| holding.token == asked);
        let mut shown = serde_json::to_value(first).map_err(Failure::failed)?;
        shown["account"] = json!(account);
        shown["tokens"] = json!(holdings);
        return ui.print_json(&shown);
    }
    ui.print(format_args!("{:<9} {account}", "account"))?;
    for holding in &holdings {
        holding.show(&Coins::of(&chain, holding.token).await?, ui)?;
    }
    Ok(())
}

/// Lets Permit2 take a token.
pub(crate) async fn permit2(global: &Global, args: &Stake, ui: &Ui) -> Outcome {
    let (purse, token) = purse(global, &args.account, ui).await?;
    if token.is_zero() {
        return Err(
            Failure::usage("Permit2 moves tokens, not the chain's coin").hint("name one: --token 0xADDRESS")
        );
    }
    let permit2 = money::permit2(&purse.chain).await?;
    let outbox = purse.outbox().await?;
    let purpose = format!("permit2:{permit2}:{token}:{}", args.amount);
    let now = purse.chain.allowance(token, purse.account(), permit2).await.map_err(chain_failure)?;
    if now != args.amount && money::is_done(&outbox, &purpose).await? {
        // Another amount was set since, or some of it is used up: this one sets it again.
        told(&outbox, &purpose).await?;
    }
    let untold = untold(&outbox, &purpose, ui).await?;
    let mined = match &untold {
        Untold::Done(mined) => *mined,
        Untold::Nothing | Untold::OnItsWay => {
            money::send(&outbox, &purpose, Call::allow(token, permit2, args.amount), ui).await?
        }
    };
    told(&outbox, &purpose).await?;
    let coins = Coins::of(&purse.chain, token).await?;
    ui.say(format_args!("Permit2 at {permit2} may take {} by your signatures", coins.show(args.amount)));
    print_sent(mined.tx, &untold, ui)
}

/// Adds stake, or announces that some is to leave.
pub(crate) async fn stake(global: &Global, args: &Stake, way: Way, ui: &Ui) -> Outcome {
    let (purse, token) = purse(global, &args.account, ui).await?;
    let (calls, amount) = (purse.chain.calls(), args.amount);
    let outbox = purse.outbox().await?;
    let word = match way {
        Way::In => "stake",
        Way::Out => "unstake",
    };
    let purpose = format!("{word}:{}:{token}:{amount}", purse.chain.escrow());
    let untold = untold(&outbox, &purpose, ui).await?;
    let mined = match (&untold, way) {
        (Untold::Done(mined), _) => *mined,
        (Untold::Nothing | Untold::OnItsWay, Way::In) => {
            let call = calls.stake(token, amount);
            money::pay_in(&purse, &outbox, &purpose, (token, amount), call, ui).await?
        }
        (Untold::Nothing | Untold::OnItsWay, Way::Out) => {
            money::send(&outbox, &purpose, calls.unstake(token, amount), ui).await?
        }
    };
    told(&outbox, &purpose).await?;
    print_sent(mined.tx, &untold, ui)
}

/// Withdraws.
pub(crate) async fn withdraw(global: &Global, args: &Withdraw, ui: &Ui) -> Outcome {
    let (purse, token) = purse(global, &args.account, ui).await?;
    let to = args.to.unwrap_or(purse.account());
    let outbox = purse.outbox().await?;
    let purpose = format!("withdraw:{}:{token}:{to}", purse.chain.escrow());
    let untold = untold(&outbox, &purpose, ui).await?;
    let mined = match &untold {
        Untold::Done(mined) => *mined,
        Untold::Nothing | Untold::OnItsWay => {
            money::send(&outbox, &purpose, purse.chain.calls().withdraw(token, to), ui).await?
        }
    };
    told(&outbox, &purpose).await?;
    print_sent(mined.tx, &untold, ui)?;
    let logs = purse.chain.transaction_logs(mined.tx).await.map_err(chain_failure)?.unwrap_or_default();
    let coins = Coins::of(&purse.chain, token).await?;
    for log in logs {
        if let Event::Withdrawn(event) = &log.event {
            ui.say(format_args!("sent {} to {}", coins.show(Amount(event.amount)), event.to));
        }
    }
    Ok(())
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
    let rows: Vec<_> = logs.iter().map(row).collect();
    let mut list =
        crate::listing::Listing::new(["BLOCK", "WHAT HAPPENED", "AMOUNT", "TASK", "TRANSACTION"], ui);
    list.show(&rows)?;
    list.note("amounts in the smallest unit of the coin or token");
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

/// Prints a transaction, and in JSON whether an earlier command began it.
fn print_sent(tx: B256, untold: &Untold, ui: &Ui) -> Outcome {
    match untold {
        Untold::OnItsWay | Untold::Done(_) if ui.json => ui.print_json(&json!({ "tx": tx, "resumed": true })),
        Untold::Nothing | Untold::OnItsWay | Untold::Done(_) => print_tx(tx, ui),
    }
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

fn row(log: &Log) -> [String; 5] {
    let Line { word, task, amount } = line(&log.event);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        log.block.to_string(),
        word.to_owned(),
        or_dash(amount.map(|amount| amount.to_string())),
        or_dash(task.map(|task| task.to_string())),
        log.tx.to_string(),
    ]
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
