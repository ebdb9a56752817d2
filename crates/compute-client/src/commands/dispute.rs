//! `dispute`: the requester objects to a result, on the record.

use serde_json::json;
use taskmarket::{DisputeTask, Reference, TaskId};

use crate::cli::Global;
use crate::failure::{Failure, Outcome};
use crate::follow::now;
use crate::key::{self, IfMissing};
use crate::money::{self, ChainArgs};
use crate::proof;
use crate::ui::Ui;

/// What the objection is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    zorai-compute dispute 0xTASK --reason \"result hash mismatch\" --evidence ipfs://bafy...evidence\n\n\
    In an unsettled task a dispute moves no money: it is a signed public record in the provider's history.\n\
    In a settled task it goes to the chain with the bond that the task names, and its arbiter decides.")]
pub(crate) struct Args {
    /// The task: 0x and 64 hex digits
    #[arg(value_name = "TASK_ID")]
    id: TaskId,
    /// Why, for the arbiter and the record
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// A content reference to evidence
    #[arg(long, value_name = "REFERENCE")]
    evidence: Option<Reference>,
    #[command(flatten)]
    chain: ChainArgs,
}

/// Disputes a result.
pub(crate) async fn run(global: &Global, args: Args, ui: &Ui) -> Outcome {
    let relay = global.reading_relay(ui).await?;
    let wallet = key::load(global, ui, IfMissing::Refuse).await?;
    let view = relay.task(args.id).await?;
    let (task, domain) = proof::check_task(&view, args.id)?;
    let evidence = args.evidence.map(|reference| reference.to_string()).unwrap_or_default();
    if domain.is_settled() {
        if !args.chain.is_given() {
            return Err(money::needs_chain("dispute", args.id));
        }
        let purse = args.chain.purse(global, Some(domain), &wallet).await?;
        let mined = money::dispute(&purse, Some(&relay), &task, args.id, &args.reason, &evidence, ui).await?;
        let tx = mined.map(|mined| mined.tx);
        return if ui.json {
            ui.print_json(&json!({ "task_id": args.id, "settlement": "disputed", "tx": tx }))
        } else {
            ui.print("disputed")
        };
    }
    // What is disputed is what the provider signed, whether its result holds or not.
    let proof = proof::check_proof(&view, args.id, &task, &domain)?;
    let message = DisputeTask {
        task_id: args.id,
        provider: proof.provider,
        attempt: proof.attempt,
        result_hash: proof.result_hash,
        reason: args.reason,
        evidence,
        issued_at: now(),
    };
    let signed = wallet.sign(&message, &domain).map_err(Failure::failed)?;
    let view = relay.mutate(args.id, "dispute", signed).await?;
    if ui.json { ui.print_json(&view) } else { ui.print(view.status) }
}
