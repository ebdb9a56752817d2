//! Tasks on the chat endpoint: a chat request with `model_cid` and `input_cid` publishes a task as `POST /v1/tasks` does, and is answered
//! in OpenAI's shape with its result. Whatever becomes of the request, the task goes on: sent again, the same body finds it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use artifact::Digest;
use axum::Extension;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::{HeaderName, HeaderValue, StatusCode};
use rpc::chat_task::{ChatTask, ChatTaskAnswer, ChatTaskError, ChatTaskErrorDetail, Lacking, TypedData};
use rpc::error::{ErrorBody, ErrorCode};
use rpc::inference::MAX_MODEL_ID_BYTES;
use rpc::tasks::PublishTask;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use store::Scope;
use taskmarket::{Domain, Signature, Signed, Status, Task, TaskId, TaskRecord};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{interval_at, timeout};

use super::App;
use super::extract::parse;
use super::tasks::{domain_of, take_in};
use crate::error::ApiError;
use crate::gateway::Content;
use crate::idempotency::Whole;
use crate::keys::Caller;

/// Requests that wait for their tasks at once; further ones are answered 503, or ask for `background`.
const MAX_WAITING: usize = 1024;
/// How often a request that waits looks at its task even if it is told of nothing.
const LOOK: Duration = Duration::from_secs(5);
/// The longest result that stands in an answer, in bytes. A longer one is at its `result_url`.
const MAX_CONTENT_BYTES: u64 = 4 << 20;
/// How often a stream shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Keeps OpenAI's clients from sending again what would fail again.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Places for requests that wait for their tasks.
#[derive(Debug, Clone)]
pub(crate) struct ChatTasks(Arc<Semaphore>);

impl Default for ChatTasks {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_WAITING)))
    }
}

/// Whether a chat request is a task.
pub(super) fn is_task(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Marks {
        model_cid: Option<IgnoredAny>,
        input_cid: Option<IgnoredAny>,
    }
    // Few bodies have the words anywhere; only those are read for where they stand.
    let has = |word: &[u8]| memchr::memmem::find(body, word).is_some();
    (has(b"\"model_cid\"") || has(b"\"input_cid\""))
        && serde_json::from_slice::<Marks>(body)
            .is_ok_and(|marks| marks.model_cid.is_some() || marks.input_cid.is_some())
}

/// A request under way.
struct Call {
    app: App,
    id: TaskId,
    model: String,
    patience: Duration,
    begun: Instant,
    _place: OwnedSemaphorePermit,
}

/// Answers a chat request that is a task; `patience` is how long its client waits. What was sent is let go before it waits.
///
/// # Errors
/// What is wrong with it.
pub(super) async fn serve(
    app: &App,
    caller: &Caller,
    content: Content,
    patience: Duration,
) -> Result<Response, ApiError> {
    let begun = Instant::now();
    caller.require(Scope::TasksWrite)?;
    let asked = read(content)?;
    let domain = domain_of(app, asked.verifying_contract())?;
    let Some(signature) = asked.signature else { return unsigned(app, &asked, &domain) };
    let body = signed(app, &asked, signature, &domain)?;
    let place = match asked.background {
        Some(true) => None,
        Some(false) | None => Some(Arc::clone(&app.chat_tasks.0).try_acquire_owned().map_err(|_| {
            ApiError::new(
                ErrorCode::Unavailable,
                "too many requests wait for their tasks; ask for background",
            )
        })?),
    };
    let is_stream = asked.stream == Some(true);
    let model = asked.model.unwrap_or_else(|| body.task.model_cid.to_string());
    let (stored, _) = take_in(app, caller, body).await?;
    if !caller.may_read(&stored.owner) {
        let why = "another API key published this task: its result is not this one's to read";
        return Err(ApiError::new(ErrorCode::Forbidden, why));
    }
    let Some(place) = place else { return Ok(accepted(&stored.record, model)) };
    let call = Call { app: app.clone(), id: stored.record.id, model, patience, begun, _place: place };
    Ok(if is_stream { streamed(call) } else { call.answer().await })
}

/// Reads what is asked, and lets the bytes go.
fn read(content: Content) -> Result<ChatTask, ApiError> {
    let asked: ChatTask = parse(&content.body)?;
    if asked.model.as_ref().is_some_and(|model| model.len() > MAX_MODEL_ID_BYTES) {
        let why = format!("model: {MAX_MODEL_ID_BYTES} bytes at most");
        return Err(ApiError::new(ErrorCode::InvalidField, why).with_param("model"));
    }
    Ok(asked)
}

fn lacking(lacking: Lacking) -> ApiError {
    ApiError::new(ErrorCode::InvalidField, lacking.to_string()).with_param(lacking.field)
}

/// What there is to sign.
fn unsigned(app: &App, asked: &ChatTask, domain: &Domain) -> Result<Response, ApiError> {
    let deadline = asked.deadlines(app.market.now()).into_iter().next().unwrap_or_default();
    let task = asked.task(deadline).map_err(lacking)?;
    let message = "the task needs its requester's signature: sign error.typed_data (EIP-712) and send the body again with the \
                   signature in its field signature; error.task are the same fields as the body of a task has them";
    let body = ErrorBody::new(ErrorCode::SignatureRequired, message).with_param("signature");
    let typed_data = Some(TypedData::of_task(&task, domain));
    let detail = ChatTaskErrorDetail { detail: body.error, typed_data, task: Some(task), zorai: None };
    Ok((StatusCode::BAD_REQUEST, axum::Json(ChatTaskError { error: detail })).into_response())
}

/// The task that the body means and the signature is of.
fn signed(
    app: &App,
    asked: &ChatTask,
    signature: Signature,
    domain: &Domain,
) -> Result<PublishTask, ApiError> {
    let mut wrong = None;
    for deadline in asked.deadlines(app.market.now()) {
        let task: Task = asked.task(deadline).map_err(lacking)?;
        match (Signed { message: task, signature }).verify(domain) {
            Ok(task) => {
                return Ok(PublishTask {
                    task: task.into_signed().message,
                    signature,
                    verifying_contract: domain.verifying_contract,
                    callback_url: None,
                });
            }
            Err(error) => wrong = wrong.or(Some(error)),
        }
    }
    let hint = "without a signature this call tells what to sign; fields that are absent have the values that it shows";
    let why = wrong.map(|error| error.to_string()).unwrap_or_default();
    Err(ApiError::new(ErrorCode::InvalidSignature, format!("{why}; {hint}")).with_param("signature"))
}

/// The answer at once.
fn accepted(record: &TaskRecord, model: String) -> Response {
    let answer = shape(record, model, Vec::new());
    let headers = [(LOCATION, answer.zorai.task_url.clone())];
    (StatusCode::ACCEPTED, headers, axum::Json(answer)).into_response()
}

fn shape(record: &TaskRecord, model: String, choices: Vec<Value>) -> ChatTaskAnswer {
    ChatTaskAnswer {
        id: format!("task-{}", record.id),
        object: "chat.completion".to_owned(),
        created: record.created_at.unix(),
        model,
        choices,
        zorai: record.into(),
    }
}

/// How a request ends that does not end with a result.
struct Problem {
    code: ErrorCode,
    message: String,
    /// The task as it was last seen.
    record: Option<Box<TaskRecord>>,
    retry: bool,
}

impl From<ApiError> for Problem {
    fn from(error: ApiError) -> Self {
        let code = error.code();
        let message = ErrorBody::from(error).error.message;
        Self { code, message, record: None, retry: true }
    }
}

impl Problem {
    fn body(&self) -> ChatTaskError {
        let mut body = ErrorBody::new(self.code, &self.message);
        if let Some(record) = &self.record {
            body = body.with_status(record.status());
        }
        let zorai = self.record.as_deref().map(Into::into);
        let detail = ChatTaskErrorDetail { detail: body.error, typed_data: None, task: None, zorai };
        ChatTaskError { error: detail }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // The status, and the headers that go with it, are those of any such error.
        let (mut head, _) = ApiError::new(self.code, "").into_response().into_parts();
        head.headers.remove(http::header::CONTENT_LENGTH);
        if !self.retry {
            head.headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if let Some(location) =
            self.record.as_ref().and_then(|record| format!("/v1/tasks/{}", record.id).parse().ok())
        {
            head.headers.insert(LOCATION, location);
        }
        (head.status, head.headers, axum::Json(self.body())).into_response()
    }
}

impl Call {
    async fn answer(self) -> Response {
        match self.end().await {
            Ok((record, message)) => {
                let choice = json!({
                    "index": 0, "finish_reason": "stop", "logprobs": null,
                    "message": { "role": "assistant", "content": message, "refusal": null },
                });
                axum::Json(shape(&record, self.model, vec![choice])).into_response()
            }
            Err(problem) => problem.into_response(),
        }
    }

    /// The rest of a stream, once there is one.
    async fn events(self, whole: Whole) -> Bytes {
        match self.end().await {
            Ok((record, message)) => {
                whole.came();
                let chunk = |delta: Value, finish: Option<&str>| {
                    let choice = json!({ "index": 0, "delta": delta, "finish_reason": finish });
                    let object = "chat.completion.chunk".to_owned();
                    ChatTaskAnswer { object, ..shape(&record, self.model.clone(), vec![choice]) }
                };
                let whole = chunk(json!({ "role": "assistant", "content": message }), None);
                let last = chunk(json!({}), Some("stop"));
                [event(&whole), event(&last), "data: [DONE]\n\n".to_owned()].concat().into()
            }
            Err(problem) => event(&problem.body()).into(),
        }
    }

    /// The task with a result, and the result as text, where it is one.
    async fn end(&self) -> Result<(TaskRecord, Option<String>), Problem> {
        let left = self.patience.saturating_sub(self.begun.elapsed());
        let stopping = self.app.stopping.clone();
        let over = async {
            tokio::select! {
                record = self.over() => record.map(Some),
                () = stopping.cancelled() => Ok(None),
            }
        };
        let (code, message) = match timeout(left, over).await {
            Ok(Ok(Some(record))) => return self.outcome(record).await,
            Ok(Err(error)) => return Err(error.into()),
            Ok(Ok(None)) => (ErrorCode::Unavailable, "the relay is shutting down".to_owned()),
            Err(_) => (
                ErrorCode::DeadlineExceeded,
                format!("there is no result after {} ms", self.patience.as_millis()),
            ),
        };
        let message = format!(
            "{message}; the task goes on at /v1/tasks/{}, and the same body sent again waits for it",
            self.id
        );
        let record = self.app.market.task(self.id).await.ok().flatten().map(|stored| Box::new(stored.record));
        Err(Problem { code, message, record, retry: true })
    }

    /// The task, once it has a result or can have none any more.
    async fn over(&self) -> Result<TaskRecord, ApiError> {
        let mut changes = self.app.market.subscribe();
        loop {
            let stored = self.app.market.task(self.id).await?;
            let record = stored.ok_or_else(|| ApiError::not_found(format_args!("task {}", self.id)))?.record;
            if record.submission().is_some() || is_final(record.status()) {
                return Ok(record);
            }
            let changed = async {
                // What a follower that lags has missed may be the change.
                while changes.recv().await.is_ok_and(|change| change.record.id != self.id) {}
            };
            let _ = timeout(LOOK, changed).await;
        }
    }

    async fn outcome(&self, record: TaskRecord) -> Result<(TaskRecord, Option<String>), Problem> {
        if let Some(submission) = record.submission() {
            let digest = Digest(submission.proof.message.result_hash.0.0);
            let text = self.text(digest).await?;
            return Ok((record, text));
        }
        let (code, message) = match (record.status(), &record.failure) {
            (Status::Expired, _) => {
                (ErrorCode::TaskExpired, "its deadline passed without a result".to_owned())
            }
            (Status::Cancelled, _) => (ErrorCode::TaskFailed, "its requester cancelled it".to_owned()),
            (_, Some(failure)) => {
                let (code, message) = (&failure.code, &failure.message);
                let why = format!("all {} attempts failed, the last with {code}: {message}", record.attempts);
                (ErrorCode::TaskFailed, why)
            }
            (_, None) => (ErrorCode::TaskFailed, format!("all {} attempts failed", record.attempts)),
        };
        Err(Problem {
            code,
            message: format!("task {}: {message}", self.id),
            record: Some(Box::new(record)),
            retry: false,
        })
    }

    /// A result, where it is a text that is not too long.
    async fn text(&self, digest: Digest) -> Result<Option<String>, ApiError> {
        let artifacts = self.app.market.artifacts();
        let Some(size) = artifacts.size_of(&digest).await?.filter(|size| *size <= MAX_CONTENT_BYTES) else {
            return Ok(None);
        };
        artifacts.note_use(digest).await?;
        let Some(pieces) = artifacts.read(&digest, 0, size).await? else { return Ok(None) };
        let bytes: Vec<Bytes> = pieces.try_collect().await.map_err(|error| ApiError::internal(&error))?;
        Ok(String::from_utf8(bytes.concat()).ok())
    }
}

fn event(value: &impl serde::Serialize) -> String {
    let json = serde_json::to_string(value).expect("answers have string keys and no failing fields");
    format!("data: {json}\n\n")
}

fn is_final(status: Status) -> bool {
    match status {
        Status::Completed | Status::Resolved | Status::Cancelled | Status::Expired | Status::Failed => true,
        Status::Open | Status::Accepted | Status::Submitted | Status::Disputed => false,
    }
}

/// An answer that begins at once, and shows that it lives until there is something to say.
fn streamed(call: Call) -> Response {
    let ticks = interval_at(tokio::time::Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    let whole = Whole::default();
    let events = stream::unfold(Some((Box::pin(call.events(whole.clone())), ticks)), |state| async {
        let (mut events, mut ticks) = state?;
        tokio::select! {
            biased;
            last = &mut events => Some((last, None)),
            _ = ticks.tick() => Some((Bytes::from_static(b": keep-alive\n\n"), Some((events, ticks)))),
        }
    });
    let body = Body::from_stream(events.map(Ok::<_, std::convert::Infallible>));
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    (headers, Extension(whole), body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fields_of_the_body_itself_make_it_a_task() {
        assert!(is_task(br#"{"model":"m","model_cid":"https://a.example/m"}"#));
        assert!(is_task(br#"{"input_cid":"https://a.example/m"}"#));
        for other in [
            r#"{"messages":[{"content":"\"model_cid\""}]}"#,
            r#"{"tools":[{"model_cid":1}]}"#,
            r#"{"model_cid":null}"#,
            r#"{"model_cid":"#,
        ] {
            assert!(!is_task(other.as_bytes()), "{other}");
        }
    }
}
