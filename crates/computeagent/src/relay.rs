//! The relay's public API, as the agent uses it: results and signed mutations go up here, not over the link.

use std::time::Duration;

use daemon::chain;
use futures_util::TryStreamExt as _;
use reqwest::{Response, StatusCode};
use rpc::UPLOAD_OFFSET_HEADER;
use rpc::error::ErrorCode;
use rpc::tasks::SignedMutation;
use serde::Serialize;
use taskmarket::{ComputeProof, ContentHash, FailTask, UpdateNodeStatus};
use url::Url;

use crate::http_client::{Answer, refusal};

/// How long the relay may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The slowest upload that is waited for, in bytes per second.
const SLOWEST_UPLOAD: u64 = 16 * 1024;
/// The longest wait that a relay's `Retry-After` can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// A client of one relay's API.
pub(crate) struct RelayClient {
    http: reqwest::Client,
    api: Url,
}

/// Why the relay did not take something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    /// It may take it later.
    #[error("{why}")]
    Later {
        /// What happened.
        why: String,
        /// How long it asks to wait.
        after: Option<Duration>,
    },
    /// It wants the result's bytes first.
    #[error("the relay lacks the result's bytes")]
    ResultMissing,
    /// It never will.
    #[error("the relay refuses: {0}")]
    Never(Answer),
}

impl RelayClient {
    /// A client of the API at `api`.
    pub(crate) fn new(http: reqwest::Client, api: Url) -> Self {
        Self { http, api }
    }

    /// The base of the API, as the compute node is told.
    pub(crate) fn api(&self) -> &Url {
        &self.api
    }

    /// How long reading or sending so many bytes may take.
    pub(crate) fn transfer_patience(bytes: u64) -> Duration {
        PATIENCE.saturating_add(Duration::from_secs(bytes / SLOWEST_UPLOAD))
    }

    /// Where the relay's store of these bytes ends: after how many of them an upload broke off, or at nothing; `None` if it has all.
    pub(crate) async fn lacks(&self, digest: &ContentHash, token: &str) -> Result<Option<u64>, RelayError> {
        let request = self.http.head(self.artifact(digest)?).bearer_auth(token).timeout(PATIENCE);
        let response = request.send().await.map_err(later)?;
        if response.status().is_success() {
            return Ok(None);
        }
        let came = response.headers().get(UPLOAD_OFFSET_HEADER);
        Ok(Some(came.and_then(|came| came.to_str().ok()?.parse().ok()).unwrap_or(0)))
    }

    /// Streams `source`, of so many bytes, to the relay, which checks them against the digest and has those before `from`.
    pub(crate) async fn store(
        &self,
        digest: &ContentHash,
        token: &str,
        bytes: u64,
        from: u64,
        source: Response,
    ) -> Result<(), RelayError> {
        let left = bytes.saturating_sub(from);
        let mut before = from;
        let rest = source.bytes_stream().map_ok(move |mut piece| {
            let known = before.min(piece.len() as u64);
            before -= known;
            piece.split_off(usize::try_from(known).unwrap_or(piece.len()))
        });
        let mut request = self
            .http
            .put(self.artifact(digest)?)
            .bearer_auth(token)
            .header(http::header::CONTENT_TYPE, "application/octet-stream")
            .header(http::header::CONTENT_LENGTH, left)
            .timeout(Self::transfer_patience(left));
        if from > 0 {
            let range = format!("bytes {from}-{}/{bytes}", bytes.saturating_sub(1));
            request = request.header(http::header::CONTENT_RANGE, range);
        }
        check(request.body(reqwest::Body::wrap_stream(rest)).send().await).await
    }

    /// Hands a proof in.
    pub(crate) async fn prove(&self, proof: &SignedMutation<ComputeProof>) -> Result<(), RelayError> {
        let path = format!("v1/tasks/{}/proof", proof.mutation.task_id);
        self.post(&path, proof).await
    }

    /// Gives an attempt up.
    pub(crate) async fn fail(&self, fail: &SignedMutation<FailTask>) -> Result<(), RelayError> {
        let path = format!("v1/tasks/{}/fail", fail.mutation.task_id);
        self.post(&path, fail).await
    }

    /// Says whether this host takes work.
    pub(crate) async fn set_status(
        &self,
        update: &SignedMutation<UpdateNodeStatus>,
    ) -> Result<(), RelayError> {
        let path = format!("v1/providers/{}/status", update.mutation.provider);
        self.post(&path, update).await
    }

    async fn post(&self, path: &str, body: &impl Serialize) -> Result<(), RelayError> {
        let url = self.url(path)?;
        check(self.http.post(url).json(body).timeout(PATIENCE).send().await).await
    }

    fn artifact(&self, digest: &ContentHash) -> Result<Url, RelayError> {
        self.url(&format!("v1/artifacts/{digest}"))
    }

    fn url(&self, path: &str) -> Result<Url, RelayError> {
        self.api.join(path).map_err(|error| RelayError::Later { why: error.to_string(), after: None })
    }
}

fn later(error: reqwest::Error) -> RelayError {
    RelayError::Later { why: format!("the relay does not answer: {}", chain(&error)), after: None }
}

async fn check(sent: Result<Response, reqwest::Error>) -> Result<(), RelayError> {
    let response = sent.map_err(later)?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let after = retry_after(&response);
    let answer = refusal(response).await;
    if status == StatusCode::CONFLICT && answer.code == ErrorCode::ResultMissing.as_str() {
        return Err(RelayError::ResultMissing);
    }
    let passing = [
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::TOO_EARLY,
        StatusCode::TOO_MANY_REQUESTS,
        // The relay has let go of what came of an upload: the next try sends all.
        StatusCode::RANGE_NOT_SATISFIABLE,
    ];
    // What is neither success nor a client's fault is the relay's, or that of something between.
    if status.is_client_error() && !passing.contains(&status) {
        return Err(RelayError::Never(answer));
    }
    Err(RelayError::Later { why: format!("the relay answers {answer}"), after })
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(http::header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}
