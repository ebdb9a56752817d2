//! `compute-agent`: offers this machine's compute node to a relay.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use computeagent::{Args, build};
use daemon::{Shutdown, init_logging};

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let wrong = |error: &dyn std::fmt::Display| -> ! {
        Args::command().error(clap::error::ErrorKind::ValueValidation, error).exit()
    };
    if let Err(error) = init_logging(&args.log) {
        wrong(&error);
    }
    let shutdown_args = args.shutdown;
    let config = match args.into_config(|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(error) => wrong(&error),
    };
    match run(config, shutdown_args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(
    config: computeagent::Config,
    shutdown: daemon::ShutdownArgs,
) -> Result<(), Box<dyn std::error::Error>> {
    let shutdown = Shutdown::install(shutdown)?;
    build(config)?.run(shutdown.token()).await?;
    Ok(())
}
