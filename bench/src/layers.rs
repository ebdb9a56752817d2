//! What one publication costs, layer by layer, on one thread.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params_from_iter};
use store::{Options, Sqlite, Store, Value};
use taskmarket::{Domain, Message as _};

use crate::floor::{self, Group, Rows};
use crate::report::{Cell, Table};
use crate::tasks::{Requesters, admit, publish};
use crate::timing::drive;

/// Callers whose messages to a thread and back are timed.
const CALLERS: usize = 64;

/// The store's statement that counts tasks by status.
const COUNT: &str = "INSERT INTO task_counts (status, tasks) VALUES ('open', 1)
                     ON CONFLICT DO UPDATE SET tasks = tasks + excluded.tasks";

/// Measures each layer over a number of tasks.
pub(crate) async fn measure(dir: &Path, tasks: usize) -> anyhow::Result<Table> {
    let requesters = Requesters::new()?;
    let signed = requesters.sign_many(tasks).await?;
    let mut table = Table::new("A publication's layers", &["layer", "where", "us"]);
    let mut add = |layer: &str, place: &str, spent: Duration| {
        let us = spent.as_secs_f64() * 1e6 / tasks as f64;
        table.row([layer.into(), place.into(), Cell::Number(us, 2)]);
        us
    };

    let text: Vec<_> = signed.iter().map(serde_json::to_vec).collect::<Result<_, _>>()?;
    let parse =
        || text.iter().try_for_each(|text| serde_json::from_slice::<serde_json::Value>(text).map(drop));
    add("signed task's JSON, read into values", "caller, not in the goal", timed(parse)?);
    let digest = || {
        for task in &signed {
            black_box(task.message.digest(&Domain::UNSETTLED));
        }
        anyhow::Ok(())
    };
    add("EIP-712 digest alone", "caller, within the next", timed(digest)?);
    let again = signed.clone();
    let verify = || again.into_iter().try_for_each(|task| task.verify(&Domain::UNSETTLED).map(drop));
    add("signature: EIP-712 digest, recovery", "caller", timed(verify)?);
    let verified: Vec<_> =
        signed.iter().map(|task| task.clone().verify(&Domain::UNSETTLED)).collect::<Result<_, _>>()?;
    let now = requesters.now();
    let decide = || verified.iter().try_for_each(|task| taskmarket::publish(now, task).map(drop));
    add("rules: taskmarket::publish", "caller", timed(decide)?);
    let admitted: Vec<_> =
        signed.iter().map(|task| admit(task.clone(), now)).collect::<anyhow::Result<_>>()?;
    let serialise = || {
        admitted.iter().try_for_each(|(record, first)| {
            serde_json::to_string(record)?;
            serde_json::to_string(first).map(drop)
        })
    };
    add("record and event to JSON", "caller", timed(serialise)?);

    let group = Group::start(|_| Ok(()))?;
    let requests = group.requests();
    let run =
        drive(CALLERS, (0..tasks).collect(), move |place| floor::write(requests.clone(), place)).await?;
    group.finish().await?;
    add(
        "to the writing thread and back, 64 callers",
        "both",
        Duration::from_secs_f64(tasks as f64 / run.per_sec),
    );

    let writer = steps(dir, signed).await?;
    let serial: f64 = writer.into_iter().map(|(layer, spent)| add(layer, "writer", spent)).sum();
    table.note(format!(
        "Microseconds for each of {tasks} publications, {} to a transaction. Callers' work runs on all processors, the writer's on one \
         thread: {serial:.1} us a publication bound it to {:.0} publications/s.",
        Options::default().batch,
        1e6 / serial
    ));
    Ok(table)
}

/// The writing thread's steps, each as the time that it took over all tasks.
async fn steps(
    dir: &Path,
    signed: Vec<taskmarket::Signed<taskmarket::Task>>,
) -> anyhow::Result<Vec<(&'static str, Duration)>> {
    let (count, now) = (signed.len(), Requesters::new()?.now());
    let folder = tempfile::tempdir_in(dir)?;
    let source = std::sync::Arc::new(Sqlite::open(folder.path()).await?);
    let filling = source.clone();
    drive(CALLERS, signed, move |task| {
        let store = filling.clone();
        async move { publish(&*store, task, now).await }
    })
    .await?;
    let rows = Rows::of(&*source, count).await?;
    source.close().await;

    let folder = tempfile::tempdir_in(dir)?;
    let connection = floor::connect(folder.path()).await?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let mut spent = [Duration::ZERO; 4];
    let places: Vec<_> = (0..count).collect();
    for group in places.chunks(Options::default().batch) {
        spent[3] += timed(|| run(&connection, "BEGIN IMMEDIATE"))?;
        for place in group {
            for (step, (table, rows)) in rows.tables.iter().enumerate() {
                let sql = floor::insert(table);
                spent[step] += timed(|| insert(&connection, &sql, &rows[*place]))?;
            }
        }
        spent[2] += timed(|| run(&connection, COUNT))?;
        spent[3] += timed(|| run(&connection, "COMMIT"))?;
    }
    let names = ["insert task", "insert event", "count by status, once", "begin, commit, flush"];
    Ok(names.into_iter().zip(spent).collect())
}

fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

fn insert(connection: &Connection, sql: &str, row: &[Value]) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute(params_from_iter(row)).map(drop)
}

fn timed<E>(work: impl FnOnce() -> Result<(), E>) -> Result<Duration, E> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed())
}
