//! The relay's REST API, as this program uses it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use artifact::Digest;
use daemon::Secret;
use percent_encoding::PercentEncode;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, RANGE, RETRY_AFTER};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode};
use rpc::error::ErrorCode;
use rpc::inference::{InferenceKind, PROVIDER_HEADER, ReceiptView};
use rpc::relay::{Info, Limits};
use rpc::tasks::{Explanation, PublishTask, SignedMutation, TaskHistory, TaskView};
use rpc::{READ_HEADER, UPLOAD_OFFSET_HEADER};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use taskmarket::{Domain, Message, ReadTask, Signed, TaskId};
use url::Url;
use wallet::Wallet;

use crate::commands::artifact::fetch_failed;
use crate::failure::{Exit, Failure, Outcome};
use crate::follow::now;
use crate::refusal::{Refusal, hint};
use crate::ui::{Ui, clean};

/// How long a TCP and TLS connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a JSON answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a stream may be silent. Relays send a sign of life far more often.
const SILENCE: Duration = Duration::from_secs(60);
/// The slowest upload that is waited for, in bytes per second.
const SLOWEST_UPLOAD: u64 = 16 * 1024;
/// The largest JSON answer that is read, in bytes: a page of a thousand tasks with their parameters.
const MAX_JSON_BYTES: usize = 64 << 20;
/// How often a relay that says "later" is asked again.
const MAX_TRIES: u32 = 4;
/// How long a relay has to notice that an upload broke off.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause that a relay can ask for.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// What to do where the relay is out of reach, besides looking at the command line.
pub(crate) const LOOK_CLOSER: &str = "`zorai-compute doctor` looks closer";

/// A client of one relay. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Relay {
    http: reqwest::Client,
    /// Whom it trusts.
    tls: Arc<rustls::ClientConfig>,
    base: Url,
    key: Option<Secret>,
    /// Who reads tasks by signature, where there is no API key.
    reader: Option<Arc<Wallet>>,
    ui: Ui,
}

impl Relay {
    /// A client of the relay at `url`. Nothing is sent yet.
    pub(crate) fn new(url: &str, key: Option<Secret>, ca_file: Option<&Path>, ui: &Ui) -> Outcome<Self> {
        let wrong = |why: &str| {
            Failure::usage(format_args!("--relay: {why}"))
                .hint("write https://HOST, or http://127.0.0.1:PORT for a relay on this machine")
        };
        let mut base = Url::parse(url).map_err(|error| wrong(&format!("not a URL: {error}")))?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(wrong("expected the URL of a relay, http:// or https://"));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(wrong("a URL holds no user name or password; the API key goes by --api-key"));
        }
        base.set_query(None);
        base.set_fragment(None);
        let local = is_loopback(&base);
        if base.scheme() == "http" && !local && key.is_some() {
            ui.warn("the API key goes over the network unencrypted; use https");
        }
        let tls = daemon::tls::client_config(ca_file).map_err(Failure::usage)?;
        Ok(Self {
            http: client(local, tls.clone())?,
            tls: Arc::new(tls),
            base,
            key,
            reader: None,
            ui: ui.clone(),
        })
    }

    /// The same relay, where tasks are read by this wallet's signature.
    pub(crate) fn read_by(self, wallet: Wallet) -> Self {
        Self { reader: Some(Arc::new(wallet)), ..self }
    }

    /// Whether there is an API key to ask with.
    pub(crate) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// The relay's URL, without a slash at its end.
    pub(crate) fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Whether the connection is encrypted.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.base.scheme() == "https"
    }

    /// Whether the relay is on this machine.
    pub(crate) fn is_local(&self) -> bool {
        is_loopback(&self.base)
    }

    /// What fetches references into `store`, trusting whom this client trusts.
    pub(crate) fn fetcher(&self, store: artifact::BlobStore) -> Outcome<artifact::Fetcher> {
        let mut tls = (*self.tls).clone();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        artifact::Fetcher::with_tls(artifact::FetchPolicy::default(), store, &tls).map_err(fetch_failed)
    }

    /// Where to fetch `artifact://` references from.
    pub(crate) fn origin(&self) -> Outcome<artifact::Origin> {
        let key = self.key.as_ref().map_or("", |key| key.expose());
        artifact::Origin::new(self.url(), key).map_err(Failure::usage)
    }

    /// Asks for JSON.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Outcome<T> {
        let request = || self.request(Method::GET, path).timeout(PATIENCE);
        self.json(self.send(request).await?).await
    }

    /// What the relay says of itself.
    pub(crate) async fn info(&self) -> Outcome<Info> {
        self.get("v1/info").await
    }

    /// What the relay takes at most.
    pub(crate) async fn limits(&self) -> Outcome<Limits> {
        Ok(self.info().await?.limits)
    }

    /// Shows a task.
    pub(crate) async fn task(&self, id: TaskId) -> Outcome<TaskView> {
        let read = self.signed_read(id)?;
        let request = || self.reading(&format!("v1/tasks/{id}"), read.as_deref()).timeout(PATIENCE);
        self.json(self.send(request).await?).await
    }

    /// Tells a task's history.
    pub(crate) async fn history(&self, id: TaskId) -> Outcome<TaskHistory> {
        let read = self.signed_read(id)?;
        let request = || self.reading(&format!("v1/tasks/{id}/events"), read.as_deref()).timeout(PATIENCE);
        self.json(self.send(request).await?).await
    }

    /// Says why a task waits.
    pub(crate) async fn explain(&self, id: TaskId) -> Outcome<Explanation> {
        let read = self.signed_read(id)?;
        let request = || self.reading(&format!("v1/tasks/{id}/explain"), read.as_deref()).timeout(PATIENCE);
        self.json(self.send(request).await?).await
    }

    /// Publishes a task.
    pub(crate) async fn publish(&self, body: &PublishTask) -> Outcome<TaskView> {
        self.post("v1/tasks", body).await
    }

    /// Sends a signed message about a task: `cancel`, `approve` or `dispute`. Sending it twice changes nothing.
    pub(crate) async fn mutate<M: Message + Serialize>(
        &self,
        id: TaskId,
        verb: &str,
        signed: Signed<M>,
    ) -> Outcome<TaskView> {
        self.post(&format!("v1/tasks/{id}/{verb}"), &SignedMutation::from(signed)).await
    }

    /// Whether the API key may publish tasks, by trying to publish nothing.
    ///
    /// # Errors
    /// As the relay refuses the key; with the code `forbidden` it has not the scope.
    pub(crate) async fn may_publish(&self) -> Outcome {
        match self.post::<Value>("v1/tasks", &serde_json::json!({})).await {
            Err(failure) if failure.code() == Some(ErrorCode::MalformedRequest.as_str()) => Ok(()),
            answered => answered.map(drop),
        }
    }

    /// Hands in a signed message about a settled task, which takes effect only on the chain.
    pub(crate) async fn tell<M: Message + Serialize>(
        &self,
        id: TaskId,
        verb: &str,
        signed: Signed<M>,
    ) -> Outcome {
        let body = SignedMutation::from(signed);
        let path = format!("v1/tasks/{id}/{verb}");
        self.send(|| self.request(Method::POST, &path).timeout(PATIENCE).json(&body)).await.map(|_| ())
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Outcome<T> {
        let request = || self.request(Method::POST, path).timeout(PATIENCE).json(body);
        self.json(self.send(request).await?).await
    }

    /// Asks for a chat completion. The body goes as it is; the answer is the provider's, to be read as it comes.
    pub(crate) async fn chat(&self, body: &[u8]) -> Outcome<Response> {
        let path = InferenceKind::Chat.path().trim_start_matches('/');
        let request = || {
            let request = self.request(Method::POST, path).header(CONTENT_TYPE, "application/json");
            request.body(body.to_vec())
        };
        self.send(request).await
    }

    /// What the relay noted of an inference request, with the provider's receipt.
    pub(crate) async fn receipt(&self, request_id: &str) -> Outcome<ReceiptView> {
        self.get(&format!("v1/receipts/{}", segment(request_id))).await
    }

    /// A task's result as a stream of bytes, from byte `from` on if the relay can.
    pub(crate) async fn result(&self, id: TaskId, from: u64) -> Outcome<Response> {
        let (path, read) = (format!("v1/tasks/{id}/result"), self.signed_read(id)?);
        let request = || {
            let request = self.reading(&path, read.as_deref());
            if from == 0 { request } else { request.header(RANGE, format!("bytes={from}-")) }
        };
        self.send(request).await
    }

    /// What a task's newest attempt said, from line `from` on; with `follow` until the attempt ends.
    pub(crate) async fn logs(&self, id: TaskId, from: u64, follow: bool) -> Outcome<Response> {
        let path = format!("v1/tasks/{id}/logs?from={from}&follow={follow}");
        let read = self.signed_read(id)?;
        self.send(|| self.reading(&path, read.as_deref())).await
    }

    /// A task's events, live, from after `last`.
    pub(crate) async fn follow(&self, id: TaskId, last: Option<u64>) -> Outcome<Response> {
        let read = self.signed_read(id)?;
        let request = || {
            let request = self.reading(&format!("v1/tasks/{id}/events"), read.as_deref());
            let request = request.header(ACCEPT, "text/event-stream");
            match last {
                Some(last) => request.header("last-event-id", last),
                None => request,
            }
        };
        self.send(request).await
    }

    /// Where the relay's store of these bytes ends: after how many of them an upload broke off, or at nothing; `None` if it has all.
    pub(crate) async fn lacks(&self, digest: &Digest) -> Outcome<Option<u64>> {
        let path = format!("v1/artifacts/{digest}");
        for tries_left in (0..MAX_TRIES).rev() {
            let request = self.request(Method::HEAD, &path).timeout(PATIENCE);
            let response = request.send().await.map_err(|error| self.unreachable(error))?;
            if response.status() == StatusCode::NOT_FOUND {
                let came = response.headers().get(UPLOAD_OFFSET_HEADER);
                return Ok(Some(came.and_then(|came| came.to_str().ok()?.parse().ok()).unwrap_or(0)));
            }
            if self.judge(response, tries_left).await?.is_some() {
                return Ok(None);
            }
        }
        Err(asked_no_more())
    }

    /// Stores bytes at the relay, of which it has those before `from`. `body` is made anew for each try, from where it begins. What breaks
    /// off on the way goes on as long as it gets further.
    pub(crate) async fn put(
        &self,
        digest: &Digest,
        bytes: u64,
        mut from: u64,
        body: impl AsyncFn(u64) -> Outcome<Body>,
    ) -> Outcome {
        let path = format!("v1/artifacts/{digest}");
        let mut tries_left = MAX_TRIES;
        loop {
            tries_left -= 1;
            // A relay that has other bytes than these is sent all.
            from = if from < bytes { from } else { 0 };
            let mut request = self
                .request(Method::PUT, &path)
                .header(CONTENT_TYPE, "application/octet-stream")
                .header(CONTENT_LENGTH, bytes - from)
                .timeout(PATIENCE + Duration::from_secs((bytes - from) / SLOWEST_UPLOAD));
            if from > 0 {
                request = request.header(CONTENT_RANGE, format!("bytes {from}-{}/{bytes}", bytes - 1));
            }
            match self.attempt(request.body(body(from).await?), tries_left).await {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => {}
                Err(broken) if tries_left > 0 && (broken.exit() == Exit::Unreachable || from > 0) => {
                    self.ui.detail(format_args!("the upload of {digest} broke off; going on"));
                    tokio::time::sleep(PAUSE).await;
                }
                Err(failure) => return Err(failure),
            }
            let Some(came) = self.lacks(digest).await? else { return Ok(()) };
            if came > from {
                tries_left = MAX_TRIES;
            }
            from = came;
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty();
        }
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_path(&format!("{}/{path}", url.path().trim_end_matches('/')));
        url.set_query(query);
        let request = self.http.request(method, url);
        match &self.key {
            Some(key) => request.bearer_auth(key.expose()),
            None => request,
        }
    }

    /// A request to read a task, with the signature that allows it where one is needed.
    fn reading(&self, path: &str, signed: Option<&str>) -> RequestBuilder {
        let request = self.request(Method::GET, path);
        match signed {
            Some(signed) => request.header(READ_HEADER, signed),
            None => request,
        }
    }

    /// What allows the reader to read a task, for the next minutes.
    fn signed_read(&self, task_id: TaskId) -> Outcome<Option<String>> {
        let Some(wallet) = &self.reader else { return Ok(None) };
        let read = ReadTask { task_id, reader: wallet.address(), issued_at: now() };
        let signed = wallet.sign(&read, &Domain::UNSETTLED).map_err(Failure::failed)?;
        serde_json::to_string(&SignedMutation::from(signed)).map(Some).map_err(Failure::failed)
    }

    /// Sends a request until the relay takes it, refuses it, or has said "later" too often.
    async fn send(&self, request: impl Fn() -> RequestBuilder) -> Outcome<Response> {
        for tries_left in (0..MAX_TRIES).rev() {
            if let Some(response) = self.attempt(request(), tries_left).await? {
                return Ok(response);
            }
        }
        Err(asked_no_more())
    }

    /// One try; `None` says that it is time for the next.
    async fn attempt(&self, request: RequestBuilder, tries_left: u32) -> Outcome<Option<Response>> {
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        self.judge(response, tries_left).await
    }

    /// What the relay answered; `None` after the pause that it asked for.
    async fn judge(&self, response: Response, tries_left: u32) -> Outcome<Option<Response>> {
        let status = response.status();
        self.ui.detail(format_args!("{} {}", status.as_u16(), response.url().path()));
        if status.is_success() {
            return Ok(Some(response));
        }
        let later = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        if later && tries_left > 0 {
            let pause = Duration::from_secs(retry_after(response.headers()).unwrap_or(1)).min(MAX_PAUSE);
            let (who, Refusal { message, .. }) = refusal(response).await;
            self.ui
                .say(format_args!("the {who} says: later: {message}; trying again in {} s", pause.as_secs()));
            tokio::time::sleep(pause).await;
            return Ok(None);
        }
        Err(self.refused(response).await)
    }

    async fn json<T: DeserializeOwned>(&self, response: Response) -> Outcome<T> {
        let bytes = read(response).await.map_err(|why| self.unreachable_because(&why))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::failed(format_args!("{} does not answer as a relay does: {error}", self.url()))
                .hint("check --relay, and that this program and the relay are of the same version")
        })
    }

    fn unreachable(&self, error: reqwest::Error) -> Failure {
        self.unreachable_because(&causes(&error.without_url()))
    }

    fn unreachable_because(&self, why: &str) -> Failure {
        let failure =
            Failure::new(Exit::Unreachable, format_args!("cannot reach the relay at {}: {why}", self.url()));
        match tls_hint(self.base.scheme(), why) {
            Some(hint) => failure.hint(hint),
            None => failure.hint("check --relay and the network").hint(LOOK_CLOSER),
        }
    }

    /// A refusal in the words of the relay, or of the provider that it asked.
    async fn refused(&self, response: Response) -> Failure {
        let status = response.status();
        let path = response.url().path().to_owned();
        let later = retry_after(response.headers());
        let (who, refusal) = refusal(response).await;
        let exit = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Exit::NotAuthorised,
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                Exit::Unreachable
            }
            _ => Exit::Failed,
        };
        let mut failure = refusal.failure(&format!("the {who} refuses"), exit);
        if let Some(seconds) = later {
            failure = failure.hint(format_args!("it asks for a pause: try again in {seconds} s"));
        }
        match hint(failure.code(), status, &path, self.key.is_some()) {
            Some(words) => failure.hint(words),
            None => failure,
        }
    }
}

/// Who refuses, and in which words.
async fn refusal(response: Response) -> (&'static str, Refusal) {
    let status = response.status();
    let who = if response.headers().contains_key(PROVIDER_HEADER) { "provider" } else { "relay" };
    let body = read(response).await.unwrap_or_default();
    let refusal = serde_json::from_slice::<Value>(&body).ok().and_then(|body| Refusal::of_body(&body));
    let refusal = refusal.unwrap_or_else(|| match status {
        // Answers to HEAD have no body.
        StatusCode::UNAUTHORIZED => Refusal {
            message: "an API key that it knows is needed".to_owned(),
            code: Some(ErrorCode::InvalidApiKey.as_str().to_owned()),
        },
        status => Refusal { message: format!("HTTP {status}"), code: None },
    });
    (who, refusal)
}

/// A text as one segment of a path.
pub(crate) fn segment(text: &str) -> PercentEncode<'_> {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
}

/// What to change, where TLS is the reason that a relay cannot be reached.
fn tls_hint(scheme: &str, why: &str) -> Option<&'static str> {
    let says = |words: &str| why.contains(words);
    match scheme {
        "https" if says("InvalidContentType") => Some("this port speaks plain HTTP: write http://"),
        "https" if says("CaUsedAsEndEntity") => Some(
            "the relay's certificate is a CA certificate; make one with -addext basicConstraints=critical,CA:FALSE",
        ),
        "https" if says("UnknownIssuer") => {
            Some("if the relay has a certificate of a private authority, name that one: --ca-file FILE")
        }
        "http" if says("invalid HTTP") => Some("this port speaks TLS: write https://"),
        _ => None,
    }
}

/// The last try answers for itself; this is for a bound of none.
fn asked_no_more() -> Failure {
    Failure::new(Exit::Unreachable, "the relay was not asked")
}

/// Reads a JSON body, up to a bound.
async fn read(mut response: Response) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| causes(&error.without_url()))? {
        if bytes.len() + piece.len() > MAX_JSON_BYTES {
            return Err(format!("an answer of more than {MAX_JSON_BYTES} bytes"));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// The pause that is asked for, in seconds.
fn retry_after(headers: &HeaderMap) -> Option<u64> {
    headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok())
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Redirects are not followed, so that the API key goes nowhere else; a proxy of the environment is used, except towards this
/// machine itself.
fn client(local: bool, tls: rustls::ClientConfig) -> Outcome<reqwest::Client> {
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("zorai-compute/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(SILENCE)
        .tcp_nodelay(true);
    let builder = if local { builder.no_proxy() } else { builder };
    builder.build().map_err(Failure::failed)
}

/// An error with its causes in one line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    clean(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(url: &str) -> Outcome<Relay> {
        Relay::new(url, Some(Secret::new("k")), None, &Ui::new(true, false, false))
    }

    #[test]
    fn paths_are_below_the_relays_url() {
        for (base, full) in [
            ("http://127.0.0.1:1", "http://127.0.0.1:1/v1/info?a=1"),
            ("https://relay.example/zorai/", "https://relay.example/zorai/v1/info?a=1"),
            ("https://relay.example/zorai?x=1#y", "https://relay.example/zorai/v1/info?a=1"),
        ] {
            let request = relay(base).unwrap().request(Method::GET, "v1/info?a=1").build().unwrap();
            assert_eq!(request.url().as_str(), full);
        }
    }

    #[test]
    fn what_is_no_relay_is_wrong_usage_and_no_secret_is_repeated() {
        for url in ["", "relay.example", "wss://relay.example", "https://user:hunter2@relay.example"] {
            let failure = relay(url).unwrap_err();
            assert_eq!(failure.exit(), Exit::Usage, "{url}");
            assert!(!format!("{failure:?}").contains("hunter2"));
        }
        assert!(!format!("{:?}", relay("http://localhost:1").unwrap()).contains("\"k\""));
    }

    #[test]
    fn mixed_up_tls_has_its_own_hint() {
        for (scheme, why, hint) in [
            (
                "https",
                "client error (Connect): received corrupt message of type InvalidContentType",
                "http://",
            ),
            ("http", "client error (SendRequest): invalid HTTP version parsed", "https://"),
            ("https", "invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))", "CA:FALSE"),
            ("https", "invalid peer certificate: UnknownIssuer", "--ca-file"),
        ] {
            assert!(tls_hint(scheme, why).unwrap().contains(hint), "{why}");
        }
        assert_eq!(tls_hint("http", "tcp connect error: Connection refused"), None);
    }

    #[test]
    fn only_this_machine_is_local() {
        for (url, local) in [
            ("http://127.0.0.1:1", true),
            ("http://[::1]:1", true),
            ("http://localhost:1", true),
            ("http://10.0.0.1:1", false),
            ("http://localhost.example", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), local, "{url}");
        }
    }
}
