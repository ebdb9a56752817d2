//! `refund`: the requester takes back the budget of a task that ended without a proof.

use escrow::Status;
use serde_json::json;

use crate::cli::{Global, MoneyArgs};
use crate::failure::{Failure, Outcome};
use crate::key::{self, IfMissing};
use crate::money::{self, Found, Move, NOTHING, chain_failure};
use crate::ui::Ui;

/// Refunds a task, from its deadline on.
pub(crate) async fn run(global: &Global, args: &MoneyArgs, ui: &Ui) -> Outcome {
    let id = args.task.id;
    let Found { task, domain, .. } = money::find(global, id, ui).await?;
    if !domain.is_settled() {
        return Err(Failure::usage(format_args!("task {id} is unsettled: no money was paid for it")));
    }
    if !args.chain.is_given() {
        return Err(money::needs_chain("refund", id));
    }
    let wallet = key::load(global, ui, IfMissing::Refuse).await?;
    let purse = args.chain.purse(global, Some(domain), &wallet).await?;
    let record = purse.chain.record(id).await.map_err(chain_failure)?;
    let time = purse.chain.head().await.map_err(chain_failure)?.time;
    match record.status {
        Status::Refunded => {}
        Status::Funded | Status::Accepted if time >= task.deadline => {}
        Status::Funded => {
            return Err(Failure::failed(format_args!("the task can be refunded from {} on", task.deadline))
                .hint(format_args!("nobody holds it: zorai-compute cancel {id} gives the budget back now")));
        }
        Status::Accepted => {
            return Err(Failure::failed(format_args!("the task can be refunded from {} on", task.deadline))
                .hint(format_args!("{} holds it until {}", record.provider, record.until)));
        }
        Status::None
        | Status::Proven
        | Status::Disputed
        | Status::Paid
        | Status::Split
        | Status::Cancelled => {
            return Err(Failure::failed(format_args!(
                "the task's money is {}: there is nothing to refund",
                record.status.as_str()
            )));
        }
    }
    let step = Move {
        id,
        purpose: &format!("refund:{id}"),
        call: purse.chain.calls().refund(&task),
        takes: NOTHING,
        there: |status| status == Status::Refunded,
    };
    money::bring_about(&purse, &purse.outbox().await?, step, ui).await?;
    ui.say("the budget is the requester's to withdraw: zorai-compute wallet withdraw");
    if ui.json {
        ui.print_json(&json!({ "task_id": id, "settlement": "refunded" }))
    } else {
        ui.print("refunded")
    }
}
