//! Paying a task's budget in: what it costs is said and asked first.

use std::io::IsTerminal as _;
use std::time::Duration;

use escrow::tx::Mined;
use taskmarket::{Amount, Task, TaskId, U256};

use crate::failure::{Failure, Outcome};
use crate::money::{Coins, Purse, chain_failure};
use crate::ui::{Style, Ui, span};

/// What `fund` uses by the contract's gas snapshots, token and allowance included, rounded up.
const FUND_GAS: u64 = 150_000;

/// Says what a task would cost and what is at stake, and asks, unless `yes`.
///
/// # Errors
/// Exit code 1 where the account has too little, or the answer is no.
pub(crate) async fn say_terms(purse: &Purse, task: &Task, yes: bool, ui: &Ui) -> Outcome {
    let chain = &purse.chain;
    let coins = Coins::of(chain, task.token).await?;
    let gas = Amount(U256::from(purse.gas_price().await?) * U256::from(FUND_GAS));
    let balance = chain.balance(task.token, purse.account()).await.map_err(chain_failure)?;
    let line = |name: &str, value: String| {
        ui.say(format_args!("  {} {value}", ui.paint(Style::Dim, format!("{name:<9}"))))
    };
    ui.say("this task is paid through the escrow contract:");
    line("contract", format!("{} on chain {}", chain.escrow(), chain.domain().chain_id));
    line(
        "budget",
        format!("{}, from {} (which has {})", coins.show(task.budget), purse.account(), coins.show(balance)),
    );
    line("gas", format!("about {}", Coins::native().show(gas)));
    line("provider", format!("locks {} while it works", coins.show(task.provider_stake)));
    if task.dispute_window == 0 {
        line("paid", "as soon as there is a proof: nobody can dispute it".to_owned());
    } else {
        let [dispute, arbiter] =
            [task.dispute_window, task.arbiter_window].map(|secs| span(Duration::from_secs(secs)));
        line(
            "dispute",
            format!("within {dispute} of the proof, with a bond of {}", coins.show(task.dispute_bond)),
        );
        line("arbiter", format!("{}, within {arbiter} of a dispute", task.arbiter));
    }
    line("back", format!("from {} on, where no proof came: zorai-compute refund", task.deadline));
    if balance < task.budget {
        return Err(Failure::failed(format_args!(
            "{} has {}, and the budget is {}",
            purse.account(),
            coins.show(balance),
            coins.show(task.budget)
        ))
        .hint(format_args!(
            "send {} more there",
            coins.show(task.budget.checked_sub(balance).unwrap_or_default())
        )));
    }
    if yes { Ok(()) } else { ask(ui) }
}

/// Pays the budget in, and lets the contract take it first where it is in a token.
pub(crate) async fn fund(purse: &Purse, task: &Task, id: TaskId, ui: &Ui) -> Outcome<Mined> {
    let calls = purse.chain.calls();
    allow(purse, task, task.budget, &format!("allow:fund:{id}"), ui).await?;
    let mined = purse.send(&format!("fund:{id}"), calls.fund(task), ui).await?;
    ui.say(format_args!("{} in transaction {}", ui.paint(Style::Good, "funded:"), mined.tx));
    Ok(mined)
}

/// Lets the contract take an amount of the task's token, where it may not yet.
pub(super) async fn allow(purse: &Purse, task: &Task, amount: Amount, purpose: &str, ui: &Ui) -> Outcome {
    if task.token.is_zero() {
        return Ok(());
    }
    let allowed = purse.chain.allowance(task.token, purse.account()).await.map_err(chain_failure)?;
    if allowed < amount {
        purse.send(purpose, purse.chain.calls().allow(task.token, amount), ui).await?;
    }
    Ok(())
}

fn ask(ui: &Ui) -> Outcome {
    if !std::io::stdin().is_terminal() {
        return Err(
            Failure::usage("paying asks on a terminal, and there is none").hint("--yes pays without asking")
        );
    }
    ui.say("pay? [y/N]");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(Failure::failed)?;
    if matches!(line.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::failed("nothing was paid or published"))
}
