//! The program `compute-node`: flags, logging and signals around [`computenode::Node`].

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use computenode::{Args, Node};
use daemon::{Failure, LogArgs, Shutdown, ShutdownArgs};

/// Runs tasks for the compute agent on this host.
///
/// The agent finds the node by its address and proves itself with the token in the node's token file. Whoever has that
/// token can run programs here, sandboxed and within limits: keep the node on loopback.
#[derive(Parser)]
#[command(name = "compute-node", version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    node: Args,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    shutdown: ShutdownArgs,
}

const EXAMPLES: &str = "\
Examples:
  Run with the defaults, for an agent of the same user:
    compute-node
  Let tasks read models from a folder, and run four at once:
    compute-node --allow-dir /srv/models --slots 4
  Ask how it is:
    curl -H \"Authorization: Bearer $(cat ~/.local/share/zorai/node/compute-token)\" \\
      http://127.0.0.1:8645/status";

/// How long threads may go on that cannot be interrupted, such as a compilation, once everything else has ended.
const THREAD_GRACE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn start(cli: Cli) -> Result<(), Failure> {
    daemon::init_logging(&cli.log).map_err(Failure::usage)?;
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::other)?;
    let ended = runtime.block_on(run(cli));
    runtime.shutdown_timeout(THREAD_GRACE);
    ended
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let shutdown = Shutdown::install(cli.shutdown).map_err(Failure::other)?;
    let node = Node::build(cli.node.into())
        .await
        .map_err(|error| if error.is_usage() { Failure::usage(error) } else { Failure::other(error) })?;
    node.run(shutdown.token()).await.map_err(Failure::other)
}
