//! Publishing a task, and waiting for its checked result: what `run` and the demo share.

use std::time::{Duration, Instant};

use rpc::tasks::{PublishTask, TaskView};
use taskmarket::{Domain, Signed, Status, Task, TaskId};
use wallet::Wallet;

use crate::commands::approve::{approve, approve_settled};
use crate::content::Content;
use crate::failure::{Exit, Failure, Outcome};
use crate::follow::{Follower, now};
use crate::money::{self, Funding, Purse, chain_failure};
use crate::proof::{self, Checked};
use crate::relay::Relay;
use crate::rerun::rerun;
use crate::ui::{Style, Ui, span};

/// How long after a task's deadline the relay may take to say so.
const DEADLINE_MARGIN_SECS: u64 = 60;
/// How often a result that cannot be had is asked for again.
const RESULT_PAUSE: Duration = Duration::from_secs(5);
/// What a dispute says where nobody hands the result out.
const WITHHELD: &str =
    "no bytes that match the proof's result hash could be had by half of the dispute window";

/// How a result is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Verify {
    /// It is what the provider signed for.
    Proof,
    /// Besides, running the task again on this machine gives the same (wasm; embed within rounding).
    Rerun,
}

/// What is done about a task's result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verdict {
    /// How it is checked.
    pub(crate) verify: Verify,
    /// Whether it is approved then.
    pub(crate) approve: Approve,
}

/// Whether a result that verifies is approved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Approve {
    /// Approve it.
    Auto,
    /// Ask on the terminal.
    Ask,
    /// Leave it; the dispute window decides.
    Never,
}

/// Uploads what the relay has not got, signs the task, pays its budget in where there is a purse, in this way, and publishes it.
pub(crate) async fn publish(
    relay: &Relay,
    wallet: &Wallet,
    task: &Task,
    contents: &[&Content],
    purse: Option<(&Purse, &Funding)>,
    ui: &Ui,
) -> Outcome<TaskId> {
    Content::upload(contents, relay, ui).await?;
    let domain = purse.map_or(Domain::UNSETTLED, |(purse, _)| purse.chain.domain());
    let signed = wallet.sign(task, &domain).map_err(Failure::failed)?;
    let id = signed.message.id(&domain);
    if let Some((purse, funding)) = purse {
        money::keep(&purse.home, &signed, domain).await?;
        money::fund(purse, task, id, funding, ui).await?;
    }
    let paid = |failure: Failure| match purse {
        Some(_) => {
            failure.hint(format_args!("the budget is paid in; take it back: zorai-compute cancel {id}"))
        }
        None => failure,
    };
    let Signed { message, signature } = signed;
    let verifying_contract = domain.verifying_contract;
    let body = PublishTask { task: message, signature, verifying_contract, callback_url: None };
    let view = relay.publish(&body).await.map_err(paid)?;
    if view.task_id != id {
        return Err(paid(Failure::unverified(format_args!(
            "the relay calls the task {}, but its digest is {id}",
            view.task_id
        ))));
    }
    Ok(id)
}

/// Waits for a task's result, checks it, and approves it as told. With a purse, the money is followed too: it pays by the approval,
/// and disputes a proof on the chain whose result cannot be had.
#[expect(clippy::too_many_arguments, reason = "each is one thing that the wait is about")]
pub(crate) async fn poll(
    relay: &Relay,
    wallet: &Wallet,
    task: &Task,
    id: TaskId,
    started: Instant,
    verdict: Verdict,
    purse: Option<&Purse>,
    ui: &Ui,
) -> Outcome<(Checked, Status)> {
    let got = match purse.filter(|_| task.dispute_window > 0) {
        Some(purse) => Box::pin(result_or_dispute(relay, purse, task, id, started, ui)).await?,
        None => {
            until_result(relay, task, id, started, ui).await?;
            fetch(relay, id, ui).await?
        }
    };
    let (checked, view) = got;
    let disputable = |failure: Failure| object(failure, id, view.status);
    ui.say(format_args!(
        "{} the result is what {} signed for",
        ui.paint(Style::Good, "verified:"),
        checked.proof.provider
    ));
    if verdict.verify == Verify::Rerun {
        Box::pin(rerun(relay, task, &checked, ui)).await.map_err(disputable)?;
        ui.say(format_args!("{} running it again gives the same", ui.paint(Style::Good, "verified:")));
    }
    if view.status != Status::Submitted || !wanted(verdict.approve, ui)? {
        return Ok((checked, view.status));
    }
    if let Some(purse) = purse {
        approve_settled(relay, purse, task, &checked, ui).await?;
        return Ok((checked, Status::Completed));
    }
    let view = approve(relay, wallet, &checked).await?;
    ui.say(format_args!("{:>7} Completed: you approved", span(started.elapsed())));
    Ok((checked, view.status))
}

/// Follows a task until there is a result.
async fn until_result(relay: &Relay, task: &Task, id: TaskId, started: Instant, ui: &Ui) -> Outcome {
    let patience = Duration::from_secs(task.deadline.since(now()) + DEADLINE_MARGIN_SECS);
    let followed = Box::pin(Follower::new(relay, ui, id, started).until_result());
    tokio::time::timeout(patience, followed).await.map_err(|_| {
        Failure::failed("the task's deadline has passed, and the relay says nothing of it")
            .hint(format_args!("ask again: zorai-compute status {id}"))
    })??;
    Ok(())
}

async fn fetch(relay: &Relay, id: TaskId, ui: &Ui) -> Outcome<(Checked, TaskView)> {
    let view = relay.task(id).await?;
    let checked =
        proof::fetch(relay, &view, id, ui).await.map_err(|failure| object(failure, id, view.status))?;
    Ok((checked, view))
}

/// What does not hold can be objected to.
fn object(failure: Failure, id: TaskId, status: Status) -> Failure {
    if failure.exit() == Exit::Unverified && status == Status::Submitted {
        failure.hint(format_args!("it was not approved; object: zorai-compute dispute {id} --reason TEXT"))
    } else {
        failure
    }
}

/// Waits for a result whose bytes match its proof. Where the chain has a proof and there are none by half of its dispute window, the
/// proof is disputed: whatever the relay says or withholds, the other half is left for the transaction.
async fn result_or_dispute(
    relay: &Relay,
    purse: &Purse,
    task: &Task,
    id: TaskId,
    started: Instant,
    ui: &Ui,
) -> Outcome<(Checked, TaskView)> {
    let wanted = async {
        until_result(relay, task, id, started, ui).await?;
        let mut said = false;
        loop {
            match fetch(relay, id, ui).await {
                Err(failure) if failure.exit() == Exit::NotAuthorised => return Err(failure),
                Err(failure) => {
                    if !said {
                        ui.warn(format_args!("{}; trying again", failure.message()));
                        said = true;
                    }
                    tokio::time::sleep(RESULT_PAUSE).await;
                }
                Ok(got) => return Ok(got),
            }
        }
    };
    let disputable = money::until_disputable(purse, task, id, ui);
    tokio::pin!(disputable);
    tokio::select! {
        got = Box::pin(wanted) => match got {
            Ok(got) => return Ok(got),
            Err(failure) => {
                // The relay gives the task up; the chain decides whether money is at stake.
                let record = purse.chain.record(id).await.map_err(chain_failure)?;
                if record.status != escrow::Status::Proven {
                    return Err(failure.hint(format_args!(
                        "the money: zorai-compute status {id}; what nobody earned: zorai-compute refund {id}"
                    )));
                }
                ui.warn(format_args!("{}; but a proof is on the chain", failure.message()));
                disputable.await?;
            }
        },
        stands = &mut disputable => {
            stands?;
        }
    }
    if let Ok(got) = fetch(relay, id, ui).await {
        return Ok(got);
    }
    let mined = money::dispute(purse, Some(relay), task, id, WITHHELD, "", ui).await?;
    Err(Failure::unverified("no bytes that match the proof can be had")
        .hint(format_args!("it was disputed in transaction {}; the arbiter decides", mined.tx))
        .hint(format_args!("follow it: zorai-compute status {id}")))
}

fn wanted(approval: Approve, ui: &Ui) -> Outcome<bool> {
    match approval {
        Approve::Auto => Ok(true),
        Approve::Never => Ok(false),
        Approve::Ask => {
            ui.say("approve it? [y/N]");
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map_err(Failure::failed)?;
            Ok(matches!(line.trim(), "y" | "Y" | "yes"))
        }
    }
}
