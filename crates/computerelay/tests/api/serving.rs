//! The relay as a program: TLS, the end, the beginning after it, its health, and what it must not be made of.

use std::process::Command;
use std::sync::Arc;

use computerelay::TlsConfig;
use futures_util::StreamExt as _;
use reqwest::{Method, StatusCode};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ProtocolVersion, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use wallet::Wallet;

use crate::rig::{KEY, PATIENCE, Rig, answer, assert_error};

/// A client that knows the certificate and offers these versions of TLS.
fn client(cert: &rcgen::Certificate, versions: &[&'static rustls::SupportedProtocolVersion]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn https_is_tls_1_3_with_http_2() {
    let dir = TempDir::new().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("relay.crt"), dir.path().join("relay.key"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let listen = ([127, 0, 0, 1], 0).into();
    let rig = Rig::start_in(dir, |config| config.tls = Some(TlsConfig { listen, cert, key })).await;
    let addr = rig.tls_addr.unwrap();
    let name = ServerName::try_from("localhost").unwrap();

    let new = client(&made.cert, &[&rustls::version::TLS12, &rustls::version::TLS13]);
    let stream = new.connect(name.clone(), TcpStream::connect(addr).await.unwrap()).await.unwrap();
    let state = stream.get_ref().1;
    assert_eq!(state.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(state.alpn_protocol(), Some(&b"h2"[..]));

    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(format!("https://localhost:{}/healthz", addr.port()))
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    let response = tokio::time::timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap();
    assert_eq!(response.status(), http::StatusCode::OK);
    drop(sender);

    let old = client(&made.cert, &[&rustls::version::TLS12]);
    let refused = old.connect(name, TcpStream::connect(addr).await.unwrap()).await;
    assert!(refused.is_err(), "TLS 1.2 is not spoken");
    rig.stop().await;
}

#[tokio::test]
async fn the_end_lets_requests_finish() {
    let rig = Rig::start().await;
    let (pieces, body) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let body =
        futures_util::stream::unfold(body, async |mut body| body.recv().await.map(|piece| (piece, body)));
    let digest = artifact::Digest::of(&[FIRST_PIECE, b"and slowly"].concat());
    let upload =
        rig.request(Method::PUT, &format!("/v1/artifacts/{digest}")).body(reqwest::Body::wrap_stream(body));
    let upload = tokio::spawn(upload.send());
    pieces.send(Ok(FIRST_PIECE.to_vec())).await.unwrap();
    // Taken from the channel once the connection stands.
    let place = pieces.reserve().await.unwrap();
    wait_until_uploading(&rig).await;

    rig.shutdown.cancel();
    tokio::time::timeout(PATIENCE, async {
        while TcpStream::connect(rig.addr).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("no connection is taken any more");
    place.send(Ok(b"and slowly".to_vec()));
    drop(pieces);
    assert_eq!(upload.await.unwrap().unwrap().status(), StatusCode::CREATED);
    rig.stop().await;
}

#[tokio::test]
async fn the_end_does_not_wait_for_ever() {
    let drain = std::time::Duration::from_millis(100);
    let rig = Rig::start_in(TempDir::new().unwrap(), |config| config.drain = drain).await;
    let first = futures_util::stream::iter([Ok::<_, std::io::Error>(FIRST_PIECE)]);
    let body = reqwest::Body::wrap_stream(first.chain(futures_util::stream::pending()));
    let digest = artifact::Digest::of(b"never");
    let upload = tokio::spawn(rig.request(Method::PUT, &format!("/v1/artifacts/{digest}")).body(body).send());
    wait_until_uploading(&rig).await;
    let dir = rig.stop().await;
    assert!(upload.await.unwrap().is_err(), "it was cut off");
    assert_eq!(files_in(&dir.path().join("store/blobs")), 0, "nothing is left of it");
}

/// More than a relay holds in memory of an upload, even without its last piece, which is 400 KB at most.
const FIRST_PIECE: &[u8] = &[7; 1_000_000];

fn files_in(blobs: &std::path::Path) -> usize {
    let shards = std::fs::read_dir(blobs).unwrap();
    shards.map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap().count()).sum()
}

/// Waits until the relay has begun to write a blob.
async fn wait_until_uploading(rig: &Rig) {
    let blobs = rig.dir.path().join("store/blobs");
    let begun = async {
        while files_in(&blobs) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, begun).await.unwrap();
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let id = rig.publish_new(&wallet).await;
    let digest = rig.store(b"kept").await;
    let (_, before) = rig.get(&format!("/v1/tasks/{id}")).await;
    let rig = Rig::start_in(rig.stop().await, |_| {}).await;
    let (status, after) = rig.get(&format!("/v1/tasks/{id}")).await;
    assert_eq!((status, after), (StatusCode::OK, before));
    let blob = rig.request(Method::GET, &format!("/v1/artifacts/{digest}")).send().await.unwrap();
    assert_eq!(blob.bytes().await.unwrap(), &b"kept"[..]);
    rig.stop().await;
}

#[tokio::test]
async fn one_store_has_one_relay() {
    let rig = Rig::start().await;
    let listen = ([127, 0, 0, 1], 0).into();
    let config = computerelay::Config::new(listen, rig.dir.path().join("store"), daemon::Secret::new(KEY));
    let error = computerelay::build(config).await.err().expect("the store is taken");
    assert!(format!("{error:#}").contains("in use by another relay"), "{error:#}");
    rig.stop().await;
}

#[tokio::test]
async fn health_and_metrics_are_for_anybody() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    rig.publish_new(&wallet).await;
    assert_error(&rig.get("/nowhere").await, 404, "not_found");
    for path in ["/healthz", "/readyz"] {
        assert_eq!(rig.bare(Method::GET, path).send().await.unwrap().status(), StatusCode::OK, "{path}");
    }
    let text = rig.bare(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    for line in [
        "zorai_relay_tasks{status=\"open\"} 1",
        "zorai_relay_tasks{status=\"failed\"} 0",
        "zorai_relay_commits_total{event=\"published\"} 1",
        "zorai_relay_http_requests_total{method=\"POST\",route=\"/v1/tasks\",status=\"201\"} 1",
        "zorai_relay_http_requests_total{method=\"GET\",route=\"none\",status=\"404\"} 1",
        "zorai_relay_sessions 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let (_, stats) = answer(rig.bare(Method::GET, "/v1/stats")).await;
    assert_eq!(stats["tasks"]["open"], 1);
    rig.stop().await;
}

#[test]
fn the_program_refuses_to_start_without_a_key() {
    let dir = TempDir::new().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_compute-relay"))
        .args(["--listen", "127.0.0.1:0", "--store"])
        .arg(dir.path())
        .env_remove("ZORAI_AI_API_KEY")
        .env_remove("ZORAI_RELAY_API_KEY_FILE")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("hint:"), "{text}");
}

/// The relay can hold no wallet key, because nothing that could hold one is part of it.
#[test]
fn no_wallet_is_part_of_the_relay() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "-p", "computerelay", "-e", "normal,features", "--offline", "--prefix", "none"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let tree = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let crates: Vec<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(crates.contains(&"taskmarket") && crates.contains(&"store"), "{tree}");
    for signer in ["wallet", "alloy-signer", "alloy-signer-local", "coins-bip32", "k256"] {
        assert!(!crates.contains(&signer), "{signer} is part of the relay");
    }
}

#[tokio::test]
async fn one_address_has_no_more_than_its_connections() {
    let rig = Rig::start_in(TempDir::new().unwrap(), |config| config.max_connections_per_ip = 2).await;
    let head = b"GET /healthz HTTP/1.1\r\nhost: relay\r\n\r\n";
    let ask = async || {
        let mut socket = TcpStream::connect(rig.addr).await.unwrap();
        let mut answer = [0; 12];
        let asked = async {
            socket.write_all(head).await?;
            socket.read_exact(&mut answer).await
        };
        let asked = tokio::time::timeout(PATIENCE, asked).await.unwrap();
        asked.ok().map(|_| (socket, answer))
    };
    let first = ask().await.unwrap();
    let second = ask().await.unwrap();
    assert_eq!((&first.1, &second.1), (b"HTTP/1.1 200", b"HTTP/1.1 200"));
    assert!(ask().await.is_none(), "the third finds no place");
    drop(first);
    let again = async { while ask().await.is_none() {} };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
    rig.stop().await;
}
