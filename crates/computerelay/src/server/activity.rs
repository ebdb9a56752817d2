//! What goes on on one connection: requests that are answered, and answers that wait for their reader.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Duration, Instant};

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    next: u64,
    /// The requests under way. Those that wait for their reader say since when.
    requests: HashMap<u64, Option<Instant>>,
    /// When the last request ended.
    idle_since: Instant,
}

impl Activity {
    /// A connection that was just opened.
    pub(super) fn new() -> Self {
        let state = State { next: 0, requests: HashMap::new(), idle_since: Instant::now() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Notes a request, which is under way until the answer's body is dropped.
    pub(super) fn begin(&self) -> Request {
        let mut state = self.lock();
        state.next += 1;
        let id = state.next;
        state.requests.insert(id, None);
        Request { activity: self.clone(), id }
    }

    /// Why the connection is to end at `now`, if it is: no request for `idle`, or an answer that nobody reads for `unread`.
    pub(super) fn verdict(&self, now: Instant, idle: Duration, unread: Duration) -> Option<&'static str> {
        let state = self.lock();
        if state.requests.is_empty() {
            return (now.saturating_duration_since(state.idle_since) >= idle).then_some("it was idle");
        }
        let is_unread = |since: &Instant| now.saturating_duration_since(*since) >= unread;
        state.requests.values().flatten().any(is_unread).then_some("an answer is not read")
    }

    /// Whether a request ever came.
    pub(super) fn has_spoken(&self) -> bool {
        self.lock().next > 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Request {
    activity: Activity,
    id: u64,
}

impl Request {
    /// The answer's body: the request ends with it.
    pub(super) fn answer(self, body: Body) -> Answer {
        Answer { body, request: self }
    }

    fn wait(&self, since: Option<Instant>) {
        if let Some(waits) = self.activity.lock().requests.get_mut(&self.id) {
            *waits = since;
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut state = self.activity.lock();
        state.requests.remove(&self.id);
        state.idle_since = Instant::now();
    }
}

/// An answer's body. Whoever sends it asks for its next piece only once there is room for it, and so tells that the reader reads.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    request: Request,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.request.wait(None);
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        self.request.wait(Some(Instant::now()));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    const IDLE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn idle_connections_and_unread_answers_end_and_quiet_streams_do_not() {
        let activity = Activity::new();
        let verdict = |after: u64| {
            let now = Instant::now() + Duration::from_secs(after);
            activity.verdict(now, IDLE, IDLE * 2)
        };
        assert_eq!((verdict(59), verdict(60)), (None, Some("it was idle")));

        let request = activity.begin();
        assert_eq!(verdict(10_000), None, "it is thought about");
        let stream = futures_util::stream::iter([Ok::<_, axum::Error>("a piece")]);
        let quiet = futures_util::StreamExt::chain(stream, futures_util::stream::pending());
        let mut answer = request.answer(Body::from_stream(quiet));
        answer.frame().await.unwrap().unwrap();
        assert_eq!((verdict(119), verdict(120)), (None, Some("an answer is not read")));
        let asked = tokio::time::timeout(Duration::from_millis(10), answer.frame()).await;
        assert!(asked.is_err(), "there is nothing more yet");
        assert_eq!(verdict(10_000), None, "the reader waits, not the relay");
        drop(answer);
        assert_eq!((verdict(59), verdict(60)), (None, Some("it was idle")));
    }
}
