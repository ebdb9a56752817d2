//! A slot of an engine, and the requests that are sent to it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::HeaderMap;
use reqwest::{Body, Client, ClientBuilder, Response, Url};

use super::Engine;

/// The longest that an engine works on one request, to the last byte of its answer.
const MAX_REQUEST_TIME: Duration = Duration::from_secs(3600);

/// The clients of engines.
#[derive(Clone)]
pub(super) struct Http {
    /// Keeps connections for the requests that follow.
    pub(super) kept: Client,
    /// Opens a connection for each request.
    fresh: Client,
}

impl Http {
    pub(super) fn new(settings: impl Fn() -> ClientBuilder) -> reqwest::Result<Self> {
        Ok(Self { kept: settings().build()?, fresh: settings().pool_max_idle_per_host(0).build()? })
    }
}

/// A slot of an engine, free again when this is dropped.
pub(crate) struct Lease {
    pub(super) engine: Arc<Engine>,
    pub(super) http: Http,
    pub(super) base: Url,
}

/// What a request carries.
pub(crate) enum Content {
    /// Bytes that are at hand.
    Whole(Bytes),
    /// Bytes that pass, once.
    Stream(Body),
}

impl Lease {
    /// Where the engine has a path.
    pub(crate) fn url(&self, path: &str) -> Result<Url, String> {
        self.base.join(path.trim_start_matches('/')).map_err(|error| error.to_string())
    }

    /// Sends a request.
    ///
    /// An engine may close a connection that was kept just as the next request comes: llama.cpp's does after a stream. So what breaks off
    /// before it is answered goes once more, on a connection of its own; what cannot be sent twice has one from the start.
    pub(crate) async fn send(
        &self,
        url: Url,
        headers: HeaderMap,
        content: Content,
    ) -> reqwest::Result<Response> {
        let post = |http: &Client, body: Body| {
            http.post(url.clone()).headers(headers.clone()).timeout(MAX_REQUEST_TIME).body(body)
        };
        let bytes = match content {
            Content::Whole(bytes) => bytes,
            Content::Stream(body) => return post(&self.http.fresh, body).send().await,
        };
        match post(&self.http.kept, bytes.clone().into()).send().await {
            Err(error) if !error.is_connect() && !error.is_timeout() => {
                post(&self.http.fresh, bytes.into()).send().await
            }
            answered => answered,
        }
    }

    /// The engine could not be reached with it.
    pub(crate) fn lost(&self) {
        self.engine.lost();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.engine.state().busy -= 1;
        self.engine.changed.send_replace(());
    }
}
