//! `compute-agent`: offers this machine's compute node to a relay.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use computeagent::{Args, EarningsArgs, EarningsError, RunError, build};
use daemon::config_file::ConfigError;
use daemon::{Failure, Shutdown, init_logging};

#[tokio::main]
async fn main() -> ExitCode {
    // A word of its own, as none of the agent's flags is needed for it.
    let mut line = std::env::args_os().skip(1);
    if line.next().is_some_and(|word| word == "earnings") {
        return match earnings(line).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(),
        };
    }
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

async fn earnings(line: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    let name = OsString::from("compute-agent earnings");
    let args = EarningsArgs::parse_from(std::iter::once(name).chain(line));
    let report = args.report().await.map_err(|error| match error {
        EarningsError::NoFolder(_) => Failure::usage(error),
        EarningsError::Book(_) | EarningsError::Json(_) => Failure::other(error),
    })?;
    std::io::stdout().write_all(report.as_bytes()).map_err(Failure::other)
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
