//! The thread that takes the write-ahead log into the database's file, so that the writer need not.

use std::ffi::c_int;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use rusqlite::Connection;
use rusqlite::hooks::Wal;

use super::schema;
use crate::StoreError;

/// After so many more pages of 4 KiB the log is taken in: fewer, larger checkpoints write a page that changed often only once.
const STEP: c_int = 1_500;
/// With so many pages the writer waits for it: under load that never ends, the log would never be all taken in, and so never begin anew.
const MOST: c_int = 6_000;

/// Starts the thread for the connection that writes. It ends after that connection.
pub(super) fn start(writer: &mut Connection, path: &Path) -> Result<JoinHandle<()>, StoreError> {
    let connection = schema::open_checkpoints(path)?;
    let (ask, asked) = sync_channel(1);
    let mut last = 0;
    writer.wal_hook(Some(move |wal: &mut Wal, pages: c_int| {
        if pages < last {
            last = 0;
        }
        if pages >= MOST {
            // While the thread is at it, the next commit tries again.
            let _ = wal.checkpoint();
        } else if pages - last >= STEP {
            last = pages;
            // If it was asked already, it comes to these pages too.
            let _ = ask.try_send(());
        }
        Ok(())
    }))?;
    std::thread::Builder::new()
        .name("store-log".to_owned())
        .spawn(move || serve(&connection, &asked))
        .map_err(|error| StoreError::Backend(Arc::new(error)))
}

fn serve(connection: &Connection, asked: &Receiver<()>) {
    let take_in = || {
        let _ = connection
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
            .inspect_err(|error| tracing::warn!(%error, "the store's log could not be taken in; it grows"));
    };
    while asked.recv().is_ok() {
        take_in();
    }
    // Of a store that is closed the file has everything: its last connection removes the log, if it ever used it.
    take_in();
}
