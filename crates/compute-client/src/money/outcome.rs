//! How a settled task ends: the requester approves, or disputes in time.

use std::time::Duration;

use escrow::tx::Mined;
use escrow::{Record, Status};
use taskmarket::{ApproveResult, ContentHash, DisputeTask, Signed, Task, TaskId, Timestamp};

use crate::failure::{Failure, Outcome};
use crate::follow::now;
use crate::money::effect::{Move, NOTHING, bring_about};
use crate::money::tokens::forsake;
use crate::money::{Purse, chain_failure, is_under_way};
use crate::relay::Relay;
use crate::ui::{Style, Ui};

/// How often a task's record is read while something is waited for.
const LOOK: Duration = Duration::from_secs(1);
/// How long the chain may stay out of reach before waiting for it is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(300);

/// What became of an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Approval {
    /// This program's transaction paid.
    Sent(Mined),
    /// The provider had taken the money already, by the same word or by the window's end.
    Paid,
}

/// What became of a task's money while its result was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stands {
    /// A proof has stood for half of its window, and can be disputed.
    Disputable,
    /// There is nothing to dispute any more.
    Over,
}

/// Pays a proven task at once: waits for its proof to be on the chain, and sends the approval there.
///
/// # Errors
/// The task ends otherwise, or its time passes without a proof on the chain; exit code 5 where that proof is of another result.
pub(crate) async fn approve(
    purse: &Purse,
    task: &Task,
    id: TaskId,
    approval: &Signed<ApproveResult>,
    ui: &Ui,
) -> Outcome<Approval> {
    let mut said = false;
    loop {
        let (time, record) = read(purse, id).await?;
        match record.status {
            Status::Proven | Status::Paid => {
                if record.status == Status::Proven {
                    check_stands(purse, id, approval.message.result_hash).await?;
                }
                let purpose = format!("approve:{id}:{}", approval.message.attempt);
                let step = Move {
                    id,
                    purpose: &purpose,
                    call: purse.chain.calls().approve(task, approval),
                    takes: NOTHING,
                    there: |status| status == Status::Paid,
                };
                let mined = bring_about(purse, &purse.outbox().await?, step, ui).await?;
                // The provider may have come first.
                return Ok(mined.map_or(Approval::Paid, Approval::Sent));
            }
            Status::None | Status::Funded | Status::Accepted => {
                if time >= task.deadline {
                    return Err(Failure::failed("the deadline has passed without a proof on the chain")
                        .hint(format_args!("take the budget back: zorai-compute refund {id}")));
                }
                if !said {
                    ui.say("waiting for the provider's proof on the chain");
                    said = true;
                }
                tokio::time::sleep(LOOK).await;
            }
            Status::Disputed | Status::Split | Status::Refunded | Status::Cancelled => {
                return Err(Failure::failed(format_args!(
                    "the task's money is {}: there is nothing to approve",
                    record.status.as_str()
                )));
            }
        }
    }
}

/// Makes sure that the proof that stands on the chain, if one does, is of this result.
///
/// # Errors
/// Exit code 5 where it is of another one.
pub(crate) async fn check_stands(purse: &Purse, id: TaskId, result_hash: ContentHash) -> Outcome {
    let stands = purse.chain.result_of(id).await.map_err(chain_failure)?;
    if stands == ContentHash::UNPINNED || stands == result_hash {
        return Ok(());
    }
    Err(Failure::unverified(format_args!(
        "the proof on the chain is of the result {stands}, the relay's of {result_hash}"
    )))
}

/// Whether a proof stands, or may still come of a lease that holds.
pub(crate) async fn is_at_stake(purse: &Purse, id: TaskId) -> Outcome<bool> {
    let (time, record) = read(purse, id).await?;
    Ok(match record.status {
        Status::Proven => true,
        Status::Accepted => !record.is_lapsed(time),
        Status::None
        | Status::Funded
        | Status::Disputed
        | Status::Paid
        | Status::Split
        | Status::Refunded
        | Status::Cancelled => false,
    })
}

/// Waits until a proof on the chain has stood for half of its dispute window, or cannot be disputed any more. Meanwhile says how the
/// money moves.
///
/// # Errors
/// The chain stays out of reach.
pub(crate) async fn until_disputable(purse: &Purse, task: &Task, id: TaskId, ui: &Ui) -> Outcome<Stands> {
    let mut last = None;
    loop {
        let (time, record) = read(purse, id).await?;
        if last.replace((record.status, record.attempt)) != Some((record.status, record.attempt)) {
            ui.say(format_args!("{} {}", ui.paint(Style::Dim, "on chain:"), describe(&record, time)));
        }
        let half = record.until.unix().saturating_sub(task.dispute_window / 2);
        match record.status {
            Status::Proven if time >= record.until => return Ok(Stands::Over),
            Status::Proven if time.unix() >= half => return Ok(Stands::Disputable),
            Status::None | Status::Funded | Status::Accepted if time >= task.deadline => {
                return Ok(Stands::Over);
            }
            Status::None | Status::Funded | Status::Accepted | Status::Proven => {}
            Status::Disputed | Status::Paid | Status::Split | Status::Refunded | Status::Cancelled => {
                return Ok(Stands::Over);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until no more than a quarter of the dispute window is left, or the proof does not wait for its end any more.
///
/// # Errors
/// The chain stays out of reach.
pub(crate) async fn until_late(purse: &Purse, task: &Task, id: TaskId) -> Outcome {
    loop {
        let (time, record) = read(purse, id).await?;
        let late = record.until.unix().saturating_sub(task.dispute_window / 4);
        if record.status != Status::Proven || time.unix() >= late {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Where a task's money stands, in words; `time` is the chain's clock.
pub(crate) fn describe(record: &Record, time: Timestamp) -> String {
    let (word, until) = (record.status.as_str(), record.until);
    match record.status {
        Status::Accepted if record.is_lapsed(time) => {
            format!("funded; the lease of {} ended at {until} without a proof", record.provider)
        }
        Status::Accepted => {
            format!("{word} by {} (attempt {}, until {until})", record.provider, record.attempt)
        }
        Status::Proven if time < until => format!("{word}; it can be disputed until {until}"),
        Status::Proven => format!("{word}; the dispute window is over, anybody can settle it"),
        Status::Disputed if time < until => format!("{word}; the arbiter has until {until}"),
        Status::Disputed => format!("{word}; the arbiter said nothing in time, anybody can end it"),
        Status::None
        | Status::Funded
        | Status::Paid
        | Status::Split
        | Status::Refunded
        | Status::Cancelled => word.to_owned(),
    }
}

/// Disputes what stands on the chain, with the task's bond, and tells the relay. Gives the transaction, if it is this program's.
pub(crate) async fn dispute(
    purse: &Purse,
    relay: Option<&Relay>,
    task: &Task,
    id: TaskId,
    reason: &str,
    evidence: &str,
    ui: &Ui,
) -> Outcome<Option<Mined>> {
    let (time, record) = read(purse, id).await?;
    let purpose = format!("dispute:{id}:{}", record.attempt);
    let bond = (task.token, task.dispute_bond);
    let outbox = purse.outbox().await?;
    let is_over = record.status == Status::Proven && time >= record.until;
    let is_begun = is_under_way(&outbox, &purpose).await?;
    if (is_over || record.status != Status::Proven) && !is_begun {
        forsake(purse, &outbox, bond, &purpose, ui).await?;
        let why = if is_over {
            format!("it could be disputed until {}", record.until)
        } else {
            format!(
                "the task's money is {}: only a proof on the chain can be disputed",
                record.status.as_str()
            )
        };
        return Err(Failure::failed(why));
    }
    drop(outbox);
    let result_hash = purse.chain.result_of(id).await.map_err(chain_failure)?;
    let message = DisputeTask {
        task_id: id,
        provider: record.provider,
        attempt: record.attempt,
        result_hash,
        reason: reason.to_owned(),
        evidence: evidence.to_owned(),
        issued_at: now(),
    };
    let signed = purse.wallet.sign(&message, &purse.chain.domain()).map_err(Failure::failed)?;
    // The relay first: the arbiter reads the reason there, and the chain has its hash alone.
    if let Some(relay) = relay.filter(|_| !is_begun)
        && let Err(failure) = relay.tell(id, "dispute", signed.clone()).await
    {
        ui.warn(format_args!("the relay was not told the reason: {}", failure.message()));
    }
    let step = Move {
        id,
        purpose: &purpose,
        call: purse.chain.calls().dispute(task, &signed),
        takes: bond,
        there: |status| matches!(status, Status::Disputed | Status::Split),
    };
    bring_about(purse, &purse.outbox().await?, step, ui).await
}

/// Reads the chain's clock and a record; a chain out of reach is waited for.
async fn read(purse: &Purse, id: TaskId) -> Outcome<(Timestamp, Record)> {
    let started = tokio::time::Instant::now();
    loop {
        let read = async { Ok((purse.chain.head().await?.time, purse.chain.record(id).await?)) };
        match read.await {
            Ok(both) => return Ok(both),
            Err(error) if started.elapsed() > GIVE_UP_AFTER => return Err(chain_failure(error)),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}
