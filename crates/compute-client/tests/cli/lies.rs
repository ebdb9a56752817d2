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
