//! The blob store: what is put is whole or absent.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

use std::io;
use std::path::Path;
use std::time::Duration;

use artifact::{BlobStore, Digest, PutError, Usage};
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use tokio::io::AsyncReadExt;

fn pieces(pieces: &[&'static [u8]]) -> impl Stream<Item = Result<Bytes, io::Error>> + use<> {
    stream::iter(pieces.iter().map(|p| Ok(Bytes::from_static(p))).collect::<Vec<_>>())
}

fn unfinished(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("tmp")).unwrap().count()
}

#[tokio::test]
async fn what_is_put_can_be_read_listed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(dir.path()).unwrap();
    let digest = Digest::of(b"abc");
    assert!(store.open_blob(&digest).await.unwrap().is_none() && !store.contains(&digest).await.unwrap());
    assert_eq!(store.put(pieces(&[b"a", b"", b"bc"]), Some(digest), 3).await.unwrap(), (digest, 3));

    let (mut file, size) = store.open_blob(&digest).await.unwrap().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).await.unwrap();
    assert_eq!((text.as_str(), size), ("abc", 3));
    assert!(store.path(&digest).ends_with(format!(
        "{}/{}",
        &digest.to_string()[..2],
        &digest.to_string()[2..]
    )));

    // The same store after a restart; files of others in it do not count.
    drop(store);
    std::fs::create_dir(dir.path().join("zz")).unwrap();
    std::fs::write(dir.path().join("zz/stranger"), "x").unwrap();
    let store = BlobStore::open(dir.path()).unwrap();
    assert_eq!(store.list().await.unwrap(), [(digest, 3)]);
    assert_eq!(store.usage().await.unwrap(), Usage { blobs: 1, bytes: 3 });
    assert!(store.remove(&digest).await.unwrap() && !store.remove(&digest).await.unwrap());
    assert_eq!(store.usage().await.unwrap(), Usage::default());
}

#[tokio::test]
async fn files_are_copied_in() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(dir.path().join("s")).unwrap();
    let source = dir.path().join("source");
    let bytes = vec![7; 600_000];
    std::fs::write(&source, &bytes).unwrap();
    let put = store.put_file(&source, None, 600_000).await.unwrap();
    assert_eq!(put, (Digest::of(&bytes), 600_000));
    assert_eq!(std::fs::read(store.path(&put.0)).unwrap(), bytes);
    assert_eq!(store.put_file(&source, None, 599_999).await.unwrap_err().code(), "too_large");
    assert_eq!(store.put_file(&dir.path().join("absent"), None, 9).await.unwrap_err().code(), "interrupted");
}

#[tokio::test]
async fn failed_puts_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(dir.path()).unwrap();
    let other = Digest::of(b"other");
    let wrong = store.put(pieces(&[b"abc"]), Some(other), 9).await.unwrap_err();
    assert!(matches!(wrong, PutError::HashMismatch { expected, actual }
        if expected == other && actual == Digest::of(b"abc")));
    let large = store.put(pieces(&[b"abc", b"d"]), None, 3).await.unwrap_err();
    assert!(matches!(large, PutError::TooLarge { limit: 3 }));
    assert_eq!(unfinished(dir.path()), 0);
    let broken = pieces(&[b"abc"]).chain(stream::iter([Err(io::Error::other("gone"))]));
    assert_eq!(store.put(broken, None, 9).await.unwrap_err().code(), "interrupted");
    // A put that is dropped on its way, as when an uploader's connection closes.
    let hanging = pieces(&[b"abc"]).chain(stream::pending());
    let mut put = Box::pin(store.put(hanging, None, 9));
    while unfinished(dir.path()) == 0 {
        assert!(put.as_mut().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    drop(put);
    let cleared = async {
        while unfinished(dir.path()) > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), cleared).await.unwrap();
    assert_eq!((store.usage().await.unwrap(), unfinished(dir.path())), (Usage::default(), 0));
}

#[tokio::test]
async fn leftovers_are_removed_by_the_next_life_only() {
    let dir = tempfile::tempdir().unwrap();
    let first = BlobStore::open(dir.path()).unwrap();
    first.put(pieces(&[b"abc"]), None, 9).await.unwrap();
    std::fs::write(dir.path().join("tmp/half"), "ab").unwrap();

    let second = BlobStore::open(dir.path()).unwrap();
    assert_eq!(unfinished(dir.path()), 1, "the first store may be writing it");
    drop((first, second));
    let third = BlobStore::open(dir.path()).unwrap();
    assert_eq!(unfinished(dir.path()), 0);
    assert_eq!(third.list().await.unwrap(), [(Digest::of(b"abc"), 3)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_can_put_the_same_blob_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(dir.path()).unwrap();
    let puts: Vec<_> = (0..16)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.put(pieces(&[b"a", b"b"]), None, 9).await.unwrap() })
        })
        .collect();
    for put in puts {
        assert_eq!(put.await.unwrap(), (Digest::of(b"ab"), 2));
    }
    assert_eq!(store.list().await.unwrap(), [(Digest::of(b"ab"), 2)]);
    assert_eq!(unfinished(dir.path()), 0);
}
