//! The program `market-bench`: what the market's store, scheduler and relay cost, against the floors of the same machine.

mod floor;
mod floor_postgres;
mod layers;
mod pick;
mod publish;
mod reads;
mod relay;
mod report;
mod tasks;
mod timing;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use serde_json::json;
use store::{Sqlite, Store};
use tempfile::TempDir;

use crate::reads::Filled;
use crate::relay::Folder;
use crate::report::Table;
use crate::tasks::Requesters;

/// The smaller of two stores that are compared has this part of the larger one's tasks.
const TENTH: u64 = 10;
/// Ids of a filled store that are kept for reading.
const SAMPLE: usize = 10_000;

/// Measures the market against the floors of the machine and its disk, in one run.
///
/// Prints tables, and writes the same as JSON.
#[derive(Parser)]
#[command(name = "market-bench", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    what: What,

    /// Where to write the figures as JSON.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,

    /// A folder on the disk to measure; what is made in it is removed. [default: the folder of temporary files]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  Everything, with a million tasks stored:
    market-bench all --relay target/release/compute-relay --stored 1000000 --json bench.json
  Publications alone, on PostgreSQL too:
    market-bench publish --postgres postgres://market@%2Fvar%2Frun%2Fpostgresql/empty";

#[derive(Subcommand)]
enum What {
    /// Durable signed publications in a second, against raw databases and files.
    Publish(Publish),
    /// What one publication costs, layer by layer.
    Layers(Layers),
    /// Single tasks and pages of listings, with a tenth of the tasks stored and with all.
    Reads(Reads),
    /// A relay's start and memory with no task, a tenth of the tasks and all.
    Start(Start),
    /// The scheduler's choice among live hosts.
    Pick(Pick),
    /// All of these.
    All(All),
}

#[derive(Args)]
struct Publish {
    /// Publications in each run.
    #[arg(long, default_value_t = 20_000, value_name = "N")]
    tasks: usize,
    /// Runs of each kind, in turn.
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: usize,
    /// Callers at the same time.
    #[arg(long, value_delimiter = ',', default_value = "64,256", value_name = "N,...", value_parser = callers)]
    callers: Vec<usize>,
    /// An empty PostgreSQL database to measure besides.
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
}

#[derive(Args)]
struct Layers {
    /// Publications whose layers are measured.
    #[arg(long, default_value_t = 20_000, value_name = "N")]
    layer_tasks: usize,
}

#[derive(Args)]
struct Stored {
    /// Tasks in the larger store.
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u64).range(100_000..))]
    stored: u64,
}

#[derive(Args)]
struct Reads {
    #[command(flatten)]
    stored: Stored,
    /// Reads of each kind on each store.
    #[arg(long, default_value_t = 5_000, value_name = "N")]
    reads: usize,
}

#[derive(Args)]
struct Start {
    #[command(flatten)]
    stored: Stored,
    /// The program `compute-relay`, built with --release.
    #[arg(long, value_name = "FILE")]
    relay: PathBuf,
}

#[derive(Args)]
struct Pick {
    /// Live hosts.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000], value_name = "N,...")]
    hosts: Vec<u64>,
    /// Picks with each number of hosts.
    #[arg(long, default_value_t = 200_000, value_name = "N")]
    picks: usize,
}

#[derive(Args)]
struct All {
    #[command(flatten)]
    publish: Publish,
    #[command(flatten)]
    layers: Layers,
    #[command(flatten)]
    reads: Reads,
    #[command(flatten)]
    pick: Pick,
    /// The program `compute-relay`, built with --release; without it, its start is not measured.
    #[arg(long, value_name = "FILE")]
    relay: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let dir = match &cli.dir {
        Some(dir) => TempDir::new_in(dir),
        None => TempDir::new(),
    };
    let dir = dir.context("cannot make a folder to work in")?;
    let before = load();
    let tables = measure(&cli.what, dir.path()).await?;
    let machine = machine(&before)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{machine}")?;
    for table in &tables {
        writeln!(out, "\n{}", table.markdown())?;
    }
    if let Some(path) = &cli.json {
        let command: Vec<_> = std::env::args().skip(1).collect();
        let tables: Vec<_> = tables.iter().map(Table::json).collect();
        let report = json!({ "command": command, "machine": machine, "tables": tables });
        std::fs::write(path, format!("{report:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

async fn measure(what: &What, dir: &Path) -> anyhow::Result<Vec<Table>> {
    match what {
        What::Publish(publish) => publishes(dir, publish).await,
        What::Layers(layers) => Ok(vec![layers::measure(dir, layers.layer_tasks).await?]),
        What::Reads(reads) => {
            let filled = fill_both(dir, reads.stored.stored).await?;
            Ok(vec![reads::measure(&filled, reads.reads).await?])
        }
        What::Start(start) => {
            close(fill_both(dir, start.stored.stored).await?).await;
            Ok(vec![starts(dir, start.stored.stored, &start.relay).await?])
        }
        What::Pick(pick) => Ok(vec![pick::measure(&pick.hosts, pick.picks)?]),
        What::All(all) => {
            let mut tables = publishes(dir, &all.publish).await?;
            tables.push(layers::measure(dir, all.layers.layer_tasks).await?);
            let filled = fill_both(dir, all.reads.stored.stored).await?;
            tables.push(reads::measure(&filled, all.reads.reads).await?);
            close(filled).await;
            if let Some(relay) = &all.relay {
                tables.push(starts(dir, all.reads.stored.stored, relay).await?);
            }
            tables.push(pick::measure(&all.pick.hosts, all.pick.picks)?);
            Ok(tables)
        }
    }
}

async fn publishes(dir: &Path, args: &Publish) -> anyhow::Result<Vec<Table>> {
    let plan = publish::Plan { tasks: args.tasks, rounds: args.rounds, callers: args.callers.clone() };
    let mut tables = vec![publish::sqlite(dir, &plan).await?];
    if let Some(url) = &args.postgres {
        tables.push(publish::postgres(dir, &plan, url).await?);
    }
    Ok(tables)
}

async fn starts(dir: &Path, stored: u64, relay: &Path) -> anyhow::Result<Table> {
    let folders: Vec<_> =
        [0, stored / TENTH, stored].map(|tasks| Folder { path: folder(dir, tasks), tasks }).into();
    let relay = relay.to_owned();
    tokio::task::spawn_blocking(move || relay::measure(&relay, &folders)).await?
}

/// Two stores, with a tenth of the tasks and with all.
async fn fill_both(dir: &Path, stored: u64) -> anyhow::Result<Vec<Filled>> {
    let mut both = Vec::new();
    for tasks in [stored / TENTH, stored] {
        let requesters = Requesters::new()?;
        let store: Arc<dyn Store> = Arc::new(Sqlite::open(folder(dir, tasks)).await?);
        let ids = requesters.fill(store.clone(), tasks, SAMPLE).await?;
        both.push(Filled { store, tasks, ids, requesters: requesters.addresses().collect() });
    }
    Ok(both)
}

async fn close(stores: Vec<Filled>) {
    for filled in stores {
        filled.store.close().await;
    }
}

fn folder(dir: &Path, tasks: u64) -> PathBuf {
    dir.join(format!("stored-{tasks}"))
}

/// The machine in words, with how busy it was before and is now.
fn machine(load_before: &str) -> anyhow::Result<String> {
    let line = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("unknown").to_owned();
        line.trim_start_matches([' ', '\t', ':']).to_owned()
    };
    Ok(format!(
        "{}, {} processors, {} memory, Linux {}; load before {load_before}, after {}",
        line("/proc/cpuinfo", "model name"),
        std::thread::available_parallelism()?,
        line("/proc/meminfo", "MemTotal:"),
        line("/proc/sys/kernel/osrelease", ""),
        load()
    ))
}

/// The load average of the last minute.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}

fn callers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(callers) if callers > 0 => Ok(callers),
        Ok(_) => Err("at least one".to_owned()),
        Err(error) => Err(format!("{error}")),
    }
}
