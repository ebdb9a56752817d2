//! `status`: where a task stands, and why it waits.

use rpc::tasks::{Entry, ShownTask, TaskView};
use taskmarket::{Event, Status};

use crate::cli::{Global, MoneyArgs};
use crate::failure::Outcome;
use crate::follow::ago;
use crate::money::{self, Coins, chain_failure};
use crate::proof;
use crate::ui::{Ui, clean};

/// Shows a task.
pub(crate) async fn run(global: &Global, args: &MoneyArgs, ui: &Ui) -> Outcome {
    let relay = global.reading_relay(ui).await?;
    let view = relay.task(args.task.id).await?;
    if ui.json {
        return ui.print_json(&view);
    }
    show(&view, ui)?;
    if view.status == Status::Disputed {
        // As below: that the history is not for everybody is no reason to fail.
        if let Ok(history) = relay.history(args.task.id).await {
            for event in history.events {
                if let Entry::Recorded { recorded, .. } = event.entry
                    && let Event::Disputed(dispute) = &recorded.event
                {
                    line(
                        ui,
                        "dispute",
                        format_args!("{} (at {})", clean(&dispute.message.reason), recorded.at),
                    )?;
                }
            }
        }
    }
    if view.status == Status::Open {
        // Others than the publisher may not ask; the status is the answer all the same.
        if let Ok(explanation) = relay.explain(args.task.id).await {
            line(ui, "waits", clean(&explanation.summary))?;
        }
    }
    show_money(global, args, &view, ui).await
}

/// What the relay says of a settled task's money, and what the chain says where one is named.
async fn show_money(global: &Global, args: &MoneyArgs, view: &TaskView, ui: &Ui) -> Outcome {
    if view.verifying_contract.is_zero() {
        return Ok(());
    }
    let tx = view.settlement_tx.map(|tx| format!(" in transaction {tx}")).unwrap_or_default();
    line(ui, "money", format_args!("{}{tx}, by the relay's word", clean(&view.settlement)))?;
    if !args.chain.is_given() {
        return Ok(());
    }
    let (task, domain) = proof::check_task(view, args.task.id)?;
    let chain = args.chain.connect(global, Some(domain)).await?;
    let record = chain.record(args.task.id).await.map_err(chain_failure)?;
    let time = chain.head().await.map_err(chain_failure)?.time;
    let coins = Coins::of(&chain, task.token).await?;
    line(ui, "on chain", money::describe(&record, time))?;
    line(ui, "budget", coins.show(task.budget))?;
    line(ui, "stake", coins.show(task.provider_stake))?;
    line(ui, "bond", coins.show(task.dispute_bond))
}

/// Shows a task for people.
pub(crate) fn show(view: &TaskView, ui: &Ui) -> Outcome {
    line(ui, "task", view.task_id)?;
    line(ui, "status", format_args!("{} (changed {})", view.status, ago(view.updated_at)))?;
    if let Some(progress) = &view.progress {
        let percent = progress.percent.map(|percent| format!(", {percent} %")).unwrap_or_default();
        line(ui, "doing", format_args!("{}{percent}", progress.phase.as_str()))?;
    }
    if let Some(provider) = view.provider {
        line(ui, "provider", format_args!("{provider} (attempt {})", view.attempt))?;
    }
    match &view.task {
        ShownTask::Whole(task) => {
            line(ui, "runtime", task.config.runtime)?;
            line(ui, "model", clean(task.model_cid.as_str()))?;
            line(ui, "input", clean(task.input_cid.as_str()))?;
            line(ui, "budget", task.budget)?;
        }
        ShownTask::Public(task) => {
            line(ui, "runtime", task.config.runtime)?;
            line(ui, "budget", task.budget)?;
        }
    }
    line(ui, "deadline", view.deadline)?;
    if let Some(proof) = &view.proof {
        line(ui, "result", format_args!("{} on {}", proof.proof.result_hash, clean(&proof.proof.gpu_name)))?;
    }
    if let Some(until) = view.dispute_until {
        line(ui, "dispute", format_args!("possible until {until}"))?;
    }
    if let Some(failure) = &view.failure {
        line(ui, "failure", format_args!("{}: {}", clean(&failure.code), clean(&failure.message)))?;
        if let Some(hint) = rpc::failure::hint(&failure.code) {
            line(ui, "hint", hint)?;
        }
    }
    Ok(())
}

fn line(ui: &Ui, name: &str, value: impl std::fmt::Display) -> Outcome {
    ui.print(format_args!("{name:<9} {value}"))
}
