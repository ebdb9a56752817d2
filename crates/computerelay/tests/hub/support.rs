//! A relay in this process, a requester, and waiting with deadlines.

use std::sync::Arc;
use std::time::Duration;

use computerelay::Config;
use daemon::Secret;
use reqwest::StatusCode;
use rpc::relay::{ProviderList, SessionList};
use rpc::tasks::{Explanation, PublishTask, SignedMutation, TaskView};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use taskmarket::{Address, Amount, Bytes32, ContentHash, Domain, Runtime, Status, Task, TaskConfig, TaskId};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use url::Url;
use wallet::Wallet;

use crate::agent::now;

/// Longer than anything takes that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const API_KEY: &str = "key-of-the-tests";

/// Waits for what must happen.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}

/// A relay's deadlines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) heartbeat: Duration,
    pub(crate) grace: Duration,
    /// How long nobody else may be there until one word ends a task.
    pub(crate) alone: Duration,
    pub(crate) offer: Duration,
    /// Between two proofs of a GPU.
    pub(crate) challenge: Option<Duration>,
}

impl Default for Times {
    /// Quick reports, and nobody is given up by mistake.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(500),
            grace: PATIENCE * 2,
            alone: Duration::from_secs(60),
            offer: Duration::from_secs(10),
            challenge: None,
        }
    }
}

/// A relay that serves.
pub(crate) struct Relay {
    base: Url,
    folder: Arc<TempDir>,
    http: reqwest::Client,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Relay {
    pub(crate) async fn start(times: Times) -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), times).await
    }

    async fn start_in(folder: Arc<TempDir>, times: Times) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config = Config::new("127.0.0.1:0".parse().unwrap(), folder.path(), Secret::new(API_KEY));
        config.heartbeat = times.heartbeat;
        config.heartbeat_timeout = times.heartbeat;
        config.session_grace = times.grace;
        config.alone = times.alone;
        config.offer_timeout = times.offer;
        config.challenge_gpus = times.challenge;
        let relay = computerelay::build(config).await.unwrap();
        let base: Url = format!("http://{}", relay.local_addr()).parse().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(relay.run(stop.clone()));
        let relay = Self { base, folder, http: reqwest::Client::new(), stop, task };
        relay.is_open().await;
        relay
    }

    /// Waits until providers may connect.
    async fn is_open(&self) {
        let request = || self.http.get(self.base.join("/v1/provider/connect").unwrap());
        poll("an open hub", async || {
            let response = request().send().await.unwrap();
            (response.status() == StatusCode::UPGRADE_REQUIRED).then_some(())
        })
        .await;
    }

    /// Ends this relay and starts another with the same folder.
    pub(crate) async fn restart(self, times: Times) -> Self {
        let folder = Arc::clone(&self.folder);
        self.stop().await;
        Self::start_in(folder, times).await
    }

    /// Ends this relay, does something to its store, and starts another with it.
    pub(crate) async fn restart_after(self, times: Times, work: impl AsyncFnOnce(&store::Sqlite)) -> Self {
        let folder = Arc::clone(&self.folder);
        self.stop().await;
        let store = store::Sqlite::open(folder.path()).await.unwrap();
        work(&store).await;
        store::Store::close(&store).await;
        Self::start_in(folder, times).await
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        within("the relay's end", self.task).await.unwrap().unwrap();
    }

    pub(crate) fn url(&self) -> Url {
        let mut url = self.base.join("/v1/provider/connect").unwrap();
        url.set_scheme("ws").unwrap();
        url
    }

    /// A request with this API key, or with the first one.
    pub(crate) fn ask(&self, path: &str, key: Option<&str>) -> reqwest::RequestBuilder {
        self.http.get(self.base.join(path).unwrap()).bearer_auth(key.unwrap_or(API_KEY))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let request = self.http.get(self.base.join(path).unwrap()).bearer_auth(API_KEY);
        let response = within(path, request.send()).await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    /// The status and the answer, if it has one.
    pub(crate) async fn post(&self, path: &str, body: &impl Serialize) -> (StatusCode, serde_json::Value) {
        let request = self.http.post(self.base.join(path).unwrap()).bearer_auth(API_KEY).json(body);
        let response = within(path, request.send()).await.unwrap();
        let status = response.status();
        let answer = response.bytes().await.unwrap();
        (status, serde_json::from_slice(&answer).unwrap_or_default())
    }

    pub(crate) async fn publish(&self, requester: &Requester, task: &Task) -> TaskId {
        let signed = requester.0.sign(task, &Domain::UNSETTLED).unwrap();
        let body = PublishTask {
            task: task.clone(),
            signature: signed.signature,
            verifying_contract: Address::ZERO,
            callback_url: None,
        };
        let (status, answer) = self.post("/v1/tasks", &body).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        task.id(&Domain::UNSETTLED)
    }

    /// Sends a signed message; the status, and the code of an error.
    pub(crate) async fn tell<M: Serialize>(
        &self,
        task_id: TaskId,
        verb: &str,
        mutation: &SignedMutation<M>,
    ) -> (u16, String) {
        let (status, answer) = self.post(&format!("/v1/tasks/{task_id}/{verb}"), mutation).await;
        (status.as_u16(), answer["error"]["code"].as_str().unwrap_or_default().to_owned())
    }

    /// Stores a result with an attempt's token.
    pub(crate) async fn store_result(&self, token: &str, bytes: &'static [u8]) -> ContentHash {
        let hash = hash_of(bytes);
        let url = self.base.join(&format!("/v1/artifacts/{hash}")).unwrap();
        let response =
            within("a PUT", self.http.put(url).bearer_auth(token).body(bytes).send()).await.unwrap();
        assert!(response.status().is_success(), "{}", response.text().await.unwrap());
        hash
    }

    pub(crate) async fn task(&self, task_id: TaskId) -> TaskView {
        self.get(&format!("/v1/tasks/{task_id}")).await
    }

    /// Waits until a task is in a status at an attempt.
    pub(crate) async fn reaches(&self, task_id: TaskId, status: Status, attempt: u32) -> TaskView {
        let what = format!("{status} at attempt {attempt}");
        poll(&what, async || {
            let task = self.task(task_id).await;
            (task.status == status && task.attempt == attempt).then_some(task)
        })
        .await
    }

    /// Waits until the explanation of a task says as asked.
    pub(crate) async fn explains(
        &self,
        task_id: TaskId,
        wanted: impl Fn(&Explanation) -> bool,
    ) -> Explanation {
        poll("an explanation", async || {
            let explanation: Explanation = self.get(&format!("/v1/tasks/{task_id}/explain")).await;
            if !wanted(&explanation) {
                return None;
            }
            Some(explanation)
        })
        .await
    }

    /// Waits until the connected hosts are as asked.
    pub(crate) async fn lists(&self, wanted: impl Fn(&ProviderList) -> bool) -> ProviderList {
        poll("the list of providers", async || {
            let list: ProviderList = self.get("/v1/providers").await;
            wanted(&list).then_some(list)
        })
        .await
    }

    pub(crate) async fn sessions(&self, provider: Address) -> SessionList {
        self.get(&format!("/v1/providers/{provider}/sessions")).await
    }
}

/// Asks again and again until there is an answer.
pub(crate) async fn poll<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let answered = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    within(what, answered).await
}

pub(crate) fn hash_of(bytes: &[u8]) -> ContentHash {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    ContentHash(digest.into())
}

/// Somebody who publishes tasks.
pub(crate) struct Requester(Wallet);

impl Requester {
    pub(crate) fn new() -> Self {
        Self(Wallet::random())
    }

    /// A task that any host fits.
    pub(crate) fn task(&self) -> Task {
        Task {
            requester: self.0.address(),
            model_cid: "https://models.example/m.wasm".parse().unwrap(),
            model_hash: ContentHash::UNPINNED,
            input_cid: "https://models.example/input".parse().unwrap(),
            input_hash: ContentHash::UNPINNED,
            config: TaskConfig {
                runtime: Runtime::Wasm,
                params: "{}".into(),
                gpu_type: String::new(),
                gpu_count: 0,
                min_vram: 0,
                max_duration: 600,
                max_attempts: 3,
            },
            token: Address::ZERO,
            budget: Amount::ZERO,
            provider_stake: Amount::ZERO,
            dispute_bond: Amount::ZERO,
            deadline: now().plus(3600),
            dispute_window: 86_400,
            arbiter_window: 604_800,
            arbiter: Address::ZERO,
            salt: Bytes32(rand::random::<[u8; 32]>().into()),
        }
    }
}
