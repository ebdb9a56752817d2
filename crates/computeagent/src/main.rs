//! `compute-agent`: offers this machine's compute node to a relay.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use computeagent::{Args, EarningsArgs, EarningsError, RunError, UnstakeArgs, build};
use daemon::config_file::ConfigError;
use daemon::{Failure, Shutdown, init_logging};

#[tokio::main]
async fn main() -> ExitCode {
    // A word of its own, for what is done while the agent does not run, or beside it.
    let mut line = std::env::args_os().skip(1);
    let word = line.next();
    let ended = match word.as_deref().and_then(OsStr::to_str) {
        Some("earnings") => earnings(line).await,
        Some("unstake") => Box::pin(unstake(line)).await,
        Some(_) | None => match read(Args::read(std::env::args_os())) {
            Ok(args) => Box::pin(start(args)).await,
            Err(failure) => Err(failure),
        },
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// What was read of a command line; where there is nothing to go on with, the program ends in clap's way.
fn read<T>(args: Result<T, ConfigError>) -> Result<T, Failure> {
    args.map_err(|error| match error {
        ConfigError::Line(error) => error.exit(),
        ConfigError::Unreadable { .. } | ConfigError::File { .. } => Failure::usage(error),
    })
}

async fn unstake(line: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    let name = OsString::from("compute-agent unstake");
    let args = read(UnstakeArgs::read(std::iter::once(name).chain(line)))?;
    let done = args.run(|name| std::env::var(name).ok()).await;
    let report =
        done.map_err(|error| if error.is_usage() { Failure::usage(error) } else { Failure::other(error) })?;
    std::io::stdout().write_all(report.as_bytes()).map_err(Failure::other)
}

async fn earnings(line: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    let name = OsString::from("compute-agent earnings");
    let args = EarningsArgs::parse_from(std::iter::once(name).chain(line));
    let report = args.report().await.map_err(|error| match error {
        EarningsError::NoFolder(_) | EarningsError::ManyFolders(_) => Failure::usage(error),
        EarningsError::Book(_) | EarningsError::Json(_) => Failure::other(error),
    })?;
    if report.is_empty() {
        // Whoever does not read it still sees that there is no report.
        let _ = writeln!(
            std::io::stderr(),
            "no settled task has ended in these days; --days N looks further back"
        );
    }
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
