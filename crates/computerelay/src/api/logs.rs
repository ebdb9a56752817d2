//! `GET /v1/tasks/{id}/logs`: what a task's newest attempt says, from the host that runs it, to who may read the whole task.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, header};
use http_body_util::BodyExt;
use link::ResponseBody;
use rpc::error::ErrorCode;
use rpc::relay::LogQuery;
use taskmarket::TaskId;
use tokio::time::timeout;

use super::App;
use super::events::Whose;
use super::extract::{Query, TaskPath};
use super::lasting::{Seats, lost_if};
use super::reader::{By, Reader};
use crate::error::ApiError;

/// How long the answer may be silent. Then comes an empty line, as a sign of life.
const QUIET: Duration = Duration::from_secs(15);
/// Readers of one task's logs at once: its requester's terminals.
const MAX_OF_TASK: usize = 8;
/// Readers with one API key, or by one signer, at once.
const MAX_OF_READER: usize = 64;

/// Who reads logs now.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogReaders {
    tasks: Seats<TaskId>,
    readers: Seats<Whose>,
}

/// `GET /v1/tasks/{id}/logs`
pub(super) async fn logs(
    State(app): State<App>,
    reader: Reader,
    TaskPath(id): TaskPath,
    Query(query): Query<LogQuery>,
) -> Result<Response, ApiError> {
    let task = reader.find_whole(&app, id, By::Requester).await?;
    let full = |whose| {
        ApiError::new(ErrorCode::RateLimited, format!("too many read the logs of this {whose} at once"))
    };
    let of_task = app.logs.tasks.take(id, MAX_OF_TASK).ok_or_else(|| full("task"))?;
    let of_reader =
        app.logs.readers.take(reader.whose(), MAX_OF_READER).ok_or_else(|| full("reader's tasks"))?;
    let lines = app.hub.logs(&task, query.from, query.follow).await?;
    let stopping = app.stopping.clone();
    // The seats last as long as the answer, and the answer no longer than the key that it needs.
    let lines = with_signs_of_life(lines)
        .take_until(stopping.cancelled_owned())
        .take_until(Box::pin(lost_if(app.clone(), reader.key_needed(&task, By::Requester))))
        .inspect(move |_| {
            let _ = (&of_task, &of_reader);
        });
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(rpc::ATTEMPT_HEADER, task.record.attempts.into());
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// A host's lines as they come, read at the reader's pace.
fn with_signs_of_life(
    body: ResponseBody,
) -> impl Stream<Item = Result<Bytes, Box<dyn std::error::Error + Send + Sync>>> + Send {
    // An empty line only between lines.
    futures_util::stream::unfold((body, true), async |(mut body, mut is_between)| {
        loop {
            match timeout(QUIET, body.frame()).await {
                Ok(None) => return None,
                Ok(Some(Err(error))) => return Some((Err(error.into()), (body, is_between))),
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    let Some(last) = data.last() else { continue };
                    is_between = *last == b'\n';
                    return Some((Ok(data), (body, is_between)));
                }
                Err(_) if is_between => return Some((Ok(Bytes::from_static(b"\n")), (body, is_between))),
                Err(_) => {}
            }
        }
    })
}
