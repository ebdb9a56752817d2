//! The subcommands of `compute-relay`, as real processes.
//!
//! One test at a time: between its fork and its program a new process holds what its parent has open, and so could keep the lock of
//! another test's store for a moment too long.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../api/agent.rs"]
#[allow(dead_code, reason = "the tests of the API use the rest of it")]
mod agent;
mod bucket;
#[path = "../api/rig.rs"]
#[allow(dead_code, reason = "the tests of the API use the rest of it")]
mod rig;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::Value;
use taskmarket::Timestamp;
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use wallet::Wallet;

use crate::agent::Agent;
use crate::rig::{KEY, Rig, answer, now, signed, task};

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

fn relay(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_compute-relay"));
    for name in ["ZORAI_AI_API_KEY", "ZORAI_RELAY_API_KEY_FILE", "ZORAI_RELAY_STORE", "PGPASSWORD"] {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs a subcommand, off the threads that the relays of the tests need.
async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn stdout(output: &Output) -> &str {
    assert!(output.status.success(), "{}", stderr(output));
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked_in_the_store() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("store");
    let store = path(&store);
    let create = ["keys", "create", "--store", store, "--name", "alice", "--scope", "tasks:read"];
    let times = ["--inference-timeout", "60", "--first-byte-timeout", "20", "--token-timeout", "10"];
    let made =
        run(relay(&[&create[..], &["--expires", "90d", "--requests-per-minute", "7"], &times[..]].concat()))
            .await;
    let key = stdout(&made).trim_end().to_owned();
    assert!(key.starts_with("zk-") && !key.contains('\n'), "standard output is the key alone: {key:?}");
    assert!(!stderr(&made).contains(&key[3..]) && stderr(&made).contains("alice"), "{}", stderr(&made));

    let listed = run(relay(&["keys", "list", "--store", store, "--json"])).await;
    let keys: Value = serde_json::from_str(stdout(&listed)).unwrap();
    let id = keys[0]["id"].as_str().unwrap().to_owned();
    assert_eq!((&keys[0]["name"], &keys[0]["requests_per_minute"]), (&"alice".into(), &7.into()));
    assert!(keys[0]["expires_at"].is_string() && keys[1].is_null(), "{keys}");
    for (field, secs) in
        [("inference_timeout_secs", 60), ("first_byte_timeout_secs", 20), ("token_timeout_secs", 10)]
    {
        assert_eq!(keys[0][field], secs, "{field}");
    }
    let listed = run(relay(&["keys", "list", "--store", store])).await;
    assert!(stdout(&listed).contains(&id) && stdout(&listed).contains("tasks:read"), "{}", stdout(&listed));

    // The store's key is enough for the relay to start, and it is known there.
    let rig = Rig::start_in(dir, |config| config.api_keys.clear()).await;
    let response = rig.bare(Method::GET, "/v1/tasks").bearer_auth(&key).send().await.unwrap();
    assert_eq!(
        (response.status(), &response.headers()["x-ratelimit-limit"]),
        (StatusCode::OK, &"7".parse().unwrap())
    );
    let dir = rig.stop().await;

    let revoked = run(relay(&["keys", "revoke", &id, "--store", store])).await;
    assert!(stdout(&revoked).is_empty() && stderr(&revoked).contains("revoked"));
    let rig = Rig::start_in(dir, |_| {}).await;
    let response = rig.bare(Method::GET, "/v1/tasks").bearer_auth(&key).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    rig.stop().await;
}

#[tokio::test]
async fn a_relay_that_runs_is_asked() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let rig = Rig::start().await;
    let store = rig.dir.path().join("store");
    let locked = run(relay(&["keys", "list", "--store", path(&store)])).await;
    assert_eq!(locked.status.code(), Some(1));
    assert!(stderr(&locked).contains("hint: ask it: --relay URL"), "{}", stderr(&locked));

    let ask = |arguments: &[&str], key: &str| {
        let mut command = relay(arguments);
        command.args(["--relay", &rig.base, "--json"]).env("ZORAI_AI_API_KEY", key);
        run(command)
    };
    let made = ask(&["keys", "create", "--name", "bob", "--scope", "tasks:read,inference"], KEY).await;
    let made: Value = serde_json::from_str(stdout(&made)).unwrap();
    let (key, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
    assert_eq!(made["scopes"], serde_json::json!(["tasks:read", "inference"]));
    let asked = async || answer(rig.bare(Method::GET, "/v1/tasks").bearer_auth(key)).await.0;
    assert_eq!(asked().await, StatusCode::OK);

    let refused = ask(&["keys", "list"], key).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("admin") && !stderr(&refused).contains(key), "{}", stderr(&refused));

    let listed = ask(&["keys", "list"], KEY).await;
    assert_eq!(serde_json::from_str::<Value>(stdout(&listed)).unwrap()[0]["id"], id);
    stdout(&ask(&["keys", "revoke", id], KEY).await);
    assert_eq!(asked().await, StatusCode::UNAUTHORIZED);

    let nobody = run(relay(&["keys", "list", "--relay", &rig.base])).await;
    assert!(stderr(&nobody).contains("hint: set ZORAI_AI_API_KEY"), "{}", stderr(&nobody));
    rig.stop().await;
}

#[tokio::test]
async fn wrong_usage_is_explained() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("missing");
    for (arguments, said) in [
        (&["keys", "create", "--name", "a"][..], "--scope"),
        (
            &["keys", "create", "--name", "a", "--scope", "root"],
            "tasks:write, tasks:read, inference or admin",
        ),
        (&["keys", "create", "--name", "a", "--scope", "admin", "--expires", "soon"], "such as 90d"),
        (&["keys", "revoke", "alice"], "16 hex digits"),
        (&["store", "copy", "--from", "a"], "--to"),
    ] {
        let output = run(relay(arguments)).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(said), "{arguments:?}: {}", stderr(&output));
    }
    for arguments in [
        &["keys", "list", "--store", path(&missing)][..],
        &["keys", "revoke", "0123456789abcdef", "--store", path(&missing)],
        &["store", "copy", "--from", path(&missing), "--to", path(dir.path())],
    ] {
        let output = run(relay(arguments)).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(stderr(&output).contains("there is no store"), "{}", stderr(&output));
        assert!(!missing.exists(), "looking for a store makes none");
    }
}

#[tokio::test]
async fn a_market_is_copied_whole() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let key = rig.other_key().await;
    let published =
        rig.bare(Method::POST, "/v1/tasks").bearer_auth(&key).json(&signed(&wallet, &task(&wallet)));
    let id = answer(published).await.1["task_id"].as_str().unwrap().to_owned();
    let digest = rig.store(b"bytes").await;
    let (_, before) = rig.get(&format!("/v1/tasks/{id}/events")).await;
    let dir = rig.stop().await;
    let (from, to) = (dir.path().join("store"), dir.path().join("copy"));

    let copied = run(relay(&["store", "copy", "--from", path(&from), "--to", path(&to)])).await;
    assert!(stdout(&copied).is_empty());
    assert!(
        stderr(&copied).contains("tasks: 1") && stderr(&copied).contains("--artifacts"),
        "{}",
        stderr(&copied)
    );
    let again = run(relay(&["store", "copy", "--from", path(&from), "--to", path(&to)])).await;
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("not empty"), "{}", stderr(&again));

    let rig = Rig::start_in(dir, |config| config.store = to.into()).await;
    let (status, after) =
        answer(rig.bare(Method::GET, &format!("/v1/tasks/{id}/events")).bearer_auth(&key)).await;
    assert_eq!((status, after), (StatusCode::OK, before));
    let blob = rig.request(Method::GET, &format!("/v1/artifacts/{digest}")).send().await.unwrap();
    assert_eq!(blob.bytes().await.unwrap(), &b"bytes"[..]);
    rig.stop().await;
}

#[tokio::test]
async fn a_database_is_taken_and_its_password_kept_quiet() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let url = "postgres://zorai:hunter2@127.0.0.1:1/zorai?password=hunter2";
    for arguments in [
        &["--listen", "127.0.0.1:0", "--api-key", "k", "--store", url][..],
        &["keys", "list", "--store", url],
    ] {
        let output = run(relay(arguments)).await;
        let said = stderr(&output);
        assert!(!output.status.success() && said.contains("postgres://zorai"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn what_is_wrong_before_it_runs_is_usage_and_what_fails_is_not() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let dir = TempDir::new().unwrap();
    let (store, certificate) = (dir.path().join("store"), dir.path().join("relay.crt"));
    std::fs::write(&certificate, "no certificate").unwrap();
    let (missing, certificate) = (dir.path().join("missing"), path(&certificate));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let tls = |cert: &'static str| ["--tls-listen", "127.0.0.1:0", "--tls-key", cert, "--tls-cert"];
    let usage = [
        (vec!["--listen", "here"], "ADDRESS:PORT"),
        (vec!["--listen", "192.0.2.1:0"], "an address of this machine"),
        (vec!["--tls-cert", certificate], "--tls-listen"),
        ([&tls("/missing/key")[..], &[path(&missing)]].concat(), "--tls-cert takes"),
        ([&tls("/missing/key")[..], &[certificate]].concat(), "--tls-cert takes"),
        (vec!["--relay-id", "a b"], "letters, digits"),
        (vec!["--public-url", "https://relay.example"], "wss://"),
        (vec!["--api-key-file", path(&missing)], "openssl rand"),
        (vec!["--log-level", "link=loud"], "info"),
    ];
    for (flags, said) in usage {
        let mut command = relay(&["--listen", "127.0.0.1:0", "--store", path(&store)]);
        // The last one counts.
        if flags[0] == "--listen" {
            command = relay(&["--store", path(&store)]);
        }
        command.args(&flags).env("ZORAI_AI_API_KEY", KEY);
        let output = run(command).await;
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {text}");
        assert!(text.contains(said), "{flags:?}: {text}");
        assert!(text.contains("hint:") || text.contains("--help"), "{flags:?}: {text}");
    }
    let no_key = run(relay(&["--listen", "127.0.0.1:0", "--store", path(&store)])).await;
    assert_eq!(no_key.status.code(), Some(2), "{}", stderr(&no_key));

    for flags in
        [["--listen", &taken, "--store", path(&store)], ["--listen", "127.0.0.1:0", "--store", certificate]]
    {
        let mut command = relay(&flags);
        command.env("ZORAI_AI_API_KEY", KEY);
        let output = run(command).await;
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {}", stderr(&output));
    }
}

/// Ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Where it says that it serves.
    async fn url(&mut self) -> String {
        let log = self.0.stderr.take().unwrap();
        let url = tokio::task::spawn_blocking(move || {
            let lines = BufReader::new(log).lines().map(Result::unwrap);
            lines.into_iter().find_map(|line| {
                let url = &line[line.find("http://")?..];
                let end = |letter: char| letter.is_whitespace() || letter == '"';
                Some(url.split(end).next().unwrap().to_owned())
            })
        });
        url.await.unwrap().expect("it says where it serves")
    }
}

#[tokio::test]
async fn without_a_subcommand_it_serves() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let dir = TempDir::new().unwrap();
    let mut command = relay(&["--listen", "127.0.0.1:0", "--relay-id", "hz-1", "--store", path(dir.path())]);
    command.env("ZORAI_AI_API_KEY", KEY).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process(command.spawn().unwrap());
    let url = process.url().await;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let response = client.get(format!("{url}/v1/keys")).bearer_auth(KEY).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let info: Value = client.get(format!("{url}/v1/info")).send().await.unwrap().json().await.unwrap();
    assert_eq!(info["relay_id"], "hz-1");
}

#[tokio::test]
async fn sessions_of_a_relay_that_was_killed_end_before_its_end() {
    const DOWNTIME: Duration = Duration::from_secs(3);
    let _turn = ONE_AT_A_TIME.lock().await;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut dir = TempDir::new().unwrap();
    let wallet = Arc::new(Wallet::random());
    let path_of_sessions = format!("/v1/providers/{}/sessions", wallet.address());
    let mut killed_at = None;
    for run in 1..=2 {
        let mut command = relay(&["--listen", "127.0.0.1:0", "--store", path(dir.path())]);
        command.env("ZORAI_AI_API_KEY", KEY).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Process(command.spawn().unwrap());
        let base = process.url().await;
        let rig = Rig {
            addr: base.strip_prefix("http://").unwrap().parse().unwrap(),
            base,
            tls_addr: None,
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            dir,
            shutdown: CancellationToken::new(),
            running: tokio::spawn(async { Ok(()) }),
        };
        // The hub takes a host once it has ended what the last run left open.
        let _agent = Agent::connect_as(&rig, Arc::clone(&wallet), Vec::new()).await;
        let (_, list) = rig.get(&path_of_sessions).await;
        assert_eq!(list["sessions"].as_array().unwrap().len(), run, "{list}");
        if let Some(killed_at) = killed_at {
            let ended: Timestamp = list["sessions"][1]["disconnected_at"].as_str().unwrap().parse().unwrap();
            assert!(ended <= killed_at, "{list}: killed at {killed_at}");
        }
        killed_at = Some(now());
        drop(process);
        dir = rig.dir;
        if run == 1 {
            tokio::time::sleep(DOWNTIME).await;
        }
    }
}

#[tokio::test]
async fn a_relay_that_no_provider_elsewhere_could_use_says_so() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let public = ["--public-url", "wss://relay.example"];
    let cases = [("0.0.0.0:0", &[][..], true), ("0.0.0.0:0", &public, false), ("127.0.0.1:0", &[], false)];
    for (listen, flags, is_warned) in cases {
        let dir = TempDir::new().unwrap();
        let mut command = relay(&["--listen", listen, "--store", path(dir.path())]);
        command.args(flags).env("ZORAI_AI_API_KEY", KEY).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Process(command.spawn().unwrap());
        let log = process.0.stderr.take().unwrap();
        let said = tokio::task::spawn_blocking(move || {
            let lines = BufReader::new(log).lines().map(Result::unwrap);
            lines.take_while(|line| !line.contains("http://")).collect::<String>()
        });
        let said = said.await.unwrap();
        assert_eq!(
            said.contains("WARN") && said.contains("--public-url"),
            is_warned,
            "{listen} {flags:?}: {said}"
        );
    }
}

#[tokio::test]
async fn the_help_teaches() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let help = run(relay(&["--help"])).await;
    for said in ["A relay to try", "keys", "postgres://", "--api-key-file", "--artifacts"] {
        assert!(stdout(&help).contains(said), "{said} is not in\n{}", stdout(&help));
    }
    // A variable that sets a flag is no reason not to.
    for (group, command) in [("keys", "revoke"), ("store", "copy")] {
        let mut line = relay(&[group]);
        line.env("ZORAI_LOG", "info");
        let shown = run(line).await;
        assert_eq!((shown.status.code(), shown.stdout.as_slice()), (Some(2), &b""[..]));
        let usage = format!("Usage: compute-relay {group} [OPTIONS] <COMMAND>");
        assert!(stderr(&shown).contains(&usage) && stderr(&shown).contains(command), "{}", stderr(&shown));
    }
    let help = run(relay(&["keys", "create", "--help"])).await;
    assert!(stdout(&help).contains("shown this once") && stdout(&help).contains("--expires 90d"));
}
