//! The market's other programs, as hidden commands of this one.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::Parser;
use computenode::engines::embedded;
use daemon::{LogArgs, Shutdown, ShutdownArgs};

use crate::failure::Exit;

/// One of the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// `compute-relay`.
    Relay,
    /// `compute-agent`.
    Agent,
    /// `compute-node`.
    Node,
    /// The engine of a model, which the node starts.
    Engine,
}

/// The node's flags, as its own program has them.
#[derive(Debug, Parser)]
#[command(name = "compute-node", version)]
struct NodeCli {
    #[command(flatten)]
    node: computenode::Args,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    shutdown: ShutdownArgs,
}

impl Program {
    /// The program that a first argument asks for, if it does.
    pub(crate) fn of(argument: &OsStr) -> Option<Self> {
        [Self::Relay, Self::Agent, Self::Node, Self::Engine]
            .into_iter()
            .find(|program| argument == program.argument())
    }

    /// The first argument that asks for it.
    pub(crate) fn argument(self) -> &'static str {
        match self {
            Self::Relay => "__relay",
            Self::Agent => "__agent",
            Self::Node => "__node",
            Self::Engine => embedded::ARGUMENT,
        }
    }

    /// Its name, for people and log files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Agent => "agent",
            Self::Node => "node",
            Self::Engine => "engine",
        }
    }

    /// Runs it with its own flags until it is told to end.
    pub(crate) async fn run(self, arguments: impl Iterator<Item = OsString>) -> ExitCode {
        let arguments = std::iter::once(OsString::from(self.name())).chain(arguments);
        let ended = match self {
            Self::Relay => Box::pin(relay(arguments)).await,
            Self::Agent => Box::pin(agent(arguments)).await,
            Self::Node => Box::pin(node(arguments)).await,
            // It has a name for itself.
            Self::Engine => Box::pin(embedded::run(arguments.skip(1))).await.map_err(Into::into),
        };
        match ended {
            Ok(()) => Exit::Done.into(),
            Err(error) => {
                crate::ui::Ui::new(false, false, false)
                    .failure(&crate::failure::Failure::failed(format_args!("{error:#}")));
                Exit::Failed.into()
            }
        }
    }
}

async fn relay(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    computerelay::serve(computerelay::Args::try_parse_from(arguments)?).await
}

async fn agent(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let args = computeagent::Args::try_parse_from(arguments)?;
    daemon::init_logging(&args.log)?;
    let shutdown = args.shutdown;
    let config = args.into_config(|name| std::env::var(name).ok())?;
    let shutdown = Shutdown::install(shutdown)?;
    Ok(computeagent::build(config)?.run(shutdown.token()).await?)
}

async fn node(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let cli = NodeCli::try_parse_from(arguments)?;
    daemon::init_logging(&cli.log)?;
    let shutdown = Shutdown::install(cli.shutdown)?;
    let node = computenode::Node::build(cli.node.into()).await?;
    Ok(node.run(shutdown.token()).await?)
}
