//! The store as a cache: what goes first, what stays, and what is believed after a crash.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use artifact::{BlobStore, Digest, Scrubbed, Trimmed};
use bytes::Bytes;
use futures_util::{StreamExt, stream};

const FOLDER: &str = "ARTIFACT_TEST_FOLDER";

/// Makes a blob look as if it was last used so many seconds ago.
fn age(store: &BlobStore, digest: &Digest, seconds: u64) {
    let then = SystemTime::now() - Duration::from_secs(seconds);
    std::fs::File::open(store.path(digest)).unwrap().set_modified(then).unwrap();
}

async fn put(store: &BlobStore, bytes: &[u8]) -> Digest {
    store.put_bytes(bytes, None).await.unwrap().0
}

#[tokio::test]
async fn what_was_used_longest_ago_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(dir.path()).unwrap();
    let blobs = [put(&store, b"a--").await, put(&store, b"b--").await, put(&store, b"c--").await];
    for (blob, seconds) in blobs.iter().zip([30, 20, 10]) {
        age(&store, blob, seconds);
    }
    let exist = || blobs.map(|blob| store.path(&blob).exists());
    assert_eq!(store.trim(9).await.unwrap(), Trimmed { blobs: 0, bytes: 0, left: 9 });
    store.touch(&blobs[0]).await.unwrap();
    assert_eq!(store.trim(8).await.unwrap(), Trimmed { blobs: 1, bytes: 3, left: 6 });
    assert_eq!(exist(), [true, false, true]);
    assert_eq!(store.trim(3).await.unwrap().blobs, 1);
    assert_eq!(exist(), [true, false, false]);
    assert_eq!(store.touch(&blobs[1]).await.unwrap_err().kind(), std::io::ErrorKind::NotFound);
}

#[tokio::test]
async fn what_is_kept_stays_for_every_opener_and_the_rest_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (store, other) = (BlobStore::open(dir.path()).unwrap(), BlobStore::open(dir.path()).unwrap());
    let blobs = [put(&store, b"first-").await, put(&store, b"second").await, put(&store, b"third-").await];
    let outside = dir.path().join("outside");
    std::fs::write(&outside, "x").unwrap();
    let exist = || blobs.map(|blob| store.path(&blob).exists());
    let kept = store.keep(&[store.path(&blobs[1]), outside.clone()]).await.unwrap().unwrap();
    let kept_too = other.keep(&[other.path(&blobs[1])]).await.unwrap().unwrap();

    assert_eq!(other.trim(0).await.unwrap(), Trimmed { blobs: 2, bytes: 12, left: 6 });
    assert_eq!(exist(), [false, true, false]);
    assert!(store.keep(&[store.path(&blobs[0])]).await.unwrap().is_none(), "it has gone");
    drop(kept);
    assert_eq!(store.trim(0).await.unwrap().left, 6);
    drop(kept_too);
    assert_eq!(store.trim(0).await.unwrap().left, 0);
    assert!(exist() == [false; 3] && outside.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_goes_between_being_taken_into_use_and_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(dir.path()).unwrap();
    let users = (0..4_u8).map(|user| {
        let store = store.clone();
        tokio::spawn(async move {
            for round in 0..20_u8 {
                let bytes = [user % 2, round];
                let digest = put(&store, &bytes).await;
                if let Some(_kept) = store.keep(&[store.path(&digest)]).await.unwrap() {
                    store.trim(0).await.unwrap();
                    assert_eq!(std::fs::read(store.path(&digest)).unwrap(), bytes);
                }
            }
        })
    });
    for user in users.collect::<Vec<_>>() {
        user.await.unwrap();
    }
    assert_eq!(store.trim(0).await.unwrap().left, 0);
}

/// What the process of [`a_killed_writer_leaves_no_torn_blob`] does: keeps one blob, writes others, and is in the middle of one.
#[tokio::test]
async fn a_writer_that_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let store = BlobStore::open(Path::new(&folder)).unwrap();
    let first = put(&store, b"kept").await;
    let _kept = store.keep(&[store.path(&first)]).await.unwrap().unwrap();
    for number in 0..5_u8 {
        put(&store, &[number; 100_000]).await;
    }
    let half = stream::once(async { Ok::<_, std::io::Error>(Bytes::from(vec![1; 3 << 20])) });
    let mut told = false;
    let never = stream::poll_fn(move |_| {
        // Asked for more, the store has taken the first half.
        if !std::mem::replace(&mut told, true) {
            println!("ready");
        }
        std::task::Poll::Pending
    });
    store.put(half.chain(never), None, u64::MAX).await.unwrap();
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the writer until it is in the middle of a blob.
fn writer(folder: &Path) -> Killed {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_writer_that_is_killed", "--nocapture"]).env(FOLDER, folder);
    let mut child = Killed(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("ready")), "the writer ended early");
    child
}

#[tokio::test]
async fn a_killed_writer_leaves_no_torn_blob() {
    let dir = tempfile::tempdir().unwrap();
    let child = writer(dir.path());
    let first = Digest::of(b"kept");
    {
        let beside = BlobStore::open(dir.path()).unwrap();
        assert!(!beside.is_in_doubt(), "the writer lives");
        let trimmed = beside.trim(200_000).await.unwrap();
        assert_eq!((trimmed.blobs, beside.path(&first).exists()), (4, true), "{trimmed:?}");
    }
    drop(child);
    let store = BlobStore::open(dir.path()).unwrap();
    assert!(store.is_in_doubt());
    assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    assert_eq!(store.scrub().await.unwrap(), Scrubbed { blobs: 2, removed: 0 });
    assert!(!store.is_in_doubt());
    assert_eq!(store.trim(0).await.unwrap().left, 0, "the dead keep nothing");
    drop(store);
    assert!(!BlobStore::open(dir.path()).unwrap().is_in_doubt());
}

#[tokio::test]
async fn after_a_crash_damaged_blobs_are_never_taken_for_whole() {
    let dir = tempfile::tempdir().unwrap();
    drop(writer(dir.path()));
    let blobs: Vec<Digest> = (0..4_u8).map(|number| Digest::of(&[number; 100_000])).collect();
    let path = |store: &BlobStore, number: usize| store.path(&blobs[number]);
    let store = BlobStore::open(dir.path()).unwrap();
    let cut = |number, len| {
        std::fs::File::options().write(true).open(path(&store, number)).unwrap().set_len(len).unwrap();
    };
    cut(0, 99_999);
    cut(1, 0);
    // As long as it was, with other bytes.
    cut(2, 50_000);
    cut(2, 100_000);
    assert_eq!(store.size_of(&blobs[0]).await.unwrap(), None);
    assert!(!store.contains(&blobs[1]).await.unwrap());
    assert!(store.open_blob(&blobs[2]).await.unwrap().is_none() && !path(&store, 2).exists());
    assert_eq!(store.size_of(&blobs[3]).await.unwrap(), Some(100_000));
    put(&store, &[0; 100_000]).await;
    assert_eq!(store.size_of(&blobs[0]).await.unwrap(), Some(100_000));

    // What was not read in one life is doubted in the next, also after a good end.
    drop(store);
    let store = BlobStore::open(dir.path()).unwrap();
    std::fs::write(path(&store, 3), "torn").unwrap();
    assert!(store.is_in_doubt() && store.open_blob(&blobs[3]).await.unwrap().is_none());
}
