//! What a container takes to start and end: by the node's runtime, and by the engine's own command.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use artifact::{BlobStore, FetchPolicy, Fetcher};
use clap::Args;
use computenode::runtime::container::{ContainerRuntime, ContainerSettings};
use computenode::runtime::{Context, Job, Limits, Model, ModelFiles, Place, Runtime};
use serde_json::json;
use tokio::process::Command;
use tokio::sync::oneshot;

use crate::report::{Cell, Table};
use crate::timing::{Times, median};

const LIMITS: Limits =
    Limits { wall: Duration::from_secs(60), memory_bytes: 256 << 20, output_bytes: 1 << 20 };

/// A container that says hello and ends.
#[derive(Debug, Args)]
pub(crate) struct Containers {
    /// An image with /bin/busybox, as `podman save --format docker-archive` writes it; without it, no container is measured.
    #[arg(long, value_name = "FILE", requires = "engine_run")]
    image: Option<PathBuf>,
    /// The SHA-256 of the image's file, in hex.
    #[arg(long, value_name = "HEX", requires = "image")]
    image_sha256: Option<String>,
    /// The engine's socket. [default: the first that answers]
    #[arg(long, value_name = "PATH")]
    engine: Option<PathBuf>,
    /// The command line that runs the same by the engine's own program, words apart by spaces.
    #[arg(long, value_name = "COMMAND", requires = "image")]
    engine_run: Option<String>,
    /// Containers of each kind, in turns.
    #[arg(long, default_value_t = 20, value_name = "N")]
    container_runs: usize,
}

/// Measures both ways in turns. `None` where no image is given.
pub(crate) async fn measure(dir: &Path, plan: &Containers) -> anyhow::Result<Option<Table>> {
    let (Some(image), Some(command)) = (&plan.image, &plan.engine_run) else { return Ok(None) };
    let settings = ContainerSettings {
        socket: plan.engine.clone(),
        node: "market-bench".to_owned(),
        ..ContainerSettings::default()
    };
    let fetcher = Fetcher::new(FetchPolicy::default(), BlobStore::open(dir.join("blobs"))?)?;
    let runtime =
        ContainerRuntime::detect(settings, fetcher).await?.context("no container engine answers")?;
    let input = dir.join("container-input");
    std::fs::write(&input, b"")?;
    let job = Job {
        params: json!({ "args": ["/bin/busybox", "echo", "hello"] }).to_string(),
        model: Model {
            files: ModelFiles::File(image.clone()),
            digest: plan.image_sha256.clone().context("--image-sha256 is missing")?,
        },
        input,
        limits: LIMITS,
        gpus: Vec::new(),
        folder: dir.to_owned(),
        label: "bench.1".to_owned(),
    };
    let (mut ours, mut gone, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    // The first of each brings the image.
    for round in 0..=plan.container_runs {
        let (left, leaving) = oneshot::channel();
        let place = Place::new(Arc::new(Left(Some(left))));
        let began = Instant::now();
        runtime.run(job.clone(), &Context { place, ..Context::default() }).await?;
        let took = began.elapsed();
        // The engine is idle before its own command's turn.
        leaving.await?;
        let removed = began.elapsed();
        let engine = by_engine(command).await?;
        if round > 0 {
            ours.push(took);
            gone.push(removed);
            theirs.push(engine);
        }
    }
    let ratio = |of: &[Duration]| {
        median(of.iter().zip(&theirs).map(|(ours, theirs)| ours.as_secs_f64() / theirs.as_secs_f64()))
    };
    let (to_result, to_end) = (ratio(&ours), ratio(&gone));
    let mut table = Table::new(
        "Containers: a whole run of a program that ends at once",
        &["by", "runs", "mean_ms", "p50_ms", "p99_ms", "of_the_engines"],
    );
    for (name, times, ratio) in [
        ("the node's runtime, to the result", ours, to_result),
        ("the same, until its place is free", gone, to_end),
        ("the engine's command", theirs, 1.0),
    ] {
        let (runs, times) = (times.len() as u64, Times::of(times));
        let figures = [times.mean_us(), times.quantile_us(0.5), times.quantile_us(0.99)];
        let words = [Cell::from(name), Cell::count(runs)];
        let figures = figures.map(|us| Cell::Number(us / 1e3, 0));
        table.row(words.into_iter().chain(figures).chain([Cell::Number(ratio, 2)]));
    }
    table.note("In turns; the ratio is the median of pairs. Goal: 1.3. The node's has read-only root, limits, no network, and a result that is read back.");
    Ok(Some(table))
}

/// A job's place, which tells that it is left.
struct Left(Option<oneshot::Sender<()>>);

impl Drop for Left {
    fn drop(&mut self) {
        if let Some(left) = self.0.take() {
            // Nobody may wait any more.
            let _ = left.send(());
        }
    }
}

async fn by_engine(command: &str) -> anyhow::Result<Duration> {
    let mut words = command.split_whitespace();
    let program = words.next().context("--engine-run is empty")?;
    let began = Instant::now();
    let status = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .await
        .with_context(|| program.to_owned())?;
    ensure!(status.success(), "{command}: {status}");
    Ok(began.elapsed())
}
