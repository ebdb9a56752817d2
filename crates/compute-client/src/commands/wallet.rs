//! `wallet`: the user's key, and the account's money.

mod account;

use std::path::{Path, PathBuf};

use serde_json::json;
use wallet::Wallet;

use crate::cli::Global;
use crate::commands::wallet::account::{Balance, History, Stake, Withdraw};
use crate::failure::{Failure, Outcome};
use crate::key::{self, IfMissing};
use crate::ui::Ui;

/// What to do with the key.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the address of your key
    Address,
    /// Make a new key in an encrypted keystore
    New {
        /// The keystore to make; nothing is overwritten
        #[arg(long, short, value_name = "FILE")]
        out: PathBuf,
    },
    /// Show the account's coins and tokens, stakes, and what it can withdraw from the escrow contract
    Balance(Balance),
    /// Let Permit2 take so much of a token by your signatures (`run --permit2`); 0 takes that back
    Permit2(Stake),
    /// Add to the stake that accepting tasks locks
    Stake(Stake),
    /// Announce that stake is to leave; a day later `withdraw` pays it out
    Unstake(Stake),
    /// Take out of the escrow contract what is yours: payments, refunds, stake whose day is over
    Withdraw(Withdraw),
    /// List what happened to the account's money, from the contract's events
    History(History),
    /// Put a private key (64 hex digits, asked for or read from standard input) into an encrypted keystore
    Import {
        /// The keystore to make; nothing is overwritten
        #[arg(long, short, value_name = "FILE")]
        out: PathBuf,
    },
}

/// Shows or makes a key.
pub(crate) async fn run(global: &Global, args: &Args, ui: &Ui) -> Outcome {
    match &args.command {
        Command::Address => {
            let wallet = key::load(global, ui, IfMissing::Refuse).await?;
            show(&wallet, None, ui)
        }
        Command::Balance(args) => account::balance(global, args, ui).await,
        Command::Stake(args) => account::stake(global, args, account::Way::In, ui).await,
        Command::Unstake(args) => account::stake(global, args, account::Way::Out, ui).await,
        Command::Permit2(args) => account::permit2(global, args, ui).await,
        Command::Withdraw(args) => account::withdraw(global, args, ui).await,
        Command::History(args) => account::history(global, args, ui).await,
        Command::New { out } => save(global, Wallet::random(), out, ui).await,
        Command::Import { out } => {
            let hex = key::ask("Private key (64 hex digits): ")?;
            save(global, Wallet::from_hex(hex.expose()).map_err(Failure::usage)?, out, ui).await
        }
    }
}

async fn save(global: &Global, wallet: Wallet, out: &Path, ui: &Ui) -> Outcome {
    let password = key::new_password(global)?;
    let (kept, path) = (wallet.clone(), out.to_owned());
    let work = move || kept.save_keystore(&path, password.expose());
    tokio::task::spawn_blocking(work).await.map_err(Failure::failed)?.map_err(Failure::usage)?;
    ui.say(format_args!("use it with --key-file {}", out.display()));
    show(&wallet, Some(out), ui)
}

fn show(wallet: &Wallet, path: Option<&Path>, ui: &Ui) -> Outcome {
    if ui.json {
        return ui.print_json(&json!({ "address": wallet.address().to_string(), "key_file": path }));
    }
    ui.print(wallet.address())
}
