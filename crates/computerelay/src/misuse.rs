//! What the operator asked for and cannot be, told apart from what fails while it is done.

use std::fmt;

use daemon::Failure;

/// The flags, the environment or a file that they name are wrong: the program ends with status 2.
#[derive(Debug)]
pub struct Misuse(String);

impl Misuse {
    /// The fault, its causes, and what to do about it.
    pub(crate) fn new(error: impl Into<anyhow::Error>, hint: impl fmt::Display) -> Self {
        Self(told(&error.into().context(format!("\nhint: {hint}"))))
    }

    /// A fault without a cause.
    pub(crate) fn because(fault: impl fmt::Display, hint: impl fmt::Display) -> Self {
        Self(format!("{fault}\nhint: {hint}"))
    }
}

/// It says itself what to do.
impl From<daemon::LogError> for Misuse {
    fn from(error: daemon::LogError) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misuse {}

/// How the program ends with an error.
pub(crate) fn failure(error: &anyhow::Error) -> Failure {
    if error.is::<Misuse>() { Failure::usage(told(error)) } else { Failure::other(told(error)) }
}

/// An error with its causes, each said once, and behind them the hints.
fn told(error: &anyhow::Error) -> String {
    let (mut text, mut hints) = (String::new(), String::new());
    for cause in error.chain().map(ToString::to_string) {
        let (said, hint) = cause.split_once("\nhint: ").unwrap_or((&cause, ""));
        if !text.contains(said) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(said);
        }
        if !hint.is_empty() && !hints.contains(hint) {
            hints.push_str("\nhint: ");
            hints.push_str(hint);
        }
    }
    text + &hints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_come_before_hints_and_each_once() {
        let cause = anyhow::anyhow!("no such file\nhint: look elsewhere");
        let error = cause.context("a.pem: no such file").context("cannot start\nhint: make one");
        assert_eq!(told(&error), "cannot start: a.pem: no such file\nhint: make one\nhint: look elsewhere");
        let misuse = Misuse::new(error, "give --tls-cert");
        assert_eq!(
            misuse.to_string(),
            "cannot start: a.pem: no such file\nhint: give --tls-cert\nhint: make one\nhint: look elsewhere"
        );
    }
}
