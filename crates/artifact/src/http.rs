//! Downloads of files over HTTP: bounded tries that resume where the last one broke off.

use std::time::{Duration, SystemTime};

use http::header::{AUTHORIZATION, CONTENT_RANGE, DATE, ETAG, IF_RANGE, LAST_MODIFIED, RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};
use reqwest::Response;
use tokio::time::sleep;
use url::Url;

use crate::blobs::{BlobStore, Partial, PutError};
use crate::digest::Digest;
use crate::error::{FetchError, Unreached};
use crate::hops::{ChosenBy, Failure, Request, Web, next_piece, status_failure, truncated, unreachable};
use crate::meter::Meter;
use crate::policy::{FetchPolicy, Origin};

/// The longest pause between two tries, also when a server asks for a longer one.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// How much older than the answer a Last-Modified has to be to tell versions apart (RFC 9110, 8.8.2.2).
const MODIFIED_AGE: Duration = Duration::from_secs(60);

/// One file to download.
pub(crate) struct Job<'a> {
    pub(crate) request: Request<'a>,
    /// Whether the URL names these bytes and no others, ever.
    pub(crate) fixed: bool,
    /// The most bytes to take for this file.
    pub(crate) max_bytes: u64,
    /// Whether it is all that is fetched, so that its size is the fetch's.
    pub(crate) alone: bool,
    pub(crate) meter: &'a Meter<'a>,
}

/// What makes sure that a resumed download continues the same bytes.
enum Resume {
    /// The address is a hash, so there are no other bytes.
    SameAddress,
    /// The server's strong validator: an ETag or a date.
    Validator(HeaderValue),
}

impl<'a> Request<'a> {
    /// A file at a stranger's URL.
    pub(crate) fn stranger(name: &'a str, url: Url) -> Self {
        Self { name, url, chosen_by: ChosenBy::Stranger, headers: HeaderMap::new() }
    }

    /// A blob of the relay.
    pub(crate) fn origin(name: &'a str, origin: &Origin, digest: &Digest) -> Self {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, origin.authorization().clone())]);
        Self { name, url: origin.url_of(digest), chosen_by: ChosenBy::OperatorOnly, headers }
    }
}

impl Web {
    /// Downloads a file into the store's temporary area; the caller puts it in its place by
    /// [`Partial::finish`] once it knows it is the right one.
    pub(crate) async fn download(
        &self,
        policy: &FetchPolicy,
        store: &BlobStore,
        job: &Job<'_>,
    ) -> Result<Partial, FetchError> {
        let name = job.request.name;
        let mut partial = store.partial(job.max_bytes).await.map_err(|e| put_error(name, e))?;
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
            sleep(jittered(pause).max(asked.unwrap_or_default()).min(MAX_PAUSE)).await;
            pause = pause.saturating_mul(2);
        }
        Err(unreachable(name, "no try was made"))
    }

    async fn attempt(
        &self,
        policy: &FetchPolicy,
        job: &Job<'_>,
        partial: &mut Partial,
        resume: &mut Option<Resume>,
    ) -> Result<(), Failure> {
        let name = job.request.name;
        let from = if resume.is_some() { partial.len() } else { 0 };
        let mut headers = HeaderMap::new();
        if from > 0 {
            headers.insert(RANGE, range_from(from));
            if let Some(Resume::Validator(validator)) = resume {
                headers.insert(IF_RANGE, validator.clone());
            }
        }
        let response = self.send(policy, &job.request, &headers).await?;
        let total = match response.status() {
            StatusCode::OK => {
                if partial.len() > 0 {
                    job.meter.take_back(partial.len());
                    partial.reset().await.map_err(|e| Failure::Final(put_error(name, e)))?;
                }
                *resume = if job.fixed { Some(Resume::SameAddress) } else { validator_of(&response) };
                response.content_length()
            }
            StatusCode::PARTIAL_CONTENT if from > 0 => match range_total(&response, from) {
                Some(total) => Some(total),
                None => {
                    *resume = None;
                    let error = unreachable(name, "the server sent another part than the one asked for");
                    return Err(Failure::Passing(error, None));
                }
            },
            StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => {
                *resume = None;
                let error = unreachable(name, "the server cannot continue the download");
                return Err(Failure::Passing(error, None));
            }
            _ => return Err(status_failure(name, &response)),
        };
        if total.is_some_and(|t| t > job.max_bytes) {
            let error = FetchError::TooLarge { reference: name.to_owned(), limit: job.max_bytes };
            return Err(Failure::Final(error));
        }
        if let Some(total) = total {
            partial.announce(total).await.map_err(|e| Failure::Final(put_error(name, e)))?;
        }
        receive(policy, job, response, partial, total).await
    }
}

/// The pause, shortened by a random part.
pub(crate) fn jittered(pause: Duration) -> Duration {
    pause.min(MAX_PAUSE).mul_f64(rand::random_range(0.5..=1.0))
}

/// The store's failure as the fetch's.
pub(crate) fn put_error(name: &str, error: PutError) -> FetchError {
    let reference = name.to_owned();
    match error {
        PutError::HashMismatch { expected, actual } => {
            FetchError::HashMismatch { reference, expected, actual }
        }
        PutError::TooLarge { limit } => FetchError::TooLarge { reference, limit },
        PutError::CacheBusy { needed, limit } => FetchError::CacheBusy { reference, needed, limit },
        PutError::Source(source) => {
            FetchError::Unreachable { reference, reason: source.to_string(), how: Unreached::Truncated }
        }
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
    let name = job.request.name;
    if job.alone {
        job.meter.set_total(total);
    }
    while let Some(piece) = next_piece(policy, name, &mut response).await? {
        partial.write(&piece).await.map_err(|e| Failure::Final(put_error(name, e)))?;
        if !job.meter.add(piece.len() as u64) {
            let error = FetchError::TooLarge { reference: name.to_owned(), limit: job.meter.limit() };
            return Err(Failure::Final(error));
        }
    }
    if total.is_none_or(|t| t == partial.len()) {
        return Ok(());
    }
    Err(Failure::Passing(truncated(name, "fewer bytes than announced"), None))
}

/// What tells this version of the file from others: a strong ETag or, where there is no ETag, a date that is old enough.
fn validator_of(response: &Response) -> Option<Resume> {
    let headers = response.headers();
    if let Some(etag) = headers.get(ETAG) {
        return etag.as_bytes().starts_with(b"\"").then(|| Resume::Validator(etag.clone()));
    }
    let date =
        |name| -> Option<SystemTime> { httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok() };
    let age = date(DATE)?.duration_since(date(LAST_MODIFIED)?).ok()?;
    let modified = headers.get(LAST_MODIFIED)?;
    (age >= MODIFIED_AGE).then(|| Resume::Validator(modified.clone()))
}

fn range_from(from: u64) -> HeaderValue {
    HeaderValue::try_from(format!("bytes={from}-")).expect("digits and a dash can stand in a header")
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
