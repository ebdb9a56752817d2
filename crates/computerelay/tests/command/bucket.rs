//! Artifacts in a bucket. What answers is moto, a mock of S3: it shows that the calls are right, not how a real store behaves.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use artifact::Digest;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tempfile::TempDir;

use crate::rig::KEY;
use crate::{ONE_AT_A_TIME, Process, path, relay, run, stderr};

/// Serves until its standard input ends.
const MOTO: &str = "
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
server.start()
print('port', server.get_host_and_port()[1], flush=True)
sys.stdin.read()
";

struct Moto {
    process: Child,
    url: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Moto {
    /// Starts it; `None` where it is not installed.
    async fn start() -> Option<Self> {
        let mut command = Command::new("python3");
        command.args(["-c", MOTO]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().ok()?;
        let said = process.stdout.take().unwrap();
        let port = tokio::task::spawn_blocking(move || {
            let lines = BufReader::new(said).lines().map_while(Result::ok);
            lines.into_iter().find_map(|line| Some(line.strip_prefix("port ")?.trim().to_owned()))
        });
        let Some(port) = port.await.unwrap() else {
            let _ = process.wait();
            return None;
        };
        Some(Self { process, url: format!("http://127.0.0.1:{port}") })
    }

    fn relay(&self, store: &str, bucket: &str) -> Command {
        let mut command = relay(&["--listen", "127.0.0.1:0", "--store", store, "--artifacts", bucket]);
        command
            .env("ZORAI_AI_API_KEY", KEY)
            .env("AWS_ENDPOINT_URL", &self.url)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "nobody")
            .env("AWS_SECRET_ACCESS_KEY", "nothing")
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }
}

#[tokio::test]
async fn artifacts_are_kept_in_a_bucket() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(moto) = Moto::start().await else {
        println!("skipped: python3 has no moto (pip install 'moto[server]')");
        return;
    };
    let dir = TempDir::new().unwrap();
    let missing = run(moto.relay(path(dir.path()), "s3://nowhere")).await;
    assert!(!missing.status.success() && stderr(&missing).contains("s3://nowhere"), "{}", stderr(&missing));

    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let made = http.put(format!("{}/market", moto.url)).send().await.unwrap();
    assert!(made.status().is_success());
    let mut process = Process(moto.relay(path(dir.path()), "s3://market/relay/1").spawn().unwrap());
    let url = process.url().await;
    let ask = |method, digest: Digest| {
        http.request(method, format!("{url}/v1/artifacts/{digest}")).bearer_auth(KEY)
    };
    // Of several parts.
    let large: Vec<u8> = (0..20_000_000u32).map(|n| (n >> 5) as u8).collect();
    for bytes in [Vec::new(), b"small".to_vec(), large.clone()] {
        let (digest, wrong) = (Digest::of(&bytes), Digest::of(b"announced"));
        let refused = ask(Method::PUT, wrong).body(bytes.clone()).send().await.unwrap();
        let refused: Value = refused.json().await.unwrap();
        assert_eq!(refused["error"]["code"], "hash_mismatch", "{refused}");
        let put = ask(Method::PUT, digest).body(bytes.clone()).send().await.unwrap();
        assert_eq!(put.status(), StatusCode::CREATED);
        assert_eq!(ask(Method::HEAD, wrong).send().await.unwrap().status(), StatusCode::NOT_FOUND);
        let head = ask(Method::HEAD, digest).send().await.unwrap();
        assert_eq!(head.headers()["content-length"], bytes.len().to_string().as_str());
        let whole = ask(Method::GET, digest).send().await.unwrap();
        assert!(whole.bytes().await.unwrap() == bytes);
    }
    let part = ask(Method::GET, Digest::of(&large)).header("range", "bytes=8388600-8388615").send();
    let part = part.await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert!(part.bytes().await.unwrap() == large[8_388_600..8_388_616]);
    let name = Digest::of(b"small").to_string();
    let listed = http.get(format!("{}/market?list-type=2&prefix=relay/1/", moto.url)).send().await.unwrap();
    let (listed, object) = (listed.text().await.unwrap(), format!("relay/1/{}/{}<", &name[..2], &name[2..]));
    assert!(listed.contains(&object), "{listed}");
    let begun = http.get(format!("{}/market?uploads", moto.url)).send().await.unwrap().text().await.unwrap();
    assert!(begun.contains("ListMultipartUploadsResult"), "{begun}");
    assert!(!begun.contains("<Upload>"), "what was refused is cleared away: {begun}");
}
