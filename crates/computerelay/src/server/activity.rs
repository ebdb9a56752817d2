//! What goes on on one connection: requests that are answered, and answers that wait for their reader.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
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
    requests: HashMap<u64, UnderWay>,
    /// When the last request ended.
    idle_since: Instant,
}

/// A request under way.
#[derive(Debug, Default)]
struct UnderWay {
    /// Since when its answer waits for its reader, if it does.
    waits: Option<Instant>,
    /// Its answer's body, once there is one and until it is given up.
    answer: Weak<Mutex<Option<Body>>>,
}

/// Why an answer breaks off that its reader left unread.
#[derive(Debug, thiserror::Error)]
#[error("the answer was not read")]
struct Unread;

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
        state.requests.insert(id, UnderWay::default());
        Request { activity: self.clone(), id }
    }

    /// Why the connection is to end at `now`, if it is: no request for `idle`, or none but such whose answers nobody reads for `unread`.
    /// Those answers are given up, whatever becomes of the connection: others on it may be read.
    pub(super) fn verdict(&self, now: Instant, idle: Duration, unread: Duration) -> Option<&'static str> {
        let (mut unread_answers, mut are_others) = (Vec::new(), false);
        {
            let state = self.lock();
            if state.requests.is_empty() {
                return (now.saturating_duration_since(state.idle_since) >= idle).then_some("it was idle");
            }
            for UnderWay { waits, answer } in state.requests.values() {
                if waits.is_some_and(|since| now.saturating_duration_since(since) >= unread) {
                    unread_answers.extend(answer.upgrade());
                } else {
                    are_others = true;
                }
            }
        }
        for answer in unread_answers {
            let body = lock(&answer).take();
            drop(body);
        }
        (!are_others).then_some("its answers are not read")
    }

    /// Whether a request ever came.
    pub(super) fn has_spoken(&self) -> bool {
        self.lock().next > 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        let body = Arc::new(Mutex::new(Some(body)));
        if let Some(request) = self.activity.lock().requests.get_mut(&self.id) {
            request.answer = Arc::downgrade(&body);
        }
        Answer { body, request: self }
    }

    fn wait(&self, since: Option<Instant>) {
        if let Some(request) = self.activity.lock().requests.get_mut(&self.id) {
            request.waits = since;
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
    /// Until it is given up.
    body: Arc<Mutex<Option<Body>>>,
    request: Request,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.request.wait(None);
        let polled = lock(&self.body).as_mut().map(|body| Pin::new(body).poll_frame(context));
        let Some(polled) = polled else { return Poll::Ready(Some(Err(axum::Error::new(Unread)))) };
        let frame = ready!(polled);
        self.request.wait(Some(Instant::now()));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.body).as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.body).as_ref().map(Body::size_hint).unwrap_or_default()
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
        assert_eq!(verdict(119), None);
        let asked = tokio::time::timeout(Duration::from_millis(10), answer.frame()).await;
        assert!(asked.is_err(), "there is nothing more yet");
        assert_eq!(verdict(10_000), None, "the reader waits, not the relay");
        drop(answer);
        assert_eq!((verdict(59), verdict(60)), (None, Some("it was idle")));
    }

    #[tokio::test]
    async fn an_unread_answer_is_given_up_and_the_connection_only_with_the_last() {
        let activity = Activity::new();
        let held = Arc::new(());
        let answer = || {
            let held = Arc::clone(&held);
            let pieces = std::iter::repeat_with(move || {
                let _held = &held;
                Ok::<_, axum::Error>("a piece")
            });
            activity.begin().answer(Body::from_stream(futures_util::stream::iter(pieces)))
        };
        let (mut unread, mut other) = (answer(), answer());
        unread.frame().await.unwrap().unwrap();
        let late = Instant::now() + IDLE * 3;
        assert_eq!(activity.verdict(late, IDLE, IDLE * 2), None, "the other one is thought about");
        assert_eq!(Arc::strong_count(&held), 2, "what the unread one held is free");
        assert!(unread.frame().await.unwrap().is_err(), "it breaks off");
        assert!(!http_body::Body::is_end_stream(&unread));
        drop(unread);
        other.frame().await.unwrap().unwrap();
        assert_eq!(activity.verdict(late, IDLE, IDLE * 2), Some("its answers are not read"));
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
