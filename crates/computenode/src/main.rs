//! The program `compute-node`: flags, logging and signals around [`computenode::Node`].

use std::time::Duration;

use clap::Parser;
use computenode::{Args, Node};
use daemon::{LogArgs, Shutdown, ShutdownArgs};

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
    curl -H \"Authorization: Bearer $(cat ~/.local/share/zorai/node/compute-token)\" http://127.0.0.1:8645/status";

/// How long threads may go on that cannot be interrupted, such as a compilation, once everything else has ended.
const THREAD_GRACE: Duration = Duration::from_secs(1);

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    daemon::init_logging(&cli.log)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(run(cli));
    runtime.shutdown_timeout(THREAD_GRACE);
    ended
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let shutdown = Shutdown::install(cli.shutdown)?;
    let node = Node::build(cli.node.into()).await?;
    node.run(shutdown.token()).await?;
    Ok(())
}
