//! A task's history, once or followed live.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use http::header::{ACCEPT, CACHE_CONTROL};
use http::{HeaderMap, HeaderName, StatusCode};
use rpc::error::ErrorCode;
use rpc::tasks::{Entry, EventView, TaskHistory};
use store::{EventFilter, StoredEvent, StoredTask};
use taskmarket::{Status, TaskId};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::App;
use super::extract::{Key, TaskPath};
use super::tasks::find_owned;
use crate::error::ApiError;
use crate::market::{Change, Market, Report};

/// How often a silent stream shows that it lives, and looks into the store in case it missed something.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events that are read from the store at a time.
const READ_EVENTS: usize = 500;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Proxies that buffer would hold events back.
const NO_BUFFERING: (HeaderName, &str) = (HeaderName::from_static("x-accel-buffering"), "no");

/// `GET /v1/tasks/{id}/events`
pub(super) async fn events(
    State(app): State<App>,
    Key(key): Key,
    TaskPath(id): TaskPath,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let task = find_owned(&app, id, &key).await?;
    if wants_stream(&headers) {
        return follow(&app, &task, last_event_id(&headers)?).await;
    }
    let history = app.market.store().history(id).await?;
    let events = history.into_iter().map(event_view).collect();
    Ok(axum::Json(TaskHistory { task_id: id, events }).into_response())
}

fn wants_stream(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    accepts.flat_map(|value| value.split(',')).any(|kind| {
        kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"))
    })
}

fn last_event_id(headers: &HeaderMap) -> Result<u64, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(0) };
    value.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
        ApiError::new(ErrorCode::MalformedRequest, "last-event-id: expected the id of an event")
            .with_param("last-event-id")
    })
}

async fn follow(app: &App, task: &StoredTask, after: u64) -> Result<Response, ApiError> {
    // The subscription comes before the reading, so that nothing falls between the two.
    let mut follower = Follower {
        live: Some(app.market.subscribe()),
        reports: app.market.subscribe_reports(),
        market: Arc::clone(&app.market),
        task_id: task.record.id,
        status: task.record.status(),
        last_seq: after,
        waiting: VecDeque::new(),
        stopping: app.stopping.clone(),
    };
    follower.read_store().await?;
    if follower.waiting.is_empty() && follower.status.is_final() {
        // Says to a browser's EventSource that there is no use in coming back.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let stream = Sse::new(follower.into_stream()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    Ok(([NO_BUFFERING, (CACHE_CONTROL, "no-store")], stream).into_response())
}

/// One client's place in a task's history.
struct Follower {
    market: Arc<Market>,
    task_id: TaskId,
    /// The task's status after the last event that was read.
    status: Status,
    /// The last durable event that was read.
    last_seq: u64,
    waiting: VecDeque<EventView>,
    /// `None` once the stream is to end.
    live: Option<broadcast::Receiver<Arc<Change>>>,
    reports: broadcast::Receiver<Report>,
    stopping: CancellationToken,
}

impl Follower {
    fn into_stream(self) -> impl Stream<Item = Result<SseEvent, Infallible>> + Send {
        futures_util::stream::unfold(self, async |mut follower| {
            let view = follower.next().await?;
            Some((Ok(sse_event(&view)), follower))
        })
    }

    /// The next event; `None` after the last one of a task that is final, and when the relay ends.
    async fn next(&mut self) -> Option<EventView> {
        loop {
            if let Some(view) = self.waiting.pop_front() {
                return Some(view);
            }
            if self.status.is_final() {
                return None;
            }
            let live = self.live.as_mut()?;
            let is_missing = tokio::select! {
                () = self.stopping.cancelled() => return None,
                change = live.recv() => match change {
                    Ok(change) => change.record.id == self.task_id && change.seq > self.last_seq,
                    Err(RecvError::Lagged(_)) => true,
                    Err(RecvError::Closed) => return None,
                },
                report = self.reports.recv() => {
                    if let Ok(report) = report && report.task_id == self.task_id {
                        self.waiting.push_back(progress_view(report, self.status));
                    }
                    false
                }
                () = tokio::time::sleep(KEEP_ALIVE) => true,
            };
            // Always by the store: commits may be told in another order than they were made in.
            if is_missing && let Err(error) = self.read_store().await {
                tracing::warn!(task_id = %self.task_id, message = ?error, "a stream of events broke off");
                self.live = None;
            }
        }
    }

    /// Reads what the store has after the last event.
    async fn read_store(&mut self) -> Result<(), ApiError> {
        let filter = EventFilter { task: Some(self.task_id), requester: None };
        loop {
            let events = self.market.store().events_after(self.last_seq, filter, READ_EVENTS).await?;
            let is_end = events.len() < READ_EVENTS;
            for event in events {
                (self.last_seq, self.status) = (event.seq, event.status);
                self.waiting.push_back(event_view(event));
            }
            if is_end {
                return Ok(());
            }
        }
    }
}

fn event_view(event: StoredEvent) -> EventView {
    let word = event.recorded.event.word();
    let entry = Entry::Recorded { word, recorded: Box::new(event.recorded) };
    EventView { id: Some(event.seq), task_id: event.task_id, status: event.status, entry }
}

fn progress_view(report: Report, status: Status) -> EventView {
    EventView {
        id: None,
        task_id: report.task_id,
        status,
        entry: Entry::Progress { progress: report.progress },
    }
}

fn sse_event(view: &EventView) -> SseEvent {
    let name = match &view.entry {
        Entry::Recorded { recorded, .. } => recorded.event.name(),
        Entry::Progress { .. } => "progress",
    };
    let event = SseEvent::default().event(name);
    let event = match view.id {
        Some(id) => event.id(id.to_string()),
        None => event,
    };
    event.json_data(view).unwrap_or_else(|error| {
        tracing::error!(%error, "an event could not be written");
        SseEvent::default().comment("an event could not be written")
    })
}
