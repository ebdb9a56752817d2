//! Downloads over HTTP: guarded connections, redirects that are checked hop by hop, bounded tries that
//! resume where the last one broke off.

use std::error::Error as _;
use std::fmt::Write as _;
use std::time::Duration;

use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, ETAG, IF_RANGE, LOCATION, RANGE, RETRY_AFTER,
};
use http::{HeaderValue, StatusCode};
use reqwest::{Client, Response};
use tokio::time::{sleep, timeout};
use url::Url;

use crate::blobs::{BlobStore, Partial, PutError};
use crate::digest::Digest;
use crate::error::FetchError;
use crate::guard::{AddressClass, ForbiddenAddress};
use crate::outbound::{GuardedClient, RefusedUrl, unguarded};
use crate::policy::{FetchPolicy, Origin};

/// The longest pause between two tries, also when a server asks for a longer one.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Called with the bytes done and, if known, the bytes in all.
pub(crate) type Progress<'a> = &'a (dyn Fn(u64, Option<u64>) + Send + Sync);

/// The HTTP clients, one for each rule about addresses, so that no connection is shared between rules.
#[derive(Debug)]
pub(crate) struct Web {
    /// For URLs that strangers name.
    guarded: GuardedClient,
    /// For the relay that the operator chose; unguarded.
    origin: Client,
}

/// One file to download.
pub(crate) struct Job<'a> {
    /// The reference as errors name it.
    pub(crate) name: &'a str,
    /// Where it is.
    pub(crate) place: Place<'a>,
    /// The most bytes to take.
    pub(crate) max_bytes: u64,
    pub(crate) progress: Progress<'a>,
}

/// Where a file is downloaded from.
pub(crate) enum Place<'a> {
    /// A stranger's URL.
    Url(Url),
    /// The relay's blob store.
    Origin(&'a Origin, Digest),
}

/// What makes sure that a resumed download continues the same bytes.
enum Resume {
    /// The address is a hash, so there are no other bytes.
    SameAddress,
    /// The server's strong validator.
    Etag(HeaderValue),
}

/// Why one try failed.
enum Failure {
    /// Another try would end alike.
    Final(FetchError),
    /// Another try may go well, after the pause that the server asks for.
    Passing(FetchError, Option<Duration>),
}

impl Web {
    pub(crate) fn new(policy: &FetchPolicy, tls: &rustls::ClientConfig) -> Result<Self, reqwest::Error> {
        let guarded = GuardedClient::with_tls(policy.allow_private_addresses, tls)?;
        Ok(Self { guarded, origin: unguarded(tls).build()? })
    }

    /// Downloads a file into the store's temporary area; the caller puts it in its place by
    /// [`Partial::finish`] once it knows it is the right one.
    pub(crate) async fn download(
        &self,
        policy: &FetchPolicy,
        store: &BlobStore,
        job: &Job<'_>,
    ) -> Result<Partial, FetchError> {
        let mut partial = store.partial(job.max_bytes).await.map_err(|e| put_error(job.name, e))?;
        let mut resume = None;
        let mut pause = policy.retry_pause;
        for tries_left in (0..policy.max_tries.max(1)).rev() {
            let (error, asked) = match self.attempt(policy, job, &mut partial, &mut resume).await {
                Ok(()) => return Ok(partial),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(error, asked)) => (error, asked),
            };
            if tries_left == 0 {
                return Err(error);
            }
            tracing::debug!(%error, tries_left, got = partial.len(), "a download failed and is tried again");
            let jittered = pause.mul_f64(rand::random_range(0.5..=1.0));
            sleep(jittered.max(asked.unwrap_or_default()).min(MAX_PAUSE)).await;
            pause = pause.saturating_mul(2);
        }
        Err(unreachable(job.name, "no try was made"))
    }

    async fn attempt(
        &self,
        policy: &FetchPolicy,
        job: &Job<'_>,
        partial: &mut Partial,
        resume: &mut Option<Resume>,
    ) -> Result<(), Failure> {
        let from = if resume.is_some() { partial.len() } else { 0 };
        let response = self.send(policy, job, from, resume.as_ref()).await?;
        let total = match response.status() {
            StatusCode::OK => {
                if partial.len() > 0 {
                    partial.reset().await.map_err(|e| Failure::Final(put_error(job.name, e)))?;
                }
                *resume = resume_of(&response, &job.place);
                response.content_length()
            }
            StatusCode::PARTIAL_CONTENT if from > 0 => match range_total(&response, from) {
                Some(total) => Some(total),
                None => {
                    *resume = None;
                    let error = unreachable(job.name, "the server sent another part than the one asked for");
                    return Err(Failure::Passing(error, None));
                }
            },
            StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => {
                *resume = None;
                let error = unreachable(job.name, "the server cannot continue the download");
                return Err(Failure::Passing(error, None));
            }
            _ => return Err(status_failure(job, &response)),
        };
        if total.is_some_and(|t| t > job.max_bytes) {
            let error = FetchError::TooLarge { reference: job.name.to_owned(), limit: job.max_bytes };
            return Err(Failure::Final(error));
        }
        receive(policy, job, response, partial, total).await
    }

    /// Sends the request and follows redirects, each hop under the rules of the first.
    async fn send(
        &self,
        policy: &FetchPolicy,
        job: &Job<'_>,
        from: u64,
        resume: Option<&Resume>,
    ) -> Result<Response, Failure> {
        let mut url = match &job.place {
            Place::Url(url) => url.clone(),
            Place::Origin(origin, digest) => origin.url_of(digest),
        };
        for _ in 0..=policy.max_redirects {
            let mut request = match &job.place {
                Place::Url(_) => self.client_for(job.name, &url)?.get(url.clone()),
                Place::Origin(origin, _) => {
                    self.origin.get(url.clone()).header(AUTHORIZATION, origin.authorization())
                }
            };
            // The hash is over the file's own bytes, so no encoding on the way.
            request = request.header(ACCEPT_ENCODING, "identity");
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
                if let Some(Resume::Etag(etag)) = resume {
                    request = request.header(IF_RANGE, etag);
                }
            }
            let response = match timeout(policy.idle_timeout, request.send()).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(send_failure(job.name, error)),
                Err(_) => return Err(Failure::Passing(silent(policy, job.name), None)),
            };
            match next_hop(job, &url, &response)? {
                Some(next) => url = next,
                None => return Ok(response),
            }
        }
        let (reference, limit) = (job.name.to_owned(), policy.max_redirects);
        Err(Failure::Final(FetchError::TooManyRedirects { reference, limit }))
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

/// The store's failure as the fetch's.
pub(crate) fn put_error(name: &str, error: PutError) -> FetchError {
    let reference = name.to_owned();
    match error {
        PutError::HashMismatch { expected, actual } => {
            FetchError::HashMismatch { reference, expected, actual }
        }
        PutError::TooLarge { limit } => FetchError::TooLarge { reference, limit },
        PutError::Source(source) => FetchError::Unreachable { reference, reason: source.to_string() },
        PutError::Io { source, .. } => FetchError::Io { reference, source },
    }
}

async fn receive(
    policy: &FetchPolicy,
    job: &Job<'_>,
    mut response: Response,
    partial: &mut Partial,
    total: Option<u64>,
) -> Result<(), Failure> {
    loop {
        (job.progress)(partial.len(), total);
        match timeout(policy.idle_timeout, response.chunk()).await {
            Ok(Ok(Some(piece))) => {
                partial.write(&piece).await.map_err(|e| Failure::Final(put_error(job.name, e)))?;
            }
            Ok(Ok(None)) if total.is_none_or(|t| t == partial.len()) => return Ok(()),
            Ok(Ok(None)) => {
                let error = unreachable(job.name, "the download broke off before its end");
                return Err(Failure::Passing(error, None));
            }
            Ok(Err(error)) => return Err(send_failure(job.name, error)),
            Err(_) => return Err(Failure::Passing(silent(policy, job.name), None)),
        }
    }
}

/// The URL that a redirect leads to; `None` if the response is none.
fn next_hop(job: &Job<'_>, url: &Url, response: &Response) -> Result<Option<Url>, Failure> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    if let Place::Origin(..) = job.place {
        let reason =
            "the relay redirects the download, which is not followed; give the relay's final URL".into();
        return Err(Failure::Final(FetchError::NotAllowed { reference: job.name.to_owned(), reason }));
    }
    let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
    let Some(mut next) = location.and_then(|l| url.join(l).ok()) else {
        return Err(Failure::Final(unreachable(job.name, "the server redirects to nowhere")));
    };
    // Both fail only for URLs without a host, which `client_for` refuses.
    let _ = next.set_username("");
    let _ = next.set_password(None);
    Ok(Some(next))
}

fn resume_of(response: &Response, place: &Place<'_>) -> Option<Resume> {
    if let Place::Origin(..) = place {
        return Some(Resume::SameAddress);
    }
    let etag = response.headers().get(ETAG)?;
    etag.as_bytes().starts_with(b"\"").then(|| Resume::Etag(etag.clone()))
}

/// The size of the whole file by `Content-Range: bytes <from>-<last>/<total>`, if the part starts at `from`
/// and goes to the end.
fn range_total(response: &Response, from: u64) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (part, total) = range.split_once('/')?;
    let (first, last) = part.split_once('-')?;
    let (first, last, total): (u64, u64, u64) =
        (first.parse().ok()?, last.parse().ok()?, total.parse().ok()?);
    (first == from && last.checked_add(1) == Some(total)).then_some(total)
}

fn status_failure(job: &Job<'_>, response: &Response) -> Failure {
    let reference = job.name.to_owned();
    let status = response.status().as_u16();
    let answered = unreachable(job.name, &format!("the server answered with status {status}"));
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

fn send_failure(name: &str, error: reqwest::Error) -> Failure {
    let error = error.without_url();
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(forbidden) = inner.downcast_ref::<ForbiddenAddress>() {
            return Failure::Final(forbidden_error(name, forbidden.clone()));
        }
        // Writing to a String cannot fail.
        let _ = write!(reason, ": {inner}");
        cause = inner.source();
    }
    Failure::Passing(unreachable(name, &reason), None)
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

fn silent(policy: &FetchPolicy, name: &str) -> FetchError {
    let (reference, after) = (name.to_owned(), policy.idle_timeout);
    FetchError::TimedOut { reference, after, what: "a sign of life from the server" }
}

fn unreachable(name: &str, reason: &str) -> FetchError {
    FetchError::Unreachable { reference: name.to_owned(), reason: reason.to_owned() }
}
