//! Publishing, following, and what comes out.

use crate::support::{
    API_KEY, MAX_ARTIFACT_BYTES, RESULT, Relay, Script, cli, code, json, said, stderr, stdout,
};
use taskmarket::Status;

#[tokio::test]
async fn a_published_task_is_its_id_on_stdout_and_uploads_happen_once() {
    let relay = Relay::start(Script::NobodyThere).await;
    let id = relay.publish().await;
    assert_eq!(id, relay.seen(|seen| seen.record.as_ref().unwrap().id.to_string()));
    assert_eq!(relay.seen(|seen| seen.uploads), 2);
    relay.publish().await;
    assert_eq!(relay.seen(|seen| seen.uploads), 2, "what the relay has is not sent again");
}

#[tokio::test]
async fn a_folder_is_uploaded_with_its_list() {
    let relay = Relay::start(Script::NobodyThere).await;
    std::fs::create_dir_all(relay.path("model/1_Pooling")).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json", "README.md"] {
        std::fs::write(relay.path("model").to_owned() + "/" + name, name).unwrap();
    }
    let out = relay.cli(&["run", "--model", &relay.path("model"), "--input", &relay.path("input.txt")]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    relay.seen(|seen| {
        let task = &seen.record.as_ref().unwrap().task;
        assert_eq!(task.config.runtime.as_str(), "embed");
        assert_eq!(task.model_cid.to_string(), format!("artifact://{}/", task.model_hash));
        let manifest = artifact::FolderManifest::parse(&seen.blobs[&task.model_hash.to_string()]).unwrap();
        assert!(manifest.entries().iter().all(|entry| seen.blobs.contains_key(&entry.digest.to_string())));
        assert_eq!(manifest.entries().len(), 4, "what no runtime reads stays here");
    });
}

#[tokio::test]
async fn what_nodes_fetch_is_named_without_a_warning() {
    let relay = Relay::start(Script::NobodyThere).await;
    let image = format!("oci://example.org/image@sha256:{}", "ab".repeat(32));
    let input = "ipfs://bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
    let out = relay.cli(&["run", "--model", &image, "--input", input, "--dry-run"]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    assert!(!stderr(&out).contains("warning"), "{}", said(&out));
}

#[tokio::test]
async fn what_cannot_run_is_refused_before_a_key_is_made_or_anything_is_sent() {
    let relay = Relay::start(Script::NobodyThere).await;
    std::fs::create_dir(relay.path("demo")).unwrap();
    let huge = vec![0; usize::try_from(MAX_ARTIFACT_BYTES).unwrap() + 1];
    std::fs::write(relay.path("huge"), huge).unwrap();
    let (program, text) = (relay.path("program.wasm"), relay.path("input.txt"));
    let environment = [("ZORAI_RELAY", relay.url.as_str()), ("ZORAI_AI_API_KEY", API_KEY)];
    for (model, input, reason) in [
        (&program, &relay.path("demo"), "demo is a folder; wasm takes a file"),
        (&relay.path("demo"), &text, "has no config.json, no tokenizer.json, no model.safetensors"),
        (&program, &"ipfs://bafy".to_owned(), "--input: not a reference: "),
        (&program, &relay.path("huge"), "64.00 KiB at most"),
    ] {
        let arguments = ["run", "--model", model, "--input", input];
        let out = cli(relay.home.path(), &arguments, &environment, b"").await;
        assert_eq!(code(&out), 2, "{}", said(&out));
        assert!(stderr(&out).contains(reason), "{reason}: {}", said(&out));
        assert!(!stderr(&out).contains("made a key"), "{}", said(&out));
    }
    assert_eq!(relay.seen(|seen| seen.uploads), 0);
}

#[tokio::test]
async fn a_polled_task_is_checked_approved_and_written() {
    let relay = Relay::start(Script::Honest).await;
    let out = relay.poll(&["--output", &relay.path("result")]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    assert_eq!(std::fs::read(relay.path("result")).unwrap(), RESULT);
    assert_eq!(stdout(&out).trim(), relay.seen(|seen| seen.record.as_ref().unwrap().id.to_string()));
    let talk = stderr(&out);
    for word in ["Open", "Accepted by 0x", "Submitted", "verified:", "Completed", "NVIDIA A100"] {
        assert!(talk.contains(word), "{word}: {}", said(&out));
    }
    assert!(!talk.contains('\u{1b}'), "no colour off a terminal: {talk:?}");
    assert_eq!(relay.seen(|seen| seen.record.as_ref().unwrap().status()), Status::Completed);
}

#[tokio::test]
async fn without_a_file_the_result_alone_is_on_stdout_and_quiet_says_nothing() {
    let relay = Relay::start(Script::Honest).await;
    let out = relay.poll(&["--quiet", "--approve", "never"]).await;
    assert_eq!((code(&out), out.stdout.as_slice(), stderr(&out).as_str()), (0, RESULT, ""), "{}", said(&out));
    assert_eq!(relay.seen(|seen| seen.record.as_ref().unwrap().status()), Status::Submitted);
}

#[tokio::test]
async fn the_receipt_as_json_has_a_stable_shape() {
    let relay = Relay::start(Script::Honest).await;
    let out = relay.poll(&["--json", "--output", &relay.path("result")]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    let receipt = json(&out);
    let mut keys: Vec<&str> = receipt.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "attempt",
            "device",
            "finished_at",
            "input_hash",
            "model_hash",
            "output",
            "provider",
            "ran_secs",
            "result_bytes",
            "result_hash",
            "started_at",
            "status",
            "task_id",
            "total_ms"
        ]
    );
    assert_eq!((&receipt["status"], &receipt["result_bytes"]), (&"completed".into(), &RESULT.len().into()));
}

#[tokio::test]
async fn a_broken_stream_is_resumed_after_the_last_event() {
    let relay = Relay::start(Script::BrokenStream).await;
    let out = relay.poll(&["--quiet"]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    assert_eq!(relay.seen(|seen| seen.resumed.clone()), [None, Some("10".to_owned())]);
}

#[tokio::test]
async fn a_result_that_breaks_off_is_fetched_from_there_on() {
    let relay = Relay::start(Script::BrokenResult).await;
    let out = relay.poll(&["--quiet"]).await;
    assert_eq!((code(&out), out.stdout.as_slice()), (0, RESULT), "{}", said(&out));
    assert_eq!(relay.seen(|seen| seen.ranges.clone()), [None, Some("bytes=4-".to_owned())]);

    let relay = Relay::start(Script::HopelessResult).await;
    let out = relay.poll(&["--quiet"]).await;
    assert_eq!(code(&out), 4, "{}", said(&out));
    assert!(stderr(&out).contains("the result broke off: "), "{}", said(&out));
    assert!(out.stdout.is_empty());
}

#[tokio::test]
async fn an_image_and_what_it_is_told_become_a_task() {
    let relay = Relay::start(Script::NobodyThere).await;
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    std::fs::write(relay.path("image.tar"), &tar).unwrap();
    std::fs::create_dir(relay.path("inputs")).unwrap();
    std::fs::write(relay.path("inputs/a"), "a").unwrap();
    let (image, inputs) = (relay.path("image.tar"), relay.path("inputs"));
    let run = ["run", "--runtime", "container", "--model", &image, "--input", &inputs, "--arg", "-v"];
    let flags =
        ["--entrypoint", "sh", "--egress", "example.org", "--memory", "64", "--cpus", "0.5", "--env", "A=b"];
    let out = relay.cli(&[&run[..], &flags].concat()).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    relay.seen(|seen| {
        let task = &seen.record.as_ref().unwrap().task;
        assert_eq!(task.config.runtime.as_str(), "container");
        assert_eq!(
            task.config.params,
            r#"{"args":["-v"],"cpu_millis":500,"egress":["example.org"],"entrypoint":["sh"],"env":{"A":"b"},"memory_mb":64}"#
        );
        assert!(task.input_cid.to_string().ends_with('/'));
        assert_eq!(seen.blobs.len(), 3, "the image, the input's file and its list");
    });
}

#[tokio::test]
async fn standard_input_is_an_input() {
    let relay = Relay::start(Script::NobodyThere).await;
    let (key, model) = (relay.path("key"), relay.path("program.wasm"));
    let environment = [
        ("ZORAI_RELAY", relay.url.as_str()),
        ("ZORAI_AI_API_KEY", API_KEY),
        ("ZORAI_KEY_FILE", key.as_str()),
    ];
    let run = ["run", "--model", &model, "--input", "-"];
    let out = cli(relay.home.path(), &run, &environment, b"piped words").await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    relay.seen(|seen| {
        let hash = seen.record.as_ref().unwrap().task.input_hash.to_string();
        assert_eq!(seen.blobs[&hash].as_ref(), b"piped words");
    });
}

#[tokio::test]
async fn a_failed_task_is_1_with_the_providers_reason_made_harmless() {
    let relay = Relay::start(Script::ProviderFails).await;
    let out = relay.poll(&["--max-attempts", "1"]).await;
    assert_eq!(code(&out), 1, "{}", said(&out));
    assert!(
        stderr(&out).contains("error: the task is failed: out_of_fuel: it used all of its fuel"),
        "{}",
        said(&out)
    );
    assert!(stderr(&out).contains("hint: raise the fuel"), "{}", said(&out));
    assert!(!stderr(&out).contains('\u{1b}'));
}

#[tokio::test]
async fn a_hash_that_the_input_has_not_is_5_before_anything_is_sent() {
    let relay = Relay::start(Script::Honest).await;
    let wrong = "ab".repeat(32);
    let out = relay.poll(&["--input-hash", &wrong]).await;
    assert_eq!(code(&out), 5, "{}", said(&out));
    assert_eq!(relay.seen(|seen| seen.uploads), 0);
}

#[cfg(unix)]
#[tokio::test]
async fn ctrl_c_leaves_the_task_running_and_says_how_to_follow_it() {
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

    let relay = Relay::start(Script::NobodyThere).await;
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_zorai-compute"))
        .args(["run", "--model", &relay.path("program.wasm"), "--input", &relay.path("input.txt"), "--poll"])
        .envs([("ZORAI_RELAY", relay.url.as_str()), ("ZORAI_AI_API_KEY", crate::support::API_KEY)])
        .env("ZORAI_KEY_FILE", relay.path("key"))
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let follow = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.ends_with("Open") {
                break;
            }
        }
        let id = child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        let mut rest = String::new();
        lines.get_mut().read_to_string(&mut rest).await.unwrap();
        (child.wait().await.unwrap(), rest)
    };
    let (status, rest) = tokio::time::timeout(std::time::Duration::from_secs(60), follow).await.unwrap();
    assert_eq!(status.code(), Some(130), "{rest}");
    for words in ["the task goes on", "events 0x", "watch 0x"] {
        assert!(rest.contains(words), "{words}: {rest}");
    }
}
