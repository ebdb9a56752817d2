//! The commands that show and change one task.

use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::support::{API_KEY, Relay, Script, cli, code, json, said, stderr, stdout, terminal};

#[tokio::test]
async fn status_list_and_explain_say_where_a_task_stands() {
    let relay = Relay::start(Script::NobodyThere).await;
    let id = relay.publish().await;
    let out = relay.cli(&["status", &id]).await;
    assert!(
        stdout(&out).contains("open") && stdout(&out).contains("waits     no provider is online"),
        "{}",
        said(&out)
    );
    let view = json(&relay.cli(&["status", &id, "--json"]).await);
    assert_eq!((&view["status"], &view["task_id"]), (&"open".into(), &id.as_str().into()));
    assert!(stdout(&out).contains(" s ago)\n") && !stdout(&out).contains("since"), "{}", said(&out));
    let out = relay.cli(&["list", "--status", "open"]).await;
    assert!(code(&out) == 0 && stdout(&out).starts_with(&id), "{}", said(&out));
    assert_eq!(json(&relay.cli(&["list", "--json"]).await)["tasks"][0]["task_id"], id.as_str());
    let out = terminal(&relay.url, relay.home.path(), &["list"], &serde_json::json!([])).await;
    let screen = stdout(&out);
    let titles = format!("{:<66}  STATUS  RUNTIME  GPU  BUDGET  PUBLISHED", "TASK");
    assert!(
        screen.contains(&titles) && screen.contains(&format!("{id}  open    wasm     any  0       ")),
        "{screen}"
    );
    assert!(screen.contains("budgets in the smallest unit"), "{screen}");
    let empty = Relay::start(Script::Honest).await;
    let out = empty.cli(&["list"]).await;
    assert_eq!(
        (stdout(&out).as_str(), stderr(&out).as_str()),
        ("", "there are no such tasks of this API key\n")
    );
    let out = relay.cli(&["explain", &id]).await;
    assert_eq!(stdout(&out).trim(), "no provider is online", "{}", said(&out));
    let out = relay.cli(&["result", &id]).await;
    assert_eq!(code(&out), 1, "{}", said(&out));
}

#[tokio::test]
async fn a_task_can_be_cancelled_by_its_requester_alone() {
    let relay = Relay::start(Script::NobodyThere).await;
    let id = relay.publish().await;
    let other = relay.home.path().join("other");
    daemon::private_file::create(&other, "44".repeat(32).as_bytes()).unwrap();
    let out = relay.cli(&["cancel", &id, "--key-file", other.to_str().unwrap()]).await;
    assert_eq!(code(&out), 3, "{}", said(&out));
    assert!(stderr(&out).contains("hint: sign with the key that published the task"), "{}", said(&out));
    let out = relay.cli(&["cancel", &id]).await;
    assert_eq!((code(&out), stdout(&out).trim()), (0, "cancelled"), "{}", said(&out));
    let out = relay.cli(&["events", &id]).await;
    assert!(
        stdout(&out).lines().last().unwrap().contains("Cancelled  [signed by the requester]"),
        "{}",
        said(&out)
    );
}

#[tokio::test]
async fn a_result_is_disputed_or_approved_once() {
    let relay = Relay::start(Script::Honest).await;
    let id = relay.publish().await;
    let out =
        relay.cli(&["dispute", &id, "--reason", "result hash mismatch", "--evidence", "ipfs://bafy"]).await;
    assert_eq!((code(&out), stdout(&out).trim()), (0, "disputed"), "{}", said(&out));
    let out = relay.cli(&["approve", &id]).await;
    assert_eq!(code(&out), 1, "{}", said(&out));
    let relay = Relay::start(Script::Honest).await;
    let id = relay.publish().await;
    let out = relay.cli(&["approve", &id, "--json"]).await;
    assert_eq!(json(&out)["status"], "completed", "{}", said(&out));
    let out = relay.cli(&["cancel", &id]).await;
    assert!(code(&out) == 1 && stderr(&out).contains("hint: a task is withdrawn before"), "{}", said(&out));
    let out = relay.cli(&["events", &id, "--follow"]).await;
    assert!(code(&out) == 0 && stderr(&out).contains("Completed: the requester approved"), "{}", said(&out));
}

#[tokio::test]
async fn artifacts_go_there_and_back() {
    let relay = Relay::start(Script::Honest).await;
    let environment = [("ZORAI_RELAY", relay.url.as_str()), ("ZORAI_AI_API_KEY", API_KEY)];
    let out = cli(relay.home.path(), &["artifact", "put", "-"], &environment, b"some bytes").await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    let reference = stdout(&out).trim().to_owned();
    assert_eq!(reference, format!("artifact://{}", artifact::Digest::of(b"some bytes")));
    let out = relay.cli(&["artifact", "get", &reference]).await;
    assert_eq!(out.stdout, b"some bytes", "{}", said(&out));
    std::fs::create_dir_all(relay.path("folder/inner")).unwrap();
    std::fs::write(relay.path("folder/inner/file"), "x").unwrap();
    let out = relay.cli(&["artifact", "put", &relay.path("folder"), "--json"]).await;
    let reference = json(&out)["reference"].as_str().unwrap().to_owned();
    let out = relay.cli(&["artifact", "get", &reference, "--output", &relay.path("copy")]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    assert_eq!(std::fs::read(relay.path("copy/inner/file")).unwrap(), b"x");
    let missing = format!("artifact://{}", "ab".repeat(32));
    let out = relay.cli(&["artifact", "get", &missing]).await;
    assert!(
        code(&out) == 1 && stderr(&out).contains("hint: check the reference and --relay"),
        "{}",
        said(&out)
    );
}

#[tokio::test]
async fn a_terminal_is_shown_text_and_spared_other_bytes() {
    let relay = Relay::start(Script::Honest).await;
    let environment = [("ZORAI_RELAY", relay.url.as_str()), ("ZORAI_AI_API_KEY", API_KEY)];
    for (bytes, shown, ended) in [(&b"some words\n"[..], "some words", 0), (b"\0asm\x01", "is binary", 2)] {
        let put = cli(relay.home.path(), &["artifact", "put", "-"], &environment, bytes).await;
        let reference = stdout(&put);
        let get = ["artifact", "get", reference.trim()];
        let out = terminal(&relay.url, relay.home.path(), &get, &serde_json::json!([])).await;
        assert!(code(&out) == ended && stdout(&out).contains(shown), "{}", said(&out));
        assert_eq!(stdout(&out).contains("write it to a file: --output FILE, or > FILE"), ended == 2);
        assert_eq!(relay.cli(&get).await.stdout, bytes, "a pipe takes them all");
    }
}

/// Serves what `relay` serves by TLS; answers with the URL, and with the certificate in PEM.
async fn serve_tls(relay: &Relay) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = made.signing_key.serialize_der().try_into().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let plain = relay.url.trim_start_matches("http://").to_owned();
    // It ends with the test's runtime.
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, plain) = (acceptor.clone(), plain.clone());
            tokio::spawn(async move {
                let Ok(mut from) = acceptor.accept(stream).await else { return };
                let mut to = tokio::net::TcpStream::connect(plain).await.unwrap();
                // Whoever hangs up is done.
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    (url, made.cert.pem())
}

#[tokio::test]
async fn artifacts_come_from_a_relay_with_a_private_certificate() {
    let relay = Relay::start(Script::Honest).await;
    let (url, certificate) = serve_tls(&relay).await;
    let ca_file = relay.path("ca.pem");
    std::fs::write(&ca_file, certificate).unwrap();
    let environment = [("ZORAI_RELAY", url.as_str()), ("ZORAI_AI_API_KEY", API_KEY)];
    let (home, trust) = (relay.home.path(), ["--ca-file", ca_file.as_str()]);
    let put = cli(home, &[&["artifact", "put", "-"], &trust[..]].concat(), &environment, b"some bytes").await;
    assert_eq!(code(&put), 0, "{}", said(&put));
    let reference = stdout(&put).trim().to_owned();
    let get = cli(home, &[&["artifact", "get", &reference], &trust[..]].concat(), &environment, b"").await;
    assert_eq!(get.stdout, b"some bytes", "{}", said(&get));
    let get = cli(home, &["artifact", "get", &reference], &environment, b"").await;
    assert_eq!(code(&get), 4, "{}", said(&get));
}

#[tokio::test]
async fn without_an_api_key_a_task_is_read_by_its_requesters_signature() {
    let relay = Relay::start(Script::Honest).await;
    let out = relay.poll(&["--approve", "never", "--output", &relay.path("first")]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    let (id, key) = (stdout(&out).trim().to_owned(), relay.path("key"));
    let signed = [("ZORAI_RELAY", relay.url.as_str()), ("ZORAI_KEY_FILE", key.as_str())];
    let output = relay.path("second");
    for arguments in [
        &["status", &id][..],
        &["events", &id],
        &["explain", &id],
        &["result", &id, "--output", &output],
        &["verify", &id],
        &["dispute", &id, "--reason", "it is not what was asked for"],
    ] {
        let out = cli(relay.home.path(), arguments, &signed, b"").await;
        assert_eq!(code(&out), 0, "{arguments:?}\n{}", said(&out));
    }
    assert_eq!(std::fs::read(output).unwrap(), crate::support::RESULT);
    let out = cli(relay.home.path(), &["status", &id, "--relay", &relay.url], &[], b"").await;
    assert!(code(&out) == 3 && stderr(&out).contains("or the key of the task's requester"), "{}", said(&out));
}
