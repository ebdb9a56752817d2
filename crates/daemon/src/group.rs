//! Command groups: which command a line names, and the help of a group that is named without one of its commands.

use std::io::Write;

use clap::Command;
use clap::error::{Error, ErrorKind};

/// The command that a line names, without the program's own name, as far as it names one. `root` is built on the way.
pub fn named(root: &mut Command, line: impl IntoIterator<Item = String>) -> &mut Command {
    root.build();
    let mut command = root;
    for word in line {
        if command.find_subcommand(&word).is_some() {
            command = command.find_subcommand_mut(&word).expect("it was found just now");
        }
    }
    command
}

/// Shows the help of the group that a line names, if that is all that is wrong with it, and says whether it did. Clap does so by itself only
/// where no variable sets a flag.
pub fn help(error: &Error, mut root: Command, line: impl IntoIterator<Item = String>) -> bool {
    let is_group = error.kind() == ErrorKind::MissingSubcommand;
    if is_group {
        // There is nobody to tell where standard error is closed.
        let _ = writeln!(std::io::stderr(), "{}", named(&mut root, line).render_help());
    }
    is_group
}
