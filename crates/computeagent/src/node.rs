//! The compute node's API, as the agent uses it.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use daemon::{Secret, SecretFileError, chain, read_secret_file};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use rpc::node::{ComputeRequest, ComputeStatus, NodeReport};
use serde::de::DeserializeOwned;
use taskmarket::TaskId;
use url::Url;

use crate::http_client::{Answer, body, refusal};

/// How long the node may take to answer, beyond what it was asked to wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client of one compute node.
pub(crate) struct NodeClient {
    http: reqwest::Client,
    base: Url,
    token_file: PathBuf,
    /// The token as last read: the node makes a new one when its data folder is new.
    token: Mutex<Option<Secret>>,
}

/// Why the node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    /// Its token cannot be read: most likely it was never started.
    #[error("the compute node's token: {0}")]
    Token(SecretFileError),
    /// It does not answer, or not in a way that can be read.
    #[error("the compute node does not answer: {0}")]
    Unreachable(String),
    /// It does not know the task.
    #[error("the compute node does not know the task")]
    Unknown,
    /// It will not.
    #[error("the compute node refuses: {0}")]
    Refused(Answer),
}

impl NodeError {
    /// What an operator can do about it.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Token(_) => {
                "start compute-node as the same user, or give --compute-token-file; until it answers no tasks are taken"
            }
            Self::Unreachable(_) | Self::Unknown | Self::Refused(_) => {
                "start compute-node, or check --compute-url; until it answers no tasks are taken"
            }
        }
    }
}

impl NodeClient {
    /// A client of the node at `base` that reads the token when it needs it.
    pub(crate) fn new(http: reqwest::Client, mut base: Url, token_file: PathBuf) -> Self {
        // Paths are joined to it, which replaces what follows its last slash.
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        Self { http, base, token_file, token: Mutex::new(None) }
    }

    /// How it is and what it has.
    pub(crate) async fn report(&self) -> Result<NodeReport, NodeError> {
        match self.send(Method::GET, "status", |request| request.timeout(PATIENCE)).await {
            Ok(response) => read(response).await,
            Err(NodeError::Unknown) => Err(NodeError::Unreachable("something else listens there".to_owned())),
            Err(error) => Err(error),
        }
    }

    /// Hands it an attempt.
    pub(crate) async fn compute(&self, request: &ComputeRequest) -> Result<ComputeStatus, NodeError> {
        let build = |builder: RequestBuilder| builder.json(request).timeout(PATIENCE);
        read(self.send(Method::POST, "compute", build).await?).await
    }

    /// What it does with a task; given the revision already seen, it waits for a later one first.
    pub(crate) async fn status(
        &self,
        task: &TaskId,
        seen: Option<u64>,
        wait: Duration,
    ) -> Result<ComputeStatus, NodeError> {
        let path = match seen {
            Some(seen) => format!("status/{task}?seen={seen}&wait_ms={}", wait.as_millis()),
            None => format!("status/{task}"),
        };
        read(self.send(Method::GET, &path, |request| request.timeout(wait + PATIENCE)).await?).await
    }

    /// A result's bytes, streamed.
    pub(crate) async fn result(&self, task: &TaskId, patience: Duration) -> Result<Response, NodeError> {
        self.send(Method::GET, &format!("result/{task}"), |request| request.timeout(patience)).await
    }

    /// What a task's attempt says, as newline-delimited JSON, from line `from` on; with `follow` until the attempt ends.
    pub(crate) async fn logs(&self, task: &TaskId, from: u64, follow: bool) -> Result<Response, NodeError> {
        let path = format!("logs/{task}?from={from}&follow={follow}");
        // The body has no end that could be waited for; its beginning has.
        let answer = self.send(Method::GET, &path, |request| request);
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        answer.unwrap_or_else(|_| Err(NodeError::Unreachable("no answer in time".to_owned())))
    }

    /// Passes a POST on. The node's answer comes as it is, whatever it says; the body is sent once.
    pub(crate) async fn pass(
        &self,
        path: &str,
        headers: HeaderMap,
        body: reqwest::Body,
        patience: Duration,
    ) -> Result<Response, NodeError> {
        let unreachable = |error: String| NodeError::Unreachable(error);
        let url = self.base.join(path).map_err(|error| unreachable(error.to_string()))?;
        let token = match self.kept_token() {
            Some(token) => token,
            None => self.read_token().await?,
        };
        let request = self.http.post(url).headers(headers).bearer_auth(token.expose()).timeout(patience);
        let response =
            request.body(body).send().await.map_err(|error| unreachable(chain(&error.without_url())))?;
        if response.status() == StatusCode::UNAUTHORIZED {
            // The next request reads the token that the node has now.
            *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return Err(NodeError::Refused(refusal(response).await));
        }
        Ok(response)
    }

    /// Calls a task off, if the node knows it.
    pub(crate) async fn cancel(&self, task: &TaskId) -> Result<(), NodeError> {
        let path = format!("compute/{task}");
        match self.send(Method::DELETE, &path, |request| request.timeout(PATIENCE)).await {
            Ok(_) | Err(NodeError::Unknown) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Sends a request with the token, and once more with a fresh one where that was refused.
    async fn send(
        &self,
        method: Method,
        path: &str,
        build: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, NodeError> {
        let url = self.base.join(path).map_err(|error| NodeError::Unreachable(error.to_string()))?;
        let kept = self.kept_token();
        let token = match &kept {
            Some(token) => token.clone(),
            None => self.read_token().await?,
        };
        let request = |token: &Secret| {
            build(self.http.request(method.clone(), url.clone())).bearer_auth(token.expose()).send()
        };
        let failed = |error: reqwest::Error| NodeError::Unreachable(chain(&error.without_url()));
        let mut response = request(&token).await.map_err(failed)?;
        if response.status() == StatusCode::UNAUTHORIZED && kept.is_some() {
            response = request(&self.read_token().await?).await.map_err(failed)?;
        }
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND => Err(NodeError::Unknown),
            _ => Err(NodeError::Refused(refusal(response).await)),
        }
    }

    fn kept_token(&self) -> Option<Secret> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn read_token(&self) -> Result<Secret, NodeError> {
        let file = self.token_file.clone();
        let token = tokio::task::spawn_blocking(move || read_secret_file(&file))
            .await
            .map_err(|error| NodeError::Unreachable(error.to_string()))?
            .map_err(NodeError::Token)?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        Ok(token)
    }
}

async fn read<T: DeserializeOwned>(response: Response) -> Result<T, NodeError> {
    let bytes = body(response).await.map_err(NodeError::Unreachable)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| NodeError::Unreachable(format!("its answer cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_compute_node_is_told_from_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        // It ends with the test's runtime.
        tokio::spawn(async move { axum::serve(listener, axum::Router::new()).await.unwrap() });
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        daemon::private_file::create(&token, b"t").unwrap();
        let tls = std::sync::Arc::new(daemon::tls::client_config(None).unwrap());
        let http = crate::http_client::client(&tls).unwrap();
        let node = NodeClient::new(http, url.parse().unwrap(), token);
        let error = node.report().await.unwrap_err();
        assert_eq!(error.to_string(), "the compute node does not answer: something else listens there");
        assert!(error.hint().contains("--compute-url"), "{}", error.hint());
    }
}
