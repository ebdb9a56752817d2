//! Paying a task's budget in: what it costs is said and asked first.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use escrow::Status;
use escrow::tx::Mined;
use taskmarket::{Task, TaskId};

use crate::failure::{Failure, Outcome};
use crate::money::effect::{Move, NOTHING, bring_about, holds};
use crate::money::tokens::allowed;
use crate::money::{Coins, Purse, chain_failure, is_under_way, outbox_failure, permit, send};
use crate::ui::{Style, Ui, span};

/// By whose transaction, and by what right of the contract's, a budget is paid in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Funding {
    /// The account's own; the contract is allowed to take exactly the budget, where that is in a token.
    Own,
    /// The account's own, with its signature at Permit2.
    Permit,
    /// Another account's, which finds this account's signature at Permit2 in this file.
    Handed(PathBuf),
}

/// Says what a task would cost and what is at stake.
///
/// # Errors
/// Exit code 1 where the account has too little.
pub(crate) async fn say_terms(purse: &Purse, task: &Task, funding: &Funding, ui: &Ui) -> Outcome {
    let chain = &purse.chain;
    let coins = Coins::of(chain, task.token).await?;
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
    if !task.token.is_zero() {
        line("taken", taken(purse, task, funding, &coins).await?);
    }
    line("gas", gas(purse, funding).await?);
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
    Ok(())
}

/// By what right a token is taken.
async fn taken(purse: &Purse, task: &Task, funding: &Funding, coins: &Coins) -> Outcome<String> {
    match funding {
        Funding::Own if allowed(purse, task.token).await? >= task.budget => {
            Ok("by the contract, which this account lets take as much already".to_owned())
        }
        Funding::Own => Ok(format!(
            "by the contract; a transaction before lets it take exactly {}",
            coins.show(task.budget)
        )),
        Funding::Permit | Funding::Handed(_) => {
            permit::check_allowed(purse, task).await?;
            Ok("by your signature at Permit2, which is for this task alone".to_owned())
        }
    }
}

async fn gas(purse: &Purse, funding: &Funding) -> Outcome<String> {
    if let Funding::Handed(file) = funding {
        return Ok(format!("paid by the account that sends {}", file.display()));
    }
    Ok(format!("about {}", Coins::native().show(purse.fund_gas().await?)))
}

/// Pays the budget in, and lets the contract take it first where it is in a token. Where another account sends it, waits for that.
pub(crate) async fn fund(purse: &Purse, task: &Task, id: TaskId, funding: &Funding, ui: &Ui) -> Outcome {
    let purpose = fund_purpose(id);
    let status = purse.chain.record(id).await.map_err(chain_failure)?.status;
    if matches!(status, Status::Refunded | Status::Cancelled) {
        return Err(Failure::failed(format_args!(
            "the task's money is {}: it cannot be paid any more",
            status.as_str()
        ))
        .hint("another --salt makes another task"));
    }
    let budget = (task.token, task.budget);
    let (call, takes) = match funding {
        Funding::Own => (purse.chain.calls().fund(task), budget),
        Funding::Permit => (permit::call(purse, task).await?, NOTHING),
        Funding::Handed(file) => return permit::hand_over(purse, task, id, file, ui).await,
    };
    // Held for both: another command of this account would use the allowance up.
    let outbox = purse.outbox().await?;
    let mined =
        bring_about(purse, &outbox, Move { id, purpose: &purpose, call, takes, there: is_paid }, ui).await?;
    say_funded(mined, ui);
    Ok(())
}

/// Waits until what is paid is final.
///
/// # Errors
/// A reorganisation takes it back, or it takes too long.
pub(crate) async fn until_paid_for_good(purse: &Purse, id: TaskId, ui: &Ui) -> Outcome {
    let (outbox, purpose) = (purse.outbox().await?, fund_purpose(id));
    // This account's own transaction is looked after meanwhile.
    if let Some(entry) = outbox.get(&purpose).await.map_err(outbox_failure)?.filter(|entry| !entry.is_final())
    {
        ui.say("it is paid; waiting until that is final");
        if let Err(failure) = send(&outbox, &purpose, entry.call, ui).await
            && is_under_way(&outbox, &purpose).await?
        {
            return Err(failure);
        }
    }
    if !holds(purse, id, is_paid, ui).await? {
        return Err(Failure::failed("a reorganisation took the payment back"));
    }
    say_funded(None, ui);
    Ok(())
}

/// What the outbox knows a task's payment by.
pub(crate) fn fund_purpose(id: TaskId) -> String {
    format!("fund:{id}")
}

/// Whether the contract has a task's budget, or paid it to somebody.
pub(crate) fn is_paid(status: Status) -> bool {
    match status {
        Status::Funded
        | Status::Accepted
        | Status::Proven
        | Status::Disputed
        | Status::Paid
        | Status::Split => true,
        Status::None | Status::Refunded | Status::Cancelled => false,
    }
}

/// Says that a budget is paid in, in which transaction if that is known.
pub(super) fn say_funded(mined: Option<Mined>, ui: &Ui) {
    let how = mined
        .map_or("the contract has the budget".to_owned(), |mined| format!("in transaction {}", mined.tx));
    ui.say(format_args!("{} {how}", ui.paint(Style::Good, "funded:")));
}

/// Asks a question about money on the terminal.
///
/// # Errors
/// Exit code 1 with `otherwise` where the answer is no; 2 where there is no terminal.
pub(crate) fn ask(question: &str, otherwise: &str, ui: &Ui) -> Outcome {
    if !std::io::stdin().is_terminal() {
        return Err(
            Failure::usage("paying asks on a terminal, and there is none").hint("--yes pays without asking")
        );
    }
    ui.say(format_args!("{question} [y/N]"));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(Failure::failed)?;
    if matches!(line.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::failed(otherwise))
}
