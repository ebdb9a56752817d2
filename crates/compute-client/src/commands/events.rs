//! `events`: a task's history, at once or live.

use std::time::Instant;

use rpc::tasks::{Entry, EventView};
use taskmarket::TaskId;

use crate::cli::Global;
use crate::failure::Outcome;
use crate::follow::{Follower, describe, whose};
use crate::ui::Ui;

/// Whose history.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The task: 0x and 64 hex digits
    #[arg(value_name = "TASK_ID")]
    id: TaskId,
    /// Stay, and show what happens until the task ends
    #[arg(long, short, conflicts_with = "json")]
    follow: bool,
}

/// Shows a history.
pub(crate) async fn run(global: &Global, args: &Args, ui: &Ui) -> Outcome {
    let relay = global.reading_relay(ui).await?;
    if args.follow {
        return Box::pin(Follower::new(&relay, ui, args.id, Instant::now()).until_final()).await;
    }
    let history = relay.history(args.id).await?;
    if ui.json {
        return ui.print_json(&history);
    }
    history.events.iter().try_for_each(|event| match row(event) {
        Some(row) => ui.print(row),
        None => Ok(()),
    })
}

fn row(event: &EventView) -> Option<String> {
    match &event.entry {
        Entry::Recorded { recorded, .. } => {
            Some(format!("{}  {}  [{}]", recorded.at, describe(recorded, event.status), whose(recorded)))
        }
        Entry::Progress { .. } => None,
    }
}
