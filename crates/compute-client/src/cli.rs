//! The command line's shape: what every command shares, and the list of commands.

use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use daemon::{Secret, group, read_secret_file};
use taskmarket::{Address, ParseError, TaskId, eip55};

use crate::commands;
use crate::failure::{Failure, Outcome};
use crate::key::{self, IfMissing};
use crate::money::ChainArgs;
use crate::relay::Relay;
use crate::ui::Ui;

/// Runs work on other people's GPUs, and checks what comes back.
///
/// A task names a model and an input. It is signed with your key, published at
/// a relay, run by a provider in a sandbox, and comes back with a signed proof
/// that this program checks before you see the result.
///
/// Try it on this machine, with a relay and a provider of its own:
///
///     zorai-compute dev --demo
///
/// Use a relay:
///
///     export ZORAI_RELAY=https://compute-relay.zorai.co ZORAI_AI_API_KEY=...
///     zorai-compute run --model program.wasm --input data.txt --poll
#[derive(Debug, Parser)]
#[command(
    name = "zorai-compute",
    version,
    verbatim_doc_comment,
    propagate_version = true,
    after_help = "Exit codes: 0 done; 1 the task or request failed; 2 wrong usage; 3 not authorised; 4 cannot reach the \
                  relay; 5 a verification failed; 130 ended by Ctrl-C."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The relay: https://HOST, or http://127.0.0.1:PORT
    #[arg(long, env = "ZORAI_RELAY", value_name = "URL", global = true, hide_env_values = true)]
    pub(crate) relay: Option<String>,

    /// The relay's API key. Other users of this machine can see a flag: prefer the variable or a file
    #[arg(long, env = "ZORAI_AI_API_KEY", value_name = "KEY", global = true, hide_env_values = true)]
    pub(crate) api_key: Option<Secret>,

    /// A file with the API key, mode 0600; it goes before --api-key
    #[arg(long, env = "ZORAI_AI_API_KEY_FILE", value_name = "FILE", global = true, hide_env_values = true)]
    pub(crate) api_key_file: Option<PathBuf>,

    /// Your key: an encrypted keystore, or a file with 64 hex digits, mode 0600 [default: a keystore that `run` makes]
    #[arg(
        long,
        visible_alias = "keystore",
        env = "ZORAI_KEY_FILE",
        value_name = "FILE",
        global = true,
        hide_env_values = true
    )]
    pub(crate) key_file: Option<PathBuf>,

    /// A file with the keystore's password, mode 0600 [default: ZORAI_KEY_PASSWORD, else asked for]
    #[arg(long, env = "ZORAI_KEY_PASSWORD_FILE", value_name = "FILE", global = true, hide_env_values = true)]
    pub(crate) key_password_file: Option<PathBuf>,

    /// A PEM file with certificate authorities to trust besides the system's, for a relay with a private certificate
    #[arg(long, env = "ZORAI_CA_FILE", value_name = "FILE", global = true)]
    pub(crate) ca_file: Option<PathBuf>,

    /// Print JSON on standard output. With `run --poll` it is about the result, which itself goes to --output FILE alone
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Say nothing but errors
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,

    /// Say more
    #[arg(long, short, global = true, conflicts_with = "quiet")]
    pub(crate) verbose: bool,
}

impl Global {
    /// The relay that the command is about.
    pub(crate) fn relay(&self, ui: &Ui) -> Outcome<Relay> {
        let Some(url) = self.relay.as_deref().filter(|url| !url.is_empty()) else {
            return Err(Failure::usage("no relay is named")
                .hint("give --relay URL, or set ZORAI_RELAY")
                .hint("`zorai-compute dev` starts a relay on this machine"));
        };
        Relay::new(url, self.api_key()?, self.ca_file.as_deref(), ui)
    }

    /// The relay, to read tasks at: by the API key, or without one by the signature of the user's key, if there is one.
    pub(crate) async fn reading_relay(&self, ui: &Ui) -> Outcome<Relay> {
        let relay = self.relay(ui)?;
        let is_known = self.key_file.is_some() || key::default_path().exists();
        if relay.has_key() || !is_known {
            return Ok(relay);
        }
        Ok(relay.read_by(key::load(self, ui, IfMissing::Refuse).await?))
    }

    fn api_key(&self) -> Outcome<Option<Secret>> {
        match &self.api_key_file {
            Some(file) => read_secret_file(file).map(Some).map_err(Failure::usage),
            None => Ok(self.api_key.clone().filter(|key| !key.expose().is_empty())),
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, made once")]
pub(crate) enum Command {
    /// Publish a task, and with --poll wait for its checked result
    Run(commands::run::Args),
    /// Wait for the result of a task that was published before, check it, and look after its money
    Watch(commands::watch::Args),
    /// Show a task, why it waits, and where its money is
    Status(MoneyArgs),
    /// List tasks, newest first
    List(commands::list::Args),
    /// Fetch a task's result and check it against its proof
    Result(commands::result::Args),
    /// Take a task's result as good, once it verifies
    Approve(MoneyArgs),
    /// Object to a task's result, on the record
    Dispute(commands::dispute::Args),
    /// Withdraw a task that no provider holds
    Cancel(MoneyArgs),
    /// Take back the budget of a settled task that ended without a proof
    Refund(MoneyArgs),
    /// Show a task's history, or follow it live
    Events(commands::events::Args),
    /// Say of each provider what keeps a task from it
    Explain(TaskArgs),
    /// Show what a task's attempt says, or follow it live
    Logs(commands::logs::Args),
    /// Check a task's signed history, proof and result; or an inference receipt
    Verify(commands::verify::Args),
    /// Talk to a model that providers serve
    Chat(commands::chat::Args),
    /// List the models that providers serve
    Models(commands::models::Args),
    /// List the providers that are online
    Providers(commands::providers::Args),
    /// Decide disputes, from evidence
    Arbiter(commands::arbiter::Args),
    /// Store files at the relay, and fetch them
    Artifact(commands::artifact::Args),
    /// Show or make your key; stake, withdraw and see the account's money
    Wallet(commands::wallet::Args),
    /// Deploy the escrow contract, or show one
    Escrow(commands::escrow::Args),
    /// Check relay, clock, keys, models and a test answer, each with its fix
    Doctor(commands::doctor::Args),
    /// Run a whole market on this machine: relay, agent and compute node
    Dev(commands::dev::Args),
    /// Write completions for a shell
    Completions(commands::completions::Args),
}

/// A command about one task.
#[derive(Debug, clap::Args)]
pub(crate) struct TaskArgs {
    /// The task: 0x and 64 hex digits
    #[arg(value_name = "TASK_ID")]
    pub(crate) id: TaskId,
}

/// A command about one task and its money.
#[derive(Debug, clap::Args)]
pub(crate) struct MoneyArgs {
    #[command(flatten)]
    pub(crate) task: TaskArgs,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
}

/// Clap's usage line after an error counts what the environment gives as required; this puts the command's own there.
pub(crate) fn restore_usage(error: &mut clap::Error, arguments: impl Iterator<Item = String>) {
    if error.get(ContextKind::Usage).is_none() {
        return;
    }
    let mut root = Cli::command();
    let usage = group::named(&mut root, arguments).render_usage();
    error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
}

/// Reads an address from the command line.
pub(crate) fn parse_address(text: &str) -> Result<Address, ParseError> {
    eip55::parse(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documented_calls_parse() {
        let id = format!("0x{}", "ab".repeat(32));
        for line in [
            "run --relay https://r.example --api-key k --model ipfs://bafy --input https://signed.example/input.json \
             --gpu-type A100 --min-vram 40960 --budget 10000000000000000 --poll"
                .to_owned(),
            format!("status {id} --relay https://r.example"),
            "list --relay https://r.example --requester 0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed".to_owned(),
            format!("dispute {id} --relay https://r.example --reason wrong --evidence ipfs://bafy"),
        ] {
            let words = std::iter::once("zorai-compute").chain(line.split_whitespace());
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
}
