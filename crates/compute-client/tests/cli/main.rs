//! The command line as its users see it: standard output, standard error and the exit code together, against a scripted relay.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::print_stderr, reason = "a skipped test says why")]

mod again;
mod arbiter;
mod asking;
mod chat;
mod data;
mod deep;
mod engine;
mod lies;
mod logs;
mod money;
mod program;
mod providers;
mod publish;
mod resume;
mod support;
mod usage;
mod watch;
