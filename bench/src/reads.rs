//! Reads of a filled store: single tasks, and pages of listings, with few tasks stored and with many.

use std::sync::Arc;
use std::time::{Duration, Instant};

use store::{Cursor, Store, TaskFilter};
use taskmarket::{Address, TaskId};

use crate::place::Place;
use crate::report::{Cell, Table};
use crate::timing::Times;

/// Turns that the stores take.
const TURNS: usize = 10;
/// Tasks of a page.
const PAGE: usize = 50;

/// A store with tasks in it.
pub(crate) struct Filled {
    /// Where it is.
    pub(crate) place: Place,
    /// The store.
    pub(crate) store: Arc<dyn Store>,
    /// How many tasks it has.
    pub(crate) tasks: u64,
    /// Some of them, from all its ages.
    pub(crate) ids: Vec<TaskId>,
    /// Whose they are.
    pub(crate) requesters: Vec<Address>,
}

/// What is read.
#[derive(Debug, Clone, Copy)]
enum Read {
    Task,
    OfRequester,
    OfRequesterLater,
    Newest,
}

impl Read {
    const ALL: [Self; 4] = [Self::Task, Self::OfRequester, Self::OfRequesterLater, Self::Newest];

    fn name(self) -> &'static str {
        match self {
            Self::Task => "one task by id",
            Self::OfRequester => "50 newest of a requester",
            Self::OfRequesterLater => "50 of a requester, after 100 pages' worth",
            Self::Newest => "50 newest of all",
        }
    }
}

/// Measures each kind of read, `reads` times on each store, the stores in turn.
pub(crate) async fn measure(kind: &str, stores: &[Filled], reads: usize) -> anyhow::Result<Table> {
    let columns = ["read", "tasks_stored", "mean_us", "p50_us", "p99_us", "per_sec"];
    let mut table = Table::new(format!("Reads, one caller, {kind}"), &columns);
    for read in Read::ALL {
        let mut cursors = Vec::new();
        for filled in stores {
            cursors.push(deep(filled).await?);
        }
        let mut times: Vec<Vec<Duration>> = vec![Vec::new(); stores.len()];
        for turn in 0..TURNS {
            for (place, filled) in stores.iter().enumerate() {
                for number in turn * reads / TURNS..(turn + 1) * reads / TURNS {
                    let began = Instant::now();
                    once(read, filled, number, &cursors[place]).await?;
                    times[place].push(began.elapsed());
                }
            }
        }
        for (filled, times) in stores.iter().zip(times) {
            let times = Times::of(times);
            let mean = times.mean_us();
            let figures =
                [(mean, 1), (times.quantile_us(0.5), 1), (times.quantile_us(0.99), 1), (1e6 / mean, 0)];
            let labels = [read.name().into(), Cell::count(filled.tasks)];
            table.row(labels.into_iter().chain(figures.map(|(figure, digits)| Cell::Number(figure, digits))));
        }
    }
    table.note(format!(
        "{reads} reads each through the Store trait, a hop to a reading thread and the record's JSON included; the stores take turns. \
         Goal: a page does not grow with the table."
    ));
    Ok(table)
}

async fn once(read: Read, filled: &Filled, number: usize, cursors: &[Option<Cursor>]) -> anyhow::Result<()> {
    // Steps that share no divisor with the number of ids visit all of them, in no order of age.
    let id = filled.ids[number * 7919 % filled.ids.len()];
    let place = number % filled.requesters.len();
    let of_requester = TaskFilter { requester: Some(filled.requesters[place]), ..TaskFilter::default() };
    let page = match read {
        Read::Task => {
            anyhow::ensure!(filled.store.task(id).await?.is_some(), "task {id} is gone");
            return Ok(());
        }
        Read::OfRequester => filled.store.list(of_requester, None, PAGE).await?,
        Read::OfRequesterLater => filled.store.list(of_requester, cursors[place], PAGE).await?,
        Read::Newest => filled.store.list(TaskFilter::default(), None, PAGE).await?,
    };
    anyhow::ensure!(!page.tasks.is_empty(), "a page is empty");
    Ok(())
}

/// For each requester, where half of their tasks, or 5,000, are listed.
async fn deep(filled: &Filled) -> anyhow::Result<Vec<Option<Cursor>>> {
    let of_each = filled.tasks as usize / filled.requesters.len();
    let skipped = (of_each / 2).min(100 * PAGE);
    let mut cursors = Vec::new();
    for requester in &filled.requesters {
        let filter = TaskFilter { requester: Some(*requester), ..TaskFilter::default() };
        cursors.push(filled.store.list(filter, None, skipped).await?.next);
    }
    Ok(cursors)
}
