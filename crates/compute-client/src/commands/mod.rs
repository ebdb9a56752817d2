//! The commands, one file each.

pub(crate) mod approve;
pub(crate) mod arbiter;
pub(crate) mod artifact;
pub(crate) mod cancel;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod dev;
pub(crate) mod dispute;
pub(crate) mod doctor;
pub(crate) mod escrow;
pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod models;
pub(crate) mod params;
pub(crate) mod poll;
pub(crate) mod providers;
pub(crate) mod publish;
pub(crate) mod refund;
pub(crate) mod result;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod verify;
pub(crate) mod wallet;
pub(crate) mod watch;

use crate::cli::{Cli, Command};
use crate::failure::Outcome;
use crate::ui::Ui;

/// Runs the command that was asked for.
pub(crate) async fn run(cli: Cli, ui: Ui) -> Outcome {
    let global = &cli.global;
    match cli.command {
        Command::Run(args) => run::run(global, args, &ui).await,
        Command::Status(args) => status::run(global, &args, &ui).await,
        Command::Watch(args) => watch::run(global, args, &ui).await,
        Command::List(args) => list::run(global, &args, &ui).await,
        Command::Result(args) => result::run(global, &args, &ui).await,
        Command::Approve(args) => approve::run(global, &args, &ui).await,
        Command::Dispute(args) => dispute::run(global, args, &ui).await,
        Command::Cancel(args) => cancel::run(global, &args, &ui).await,
        Command::Refund(args) => refund::run(global, &args, &ui).await,
        Command::Escrow(args) => escrow::run(global, &args, &ui).await,
        Command::Events(args) => events::run(global, &args, &ui).await,
        Command::Explain(args) => explain::run(global, &args, &ui).await,
        Command::Logs(args) => logs::run(global, &args, &ui).await,
        Command::Verify(args) => verify::run(global, &args, &ui).await,
        Command::Chat(args) => Box::pin(chat::run(global, args, &ui)).await,
        Command::Models(args) => models::run(global, &args, &ui).await,
        Command::Providers(args) => providers::run(global, &args, &ui).await,
        Command::Arbiter(args) => arbiter::run(global, args, &ui).await,
        Command::Artifact(args) => artifact::run(global, &args, &ui).await,
        Command::Wallet(args) => wallet::run(global, &args, &ui).await,
        Command::Doctor(args) => Box::pin(doctor::run(global, &args, &ui)).await,
        Command::Dev(args) => dev::run(args, &ui).await,
        Command::Completions(args) => completions::run(&args),
    }
}
