//! One request over HTTP: guarded connections, redirects that are checked hop by hop, and what a bad answer means.

use std::error::Error as _;
use std::fmt::Write as _;
use std::time::Duration;

use http::HeaderMap;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, LOCATION, RETRY_AFTER};
use reqwest::{Client, Response};
use tokio::time::timeout;
use url::Url;

use crate::error::{ContentError, FetchError, Unreached, Wait};
use crate::guard::{AddressClass, ForbiddenAddress};
use crate::outbound::{GuardedClient, RefusedUrl, unguarded};
use crate::policy::FetchPolicy;

/// The HTTP clients, one for each rule about addresses, so that no connection is shared between rules.
#[derive(Debug)]
pub(crate) struct Web {
    /// For URLs that strangers name.
    guarded: GuardedClient,
    /// For the relay and the gateways that the operator chose; unguarded.
    chosen: Client,
}

/// One thing to ask for.
#[derive(Clone)]
pub(crate) struct Request<'a> {
    /// The reference as errors name it.
    pub(crate) name: &'a str,
    pub(crate) url: Url,
    pub(crate) chosen_by: ChosenBy,
    /// Sent along. The Authorization goes to no other server than the first.
    pub(crate) headers: HeaderMap,
}

/// Who named the first server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChosenBy {
    /// A stranger, so the guard judges every hop.
    Stranger,
    /// The operator, as a gateway: the guard judges where it redirects to.
    Operator,
    /// The operator, as the relay: its redirects are not followed.
    OperatorOnly,
}

/// Why one try failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Another try would end alike.
    Final(FetchError),
    /// Another try may go well, after the pause that the server asks for.
    Passing(FetchError, Option<Duration>),
}

impl Failure {
    pub(crate) fn into_error(self) -> FetchError {
        match self {
            Self::Final(error) | Self::Passing(error, _) => error,
        }
    }
}

impl Web {
    pub(crate) fn new(policy: &FetchPolicy, tls: &rustls::ClientConfig) -> Result<Self, reqwest::Error> {
        let guarded = GuardedClient::with_tls(policy.allow_private_addresses, tls)?;
        Ok(Self { guarded, chosen: unguarded(tls).build()? })
    }

    /// Sends the request with `more` headers and follows redirects, each hop under the rules of the first.
    /// The answer may have any other status.
    pub(crate) async fn send(
        &self,
        policy: &FetchPolicy,
        request: &Request<'_>,
        more: &HeaderMap,
    ) -> Result<Response, Failure> {
        let mut url = request.url.clone();
        let mut headers = request.headers.clone();
        headers.extend(more.clone());
        // The hash is over the file's own bytes, so no encoding on the way.
        headers.insert(ACCEPT_ENCODING, http::HeaderValue::from_static("identity"));
        let mut seen = Vec::new();
        while seen.len() <= usize::from(policy.max_redirects) && !seen.contains(&url) {
            let client = match request.chosen_by {
                ChosenBy::Operator | ChosenBy::OperatorOnly if seen.is_empty() => &self.chosen,
                ChosenBy::Stranger | ChosenBy::Operator | ChosenBy::OperatorOnly => {
                    self.client_for(request.name, &url)?
                }
            };
            let sent = client.get(url.clone()).headers(headers.clone()).send();
            let response = match timeout(policy.idle_timeout, sent).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(send_failure(request.name, error)),
                Err(_) => return Err(Failure::Passing(stalled(policy, request.name), None)),
            };
            let Some(next) = next_hop(request, &url, &response)? else {
                return decoded(request.name, response);
            };
            if next.origin() != url.origin() {
                headers.remove(AUTHORIZATION);
            }
            seen.push(std::mem::replace(&mut url, next));
        }
        let (reference, limit) = (request.name.to_owned(), policy.max_redirects);
        Err(Failure::Final(FetchError::TooManyRedirects { reference, limit }))
    }

    /// Asks for something small and answers with its bytes; a status other than 200 is a failure.
    pub(crate) async fn small(
        &self,
        policy: &FetchPolicy,
        request: &Request<'_>,
        max_bytes: u64,
    ) -> Result<Vec<u8>, Failure> {
        let mut response = self.send(policy, request, &HeaderMap::new()).await?;
        if response.status() != http::StatusCode::OK {
            return Err(status_failure(request.name, &response));
        }
        let mut bytes = Vec::new();
        while let Some(piece) = next_piece(policy, request.name, &mut response).await? {
            if (bytes.len() + piece.len()) as u64 > max_bytes {
                let reference = request.name.to_owned();
                return Err(Failure::Final(FetchError::TooLarge { reference, limit: max_bytes }));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// The client for the URL, if the policy permits the URL at all.
    fn client_for(&self, name: &str, url: &Url) -> Result<&Client, Failure> {
        self.guarded.client_for(url).map_err(|refused| match refused {
            RefusedUrl::Address(address) => Failure::Final(forbidden_error(name, address.0)),
            RefusedUrl::PlainHttp => Failure::Final(plain_http(name)),
            RefusedUrl::Scheme { scheme } => {
                let reason = format!("it leads to a {scheme}: URL; only https is followed");
                Failure::Final(FetchError::NotAllowed { reference: name.to_owned(), reason })
            }
        })
    }
}

/// The next bytes of an answer; `None` at its end.
pub(crate) async fn next_piece(
    policy: &FetchPolicy,
    name: &str,
    response: &mut Response,
) -> Result<Option<bytes::Bytes>, Failure> {
    match timeout(policy.idle_timeout, response.chunk()).await {
        Ok(Ok(piece)) => Ok(piece),
        Ok(Err(error)) => Err(Failure::Passing(truncated(name, &reason_of(error)), None)),
        Err(_) => Err(Failure::Passing(stalled(policy, name), None)),
    }
}

/// What a status that is no success means.
pub(crate) fn status_failure(name: &str, response: &Response) -> Failure {
    let reference = name.to_owned();
    let status = response.status().as_u16();
    let answered = unreachable(name, &format!("the server answered with status {status}"));
    match status {
        404 | 410 => Failure::Final(FetchError::NotFound { reference, what: "it".to_owned() }),
        401 | 403 | 407 => Failure::Final(FetchError::Unauthorized { reference, status }),
        408 | 425 | 429 | 500..=599 => {
            let asked = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
            Failure::Passing(answered, asked.map(Duration::from_secs))
        }
        _ => Failure::Final(answered),
    }
}

pub(crate) fn unreachable(name: &str, reason: &str) -> FetchError {
    let (reference, reason) = (name.to_owned(), reason.to_owned());
    FetchError::Unreachable { reference, reason, how: Unreached::Server }
}

pub(crate) fn truncated(name: &str, reason: &str) -> FetchError {
    let reason = format!("the download broke off before its end ({reason})");
    FetchError::Unreachable { reference: name.to_owned(), reason, how: Unreached::Truncated }
}

/// Refuses an answer whose body is compressed: it was not asked for, and a small one can swell without bound.
fn decoded(name: &str, response: Response) -> Result<Response, Failure> {
    let encoding = response.headers().get(CONTENT_ENCODING).map(|e| String::from_utf8_lossy(e.as_bytes()));
    match encoding {
        Some(encoding) if response.status().is_success() && !encoding.eq_ignore_ascii_case("identity") => {
            // A few letters say which encoding it is.
            let source = ContentError::Encoded { encoding: encoding.chars().take(20).collect() };
            Err(Failure::Final(FetchError::BadManifest { reference: name.to_owned(), source }))
        }
        Some(_) | None => Ok(response),
    }
}

/// The URL that a redirect leads to; `None` if the response is none.
fn next_hop(request: &Request<'_>, url: &Url, response: &Response) -> Result<Option<Url>, Failure> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    if request.chosen_by == ChosenBy::OperatorOnly {
        let reason =
            "the relay redirects the download, which is not followed; give the relay's final URL".into();
        return Err(Failure::Final(FetchError::NotAllowed { reference: request.name.to_owned(), reason }));
    }
    let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
    let Some(mut next) = location.and_then(|l| url.join(l).ok()) else {
        return Err(Failure::Final(unreachable(request.name, "the server redirects to nowhere")));
    };
    // Both fail only for URLs without a host, which `client_for` refuses.
    let _ = next.set_username("");
    let _ = next.set_password(None);
    Ok(Some(next))
}

fn send_failure(name: &str, error: reqwest::Error) -> Failure {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(forbidden) = inner.downcast_ref::<ForbiddenAddress>() {
            return Failure::Final(forbidden_error(name, forbidden.clone()));
        }
        cause = inner.source();
    }
    Failure::Passing(unreachable(name, &reason_of(error)), None)
}

/// The error and its causes in words, without the URL, which may hold secrets.
fn reason_of(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        // Writing to a String cannot fail.
        let _ = write!(reason, ": {inner}");
        cause = inner.source();
    }
    reason
}

fn forbidden_error(name: &str, forbidden: ForbiddenAddress) -> FetchError {
    match forbidden.class {
        // Only the rule for plain http refuses public hosts.
        AddressClass::Public => plain_http(name),
        AddressClass::Private | AddressClass::Never => {
            FetchError::ForbiddenAddress { reference: name.to_owned(), host: forbidden.host }
        }
    }
}

fn plain_http(name: &str) -> FetchError {
    let reason = "plain http is not fetched from public hosts; use https".to_owned();
    FetchError::NotAllowed { reference: name.to_owned(), reason }
}

fn stalled(policy: &FetchPolicy, name: &str) -> FetchError {
    FetchError::TimedOut { reference: name.to_owned(), after: policy.idle_timeout, wait: Wait::Server }
}
