//! Durable signed publications in a second, against the floors of the same disk.
//!
//! Rounds alternate between the market and its floors, so that what else the machine does falls on all of them; the ratios are
//! those of one round each.

use std::path::Path;
use std::sync::Arc;

use store::Options;

use crate::floor::{self, Group, Rows};
use crate::floor_postgres;
use crate::place::{Backend, Place};
use crate::report::{Cell, Table};
use crate::tasks::{Requesters, admit, keep, publish};
use crate::timing::{Run, drive, median};

/// How much is measured.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Tasks that each series publishes in each round.
    pub(crate) tasks: usize,
    /// How often each series is run.
    pub(crate) rounds: usize,
    /// Callers at the same time.
    pub(crate) callers: Vec<usize>,
}

/// Who writes in a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Series {
    File,
    Raw,
    Store,
    Market,
}

impl Series {
    const ALL: [Self; 4] = [Self::File, Self::Raw, Self::Store, Self::Market];

    fn name(self) -> &'static str {
        match self {
            Self::File => "file, append and fdatasync",
            Self::Raw => "raw database, same rows",
            Self::Store => "Store::publish",
            Self::Market => "verify, publish, Store::publish",
        }
    }
}

/// Measures on one kind of store, each series in a new one; files are written in a folder.
pub(crate) async fn measure(dir: &Path, backend: &Backend, plan: &Plan) -> anyhow::Result<Table> {
    let requesters = Requesters::new()?;
    let rows = sample(plan.tasks, backend, &requesters).await?;
    let title = format!("Durable publications, {}", backend.name());
    let columns = [
        "callers",
        "series",
        "per_sec",
        "of_raw",
        "of_raw_range",
        "p50_ms",
        "p99_ms",
        "p99_of_raw",
        "cpu_us",
    ];
    let mut table = Table::new(title, &columns);
    for &callers in &plan.callers {
        let mut runs: Vec<Vec<Run>> = Vec::new();
        for _ in 0..plan.rounds {
            let mut round = Vec::new();
            for series in Series::ALL {
                let place = backend.make("series").await?;
                round.push(run(dir, &place, series, callers, &requesters, &rows).await?);
                place.remove().await?;
            }
            runs.push(round);
        }
        for (place, series) in Series::ALL.into_iter().enumerate() {
            table.row(row(callers, series, place, &runs));
        }
    }
    table.note(format!(
        "{} publications a run, {:.0} bytes of rows each; medians of {} alternating rounds, ratios within a round. Goals: of_raw at \
         least 0.70 and p99_of_raw at most 1.5 where signatures are checked. cpu_us: this process's, for each write.",
        plan.tasks,
        rows.mean_bytes(),
        plan.rounds
    ));
    Ok(table)
}

fn row(callers: usize, series: Series, place: usize, runs: &[Vec<Run>]) -> Vec<Cell> {
    let raw = Series::ALL.iter().position(|series| *series == Series::Raw).unwrap_or(0);
    let over = |figure: fn(&Run) -> f64| runs.iter().map(move |round| figure(&round[place]));
    let ratios = |figure: fn(&Run) -> f64| {
        runs.iter().map(move |round| figure(&round[place]) / figure(&round[raw])).collect::<Vec<_>>()
    };
    let p99: fn(&Run) -> f64 = |run| run.times.quantile_us(0.99) / 1e3;
    let of_raw = ratios(|run| run.per_sec);
    let least = of_raw.iter().copied().fold(f64::INFINITY, f64::min);
    let most = of_raw.iter().copied().fold(0.0, f64::max);
    vec![
        Cell::count(callers as u64),
        series.name().into(),
        Cell::Number(median(over(|run| run.per_sec)), 0),
        Cell::Number(median(of_raw), 2),
        format!("{least:.2}-{most:.2}").into(),
        Cell::Number(median(over(|run| run.times.quantile_us(0.5) / 1e3)), 2),
        Cell::Number(median(over(p99)), 2),
        Cell::Number(median(ratios(p99)), 2),
        Cell::Number(median(over(|run| run.cpu_us)), 1),
    ]
}

/// The rows that the store makes of publications.
async fn sample(count: usize, backend: &Backend, requesters: &Arc<Requesters>) -> anyhow::Result<Arc<Rows>> {
    let place = backend.make("sample").await?;
    let store = place.open(Options::default()).await?;
    let tasks = requesters.sign_many(count).await?;
    let (filling, now) = (store.clone(), requesters.now());
    drive(64, tasks, move |task| {
        let store = filling.clone();
        async move { publish(&*store, task, now).await }
    })
    .await?;
    let rows = Rows::of(&*store, count).await?;
    store.close().await;
    place.remove().await?;
    Ok(rows)
}

async fn run(
    dir: &Path,
    place: &Place,
    series: Series,
    callers: usize,
    requesters: &Arc<Requesters>,
    rows: &Arc<Rows>,
) -> anyhow::Result<Run> {
    let now = requesters.now();
    match series {
        Series::File => {
            let folder = tempfile::tempdir_in(dir)?;
            run_group(floor::file(folder.path(), rows.clone())?, callers, rows).await
        }
        Series::Raw => {
            let group = match place {
                Place::Folder(folder) => floor::sqlite(folder, rows.clone()).await?,
                Place::Schema { .. } => floor_postgres::start(place, rows.clone()).await?,
            };
            run_group(group, callers, rows).await
        }
        Series::Store => {
            let tasks = requesters.sign_many(rows.count).await?;
            let admitted = tasks.into_iter().map(|task| admit(task, now)).collect::<anyhow::Result<_>>()?;
            let store = place.open(Options::default()).await?;
            let keeping = store.clone();
            let run = drive(callers, admitted, move |(record, first)| {
                let store = keeping.clone();
                async move { keep(&*store, record, first).await }
            })
            .await?;
            store.close().await;
            Ok(run)
        }
        Series::Market => {
            let tasks = requesters.sign_many(rows.count).await?;
            let store = place.open(Options::default()).await?;
            let keeping = store.clone();
            let run = drive(callers, tasks, move |task| {
                let store = keeping.clone();
                async move { publish(&*store, task, now).await }
            })
            .await?;
            store.close().await;
            Ok(run)
        }
    }
}

async fn run_group(group: Group, callers: usize, rows: &Arc<Rows>) -> anyhow::Result<Run> {
    let requests = group.requests();
    let run =
        drive(callers, (0..rows.count).collect(), move |place| floor::write(requests.clone(), place)).await?;
    group.finish().await?;
    Ok(run)
}
