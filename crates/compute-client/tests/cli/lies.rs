//! Relays and providers that lie: exit code 5, nothing approved, nothing written.

use crate::support::{Relay, Script, code, json, said, stderr, stdout};
use taskmarket::Status;

#[tokio::test]
async fn no_lie_passes() {
    for (script, reason) in [
        (Script::OtherResult, "the result is not the proven one"),
        (Script::ForgedProof, "the proof: "),
        (Script::OtherSigner, "the proof: "),
        (Script::OtherInput, "another input"),
        (Script::OtherTask, "the relay shows another task"),
    ] {
        let relay = Relay::start(script).await;
        let file = relay.path("result");
        let out = relay.poll(&["--output", &file]).await;
        assert_eq!(code(&out), 5, "{script:?}: {}", said(&out));
        assert!(stderr(&out).contains(reason), "{script:?} lacks {reason:?}: {}", said(&out));
        assert!(!std::path::Path::new(&file).exists(), "{script:?}: the result was handed out");
        let (status, id) = relay.seen(|seen| {
            let record = seen.record.as_ref().unwrap();
            (record.status(), record.id.to_string())
        });
        assert_eq!(status, Status::Submitted, "{script:?}: it was approved");
        for command in [&["result", &id][..], &["verify", &id], &["approve", &id]] {
            let out = relay.cli(command).await;
            assert_eq!(code(&out), 5, "{script:?} {command:?}: {}", said(&out));
            assert!(out.stdout.is_empty(), "{script:?} {command:?}: {}", said(&out));
        }
    }
}

#[tokio::test]
async fn a_history_with_a_gap_is_5() {
    let relay = Relay::start(Script::GapInHistory).await;
    let id = relay.publish().await;
    let out = relay.cli(&["verify", &id]).await;
    assert_eq!(code(&out), 5, "{}", said(&out));
    assert!(stderr(&out).contains("the history: event 2 has version 3"), "{}", said(&out));
}

#[tokio::test]
async fn what_is_true_verifies_online_and_offline() {
    let relay = Relay::start(Script::Honest).await;
    let id = relay.publish().await;
    let out = relay.cli(&["verify", &id]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    assert!(
        stdout(&out).contains("proven: the task is submitted (3 signed")
            && stdout(&out).contains("[signed by 0x"),
        "{}",
        said(&out)
    );
    let history = relay.path("history.json");
    std::fs::write(&history, relay.cli(&["events", &id, "--json"]).await.stdout).unwrap();
    let result = relay.path("result");
    assert_eq!(code(&relay.cli(&["result", &id, "--output", &result]).await), 0);
    let offline = [("ZORAI_RELAY", "http://127.0.0.1:1")];
    let verify = ["verify", &history, "--result", &result, "--json"];
    let out = crate::support::cli(relay.home.path(), &verify, &offline, b"").await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    let told = json(&out);
    assert_eq!((&told["verified"], &told["result_checked"]), (&true.into(), &true.into()), "{told:#}");
    assert_eq!(told["statements"].as_array().unwrap().len(), 3);
    std::fs::write(&result, b"other").unwrap();
    let out = crate::support::cli(relay.home.path(), &verify, &offline, b"").await;
    assert_eq!(code(&out), 5, "{}", said(&out));
    let text = std::fs::read_to_string(&history).unwrap().replacen("NVIDIA A100", "NVIDIA H100", 1);
    std::fs::write(&history, text).unwrap();
    let out = crate::support::cli(relay.home.path(), &["verify", &history], &offline, b"").await;
    assert!(code(&out) == 5 && stderr(&out).contains("submitted"), "{}", said(&out));
}

/// A program that writes what the scripted provider claims for every task, or something else.
pub(crate) fn program(relay: &Relay, name: &str, writes: &str) -> String {
    let (path, length) = (relay.path(name), writes.len());
    let text = format!(
        r#"(module
             (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
             (memory (export "memory") 1)
             (data (i32.const 16) "{}")
             (func (export "_start")
               (i32.store (i32.const 0) (i32.const 16))
               (i32.store (i32.const 4) (i32.const {length}))
               (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#,
        writes.escape_default()
    );
    std::fs::write(&path, wat::parse_str(text.replace("\\n", "\\0a")).unwrap()).unwrap();
    path
}

#[tokio::test]
async fn running_it_again_tells_a_true_result_from_a_false_one() {
    let relay = Relay::start(Script::Honest).await;
    let result = std::str::from_utf8(crate::support::RESULT).unwrap();
    let honest = program(&relay, "honest.wasm", result);
    let input = relay.path("input.txt");
    let file = relay.path("result");
    let run = ["run", "--input", &input, "--poll", "--verify", "rerun", "--output", &file];
    let out = relay.cli(&[&run[..], &["--model", &honest]].concat()).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    assert!(stderr(&out).contains("running it again gives the same"), "{}", said(&out));
    let id = relay.seen(|seen| seen.record.as_ref().unwrap().id.to_string());
    let out = relay.cli(&["verify", "--rerun", &id]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    assert!(stdout(&out).contains("proven: run again, the task gives the same result"), "{}", said(&out));
    let told = json(&relay.cli(&["verify", "--rerun", &id, "--json"]).await);
    assert_eq!(told["rerun"], serde_json::json!({"result_hash": told["result_hash"]}));
    // Nor does it fail here for more memory than a program can address, which providers may allow.
    let file = relay.path("large");
    let large = ["--model", &honest, "--memory", "8192", "--output", &file];
    let out = relay.cli(&[&run[..run.len() - 2], &large].concat()).await;
    assert_eq!(code(&out), 0, "{}", said(&out));

    // The provider claims the same for a program that writes something else, and for one that fails.
    let module = r#"(module (memory (export "memory") 1) (func (export "_start") unreachable))"#;
    let failing = relay.path("failing.wasm");
    std::fs::write(&failing, wat::parse_str(module).unwrap()).unwrap();
    let other = program(&relay, "other.wasm", "something else");
    for (model, reason) in [(&other, "gives another result: "), (&failing, "the task fails: trapped")] {
        let file = relay.path("false");
        let run =
            ["run", "--model", model, "--input", &input, "--poll", "--verify", "rerun", "--output", &file];
        let out = relay.cli(&run).await;
        assert_eq!(code(&out), 5, "{}", said(&out));
        assert!(stderr(&out).contains(reason), "{}", said(&out));
        assert!(
            stderr(&out).contains("hint: it was not approved; object: zorai-compute dispute"),
            "{}",
            said(&out)
        );
        assert!(!std::path::Path::new(&file).exists(), "the result was handed out");
        let (status, id) = relay.seen(|seen| {
            let record = seen.record.as_ref().unwrap();
            (record.status(), record.id.to_string())
        });
        assert_eq!(status, Status::Submitted, "it was approved");
        // What is signed holds; what was computed does not.
        assert_eq!(code(&relay.cli(&["verify", &id]).await), 0);
        let out = relay.cli(&["verify", "--rerun", &id]).await;
        assert_eq!((code(&out), out.stdout.is_empty()), (5, true), "{}", said(&out));
        assert!(stderr(&out).contains(reason), "{}", said(&out));
    }
}

#[tokio::test]
async fn what_running_again_cannot_decide_is_refused() {
    let relay = Relay::start(Script::Honest).await;
    let image = format!("oci://example.org/image@sha256:{}", "ab".repeat(32));
    let (input, verify) = (relay.path("input.txt"), ["--poll", "--verify", "rerun"]);
    let out = relay.cli(&[&["run", "--model", &image, "--input", &input][..], &verify].concat()).await;
    assert_eq!(code(&out), 2, "{}", said(&out));
    assert!(
        stderr(&out).contains("running again decides nothing for the runtime container"),
        "{}",
        said(&out)
    );
    let out = relay.cli(&["verify", "--rerun", &input]).await;
    assert!(code(&out) == 2 && stderr(&out).contains("--rerun takes a task's id"), "{}", said(&out));
}
