//! `compute-relay`: parses the flags and serves.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    computerelay::serve(computerelay::Args::parse()).await
}
