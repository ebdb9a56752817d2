//! How a command ends: the exit codes, and errors with hints.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// The exit codes, all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// The task or the request failed.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// Not authorised.
    NotAuthorised = 3,
    /// The relay cannot be reached.
    Unreachable = 4,
    /// A verification failed.
    Unverified = 5,
    /// Ended by Ctrl-C.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        // The discriminants are the codes.
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked: what went wrong, what to do, and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    hints: Vec<String>,
    code: Option<String>,
}

/// The result of everything that can fail a command.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure with an exit code of its own.
    pub(crate) fn new(exit: Exit, message: impl fmt::Display) -> Self {
        let text = message.to_string();
        // Libraries put their hints on lines of their own.
        let mut lines = text.lines();
        let mut this = Self { exit, message: String::new(), hints: Vec::new(), code: None };
        this.message = lines.next().unwrap_or_default().to_owned();
        for line in lines {
            match line.strip_prefix("hint: ") {
                Some(hint) => this.hints.push(hint.to_owned()),
                None => {
                    this.message.push('\n');
                    this.message.push_str(line);
                }
            }
        }
        this
    }

    /// The task or the request failed.
    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// Wrong usage.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Something is not what it claims to be.
    pub(crate) fn unverified(message: impl fmt::Display) -> Self {
        Self::new(Exit::Unverified, message)
    }

    /// Adds what to do.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hints.push(hint.to_string());
        self
    }

    /// Adds the stable word that the other side gave for it.
    #[must_use]
    pub(crate) fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// The other side's stable word for it, where it gave one.
    pub(crate) fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// What went wrong.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// What to do.
    pub(crate) fn hints(&self) -> &[String] {
        &self.hints
    }
}

/// Names what failed, where the cause alone does not.
pub(crate) trait Context<T> {
    /// The failure is `what: cause`, exit code 1.
    fn or_failed(self, what: impl fmt::Display) -> Outcome<T>;
    /// The failure is `what: cause`, exit code 2.
    fn or_usage(self, what: impl fmt::Display) -> Outcome<T>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn or_failed(self, what: impl fmt::Display) -> Outcome<T> {
        self.map_err(|cause| Failure::failed(format_args!("{what}: {cause}")))
    }

    fn or_usage(self, what: impl fmt::Display) -> Outcome<T> {
        self.map_err(|cause| Failure::usage(format_args!("{what}: {cause}")))
    }
}

/// Writing to standard output: a reader that went away has what it wanted.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(Exit::Done, "");
        }
        Self::failed(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_of_libraries_become_hints() {
        let failure = Failure::usage("no key\nhint: chmod 600 key").hint("or another");
        assert_eq!(failure.message(), "no key");
        assert_eq!(failure.hints(), ["chmod 600 key", "or another"]);
    }

    #[test]
    fn the_codes_are_the_documented_ones() {
        let codes = [
            Exit::Done,
            Exit::Failed,
            Exit::Usage,
            Exit::NotAuthorised,
            Exit::Unreachable,
            Exit::Unverified,
            Exit::Interrupted,
        ];
        assert_eq!(codes.map(|exit| exit as u8), [0, 1, 2, 3, 4, 5, 130]);
    }
}
