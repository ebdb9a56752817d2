//! Paying a task's budget in: what it costs is said and asked first.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use escrow::Call;
use escrow::tx::{Mined, Outbox, State};
use taskmarket::{Address, Amount, Task, TaskId};

use crate::failure::{Failure, Outcome};
use crate::money::{Coins, Purse, chain_failure, outbox_failure, permit, send};
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
    let purpose = format!("fund:{id}");
    let mined = match funding {
        Funding::Own => {
            // Held for both: another command of this account would use the allowance up.
            let outbox = purse.outbox().await?;
            let call = purse.chain.calls().fund(task);
            match outbox.get(&purpose).await.map_err(outbox_failure)? {
                // An earlier command pays by a signature.
                Some(entry) if entry.call != call => send(&outbox, &purpose, entry.call, ui).await?,
                Some(_) | None => {
                    pay_in(purse, &outbox, &purpose, (task.token, task.budget), call, ui).await?
                }
            }
        }
        Funding::Permit => {
            let call = permit::call(purse, task).await?;
            purse.send(&purpose, call, ui).await?
        }
        Funding::Handed(file) => return permit::hand_over(purse, task, id, file, ui).await,
    };
    say_funded(&mined, ui);
    Ok(())
}

/// Whether a transaction for this purpose was done.
pub(super) async fn is_done(outbox: &Outbox, purpose: &str) -> Outcome<bool> {
    let entry = outbox.get(purpose).await.map_err(outbox_failure)?;
    Ok(entry.is_some_and(|entry| matches!(entry.state, State::Done(_))))
}

/// Says that a budget is paid in.
pub(super) fn say_funded(mined: &Mined, ui: &Ui) {
    ui.say(format_args!("{} in transaction {}", ui.paint(Style::Good, "funded:"), mined.tx));
}

/// Sends what takes an amount of a token out of the account, and lets the contract take it before, where it may not yet.
pub(crate) async fn pay_in(
    purse: &Purse,
    outbox: &Outbox,
    purpose: &str,
    (token, amount): (Address, Amount),
    call: Call,
    ui: &Ui,
) -> Outcome<Mined> {
    // What is on its way has its allowance, and may have used it up.
    if !token.is_zero() && !is_under_way(outbox, purpose).await? {
        allow(purse, outbox, token, amount, &format!("allow:{purpose}"), ui).await?;
    }
    send(outbox, purpose, call, ui).await
}

/// Lets the contract take an amount of a token, where it may not yet.
async fn allow(
    purse: &Purse,
    outbox: &Outbox,
    token: Address,
    amount: Amount,
    purpose: &str,
    ui: &Ui,
) -> Outcome {
    let escrow = purse.chain.escrow();
    let call = Call::allow(token, escrow, amount);
    if is_under_way(outbox, purpose).await? {
        send(outbox, purpose, call.clone(), ui).await?;
    }
    let now = allowed(purse, token).await?;
    if now >= amount {
        return Ok(());
    }
    // Some tokens change an allowance only from zero.
    let refused = purse.chain.simulate(&call, purse.account(), escrow::At::Latest).await;
    if now != Amount::ZERO && matches!(refused, Err(escrow::ChainError::Reverted(_))) {
        let none = Call::allow(token, escrow, Amount::ZERO);
        send_anew(outbox, &format!("none:{purpose}"), none, ui).await?;
    }
    send_anew(outbox, purpose, call, ui).await
}

/// Sends what may be used up where it was done before.
async fn send_anew(outbox: &Outbox, purpose: &str, call: Call, ui: &Ui) -> Outcome {
    if outbox.get(purpose).await.map_err(outbox_failure)?.is_some() {
        // What a reorganisation took back is sent again as it was signed.
        outbox.recheck(purpose).await.map_err(outbox_failure)?;
        outbox.renew(purpose, call.clone()).await.map_err(outbox_failure)?;
    }
    send(outbox, purpose, call, ui).await.map(drop)
}

/// Whether a transaction for this purpose is planned or sent, and not final.
pub(super) async fn is_under_way(outbox: &Outbox, purpose: &str) -> Outcome<bool> {
    let entry = outbox.get(purpose).await.map_err(outbox_failure)?;
    Ok(entry.is_some_and(|entry| !entry.is_final()))
}

/// How much of the account's token the contract may take.
async fn allowed(purse: &Purse, token: Address) -> Outcome<Amount> {
    let (owner, escrow) = (purse.account(), purse.chain.escrow());
    purse.chain.allowance(token, owner, escrow).await.map_err(chain_failure)
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
