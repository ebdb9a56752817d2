//! How a program says that it cannot do what it was started for: `error: …`, its hints, and an exit status.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

/// The exit status of a wrong command line or configuration, as clap's.
const USAGE: u8 = 2;

/// Why a program ends without having done its work.
#[derive(Debug)]
pub struct Failure {
    message: String,
    status: u8,
}

impl Failure {
    /// What the user told the program cannot be; the exit status is 2. Hints are lines of the message.
    pub fn usage(message: impl Display) -> Self {
        Self { message: message.to_string(), status: USAGE }
    }

    /// Anything else; the exit status is 1.
    pub fn other(message: impl Display) -> Self {
        Self { message: message.to_string(), status: 1 }
    }

    /// Writes the error to standard error; the exit status is what `main` returns.
    pub fn report(self) -> ExitCode {
        // Whoever does not read it still sees the status.
        let _ = writeln!(std::io::stderr(), "error: {}", self.message);
        ExitCode::from(self.status)
    }
}
