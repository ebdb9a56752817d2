//! Histories, once or followed live: of one task, or of all tasks of a requester.
//!
//! A follower is fed from the store, in its order of commits, a page at a time; what happens only says when to look. So nothing is left
//! out, whatever is told late, twice or not at all, and a follower takes no more memory than a page.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt as _};
use http::header::{ACCEPT, CACHE_CONTROL};
use http::{HeaderMap, HeaderName, StatusCode};
use rpc::error::ErrorCode;
use rpc::tasks::{Entry, EventQuery, EventView, StreamPlace, TaskHistory};
use store::{EventFilter, KeyId, StoredEvent, StoredTask};
use taskmarket::{Address, Status, TaskId};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::App;
use super::extract::{Key, Query, TaskPath};
use super::lasting::{Seat, Seats, lost_if};
use super::reader::{By, Reader};
use crate::error::ApiError;
use crate::keys::Caller;
use crate::market::{Change, Market, Report, event_view};

/// How often a silent stream shows that it lives, and looks into the store in case it missed something.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events that are read from the store at a time, and are all that a follower holds. The largest, a task as published, has some 25 KiB.
const READ_EVENTS: usize = 16;
/// Streams of events with one API key at once, or by one signer.
const MAX_STREAMS: usize = 1024;
/// How long a follower may take over one event before it is cut off, to come back later from where it was.
const TOO_SLOW: Duration = Duration::from_secs(30);
/// Tasks of which a follower remembers whether it may see them.
const REMEMBERED_TASKS: usize = 1024;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Proxies that buffer would hold events back.
const NO_BUFFERING: (HeaderName, &str) = (HeaderName::from_static("x-accel-buffering"), "no");

/// Who follows events now.
#[derive(Debug, Clone, Default)]
pub(crate) struct EventStreams(Seats<Whose>);

/// `GET /v1/tasks/{id}/events`
pub(super) async fn events(
    State(app): State<App>,
    reader: Reader,
    TaskPath(id): TaskPath,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let task = reader.find_whole(&app, id, By::Parties).await?;
    if wants_stream(&headers) {
        let after = last_event_id(&headers)?.unwrap_or(0);
        return follow_task(&app, &task, after, (reader.key_needed(&task, By::Parties), reader.whose()))
            .await;
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

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    value.to_str().ok().and_then(|text| text.parse().ok()).map(Some).ok_or_else(|| {
        ApiError::new(ErrorCode::MalformedRequest, "last-event-id: expected the id of an event")
            .with_param("last-event-id")
    })
}

/// `GET /v1/events?requester=`
pub(super) async fn requester_events(
    State(app): State<App>,
    Key(key): Key,
    Query(query): Query<EventQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    // The subscription comes before the reading, so that nothing falls between the two.
    let live = app.market.subscribe();
    let newest = app.market.store().last_seq().await?;
    let asked = last_event_id(&headers)?.or(query.last_event_id);
    let key_id = key.id.clone();
    let feed = Feed::Requester { requester: query.requester, caller: key, seen: HashMap::new() };
    let market = Arc::clone(&app.market);
    let mut follower = Follower::new(market, live, feed, asked.unwrap_or(newest), app.stopping.clone());
    // Who asks from now on learns where that is, and so can come back there before anything happened.
    follower.waiting.push_back(Told::Following { last_event_id: follower.last_seq });
    let seat = seat(&app, Whose::Key(key_id.clone()))?;
    Ok(answer(&app, follower, Some(key_id), seat))
}

/// Whose streams of events are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    /// Those with an API key.
    Key(KeyId),
    /// Those by a signature.
    Signer(Address),
}

fn seat(app: &App, whose: Whose) -> Result<Seat<Whose>, ApiError> {
    app.streams.0.take(whose, MAX_STREAMS).ok_or_else(|| {
        let message = format!("no more than {MAX_STREAMS} streams of events at once with one API key");
        ApiError::new(ErrorCode::RateLimited, message)
    })
}

/// Streams to a client until all is told, and no longer than the key is good that lets it see that.
fn answer(app: &App, follower: Follower, key: Option<KeyId>, seat: Seat<Whose>) -> Response {
    let lost = lost_if(app.clone(), key);
    // The seat lasts as long as the answer.
    let stream = follower.into_stream().take_until(Box::pin(lost)).inspect(move |_| {
        let _ = &seat;
    });
    let stream = Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    ([NO_BUFFERING, (CACHE_CONTROL, "no-store")], stream).into_response()
}

async fn follow_task(
    app: &App,
    task: &StoredTask,
    after: u64,
    (key, whose): (Option<KeyId>, Whose),
) -> Result<Response, ApiError> {
    let record = &task.record;
    let feed = Feed::Task { task_id: record.id, status: record.status(), is_over: record.is_over() };
    // The subscription comes before the reading, so that nothing falls between the two.
    let (live, market) = (app.market.subscribe(), Arc::clone(&app.market));
    let mut follower = Follower::new(market, live, feed, after, app.stopping.clone());
    follower.reports = Some(app.market.subscribe_reports());
    follower.read_store().await?;
    if follower.waiting.is_empty() && follower.is_over() {
        // Says to a browser's EventSource that there is no use in coming back.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let seat = seat(app, whose)?;
    Ok(answer(app, follower, key, seat))
}

/// What a follower is told.
enum Told {
    /// An event.
    Event(Box<EventView>),
    /// The first of a requester's stream: from where it follows.
    Following { last_event_id: u64 },
    /// The last of a stream whose follower was too slow: where it is to come back.
    Cut { last_event_id: u64 },
}

/// What is followed.
enum Feed {
    /// One task, until neither its work nor its money moves any more. `status` is the one after the last event that was read; with
    /// `is_over`, all that was left to read when that was found is all that comes.
    Task { task_id: TaskId, status: Status, is_over: bool },
    /// All tasks of a requester that the caller may see whole; those that were looked at lately are remembered.
    Requester { requester: Address, caller: Caller, seen: HashMap<TaskId, bool> },
}

/// One client's place in what it follows.
struct Follower {
    market: Arc<Market>,
    feed: Feed,
    /// The last durable event that was read.
    last_seq: u64,
    /// Whether the store has more to read.
    is_behind: bool,
    waiting: VecDeque<Told>,
    /// `None` once the stream is to end.
    live: Option<broadcast::Receiver<Arc<Change>>>,
    /// What happens inside attempts, where that is followed.
    reports: Option<broadcast::Receiver<Report>>,
    /// When the last event was handed out.
    told_at: Option<Instant>,
    too_slow: Duration,
    /// How long the store is not looked into while nothing is told that belongs here.
    look_every: Duration,
    next_look: Instant,
    stopping: CancellationToken,
}

impl Follower {
    /// A follower of what comes after an event. The subscription must be older than whatever said which one that is.
    fn new(
        market: Arc<Market>,
        live: broadcast::Receiver<Arc<Change>>,
        feed: Feed,
        last_seq: u64,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            market,
            feed,
            last_seq,
            is_behind: true,
            waiting: VecDeque::new(),
            live: Some(live),
            reports: None,
            told_at: None,
            too_slow: TOO_SLOW,
            look_every: KEEP_ALIVE,
            next_look: Instant::now() + KEEP_ALIVE,
            stopping,
        }
    }

    fn into_stream(self) -> impl Stream<Item = Result<SseEvent, Infallible>> + Send {
        futures_util::stream::unfold(self, async |mut follower| {
            let told = follower.next().await?;
            follower.told_at = Some(Instant::now());
            Some((Ok(sse_event(&told)), follower))
        })
    }

    /// Whether the last event that can ever come was read.
    fn is_over(&self) -> bool {
        match &self.feed {
            Feed::Task { is_over, .. } => *is_over && !self.is_behind,
            Feed::Requester { .. } => false,
        }
    }

    /// What comes next; `None` after the last event of a task that is over, and when the relay ends.
    async fn next(&mut self) -> Option<Told> {
        if let Some(cut) = self.cut() {
            return Some(cut);
        }
        loop {
            if let Some(told) = self.waiting.pop_front() {
                return Some(told);
            }
            if self.is_over() || self.live.is_none() {
                return None;
            }
            let is_missing = self.is_behind || self.wait().await?;
            // Always by the store: commits may be told in another order than they were made in.
            if is_missing && let Err(error) = self.read_store().await {
                tracing::warn!(message = ?error, "a stream of events broke off");
                self.live = None;
            }
        }
    }

    /// Ends the stream of a client that took too long over what it was told last, if there is more to tell.
    fn cut(&mut self) -> Option<Told> {
        let is_slow = self.told_at.is_some_and(|at| at.elapsed() > self.too_slow);
        let last_event_id = match self.waiting.front()? {
            Told::Event(view) => view.id.map_or(self.last_seq, |next| next.saturating_sub(1)),
            Told::Following { last_event_id } | Told::Cut { last_event_id } => *last_event_id,
        };
        if !is_slow || self.live.is_none() {
            return None;
        }
        self.waiting.clear();
        self.live = None;
        Some(Told::Cut { last_event_id })
    }

    /// Waits until the store may have something new, and says whether it may; `None` when the relay ends.
    async fn wait(&mut self) -> Option<bool> {
        let report = async {
            match &mut self.reports {
                Some(reports) => reports.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.stopping.cancelled() => None,
            change = self.live.as_mut()?.recv() => match change {
                Ok(change) => Some(self.feed.takes(&change) && change.seq > self.last_seq),
                Err(RecvError::Lagged(_)) => Some(true),
                Err(RecvError::Closed) => None,
            },
            report = report => {
                if let (Ok(report), Feed::Task { task_id, status, .. }) = (report, &self.feed)
                    && report.task_id == *task_id
                {
                    self.waiting.push_back(Told::Event(Box::new(progress_view(report, *status))));
                }
                Some(false)
            }
            // What others have happen does not put it off.
            () = sleep_until(self.next_look) => Some(true),
        }
    }

    /// Reads a page of what the store has after the last event.
    async fn read_store(&mut self) -> Result<(), ApiError> {
        self.next_look = Instant::now() + self.look_every;
        let filter = match &self.feed {
            Feed::Task { task_id, .. } => EventFilter { task: Some(*task_id), requester: None },
            Feed::Requester { requester, .. } => EventFilter { task: None, requester: Some(*requester) },
        };
        loop {
            let events = self.market.store().events_after(self.last_seq, filter, READ_EVENTS).await?;
            let is_end = events.len() < READ_EVENTS;
            for event in events {
                self.last_seq = event.seq;
                if self.may_see(&event).await? {
                    self.waiting.push_back(Told::Event(Box::new(event_view(event))));
                }
            }
            self.is_behind = !is_end;
            if is_end || !self.waiting.is_empty() {
                return self.look_for_the_end().await;
            }
        }
    }

    /// Finds out whether a task is over whose work is. What was committed until then is still to be read.
    async fn look_for_the_end(&mut self) -> Result<(), ApiError> {
        if let Feed::Task { task_id, status, is_over } = &mut self.feed
            && status.is_final()
            && !*is_over
        {
            *is_over = self.market.task(*task_id).await?.is_some_and(|task| task.record.is_over());
            self.is_behind |= *is_over;
        }
        Ok(())
    }

    async fn may_see(&mut self, event: &StoredEvent) -> Result<bool, ApiError> {
        let (caller, seen) = match &mut self.feed {
            Feed::Task { status, .. } => {
                *status = event.status;
                return Ok(true);
            }
            Feed::Requester { caller, seen, .. } => (caller, seen),
        };
        if let Some(may_see) = seen.get(&event.task_id) {
            return Ok(*may_see);
        }
        let task = self.market.task(event.task_id).await?;
        let may_see = task.is_some_and(|task| caller.may_read(&task.owner));
        if seen.len() >= REMEMBERED_TASKS {
            seen.clear();
        }
        seen.insert(event.task_id, may_see);
        Ok(may_see)
    }
}

impl Feed {
    /// Whether a change belongs to what is followed.
    fn takes(&self, change: &Change) -> bool {
        match self {
            Self::Task { task_id, .. } => change.record.id == *task_id,
            Self::Requester { requester, .. } => change.record.task.requester == *requester,
        }
    }
}

fn progress_view(report: Report, status: Status) -> EventView {
    EventView {
        id: None,
        task_id: report.task_id,
        status,
        entry: Entry::Progress { progress: report.progress },
    }
}

fn sse_event(told: &Told) -> SseEvent {
    let written = match told {
        Told::Event(view) => {
            let name = match &view.entry {
                Entry::Recorded { recorded, .. } => recorded.event.name(),
                Entry::Progress { .. } => "progress",
            };
            let event = SseEvent::default().event(name);
            let event = match view.id {
                Some(id) => event.id(id.to_string()),
                None => event,
            };
            event.json_data(view)
        }
        Told::Following { last_event_id } => SseEvent::default()
            .event("following")
            .id(last_event_id.to_string())
            .json_data(StreamPlace { last_event_id: *last_event_id, reason: None }),
        Told::Cut { last_event_id } => SseEvent::default()
            .event("cut")
            .id(last_event_id.to_string())
            .json_data(StreamPlace { last_event_id: *last_event_id, reason: Some("too_slow".to_owned()) }),
    };
    written.unwrap_or_else(|error| {
        tracing::error!(%error, "an event could not be written");
        SseEvent::default().comment("an event could not be written")
    })
}

#[cfg(test)]
mod tests {
    use rpc::tasks::{Phase, Progress};
    use store::{Sqlite, Store};
    use taskmarket::B256;

    use super::*;
    use crate::artifacts::{ArtifactLocation, Artifacts};
    use crate::auth::AttemptTokens;
    use crate::testing;

    fn told(id: u64) -> Told {
        Told::Event(Box::new(EventView {
            id: Some(id),
            task_id: TaskId(B256::ZERO),
            status: Status::Open,
            entry: Entry::Progress {
                progress: Progress { attempt: 1, phase: Phase::Running, percent: None },
            },
        }))
    }

    async fn market(dir: &tempfile::TempDir) -> Arc<Market> {
        let store: Arc<dyn Store> = Arc::new(Sqlite::open(dir.path().join("store")).await.unwrap());
        let location = ArtifactLocation::from(dir.path().join("blobs"));
        let artifacts = Artifacts::open(&location, Arc::clone(&store), None, 1).await.unwrap();
        Market::new(store, artifacts, AttemptTokens::new([0; 32]), None)
    }

    fn follower(market: &Arc<Market>, feed: Feed, last_seq: u64) -> Follower {
        Follower::new(Arc::clone(market), market.subscribe(), feed, last_seq, CancellationToken::new())
    }

    #[tokio::test]
    async fn a_follower_holds_a_page_and_misses_nothing() {
        let dir = tempfile::TempDir::new().unwrap();
        let market = market(&dir).await;
        let tasks = 2 * READ_EVENTS + 1;
        let requester = wallet::Wallet::random();
        for _ in 0..tasks {
            let task = testing::task_of(&market, &requester);
            testing::publish_untold(&market, &task).await;
        }
        let (store, key) = (Sqlite::open(dir.path().join("keys")).await.unwrap(), daemon::Secret::new("k"));
        let keys = crate::keys::ApiKeys::new(Arc::new(store), [&key]);
        let caller = keys.recall(&crate::keys::Presented::new("k"), market.now()).unwrap();
        let feed = Feed::Requester { requester: requester.address(), caller, seen: HashMap::new() };
        let mut follower = follower(&market, feed, 0);
        for seq in 1..=tasks as u64 {
            let told = follower.next().await;
            assert!(matches!(told, Some(Told::Event(view)) if view.id == Some(seq)));
            assert!(follower.waiting.len() < READ_EVENTS);
        }
    }

    #[tokio::test]
    async fn what_was_not_told_is_found_however_much_others_have_happen() {
        let dir = tempfile::TempDir::new().unwrap();
        let market = market(&dir).await;
        let task = testing::task(&market);
        let task_id = task.message.id(&taskmarket::Domain::UNSETTLED);
        let mut follower = Follower {
            look_every: Duration::from_millis(300),
            ..follower(&market, Feed::Task { task_id, status: Status::Open, is_over: false }, 0)
        };
        follower.read_store().await.unwrap();
        let busy = Arc::clone(&market);
        let others = tokio::spawn(async move {
            loop {
                let task = testing::task(&busy).verify(&taskmarket::Domain::UNSETTLED).unwrap();
                busy.publish(task, store::KeyId::of_api_key("others")).await.unwrap();
            }
        });
        testing::publish_untold(&market, &task).await;
        let told = tokio::time::timeout(Duration::from_secs(20), follower.next()).await.expect("it is found");
        assert!(matches!(told, Some(Told::Event(view)) if view.task_id == task_id));
        others.abort();
    }

    #[tokio::test]
    async fn a_slow_follower_is_cut_and_told_where_to_come_back() {
        let dir = tempfile::TempDir::new().unwrap();
        let market = market(&dir).await;
        let feed = Feed::Task { task_id: TaskId(B256::ZERO), status: Status::Open, is_over: false };
        let mut follower = Follower {
            is_behind: false,
            waiting: VecDeque::from([told(4), told(7), told(9)]),
            too_slow: Duration::from_secs(1),
            ..follower(&market, feed, 9)
        };
        assert!(matches!(follower.next().await, Some(Told::Event(view)) if view.id == Some(4)));
        follower.told_at = Some(Instant::now());
        assert!(matches!(follower.next().await, Some(Told::Event(view)) if view.id == Some(7)));
        follower.told_at = Instant::now().checked_sub(Duration::from_secs(2));
        assert!(matches!(follower.next().await, Some(Told::Cut { last_event_id: 8 })));
        assert!(follower.next().await.is_none(), "that was the last");
    }
}
