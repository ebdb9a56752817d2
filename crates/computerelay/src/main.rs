//! `compute-relay`: parses the command line and does what it says.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    computerelay::Cli::parse().run().await
}
