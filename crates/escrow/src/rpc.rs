//! JSON-RPC to the chain: several endpoints, one after the other, each asked first whether it serves the right chain.
//!
//! A request goes to the endpoint that worked last. Where that one cannot be reached, is busy, or serves another chain, the next
//! is asked; after all of them, the round begins again, a little later each time, until the request's time is over. What a chain
//! answers, refusals included, is an answer and not tried elsewhere. A refusal of a question for more events than an endpoint gives is
//! tried elsewhere once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rand::RngExt as _;
use reqwest::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;
use url::Url;

/// The largest answer that is read, in bytes: a wide range of logs.
const MAX_ANSWER_BYTES: usize = 32 * 1024 * 1024;
/// As much of another party's words as goes into errors, in bytes.
const MAX_QUOTE_BYTES: usize = 300;
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after the first round in which no endpoint answered; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between rounds.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// JSON-RPC's code for a limit that was exceeded (EIP-1474): of requests, or of what one request may ask for.
const LIMIT_CODE: i64 = -32005;
/// What providers use for "too many requests".
const BUSY_CODE: i64 = 429;
/// The method whose answers have no bound but the endpoint's.
const LOGS_METHOD: &str = "eth_getLogs";
/// What providers say under [`LIMIT_CODE`] of requests, in contrast to what one may ask for.
const RATE_WORDS: [&str; 5] =
    ["rate limit", "request rate", "request count", "too many requests", "per second"];

/// How endpoints are asked.
#[derive(Debug, Clone)]
pub struct RpcConfig {
    /// The endpoints, the first one first; at least one.
    pub urls: Vec<Url>,
    /// Which chain they must serve; `None` takes that of the first that answers.
    pub chain_id: Option<u64>,
    /// How long one endpoint may take to answer.
    pub endpoint_timeout: Duration,
    /// How long a request may take in all, over all endpoints and rounds.
    pub total_timeout: Duration,
}

impl RpcConfig {
    /// Ten seconds for an endpoint, thirty for a request.
    pub fn new(urls: Vec<Url>, chain_id: Option<u64>) -> Self {
        Self {
            urls,
            chain_id,
            endpoint_timeout: Duration::from_secs(10),
            total_timeout: Duration::from_secs(30),
        }
    }
}

/// Why a chain gave no usable answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RpcError {
    /// No endpoint was named, or one of a kind that cannot be asked.
    #[error("{0}")]
    Setup(String),
    /// No endpoint answered in time.
    #[error("no endpoint of the chain answered: {0}")]
    Unreachable(String),
    /// The chain answered with an error.
    #[error("the chain refused {method}: {message} (code {code})")]
    Refused {
        /// The JSON-RPC method.
        method: String,
        /// The JSON-RPC error's code.
        code: i64,
        /// The node's words.
        message: String,
        /// What a contract reverted with, in hex, where it did.
        data: Option<String>,
    },
    /// The chain answered with something else than the method's result.
    #[error("{method} was answered with something else: {why}")]
    Malformed {
        /// The JSON-RPC method.
        method: String,
        /// What is wrong with it.
        why: String,
    },
}

impl RpcError {
    /// Whether the chain itself answered, so that asking again changes nothing by itself.
    pub fn is_answer(&self) -> bool {
        match self {
            Self::Refused { .. } | Self::Malformed { .. } => true,
            Self::Setup(_) | Self::Unreachable(_) => false,
        }
    }
}

/// The endpoints of one chain. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Rpc {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    http: reqwest::Client,
    endpoints: Vec<Endpoint>,
    /// The endpoint that answered last.
    preferred: AtomicUsize,
    /// The chain's id; zero until it is known.
    chain_id: AtomicU64,
    endpoint_timeout: Duration,
    total_timeout: Duration,
}

#[derive(Debug)]
struct Endpoint {
    url: Url,
    /// Whether it has said that it serves the right chain.
    checked: AtomicBool,
}

impl Endpoint {
    /// What may be shown of it: paths and queries often carry access keys.
    fn name(&self) -> String {
        self.url.origin().ascii_serialization()
    }
}

impl Rpc {
    /// Sets endpoints up; nothing is asked yet.
    ///
    /// # Errors
    /// [`RpcError::Setup`] without an endpoint, or with one that is neither `http` nor `https`.
    pub fn new(config: RpcConfig, tls: &rustls::ClientConfig) -> Result<Self, RpcError> {
        if config.urls.is_empty() {
            return Err(RpcError::Setup("no endpoint of the chain is named".to_owned()));
        }
        if let Some(url) = config.urls.iter().find(|url| !matches!(url.scheme(), "http" | "https")) {
            return Err(RpcError::Setup(format!("{}: expected http:// or https://", url.scheme())));
        }
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .build()
            .map_err(|error| RpcError::Setup(format!("the HTTP client cannot be set up: {error}")))?;
        let endpoints =
            config.urls.into_iter().map(|url| Endpoint { url, checked: AtomicBool::new(false) }).collect();
        Ok(Self {
            inner: Arc::new(Inner {
                http,
                endpoints,
                preferred: AtomicUsize::new(0),
                chain_id: AtomicU64::new(config.chain_id.unwrap_or(0)),
                endpoint_timeout: config.endpoint_timeout,
                total_timeout: config.total_timeout,
            }),
        })
    }

    /// The chain's id.
    ///
    /// # Errors
    /// No endpoint answers, or none of the right chain.
    pub async fn chain_id(&self) -> Result<u64, RpcError> {
        match self.inner.chain_id.load(Ordering::Relaxed) {
            0 => {
                self.request::<Value>("eth_blockNumber", json!([])).await?;
                Ok(self.inner.chain_id.load(Ordering::Relaxed))
            }
            known => Ok(known),
        }
    }

    /// Calls a method with its parameters, an array.
    ///
    /// # Errors
    /// [`RpcError`]; asking again may help only where [`RpcError::is_answer`] is false.
    pub async fn request<T: DeserializeOwned>(
        &self,
        method: &str,
        params: impl Serialize,
    ) -> Result<T, RpcError> {
        let params = serde_json::to_value(params)
            .map_err(|error| malformed(method, &format!("parameters: {error}")))?;
        let value = self.ask_all(method, &params).await?;
        serde_json::from_value(value).map_err(|error| malformed(method, &error.to_string()))
    }

    /// Asks one endpoint after the other, in rounds.
    async fn ask_all(&self, method: &str, params: &Value) -> Result<Value, RpcError> {
        let deadline = Instant::now() + self.inner.total_timeout;
        let mut pause = FIRST_PAUSE;
        loop {
            let first = self.inner.preferred.load(Ordering::Relaxed);
            let count = self.inner.endpoints.len();
            let mut reasons = Vec::new();
            let mut strange = 0;
            let mut too_much = None;
            for index in (0..count).map(|step| (first + step) % count) {
                let endpoint = &self.inner.endpoints[index];
                match self.ask_checked(endpoint, method, params).await {
                    Ok(answer) => {
                        self.inner.preferred.store(index, Ordering::Relaxed);
                        return answer;
                    }
                    Err(silence) => {
                        tracing::debug!(
                            endpoint = endpoint.name(),
                            method,
                            reason = silence.why,
                            "no answer"
                        );
                        strange += usize::from(silence.other_chain);
                        too_much = silence.too_much.or(too_much);
                        reasons.push(format!("{}: {}", endpoint.name(), silence.why));
                    }
                }
                if Instant::now() >= deadline {
                    break;
                }
            }
            // Neither time nor another endpoint helps: less is to be asked for.
            if let Some(refusal) = too_much {
                return Err(refusal);
            }
            // Time does not change which chain an endpoint serves.
            if strange == count {
                return Err(RpcError::Setup(format!(
                    "no endpoint is of the right chain: {}",
                    reasons.join("; ")
                )));
            }
            let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
            if Instant::now() + jittered >= deadline {
                return Err(RpcError::Unreachable(reasons.join("; ")));
            }
            tokio::time::sleep(jittered).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Asks one endpoint, and before the first time, which chain it serves. `Err` is a reason to ask another.
    async fn ask_checked(
        &self,
        endpoint: &Endpoint,
        method: &str,
        params: &Value,
    ) -> Result<Result<Value, RpcError>, Silence> {
        if !endpoint.checked.load(Ordering::Relaxed) {
            let served = self
                .ask(endpoint, "eth_chainId", &json!([]))
                .await?
                .map_err(|error| error.to_string())?
                .as_str()
                .and_then(|text| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok())
                .filter(|id| *id != 0)
                .ok_or_else(|| "it names no chain id".to_owned())?;
            let expected = self
                .inner
                .chain_id
                .compare_exchange(0, served, Ordering::Relaxed, Ordering::Relaxed)
                .map_or_else(|known| known, |_| served);
            if served != expected {
                let why = format!("it serves chain {served}, not {expected}");
                return Err(Silence { other_chain: true, ..Silence::from(why) });
            }
            endpoint.checked.store(true, Ordering::Relaxed);
        }
        match self.ask(endpoint, method, params).await? {
            Err(refusal @ RpcError::Refused { code: LIMIT_CODE, .. }) => {
                Err(Silence { too_much: Some(refusal.clone()), ..Silence::from(refusal.to_string()) })
            }
            answer => Ok(answer),
        }
    }

    async fn ask(
        &self,
        endpoint: &Endpoint,
        method: &str,
        params: &Value,
    ) -> Result<Result<Value, RpcError>, String> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let answer = tokio::time::timeout(self.inner.endpoint_timeout, self.post(endpoint, &body))
            .await
            .map_err(|_| format!("no answer within {:?}", self.inner.endpoint_timeout))??;
        let Value::Object(mut answer) = answer else {
            return Err("it does not speak JSON-RPC".to_owned());
        };
        if let Some(error) = answer.remove("error").filter(|error| !error.is_null()) {
            let code = error["code"].as_i64().unwrap_or(0);
            let message = quote(error["message"].as_str().unwrap_or("no reason given"));
            if is_busy(method, code, &message) {
                return Err(format!("it is busy: {message}"));
            }
            return Ok(Err(RpcError::Refused {
                method: method.to_owned(),
                code,
                message,
                data: revert_data(&error["data"]),
            }));
        }
        answer.remove("result").map(Ok).ok_or_else(|| "neither a result nor an error".to_owned())
    }

    async fn post(&self, endpoint: &Endpoint, body: &Value) -> Result<Value, String> {
        let describe = |error: reqwest::Error| chain_of(&error.without_url());
        let mut response =
            self.inner.http.post(endpoint.url.clone()).json(body).send().await.map_err(describe)?;
        let status = response.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(describe)? {
            if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(format!("an answer of more than {MAX_ANSWER_BYTES} bytes"));
            }
            bytes.extend_from_slice(&chunk);
        }
        match serde_json::from_slice(&bytes) {
            // Some nodes put JSON-RPC errors under a 4xx.
            Ok(value @ Value::Object(_)) if status.is_success() || status == StatusCode::BAD_REQUEST => {
                Ok(value)
            }
            Ok(_) | Err(_) if !status.is_success() => Err(format!("HTTP {status}")),
            Ok(value) => Ok(value),
            Err(error) => Err(format!("its answer is not JSON: {error}")),
        }
    }
}

/// Why an endpoint is passed over.
struct Silence {
    why: String,
    /// It serves another chain, and will go on to.
    other_chain: bool,
    /// More is asked for than it answers at once.
    too_much: Option<RpcError>,
}

impl From<String> for Silence {
    fn from(why: String) -> Self {
        Self { why, other_chain: false, too_much: None }
    }
}

/// Whether an error says that the endpoint takes no more requests for now.
fn is_busy(method: &str, code: i64, message: &str) -> bool {
    let message = message.to_lowercase();
    let of_requests = method != LOGS_METHOD || RATE_WORDS.iter().any(|word| message.contains(word));
    code == BUSY_CODE || (code == LIMIT_CODE && of_requests)
}

/// Where nodes put what a contract reverted with: the data itself, or an object that holds it.
fn revert_data(data: &Value) -> Option<String> {
    let text = data.as_str().or_else(|| data["data"].as_str())?;
    text.starts_with("0x").then(|| text.to_owned())
}

fn malformed(method: &str, why: &str) -> RpcError {
    RpcError::Malformed { method: method.to_owned(), why: quote(why) }
}

/// Another party's words, safe for a log line.
fn quote(text: &str) -> String {
    let mut cleaned: String = text.chars().filter(|c| !c.is_control()).take(MAX_QUOTE_BYTES).collect();
    cleaned.truncate(cleaned.floor_char_boundary(MAX_QUOTE_BYTES));
    cleaned
}

/// An error with its causes in one line.
fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    quote(&text)
}
