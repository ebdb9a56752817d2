//! `approve`: the requester takes a result as good, once it verifies.

use rpc::tasks::TaskView;
use taskmarket::ApproveResult;
use wallet::Wallet;

use crate::cli::{Global, TaskArgs};
use crate::failure::{Failure, Outcome};
use crate::follow::now;
use crate::key::{self, IfMissing};
use crate::proof::{self, Checked};
use crate::relay::Relay;
use crate::ui::Ui;

/// Checks a result and approves it.
pub(crate) async fn run(global: &Global, args: &TaskArgs, ui: &Ui) -> Outcome {
    let relay = global.reading_relay(ui).await?;
    let view = relay.task(args.id).await?;
    let checked = proof::fetch(&relay, &view, args.id, ui).await?;
    let wallet = key::load(global, ui, IfMissing::Refuse).await?;
    let view = approve(&relay, &wallet, &checked).await?;
    if ui.json { ui.print_json(&view) } else { ui.print(view.status) }
}

/// Signs for a checked result, and sends it.
pub(crate) async fn approve(relay: &Relay, wallet: &Wallet, checked: &Checked) -> Outcome<TaskView> {
    let message = ApproveResult {
        task_id: checked.id,
        provider: checked.proof.provider,
        attempt: checked.proof.attempt,
        result_hash: checked.proof.result_hash,
        issued_at: now(),
    };
    let signed = wallet.sign(&message, &checked.domain).map_err(Failure::failed)?;
    relay.mutate(checked.id, "approve", signed).await
}
