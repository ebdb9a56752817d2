//! A program's configuration file: in TOML, each flag by its long name.
//!
//! A flag wins over its environment variable, that over the file, and the file over the default. What the file says is
//! put on the command line wherever neither a flag nor a variable says something, so that both mean the same and are
//! checked by the same rules.

use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::de::{DeTable, DeValue};

/// The id of the argument that names the file, a [`PathBuf`].
const CONFIG: &str = "config";

/// Why a command line and its file make no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line is wrong, or asks for help: clap's own error, which knows how to end the program.
    #[error(transparent)]
    Line(#[from] clap::Error),
    /// The file cannot be read.
    #[error("{}: {source}\nhint: check --config", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// What the file says cannot be meant.
    #[error("{}:{line}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The line, from one.
        line: usize,
        /// What is wrong, with the key and a hint.
        reason: String,
    },
}

/// Reads a command line together with the file that its argument `config` names.
///
/// `secret` are the flags whose values have no place in such a file.
///
/// # Errors
/// Any [`ConfigError`].
pub fn matches(
    command: &Command,
    line: impl IntoIterator<Item = OsString>,
    secret: &[&str],
) -> Result<ArgMatches, ConfigError> {
    let mut line: Vec<OsString> = line.into_iter().collect();
    // What is wrong with the line is told below, once the file has filled it in.
    let peek = command.clone().ignore_errors(true).try_get_matches_from(&line)?;
    if let Some(path) = peek.get_one::<PathBuf>(CONFIG) {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
        let file = File { path, text: &text, command, secret };
        let given =
            |id: &str| peek.value_source(id).is_some_and(|source| source != ValueSource::DefaultValue);
        let flags = file.flags(given)?;
        let place = line.len().min(1);
        line.splice(place..place, flags.into_iter().map(OsString::from));
    }
    Ok(command.clone().try_get_matches_from(line)?)
}

/// A file that is being read.
struct File<'a> {
    path: &'a Path,
    text: &'a str,
    command: &'a Command,
    secret: &'a [&'a str],
}

impl File<'_> {
    /// What the file adds to the command line: each key that is not `given` by a flag or a variable.
    fn flags(&self, given: impl Fn(&str) -> bool) -> Result<Vec<String>, ConfigError> {
        let table = DeTable::parse(self.text)
            .map_err(|error| self.wrong(error.span().unwrap_or_default(), error.message().to_owned()))?;
        let mut flags = Vec::new();
        for (key, value) in table.get_ref() {
            let wrong = |reason: String| self.wrong(key.span(), format!("{}: {reason}", key.get_ref()));
            let arg = self.arg(key.get_ref()).ok_or_else(|| wrong(self.unknown(key.get_ref())))?;
            let written = written(key.get_ref(), arg, value.get_ref()).map_err(&wrong)?;
            self.check(key.get_ref(), &written).map_err(&wrong)?;
            if !given(arg.get_id().as_str()) {
                flags.extend(written);
            }
        }
        Ok(flags)
    }

    /// The flags that the file may set.
    fn args(&self) -> impl Iterator<Item = (&str, &Arg)> {
        let long =
            |arg: &'_ Arg| arg.get_long().is_some_and(|long| !self.secret.contains(&long) && long != CONFIG);
        let args = self.command.get_arguments().filter(move |arg| !arg.is_hide_set() && long(arg));
        args.filter(|arg| matches!(arg.get_action(), ArgAction::Set | ArgAction::Append | ArgAction::SetTrue))
            .filter_map(|arg| Some((arg.get_long()?, arg)))
    }

    fn arg(&self, key: &str) -> Option<&Arg> {
        self.args().find(|(long, _)| *long == key).map(|(_, arg)| arg)
    }

    fn unknown(&self, key: &str) -> String {
        if self.secret.contains(&key) {
            return "a secret has no place in this file\nhint: name a file of its own that holds it"
                .to_owned();
        }
        let mut known: Vec<&str> = self.args().map(|(long, _)| long).collect();
        known.sort_unstable();
        format!("there is no such key\nhint: the keys are {}", known.join(", "))
    }

    /// Checks values by the rules of their flag alone: others may still be missing.
    fn check(&self, key: &str, written: &[String]) -> Result<(), String> {
        let line = std::iter::once("config").chain(written.iter().map(String::as_str));
        let Err(error) = self.command.clone().try_get_matches_from(line) else { return Ok(()) };
        let about_value = matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation);
        let flag = format!("--{key}");
        let is_this = matches!(
            error.get(ContextKind::InvalidArg),
            Some(ContextValue::String(arg)) if arg.split([' ', '=']).next() == Some(&flag)
        );
        if about_value && is_this { Err(reason(&error)) } else { Ok(()) }
    }

    fn wrong(&self, at: Range<usize>, reason: String) -> ConfigError {
        let before = self.text.get(..at.start).unwrap_or(self.text);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        ConfigError::File { path: self.path.to_owned(), line, reason }
    }
}

/// A value as it would be written on the command line.
fn written(key: &str, arg: &Arg, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let one = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Ok(format!("--{key}={text}")),
        DeValue::Integer(number) if number.radix() == 10 => Ok(format!("--{key}={}", number.as_str())),
        DeValue::Float(number) => Ok(format!("--{key}={}", number.as_str())),
        DeValue::Integer(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => Err(format!("it takes a text or a number, not this {}", value.type_str())),
    };
    match (arg.get_action(), value) {
        (ArgAction::SetTrue, DeValue::Boolean(true)) => Ok(vec![format!("--{key}")]),
        (ArgAction::SetTrue, DeValue::Boolean(false)) => Ok(Vec::new()),
        (ArgAction::SetTrue, _) => Err(format!("it takes true or false, not this {}", value.type_str())),
        (ArgAction::Append, DeValue::Array(values)) => {
            values.iter().map(|value| one(value.get_ref())).collect()
        }
        _ => Ok(vec![one(value)?]),
    }
}

/// What clap has against a value, in one line.
fn reason(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let first = text.lines().next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first).to_owned();
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) if !values.is_empty() => {
            format!("{first}\nhint: it is one of {}", values.join(", "))
        }
        _ => first,
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, CommandFactory, FromArgMatches, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        flags: Flags,
    }

    #[derive(Debug, PartialEq, Args)]
    struct Flags {
        #[arg(long, env = "ZORAI_TEST_CONFIG_FILE_SLOTS", value_parser = clap::value_parser!(u32).range(1..=9))]
        slots: Option<u32>,
        #[arg(long, default_value = "a")]
        name: String,
        #[arg(long)]
        folder: Vec<PathBuf>,
        #[arg(long)]
        open: bool,
        #[arg(long)]
        must: String,
        #[arg(long, requires = "name_of_pair")]
        pair: Option<String>,
        #[arg(long, requires = "pair")]
        name_of_pair: Option<String>,
        #[arg(long)]
        key: Option<String>,
        #[arg(long, hide = true)]
        hidden: bool,
    }

    fn read(text: &str, flags: &[&str]) -> Result<Flags, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        let line = ["program", "--config", path.to_str().unwrap()].into_iter().chain(flags.iter().copied());
        let matches = matches(&Program::command(), line.map(OsString::from), &["key"]);
        let matches = matches
            .map_err(|error| error.to_string().replace(&format!("{}", folder.path().display()), ""))?;
        Ok(Program::from_arg_matches(&matches).unwrap().flags)
    }

    #[test]
    fn flags_win_over_the_file_and_that_over_defaults() {
        let text = "slots = 3\nfolder = [\"/a\", \"/b\"]\nopen = true\nmust = \"m\"\npair = \"x\"\nname-of-pair = \"y\"";
        let flags = read(text, &["--slots", "4", "--must", "n"]).unwrap();
        let expected = Flags {
            slots: Some(4),
            name: "a".into(),
            folder: vec!["/a".into(), "/b".into()],
            open: true,
            must: "n".into(),
            pair: Some("x".into()),
            name_of_pair: Some("y".into()),
            key: None,
            hidden: false,
        };
        assert_eq!(flags, expected);
        assert_eq!(
            read("must = \"m\"\nfolder = \"/c\"\nopen = false", &["--folder", "/d"]).unwrap().folder,
            [PathBuf::from("/d")]
        );
    }

    #[test]
    fn what_is_wrong_is_told_by_file_line_and_key() {
        for (text, expected) in [
            (
                "must = \"m\"\n\nslots = 10",
                "/c.toml:3: slots: invalid value '10' for '--slots <SLOTS>': 10 is not in 1..=9",
            ),
            (
                "slot = 1",
                "/c.toml:1: slot: there is no such key\nhint: the keys are folder, must, name, name-of-pair, open, pair, slots",
            ),
            ("\nhidden = true", "/c.toml:2: hidden: there is no such key"),
            ("key = \"s\"", "/c.toml:1: key: a secret has no place in this file"),
            ("open = 1", "/c.toml:1: open: it takes true or false"),
            ("name = [\"a\"]", "/c.toml:1: name: it takes a text or a number, not this array"),
            ("folder = [[]]", "/c.toml:1: folder: it takes a text or a number"),
            ("must = \"m\"\nname =", "/c.toml:2: "),
            ("[node]\nslots = 1", "/c.toml:1: node: there is no such key"),
            ("", "--must"),
        ] {
            let error = read(text, &[]).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        let line = ["program", "--config", "/nowhere/c.toml", "--must", "m"].map(OsString::from);
        let error = matches(&Program::command(), line, &[]).unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/c.toml: No such file"), "{error}");
    }
}
