//! Diagnostics: to stderr, since stdout is for data.

use std::io::{self, IsTerminal, Write};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// The flags of logging, to flatten into a program's own.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// How log lines look.
    #[arg(
        long,
        env = "ZORAI_LOG_FORMAT",
        value_enum,
        default_value = "text",
        value_name = "FORMAT",
        global = true
    )]
    pub log_format: LogFormat,

    /// What to log: a level (error, warn, info, debug, trace), or rules such as "info,link=debug".
    #[arg(long, env = "ZORAI_LOG", default_value = "info", value_name = "LEVEL|RULES", global = true)]
    pub log_level: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people; coloured on a terminal unless `NO_COLOR` is set.
    Text,
    /// One JSON object per line.
    Json,
}

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `--log-level` holds no level and no rules.
    #[error(
        "--log-level {text:?}: {reason}\nhint: give a level such as info, or rules such as \"info,link=debug\""
    )]
    Rules {
        /// What was written.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This process logs already.
    #[error("logging has been started already")]
    Started,
}

/// Starts logging for the whole process.
pub fn init_logging(args: &LogArgs) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(&args.log_level)
        .map_err(|error| LogError::Rules { text: args.log_level.clone(), reason: error.to_string() })?;
    // The library reports what it cannot log with `eprintln!`, which panics where standard error is closed.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Lines(io::stderr()))
        .log_internal_errors(false);
    let started = match args.log_format {
        LogFormat::Text => {
            let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            builder.with_ansi(io::stderr().is_terminal() && !no_color).finish().try_init()
        }
        LogFormat::Json => builder.json().with_ansi(false).finish().try_init(),
    };
    started.map_err(|_| LogError::Started)
}

/// Writes events, one line each, whatever stands in their fields. What cannot be written is lost: a program goes on when
/// nobody reads its log any more.
struct Lines<W>(W);

impl<W: Write> Write for Lines<W> {
    /// Takes one event, as the library writes each at once, with a line break behind it.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let (line, end) = match event.split_last() {
            Some((b'\n', line)) => (line, "\n"),
            Some(_) | None => (event, ""),
        };
        let mut escaped = Vec::with_capacity(event.len());
        for &byte in line {
            match byte {
                b'\n' => escaped.extend_from_slice(b"\\n"),
                b'\r' => escaped.extend_from_slice(b"\\r"),
                // The library escapes other control characters itself, and colours are made of them.
                _ => escaped.push(byte),
            }
        }
        escaped.extend_from_slice(end.as_bytes());
        let _ = self.0.write_all(&escaped);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn an_event_is_one_line_and_never_fails() {
        let mut written = Vec::new();
        Lines(&mut written).write_all(b"reason=a\r\n2026 INFO forged\n").unwrap();
        assert_eq!(written, b"reason=a\\r\\n2026 INFO forged\n");
        Lines(Broken).write_all(b"lost\n").unwrap();
        Lines(Broken).flush().unwrap();
    }

    #[test]
    fn bad_rules_are_refused_with_a_hint() {
        let args = LogArgs { log_format: LogFormat::Text, log_level: "link=loud".to_owned() };
        let error = init_logging(&args).unwrap_err();
        assert!(error.to_string().contains("hint:"), "{error}");
    }
}
