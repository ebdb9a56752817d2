//! The program `market-bench`: what the market's store, scheduler and relay cost, against the floors of the same machine.

mod containers;
mod floor;
mod floor_postgres;
mod inference;
mod layers;
mod pick;
mod place;
mod publish;
mod reads;
mod relay;
mod report;
mod runtimes;
mod tasks;
mod timing;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use serde_json::json;
use store::Options;
use tempfile::TempDir;

use crate::place::Backend;
use crate::reads::Filled;
use crate::relay::Stored;
use crate::report::{Cell, Table};
use crate::tasks::{Requesters, filling};

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
    command: Doing,

    /// Where to write the figures as JSON.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,

    /// A folder on the disk to measure; what is made in it is removed. [default: the folder of temporary files]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// A PostgreSQL database to measure besides, in schemas market_bench_*, which are removed.
    #[arg(long, global = true, value_name = "URL")]
    postgres: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  Everything, with a million tasks stored:
    market-bench all --relay target/release/compute-relay --stored 1000000 --json bench.json
  Publications alone, on PostgreSQL too:
    market-bench publish --postgres postgres://market@%2Fvar%2Frun%2Fpostgresql/market
  A look at whether everything runs:
    market-bench all --quick";

#[derive(Subcommand)]
enum Doing {
    #[command(flatten)]
    Measure(What),
    /// A part in the measurement of inference, which this program gives to copies of itself.
    #[command(hide = true, subcommand)]
    InferencePart(inference::Part),
}

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
    /// The node's runtimes: how fast programs start, and how many texts are embedded in a second.
    Runtimes(runtimes::Runtimes),
    /// Inference from a client to an engine, over relay, agent and node, against nginx and rathole.
    Inference(inference::Inference),
    /// All of these but the runtimes and inference.
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
}

#[derive(Args)]
struct Layers {
    /// Publications whose layers are measured.
    #[arg(long, default_value_t = 20_000, value_name = "N")]
    layer_tasks: usize,
}

#[derive(Args)]
struct Filling {
    /// Tasks in the larger store.
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u64).range(10_000..))]
    stored: u64,
}

#[derive(Args)]
struct Reads {
    #[command(flatten)]
    filling: Filling,
    /// Reads of each kind on each store.
    #[arg(long, default_value_t = 5_000, value_name = "N")]
    reads: usize,
}

#[derive(Args)]
struct Start {
    #[command(flatten)]
    filling: Filling,
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
    /// Everything in about a minute, to see that it runs: too short for figures to rely on, and the other sizes do not count.
    #[arg(long)]
    quick: bool,
}

impl All {
    /// As short as it can be.
    fn shorten(&mut self) {
        (self.publish.tasks, self.publish.rounds) = (2_000, 1);
        self.layers.layer_tasks = 2_000;
        (self.reads.filling.stored, self.reads.reads) = (10_000, 200);
        (self.pick.hosts, self.pick.picks) = (vec![1_000, 10_000], 10_000);
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Cli { command, json, dir, postgres } = Cli::parse();
    match command {
        Doing::InferencePart(part) => part.play().await,
        Doing::Measure(what) => report(what, json.as_deref(), dir, postgres).await,
    }
}

/// Measures, and says what came of it.
async fn report(
    mut what: What,
    to: Option<&Path>,
    dir: Option<PathBuf>,
    postgres: Option<String>,
) -> anyhow::Result<()> {
    if let What::All(all) = &mut what
        && all.quick
    {
        all.shorten();
    }
    let dir = match &dir {
        Some(dir) => TempDir::new_in(dir),
        None => TempDir::new(),
    };
    let dir = dir.context("cannot make a folder to work in")?;
    let before = load();
    let mut backends = vec![Backend::Sqlite(dir.path().to_owned())];
    backends.extend(postgres.map(Backend::Postgres));
    let tables = measure(what, dir.path(), &backends).await?;
    let machine = machine(&before)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{machine}")?;
    for table in &tables {
        writeln!(out, "\n{}", table.markdown())?;
    }
    if let Some(path) = to {
        let command: Vec<_> = std::env::args().skip(1).collect();
        let tables: Vec<_> = tables.iter().map(Table::json).collect();
        let report = json!({ "command": command, "machine": machine, "tables": tables });
        std::fs::write(path, format!("{report:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

async fn measure(what: What, dir: &Path, backends: &[Backend]) -> anyhow::Result<Vec<Table>> {
    match what {
        What::Publish(publish) => publishes(dir, backends, &publish).await,
        What::Layers(layers) => Ok(vec![layers::measure(dir, layers.layer_tasks).await?]),
        What::Reads(reads) => stored(backends, reads.filling.stored, Some(reads.reads), None).await,
        What::Start(start) => stored(backends, start.filling.stored, None, Some(&start.relay)).await,
        What::Pick(pick) => Ok(vec![pick::measure(&pick.hosts, pick.picks)?]),
        What::Runtimes(plan) => runtimes::measure(dir, &plan).await,
        What::Inference(plan) => inference::measure(dir, plan).await,
        What::All(all) => {
            let mut tables = publishes(dir, backends, &all.publish).await?;
            tables.push(layers::measure(dir, all.layers.layer_tasks).await?);
            let (reads, relay) = (Some(all.reads.reads), all.relay.as_deref());
            tables.extend(stored(backends, all.reads.filling.stored, reads, relay).await?);
            tables.push(pick::measure(&all.pick.hosts, all.pick.picks)?);
            Ok(tables)
        }
    }
}

async fn publishes(dir: &Path, backends: &[Backend], args: &Publish) -> anyhow::Result<Vec<Table>> {
    let plan = publish::Plan { tasks: args.tasks, rounds: args.rounds, callers: args.callers.clone() };
    let mut tables = Vec::new();
    for backend in backends {
        tables.push(publish::measure(dir, backend, &plan).await?);
    }
    Ok(tables)
}

/// What is measured of filled stores, of each kind: reads and a relay's start, where they are wanted.
async fn stored(
    backends: &[Backend],
    tasks: u64,
    reads: Option<usize>,
    relay: Option<&Path>,
) -> anyhow::Result<Vec<Table>> {
    let mut tables = Vec::new();
    for backend in backends {
        let mut filled = Vec::new();
        let mut fills = Table::new(format!("Filling, {}", backend.name()), &["tasks_stored", "secs"]);
        for tasks in [0, tasks / TENTH, tasks] {
            let began = Instant::now();
            filled.push(fill(backend, tasks).await?);
            fills.row([Cell::count(tasks), Cell::Number(began.elapsed().as_secs_f64(), 1)]);
        }
        fills.note("Each task signed, checked and published; in larger groups than a relay's, so that it takes less time.");
        tables.push(fills);
        if let Some(reads) = reads {
            // Nothing can be read of the empty one.
            tables.push(reads::measure(backend.name(), &filled[1..], reads).await?);
        }
        for filled in &filled {
            filled.store.close().await;
        }
        if let Some(relay) = relay {
            tables.push(starts(backend, &filled, relay).await?);
        }
        for filled in filled {
            filled.place.remove().await?;
        }
    }
    Ok(tables)
}

async fn starts(backend: &Backend, filled: &[Filled], relay: &Path) -> anyhow::Result<Table> {
    let stored = filled
        .iter()
        .map(|filled| Ok(Stored { location: filled.place.location()?, tasks: filled.tasks }))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let (relay, kind) = (relay.to_owned(), backend.name());
    tokio::task::spawn_blocking(move || relay::measure(&relay, kind, &stored)).await?
}

/// A store with some tasks.
async fn fill(backend: &Backend, tasks: u64) -> anyhow::Result<Filled> {
    let requesters = Requesters::new()?;
    let place = backend.make(&format!("stored-{tasks}")).await?;
    let store = place.open(filling()).await?;
    let ids = requesters.fill(store.clone(), tasks, SAMPLE).await?;
    store.close().await;
    let store = place.open(Options::default()).await?;
    Ok(Filled { place, store, tasks, ids, requesters: requesters.addresses().collect() })
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
