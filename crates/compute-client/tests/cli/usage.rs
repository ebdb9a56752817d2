//! What is wrong before anything is asked of a task: flags, keys, relays.

use crate::support::{API_KEY, Relay, Script, cli, code, json, said, stderr, stdout};

const ID: &str = "0xabababababababababababababababababababababababababababababababab";

#[tokio::test]
async fn wrong_usage_is_2_with_the_reason_and_a_hint_on_stderr_alone() {
    for (arguments, reason) in [
        (&["no-such-command"][..], "unrecognized subcommand"),
        (&["status", "0x12"], "task id"),
        (&["status", ID], "hint: give --relay URL, or set ZORAI_RELAY"),
        (&["status", ID, "--relay", "relay.example"], "not a URL"),
        (
            &["run", "--model", "a", "--input", "b", "--dry-run"],
            "hint: give a file, a folder, - for standard input",
        ),
        (&["run", "--model", "-", "--input", "-", "--dry-run"], "cannot be both"),
        (
            &["run", "--model", "https://a.example/m", "--input", "https://a.example/i", "--dry-run"],
            "--runtime embed or --runtime wasm",
        ),
        (&["run", "--model", "https://a.example/m.wasm", "--input", "x://", "--dry-run"], "not a reference"),
        (
            &[
                "run",
                "--model",
                "https://a.example/m.wasm",
                "--input",
                "https://a.example/i",
                "--dry-run",
                "--params",
                "{\"fule\":1}",
            ],
            "fule",
        ),
        (
            &[
                "run",
                "--model",
                "https://a.example/m.wasm",
                "--input",
                "https://a.example/i",
                "--dry-run",
                "--max-attempts",
                "0",
            ],
            "--max-attempts",
        ),
        (
            &[
                "run",
                "--model",
                "https://a.example/m.wasm",
                "--input",
                "https://a.example/i",
                "--dry-run",
                "--deadline",
                "tomorrow",
            ],
            "is no time",
        ),
        (&["run", "--budget", "-5"], "write whole units"),
        (&["run", "--max-duration", "0"], "--max-duration"),
        (&["list", "--status", "done"], "open, accepted"),
        (
            &["dispute", ID, "--relay", "http://127.0.0.1:1"],
            "Usage: zorai-compute dispute [OPTIONS] --reason <TEXT> <TASK_ID>",
        ),
        (&["dispute", ID, "--reason", "r", "--relay", "http://127.0.0.1:1"], "there is no key"),
        (&["wallet", "address", "--key-file", "/does/not/exist"], "hint: check --key-file"),
        (&["verify", "/"], "hint: name one file in it"),
        (&["list", "--requester", "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD"], "checksum"),
        (&["dev", "--weights", "none"], "--demo"),
        (&["dev", "--demo", "--weights", "/does/not/exist"], "tokenizer.json"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let out = cli(home.path(), arguments, &[], b"").await;
        assert_eq!(code(&out), 2, "{arguments:?}: {}", said(&out));
        assert!(stderr(&out).contains(reason), "{arguments:?} lacks {reason:?}: {}", said(&out));
        assert!(out.stdout.is_empty(), "{arguments:?}: {}", said(&out));
    }
}

#[tokio::test]
async fn a_command_group_alone_shows_its_commands_whatever_the_environment_sets() {
    let home = tempfile::tempdir().unwrap();
    let environment = [("ZORAI_RELAY", "http://127.0.0.1:1"), ("ZORAI_KEY_FILE", "key")];
    for (arguments, usage, command) in [
        (&[][..], "Usage: zorai-compute [OPTIONS] <COMMAND>", "doctor"),
        (&["wallet"], "Usage: zorai-compute wallet [OPTIONS] <COMMAND>", "withdraw"),
        (&["arbiter", "--json"], "Usage: zorai-compute arbiter [OPTIONS] <COMMAND>", "resolve"),
        (&["escrow"], "Usage: zorai-compute escrow [OPTIONS] <COMMAND>", "deploy"),
        (&["artifact"], "Usage: zorai-compute artifact [OPTIONS] <COMMAND>", "put"),
    ] {
        for set in [&environment[..], &[]] {
            let out = cli(home.path(), arguments, set, b"").await;
            assert_eq!((code(&out), stdout(&out).as_str()), (2, ""), "{arguments:?}: {}", said(&out));
            let shown = stderr(&out);
            assert!(shown.contains(usage), "{arguments:?}: {}", said(&out));
            assert!(
                shown.contains(&format!("\n  {command} ")) && !shown.contains("error:"),
                "{arguments:?}: {}",
                said(&out)
            );
        }
    }
}

#[tokio::test]
async fn a_second_market_in_the_same_folder_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let lock = std::fs::File::create(home.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let out = cli(home.path(), &["dev", "--data", home.path().to_str().unwrap()], &[], b"").await;
    assert_eq!(code(&out), 1, "{}", said(&out));
    assert!(stderr(&out).contains("another `zorai-compute dev` runs in "), "{}", said(&out));
    assert!(stderr(&out).contains("hint: end it, or give --data DIR"), "{}", said(&out));
}

#[tokio::test]
async fn help_is_data_and_shows_examples_but_no_secret() {
    let home = tempfile::tempdir().unwrap();
    let out = cli(home.path(), &["run", "--help"], &[("ZORAI_AI_API_KEY", API_KEY)], b"").await;
    assert_eq!(code(&out), 0);
    assert!(stdout(&out).contains("zorai-compute run --model program.wasm"), "{}", said(&out));
    assert!(stderr(&out).is_empty());
    let out = cli(home.path(), &["completions", "bash"], &[], b"").await;
    assert!(code(&out) == 0 && stdout(&out).contains("zorai-compute"), "{}", said(&out));
}

#[tokio::test]
async fn a_relay_that_is_not_there_is_4() {
    let home = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let out = cli(home.path(), &["list", "--relay", &url], &[], b"").await;
    assert_eq!(code(&out), 4, "{}", said(&out));
    assert!(stderr(&out).contains(&format!("cannot reach the relay at {url}")), "{}", said(&out));
    let out = cli(home.path(), &["doctor", "--relay", &url], &[], b"").await;
    assert_eq!(code(&out), 1, "{}", said(&out));
    assert!(stdout(&out).contains("FAIL relay") && !said(&out).contains("looks closer"), "{}", said(&out));
    assert!(stderr(&out).contains("not as it should be: relay"), "{}", said(&out));
}

#[tokio::test]
async fn a_missing_or_wrong_api_key_is_3_and_says_which() {
    let relay = Relay::start(Script::Honest).await;
    let environment = [("ZORAI_RELAY", relay.url.as_str())];
    let out = cli(relay.home.path(), &["list"], &environment, b"").await;
    assert_eq!(code(&out), 3, "{}", said(&out));
    assert!(stderr(&out).contains("hint: give the relay's API key"), "{}", said(&out));
    let out = cli(relay.home.path(), &["list", "--api-key", "zk-wrong"], &environment, b"").await;
    assert_eq!(code(&out), 3, "{}", said(&out));
    assert!(
        stderr(&out).contains("not one of this relay's") && !stderr(&out).contains("zk-wrong"),
        "{}",
        said(&out)
    );
}

#[tokio::test]
async fn the_api_key_can_come_from_a_private_file() {
    let relay = Relay::start(Script::Honest).await;
    let file = relay.home.path().join("api-key");
    daemon::private_file::create(&file, format!("{API_KEY}\n").as_bytes()).unwrap();
    let arguments = ["list", "--relay", &relay.url, "--api-key-file", file.to_str().unwrap()];
    let out = cli(relay.home.path(), &arguments, &[], b"").await;
    assert_eq!(code(&out), 0, "{}", said(&out));
}

#[tokio::test]
async fn a_dry_run_shows_the_message_and_its_digest_and_makes_a_key() {
    let home = tempfile::tempdir().unwrap();
    let arguments =
        ["run", "--model", "https://a.example/m.wasm", "--input", "-", "--gpu-type", "A100", "--dry-run"];
    let out = cli(home.path(), &arguments, &[("ZORAI_KEY_PASSWORD", "hunter2")], b"words").await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    assert!(
        stderr(&out).contains("made a key for you: 0x") && !said(&out).contains("hunter2"),
        "{}",
        said(&out)
    );
    let shown = json(&out);
    let task: taskmarket::Task = serde_json::from_value(shown["message"].clone()).unwrap();
    assert_eq!(shown["digest"], task.id(&taskmarket::Domain::UNSETTLED).to_string());
    assert_eq!((task.config.gpu_count, task.config.max_duration, task.config.max_attempts), (1, 600, 3));
    assert_eq!(task.input_hash.to_string(), artifact::Digest::of(b"words").to_string());
    assert!(!task.model_hash.is_pinned() && task.salt != taskmarket::Bytes32::default());
    let out = cli(home.path(), &["wallet", "address"], &[("ZORAI_KEY_PASSWORD", "hunter2")], b"").await;
    assert_eq!(stdout(&out).trim(), task.requester.to_string(), "{}", said(&out));
    let out = cli(home.path(), &["wallet", "address"], &[("ZORAI_KEY_PASSWORD", "hunter3")], b"").await;
    assert_eq!(code(&out), 2, "{}", said(&out));
}

#[tokio::test]
async fn keys_are_made_and_imported_but_never_shown_or_overwritten() {
    let home = tempfile::tempdir().unwrap();
    let key = home.path().join("imported.json");
    let arguments = ["wallet", "import", "--out", key.to_str().unwrap(), "--json"];
    let password = [("ZORAI_KEY_PASSWORD", "hunter2")];
    let out = cli(home.path(), &arguments, &password, crate::support::REQUESTER_KEY.as_bytes()).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    let address = wallet::Wallet::from_hex(crate::support::REQUESTER_KEY).unwrap().address().to_string();
    assert_eq!(json(&out)["address"], address);
    let out = cli(home.path(), &arguments, &password, crate::support::REQUESTER_KEY.as_bytes()).await;
    assert!(code(&out) == 2 && stderr(&out).contains("never overwritten"), "{}", said(&out));
    let out = cli(home.path(), &["wallet", "import", "--out", "x"], &password, b"nonsense-key").await;
    assert!(code(&out) == 2 && !said(&out).contains("nonsense"), "{}", said(&out));
}
