//! A store with a bound: room is made before the bytes come, and what cannot fit is refused before any does.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod common;

use std::path::Path;
use std::time::{Duration, SystemTime};

use artifact::{BlobStore, Digest, FetchPolicy, Fetcher, LocalFile};
use common::{Reply, Server, get, ok, policy, status};
use tempfile::TempDir;

const LIMIT: u64 = 1000;

/// A store that holds at most [`LIMIT`] bytes, with two blobs of 400, the first of which was used longer ago.
async fn filled() -> (TempDir, Fetcher, [Digest; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open_bounded(dir.path().join("blobs"), LIMIT).unwrap();
    let mut blobs = [Digest([0; 32]); 2];
    for (blob, (letter, age)) in blobs.iter_mut().zip([(b'a', 20), (b'b', 10)]) {
        *blob = store.put_bytes(&[letter; 400], None).await.unwrap().0;
        let then = SystemTime::now() - Duration::from_secs(age);
        std::fs::File::open(store.path(blob)).unwrap().set_modified(then).unwrap();
    }
    let fetcher = Fetcher::new(FetchPolicy { max_tries: 1, ..policy() }, store).unwrap();
    (dir, fetcher, blobs)
}

fn exist(fetcher: &Fetcher, blobs: [Digest; 2]) -> [bool; 2] {
    blobs.map(|blob| fetcher.store().path(&blob).exists())
}

/// The bytes of all blobs, whole or not.
fn taken(dir: &Path) -> u64 {
    let mut bytes = 0;
    for shard in std::fs::read_dir(dir.join("blobs")).unwrap() {
        let shard = shard.unwrap();
        let name = shard.file_name();
        if shard.file_type().unwrap().is_dir() && (name.len() == 2 || name == "tmp") {
            let files = std::fs::read_dir(shard.path()).unwrap();
            bytes += files.map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>();
        }
    }
    bytes
}

#[tokio::test]
async fn room_is_made_before_the_bytes_come() {
    let (dir, fetcher, blobs) = filled().await;
    // It announces 500 bytes and sends none.
    let silent = Server::start(|_, _| Reply::Hang(status("200 OK", "content-length: 500\r\n", b""))).await;
    let fetching = tokio::spawn({
        let (fetcher, reference) = (fetcher.clone(), silent.reference("/m"));
        async move { get(&fetcher, &reference).await }
    });
    let made = async {
        while exist(&fetcher, blobs) != [false, true] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), made).await.expect("room is made");
    // What is promised to the one is not promised to another.
    let kept = fetcher.store().keep(&[fetcher.store().path(&blobs[1])]).await.unwrap().unwrap();
    let other = Server::serving(&[b'c'; 101]).await;
    assert_eq!(get(&fetcher, &other.reference("/c")).await.unwrap_err().code(), "cache_busy");
    let other = Server::serving(&[b'c'; 100]).await;
    get(&fetcher, &other.reference("/c")).await.unwrap();
    // Given up, it leaves its room to others.
    fetching.abort();
    assert!(fetching.await.unwrap_err().is_cancelled());
    let other = Server::serving(&[b'd'; 500]).await;
    get(&fetcher, &other.reference("/d")).await.unwrap();
    assert_eq!((exist(&fetcher, blobs), taken(dir.path())), ([false, true], LIMIT));
    drop(kept);
}

#[tokio::test]
async fn files_in_use_are_no_room() {
    let (dir, fetcher, blobs) = filled().await;
    let files = blobs.map(|blob| fetcher.store().path(&blob));
    let kept = fetcher.store().keep(&files).await.unwrap().unwrap();
    // Refused by what it announces: it would be waited for in vain.
    let silent = Server::start(|_, _| Reply::Hang(status("200 OK", "content-length: 201\r\n", b""))).await;
    let refused = get(&fetcher, &silent.reference("/m")).await.unwrap_err();
    assert_eq!((refused.code(), exist(&fetcher, blobs)), ("cache_busy", [true, true]), "{refused}");
    let fits = Server::serving(&[b'c'; 200]).await;
    get(&fetcher, &fits.reference("/c")).await.unwrap();
    assert_eq!(taken(dir.path()), LIMIT);
    drop(kept);
    let now = Server::serving(&[b'd'; 900]).await;
    get(&fetcher, &now.reference("/d")).await.unwrap();
    assert_eq!(exist(&fetcher, blobs), [false, false]);
}

#[tokio::test]
async fn what_cannot_fit_removes_nothing() {
    let (_dir, fetcher, blobs) = filled().await;
    let kept = fetcher.store().keep(&[fetcher.store().path(&blobs[1])]).await.unwrap().unwrap();
    // The blob that nobody uses is too small to make room for it.
    let large = Server::serving(&[b'c'; 601]).await;
    let refused = get(&fetcher, &large.reference("/m")).await.unwrap_err();
    assert_eq!((refused.code(), refused.is_disk_full()), ("cache_busy", false), "{refused}");
    assert_eq!(exist(&fetcher, blobs), [true, true]);
    drop(kept);
}

#[tokio::test]
async fn what_only_announces_much_takes_no_room_from_others() {
    const MUCH: u64 = 1 << 30;
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open_bounded(dir.path().join("blobs"), MUCH).unwrap();
    let cached = store.put_bytes(&[b'a'; 400], None).await.unwrap().0;
    let policy = FetchPolicy { max_tries: 1, max_bytes: MUCH, ..policy() };
    let fetcher = Fetcher::new(policy, store).unwrap();
    // It announces half of what the store may hold, and sends little.
    let head = format!("content-length: {}\r\n", MUCH / 2);
    let slow = Server::start(move |_, _| Reply::Hang(status("200 OK", &head, b"little"))).await;
    let written = || {
        let parts = std::fs::read_dir(dir.path().join("blobs/tmp")).unwrap();
        parts.filter(|part| part.as_ref().unwrap().metadata().unwrap().len() > 0).count()
    };
    let mut fetching = Vec::new();
    for number in 1..=4 {
        let (fetcher, reference) = (fetcher.clone(), slow.reference(&format!("/{number}")));
        fetching.push(tokio::spawn(async move { get(&fetcher, &reference).await }));
        let begun = async {
            while written() < number {
                assert!(fetching.iter().all(|fetching| !fetching.is_finished()), "{number} found no room");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), begun).await.expect("its bytes come");
    }
    assert!(fetcher.store().path(&cached).exists(), "it was removed for bytes that never came");
    let other = Server::serving(&[b'b'; 100_000]).await;
    get(&fetcher, &other.reference("/b")).await.unwrap();
    assert!(fetcher.store().path(&cached).exists());
    fetching.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn what_announces_nothing_is_bounded_as_it_comes() {
    let (dir, fetcher, blobs) = filled().await;
    let endless = Server::start(|_, _| Reply::Endless(status("200 OK", "", b""))).await;
    let refused = get(&fetcher, &endless.reference("/m")).await.unwrap_err();
    assert_eq!(refused.code(), "cache_busy", "{refused}");
    assert_eq!(exist(&fetcher, blobs), [true, true], "a first piece of so many bytes fits nowhere");
    let short = Server::start(|_, _| Reply::Close(status("200 OK", "", &[b'c'; 700]))).await;
    let LocalFile { size, .. } = get(&fetcher, &short.reference("/c")).await.unwrap();
    assert_eq!((size, exist(&fetcher, blobs)), (700, [false, false]));
    assert_eq!(taken(dir.path()), 700);
}

#[tokio::test]
async fn without_a_bound_nothing_goes() {
    let dir = tempfile::tempdir().unwrap();
    let fetcher = common::fetcher(dir.path(), policy());
    let first = fetcher.store().put_bytes(&[b'a'; 400], None).await.unwrap().0;
    let server = Server::start(|_, _| Reply::Close(ok("", &[b'c'; 100_000]))).await;
    get(&fetcher, &server.reference("/c")).await.unwrap();
    assert!(fetcher.store().contains(&first).await.unwrap());
}
