//! `store`: moving a market from one store to another.

use std::collections::BTreeMap;

use ::store::{CopyError, CopyProgress};
use anyhow::bail;
use clap::Subcommand;

use super::say;
use crate::location::StoreLocation;
use crate::relay::open_store;

/// How many rows go by between two words on them.
const SAY_EVERY: u64 = 50_000;

/// What to do with a store.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Copy a whole market into an empty store
    ///
    /// Stop the relays first. From a folder to a database:
    ///
    ///   export PGPASSWORD=…
    ///   compute-relay store copy --from ./relay \
    ///     --to postgres://zorai@db.example/zorai
    ///
    /// The bytes of artifacts are in no store but in a folder; start the relay with
    /// --artifacts to say where.
    #[command(verbatim_doc_comment)]
    Copy {
        /// The store to copy: a folder, or a database such as postgres://zorai@db.example/zorai
        #[arg(long, value_name = "DIR|URL")]
        from: StoreLocation,
        /// The store to copy to; it must be empty, and a folder is made where there is none
        #[arg(long, value_name = "DIR|URL")]
        to: StoreLocation,
    },
}

/// Does it.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let Command::Copy { from, to } = args.command;
    if !from.exists() {
        bail!("there is no store in {from}");
    }
    let source = open_store(&from).await?;
    let copied = match open_store(&to).await {
        Ok(target) => {
            let mut told = Told::default();
            let copied = ::store::copy(&*source, &*target, |progress| told.tell(progress)).await;
            target.close().await;
            copied.map(|()| told.rows()).map_err(|error| explained(error, &to))
        }
        Err(error) => Err(error),
    };
    source.close().await;
    say(format_args!("copied {} rows from {from} to {to}", copied?));
    if from.artifacts() != to.artifacts() {
        let blobs = from.artifacts();
        say(format_args!(
            "hint: the artifacts' bytes stay where they are; if that is {0}, start the relay with --artifacts {0}",
            blobs.display()
        ));
    }
    Ok(())
}

fn explained(error: CopyError, to: &StoreLocation) -> anyhow::Error {
    match error {
        CopyError::NotEmpty { .. } => {
            anyhow::Error::new(error).context(format!("{to} is in use; nothing was copied"))
        }
        CopyError::SourceChanged | CopyError::Read { .. } | CopyError::Write { .. } => {
            anyhow::Error::new(error)
                .context(format!("the copy in {to} is not whole: empty it before the next"))
        }
    }
}

/// What was said of the copy so far.
#[derive(Default)]
struct Told {
    /// Of each table, the rows copied and the rows at the last word on them.
    tables: BTreeMap<&'static str, (u64, u64)>,
}

impl Told {
    fn tell(&mut self, progress: CopyProgress) {
        let (rows, told) = self.tables.entry(progress.table).or_default();
        *rows = progress.rows;
        if *told == 0 || *rows >= *told + SAY_EVERY {
            *told = *rows;
            say(format_args!("{}: {rows}", progress.table));
        }
    }

    fn rows(&self) -> u64 {
        self.tables.values().map(|(rows, _)| rows).sum()
    }
}
