//! `compute-agent`: offers this machine's compute node to a relay.

use std::process::ExitCode;

use clap::Parser as _;
use computeagent::{Args, RunError, build};
use daemon::{Failure, Shutdown, init_logging};

#[tokio::main]
async fn main() -> ExitCode {
    match start(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn start(args: Args) -> Result<(), Failure> {
    init_logging(&args.log).map_err(Failure::usage)?;
    let shutdown = args.shutdown;
    let config = args.into_config(|name| std::env::var(name).ok()).map_err(Failure::usage)?;
    let shutdown = Shutdown::install(shutdown).map_err(Failure::other)?;
    let agent = build(config)
        .map_err(|error| if error.is_usage() { Failure::usage(error) } else { Failure::other(error) })?;
    agent.run(shutdown.token()).await.map_err(|error| {
        if matches!(error, RunError::PartOfGpu { .. }) {
            Failure::usage(error)
        } else {
            Failure::other(error)
        }
    })
}
