//! Inference under an idempotency key: an answer is written down while it passes, and kept once all of it came.
//!
//! It passes as it would without a key. Nothing is kept of an answer that failed or whose client left: then the key is free again. A
//! request may go on for longer than its mark holds, which is therefore renewed until then.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::HeaderMap;
use http::request::Parts;
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use rpc::error::{ErrorBody, ErrorCode};
use store::{IN_FLIGHT_SECS, Store, StoredAnswer};
use taskmarket::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinHandle, spawn_blocking};
use tokio::time::{Timeout, sleep, timeout};
use tracing::Instrument;

use super::{KEY, Name, digest, kept_as, key, start};
use crate::api::App;
use crate::error::ApiError;
use crate::keys::Caller;

/// The largest answer that is kept, in bytes: a long text, streamed word by word, or some hundred embeddings.
const MAX_KEPT_BYTES: usize = 1 << 20;
/// What answers that are being written down may take of the memory together, in bytes. Those beyond are not kept.
const MAX_WRITTEN_BYTES: usize = 256 << 20;
/// The least that an answer takes of it, in bytes.
const UNIT: usize = 16 * 1024;
/// Bodies that are larger are hashed on a thread of their own, in bytes.
const LARGE_BODY_BYTES: usize = 64 * 1024;
/// How often the mark of a request under way is renewed: two may fail before it lapses.
const RENEW_EVERY: Duration = Duration::from_secs(IN_FLIGHT_SECS / 3);
/// How long the end of an answer waits until what became of it is written down.
const SETTLE: Duration = Duration::from_secs(5);

/// Whether all of a streamed answer came. Streams that have it in their extensions can be kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct Whole(Arc<AtomicBool>);

impl Whole {
    /// Says that all came, before the stream says that it ends.
    pub(crate) fn came(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn has_come(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Room for answers that are being written down.
#[derive(Debug, Clone)]
pub(crate) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_WRITTEN_BYTES / UNIT)))
    }
}

/// The idempotency key of an inference request, if it carries one.
///
/// # Errors
/// 400 where it is malformed.
pub(crate) fn asked(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    if headers.contains_key(KEY) { key(headers).map(Some) } else { Ok(None) }
}

/// An inference request under an idempotency key.
pub(crate) struct Keyed {
    name: Name,
    digest: [u8; 32],
}

impl Keyed {
    /// The request of this head and body.
    ///
    /// # Errors
    /// 500 where it cannot be hashed.
    pub(crate) async fn new(
        caller: &Caller,
        key: String,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Self, ApiError> {
        let name = Name::new(&caller.id, key, &parts.headers);
        let digest = if body.len() <= LARGE_BODY_BYTES {
            digest(&parts.method, &parts.uri, body)
        } else {
            let (method, uri, body) = (parts.method.clone(), parts.uri.clone(), body.clone());
            let hashed = spawn_blocking(move || digest(&method, &uri, &body)).await;
            hashed.map_err(|error| ApiError::internal(&error))?
        };
        Ok(Self { name, digest })
    }

    /// Carries the request out by `work` if it is the first under its key; else answers what became of that one.
    ///
    /// # Errors
    /// Those of `work`; 409 while the first is under way, 422 where it was another request.
    pub(crate) async fn once(
        self,
        app: &App,
        work: impl Future<Output = Result<Response, ApiError>>,
    ) -> Result<Response, ApiError> {
        // On its own, so that a mark that is made has its owner even if the client leaves meanwhile.
        let begun = app.requests.spawn(begin(app.clone(), self).in_current_span()).await;
        let mark = match begun.map_err(|error| ApiError::internal(&error))?? {
            Begun::Again(answer) => return Ok(answer),
            Begun::First(mark) => mark,
        };
        match work.await {
            Ok(response) => Ok(write_down(app, mark, response).await),
            Err(error) => {
                mark.settle(None).await;
                Err(error)
            }
        }
    }
}

/// What a request under a key comes to.
enum Begun {
    /// It is not the first.
    Again(Response),
    /// It is the first: carry it out.
    First(Mark),
}

async fn begin(app: App, keyed: Keyed) -> Result<Begun, ApiError> {
    let Keyed { name, digest } = keyed;
    let now = app.market.now();
    Ok(match start(&app, &name, digest, now).await? {
        Some(answer) => Begun::Again(answer),
        None => Begun::First(Mark::new(app, name, now)),
    })
}

/// What says that a request is under way. Dropped before it is settled, it frees the key.
struct Mark {
    app: App,
    name: Arc<Name>,
    /// When it was made or renewed, in Unix seconds; 0 once it is another's.
    held_since: Arc<AtomicU64>,
    renewing: AbortHandle,
    /// Bodies are dropped wherever their connection is.
    runtime: Handle,
    is_settled: bool,
}

impl Mark {
    fn new(app: App, name: Name, now: Timestamp) -> Self {
        let (name, held_since) = (Arc::new(name), Arc::new(AtomicU64::new(now.unix())));
        let renewing = {
            let (app, name, held_since) = (app.clone(), Arc::clone(&name), Arc::clone(&held_since));
            async move {
                let market = &app.market;
                renew(market.store(), || market.now(), &name, &held_since, RENEW_EVERY).await;
            }
        };
        let renewing = app.requests.spawn(renewing.in_current_span()).abort_handle();
        Self { app, name, held_since, renewing, runtime: Handle::current(), is_settled: false }
    }

    /// Writes down what became of the request: its answer, or that it may be carried out again.
    fn settle(mut self, answer: Option<Kept>) -> Settling {
        Settling(Box::pin(timeout(SETTLE, self.begin_to_settle(answer))))
    }

    fn begin_to_settle(&mut self, answer: Option<Kept>) -> JoinHandle<()> {
        self.is_settled = true;
        self.renewing.abort();
        let (app, name) = (self.app.clone(), Arc::clone(&self.name));
        let held_since = Timestamp::from_unix(self.held_since.load(Ordering::Acquire));
        let work = async move {
            let (answer, _room) = answer.map(|Kept { answer, room }| (answer, room)).unzip();
            // Who could not renew it in time has lost it: the key may be another request's.
            if app.market.now().since(held_since) >= IN_FLIGHT_SECS {
                return tracing::warn!("a request with an idempotency key lost its mark");
            }
            name.settle(&app, answer).await;
        };
        self.app.requests.spawn_on(work.in_current_span(), &self.runtime)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if !self.is_settled {
            drop(self.begin_to_settle(None));
        }
    }
}

/// Renews a mark every so often, as long as there is it.
async fn renew(
    store: &dyn Store,
    clock: impl Fn() -> Timestamp,
    name: &Name,
    held_since: &AtomicU64,
    every: Duration,
) {
    loop {
        sleep(every).await;
        let (before, now) = (Timestamp::from_unix(held_since.load(Ordering::Acquire)), clock());
        match store.renew(&name.owner, &name.key, before, now).await {
            Ok(true) => held_since.store(now.unix(), Ordering::Release),
            Ok(false) => return held_since.store(0, Ordering::Release),
            Err(error) => {
                tracing::warn!(%error, "the mark of a request with an idempotency key was not renewed")
            }
        }
    }
}

/// The wait until something is written down. It goes on without who waits.
struct Settling(Pin<Box<Timeout<JoinHandle<()>>>>);

impl Future for Settling {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // The answer stands, whatever became of that.
        self.0.as_mut().poll(context).map(|_| ())
    }
}

/// Has an answer kept if it is one, once all of it came.
async fn write_down(app: &App, mark: Mark, response: Response) -> Response {
    let is_whole = response.body().size_hint().exact().is_some();
    let whole = response.extensions().get::<Whole>().cloned();
    if !response.status().is_success() || !(is_whole || whole.is_some()) {
        mark.settle(None).await;
        return response;
    }
    let (parts, body) = response.into_parts();
    let answer = kept_as(&parts, &mark.name);
    let mut written = Written::new(&app.answers);
    if let Some(whole) = whole.filter(|_| !is_whole) {
        let writing = Writing {
            body,
            answer: Some(answer),
            written,
            mark: Some(mark),
            whole,
            settling: None,
            last: None,
        };
        return Response::from_parts(parts, Body::new(writing));
    }
    // Nobody waits for the end of a body whose length is known: what became of it is written down before it goes.
    match body.collect().await {
        Ok(body) => {
            let bytes = body.to_bytes();
            written.add(&bytes);
            mark.settle(Some(written.into_answer(answer))).await;
            Response::from_parts(parts, Body::from(bytes))
        }
        Err(error) => {
            mark.settle(None).await;
            axum::response::IntoResponse::into_response(ApiError::internal(&error))
        }
    }
}

/// A body that is written down while it passes.
struct Writing {
    body: Body,
    /// What is kept of it, without its bytes.
    answer: Option<StoredAnswer>,
    written: Written,
    /// `None` once it has ended.
    mark: Option<Mark>,
    whole: Whole,
    settling: Option<Settling>,
    /// What it ends with.
    last: Option<axum::Error>,
}

impl http_body::Body for Writing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.mark.is_some() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    if let Some(piece) = frame.data_ref() {
                        self.written.add(piece);
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Some(Err(error)) => {
                    self.last = Some(error);
                    self.end(false);
                }
                None => self.end(true),
            }
        }
        // Whoever has seen the end and asks again finds the answer.
        if let Some(settling) = &mut self.settling {
            ready!(Pin::new(settling).poll(context));
            self.settling = None;
        }
        Poll::Ready(self.last.take().map(Err))
    }
}

impl Writing {
    fn end(&mut self, is_well: bool) {
        let answer = self.answer.take().filter(|_| is_well && self.whole.has_come());
        let written = std::mem::take(&mut self.written);
        let answer = answer.map(|answer| written.into_answer(answer));
        self.settling = self.mark.take().map(|mark| mark.settle(answer));
    }
}

/// What of an answer was written down, and the room that it takes.
#[derive(Debug, Default)]
struct Written {
    bytes: Vec<u8>,
    /// `None` once it is too much.
    room: Option<Room>,
    taken: Option<OwnedSemaphorePermit>,
}

impl Written {
    fn new(room: &Room) -> Self {
        Self { room: Some(room.clone()), ..Self::default() }
    }

    fn add(&mut self, piece: &[u8]) {
        let needed = self.bytes.len() + piece.len();
        if !self.has_room(needed) {
            *self = Self::default();
        } else {
            self.bytes.extend_from_slice(piece);
        }
    }

    /// Takes room for so many bytes.
    fn has_room(&mut self, needed: usize) -> bool {
        let Some(Room(room)) = &self.room else { return false };
        if needed > MAX_KEPT_BYTES {
            return false;
        }
        if needed <= self.bytes.capacity() {
            return true;
        }
        let size = needed.next_power_of_two().max(UNIT);
        let units = size / UNIT - self.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more =
            u32::try_from(units).ok().and_then(|units| Arc::clone(room).try_acquire_many_owned(units).ok());
        let Some(more) = more else { return false };
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            none => *none = Some(more),
        }
        self.bytes.reserve_exact(size - self.bytes.len());
        true
    }

    /// What is kept: the answer with what was written down, or that it was too much.
    fn into_answer(self, answer: StoredAnswer) -> Kept {
        let answer =
            if self.room.is_some() { StoredAnswer { body: self.bytes, ..answer } } else { too_much(answer) };
        Kept { answer, room: self.taken }
    }
}

/// What is kept of an answer, with the room that it takes until it is.
#[derive(Debug)]
struct Kept {
    answer: StoredAnswer,
    room: Option<OwnedSemaphorePermit>,
}

fn too_much(answer: StoredAnswer) -> StoredAnswer {
    let message = format!(
        "the request with this idempotency key was carried out; its answer was longer than {MAX_KEPT_BYTES} bytes, or came while the \
         relay wrote down as many as it can, and was not kept: to have it carried out once more, send it with another key"
    );
    let error = ApiError::new(ErrorCode::AnswerNotKept, message).with_param(KEY.as_str());
    let status = error.code().http_status();
    let body = serde_json::to_vec(&ErrorBody::from(error));
    let body = body.expect("an error has string keys and no failing fields");
    StoredAnswer { status, content_type: "application/json".to_owned(), body, ..answer }
}

#[cfg(test)]
mod tests {
    use store::{Begun as Found, Idempotency as _, KeyId, Sqlite};

    use super::*;

    fn head() -> StoredAnswer {
        StoredAnswer {
            status: 200,
            content_type: "text/event-stream".to_owned(),
            headers: vec![],
            body: vec![],
        }
    }

    #[tokio::test]
    async fn a_mark_is_renewed_while_there_is_it() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = Sqlite::open(dir.path().join("store")).await.unwrap();
        let name = Name { owner: KeyId::of_api_key("k"), key: "one".to_owned(), request_id: String::new() };
        let begin = async |at| store.begin(&name.owner, &name.key, [1; 32], Timestamp::from_unix(at)).await;
        assert_eq!(begin(1000).await.unwrap(), Found::New);
        let held_since = AtomicU64::new(1000);
        // Each look at the clock finds it much later.
        let clock = || Timestamp::from_unix(held_since.load(Ordering::Acquire) + IN_FLIGHT_SECS / 2);
        let renewing = renew(&store, clock, &name, &held_since, Duration::from_millis(1));
        let freed = async {
            while held_since.load(Ordering::Acquire) < 1000 + 3 * IN_FLIGHT_SECS {
                tokio::task::yield_now().await;
            }
            let later = held_since.load(Ordering::Acquire) + 1;
            assert_eq!(begin(later).await.unwrap(), Found::InFlight);
            store.abandon(&name.owner, &name.key).await.unwrap();
        };
        let both = async { tokio::join!(renewing, freed) };
        timeout(Duration::from_secs(30), both).await.unwrap();
        assert_eq!(held_since.load(Ordering::Acquire), 0, "it has no mark any more");
    }

    #[test]
    fn an_answer_takes_room_as_it_grows_and_gives_it_back() {
        let room = Room(Arc::new(Semaphore::new(5)));
        let mut written = Written::new(&room);
        written.add(&[1; 100]);
        assert_eq!(room.0.available_permits(), 4);
        written.add(&[2; UNIT]);
        assert_eq!((room.0.available_permits(), written.bytes.capacity()), (3, 2 * UNIT));
        let mut other = Written::new(&room);
        other.add(&vec![3; 4 * UNIT]);
        assert_eq!(room.0.available_permits(), 3, "there is no room for it");
        assert_eq!(other.into_answer(head()).answer.status, 410);
        let kept = written.into_answer(head());
        assert_eq!((kept.answer.status, kept.answer.body.len()), (200, 100 + UNIT));
        assert_eq!(room.0.available_permits(), 3, "until it is written down");
        drop(kept);
        assert_eq!(room.0.available_permits(), 5);
    }

    #[test]
    fn what_is_too_long_is_let_go_at_once() {
        let room = Room::default();
        let free = room.0.available_permits();
        let mut written = Written::new(&room);
        written.add(&vec![1; MAX_KEPT_BYTES]);
        assert_eq!(free - room.0.available_permits(), MAX_KEPT_BYTES / UNIT);
        written.add(&[]);
        assert!(written.room.is_some(), "the longest is kept");
        written.add(&[1]);
        assert_eq!((room.0.available_permits(), written.bytes.capacity()), (free, 0));
        written.add(&[1]);
        assert_eq!((room.0.available_permits(), written.into_answer(head()).answer.status), (free, 410));
    }
}
