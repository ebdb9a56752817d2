//! What the node's runtimes take to start, and what they get done.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use computenode::runtime::embed::EmbedRuntime;
use computenode::runtime::wasm::WasmRuntime;
use computenode::runtime::{Context, Job, Limits, Model, ModelFiles, ModelShape, Output, Runtime};
use serde_json::json;

use crate::containers::{self, Containers};
use crate::report::{Cell, Table};
use crate::timing::{Times, median};

/// Far beyond what is measured.
const LIMITS: Limits =
    Limits { wall: Duration::from_secs(600), memory_bytes: 4 << 30, output_bytes: 64 << 20 };
/// Functions of the larger program: with them it is as large as a small program in a common language.
const FUNCTIONS: usize = 2_000;
/// Runs of which modules have to be compiled.
const COMPILED_ROUNDS: usize = 5;

/// What of the runtimes is measured.
#[derive(Debug, Args)]
pub(crate) struct Runtimes {
    /// Runs of a compiled program.
    #[arg(long, default_value_t = 500, value_name = "N")]
    runs: usize,
    /// A folder with a model for embeddings; without it, none are measured.
    #[arg(long, value_name = "DIR")]
    weights: Option<PathBuf>,
    /// The texts to embed: paragraphs, repeated as often as needed.
    #[arg(long, value_name = "FILE", default_value = "demo/text.txt")]
    text: PathBuf,
    /// How many texts are embedded in each round.
    #[arg(long, default_value_t = 512, value_name = "N")]
    texts: usize,
    /// Rounds of embedding.
    #[arg(long, default_value_t = 5, value_name = "N")]
    embed_rounds: usize,
    /// Threads for embeddings. [default: one for each processor]
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,
    #[command(flatten)]
    containers: Containers,
}

/// Measures the runtimes of this process.
pub(crate) async fn measure(dir: &Path, plan: &Runtimes) -> anyhow::Result<Vec<Table>> {
    let mut tables = vec![wasm(dir, plan).await?];
    if let Some(weights) = &plan.weights {
        tables.push(embed(dir, plan, weights).await?);
    }
    tables.extend(containers::measure(dir, &plan.containers).await?);
    Ok(tables)
}

async fn wasm(dir: &Path, plan: &Runtimes) -> anyhow::Result<Table> {
    let columns = ["program", "module", "runs", "mean_ms", "p50_ms", "p99_ms"];
    let mut table = Table::new("WebAssembly: a whole run of a program that ends at once", &columns);
    for (name, functions) in [("empty", 0), ("2,000 functions", FUNCTIONS)] {
        let mut row = |kind: &str, times: Vec<Duration>| {
            let (runs, times) = (times.len() as u64, Times::of(times));
            let figures = [times.mean_us(), times.quantile_us(0.5), times.quantile_us(0.99)];
            let words = [Cell::from(name), Cell::from(kind), Cell::count(runs)];
            table.row(words.into_iter().chain(figures.map(|us| Cell::Number(us / 1e3, 3))));
        };
        let cache = dir.join(format!("cache-{functions}"));
        let (mut compiled, mut loaded) = (Vec::new(), Vec::new());
        for round in 0..COMPILED_ROUNDS {
            let job = program(dir, functions, round)?;
            compiled.push(run(&cached(&cache)?, &job).await?);
            loaded.push(run(&cached(&cache)?, &job).await?);
        }
        row("compiled", compiled);
        row("from the disk", loaded);
        let (runtime, job) = (WasmRuntime::new().map_err(failed)?, program(dir, functions, 0)?);
        run(&runtime, &job).await?;
        let mut warm = Vec::with_capacity(plan.runs);
        for _ in 0..plan.runs {
            warm.push(run(&runtime, &job).await?);
        }
        row("in memory", warm);
    }
    table.note("From Runtime::run to the result, all in this process. Goal: under 5 ms for a module that was compiled before.");
    Ok(table)
}

fn cached(folder: &Path) -> anyhow::Result<WasmRuntime> {
    WasmRuntime::cached_in(folder).map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("the engine: {error:#}")
}

/// A job with a program that ends at once, beside so many functions. Each round's has a digest of its own.
fn program(dir: &Path, functions: usize, round: usize) -> anyhow::Result<Job> {
    let body =
        "(local i64) (loop $l (local.set 1 (i64.add (local.get 1) (i64.mul (local.get 0) (local.get 1))))
                (br_if $l (i64.lt_u (local.get 1) (local.get 0)))) (i64.store (i32.const 8) (local.get 1))";
    let functions: String = (0..functions).map(|_| format!("(func (param i64) {body})")).collect();
    let text = format!(
        r#"(module (memory (export "memory") 1) (global i32 (i32.const {round})) {functions} (func (export "_start")))"#
    );
    let (module, input) = (dir.join("module.wasm"), dir.join("input"));
    std::fs::write(&module, wat::parse_str(text)?)?;
    std::fs::write(&input, b"")?;
    let digest = format!("{:064x}", functions.len() * COMPILED_ROUNDS + round);
    Ok(job(Model { files: ModelFiles::File(module), digest }, input, dir))
}

fn job(model: Model, input: PathBuf, dir: &Path) -> Job {
    let (params, label) = ("{}".to_owned(), "bench.1".to_owned());
    Job { params, model, input, limits: LIMITS, gpus: Vec::new(), folder: dir.to_owned(), label }
}

async fn run(runtime: &WasmRuntime, job: &Job) -> anyhow::Result<Duration> {
    let (job, context) = (job.clone(), Context::default());
    let began = Instant::now();
    runtime.run(job, &context).await?;
    Ok(began.elapsed())
}

async fn embed(dir: &Path, plan: &Runtimes, weights: &Path) -> anyhow::Result<Table> {
    let runtime = Arc::new(match plan.threads {
        Some(threads) => EmbedRuntime::with_threads(threads)?,
        None => EmbedRuntime::new()?,
    });
    let ModelShape::Folder { required, optional } = EmbedRuntime::MODEL_SHAPE else {
        anyhow::bail!("the model is no folder")
    };
    let files = required.iter().chain(optional).map(|name| ((*name).to_owned(), weights.join(name)));
    let files = ModelFiles::Folder(files.filter(|(_, path)| path.exists()).collect());
    let text = std::fs::read_to_string(&plan.text).with_context(|| plan.text.display().to_string())?;
    let paragraphs: Vec<String> = text
        .split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|paragraph| !paragraph.is_empty())
        .collect();
    ensure!(!paragraphs.is_empty(), "{} holds no text", plan.text.display());
    let texts: Vec<_> = paragraphs.iter().cycle().take(plan.texts).collect();
    let input = dir.join("texts.json");
    std::fs::write(&input, json!({ "input": texts }).to_string())?;

    let job = job(Model { files, digest: "00".repeat(32) }, input, dir);
    let (mut times, mut tokens) = (Vec::new(), 0);
    // The first round loads the model.
    for _ in 0..=plan.embed_rounds {
        let began = Instant::now();
        let output = runtime.run(job.clone(), &Context::default()).await?;
        times.push(began.elapsed());
        let Output::Bytes(bytes) = output else { anyhow::bail!("the result is a file") };
        tokens = serde_json::from_slice::<serde_json::Value>(&bytes)?["usage"]["total_tokens"]
            .as_u64()
            .unwrap_or(0);
    }
    let columns = ["texts", "tokens", "rounds", "first_s", "median_s", "texts_per_s", "tokens_per_s"];
    let mut table = Table::new("Embeddings: one task with many texts", &columns);
    let first = times.remove(0).as_secs_f64();
    let middle = median(times.iter().map(Duration::as_secs_f64));
    let rates = [plan.texts as f64 / middle, tokens as f64 / middle];
    let counts = [plan.texts as u64, tokens, plan.embed_rounds as u64].map(Cell::count);
    let seconds = [first, middle].map(|secs| Cell::Number(secs, 3));
    table.row(counts.into_iter().chain(seconds).chain(rates.map(|rate| Cell::Number(rate, 0))));
    table.note("The first round loads the model. The same by sentence-transformers: bench/embed.py.");
    Ok(table)
}
