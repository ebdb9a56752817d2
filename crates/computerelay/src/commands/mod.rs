//! The command line: without a subcommand the relay runs; the subcommands look after its keys and its store.

mod keys;
mod remote;
mod store;

use std::fmt;
use std::io::Write;

use clap::{Parser, Subcommand};
use daemon::{Failure, LogArgs};

use crate::config::Args;
use crate::misuse::{Misuse, failure};
use crate::relay::serve;

/// The public gateway of the ZORAI compute market.
///
/// Requesters publish signed tasks here by HTTP. Machines with GPUs connect from
/// behind NAT by WebSocket and get the tasks pushed; results and their proofs come
/// back the same way. The relay holds no wallet key, runs no task and holds no money.
///
/// A relay to try, on this machine only:
///
///   export ZORAI_AI_API_KEY=$(openssl rand -hex 32)
///   compute-relay --listen 127.0.0.1:8787 --store ./relay
///
/// A public one:
///
///   compute-relay --tls-listen :443 --tls-cert relay.crt --tls-key relay.key \
///     --relay-id hz-1 --public-url wss://relay.example \
///     --store /var/lib/zorai/relay --api-key-file /etc/zorai/api-key
///
/// A key for somebody who publishes tasks there:
///
///   compute-relay keys create --name alice --scope tasks:write --scope tasks:read \
///     --relay https://relay.example --api-key-file /etc/zorai/api-key
#[allow(rustdoc::bare_urls, reason = "this is the text of --help")]
#[derive(Debug, Parser)]
#[command(name = "compute-relay", version, verbatim_doc_comment, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(flatten)]
    serve: Args,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make, list and revoke API keys
    Keys(Box<keys::Args>),
    /// Move a store to another place
    Store(store::Args),
}

impl Cli {
    /// Runs the relay until a signal ends it, or does what a subcommand says.
    ///
    /// # Errors
    /// What was asked for could not be done; the message says why, and what to do where that is known. The exit status is 2 where
    /// the command line or the configuration is wrong, and 1 where something failed.
    pub async fn run(self) -> Result<(), Failure> {
        let done = match self.command {
            None => serve(self.serve).await,
            Some(command) => command.run(&self.serve.log).await,
        };
        done.map_err(|error| failure(&error))
    }
}

impl Command {
    async fn run(self, log: &LogArgs) -> anyhow::Result<()> {
        daemon::init_logging(log).map_err(Misuse::from)?;
        match self {
            Self::Keys(args) => keys::run(*args).await,
            Self::Store(args) => store::run(args).await,
        }
    }
}

/// Writes data to standard output.
fn print(text: impl fmt::Display) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// Says something to whoever watches, on standard error.
fn say(text: impl fmt::Display) {
    // Who cannot be told is not told.
    let _ = writeln!(std::io::stderr(), "{text}");
}
