//! A relay that runs, asked by its admin API.

use std::time::Duration;

use ::store::KeyId;
use anyhow::{Context, bail};
use daemon::Secret;
use reqwest::{Client, Method, RequestBuilder};
use rpc::error::ErrorBody;
use rpc::keys::{CreateKey, CreatedKey, KeyList, KeyView};
use rpc::relay::PageQuery;
use serde::de::DeserializeOwned;
use url::Url;

use crate::api::MAX_PAGE;
use crate::misuse::Misuse;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A relay and the key to ask it with.
pub(super) struct Remote {
    http: Client,
    base: Url,
    key: Secret,
}

impl Remote {
    /// Nothing is asked yet. Redirects are not followed, so that the key goes nowhere else.
    pub(super) fn new(base: Url, key: Secret) -> anyhow::Result<Self> {
        if !matches!(base.scheme(), "http" | "https") || base.host().is_none() {
            let why = format_args!("--relay {base} is none that can be asked");
            return Err(Misuse::because(why, "give a URL such as https://relay.example").into());
        }
        let tls = daemon::tls::client_config(None)?;
        let is_here = match base.host() {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("compute-relay/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE);
        let client = if is_here { client.no_proxy() } else { client };
        Ok(Self { http: client.build()?, base, key })
    }

    /// Makes a key.
    pub(super) async fn create(&self, body: &CreateKey) -> anyhow::Result<CreatedKey> {
        self.ask(self.request(Method::POST, "v1/keys")?.json(body)).await
    }

    /// All keys.
    pub(super) async fn list(&self) -> anyhow::Result<Vec<KeyView>> {
        let (mut keys, mut query) = (Vec::new(), PageQuery { limit: Some(MAX_PAGE), cursor: None });
        loop {
            let page: KeyList = self.ask(self.request(Method::GET, "v1/keys")?.query(&query)).await?;
            keys.extend(page.keys);
            if page.next_cursor.is_none() {
                return Ok(keys);
            }
            query.cursor = page.next_cursor;
        }
    }

    /// Revokes a key.
    pub(super) async fn revoke(&self, id: &KeyId) -> anyhow::Result<KeyView> {
        self.ask(self.request(Method::DELETE, &format!("v1/keys/{id}"))?).await
    }

    fn request(&self, method: Method, path: &str) -> anyhow::Result<RequestBuilder> {
        let base = self.base.as_str().trim_end_matches('/');
        let url = Url::parse(&format!("{base}/{path}"))?;
        Ok(self.http.request(method, url).bearer_auth(self.key.expose()))
    }

    async fn ask<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<T> {
        let unreachable = || format!("cannot reach the relay {}", self.base);
        let response = request.send().await.with_context(unreachable)?;
        let status = response.status();
        let body = response.bytes().await.with_context(unreachable)?;
        if status.is_success() {
            return serde_json::from_slice(&body).context("the relay's answer cannot be read");
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(refusal) => bail!("the relay refuses ({status}): {}", refusal.error.message),
            Err(_) => bail!("the relay answers {status}"),
        }
    }
}
