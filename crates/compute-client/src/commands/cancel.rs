//! `cancel`: the requester withdraws a task that nobody holds.

use escrow::Status;
use serde_json::json;
use taskmarket::CancelTask;

use crate::cli::{Global, MoneyArgs};
use crate::failure::{Failure, Outcome};
use crate::follow::now;
use crate::key::{self, IfMissing};
use crate::money::{self, Found, Move, NOTHING};
use crate::ui::Ui;

/// Cancels a task; a settled one on the chain, which gives its budget back.
pub(crate) async fn run(global: &Global, args: &MoneyArgs, ui: &Ui) -> Outcome {
    let id = args.task.id;
    let wallet = key::load(global, ui, IfMissing::Refuse).await?;
    let Found { task, domain, .. } = money::find(global, id, ui).await?;
    if domain.is_settled() && !args.chain.is_given() {
        return Err(money::needs_chain("cancel", id));
    }
    let message = CancelTask { task_id: id, issued_at: now() };
    let signed = wallet.sign(&message, &domain).map_err(Failure::failed)?;
    if !domain.is_settled() {
        let view = global.relay(ui)?.mutate(id, "cancel", signed).await?;
        return if ui.json { ui.print_json(&view) } else { ui.print(view.status) };
    }
    let purse = args.chain.purse(global, Some(domain), &wallet).await?;
    let step = Move {
        id,
        purpose: &format!("cancel:{id}"),
        call: purse.chain.calls().cancel(&task, &signed),
        takes: NOTHING,
        there: |status| status == Status::Cancelled,
    };
    let mined = money::bring_about(&purse, &purse.outbox().await?, step, ui).await?;
    let tx = mined.map(|mined| mined.tx);
    ui.say("the budget is yours to withdraw: zorai-compute wallet withdraw");
    if ui.json {
        ui.print_json(&json!({ "task_id": id, "settlement": "cancelled", "tx": tx }))
    } else {
        ui.print("cancelled")
    }
}
