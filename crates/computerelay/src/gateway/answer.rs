//! An answer's body as the client gets it: the engine's bytes as they come, and the relay's own word where there is nothing to pass on.
//!
//! Nothing is read ahead: a piece is asked for when there is room for it in the client's connection. So what a client that reads slowly
//! holds is bounded: 256 KiB in the link's stream window, the piece on its way, and what its own connection may keep to be sent.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use rpc::error::{ErrorBody, ErrorCode};
use rpc::inference::{
    ATTEMPTS_HEADER, COST_HEADER, MODEL_HEADER, Outcome, PROVIDER_HEADER, QUEUE_HEADER, UsageSource,
};
use tokio::runtime::Handle;
use tokio::time::{Interval, Sleep, interval_at, sleep_until, timeout};

use super::Gateway;
use super::breaker::Failure;
use super::meter::Form;
use super::route::{Call, Opened, deadline_exceeded, receipt_in};
use super::tally::{Rest, Tally};
use crate::error::ApiError;

/// A request on its way to a host.
pub(super) type Opening = BoxFuture<'static, Result<Opened, ApiError>>;

/// Keeps a stream alive while nothing came; clients ignore it.
const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");

/// How long a receipt is waited for whose client has all of the answer and left.
const RECEIPT_PATIENCE: Duration = Duration::from_secs(1);

/// Why a body ends before its time: where there is no way to say more, its connection ends with it.
#[derive(Debug, thiserror::Error)]
#[error("the provider's answer broke off")]
pub(super) struct BrokenOff;

/// The answer that an opened request has.
pub(super) fn answer(gateway: &Arc<Gateway>, call: &Arc<Call>, opened: Opened) -> axum::response::Response {
    let mut response = Response::new(());
    *response.status_mut() = opened.status;
    let headers = response.headers_mut();
    if let Some(form) = &opened.content_type {
        headers.insert(CONTENT_TYPE, form.clone());
    }
    // What a host says of its bytes is all that anybody is to make of them.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if opened.meter.form() == Form::Events {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
    headers.insert(HeaderName::from_static(ATTEMPTS_HEADER), opened.attempts.into());
    let queued = u64::try_from(opened.queued.as_millis()).unwrap_or(u64::MAX);
    headers.insert(HeaderName::from_static(QUEUE_HEADER), queued.into());
    put(headers, PROVIDER_HEADER, &opened.lease.listing.key.provider.to_string());
    put(headers, MODEL_HEADER, &opened.model);
    let (mut tally, rest) = Tally::of(gateway, call, opened);
    let whole = rest.body.is_none();
    if whole {
        let (count, cost) = tally.cost();
        if tally.meter.form() == Form::Whole && count.source == UsageSource::Usage {
            put(headers, COST_HEADER, &cost.to_string());
        }
        tally.completed();
        return response.map(|()| axum::body::Body::from(rest.first));
    }
    let passing = Passing::new(tally, rest);
    response.extensions_mut().insert(call.whole.clone());
    response.map(|()| axum::body::Body::new(Stream { phase: Phase::Passing(Box::new(passing)) }))
}

/// The answer of a stream whose host takes its time: it begins without one.
pub(super) fn answer_early(
    gateway: &Arc<Gateway>,
    call: &Arc<Call>,
    opening: Opening,
) -> axum::response::Response {
    let period = gateway.config.keep_alive;
    let ticks = interval_at(tokio::time::Instant::now(), period);
    let waiting = Waiting { gateway: Arc::clone(gateway), call: Arc::clone(call), opening, ticks };
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    let body = axum::body::Body::new(Stream { phase: Phase::Waiting(Box::new(waiting)) });
    (StatusCode::OK, headers, Extension(call.whole.clone()), body).into_response()
}

fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // A model's name may hold what no header can.
    if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// See the module.
struct Stream {
    phase: Phase,
}

enum Phase {
    Waiting(Box<Waiting>),
    Passing(Box<Passing>),
    Over,
}

impl Drop for Stream {
    /// A client may leave with the last event, ahead of the receipt: then it has not given up, and nothing was cancelled.
    fn drop(&mut self) {
        if let Phase::Passing(passing) = std::mem::replace(&mut self.phase, Phase::Over)
            && passing.is_delivered()
            && let Ok(runtime) = Handle::try_current()
        {
            let settling = passing.tally.settling().clone();
            settling.spawn_on(passing.settle(), &runtime);
        }
    }
}

/// A stream without a host.
struct Waiting {
    gateway: Arc<Gateway>,
    call: Arc<Call>,
    opening: Opening,
    ticks: Interval,
}

impl Body for Stream {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        loop {
            match &mut self.phase {
                Phase::Waiting(waiting) => match waiting.opening.as_mut().poll(context) {
                    Poll::Ready(Ok(opened)) => self.phase = begun(waiting, opened),
                    Poll::Ready(Err(error)) => {
                        self.phase = Phase::Over;
                        return Poll::Ready(Some(Ok(Frame::data(event(&error.into(), true)))));
                    }
                    Poll::Pending => {
                        ready!(waiting.ticks.poll_tick(context));
                        return Poll::Ready(Some(Ok(Frame::data(KEEP_ALIVE))));
                    }
                },
                Phase::Passing(passing) => {
                    let next = ready!(passing.poll_piece(context));
                    return Poll::Ready(match next {
                        Step::Piece(piece) => Some(Ok(Frame::data(piece))),
                        Step::Last(piece) => {
                            self.phase = Phase::Over;
                            (!piece.is_empty()).then(|| Ok(Frame::data(piece)))
                        }
                        Step::Broken => {
                            self.phase = Phase::Over;
                            Some(Err(BrokenOff))
                        }
                    });
                }
                Phase::Over => return Poll::Ready(None),
            }
        }
    }
}

/// Goes on with a host's answer after the stream began without it.
fn begun(waiting: &Waiting, opened: Opened) -> Phase {
    let (form, status) = (opened.meter.form(), opened.status);
    let (mut tally, rest) = Tally::of(&waiting.gateway, &waiting.call, opened);
    if form == Form::Events {
        return Phase::Passing(Box::new(Passing::new(tally, rest)));
    }
    // What is no stream cannot stand in one: an engine's error becomes an event, and so does an answer.
    let value = serde_json::from_slice::<serde_json::Value>(&rest.first);
    let is_answer = value.is_ok() && rest.body.is_none();
    let first = match value {
        Ok(value) if rest.body.is_none() => Bytes::from(format!("data: {value}\n\n")),
        Ok(_) | Err(_) => {
            let message = format!("the provider answered {} and no stream", status.as_u16());
            event(&ErrorBody::new(ErrorCode::ProviderFailed, message), true)
        }
    };
    if is_answer && status.is_success() {
        waiting.call.whole.came();
    }
    if is_answer || !status.is_success() {
        tally.completed();
    } else {
        tally.failed(Failure::Plain);
    }
    Phase::Passing(Box::new(Passing::new(tally, Rest { first, body: None })))
}

/// A stream on its way from a host to a client.
struct Passing {
    first: Option<Bytes>,
    /// Dropped before the tally, whose lease frees the host's slot: the host is to hear that this answer is over before it is asked again.
    body: Option<link::ResponseBody>,
    tally: Tally,
    /// Fires when the host may have paused too long, or the answer takes too long.
    timer: Pin<Box<Sleep>>,
    last: Instant,
}

enum Step {
    Piece(Bytes),
    Last(Bytes),
    Broken,
}

impl Passing {
    fn new(tally: Tally, rest: Rest) -> Self {
        let now = Instant::now();
        let until = (now + tally.call().patience.between_tokens).min(tally.deadline());
        let timer = Box::pin(sleep_until(until.into()));
        Self { tally, first: Some(rest.first), body: rest.body, timer, last: now }
    }

    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(if self.body.is_none() { Step::Last(first) } else { Step::Piece(first) });
        }
        loop {
            let Some(body) = &mut self.body else { return Poll::Ready(Step::Last(Bytes::new())) };
            let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(context) else {
                return self.poll_timer(context);
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) => {
                        self.last = Instant::now();
                        if self.last >= self.tally.deadline() {
                            return Poll::Ready(self.too_late());
                        }
                        match self.tally.meter.take(piece) {
                            Ok(out) if out.is_empty() => {}
                            Ok(out) => return Poll::Ready(Step::Piece(out)),
                            Err(fault) => {
                                let message = format!("the provider was cut off: {fault}");
                                return Poll::Ready(self.broken(&message, fault.failure()));
                            }
                        }
                    }
                    Err(frame) => {
                        let receipt = receipt_in(frame);
                        self.tally.receipt = receipt.or(self.tally.receipt.take());
                    }
                },
                Some(Err(_)) => {
                    return Poll::Ready(self.broken("the provider's answer broke off", Failure::Plain));
                }
                None => return Poll::Ready(self.ended()),
            }
        }
    }

    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        loop {
            ready!(self.timer.as_mut().poll(context));
            let now = Instant::now();
            let patience = self.tally.call().patience.between_tokens;
            if now >= self.tally.deadline() {
                return Poll::Ready(self.too_late());
            }
            if now >= self.last + patience {
                let message = format!("the provider sent nothing for {} ms", patience.as_millis());
                // Who is in more of a hurry than the relay says nothing of the host.
                if patience >= self.tally.relays_patience() {
                    self.tally.failed(Failure::Plain);
                }
                return Poll::Ready(self.cut(&message));
            }
            let until = (self.last + patience).min(self.tally.deadline());
            self.timer.as_mut().reset(until.into());
        }
    }

    /// Whether the last event was handed over, and the host has not ended yet.
    fn is_delivered(&self) -> bool {
        self.first.is_none() && self.body.is_some() && self.tally.meter.is_done()
    }

    /// Waits for the receipt of an answer that was delivered.
    async fn settle(mut self: Box<Self>) {
        let Some(mut body) = self.body.take() else { return };
        let rest = async {
            while let Some(Ok(frame)) = body.frame().await {
                match frame.into_data() {
                    Ok(piece) => {
                        if self.tally.meter.take(piece).is_err() {
                            return;
                        }
                    }
                    Err(frame) => self.tally.receipt = receipt_in(frame),
                }
            }
        };
        let _ = timeout(RECEIPT_PATIENCE, rest).await;
        drop(body);
        self.tally.completed();
    }

    /// The host has sent all.
    fn ended(&mut self) -> Step {
        match self.tally.meter.end() {
            Ok(rest) => {
                self.tally.completed();
                if self.tally.meter.error().is_none() {
                    self.tally.call().whole.came();
                }
                Step::Last(rest)
            }
            Err(fault) => self.broken(&format!("the provider's answer broke off: {fault}"), fault.failure()),
        }
    }

    fn too_late(&mut self) -> Step {
        let error = deadline_exceeded(self.tally.call().patience.total);
        self.tally.finish(Outcome::Failed);
        self.say(&error.into())
    }

    fn broken(&mut self, message: &str, failure: Failure) -> Step {
        self.tally.failed(failure);
        self.cut(message)
    }

    fn cut(&mut self, message: &str) -> Step {
        self.tally.finish(Outcome::Failed);
        self.say(&ErrorBody::new(ErrorCode::ProviderFailed, message))
    }

    /// The relay's own last word. Dropping the body cuts the host off.
    fn say(&mut self, error: &ErrorBody) -> Step {
        self.body = None;
        match self.tally.meter.form() {
            Form::Events => Step::Last(event(error, self.tally.meter.at_boundary())),
            Form::Whole => Step::Broken,
        }
    }
}

/// An error as an event of a stream. Where the event before it did not end, it is ended first.
fn event(error: &ErrorBody, at_boundary: bool) -> Bytes {
    let end = if at_boundary { "" } else { "\n" };
    let json = serde_json::to_string(error).expect("an error has string keys and no failing fields");
    format!("{end}data: {json}\n\n").into()
}
