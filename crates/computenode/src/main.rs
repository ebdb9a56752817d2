//! The program `compute-node`: flags, logging and signals around [`computenode::Node`].

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use computenode::engines::embedded;
use computenode::{Args, Config, Drain, Node};
use daemon::config_file::{self, ConfigError};
use daemon::{Failure, LogArgs, Shutdown, ShutdownArgs};

/// Runs tasks for the compute agent on this host.
///
/// The agent finds the node by its address and proves itself with the token in the node's token file. Whoever has that
/// token can run programs here, sandboxed and within limits: keep the node on loopback.
#[derive(Parser)]
#[command(name = "compute-node", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    action: Option<Action>,

    /// A TOML file that sets flags by their long names, such as slots = 4. Flags and variables win over it.
    #[arg(long, env = "ZORAI_NODE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    node: Args,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    shutdown: ShutdownArgs,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Action {
    /// Say what this host can do as a compute node, and how to mend what it cannot; exit status 1 if it cannot serve.
    Check {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Tell the node that runs here to finish its tasks and to take no more. It takes some again after `resume`, or once
    /// it was restarted.
    Drain,
    /// Tell the node that runs here to take tasks again.
    Resume,
}

const EXAMPLES: &str = "\
Examples:
  Run with the defaults, for an agent of the same user:
    compute-node
  Let tasks read models from a folder, and run four at once:
    compute-node --allow-dir /srv/models --slots 4
  See what this host can do, and what is missing:
    compute-node check
  Ask how it is:
    curl -H \"Authorization: Bearer $(cat ~/.local/share/zorai/node/compute-token)\" \\
      http://127.0.0.1:8645/status";

/// The level of a node that serves, and that of an action whose output says what it found.
const DEFAULT_LEVEL: &str = "info";
const QUIET_LEVEL: &str = "warn";

/// How long threads may go on that cannot be interrupted, such as a compilation, once everything else has ended.
const THREAD_GRACE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // First, while this is the only thread. What this program may do beyond its user's rights, to let containers out, is its
    // own: the engines that it starts get none of it. Kernels that refuse this know no such rights.
    let _ = rustix::thread::clear_ambient_capability_set();
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == embedded::ARGUMENT).is_some() {
        return match serve_model(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(),
        };
    }
    match read_cli().and_then(start) {
        Ok(status) => status,
        Err(failure) => failure.report(),
    }
}

/// Is the engine of one model, which the node starts.
fn serve_model(arguments: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::other)?;
    let ended = runtime.block_on(embedded::run(arguments)).map_err(Failure::other);
    runtime.shutdown_timeout(THREAD_GRACE);
    ended
}

/// Reads flags, variables and the configuration file. Ends the process where clap has something to say.
fn read_cli() -> Result<Cli, Failure> {
    // Flags may stand before or after the action.
    let command = Cli::command().mut_args(|arg| arg.global(true));
    match config_file::matches(&command, std::env::args_os(), &[]) {
        Ok(matches) => Ok(Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())),
        Err(ConfigError::Line(error)) => error.exit(),
        Err(error @ (ConfigError::Unreadable { .. } | ConfigError::File { .. })) => {
            Err(Failure::usage(error))
        }
    }
}

fn start(mut cli: Cli) -> Result<ExitCode, Failure> {
    if cli.action.is_some() && cli.log.log_level == DEFAULT_LEVEL {
        QUIET_LEVEL.clone_into(&mut cli.log.log_level);
    }
    daemon::init_logging(&cli.log).map_err(Failure::usage)?;
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::other)?;
    let ended = runtime.block_on(async {
        let config = Config::from(cli.node);
        match cli.action {
            None => run(config, cli.shutdown).await.map(|()| ExitCode::SUCCESS),
            Some(Action::Check { json }) => check(&config, json).await,
            Some(Action::Drain) => set_draining(&config, Drain::Begin).await,
            Some(Action::Resume) => set_draining(&config, Drain::End).await,
        }
    });
    runtime.shutdown_timeout(THREAD_GRACE);
    ended
}

async fn run(config: Config, shutdown: ShutdownArgs) -> Result<(), Failure> {
    let shutdown = Shutdown::install(shutdown).map_err(Failure::other)?;
    let node = Node::build(config)
        .await
        .map_err(|error| if error.is_usage() { Failure::usage(error) } else { Failure::other(error) })?;
    node.run(shutdown.token()).await.map_err(Failure::other)
}

async fn check(config: &Config, json: bool) -> Result<ExitCode, Failure> {
    let report = computenode::check(config).await;
    let text = if json {
        serde_json::to_string_pretty(&report).map(|json| json + "\n").map_err(Failure::other)?
    } else {
        report.to_string()
    };
    std::io::stdout().write_all(text.as_bytes()).map_err(Failure::other)?;
    Ok(if report.can_serve { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn set_draining(config: &Config, drain: Drain) -> Result<ExitCode, Failure> {
    let report = computenode::set_draining(config, drain).await.map_err(Failure::other)?;
    let told = match drain {
        Drain::Begin => "draining: no more tasks are taken",
        Drain::End => "taking tasks again",
    };
    writeln!(std::io::stdout(), "{told}; {} running", report.busy).map_err(Failure::other)?;
    Ok(ExitCode::SUCCESS)
}
