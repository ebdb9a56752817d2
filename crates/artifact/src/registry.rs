//! Registries of container images, asked without credentials:
//! <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::header::{ACCEPT, AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Deserialize;
use url::{Host, Url};

use crate::digest::Digest;
use crate::error::{ContentError, FetchError};
use crate::fetch::{Call, LocalFile};
use crate::hops::{Failure, Request};
use crate::http::Job;
use crate::meter::Meter;

const DOCUMENT_TYPES: HeaderValue = HeaderValue::from_static(
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json",
);
/// What an image without a registry in its name is understood as.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where that registry answers.
const DEFAULT_HOST: &str = "registry-1.docker.io";
/// The longest answer of a token server that is read, in bytes.
const MAX_TOKEN_BYTES: u64 = 64 * 1024;

/// One repository of a registry.
pub(crate) struct Registry<'a> {
    call: &'a Call<'a>,
    /// The URL of the repository.
    url: Url,
    repository: String,
    /// The permission to read, once the registry has asked for one.
    token: Option<HeaderValue>,
}

/// Which of a repository's two kinds of documents something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Manifest,
    Blob,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl<'a> Registry<'a> {
    /// # Errors
    /// `bad_reference` if the image's name is malformed.
    pub(crate) fn new(call: &'a Call<'a>, image: &str) -> Result<Self, FetchError> {
        let (host, repository) = split(image).ok_or_else(|| {
            call.bad("an image is named <registry>/<repository> in lower case, or as docker.io names it")
        })?;
        let bad = |_| call.bad("its registry is not a host");
        let mut url = Url::parse(&format!("https://{host}/v2/{repository}")).map_err(bad)?;
        if call.fetcher.policy.allow_private_addresses && is_loopback(&url) {
            // As container engines do: a registry on this machine has no certificate.
            url = Url::parse(&format!("http://{host}/v2/{repository}")).map_err(bad)?;
        }
        Ok(Self { call, url, repository, token: None })
    }

    /// Fetches what `digest` names, with a new token if the registry asks for one.
    pub(crate) async fn fetch(
        &mut self,
        source: Source,
        digest: Digest,
        max_bytes: u64,
        meter: &Meter<'_>,
    ) -> Result<LocalFile, FetchError> {
        match self.try_fetch(source, digest, max_bytes, meter).await {
            Err(FetchError::Unauthorized { .. }) => {
                self.renew(source, digest).await?;
                self.try_fetch(source, digest, max_bytes, meter).await
            }
            other => other,
        }
    }

    /// Fetches blobs of these sizes side by side.
    pub(crate) async fn fetch_blobs(
        &mut self,
        blobs: &[(Digest, u64)],
        meter: &Meter<'_>,
    ) -> Result<(), FetchError> {
        let mut refused = Vec::new();
        {
            let (mut waiting, mut running) = (blobs.iter(), FuturesUnordered::new());
            loop {
                while running.len() < self.call.parallel()
                    && let Some((digest, size)) = waiting.next()
                {
                    running.push(self.blob(*digest, *size, meter));
                }
                match running.next().await {
                    Some((_, _, Ok(()))) => {}
                    // Tokens last some minutes, and layers can take longer.
                    Some((digest, size, Err(FetchError::Unauthorized { .. }))) => {
                        refused.push((digest, size))
                    }
                    Some((_, _, Err(error))) => return Err(error),
                    None => break,
                }
            }
        }
        for (digest, size) in refused {
            self.fetch(Source::Blob, digest, size, meter).await?;
        }
        Ok(())
    }

    async fn blob(
        &self,
        digest: Digest,
        size: u64,
        meter: &Meter<'_>,
    ) -> (Digest, u64, Result<(), FetchError>) {
        (digest, size, self.try_fetch(Source::Blob, digest, size, meter).await.map(|_| ()))
    }

    async fn try_fetch(
        &self,
        source: Source,
        digest: Digest,
        max_bytes: u64,
        meter: &Meter<'_>,
    ) -> Result<LocalFile, FetchError> {
        let request = self.request(source, &digest);
        let partial =
            self.call.download(&Job { request, fixed: true, max_bytes, alone: false, meter }).await?;
        self.call.place(partial, Some(digest)).await
    }

    fn request(&self, source: Source, digest: &Digest) -> Request<'a> {
        let mut url = self.url.clone();
        let kind = match source {
            Source::Manifest => "manifests",
            Source::Blob => "blobs",
        };
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend([kind, &format!("sha256:{digest}")]);
        }
        let mut request = Request::stranger(self.call.name, url);
        if source == Source::Manifest {
            request.headers.insert(ACCEPT, DOCUMENT_TYPES);
        }
        if let Some(token) = &self.token {
            request.headers.insert(AUTHORIZATION, token.clone());
        }
        request
    }

    /// Asks the server that the registry names for an anonymous token.
    async fn renew(&mut self, source: Source, digest: Digest) -> Result<(), FetchError> {
        self.token = None;
        let (web, policy) = (&self.call.fetcher.web, &self.call.fetcher.policy);
        let request = self.request(source, &digest);
        let asked = web.send(policy, &request, &HeaderMap::new()).await.map_err(Failure::into_error)?;
        if asked.status() != StatusCode::UNAUTHORIZED {
            return Ok(());
        }
        let challenge = asked.headers().get(WWW_AUTHENTICATE).and_then(|c| c.to_str().ok());
        let url = challenge.and_then(|challenge| token_url(challenge, &self.repository));
        let Some(url) = url else {
            let status = StatusCode::UNAUTHORIZED.as_u16();
            return Err(FetchError::Unauthorized { reference: self.call.name.to_owned(), status });
        };
        let request = Request::stranger(self.call.name, url);
        let answer = web.small(policy, &request, MAX_TOKEN_BYTES).await.map_err(Failure::into_error)?;
        let answer = serde_json::from_slice(&answer).ok();
        let token = answer.and_then(|answer: Token| answer.token.or(answer.access_token));
        let header = token.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
        let mut header = header.ok_or_else(|| {
            let reason = "its registry's token server sends no token".to_owned();
            self.call.bad_manifest(ContentError::BadImage { reason })
        })?;
        header.set_sensitive(true);
        self.token = Some(header);
        Ok(())
    }
}

/// The registry's host and the repository in it. A tag says nothing beside a digest and is left out.
fn split(image: &str) -> Option<(String, String)> {
    let named =
        image.split_once('/').filter(|(first, _)| first.contains(['.', ':']) || *first == "localhost");
    let (registry, path) = named.unwrap_or((DEFAULT_REGISTRY, image));
    let repository = path.split_once(':').map_or(path, |(repository, _)| repository);
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    let plain = |part: &str| part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(fits);
    if !repository.split('/').all(plain) {
        return None;
    }
    if registry != DEFAULT_REGISTRY {
        return Some((registry.to_owned(), repository.to_owned()));
    }
    let repository =
        if repository.contains('/') { repository.to_owned() } else { format!("library/{repository}") };
    Some((DEFAULT_HOST.to_owned(), repository))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Where a token is to be had, by `Bearer realm="…",service="…"`; the scope is always reading this repository.
fn token_url(challenge: &str, repository: &str) -> Option<Url> {
    let (scheme, mut rest) = challenge.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, None);
    while let Some((name, after)) = rest.split_once("=\"") {
        let (value, after) = after.split_once('"')?;
        match name.trim_start_matches([',', ' ']).to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value),
            "service" => service = Some(value),
            _ => {}
        }
        rest = after;
    }
    let mut url = Url::parse(realm?).ok()?;
    if let Some(service) = service {
        url.query_pairs_mut().append_pair("service", service);
    }
    url.query_pairs_mut().append_pair("scope", &format!("repository:{repository}:pull"));
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_are_read_as_engines_do() {
        for (image, host, repository) in [
            ("alpine", "registry-1.docker.io", "library/alpine"),
            ("docker.io/some/image:1.2", "registry-1.docker.io", "some/image"),
            ("some/image", "registry-1.docker.io", "some/image"),
            ("ghcr.io/a/b/c:latest", "ghcr.io", "a/b/c"),
            ("localhost:5000/x", "localhost:5000", "x"),
            ("localhost/x", "localhost", "x"),
        ] {
            assert_eq!(split(image), Some((host.to_owned(), repository.to_owned())), "{image}");
        }
        for image in ["ghcr.io/../x", "ghcr.io/A", "ghcr.io/a/.", "ghcr.io/", "a:b:c/d/", "x.y/_"] {
            assert_eq!(split(image), None, "{image}");
        }
    }

    #[test]
    fn challenges_say_where_tokens_are() {
        let url =
            token_url(r#"Bearer realm="https://auth.example/token?x=1",service="reg",scope="s:a,b""#, "a/b");
        let wanted = "https://auth.example/token?x=1&service=reg&scope=repository%3Aa%2Fb%3Apull";
        assert_eq!(url.unwrap().as_str(), wanted);
        for other in
            ["Basic realm=\"x\"", "Bearer", "Bearer realm=\"", "Bearer service=\"x\"", "Bearer realm=\"x\""]
        {
            assert_eq!(token_url(other, "a"), None, "{other}");
        }
    }
}
