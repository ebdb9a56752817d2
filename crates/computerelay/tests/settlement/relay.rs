//! The relay as a process, and what clients ask of it.

use std::path::PathBuf;
use std::process::Stdio;

use reqwest::{Method, StatusCode};
use rpc::evidence::Evidence;
use rpc::relay::Info;
use rpc::tasks::{Explanation, PublishTask, SignedMutation, TaskView};
use serde::Serialize;
use taskmarket::{Money, Task, TaskId};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use url::Url;

use crate::chain::{REQUESTER, RESULT, World, eventually, result_hash};

const KEY: &str = "k-settlement";
/// How many blocks make a block final at this relay.
pub(crate) const CONFIRMATIONS: u64 = 3;

pub(crate) struct Relay {
    url: String,
    http: reqwest::Client,
    child: Child,
    store: TempDir,
    args: Vec<String>,
}

impl Relay {
    /// A relay that follows the world's escrow.
    pub(crate) async fn start(world: &World) -> Self {
        Self::start_at(world, &[world.anvil.url()]).await
    }

    /// A relay that reaches the chain at these endpoints.
    pub(crate) async fn start_at(world: &World, endpoints: &[Url]) -> Self {
        let domain = world.chain.domain();
        let mut args = vec![
            "--escrow".to_owned(),
            format!("{}:{}", domain.chain_id, domain.verifying_contract),
            "--confirmations".to_owned(),
            CONFIRMATIONS.to_string(),
            "--chain-poll-ms".to_owned(),
            "50".to_owned(),
        ];
        for url in endpoints {
            args.extend(["--rpc-url".to_owned(), url.to_string()]);
        }
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store = TempDir::new().unwrap();
        let (child, url) = spawn(store.path().to_owned(), &args).await;
        Self { url, http: reqwest::Client::new(), child, store, args }
    }

    /// Kills it and starts it again on what it stored.
    pub(crate) async fn restart(&mut self) {
        self.child.kill().await.unwrap();
        (self.child, self.url) = spawn(self.store.path().to_owned(), &self.args).await;
    }

    /// Where providers connect.
    pub(crate) fn connect_url(&self) -> Url {
        format!("{}/v1/provider/connect", self.url.replace("http://", "ws://")).parse().unwrap()
    }

    /// Waits until providers are let in.
    pub(crate) async fn opens(&self) {
        eventually("providers are let in", || async {
            let (status, _) = self.ask(Method::GET, "/v1/provider/connect", None).await;
            (status != StatusCode::SERVICE_UNAVAILABLE).then_some(())
        })
        .await;
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> (StatusCode, Vec<u8>) {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(KEY);
        if let Some(body) = body {
            let kind =
                if path.contains("artifacts") { "application/octet-stream" } else { "application/json" };
            request = request.header("content-type", kind).body(body);
        }
        let answer = request.send().await.unwrap();
        (answer.status(), answer.bytes().await.unwrap().to_vec())
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> T {
        let (status, body) = self.ask(Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    pub(crate) async fn publish(&self, world: &World, task: &Task) -> TaskId {
        let signed = world.sign(REQUESTER, task);
        let body = PublishTask {
            task: task.clone(),
            signature: signed.signature,
            verifying_contract: world.chain.escrow(),
            callback_url: None,
        };
        let body = serde_json::to_vec(&body).unwrap();
        let (status, body) = self.ask(Method::POST, "/v1/tasks", Some(body)).await;
        assert_eq!(status, StatusCode::CREATED, "{}", String::from_utf8_lossy(&body));
        world.id(task)
    }

    pub(crate) async fn task(&self, id: TaskId) -> TaskView {
        self.get(&format!("/v1/tasks/{id}")).await
    }

    pub(crate) async fn info(&self) -> Info {
        self.get("/v1/info").await
    }

    pub(crate) async fn explain(&self, id: TaskId) -> String {
        self.get::<Explanation>(&format!("/v1/tasks/{id}/explain")).await.summary
    }

    /// Follows a task to the end of its stream, and answers all that was told.
    pub(crate) fn follow(&self, id: TaskId) -> JoinHandle<String> {
        let request = self.http.get(format!("{}/v1/tasks/{id}/events", self.url)).bearer_auth(KEY);
        let request = request.header("accept", "text/event-stream");
        tokio::spawn(async move { request.send().await.unwrap().text().await.unwrap() })
    }

    /// Waits until the task's money is there.
    pub(crate) async fn settles(&self, id: TaskId, money: Money) -> TaskView {
        eventually(&format!("{id} is {}", money.as_str()), || async {
            let task = self.task(id).await;
            (task.settlement == money.as_str()).then_some(task)
        })
        .await
    }

    /// Waits until all that is final now has been taken in.
    pub(crate) async fn has_read(&self, world: &World) {
        let last_final = world.chain.head().await.unwrap().number + 1 - CONFIRMATIONS;
        eventually("the chain is read", || async {
            let read = self.info().await.chain?.final_head?.block;
            (read >= last_final).then_some(())
        })
        .await;
    }

    /// Makes all that the chain has final, and waits for the money.
    pub(crate) async fn finally(&self, world: &World, id: TaskId, money: Money) -> TaskView {
        world.mine(CONFIRMATIONS - 1).await;
        self.settles(id, money).await
    }

    pub(crate) async fn say<M: Serialize>(
        &self,
        id: TaskId,
        verb: &str,
        said: SignedMutation<M>,
    ) -> StatusCode {
        let body = serde_json::to_vec(&said).unwrap();
        self.ask(Method::POST, &format!("/v1/tasks/{id}/{verb}"), Some(body)).await.0
    }

    /// Hands the result in.
    pub(crate) async fn upload(&self) {
        let path = format!("/v1/artifacts/{}", result_hash());
        let (status, _) = self.ask(Method::PUT, &path, Some(RESULT.to_vec())).await;
        assert!(status.is_success(), "{status}");
    }

    /// The task's evidence, checked offline and against the chain.
    pub(crate) async fn evidence(&self, world: &World, id: TaskId) -> Evidence {
        let evidence: Evidence = self.get(&format!("/v1/tasks/{id}/evidence")).await;
        rpc::evidence::verify(&evidence).unwrap();
        assert!(!evidence.chain.is_empty());
        for fact in &evidence.chain {
            assert!(escrow::is_on_chain(&world.chain, id, fact).await.unwrap(), "{fact:?}");
        }
        let mut forged = evidence.chain[0];
        forged.block_time = forged.block_time.plus(1);
        assert!(!escrow::is_on_chain(&world.chain, id, &forged).await.unwrap());
        evidence
    }
}

async fn spawn(store: PathBuf, args: &[String]) -> (Child, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_compute-relay"))
        .args(["--listen", "127.0.0.1:0", "--api-key", KEY, "--log-format", "json", "--store"])
        .arg(store)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        let url = line.split_once("http://127.0.0.1:").and_then(|(_, rest)| {
            let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
            (line.contains("serving") && !port.is_empty()).then(|| format!("http://127.0.0.1:{port}"))
        });
        if let Some(url) = url {
            tokio::spawn(async move {
                while let Ok(Some(line)) = lines.next_line().await {
                    if line.contains("WARN") || line.contains("ERROR") {
                        eprintln!("{line}");
                    }
                }
            });
            return (child, url);
        }
        said.push(line);
    }
    panic!("the relay ended: {said:#?}");
}
