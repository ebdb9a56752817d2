//! `watch`: waits for the result of a task that was published before, as `run --poll` does, and looks after its money.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Instant;

use rpc::error::ErrorCode;
use taskmarket::{Domain, Signature, Signed, Task, TaskId};

use crate::cli::Global;
use crate::commands::poll::{Approve, Verdict, Verify, Watched};
use crate::commands::publish::{go_on, hand_in};
use crate::failure::{Exit, Failure, Outcome};
use crate::key::{self, IfMissing};
use crate::money::{self, ChainArgs, Found, Purse, Unpublished, chain_failure};
use crate::relay::Relay;
use crate::rerun;
use crate::ui::Ui;

/// Which task, and what becomes of its result.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    zorai-compute watch 0xTASK --output result.txt\n\n\
    It does what `run --poll` does once the task is published. A settled task's proof whose bytes cannot be had by half of the\n\
    dispute window is disputed. A task that was paid and that the relay does not know is published once more.")]
pub(crate) struct Args {
    /// The task: 0x and 64 hex digits
    #[arg(value_name = "TASK_ID")]
    id: TaskId,
    /// Write the result to this file; `-` is standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How the result is checked before it is approved
    #[arg(long, value_enum, default_value_t = Verify::Proof)]
    verify: Verify,
    /// Whether to approve a result that verifies
    #[arg(long, value_enum, default_value_t = Approve::Auto)]
    approve: Approve,
    #[command(flatten)]
    chain: ChainArgs,
}

/// Watches a task.
pub(crate) async fn run(global: &Global, args: Args, ui: &Ui) -> Outcome {
    let id = args.id;
    if args.approve == Approve::Ask && !std::io::stdin().is_terminal() {
        return Err(Failure::usage("--approve ask needs a terminal to ask on"));
    }
    let output = args.output.as_deref().filter(|path| path.as_os_str() != "-");
    let relay = global.reading_relay(ui).await?;
    let Found { task, domain, signature } = money::find(global, id, ui).await?;
    if args.verify == Verify::Rerun {
        rerun::check_runtime(task.config.runtime)?;
    }
    let wallet = key::load(global, ui, IfMissing::Refuse).await?;
    if wallet.address() != task.requester {
        let (requester, own) = (task.requester, wallet.address());
        return Err(Failure::new(
            Exit::NotAuthorised,
            format_args!("the requester of task {id} is {requester}, this key is of {own}"),
        )
        .hint(format_args!("to see what happens: zorai-compute events {id} --follow")));
    }
    let purse = if domain.is_settled() {
        if !args.chain.is_given() {
            return Err(money::needs_chain("watch", id));
        }
        Some(args.chain.purse(global, Some(domain), &wallet).await?)
    } else {
        None
    };
    if let Some(purse) = &purse
        && let Some((signed, draft)) = money::take_up(purse, id).await?
        // Paying or publishing it broke off.
        && let Some((draft, paid)) = draft.go_on(purse, &task, ui).await?
    {
        let unpublished = Unpublished { signed, draft, paid };
        Box::pin(go_on(&relay, &[], purse, unpublished, None, ui)).await?;
    }
    if let (Some(purse), Some(signature)) = (&purse, signature) {
        publish_if_unknown(&relay, purse, &task, domain, signature, ui).await?;
    }
    let started = Instant::now();
    let watched =
        Watched { relay: &relay, wallet: &wallet, task: &task, id, purse: purse.as_ref(), started, ui };
    watched.deliver(Verdict { verify: args.verify, approve: args.approve }, output).await
}

/// Publishes a task that this machine has paid and the relay does not know, as after a crash between the two.
async fn publish_if_unknown(
    relay: &Relay,
    purse: &Purse,
    task: &Task,
    domain: Domain,
    signature: Signature,
    ui: &Ui,
) -> Outcome {
    let id = task.id(&domain);
    match relay.task(id).await {
        Err(failure) if failure.code() == Some(ErrorCode::NotFound.as_str()) => {}
        // What keeps the relay from answering is met again, and waited for, by what follows.
        Ok(_) | Err(_) => return Ok(()),
    }
    let record = purse.chain.record(id).await.map_err(chain_failure)?;
    if record.status != escrow::Status::Funded {
        return Err(Failure::failed(format_args!(
            "the relay does not know the task, and its money is {}",
            record.status.as_str()
        )));
    }
    ui.say("the relay does not know the task, which is paid: publishing it once more");
    hand_in(relay, Signed { message: task.clone(), signature }, domain).await
}
