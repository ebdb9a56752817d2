//! `zorai-compute`: the command line of those who publish tasks.
//!
//! Standard output is data, standard error is talk; [`failure::Exit`] lists the exit codes. One file per command under
//! [`commands`]; what they share lies beside it.

mod cli;
mod commands;
mod content;
mod failure;
mod follow;
mod inference;
mod key;
mod listing;
mod money;
mod node_check;
mod plain;
mod proof;
mod receipt;
mod refusal;
mod relay;
mod rerun;
mod sse;
mod ui;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};

use crate::cli::Cli;
use crate::commands::dev::child::Program;
use crate::failure::{Exit, Failure};
use crate::ui::Ui;

/// How long threads may go on that cannot be interrupted, such as a read of the terminal, once everything else has ended.
const THREAD_GRACE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            Ui::new(false, false, false).failure(&Failure::failed(error));
            return Exit::Failed.into();
        }
    };
    let code = runtime.block_on(run());
    runtime.shutdown_timeout(THREAD_GRACE);
    code
}

async fn run() -> ExitCode {
    // `dev` runs the market's other programs as children of this very binary.
    let mut arguments = std::env::args_os();
    if let Some(program) = arguments.nth(1).and_then(|name| Program::of(&name)) {
        return Box::pin(program.run(arguments)).await;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if daemon::group::help(&error, Cli::command(), std::env::args().skip(1)) => {
            return Exit::Usage.into();
        }
        Err(mut error) => {
            cli::restore_usage(&mut error, std::env::args().skip(1));
            // Help and version are data and end well; clap knows which is which.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    let ui = Ui::new(cli.global.quiet, cli.global.verbose, cli.global.json);
    match Box::pin(commands::run(cli, ui.clone())).await {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            ui.failure(&failure);
            failure.exit().into()
        }
    }
}
