//! Files and folders from IPFS gateways, honest ones and others.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use artifact::{Digest, FetchError, FetchPolicy, Fetcher, LocalFolder, Reference};
use cid::Cid;
use cid::multihash::Multihash;
use common::dag::{DAG_PB, Dag, Mischief, RAW, cid_of, gateway, node, unixfs};
use common::{Reply, Server, assert_empty, fetcher, get, ok, policy, redirect, status};
use proptest::prelude::*;

type Files = BTreeMap<String, Vec<u8>>;

fn asking(dir: &Path, gateways: &[&Server]) -> Fetcher {
    let ipfs_gateways = gateways.iter().map(|g| g.url("").parse().unwrap()).collect();
    fetcher(dir, FetchPolicy { ipfs_gateways, ..policy() })
}

fn reference(cid: &Cid, path: &str) -> Reference {
    format!("ipfs://{cid}{path}").parse().unwrap()
}

async fn folder(fetcher: &Fetcher, at: &Reference, names: [&[&str]; 2]) -> Result<LocalFolder, FetchError> {
    fetcher.fetch_folder(at, None, None, names[0], names[1], |_, _| {}).await
}

fn contents(folder: &LocalFolder) -> Files {
    folder.files.iter().map(|(name, path)| (name.clone(), std::fs::read(path).unwrap())).collect()
}

/// Bytes without repetition, so that no two blocks are alike.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in 0_u64.. {
        if bytes.len() >= len {
            break;
        }
        bytes.extend(Digest::of(&[seed.to_le_bytes(), part.to_le_bytes()].concat()).0);
    }
    bytes.truncate(len);
    bytes
}

/// A folder `d` with a nested file and one beside it, below a root.
fn sample() -> (Arc<Dag>, Cid, Files) {
    let mut dag = Dag::default();
    let files = Files::from([
        ("big".to_owned(), noise(5000, 1)),
        ("d/old".to_owned(), noise(3000, 2)),
        ("d/repeated".to_owned(), vec![7; 4000]),
        ("empty".to_owned(), Vec::new()),
        ("é b".to_owned(), b"small".to_vec()),
    ]);
    let big = dag.file(&files["big"], 256, 4, true);
    let old = dag.file(&files["d/old"], 256, 3, false);
    let repeated = dag.file(&files["d/repeated"], 256, 5, true);
    let (empty, small) = (dag.file(b"", 256, 2, true), dag.file(b"small", 256, 2, false));
    let inner = dag.folder(&[("old".into(), old), ("repeated".into(), repeated)]);
    let root = dag.folder(&[
        ("big".into(), big),
        ("d".into(), inner),
        ("empty".into(), empty),
        ("é b".into(), small),
    ]);
    (Arc::new(dag), root, files)
}

#[tokio::test]
async fn a_whole_folder_comes_in_one_archive() {
    let dir = tempfile::tempdir().unwrap();
    let (dag, root, files) = sample();
    let server = gateway(&dag, Mischief::None, 0).await;
    let fetcher = asking(dir.path(), &[&server]);
    let got = folder(&fetcher, &reference(&root, "/"), [&[], &[]]).await.unwrap();
    assert_eq!(contents(&got), files);
    assert_eq!(server.requests().len(), 1, "{:?}", server.requests());
    assert!(server.requests()[0].contains("accept: application/vnd.ipld.car;version=1;order=dfs;dups=n\r\n"));

    let pinned =
        fetcher.fetch_folder(&reference(&root, ""), Some(got.digest), None, &[], &[], |_, _| {}).await;
    assert_eq!(pinned.unwrap(), got);
    assert_eq!(server.requests().len(), 1, "a pinned folder in the store needs no network");
    let wrong =
        fetcher.fetch_folder(&reference(&root, ""), Some(Digest::of(b"x")), None, &[], &[], |_, _| {}).await;
    assert_eq!(wrong.unwrap_err().code(), "hash_mismatch");
}

#[tokio::test]
async fn paths_and_names_bring_only_what_they_name() {
    let dir = tempfile::tempdir().unwrap();
    let (dag, root, files) = sample();
    let server = gateway(&dag, Mischief::None, 0).await;
    let fetcher = asking(dir.path(), &[&server]);
    let seen = Mutex::new(Vec::new());
    let report = |done, total| seen.lock().unwrap().push((done, total));
    let file = fetcher.fetch_file(&reference(&root, "/d/old"), None, None, report).await.unwrap();
    assert_eq!((file.digest, file.size), (Digest::of(&files["d/old"]), 3000));
    assert_eq!(seen.into_inner().unwrap().last(), Some(&(3000, Some(3000))));
    assert_eq!(server.requests().len(), 3, "two folders, one tree");
    assert_eq!(get(&fetcher, &reference(&root, "/%C3%A9%20b")).await.unwrap().size, 5);

    let some =
        folder(&fetcher, &reference(&root, ""), [&["d/repeated"], &["empty", "absent", "big/x"]]).await;
    let names: Vec<_> = contents(&some.unwrap()).into_keys().collect();
    assert_eq!(names, ["d/repeated", "empty"]);
    for (path, code) in [
        ("/d", "bad_reference"),
        ("/absent", "not_found"),
        ("/big/x", "not_found"),
        ("/%ff", "bad_reference"),
    ] {
        assert_eq!(get(&fetcher, &reference(&root, path)).await.unwrap_err().code(), code, "{path}");
    }
    let missing = folder(&fetcher, &reference(&root, ""), [&["absent"], &[]]).await.unwrap_err();
    assert_eq!(missing.code(), "not_found");
    assert_eq!(
        folder(&fetcher, &reference(&root, "/big"), [&[], &[]]).await.unwrap_err().code(),
        "bad_reference"
    );
}

/// Made by the npm package `ipfs-car` 3: `ipfs-car pack tree --no-wrap`.
#[tokio::test]
async fn an_archive_of_another_writer_reads() {
    let dir = tempfile::tempdir().unwrap();
    let car = include_bytes!("data/tree.car");
    let root: Cid = "bafybeihvdfvaytru4t3t3e7htp2oeyckg3cbidak33jpyfkum2ig76soli".parse().unwrap();
    let server = Server::start(move |_, _| Reply::Close(ok("", car))).await;
    let got = folder(&asking(dir.path(), &[&server]), &reference(&root, ""), [&[], &[]]).await.unwrap();
    let files = contents(&got);
    assert_eq!(files.keys().collect::<Vec<_>>(), ["a.txt", "sub/data.bin", "sub/empty"]);
    assert_eq!((files["a.txt"].as_slice(), files["sub/empty"].len()), (b"hello ipfs\n".as_slice(), 0));
    let data: Cid = "bafkreiew7qyr3r6tc64ae7wab7qd7m6weq4lj3ynb2r7a5x4ijs4wasklq".parse().unwrap();
    assert_eq!((files["sub/data.bin"].len(), cid_of(RAW, &files["sub/data.bin"])), (9000, data));
    assert_eq!(server.requests().len(), 1, "its order is another one, and nothing is asked for twice");
}

/// Made by the npm package `@ipld/unixfs` 3: a sharded folder of 41 files, one of them of three levels.
#[tokio::test]
async fn sharded_folders_read() {
    let root: Cid = "bafybeia2hqkmq5gm3mgo7tdzlnuqjnzn4fc5tbibkmik2lsyns722opcla".parse().unwrap();
    let mut wanted: Files =
        (0..40).map(|i| (format!("n{i}.txt"), format!("file {}\n", i % 5).into_bytes())).collect();
    let mut state = 1.0_f64;
    let big = std::iter::repeat_with(|| {
        state = (state * 1_103_515_245.0 + 12_345.0) % 2_147_483_648.0;
        ((state as u32) >> 16) as u8
    });
    wanted.insert("big.bin".to_owned(), big.take(9000).collect());

    let car = include_bytes!("data/shards.car");
    let server = Server::start(move |_, _| Reply::Close(ok("", car))).await;
    let dir = tempfile::tempdir().unwrap();
    let all = folder(&asking(dir.path(), &[&server]), &reference(&root, ""), [&[], &[]]).await.unwrap();
    assert_eq!(contents(&all), wanted);

    let dag = Dag::read(car);
    let blocks: Vec<(Cid, Vec<u8>)> = dag.blocks();
    let singles = Server::start(move |_, request| {
        let path = request.split([' ', '?']).nth(1).unwrap();
        let block = blocks.iter().find(|(cid, _)| path == format!("/ipfs/{cid}"));
        match block {
            Some((_, block)) if request.contains("format=raw") => Reply::Close(ok("", block)),
            Some((cid, block)) if *cid != root => Reply::Close(ok("", &Dag::car_of(&[(*cid, block)]))),
            Some(_) | None => Reply::Close(status("400 Bad Request", "", b"")),
        }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let fetcher = asking(dir.path(), &[&singles]);
    assert_eq!(get(&fetcher, &reference(&root, "/n39.txt")).await.unwrap().digest, Digest::of(b"file 4\n"));
    assert_eq!(get(&fetcher, &reference(&root, "/n40.txt")).await.unwrap_err().code(), "not_found");
}

#[tokio::test]
async fn a_lying_gateway_is_found_out_and_the_next_asked_for_the_rest() {
    let (dag, root, files) = sample();
    for (mischief, times) in [
        (Mischief::Flip(40_000), 1),
        (Mischief::Truncate(30_000), usize::MAX),
        (Mischief::Omit(9), usize::MAX),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (bad, good) = (gateway(&dag, mischief, times).await, gateway(&dag, Mischief::None, 0).await);
        let got =
            folder(&asking(dir.path(), &[&bad, &good]), &reference(&root, ""), [&[], &[]]).await.unwrap();
        assert_eq!(contents(&got), files, "{mischief:?}");
        assert_eq!(bad.requests().len(), 1, "{mischief:?}");
        let (first, _) =
            bad.requests()[0].split_once(" http").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        assert!(
            !good.requests().is_empty() && !good.requests().iter().any(|r| r.starts_with(&first)),
            "{mischief:?}"
        );
    }
}

#[tokio::test]
async fn gateways_that_do_not_serve_are_passed_over() {
    let (dag, root, files) = sample();
    let silent = Server::start(|_, _| Reply::Close(Vec::new())).await;
    let inward = Server::start(|_, _| redirect("http://169.254.169.254/latest/meta-data/")).await;
    let packed = Server::start(|_, _| Reply::Close(ok("content-encoding: br\r\n", b"x"))).await;
    let mut bad = vec![silent, inward, packed];
    for mischief in [Mischief::NotFound, Mischief::ServerError, Mischief::WebPage, Mischief::Empty] {
        bad.push(gateway(&dag, mischief, usize::MAX).await);
    }
    let dir = tempfile::tempdir().unwrap();
    let error = get(&asking(dir.path(), &bad.iter().collect::<Vec<_>>()), &reference(&root, "/big"))
        .await
        .unwrap_err();
    assert_eq!(error.code(), "no_gateway_served_it");
    let text = error.to_string();
    for part in [
        "169.254.169.254, which is not public",
        "content-encoding br",
        "does not have it",
        "status 502",
        "other bytes",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let good = gateway(&dag, Mischief::None, 0).await;
    bad.push(good);
    let dir = tempfile::tempdir().unwrap();
    let fetcher = asking(dir.path(), &bad.iter().collect::<Vec<_>>());
    assert_eq!(contents(&folder(&fetcher, &reference(&root, ""), [&[], &[]]).await.unwrap()), files);

    let lacking = gateway(&dag, Mischief::NotFound, usize::MAX).await;
    let dir = tempfile::tempdir().unwrap();
    let fetcher = asking(dir.path(), &[&lacking, &lacking]);
    assert_eq!(get(&fetcher, &reference(&root, "")).await.unwrap_err().code(), "not_found");
    assert_empty(&fetcher, dir.path()).await;
}

#[tokio::test]
async fn a_gateway_that_sends_on_and_on_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let (_, root, _) = sample();
    // Good blocks, but none of the tree.
    let mut other = Dag::default();
    let stray = other.file(&noise(60_000, 9), 60_000, 2, true);
    let flood: Vec<Cid> = vec![stray; 400];
    let car = other.car(&flood);
    let server = Server::start(move |_, _| Reply::Endless(status("200 OK", "", &car))).await;
    let fetcher = asking(dir.path(), &[&server]);
    let error = folder(&fetcher, &reference(&root, ""), [&[], &[]]).await.unwrap_err();
    assert_eq!(error.code(), "no_gateway_served_it", "{error}");
    assert_empty(&fetcher, dir.path()).await;
}

#[tokio::test]
async fn inline_blocks_and_other_hashes_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let mut dag = Dag::default();
    let inline = Cid::new_v1(RAW, Multihash::wrap(0, b"tiny").unwrap());
    let raw = dag.put(RAW, b"block".to_vec(), Vec::new());
    let old = dag.file(b"version 0", 100, 2, false);
    let version_0 = Cid::new_v0(*old.hash()).unwrap();
    let block = b"by another hash".to_vec();
    let sha512 = Cid::new_v1(RAW, Multihash::wrap(0x13, &sha2_512(&block)).unwrap());
    let (dag_v0, theirs) = (node(&[], &unixfs(2, b"version 0", &[], None)), dag);
    let server = Server::start(move |_, request| {
        let path = request.split([' ', '?']).nth(1).unwrap();
        if path == format!("/ipfs/{version_0}") {
            return Reply::Close(ok("", &Dag::car_of(&[(version_0, &dag_v0)])));
        }
        if path == format!("/ipfs/{sha512}") {
            return Reply::Close(ok("", &block));
        }
        theirs.answer(request, Mischief::None)
    })
    .await;
    let fetcher = asking(dir.path(), &[&server]);
    for (cid, bytes) in
        [(inline, &b"tiny"[..]), (raw, b"block"), (version_0, b"version 0"), (sha512, b"by another hash")]
    {
        let file = get(&fetcher, &reference(&cid, "")).await.unwrap();
        assert_eq!(std::fs::read(file.path).unwrap(), bytes, "{cid}");
    }
    let requests = server.requests().len();
    let hash = |code, len: usize| Multihash::wrap(code, &[1; 64][..len]).unwrap();
    for (cid, code) in [
        (Cid::new_v1(0x71, hash(0x12, 32)), "unsupported_codec"),
        (Cid::new_v1(0x0129, hash(0x12, 32)), "unsupported_codec"),
        (Cid::new_v1(RAW, hash(0xb220, 32)), "unsupported_hash"),
        (Cid::new_v1(RAW, hash(0x12, 20)), "unsupported_hash"),
    ] {
        let error = get(&fetcher, &reference(&cid, "")).await.unwrap_err();
        assert_eq!(error.code(), code, "{cid}");
    }
    assert_eq!(
        get(&fetcher, &"ipfs://baaaaaaaaaa".parse().unwrap()).await.unwrap_err().code(),
        "bad_reference"
    );
    assert_eq!(server.requests().len(), requests, "nothing was asked for");
}

fn sha2_512(bytes: &[u8]) -> Vec<u8> {
    use sha2::Digest as _;
    sha2::Sha512::digest(bytes).to_vec()
}

#[tokio::test]
async fn malformed_trees_are_the_requesters_fault() {
    let dir = tempfile::tempdir().unwrap();
    let mut dag = Dag::default();
    let leaf = dag.put(RAW, b"leaf".to_vec(), Vec::new());
    let named = |name: &str| (name.to_owned(), leaf);
    let inner = dag.folder(&[named("x")]);
    let cases = [
        (b"\xff\xff".to_vec(), "bad_block"),
        (node(&[], b""), "bad_reference"),
        (node(&[], b"\xff"), "bad_block"),
        (node(&[named("")], &unixfs(2, b"", &[5], None)), "bad_block"),
        (node(&[named("")], &unixfs(2, b"", &[], None)), "bad_block"),
        (node(&[named(""), named("")], &unixfs(2, b"", &[u64::MAX, 4], None)), "bad_block"),
        (node(&[("".to_owned(), inner)], &unixfs(2, b"", &[4], None)), "bad_block"),
        (node(&[named("")], &unixfs(2, b"", &[1 << 40], None)), "too_large"),
        (node(&[], &unixfs(4, b"/etc/passwd", &[], None)), "unsupported_node"),
        (node(&[], &unixfs(9, b"", &[], None)), "unsupported_node"),
        (node(&[named("../x")], &unixfs(1, b"", &[], None)), "bad_block"),
        (node(&[named("..")], &unixfs(1, b"", &[], None)), "bad_manifest"),
        (node(&[named("")], &unixfs(1, b"", &[], None)), "bad_manifest"),
        (node(&[named("a"), named("a")], &unixfs(1, b"", &[], None)), "bad_block"),
        (node(&[named("0")], &unixfs(5, b"", &[], Some(256))), "bad_block"),
        (node(&[named("FF")], &unixfs(5, b"", &[], Some(256))), "bad_block"),
        (node(&[named("00a")], &unixfs(5, b"", &[], Some(3))), "bad_block"),
        (node(&[named("00a"), named("01a")], &unixfs(5, b"", &[], Some(256))), "bad_block"),
    ];
    let links = |block: &[u8]| if block.len() > 8 { vec![leaf, inner] } else { Vec::new() };
    let roots: Vec<_> =
        cases.iter().map(|(block, code)| (dag.put(DAG_PB, block.clone(), links(block)), *code)).collect();
    let dag = Arc::new(dag);
    let server = gateway(&dag, Mischief::None, 0).await;
    let fetcher = asking(dir.path(), &[&server]);
    for (index, (root, code)) in roots.iter().enumerate() {
        let as_folder = folder(&fetcher, &reference(root, ""), [&[], &[]]).await;
        let error = match as_folder {
            Err(error) if error.code() == "bad_reference" => {
                match get(&fetcher, &reference(root, "")).await {
                    Err(error) => error,
                    Ok(_) => error,
                }
            }
            Err(error) => error,
            Ok(_) => panic!("case {index} was taken"),
        };
        assert_eq!(error.code(), *code, "case {index}: {error}");
    }
}

#[tokio::test]
async fn trees_are_bounded_in_blocks_bytes_and_depth() {
    let (dag, root, _) = sample();
    let server = gateway(&dag, Mischief::None, 0).await;
    let limited = |limit: fn(FetchPolicy) -> FetchPolicy| {
        let dir = tempfile::tempdir().unwrap();
        let gateways = vec![server.url("").parse().unwrap()];
        let limits = limit(FetchPolicy { ipfs_gateways: gateways, ..policy() });
        (fetcher(dir.path(), limits), dir)
    };
    for (limit, code) in [
        ((|p| FetchPolicy { max_blocks: 20, ..p }) as fn(FetchPolicy) -> FetchPolicy, "bad_block"),
        (|p| FetchPolicy { max_bytes: 4999, ..p }, "too_large"),
        (|p| FetchPolicy { max_bytes: 11_000, ..p }, "too_large"),
        (|p| FetchPolicy { max_block_bytes: 255, ..p }, "no_gateway_served_it"),
    ] {
        let (fetcher, _dir) = limited(limit);
        let error = folder(&fetcher, &reference(&root, ""), [&[], &[]]).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    // A file and a folder of too many levels.
    let mut deep = Dag::default();
    let mut file = deep.put(RAW, b"x".to_vec(), Vec::new());
    let mut nested = deep.folder(&[]);
    for _ in 0..70 {
        file = deep.put(DAG_PB, node(&[(String::new(), file)], &unixfs(2, b"", &[1], None)), vec![file]);
        nested = deep.folder(&[("d".into(), nested)]);
    }
    let server = gateway(&Arc::new(deep), Mischief::None, 0).await;
    let dir = tempfile::tempdir().unwrap();
    let fetcher = asking(dir.path(), &[&server]);
    assert_eq!(get(&fetcher, &reference(&file, "")).await.unwrap_err().code(), "bad_block");
    assert_eq!(
        folder(&fetcher, &reference(&nested, ""), [&[], &[]]).await.unwrap_err().code(),
        "bad_manifest"
    );
}

#[tokio::test]
async fn a_tree_of_too_many_blocks_is_given_up_when_they_are_known() {
    const BLOCKS: u64 = 20;
    let mut dag = Dag::default();
    // A block that no gateway has is the first of as many as may be read in all, the root among them.
    let absent = cid_of(RAW, b"absent");
    let empty = Cid::new_v1(RAW, Multihash::wrap(0, b"").unwrap());
    let tree = |dag: &mut Dag, count: u64| {
        let parts: Vec<Cid> = std::iter::once(absent).chain((1..count).map(|_| empty)).collect();
        let links = |name: fn(usize) -> String| {
            parts.iter().enumerate().map(|(number, cid)| (name(number), *cid)).collect::<Vec<_>>()
        };
        let sizes: Vec<u64> = parts.iter().map(|cid| if *cid == absent { 6 } else { 0 }).collect();
        let file = node(&links(|_| String::new()), &unixfs(2, b"", &sizes, None));
        (dag.put(DAG_PB, file, Vec::new()), dag.folder(&links(|number| number.to_string())))
    };
    let ((fitting, fitting_folder), (wide, wide_folder)) =
        (tree(&mut dag, BLOCKS - 1), tree(&mut dag, BLOCKS));
    let server = gateway(&Arc::new(dag), Mischief::None, 0).await;
    let dir = tempfile::tempdir().unwrap();
    let ipfs_gateways = vec![server.url("").parse().unwrap()];
    let fetcher = fetcher(dir.path(), FetchPolicy { ipfs_gateways, max_blocks: BLOCKS, ..policy() });
    for (file, of_folder, code) in [(fitting, fitting_folder, "not_found"), (wide, wide_folder, "bad_block")]
    {
        let error = get(&fetcher, &reference(&file, "")).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        let error = folder(&fetcher, &reference(&of_folder, ""), [&[], &[]]).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
}

fn mischief() -> impl Strategy<Value = Mischief> {
    prop_oneof![
        any::<u16>().prop_map(Mischief::Flip),
        any::<u16>().prop_map(Mischief::Truncate),
        any::<usize>().prop_map(Mischief::Omit),
        any::<u64>().prop_map(Mischief::Reorder),
        Just(Mischief::Empty),
        Just(Mischief::NotFound),
        Just(Mischief::WebPage),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_gateways_do_no_byte_is_wrong(
        sizes in prop::collection::vec((0_usize..4000, any::<bool>()), 1..5),
        chunk in 1_usize..700,
        width in 2_usize..6,
        mischief in mischief(),
        times in 1_usize..6,
        helped: bool,
    ) {
        let mut dag = Dag::default();
        let mut files = Files::new();
        let (mut inner, mut outer) = (Vec::new(), Vec::new());
        for (index, (len, raw_leaves)) in sizes.into_iter().enumerate() {
            // Every other file repeats itself.
            let bytes = if index % 2 == 0 { noise(len, index as u64) } else { vec![1; len] };
            let cid = dag.file(&bytes, chunk.max(len / 60 + 1), width, raw_leaves);
            let name = format!("f{index}");
            let (folder, path) = if index < 2 { (&mut outer, name.clone()) } else { (&mut inner, format!("d/{name}")) };
            folder.push((name, cid));
            files.insert(path, bytes);
        }
        if !inner.is_empty() {
            let inner = dag.folder(&inner);
            outer.insert(0, ("d".to_owned(), inner));
        }
        let root = dag.folder(&outer);
        let dag = Arc::new(dag);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result = runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let bad = gateway(&dag, mischief, if helped { usize::MAX } else { times }).await;
            let good = gateway(&dag, Mischief::None, 0).await;
            let gateways: &[&Server] = if helped { &[&bad, &good] } else { &[&bad] };
            folder(&asking(dir.path(), gateways), &reference(&root, ""), [&[], &[]]).await.map(|got| contents(&got))
        });
        match result {
            Ok(got) => prop_assert!(got == files, "other bytes"),
            Err(error) => {
                prop_assert!(!helped, "{error}");
                prop_assert!(matches!(error.code(), "no_gateway_served_it" | "not_found"), "{}: {error}", error.code());
            }
        }
    }
}
