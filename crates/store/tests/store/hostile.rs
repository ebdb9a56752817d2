//! Files that are not as they should be are errors, not panics.

use std::path::Path;

use store::{EventFilter, Sqlite, Store, StoreError, TaskFilter, Tasks};
use taskmarket::{Status, TaskRecord};

use crate::fixtures::{at, cancelled, commit, publish, record_events, task};

/// Runs SQL on a store that is closed.
fn tamper(dir: &Path, sql: &str) {
    rusqlite::Connection::open(dir.join("relay.db")).unwrap().execute_batch(sql).unwrap();
}

/// A store with one task, tampered with.
async fn tampered(dir: &Path, sql: &str) -> (Sqlite, TaskRecord) {
    let store = Sqlite::open(dir).await.unwrap();
    let record = publish(&store, task(1), at(0)).await;
    store.close().await;
    drop(store);
    tamper(dir, sql);
    (Sqlite::open(dir).await.unwrap(), record)
}

fn corruption<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Corrupt { what }) => what,
        other => panic!("expected a corrupt store, got {other:?}"),
    }
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_named() {
    for sql in [
        "UPDATE tasks SET record = '{'",
        "UPDATE tasks SET record = ''",
        "UPDATE tasks SET record = CAST(x'ff00' AS TEXT)",
        "UPDATE tasks SET record = replace(record, '\"attempts\":0', '\"attempts\":-1')",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (store, record) = tampered(dir.path(), sql).await;
        let what = corruption(store.task(record.id).await);
        assert!(what.contains(&record.id.to_string()), "{what}");
        corruption(store.list(TaskFilter::default(), None, 10).await);
    }
}

#[tokio::test]
async fn columns_that_contradict_are_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut record) = tampered(
        dir.path(),
        "UPDATE tasks SET status = 'nonsense', owner = 'x'; UPDATE task_counts SET status = 'y'",
    )
    .await;
    corruption(store.task(record.id).await);
    corruption(store.counts().await);
    let cancel = cancelled(&record);
    let events = record_events(&mut record, at(1), vec![cancel]);
    corruption(store.commit(1, &record, events, None).await);

    let dir = tempfile::tempdir().unwrap();
    let (store, record) = tampered(
        dir.path(),
        "UPDATE tasks SET record = replace(record, '\"id\":\"0x', '\"id\":\"0x00') ; UPDATE events SET recorded = '{}'",
    )
    .await;
    corruption(store.task(record.id).await);
    corruption(store.history(record.id).await);
    corruption(store.events_after(0, EventFilter::default(), 1).await);
}

#[tokio::test]
async fn a_failing_task_does_not_harm_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = tampered(dir.path(), "UPDATE tasks SET record = '{'").await;
    let mut other = publish(&store, task(2), at(1)).await;
    let cancel = cancelled(&other);
    commit(&store, &mut other, at(2), vec![cancel], None).await;
    assert_eq!(store.counts().await.unwrap()[&Status::Cancelled], 1);
    let page = store.list(TaskFilter { status: Some(Status::Cancelled), ..TaskFilter::default() }, None, 1);
    assert_eq!(page.await.unwrap().tasks[0].record, other);
}

#[tokio::test]
async fn a_folder_is_opened_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(dir.path()).await.unwrap();
    let second = Sqlite::open(dir.path()).await.unwrap_err();
    assert!(matches!(second, StoreError::Locked { .. }));
    assert!(second.to_string().contains(&*dir.path().to_string_lossy()), "{second}");
    // Closing is enough, though somebody may still hold the closed store.
    store.close().await;
    Sqlite::open(dir.path()).await.unwrap();
}

#[tokio::test]
async fn what_is_no_store_or_a_newer_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("relay.db"), "no database at all ".repeat(1000)).unwrap();
    corruption(Sqlite::open(dir.path()).await);

    for version in ["99", "-1"] {
        let dir = tempfile::tempdir().unwrap();
        drop(Sqlite::open(dir.path()).await.unwrap());
        tamper(dir.path(), &format!("PRAGMA user_version = {version}"));
        let error = Sqlite::open(dir.path()).await.unwrap_err();
        assert!(matches!(error, StoreError::Schema { known: 9, .. }), "{error:?}");
        assert!(error.to_string().contains(version), "{error}");
    }

    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(Sqlite::open(file.path()).await, Err(StoreError::Io { .. })));
}

#[tokio::test]
async fn overwritten_pages_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(dir.path()).await.unwrap();
    let mut ids = Vec::new();
    for salt in 0..50 {
        ids.push(publish(&store, task(salt), at(salt)).await.id);
    }
    store.close().await;
    drop(store);
    let path = dir.path().join("relay.db");
    let mut bytes = std::fs::read(&path).unwrap();
    // The tables' definitions and roots come first; a store without them does not open.
    let definitions = 32 * 4096;
    for byte in &mut bytes[definitions..] {
        *byte = byte.wrapping_mul(31).wrapping_add(7);
    }
    std::fs::write(&path, bytes).unwrap();
    let store = Sqlite::open(dir.path()).await.unwrap();
    for id in ids {
        assert!(store.task(id).await.is_err());
    }
    assert!(store.list(TaskFilter::default(), None, 10).await.is_err());
    assert!(store.events_after(0, EventFilter::default(), 10).await.is_err());
}

#[cfg(unix)]
#[tokio::test]
async fn only_the_owner_can_read_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a/b");
    let store = Sqlite::open(&dir).await.unwrap();
    publish(&store, task(1), at(0)).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    let files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}
