//! `approve`: the requester takes a result as good, once it verifies.

use rpc::tasks::TaskView;
use serde_json::json;
use taskmarket::{ApproveResult, Signed};
use wallet::Wallet;

use crate::cli::{Global, MoneyArgs};
use crate::failure::{Failure, Outcome};
use crate::follow::now;
use crate::key::{self, IfMissing};
use crate::money::{self, Approval, Purse};
use crate::proof::{self, Checked};
use crate::relay::Relay;
use crate::ui::{Style, Ui};

/// Checks a result and approves it; in a settled task, on the chain.
pub(crate) async fn run(global: &Global, args: &MoneyArgs, ui: &Ui) -> Outcome {
    let relay = global.reading_relay(ui).await?;
    let id = args.task.id;
    let view = relay.task(id).await?;
    let (task, domain) = proof::check_task(&view, id)?;
    if domain.is_settled() && !args.chain.is_given() {
        return Err(money::needs_chain("approve", id));
    }
    let checked = proof::fetch(&relay, &view, id, ui).await?;
    let wallet = key::load(global, ui, IfMissing::Refuse).await?;
    if !domain.is_settled() {
        let view = approve(&relay, &wallet, &checked).await?;
        return if ui.json { ui.print_json(&view) } else { ui.print(view.status) };
    }
    let purse = args.chain.purse(global, Some(domain), &wallet).await?;
    let approval = approve_settled(&relay, &purse, &task, &checked, ui).await?;
    let tx = match approval {
        Approval::Sent(mined) => Some(mined.tx),
        Approval::Paid => None,
    };
    if ui.json {
        ui.print_json(&json!({ "task_id": id, "settlement": "paid", "tx": tx }))
    } else {
        ui.print("paid")
    }
}

/// Signs for a checked result, and sends it.
pub(crate) async fn approve(relay: &Relay, wallet: &Wallet, checked: &Checked) -> Outcome<TaskView> {
    relay.mutate(checked.id, "approve", signed(wallet, checked)?).await
}

/// Signs for a checked result of a settled task, tells the relay, so that the provider can use it, and pays on the chain.
pub(crate) async fn approve_settled(
    relay: &Relay,
    purse: &Purse,
    task: &taskmarket::Task,
    checked: &Checked,
    ui: &Ui,
) -> Outcome<Approval> {
    let signed = signed(&purse.wallet, checked)?;
    if let Err(failure) = relay.tell(checked.id, "approve", signed.clone()).await {
        ui.detail(format_args!("the relay was not told of the approval: {}", failure.message()));
    }
    let approval = money::approve(purse, task, checked.id, &signed, ui).await?;
    let how = match approval {
        Approval::Sent(mined) => format!("you approved in transaction {}", mined.tx),
        Approval::Paid => "the provider has taken the payment".to_owned(),
    };
    ui.say(format_args!("{} {how}", ui.paint(Style::Good, "paid:")));
    Ok(approval)
}

fn signed(wallet: &Wallet, checked: &Checked) -> Outcome<Signed<ApproveResult>> {
    let message = ApproveResult {
        task_id: checked.id,
        provider: checked.proof.provider,
        attempt: checked.proof.attempt,
        result_hash: checked.proof.result_hash,
        issued_at: now(),
    };
    wallet.sign(&message, &checked.domain).map_err(Failure::failed)
}
