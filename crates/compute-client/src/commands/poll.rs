//! Waiting for a task's checked result: what `run`, `watch` and the demo share.

use std::path::Path;
use std::time::{Duration, Instant};

use rpc::tasks::TaskView;
use taskmarket::{Status, Task, TaskId};
use wallet::Wallet;

use crate::commands::approve::{approve, approve_settled};
use crate::failure::{Exit, Failure, Outcome};
use crate::follow::{Follower, now};
use crate::money::{self, Purse, Stands};
use crate::proof::{self, Checked, Receipt};
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

/// A published task whose result is waited for: what `run --poll` and `watch` share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watched<'a> {
    /// Where it was published.
    pub(crate) relay: &'a Relay,
    /// Whose task it is.
    pub(crate) wallet: &'a Wallet,
    /// The task.
    pub(crate) task: &'a Task,
    /// Its id.
    pub(crate) id: TaskId,
    /// What it pays from, where it is settled.
    pub(crate) purse: Option<&'a Purse>,
    /// Since when it is waited for.
    pub(crate) started: Instant,
    /// Where the wait is told of.
    pub(crate) ui: &'a Ui,
}

impl Watched<'_> {
    /// Waits for the result, checks it, approves it as told, writes it and shows its receipt; ends with Ctrl-C.
    pub(crate) async fn deliver(&self, verdict: Verdict, output: Option<&Path>) -> Outcome {
        let (id, ui) = (self.id, self.ui);
        let (checked, status) = tokio::select! {
            polled = Box::pin(self.poll(verdict)) => polled?,
            _ = tokio::signal::ctrl_c() => return Err(interrupted(id)),
        };
        let kept = format!("the result is kept: zorai-compute result {id} --output FILE");
        if output.is_none() && !ui.json && checked.result.is_unfit_for_stdout()? {
            ui.say(format_args!("the result is binary, and is not written to a terminal; {kept}"));
        } else if output.is_some() || !ui.json {
            checked.result.write(output).await.map_err(|failure| failure.hint(kept))?;
        }
        let receipt = Receipt::new(&checked, status, self.started.elapsed(), output);
        if ui.json {
            if output.is_none() {
                ui.say(format_args!(
                    "the result was checked, not written: give --output FILE, or zorai-compute result {id} --output FILE"
                ));
            }
            return ui.print_json(&receipt);
        }
        receipt.say(ui);
        Ok(())
    }

    /// Waits for the result, checks it, and approves it as told. With a purse, the money is followed too: it pays by the approval, and
    /// disputes a proof on the chain of which no bytes can be had.
    pub(crate) async fn poll(&self, verdict: Verdict) -> Outcome<(Checked, Status)> {
        let (relay, id, ui) = (self.relay, self.id, self.ui);
        loop {
            let (checked, view) = match self.purse.filter(|_| self.task.dispute_window > 0) {
                Some(purse) => Box::pin(self.result_or_dispute(purse)).await?,
                None => {
                    self.until_result().await?;
                    self.fetch().await?
                }
            };
            let disputable = |failure: Failure| object(failure, id, view.status);
            ui.say(format_args!(
                "{} the result is what {} signed for",
                ui.paint(Style::Good, "verified:"),
                checked.proof.provider
            ));
            if verdict.verify == Verify::Rerun {
                Box::pin(rerun(relay, self.task, &checked, ui)).await.map_err(disputable)?;
                ui.say(format_args!(
                    "{} running it again gives the same",
                    ui.paint(Style::Good, "verified:")
                ));
            }
            if view.status != Status::Submitted {
                ui.say(format_args!("the task is {}: there is nothing to approve", view.status));
                return Ok((checked, view.status));
            }
            if !wanted(verdict.approve, ui)? {
                return Ok((checked, view.status));
            }
            let Some(purse) = self.purse else {
                let view = approve(relay, self.wallet, &checked).await?;
                ui.say(format_args!("{:>7} Completed: you approved", span(self.started.elapsed())));
                return Ok((checked, view.status));
            };
            match approve_settled(relay, purse, self.task, &checked, ui).await {
                Ok(_) => return Ok((checked, Status::Completed)),
                // The chain has the proof of another result: that one's bytes are waited for.
                Err(failure) if failure.exit() == Exit::Unverified => ui.warn(failure.message()),
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Follows the task until there is a result.
    async fn until_result(&self) -> Outcome {
        let id = self.id;
        let patience = Duration::from_secs(self.task.deadline.since(now()) + DEADLINE_MARGIN_SECS);
        let followed = Box::pin(Follower::new(self.relay, self.ui, id, self.started).until_result());
        tokio::time::timeout(patience, followed).await.map_err(|_| {
            Failure::failed("the task's deadline has passed, and the relay says nothing of it")
                .hint(format_args!("ask again: zorai-compute status {id}"))
        })??;
        Ok(())
    }

    async fn fetch(&self) -> Outcome<(Checked, TaskView)> {
        let (relay, id) = (self.relay, self.id);
        let view = relay.task(id).await?;
        let checked = proof::fetch(relay, &view, id, self.ui)
            .await
            .map_err(|failure| object(failure, id, view.status))?;
        Ok((checked, view))
    }

    /// Fetches a result that is not another one than that of which the chain has the proof.
    async fn fetch_proven(&self, purse: &Purse) -> Outcome<(Checked, TaskView)> {
        let got = self.fetch().await?;
        money::check_stands(purse, self.id, got.0.proof.result_hash).await?;
        Ok(got)
    }

    /// Waits for a result whose bytes match its proof. Where the chain has a proof and there are none by half of its dispute window,
    /// the proof is disputed: whatever the relay says or withholds, the other half is left for the transaction.
    async fn result_or_dispute(&self, purse: &Purse) -> Outcome<(Checked, TaskView)> {
        let disputable = money::until_disputable(purse, self.task, self.id, self.ui);
        tokio::pin!(disputable);
        let stands = tokio::select! {
            got = Box::pin(self.until_fetched(purse)) => match got {
                Ok(got) => return Ok(got),
                Err(failure) => {
                    // The relay gives the task up; the chain decides whether money is at stake.
                    if !money::is_at_stake(purse, self.id).await? {
                        return Err(failure.hint(format_args!(
                            "the money: zorai-compute status {0}; what nobody earned: zorai-compute refund {0}", self.id
                        )));
                    }
                    self.ui.warn(format_args!("{}; but a provider holds the task on the chain", failure.message()));
                    disputable.await?
                }
            },
            stands = &mut disputable => stands?,
        };
        let Stands::Disputable = stands else { return self.fetch_proven(purse).await };
        // Once more, but not for so long that the window ends meanwhile.
        tokio::select! {
            got = Box::pin(self.fetch_proven(purse)) => {
                if let Ok(got) = got {
                    return Ok(got);
                }
            }
            late = money::until_late(purse, self.task, self.id) => late?,
        }
        let mined =
            money::dispute(purse, Some(self.relay), self.task, self.id, WITHHELD, "", self.ui).await?;
        Err(Failure::unverified("no bytes that match the proof can be had")
            .hint(match mined {
                Some(mined) => format!("it was disputed in transaction {}; the arbiter decides", mined.tx),
                None => "it was disputed; the arbiter decides".to_owned(),
            })
            .hint(format_args!("follow it: zorai-compute status {}", self.id)))
    }

    /// Follows the task until there is a result, and asks for it until it is the proven one.
    async fn until_fetched(&self, purse: &Purse) -> Outcome<(Checked, TaskView)> {
        self.until_result().await?;
        let mut said = false;
        loop {
            match self.fetch_proven(purse).await {
                Err(failure) if failure.exit() == Exit::NotAuthorised => return Err(failure),
                Err(failure) => {
                    if !said {
                        self.ui.warn(format_args!("{}; trying again", failure.message()));
                        said = true;
                    }
                    tokio::time::sleep(RESULT_PAUSE).await;
                }
                Ok(got) => return Ok(got),
            }
        }
    }
}

/// What does not hold can be objected to.
fn object(failure: Failure, id: TaskId, status: Status) -> Failure {
    if failure.exit() == Exit::Unverified && status == Status::Submitted {
        failure.hint(format_args!("it was not approved; object: zorai-compute dispute {id} --reason TEXT"))
    } else {
        failure
    }
}

fn interrupted(id: TaskId) -> Failure {
    Failure::new(Exit::Interrupted, "stopped waiting; the task goes on")
        .hint(format_args!("follow it: zorai-compute events {id} --follow"))
        .hint(format_args!("wait again, check and approve: zorai-compute watch {id}"))
        .hint(format_args!("get its result, once submitted: zorai-compute result {id} --output FILE"))
        .hint(format_args!("withdraw it while it is open: zorai-compute cancel {id}"))
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
