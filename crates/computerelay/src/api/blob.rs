//! Answers with a blob: whole, or the range that was asked for, so that a broken download goes on where it stopped.

use artifact::Digest;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE,
    RANGE,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use rpc::error::ErrorCode;

use crate::artifacts::Artifacts;
use crate::error::ApiError;

/// How long a blob is and what answers for it, without its bytes.
///
/// # Errors
/// 404 if it is not stored.
pub(super) async fn describe(artifacts: &Artifacts, digest: Digest) -> Result<Response, ApiError> {
    let size = find(artifacts, digest).await?;
    let mut response = StatusCode::OK.into_response();
    describe_in(response.headers_mut(), digest, size);
    Ok(response)
}

/// Answers a GET for a blob.
///
/// # Errors
/// 404 if it is not stored, 416 if the range lies outside of it.
pub(super) async fn serve(
    artifacts: &Artifacts,
    digest: Digest,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let size = find(artifacts, digest).await?;
    let etag = format!("\"{digest}\"");
    if header(headers, IF_NONE_MATCH).is_some_and(|known| known.split(',').any(|tag| tag.trim() == etag)) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag)]).into_response());
    }
    // A client that continues another version's download must get the whole of this one.
    let is_same = header(headers, IF_RANGE).is_none_or(|tag| tag == etag);
    let range = if is_same {
        header(headers, RANGE).map_or(Range::Whole, |text| parse(text, size))
    } else {
        Range::Whole
    };
    let (status, from, length) = match range {
        Range::Whole => (StatusCode::OK, 0, size),
        Range::Part { from, to } => (StatusCode::PARTIAL_CONTENT, from, to - from + 1),
        Range::Outside => {
            let message = format!("the range is not within the {size} bytes of artifact {digest}");
            let error = ApiError::new(ErrorCode::RangeNotSatisfiable, message).with_param("range");
            return Err(error.with_header(CONTENT_RANGE, value(format!("bytes */{size}"))));
        }
    };
    let pieces = artifacts.read(&digest, from, from + length).await?.ok_or_else(|| missing(digest))?;
    let mut response = (status, Body::from_stream(pieces)).into_response();
    let answer = response.headers_mut();
    describe_in(answer, digest, length);
    if let Range::Part { from, to } = range {
        answer.insert(CONTENT_RANGE, value(format!("bytes {from}-{to}/{size}")));
    }
    Ok(response)
}

/// The size of a blob, which thereby is used.
async fn find(artifacts: &Artifacts, digest: Digest) -> Result<u64, ApiError> {
    let size = artifacts.size_of(&digest).await?.ok_or_else(|| missing(digest))?;
    artifacts.note_use(digest).await?;
    Ok(size)
}

/// What is answered of one that is not stored.
pub(super) fn missing(digest: Digest) -> ApiError {
    ApiError::not_found(format_args!("artifact {digest}"))
}

fn describe_in(headers: &mut HeaderMap, digest: Digest, length: u64) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, length.into());
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // The bytes under a hash never change; only those who may read them may keep them.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable"));
    headers.insert(ETAG, value(format!("\"{digest}\"")));
}

/// What part of the bytes is asked for, its ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    Whole,
    Part { from: u64, to: u64 },
    Outside,
}

/// Reads a `Range` header. As RFC 9110 (section 14.2) allows, several ranges and forms that are not understood are passed over.
fn parse(text: &str, size: u64) -> Range {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Whole;
    };
    let number = |text: &str| -> Option<u64> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
    };
    match (first.trim(), last.trim()) {
        ("", suffix) => match number(suffix) {
            None => Range::Whole,
            Some(0) => Range::Outside,
            Some(_) if size == 0 => Range::Outside,
            Some(length) => Range::Part { from: size.saturating_sub(length), to: size - 1 },
        },
        (first, last) => match (number(first), number(last), last.is_empty()) {
            (Some(from), _, true) if from < size => Range::Part { from, to: size - 1 },
            (Some(from), Some(to), false) if from <= to && from < size => {
                Range::Part { from, to: to.min(size - 1) }
            }
            (Some(from), Some(to), false) if from > to => Range::Whole,
            (Some(_), _, true) | (Some(_), Some(_), false) => Range::Outside,
            (None, _, _) | (Some(_), None, false) => Range::Whole,
        },
    }
}

fn header(headers: &HeaderMap, name: http::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("digits, hex and quotes are a header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_rfc() {
        let part = |from, to| Range::Part { from, to };
        for (text, expected) in [
            ("bytes=0-4", part(0, 4)),
            ("bytes=5-", part(5, 9)),
            ("bytes=9-99", part(9, 9)),
            ("bytes=-3", part(7, 9)),
            ("bytes=-99", part(0, 9)),
            ("bytes=10-", Range::Outside),
            ("bytes=10-12", Range::Outside),
            ("bytes=-0", Range::Outside),
            ("bytes=4-2", Range::Whole),
            ("bytes=0-1,3-4", Range::Whole),
            ("bytes=a-b", Range::Whole),
            ("bytes=+1-2", Range::Whole),
            ("bytes=-", Range::Whole),
            ("items=0-1", Range::Whole),
            ("bytes=99999999999999999999-", Range::Whole),
        ] {
            assert_eq!(parse(text, 10), expected, "{text}");
        }
        assert_eq!(parse("bytes=0-", 0), Range::Outside);
        assert_eq!(parse("bytes=-1", 0), Range::Outside);
    }
}
