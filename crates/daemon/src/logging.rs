//! Diagnostics: to stderr, since stdout is for data.

use std::io::IsTerminal;

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
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match args.log_format {
        LogFormat::Text => {
            let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            builder.with_ansi(std::io::stderr().is_terminal() && !no_color).finish().try_init()
        }
        LogFormat::Json => builder.json().with_ansi(false).finish().try_init(),
    };
    started.map_err(|_| LogError::Started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_rules_are_refused_with_a_hint() {
        let args = LogArgs { log_format: LogFormat::Text, log_level: "link=loud".to_owned() };
        let error = init_logging(&args).unwrap_err();
        assert!(error.to_string().contains("hint:"), "{error}");
    }
}
