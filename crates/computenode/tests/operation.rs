//! Operating a node: draining it, a full disk, GPUs, logs, and the codes of failures.

mod support;

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use artifact::{ContentError, Digest, FetchError, ManifestError, Unreached, Wait};
use axum::extract::Path;
use computenode::runtime::RunCode;
use reqwest::{Method, StatusCode};
use rpc::failure::{self, Blame};
use serde_json::{Value, json};

use support::http::{compute_request, ended, task_id};
use support::node::TestNode;
use support::process::Process;
use support::program;

fn refusal(answer: (StatusCode, Value)) -> (u16, String, String) {
    let (status, body) = answer;
    let text = |field: &str| body["error"][field].as_str().unwrap_or_default().to_owned();
    (status.as_u16(), text("code"), text("message"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_finishes_what_runs_and_takes_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let node = TestNode::start(folder.path(), &["--slots", "2"]).await;
    let api = &node.api;
    api.json(Method::POST, "/compute", Some(&compute_request(folder.path(), 1, "spin", ""))).await;

    let (status, report) = api.json(Method::POST, "/drain", None).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        (&report["draining"], &report["slots"], &report["busy"]),
        (&json!(true), &json!(0), &json!(1))
    );
    let other = compute_request(folder.path(), 2, "upper", "x");
    let refused = refusal(api.json(Method::POST, "/compute", Some(&other)).await);
    assert_eq!(refused, (503, "unavailable".into(), "the node is draining".into()));
    // What runs goes on, and an attempt that is known is answered.
    let again = compute_request(folder.path(), 1, "spin", "");
    assert_eq!(api.json(Method::POST, "/compute", Some(&again)).await.0, StatusCode::ACCEPTED);
    assert!(api.text("/metrics").await.contains("zorai_node_draining 1\n"));

    let (_, report) = api.json(Method::DELETE, "/drain", None).await;
    assert_eq!((&report["draining"], &report["slots"]), (&json!(false), &json!(2)));
    assert_eq!(api.json(Method::POST, "/compute", Some(&other)).await.0, StatusCode::ACCEPTED);
    assert_eq!(ended(api, 2).await["phase"], "done");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_keeps_tasks_away_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = artifact::BlobStore::open(folder.path().join("data/artifacts")).unwrap();
    let fetched = store.path(&store.put_bytes(b"fetched", None).await.unwrap().0);
    drop(store);
    let node = TestNode::start(folder.path(), &["--min-free-disk", "9000000000000000000"]).await;
    assert!(fetched.exists());
    let (_, report) = node.api.json(Method::GET, "/status", None).await;
    let reason = report["unhealthy"].as_str().unwrap().to_owned();
    assert!(reason.starts_with("the disk has ") && reason.contains(" MiB free, less than "), "{reason}");
    let other = compute_request(folder.path(), 2, "upper", "x");
    let (status, code, message) = refusal(node.api.json(Method::POST, "/compute", Some(&other)).await);
    assert_eq!((status, code.as_str()), (503, "unavailable"));
    assert!(message.contains("MiB free"), "{message}");
    assert!(!fetched.exists(), "nothing was tidied first");
    assert_eq!(
        node.api.json(Method::GET, &format!("/status/{}", task_id(2)), None).await.0,
        StatusCode::NOT_FOUND
    );
    node.stop().await;
}

/// A command that gives what follows it a disk of its own, of `size`, at `place`; `None`, with the reason printed, where that
/// cannot be.
#[expect(clippy::print_stdout, reason = "a test that is skipped says why")]
fn with_disk(size: &str, place: &std::path::Path) -> Option<Command> {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let with = |words: &[&str]| {
        let mut command = Command::new("unshare");
        command.arg(if is_root { "-m" } else { "-rm" }).args(["sh", "-ec"]);
        let mount = format!("mount -t tmpfs -o size={size} tmpfs \"$0\"; exec \"$@\"");
        command.arg(mount).arg(place).args(words);
        command
    };
    if with(&["true"]).status().is_ok_and(|status| status.success()) {
        return Some(with(&[env!("CARGO_BIN_EXE_compute-node")]));
    }
    println!("skipped: a disk cannot be mounted here");
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_finds_the_disk_full_makes_room_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let Some(command) = with_disk("24m", &data) else { return };
    // Programs that are large, and no two alike: a section that nobody reads ends each.
    let large = |Path(number): Path<u8>| async move {
        // A custom section of 5 << 21 bytes, in LEB128, with a name of one letter.
        let head = [0, 0x80, 0x80, 0x80, 5, 1, b'x'];
        [program("upper"), head.to_vec(), vec![number; (5 << 21) - 2]].concat()
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let router = axum::Router::new().route("/{number}", axum::routing::get(large));
    let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });

    let token = folder.path().join("token");
    let node =
        Process::start_by(command, folder.path(), &token, &["--no-container", "--allow-private-addresses"]);
    for number in 1..=3 {
        let mut request = compute_request(folder.path(), number, "upper", "x");
        request["task"]["model_cid"] = json!(format!("http://{addr}/{number}"));
        node.api.json(Method::POST, "/compute", Some(&request)).await;
        let status = ended(&node.api, number).await;
        assert_eq!(status["phase"], "done", "{number}: {status}");
    }
    node.signal("TERM");
    assert!(node.end().success());
    serving.abort();
}

#[tokio::test]
async fn an_engine_that_is_named_must_answer() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    let data = folder.path().join("data");
    let run = |flags: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_compute-node"));
        command.arg("--data").arg(&data).args(["--listen", "127.0.0.1:0"]).args(flags).output().unwrap()
    };
    let flags = ["--container-socket", socket.to_str().unwrap()];
    let started = run(&flags);
    let said = String::from_utf8_lossy(&started.stderr).into_owned();
    // It may be late, as at boot: whatever starts the node is to try again, which it does not for a wrong command line.
    assert_eq!(started.status.code(), Some(1), "{said}");
    assert!(said.contains("no container engine answers at") && said.contains("hint: "), "{said}");
    let checked = run(&[&flags[..], &["check"]].concat());
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(1), "{said}");
    assert!(said.contains("fail  container no container engine answers at"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_is_not_given_twice() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--slots", "3", "--gpu-name", "Test GPU", "--gpu-vram-mb", "1024"];
    let node = TestNode::start(folder.path(), &flags).await;
    let request = |number: u8, program: &str, count: u32, vram: u64| {
        let mut request = compute_request(folder.path(), number, program, "x");
        request["task"]["config"]["gpu_count"] = json!(count);
        request["task"]["config"]["min_vram"] = json!(vram);
        request
    };
    let api = &node.api;
    api.json(Method::POST, "/compute", Some(&request(1, "spin", 1, 512))).await;
    let (status, code, message) =
        refusal(api.json(Method::POST, "/compute", Some(&request(2, "upper", 1, 512))).await);
    assert_eq!((status, code.as_str()), (503, "unavailable"), "{message}");
    let (status, code, message) =
        refusal(api.json(Method::POST, "/compute", Some(&request(3, "upper", 2, 0))).await);
    assert_eq!((status, code.as_str()), (400, "invalid_field"), "{message}");
    assert!(message.starts_with("task.config.gpu_count: "), "{message}");
    // Who needs no GPU is not kept waiting, and a GPU that is left is free.
    api.json(Method::POST, "/compute", Some(&request(4, "upper", 0, 0))).await;
    assert_eq!(ended(api, 4).await["outcome"]["device"], "CPU");
    api.json(Method::DELETE, &format!("/compute/{}", task_id(1)), None).await;
    ended(api, 1).await;
    api.json(Method::POST, "/compute", Some(&request(2, "upper", 1, 512))).await;
    assert_eq!(ended(api, 2).await["outcome"]["device"], "Test GPU");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_for_known_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let node = TestNode::start(folder.path(), &[]).await;
    let api = &node.api;
    let path = format!("/logs/{}", task_id(1));
    assert_eq!(refusal(api.json(Method::GET, &path, None).await).0, 404);
    api.json(Method::POST, "/compute", Some(&compute_request(folder.path(), 1, "spin", ""))).await;
    assert_eq!(refusal(api.json(Method::GET, &format!("{path}?from=x"), None).await).0, 400);
    // It ends with the attempt.
    let follower = api.clone();
    let follow = format!("{path}?follow=true");
    let following = tokio::spawn(async move { follower.send(Method::GET, &follow, None).await.text().await });
    api.json(Method::DELETE, &format!("/compute/{}", task_id(1)), None).await;
    ended(api, 1).await;
    let lines = tokio::time::timeout(std::time::Duration::from_secs(20), following).await.unwrap().unwrap();
    assert_eq!(lines.unwrap(), "");
    assert_eq!(api.send(Method::GET, &path, None).await.headers()["content-type"], "application/x-ndjson");
    node.stop().await;
}

#[test]
fn every_failure_of_a_job_has_its_maker() {
    for code in [
        RunCode::BadParams,
        RunCode::BadModel,
        RunCode::BadInput,
        RunCode::OutOfFuel,
        RunCode::OutOfMemory,
        RunCode::TimedOut,
        RunCode::Trapped,
        RunCode::ExitNonzero,
        RunCode::OutputTooLarge,
        RunCode::BadOutput,
        RunCode::OutOfDisk,
        RunCode::ImageWithoutPlatform,
        RunCode::ImageUnavailable,
        RunCode::CacheBusy,
        RunCode::EgressRefused,
        RunCode::EgressUnavailable,
        RunCode::SandboxUnavailable,
        RunCode::ModelNotFound,
        RunCode::EngineUnavailable,
        RunCode::Cancelled,
        RunCode::Internal,
    ] {
        assert!(failure::is_known(code.as_str()), "{code} is missing in rpc::failure");
        let expected = match code {
            RunCode::SandboxUnavailable
            | RunCode::EngineUnavailable
            | RunCode::Cancelled
            | RunCode::Internal => Blame::Provider,
            RunCode::OutOfMemory
            | RunCode::TimedOut
            | RunCode::OutOfDisk
            | RunCode::ImageUnavailable
            | RunCode::CacheBusy
            | RunCode::EgressRefused
            | RunCode::EgressUnavailable => Blame::Neither,
            RunCode::BadParams
            | RunCode::BadModel
            | RunCode::BadInput
            | RunCode::OutOfFuel
            | RunCode::Trapped
            | RunCode::ExitNonzero
            | RunCode::ModelNotFound
            | RunCode::OutputTooLarge
            | RunCode::BadOutput
            | RunCode::ImageWithoutPlatform => Blame::Requester,
        };
        assert_eq!(failure::blame(code.as_str()), expected, "{code}");
    }
}

/// A failure of each kind, as far as kinds have codes of their own.
fn failures_of_fetches() -> Vec<FetchError> {
    let reference = || "r".to_owned();
    let text = String::new;
    let digest = Digest::of(b"");
    let contents = [
        ContentError::Manifest(ManifestError::TooLong),
        ContentError::Encoded { encoding: text() },
        ContentError::UnsupportedCodec { cid: text(), codec: 0 },
        ContentError::UnsupportedHash { cid: text(), function: 0 },
        ContentError::UnsupportedNode { cid: text(), what: text() },
        ContentError::BadBlock { cid: text(), reason: text() },
        ContentError::NoPlatform { platform: text(), offered: text() },
        ContentError::BadImage { reason: text() },
    ];
    let late = |wait| FetchError::TimedOut { reference: reference(), after: Duration::ZERO, wait };
    let gone = |how| FetchError::Unreachable { reference: reference(), reason: text(), how };
    let disk = |kind: ErrorKind| FetchError::Io { reference: reference(), source: kind.into() };
    let mut failures = vec![
        FetchError::BadReference { reference: reference(), reason: text() },
        FetchError::UnsupportedScheme { reference: reference(), scheme: "ftp", reason: "" },
        FetchError::NotAllowed { reference: reference(), reason: text() },
        FetchError::ForbiddenAddress { reference: reference(), host: text() },
        FetchError::NotFound { reference: reference(), what: text() },
        FetchError::Unauthorized { reference: reference(), status: 401 },
        FetchError::TooLarge { reference: reference(), limit: 1 },
        FetchError::HashMismatch { reference: reference(), expected: digest, actual: digest },
        FetchError::TooManyRedirects { reference: reference(), limit: 1 },
        late(Wait::Server),
        late(Wait::Whole),
        gone(Unreached::Server),
        gone(Unreached::Truncated),
        gone(Unreached::Gateways),
        FetchError::CacheBusy { reference: reference(), needed: 2, limit: 1 },
        disk(ErrorKind::StorageFull),
        disk(ErrorKind::PermissionDenied),
    ];
    let bad = |source| FetchError::BadManifest { reference: reference(), source };
    failures.extend(contents.map(bad));
    failures
}

#[test]
fn every_failure_of_a_fetch_is_known_with_its_maker() {
    for error in failures_of_fetches() {
        assert!(failure::is_known(error.code()), "{} is missing in rpc::failure", error.code());
        let maker = match error {
            FetchError::TimedOut { .. } | FetchError::Unreachable { .. } | FetchError::CacheBusy { .. } => {
                Blame::Neither
            }
            FetchError::Io { .. } => Blame::Provider,
            FetchError::BadReference { .. }
            | FetchError::UnsupportedScheme { .. }
            | FetchError::NotAllowed { .. }
            | FetchError::ForbiddenAddress { .. }
            | FetchError::NotFound { .. }
            | FetchError::Unauthorized { .. }
            | FetchError::TooLarge { .. }
            | FetchError::HashMismatch { .. }
            | FetchError::TooManyRedirects { .. }
            | FetchError::BadManifest { .. } => Blame::Requester,
        };
        assert_eq!(failure::blame(error.code()), maker, "{}", error.code());
    }
}
