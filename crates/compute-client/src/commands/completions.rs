//! `completions`: for the user's shell.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::failure::Outcome;

/// Which shell.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  zorai-compute completions bash > ~/.local/share/bash-completion/completions/zorai-compute"
)]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes completions to standard output.
pub(crate) fn run(args: &Args) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "zorai-compute", &mut text);
    std::io::Write::write_all(&mut std::io::stdout().lock(), &text)?;
    Ok(())
}
