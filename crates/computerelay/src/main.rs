//! `compute-relay`: parses the command line and does what it says.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use computerelay::Cli;

/// The exit status of a wrong command line, as clap's.
const USAGE: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if daemon::group::help(&error, Cli::command(), std::env::args().skip(1)) => {
            return USAGE.into();
        }
        Err(error) => error.exit(),
    };
    match cli.run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
