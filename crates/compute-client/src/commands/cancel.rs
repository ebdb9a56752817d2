//! `cancel`: the requester withdraws a task that nobody holds.

use taskmarket::CancelTask;

use crate::cli::{Global, TaskArgs};
use crate::failure::{Failure, Outcome};
use crate::follow::now;
use crate::key::{self, IfMissing};
use crate::proof;
use crate::ui::Ui;

/// Cancels a task.
pub(crate) async fn run(global: &Global, args: &TaskArgs, ui: &Ui) -> Outcome {
    let relay = global.relay(ui)?;
    let wallet = key::load(global, ui, IfMissing::Refuse).await?;
    let (_, domain) = proof::check_task(&relay.task(args.id).await?, args.id)?;
    let message = CancelTask { task_id: args.id, issued_at: now() };
    let signed = wallet.sign(&message, &domain).map_err(Failure::failed)?;
    let view = relay.mutate(args.id, "cancel", signed).await?;
    if ui.json { ui.print_json(&view) } else { ui.print(view.status) }
}
