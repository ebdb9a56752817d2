//! Durable signed publications in a second, against the floors of the same disk.
//!
//! Rounds alternate between the market and its floors, so that what else the machine does falls on all of them; the ratios are
//! those of one round each.

use std::path::Path;
use std::sync::Arc;

use anyhow::bail;
use store::{Sqlite, Store};

use crate::floor::{self, Group, Rows};
use crate::report::{Cell, Table};
use crate::tasks::{Requesters, admit, keep, publish};
use crate::timing::{Run, drive, median};
use crate::{floor_postgres, timing};

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

/// Where the tables are.
enum Backend<'a> {
    Sqlite,
    Postgres(&'a str),
}

/// Measures on SQLite, in new folders below one.
pub(crate) async fn sqlite(dir: &Path, plan: &Plan) -> anyhow::Result<Table> {
    measure(dir, plan, &Backend::Sqlite).await
}

/// Measures on a PostgreSQL database, which must be empty.
pub(crate) async fn postgres(dir: &Path, plan: &Plan, url: &str) -> anyhow::Result<Table> {
    let store = store::open(url).await?;
    let used = store.last_seq().await? > 0;
    store.close().await;
    if used {
        bail!("the database has tasks in it: the bench fills an empty one");
    }
    measure(dir, plan, &Backend::Postgres(url)).await
}

async fn measure(dir: &Path, plan: &Plan, backend: &Backend<'_>) -> anyhow::Result<Table> {
    let requesters = Requesters::new()?;
    let rows = sample(dir, plan.tasks, backend, &requesters).await?;
    let title = match backend {
        Backend::Sqlite => "Durable publications, SQLite",
        Backend::Postgres(_) => "Durable publications, PostgreSQL",
    };
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
                round.push(run(dir, backend, series, callers, &requesters, &rows).await?);
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
async fn sample(
    dir: &Path,
    count: usize,
    backend: &Backend<'_>,
    requesters: &Arc<Requesters>,
) -> anyhow::Result<Arc<Rows>> {
    let folder = tempfile::tempdir_in(dir)?;
    let store = open(folder.path(), backend).await?;
    let tasks = requesters.sign_many(count).await?;
    let (filling, now) = (store.clone(), requesters.now());
    drive(64, tasks, move |task| {
        let store = filling.clone();
        async move { publish(&*store, task, now).await }
    })
    .await?;
    let rows = Rows::of(&*store, count).await?;
    store.close().await;
    Ok(rows)
}

async fn run(
    dir: &Path,
    backend: &Backend<'_>,
    series: Series,
    callers: usize,
    requesters: &Arc<Requesters>,
    rows: &Arc<Rows>,
) -> anyhow::Result<timing::Run> {
    let folder = tempfile::tempdir_in(dir)?;
    let now = requesters.now();
    match series {
        Series::File => run_group(floor::file(folder.path(), rows.clone())?, callers, rows).await,
        Series::Raw => {
            let group = match backend {
                Backend::Sqlite => floor::sqlite(folder.path(), rows.clone()).await?,
                Backend::Postgres(url) => floor_postgres::start(url, rows.clone()).await?,
            };
            run_group(group, callers, rows).await
        }
        Series::Store => {
            let tasks = requesters.sign_many(rows.count).await?;
            let admitted = tasks.into_iter().map(|task| admit(task, now)).collect::<anyhow::Result<_>>()?;
            let store = open(folder.path(), backend).await?;
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
            let store = open(folder.path(), backend).await?;
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

async fn open(folder: &Path, backend: &Backend<'_>) -> anyhow::Result<Arc<dyn Store>> {
    Ok(match backend {
        Backend::Sqlite => Arc::new(Sqlite::open(folder).await?),
        Backend::Postgres(url) => store::open(url).await?,
    })
}
