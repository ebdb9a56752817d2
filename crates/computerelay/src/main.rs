//! `compute-relay`: parses the command line and does what it says.

use std::process::ExitCode;

use clap::Parser;
use daemon::Failure;

#[tokio::main]
async fn main() -> ExitCode {
    match computerelay::Cli::parse().run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => Failure::other(told(&error)).report(),
    }
}

/// An error with its causes, each said once.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}
