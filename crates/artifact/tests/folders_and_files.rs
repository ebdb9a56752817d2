//! Folders from the relay, from URLs and from this machine; files of this machine.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};

use artifact::{
    Digest, FetchError, FetchPolicy, Fetcher, FolderEntry, FolderManifest, LocalFolder, Origin, Reference,
};
use common::{Reply, Server, assert_empty, fetcher, get, ok, policy, status};

fn entry(path: &str, bytes: &[u8]) -> FolderEntry {
    FolderEntry { path: path.into(), size: bytes.len() as u64, digest: Digest::of(bytes) }
}

/// A relay that has these blobs.
async fn relay(blobs: &[&[u8]]) -> (Server, Origin) {
    let blobs: HashMap<String, Vec<u8>> =
        blobs.iter().map(|b| (Digest::of(b).to_string(), b.to_vec())).collect();
    let server = Server::start(move |_, request| {
        let digest = request.split([' ', '/']).nth(4).unwrap();
        match blobs.get(digest) {
            Some(blob) => Reply::Close(ok("", blob)),
            None => Reply::Close(status("404 Not Found", "", b"")),
        }
    })
    .await;
    let origin = Origin::new(&server.url(""), "t").unwrap();
    (server, origin)
}

async fn folder(
    fetcher: &Fetcher,
    reference: &Reference,
    pin: Option<Digest>,
    names: [&[&str]; 2],
) -> Result<LocalFolder, FetchError> {
    fetcher.fetch_folder(reference, pin, None, names[0], names[1], |_, _| {}).await
}

fn contents(folder: &LocalFolder) -> Vec<(&str, Vec<u8>)> {
    folder.files.iter().map(|(name, path)| (name.as_str(), std::fs::read(path).unwrap())).collect()
}

#[tokio::test]
async fn artifact_folders_bring_what_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let manifest =
        FolderManifest::new(vec![entry("a", b"A"), entry("d/b", b"BB"), entry("c", b"C")]).unwrap();
    let bytes = manifest.to_bytes();
    let (server, origin) = relay(&[&bytes, b"A", b"BB"]).await;
    let fetcher = fetcher(dir.path(), policy());
    let reference = Reference::artifact_folder(manifest.digest());
    let want = async |required: &[&str], optional: &[&str]| {
        fetcher.fetch_folder(&reference, None, Some(&origin), required, optional, |_, _| {}).await
    };
    let part = want(&["a", "d/b"], &["absent"]).await.unwrap();
    assert_eq!(part.digest, manifest.digest());
    assert_eq!(contents(&part), [("a", b"A".to_vec()), ("d/b", b"BB".to_vec())]);
    assert_eq!(server.requests().len(), 3);
    assert_eq!(want(&["a"], &["d/b"]).await.unwrap(), part, "from the store");
    assert_eq!(server.requests().len(), 3);

    let error = want(&["a", "absent"], &[]).await.unwrap_err();
    assert!(error.code() == "not_found" && error.to_string().contains("absent"), "{error}");
    assert_eq!(want(&["../a"], &[]).await.unwrap_err().code(), "bad_reference");
    assert_eq!(want(&[], &[]).await.unwrap_err().code(), "not_found", "the relay lacks c");
    let other = Some(Digest::of(b""));
    let error =
        fetcher.fetch_folder(&reference, other, Some(&origin), &[], &[], |_, _| {}).await.unwrap_err();
    assert_eq!(error.code(), "hash_mismatch");
    assert_eq!(get(&fetcher, &reference).await.unwrap_err().code(), "bad_reference", "a folder is no file");
}

#[tokio::test]
async fn bad_manifests_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let lying = FolderManifest::new(vec![FolderEntry { size: 7, ..entry("a", b"A") }]).unwrap().to_bytes();
    let huge =
        FolderManifest::new(vec![FolderEntry { size: u64::MAX, ..entry("a", b"A") }, entry("b", b"A")]);
    let huge = huge.unwrap().to_bytes();
    let garbage = b"../../etc/passwd\0".as_slice();
    let (_server, origin) = relay(&[&lying, &huge, garbage, b"A"]).await;
    let fetcher = fetcher(dir.path(), policy());
    for (blob, code) in [(lying.as_slice(), "bad_manifest"), (garbage, "bad_manifest"), (&huge, "too_large")]
    {
        let reference = Reference::artifact_folder(Digest::of(blob));
        let error =
            fetcher.fetch_folder(&reference, None, Some(&origin), &[], &[], |_, _| {}).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
}

#[tokio::test]
async fn folders_at_urls_need_names_and_match_their_pin() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, request| match request.split(' ').nth(1) {
        Some("/m/config.json") => Reply::Close(ok("", b"{}")),
        Some("/m/w/a%20b") => Reply::Close(ok("", b"W")),
        _ => Reply::Close(status("404 Not Found", "", b"")),
    })
    .await;
    let fetcher = fetcher(dir.path(), policy());
    let reference = server.reference("/m/");
    let pin = FolderManifest::new(vec![entry("config.json", b"{}"), entry("w/a b", b"W")]).unwrap().digest();

    let wrong = folder(&fetcher, &reference, Some(Digest::of(b"x")), [&["config.json"], &["w/a b"]]).await;
    assert_eq!(wrong.unwrap_err().code(), "hash_mismatch");
    assert_eq!(folder(&fetcher, &reference, None, [&[], &[]]).await.unwrap_err().code(), "bad_reference");
    let missing = folder(&fetcher, &reference, None, [&["config.json", "absent"], &[]]).await.unwrap_err();
    assert!(missing.code() == "not_found" && missing.to_string().contains("absent"), "{missing}");
    let file = server.reference("/m");
    assert_eq!(folder(&fetcher, &file, None, [&["a"], &[]]).await.unwrap_err().code(), "bad_reference");
    assert_empty(&fetcher, dir.path()).await;

    let got =
        folder(&fetcher, &reference, Some(pin), [&["config.json"], &["w/a b", "absent"]]).await.unwrap();
    assert_eq!(got.digest, pin);
    assert_eq!(contents(&got), [("config.json", b"{}".to_vec()), ("w/a b", b"W".to_vec())]);
    let requests = server.requests().len();
    assert_eq!(folder(&fetcher, &reference, Some(pin), [&["config.json"], &["w/a b"]]).await.unwrap(), got);
    assert_eq!(server.requests().len(), requests, "a pinned folder in the store needs no network");
}

#[tokio::test]
async fn the_limit_of_bytes_is_for_the_whole_folder() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::serving(b"12345").await;
    let limit = FetchPolicy { max_bytes: 9, ..policy() };
    let fetcher = fetcher(dir.path(), limit);
    let reference = server.reference("/");
    assert_eq!(folder(&fetcher, &reference, None, [&["a"], &[]]).await.unwrap().files.len(), 1);
    assert_eq!(folder(&fetcher, &reference, None, [&["a", "b"], &[]]).await.unwrap_err().code(), "too_large");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn files_of_a_folder_come_side_by_side_but_not_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    // No answer goes out before two requests are here, and more than two are never here.
    let (together, here) = (Barrier::new(2), AtomicUsize::new(0));
    let server = Server::start(move |_, request| {
        assert!(here.fetch_add(1, Ordering::SeqCst) < 2);
        // A worker that waits hands its other tasks on: the request that is waited for may be among them.
        tokio::task::block_in_place(|| together.wait());
        here.fetch_sub(1, Ordering::SeqCst);
        let body = request.split(' ').nth(1).unwrap().as_bytes().to_vec();
        tokio::task::block_in_place(|| together.wait());
        Reply::Close(ok("", &body))
    })
    .await;
    let fetcher = fetcher(dir.path(), FetchPolicy { max_parallel: 2, max_tries: 1, ..policy() });
    let got = folder(&fetcher, &server.reference("/m/"), None, [&["a", "b", "c", "d"], &[]]).await.unwrap();
    let wanted = ["a", "b", "c", "d"].map(|name| (name, format!("/m/{name}").into_bytes()));
    assert_eq!(contents(&got), wanted);
}

#[tokio::test]
async fn progress_is_over_all_files() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = FolderManifest::new(vec![entry("a", b"A"), entry("b", b"BB"), entry("c", b"A")]).unwrap();
    let (_server, origin) = relay(&[&manifest.to_bytes(), b"A", b"BB"]).await;
    let fetcher = fetcher(dir.path(), policy());
    let reference = Reference::artifact_folder(manifest.digest());
    let seen = Mutex::new(Vec::new());
    let report = |done, total| seen.lock().unwrap().push((done, total));
    fetcher.fetch_folder(&reference, None, Some(&origin), &[], &[], report).await.unwrap();
    let seen = seen.into_inner().unwrap();
    assert!(seen.iter().all(|(_, total)| *total == Some(4)), "{seen:?}");
    assert_eq!(seen.last(), Some(&(4, Some(4))));
    let seen = Mutex::new(Vec::new());
    let report = |done, total| seen.lock().unwrap().push((done, total));
    fetcher.fetch_folder(&reference, None, None, &[], &[], report).await.unwrap();
    assert_eq!(seen.into_inner().unwrap(), [(4, Some(4))], "from the store");
}

/// A folder that is allowed, one that is not, and a fetcher that knows.
fn local(dir: &Path) -> (Fetcher, impl Fn(&str) -> Reference) {
    std::fs::create_dir_all(dir.join("allowed/m")).unwrap();
    std::fs::create_dir_all(dir.join("secret")).unwrap();
    std::fs::write(dir.join("allowed/m/a"), "A").unwrap();
    std::fs::write(dir.join("secret/key"), "K").unwrap();
    let allowed = FetchPolicy { allowed_dirs: vec![dir.join("allowed")], max_bytes: 4, ..policy() };
    let reference = move |path: &str| format!("file://{}/{path}", dir.display()).parse().unwrap();
    (fetcher(dir, allowed), reference)
}

#[tokio::test]
async fn files_of_this_machine_are_served_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let (fetcher, reference) = local(dir.path());
    std::os::unix::fs::symlink(dir.path().join("allowed/m/a"), dir.path().join("allowed/inside")).unwrap();
    for path in ["allowed/m/a", "allowed/inside"] {
        let file = get(&fetcher, &reference(path)).await.unwrap();
        assert_eq!((file.path, file.size), (dir.path().canonicalize().unwrap().join("allowed/m/a"), 1));
    }
    assert_empty(&fetcher, dir.path()).await;
    let pin = Some(Digest::of(b"B"));
    let error = fetcher.fetch_file(&reference("allowed/m/a"), pin, None, |_, _| {}).await.unwrap_err();
    assert_eq!(error.code(), "hash_mismatch");
}

#[tokio::test]
async fn files_outside_the_allowed_folders_stay_secret() {
    let dir = tempfile::tempdir().unwrap();
    let (fetcher, reference) = local(dir.path());
    let root = dir.path();
    std::os::unix::fs::symlink(root.join("secret/key"), root.join("allowed/link")).unwrap();
    std::os::unix::fs::symlink(root.join("secret"), root.join("allowed/dir")).unwrap();
    std::os::unix::fs::symlink(root.join("secret/absent"), root.join("allowed/dangling")).unwrap();
    std::os::unix::fs::symlink("loop", root.join("allowed/loop")).unwrap();
    std::fs::write(root.join("allowed/large"), "12345").unwrap();
    std::fs::create_dir(root.join("allowed-not")).unwrap();
    std::fs::write(root.join("allowed-not/x"), "x").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("allowed/socket")).unwrap();
    for (path, code) in [
        ("secret/key", "not_allowed"),
        ("secret/absent", "not_allowed"),
        ("allowed-not/x", "not_allowed"),
        ("allowed/link", "not_allowed"),
        ("allowed/dir/key", "not_allowed"),
        ("allowed/../secret/key", "not_allowed"),
        ("allowed/%2e%2e/secret/key", "not_allowed"),
        ("allowed/..%2Fsecret%2Fkey", "not_allowed"),
        ("allowed/..%2Fsecret%2Fabsent", "not_allowed"),
        ("allowed/socket", "not_allowed"),
        ("allowed/dangling", "not_found"),
        ("allowed/absent", "not_found"),
        ("allowed/m/a/b", "not_found"),
        ("allowed/large", "too_large"),
        ("allowed/m", "bad_reference"),
        ("allowed/m/", "bad_reference"),
        ("allowed/loop", "io"),
    ] {
        let error = get(&fetcher, &reference(path)).await.unwrap_err();
        assert_eq!(error.code(), code, "{path}: {error}");
    }
    let none_allowed = Fetcher::new(FetchPolicy::default(), fetcher.store().clone()).unwrap();
    assert_eq!(get(&none_allowed, &reference("allowed/m/a")).await.unwrap_err().code(), "not_allowed");
}

#[tokio::test]
async fn folders_of_this_machine_are_hashed_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (fetcher, reference) = local(dir.path());
    std::fs::create_dir(dir.path().join("allowed/m/d")).unwrap();
    std::fs::write(dir.path().join("allowed/m/d/b"), "BB").unwrap();
    let manifest = FolderManifest::new(vec![entry("a", b"A"), entry("d/b", b"BB")]).unwrap();
    assert_eq!(FolderManifest::of_dir(&dir.path().join("allowed/m")).await.unwrap(), manifest);
    for path in ["allowed/m", "allowed/m/"] {
        let all = folder(&fetcher, &reference(path), Some(manifest.digest()), [&[], &[]]).await.unwrap();
        assert_eq!(contents(&all), [("a", b"A".to_vec()), ("d/b", b"BB".to_vec())]);
        let one = folder(&fetcher, &reference(path), None, [&["d/b"], &["x"]]).await.unwrap();
        assert_eq!((one.digest, one.files.len()), (manifest.digest(), 1));
    }
    for (path, pin, names, code) in [
        ("allowed/m", Some(Digest::of(b"")), [&[] as &[&str], &[]], "hash_mismatch"),
        ("allowed/m", None, [&["absent"], &[]], "not_found"),
        ("allowed/m/a", None, [&[], &[]], "bad_reference"),
        ("secret", None, [&[], &[]], "not_allowed"),
    ] {
        assert_eq!(folder(&fetcher, &reference(path), pin, names).await.unwrap_err().code(), code, "{path}");
    }
    std::os::unix::fs::symlink(dir.path().join("secret/key"), dir.path().join("allowed/m/k")).unwrap();
    let error = folder(&fetcher, &reference("allowed/m"), None, [&["a"], &[]]).await.unwrap_err();
    assert_eq!(error.code(), "not_allowed", "{error}");
}
