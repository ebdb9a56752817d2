//! `compute-agent`: offers this machine's compute node to a relay.

use std::process::ExitCode;

use computeagent::{Args, RunError, build};
use daemon::config_file::ConfigError;
use daemon::{Failure, Shutdown, init_logging};

#[tokio::main]
async fn main() -> ExitCode {
    let args = match Args::read(std::env::args_os()) {
        Ok(args) => args,
        Err(ConfigError::Line(error)) => error.exit(),
        Err(error @ (ConfigError::Unreadable { .. } | ConfigError::File { .. })) => {
            return Failure::usage(error).report();
        }
    };
    match start(args).await {
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
