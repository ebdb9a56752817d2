//! What requests a task wants sent.
//!
//! An input that is one JSON object is one request: `{"method", "url", "body"}`, of which `body` is enough, or the body
//! itself. Else it has a JSON object on each line, in OpenAI's batch format: `custom_id`, `method` (`POST`), `url` (one
//! of the four endpoints) and `body`. Where `url` is missing, the body tells: `messages` make a chat, `prompt` a
//! completion, and `input` embeddings, or a response where the model has no embeddings. A body without `model` gets the
//! task's. Blank lines do not count.

use std::io;
use std::path::{Path, PathBuf};

use artifact::Digest;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use rpc::inference::InferenceKind;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::runtime::{MAX_MESSAGE_BYTES, RunCode, RunError};

/// The most lines of one task.
pub(super) const MAX_LINES: u64 = 50_000;

/// The longest line, in bytes: images come inside it.
pub(super) const MAX_LINE_BYTES: usize = 8 << 20;

/// The longest `custom_id`, in bytes.
const MAX_CUSTOM_ID_BYTES: usize = 512;

/// An input that was looked at once.
pub(super) struct Input {
    path: PathBuf,
    lines: u64,
    /// The whole input, if it is one request.
    single: Option<Vec<u8>>,
}

/// One request, not read yet.
pub(super) struct Line {
    /// Its number among the requests, from zero.
    pub(super) index: u64,
    pub(super) digest: Digest,
    /// `None` where it was too long to keep.
    bytes: Option<Vec<u8>>,
    single: bool,
}

/// One request, ready to be sent.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) custom_id: Option<String>,
    pub(super) path: &'static str,
    pub(super) body: String,
}

/// Why a line has no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct LineError {
    code: &'static str,
    message: String,
}

impl LineError {
    pub(super) fn new(code: &'static str, message: &str) -> Self {
        let message = &message[..message.floor_char_boundary(MAX_MESSAGE_BYTES)];
        Self { code, message: message.to_owned() }
    }
}

#[derive(Deserialize)]
struct BatchLine<'a> {
    #[serde(default)]
    custom_id: Option<String>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    url: Option<String>,
    #[serde(borrow, default)]
    body: Option<&'a RawValue>,
}

/// What of a body matters here.
#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    messages: Option<IgnoredAny>,
    #[serde(default)]
    prompt: Option<IgnoredAny>,
    #[serde(default)]
    input: Option<IgnoredAny>,
}

impl Input {
    /// Counts the lines of a file, and refuses what has none that could be meant.
    pub(super) async fn look(path: &Path) -> Result<Self, RunError> {
        let unreadable = |error: io::Error| bad(format!("cannot read the input: {error}"));
        let size = tokio::fs::metadata(path).await.map_err(unreadable)?.len();
        if size <= MAX_LINE_BYTES as u64 {
            let bytes = tokio::fs::read(path).await.map_err(unreadable)?;
            if let Ok(line) = read_object::<BatchLine<'_>>(&bytes) {
                // One line of a batch is a batch.
                if line.custom_id.is_none() {
                    return Ok(Self { path: path.to_owned(), lines: 1, single: Some(bytes) });
                }
            }
        }
        let (mut lines, mut objects) = (0, 0_u64);
        let mut reading = read_lines(path.to_owned());
        while let Some(line) = reading.try_next().await.map_err(unreadable)? {
            lines += 1;
            if lines > MAX_LINES {
                return Err(bad(format!("the input has more than {MAX_LINES} lines")));
            }
            objects += u64::from(line.is_none_or(|line| line.trim_ascii_start().starts_with(b"{")));
        }
        if objects == 0 {
            return Err(bad("the input is neither a request nor lines of requests in JSON".to_owned()));
        }
        Ok(Self { path: path.to_owned(), lines, single: None })
    }

    /// How many requests it holds.
    pub(super) fn count(&self) -> u64 {
        self.lines
    }

    /// The requests, read as they are wanted.
    pub(super) fn lines(&self) -> BoxStream<'static, Result<Line, RunError>> {
        let line = |index, bytes: Option<Vec<u8>>, single| Line {
            index,
            digest: Digest::of(bytes.as_deref().unwrap_or_default()),
            bytes,
            single,
        };
        if let Some(bytes) = &self.single {
            return stream::iter([Ok(line(0, Some(bytes.clone()), true))]).boxed();
        }
        let unreadable = |error| RunError::new(RunCode::Internal, format!("the input: {error}"));
        let lines = read_lines(self.path.clone()).map_err(unreadable).enumerate();
        lines.map(move |(index, bytes)| Ok(line(index as u64, bytes?, false))).boxed()
    }
}

/// The lines of a file that are not blank; `None` for one that is too long.
fn read_lines(path: PathBuf) -> BoxStream<'static, io::Result<Option<Vec<u8>>>> {
    let opened = stream::once(File::open(path)).map_ok(BufReader::new);
    let lines = opened.map_ok(|reader| {
        stream::try_unfold(reader, async |mut reader| {
            loop {
                let Some(line) = read_line(&mut reader).await? else { return Ok(None) };
                if line.as_ref().is_none_or(|line| !line.trim_ascii().is_empty()) {
                    return Ok(Some((line, reader)));
                }
            }
        })
    });
    lines.try_flatten().boxed()
}

/// One line, `Some(None)` if it is too long, `None` at the end.
pub(super) async fn read_line(reader: &mut BufReader<File>) -> io::Result<Option<Option<Vec<u8>>>> {
    let mut line = Vec::new();
    let limit = MAX_LINE_BYTES as u64 + 1;
    if (&mut *reader).take(limit).read_until(b'\n', &mut line).await? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') || (line.len() as u64) < limit {
        return Ok(Some(Some(line)));
    }
    loop {
        line.clear();
        let read = (&mut *reader).take(limit).read_until(b'\n', &mut line).await?;
        if read == 0 || line.last() == Some(&b'\n') {
            return Ok(Some(None));
        }
    }
}

impl Line {
    /// The request that it holds, for a model whose engine answers these kinds.
    pub(super) fn request(
        &self,
        model: &str,
        kinds: &[InferenceKind],
    ) -> Result<Request, (Option<String>, LineError)> {
        let wrong = |code, message: &str| LineError::new(code, message);
        let Some(bytes) = &self.bytes else {
            let message = format!("the line is longer than {MAX_LINE_BYTES} bytes");
            return Err((None, wrong("line_too_long", &message)));
        };
        let text = std::str::from_utf8(bytes.trim_ascii())
            .map_err(|_| (None, wrong("invalid_json", "the line is no UTF-8")))?;
        let line: BatchLine<'_> = read_object(text.as_bytes())
            .map_err(|error| (None, wrong("invalid_json", &format!("the line is no request: {error}"))))?;
        let custom_id = line.custom_id.clone();
        let request = line.request(text, self.single, model, kinds);
        request.map_err(|error| (custom_id.filter(|id| id.len() <= MAX_CUSTOM_ID_BYTES), error))
    }
}

impl BatchLine<'_> {
    fn request(
        self,
        text: &str,
        single: bool,
        model: &str,
        kinds: &[InferenceKind],
    ) -> Result<Request, LineError> {
        if !single && self.custom_id.as_ref().is_none_or(|id| id.is_empty() || id.len() > MAX_CUSTOM_ID_BYTES)
        {
            let message = format!("custom_id must have 1 to {MAX_CUSTOM_ID_BYTES} bytes");
            return Err(LineError::new("invalid_custom_id", &message));
        }
        if self.method.as_ref().is_some_and(|method| !method.eq_ignore_ascii_case("POST")) {
            return Err(LineError::new("invalid_method", "method must be POST"));
        }
        let text = match self.body {
            Some(body) => body.get(),
            None if single => text,
            None => return Err(LineError::new("missing_body", "body is missing")),
        };
        let body: Body = read_object(text.as_bytes())
            .map_err(|error| LineError::new("invalid_body", &format!("body: {error}")))?;
        if body.stream == Some(true) {
            return Err(LineError::new("stream_not_supported", "a batch has no streams: leave `stream` out"));
        }
        let kind = match &self.url {
            Some(url) => InferenceKind::ALL.into_iter().find(|kind| kind.path() == url),
            None => body.kind(kinds),
        };
        let kind = kind.ok_or_else(|| {
            let known: Vec<_> = InferenceKind::ALL.iter().map(|kind| kind.path()).collect();
            LineError::new("invalid_url", &format!("url must be one of {}", known.join(", ")))
        })?;
        let body = match &body.model {
            Some(named) if named != model => {
                let message = format!("the body names the model {named:?}, the task {model:?}");
                return Err(LineError::new("model_mismatch", &message));
            }
            Some(_) => text.to_owned(),
            None => with_model(text, model),
        };
        Ok(Request { custom_id: self.custom_id, path: kind.path(), body })
    }
}

impl Body {
    /// The endpoint that takes such a body.
    fn kind(&self, kinds: &[InferenceKind]) -> Option<InferenceKind> {
        if self.messages.is_some() {
            Some(InferenceKind::Chat)
        } else if self.prompt.is_some() {
            Some(InferenceKind::Completions)
        } else if self.input.is_some() && kinds.contains(&InferenceKind::Embeddings) {
            Some(InferenceKind::Embeddings)
        } else {
            self.input.as_ref().map(|_| InferenceKind::Responses)
        }
    }
}

/// Reads a JSON object. Serde by itself would take a list of its fields too.
fn read_object<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, serde_json::Error> {
    if text.trim_ascii_start().starts_with(b"[") {
        return Err(serde::de::Error::custom("a list, not an object"));
    }
    serde_json::from_slice(text)
}

/// A JSON object with a model put in front of its other fields, which stay as they are.
fn with_model(object: &str, model: &str) -> String {
    let rest = object.trim_start().strip_prefix('{').unwrap_or_default();
    let comma = if rest.trim_start().starts_with('}') { "" } else { "," };
    format!("{{\"model\":{}{comma}{rest}", serde_json::Value::from(model))
}

fn bad(message: String) -> RunError {
    RunError::new(RunCode::BadInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn requests(input: &[u8]) -> Result<Vec<Result<Request, (Option<String>, LineError)>>, RunError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("input");
        std::fs::write(&path, input).unwrap();
        let input = Input::look(&path).await?;
        let lines: Vec<Line> = input.lines().try_collect().await?;
        assert_eq!(lines.len() as u64, input.count());
        Ok(lines.iter().map(|line| line.request("m", &[InferenceKind::Embeddings])).collect())
    }

    #[tokio::test]
    async fn single_requests_are_read() {
        for (input, path, body) in [
            (r#"{"messages":[]}"#, "/v1/chat/completions", r#"{"model":"m","messages":[]}"#),
            (
                "{\n \"prompt\": \"a\",\n \"model\": \"m\"}\n",
                "/v1/completions",
                "{\n \"prompt\": \"a\",\n \"model\": \"m\"}",
            ),
            (r#"{"body":{"input":"a"}}"#, "/v1/embeddings", r#"{"model":"m","input":"a"}"#),
            (r#"{"url":"/v1/responses","body":{}}"#, "/v1/responses", r#"{"model":"m"}"#),
        ] {
            let requests = requests(input.as_bytes()).await.unwrap();
            let request = requests[0].as_ref().unwrap();
            assert_eq!((request.path, request.body.as_str()), (path, body));
            assert_eq!(request.custom_id, None);
        }
    }

    #[tokio::test]
    async fn wrong_lines_have_errors_of_their_own() {
        let long = format!(r#"{{"custom_id":"l","body":{{"prompt":"{}"}}}}"#, "x".repeat(MAX_LINE_BYTES));
        let lines = [
            r#"{"custom_id":"1","method":"POST","url":"/v1/completions","body":{"prompt":"a"}}"#,
            "",
            "{",
            r#"{"body":{"prompt":"a"}}"#,
            r#"{"custom_id":"2","method":"GET","body":{"prompt":"a"}}"#,
            r#"{"custom_id":"3","url":"/v1/files","body":{"prompt":"a"}}"#,
            r#"{"custom_id":"4","body":{"prompt":"a","stream":true}}"#,
            r#"{"custom_id":"5","body":{"prompt":"a","model":"other"}}"#,
            r#"{"custom_id":"6","body":[]}"#,
            r#"{"custom_id":"7"}"#,
            &long,
            r#"{"custom_id":"8","body":{"prompt":"a"}}"#,
        ];
        let requests = requests(lines.join("\r\n").as_bytes()).await.unwrap();
        let codes: Vec<_> = requests
            .iter()
            .map(|request| request.as_ref().map_or_else(|(_, error)| error.code, |_| ""))
            .collect();
        assert_eq!(
            codes,
            [
                "",
                "invalid_json",
                "invalid_custom_id",
                "invalid_method",
                "invalid_url",
                "stream_not_supported",
                "model_mismatch",
                "invalid_body",
                "missing_body",
                "line_too_long",
                ""
            ]
        );
        assert_eq!(requests[4].as_ref().unwrap_err().0.as_deref(), Some("3"));
    }

    #[tokio::test]
    async fn what_is_no_jsonl_is_refused() {
        let many = "{}\n".repeat(MAX_LINES as usize + 1);
        for input in ["", "\n\n", "hello\nworld", "[1]", "[]", "\u{0}\u{1}", &many] {
            let error = requests(input.as_bytes()).await.unwrap_err();
            assert_eq!(error.code, RunCode::BadInput, "{}", &input[..input.len().min(20)]);
        }
    }
}
