//! How this program talks to the copies of itself that it starts: a line of JSON on their standard output for each thing that they have to
//! say, a line on their standard input where they wait for a word, and the end of that input when they are to end.

use std::io::{BufRead as _, Read as _, StdinLock, Write as _, stdin};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, ensure};
use clap::Subcommand;
use serde::Serialize;
use tokio::sync::oneshot;

use super::{load, sessions, upstream};

/// What a copy of this program does.
#[derive(Subcommand)]
pub(crate) enum Part {
    /// An engine.
    Upstream(upstream::Pace),
    /// Clients.
    Load(load::Load),
    /// Providers' hosts.
    Sessions(sessions::Hosts),
}

impl Part {
    /// Plays the part to its end.
    pub(crate) async fn play(self) -> anyhow::Result<()> {
        match self {
            Self::Upstream(pace) => upstream::serve(pace).await,
            Self::Load(load) => load.run().await,
            Self::Sessions(hosts) => hosts.run().await,
        }
    }
}

/// Where to connect to.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Target {
    /// Where it listens.
    #[arg(long)]
    pub(super) address: SocketAddr,
    /// Its certificate, where it speaks TLS.
    #[arg(long)]
    pub(super) certificate: Option<PathBuf>,
}

/// Says something to who started this process.
pub(super) fn say(what: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    out.flush().context("nobody listens")
}

/// Waits for the word to go on.
pub(super) async fn told() -> anyhow::Result<()> {
    let line = from_input(|input| input.read_line(&mut String::new())).await??;
    ensure!(line > 0, "nobody says to go on");
    Ok(())
}

/// Resolves once nobody holds the other end of this process's standard input any more.
pub(super) async fn orphaned() {
    // An error is an end, too.
    let _ = from_input(|input| input.read_to_end(&mut Vec::new())).await;
}

/// Reads on a thread of its own, for which the process does not wait as it ends.
async fn from_input<T: Send + 'static>(
    read: impl FnOnce(&mut StdinLock<'static>) -> T + Send + 'static,
) -> anyhow::Result<T> {
    let (done, read_all) = oneshot::channel();
    thread::spawn(move || {
        // Nobody waits any more once this process ends.
        let _ = done.send(read(&mut stdin().lock()));
    });
    Ok(read_all.await?)
}
