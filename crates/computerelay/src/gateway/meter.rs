//! What passes from an engine to a client: counted, hashed and held to limits, and not changed.
//!
//! Of a stream of server-sent events only whole lines are passed on, so that whatever the relay has to say after a stream that broke
//! stands on a line of its own.

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memchr_iter, memmem, memrchr};
use rpc::inference::{EngineUsage, InferenceKind, UsageSource};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::breaker::Failure;
use super::nesting::Nesting;
use super::words;

/// The longest line of a stream, in bytes.
pub(super) const MAX_LINE_BYTES: usize = 1 << 20;
/// The most tokens each way that are believed of one answer: no sum of them overflows.
pub(super) const MAX_TOKENS: u64 = 1 << 32;
/// As much of the beginning and the end of an answer that is not kept is looked at for what it used, in bytes.
const EDGE_BYTES: usize = 4096;

/// What form an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Server-sent events.
    Events,
    /// Anything else: JSON, as a rule.
    Whole,
}

/// What cannot be passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("its answer is longer than {0} bytes")]
    TooLong(u64),
    #[error("a line of its stream is longer than {MAX_LINE_BYTES} bytes")]
    LongLine,
    #[error("its stream has comments and no event")]
    NoEvent,
    #[error("its stream is malformed")]
    Malformed,
    #[error("its answer ended before it was done")]
    Unfinished,
}

impl Fault {
    /// How bad it is: an answer may break off, but no engine sends the rest.
    pub(super) fn failure(&self) -> Failure {
        match self {
            Self::TooLong(_) | Self::LongLine | Self::NoEvent | Self::Malformed => Failure::Grave,
            Self::Unfinished => Failure::Plain,
        }
    }
}

/// What an engine says within its stream that keeps it from going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EngineError {
    /// The request is wrong: any host would say so.
    Request,
    /// The engine failed, for all that it says.
    Own,
}

/// Tokens, by the engine's word or by the count of pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) prompt: u64,
    pub(super) completion: u64,
    pub(super) source: UsageSource,
}

#[derive(Deserialize)]
struct Carrier {
    #[serde(default)]
    usage: Option<EngineUsage>,
    #[serde(default)]
    response: Option<Inner>,
}

#[derive(Deserialize)]
struct Inner {
    #[serde(default)]
    usage: Option<EngineUsage>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Meter {
    form: Form,
    kind: InferenceKind,
    max: u64,
    total: u64,
    hash: Sha256,
    /// How far it has come, of JSON that has to be whole.
    json: Option<Nesting>,
    /// The line that is not whole yet; of another form than events, the last bytes.
    tail: BytesMut,
    deltas: u64,
    /// Tokens in and out, by the engine's word.
    usage: Option<(u64, u64)>,
    has_begun: bool,
    is_done: bool,
    error: Option<EngineError>,
    /// In its own words.
    said: Option<String>,
    /// Whether what was passed on ends with an event's end.
    at_boundary: bool,
}

impl Meter {
    pub(super) fn new(form: Form, kind: InferenceKind, max: u64) -> Self {
        let hash = Sha256::new();
        Self {
            form,
            kind,
            max,
            total: 0,
            hash,
            json: None,
            tail: BytesMut::new(),
            deltas: 0,
            usage: None,
            has_begun: false,
            is_done: false,
            error: None,
            said: None,
            at_boundary: true,
        }
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// The answer has to be one whole JSON text.
    pub(super) fn expect_json(&mut self) {
        self.json = Some(Nesting::default());
    }

    /// Takes a piece in, and gives what can be passed on: nothing, where no line is whole yet.
    pub(super) fn take(&mut self, piece: Bytes) -> Result<Bytes, Fault> {
        self.total += piece.len() as u64;
        if self.total > self.max {
            return Err(Fault::TooLong(self.max));
        }
        self.hash.update(&piece);
        if let Some(json) = &mut self.json {
            json.pass(&piece);
        }
        match self.form {
            Form::Whole => {
                self.edges(&piece);
                Ok(piece)
            }
            Form::Events => self.lines(piece),
        }
    }

    /// The answer ended: gives the rest.
    pub(super) fn end(&mut self) -> Result<Bytes, Fault> {
        match self.form {
            Form::Whole => {
                self.find_usage();
                let is_whole = self.json.as_ref().is_none_or(Nesting::is_whole);
                if is_whole { Ok(Bytes::new()) } else { Err(Fault::Unfinished) }
            }
            Form::Events => {
                let rest = self.tail.split().freeze();
                if !rest.is_empty() {
                    self.line(&rest)?;
                    self.at_boundary = false;
                }
                // Embeddings are not streamed: what such a stream would end with, nobody says.
                let needs_end = self.kind != InferenceKind::Embeddings;
                if needs_end && !self.is_done { Err(Fault::Unfinished) } else { Ok(rest) }
            }
        }
    }

    /// Reads what a whole answer says of its use.
    pub(super) fn read_whole(&mut self, body: &[u8]) {
        if self.usage.is_none() {
            self.usage = usage_in(body);
        }
    }

    /// What was used, so far.
    pub(super) fn count(&self) -> Count {
        match self.usage {
            Some((prompt, completion)) => Count {
                prompt: prompt.min(MAX_TOKENS),
                completion: completion.min(MAX_TOKENS),
                source: UsageSource::Usage,
            },
            None => Count { prompt: 0, completion: self.deltas, source: UsageSource::Deltas },
        }
    }

    /// SHA-256 of all that came.
    pub(super) fn hash(&self) -> [u8; 32] {
        self.hash.clone().finalize().into()
    }

    /// Whether an event with data came: what is no more than a comment begins no answer.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether the event came that ends a stream.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// What the engine says that keeps it from going on, if it said so.
    pub(super) fn error(&self) -> Option<EngineError> {
        self.error
    }

    /// The engine's words for it.
    pub(super) fn said(&self) -> Option<&str> {
        self.said.as_deref()
    }

    /// Whether an event of the relay's own can follow at once.
    pub(super) fn at_boundary(&self) -> bool {
        self.at_boundary
    }

    fn lines(&mut self, piece: Bytes) -> Result<Bytes, Fault> {
        let Some(last) = memrchr(b'\n', &piece) else {
            self.tail.extend_from_slice(&piece);
            return if self.tail.len() > MAX_LINE_BYTES { Err(Fault::LongLine) } else { Ok(Bytes::new()) };
        };
        let whole = if self.tail.is_empty() {
            piece.slice(..=last)
        } else {
            self.tail.extend_from_slice(&piece[..=last]);
            self.tail.split().freeze()
        };
        self.tail.extend_from_slice(&piece[last + 1..]);
        let mut start = 0;
        for end in memchr_iter(b'\n', &whole) {
            self.line(&whole[start..end])?;
            start = end + 1;
        }
        let last = whole.strip_suffix(b"\n").map(|rest| rest.strip_suffix(b"\r").unwrap_or(rest));
        self.at_boundary = last.is_some_and(|rest| rest.is_empty() || rest.ends_with(b"\n"));
        Ok(whole)
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Fault> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > MAX_LINE_BYTES {
            return Err(Fault::LongLine);
        }
        let is_other = || [&b":"[..], b"event:", b"id:", b"retry:"].iter().any(|one| line.starts_with(one));
        match line.strip_prefix(b"data:") {
            Some(data) => self.data(data.trim_ascii()),
            None if line.is_empty() || is_other() => Ok(()),
            None => Err(Fault::Malformed),
        }
    }

    fn data(&mut self, data: &[u8]) -> Result<(), Fault> {
        self.has_begun = true;
        if data == b"[DONE]" {
            self.is_done = true;
            return Ok(());
        }
        if !(data.starts_with(b"{") && data.ends_with(b"}")) {
            return Err(Fault::Malformed);
        }
        let is_last = self.kind == InferenceKind::Responses && is_last(data);
        if is_last || data.starts_with(b"{\"error\"") {
            self.error = self.error.or_else(|| error_in(data));
            self.said = self.said.take().or_else(|| self.error.and_then(|_| words::said(data)));
        }
        // An engine's own error ends its stream.
        self.is_done |= is_last || self.error.is_some();
        if has_usage(data) {
            self.usage = usage_in(data).or(self.usage);
        }
        self.deltas += u64::from(has_text(self.kind, data));
        Ok(())
    }

    /// Keeps the last bytes, and looks at the first.
    fn edges(&mut self, piece: &[u8]) {
        if self.total == piece.len() as u64 {
            self.usage = usage_at(&piece[..piece.len().min(EDGE_BYTES)]);
        }
        if piece.len() >= EDGE_BYTES {
            self.tail.clear();
        }
        self.tail.extend_from_slice(&piece[piece.len().saturating_sub(EDGE_BYTES)..]);
        if self.tail.len() > 2 * EDGE_BYTES {
            let extra = self.tail.len() - EDGE_BYTES;
            self.tail = BytesMut::from(&self.tail[extra..]);
        }
    }

    fn find_usage(&mut self) {
        if self.usage.is_none() {
            self.usage = usage_at(&self.tail);
        }
    }
}

/// Whether there is a `usage` block; in a text its quotes would be escaped.
fn has_usage(data: &[u8]) -> bool {
    memmem::find(data, b"\"usage\":").is_some_and(|at| data[at + 8..].trim_ascii_start().starts_with(b"{"))
}

/// Whether this event ends a stream of `/v1/responses`; in a text its quotes would be escaped.
fn is_last(data: &[u8]) -> bool {
    let ends = [
        &b"\"response.completed\""[..],
        b"\"response.incomplete\"",
        b"\"response.failed\"",
        b"\"type\":\"error\"",
        b"\"type\": \"error\"",
    ];
    ends.iter().any(|end| memmem::find(data, end).is_some())
}

/// What an event says that keeps the engine from going on, if it says so.
fn error_in(data: &[u8]) -> Option<EngineError> {
    #[derive(Deserialize)]
    struct Event {
        #[serde(default)]
        error: Option<Value>,
        #[serde(default, rename = "type")]
        form: Option<String>,
    }
    let Ok(Event { error, form }) = serde_json::from_slice(data) else { return Some(EngineError::Own) };
    let is_error = error.is_some() || matches!(form.as_deref(), Some("error" | "response.failed"));
    is_error.then(|| {
        let error = error.unwrap_or_default();
        let blames_request = matches!(error["code"].as_u64(), Some(400 | 413 | 422))
            || matches!(error["type"].as_str(), Some("invalid_request_error" | "BadRequestError"));
        if blames_request { EngineError::Request } else { EngineError::Own }
    })
}

fn usage_in(json: &[u8]) -> Option<(u64, u64)> {
    let carrier: Carrier = serde_json::from_slice(json).ok()?;
    carrier.usage.or(carrier.response.and_then(|inner| inner.usage)).and_then(EngineUsage::tokens)
}

/// The last `usage` block of a part of an answer.
fn usage_at(part: &[u8]) -> Option<(u64, u64)> {
    let at = memmem::rfind(part, b"\"usage\":")? + 8;
    let usage = serde_json::Deserializer::from_slice(&part[at..]).into_iter::<EngineUsage>().next()?;
    usage.ok()?.tokens()
}

/// Whether an event carries a piece of the answer: as a rule, a token.
fn has_text(kind: InferenceKind, data: &[u8]) -> bool {
    match kind {
        InferenceKind::Chat => {
            is_filled(data, b"\"content\":")
                || is_filled(data, b"\"reasoning_content\":")
                || is_filled(data, b"\"reasoning\":")
                || memmem::find(data, b"\"tool_calls\":").is_some()
        }
        InferenceKind::Completions => is_filled(data, b"\"text\":"),
        InferenceKind::Responses => memmem::find(data, b".delta\"").is_some(),
        InferenceKind::Embeddings => false,
    }
}

/// Whether a field holds a text that is not empty.
fn is_filled(data: &[u8], field: &[u8]) -> bool {
    memmem::find(data, field).is_some_and(|at| {
        let value = data[at + field.len()..].trim_ascii_start();
        memchr(b'"', value) == Some(0) && value.get(1) != Some(&b'"')
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: u64 = 1 << 30;

    fn events(kind: InferenceKind) -> Meter {
        Meter::new(Form::Events, kind, MAX)
    }

    const CHAT: &str = concat!(
        ": hello\n\n",
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"usage\":null}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"a \\\"usage\\\":{\"}}]}\r\n\r\n",
        "data: {\"choices\":[{\"delta\":{\"content\": \"b\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{}]}}]}\n\n",
        "data: [DONE]\n\n"
    );

    proptest! {
        #[test]
        fn bytes_pass_unchanged_however_they_are_cut(cuts in prop::collection::vec(0..CHAT.len(), 0..20)) {
            let mut cuts = cuts;
            cuts.extend([0, CHAT.len()]);
            cuts.sort_unstable();
            let (mut meter, mut passed) = (events(InferenceKind::Chat), Vec::new());
            for cut in cuts.windows(2) {
                let piece = Bytes::from_static(&CHAT.as_bytes()[cut[0]..cut[1]]);
                let out = meter.take(piece).unwrap();
                prop_assert!(out.is_empty() || out.ends_with(b"\n"));
                passed.extend_from_slice(&out);
            }
            passed.extend_from_slice(&meter.end().unwrap());
            prop_assert_eq!(passed, CHAT.as_bytes());
            let count = Count { prompt: 0, completion: 3, source: UsageSource::Deltas };
            prop_assert_eq!(meter.count(), count);
            prop_assert_eq!(meter.hash(), <[u8; 32]>::from(Sha256::digest(CHAT)));
            prop_assert!(meter.at_boundary());
        }
    }

    #[test]
    fn usage_blocks_count_before_deltas() {
        let of = |kind, stream: &'static str| {
            let mut meter = events(kind);
            meter.take(stream.into()).unwrap();
            let count = meter.count();
            (count.prompt, count.completion, count.source)
        };
        let chat =
            "data: {\"choices\":[],\"usage\": {\"prompt_tokens\":7,\"completion_tokens\":9,\"x\":{}}}\n\n";
        assert_eq!(of(InferenceKind::Chat, chat), (7, 9, UsageSource::Usage));
        let responses = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":1,\"output_tokens\":2}}}\n\n";
        assert_eq!(of(InferenceKind::Responses, responses), (1, 2, UsageSource::Usage));
        let both = "data: {\"usage\":{\"prompt_tokens\":3,\"input_tokens\":3,\"completion_tokens\":4,\"output_tokens\":4}}\n\n";
        assert_eq!(of(InferenceKind::Chat, both), (3, 4, UsageSource::Usage));
        let nothing = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}],\"usage\":{}}\n\n";
        assert_eq!(of(InferenceKind::Chat, nothing), (0, 1, UsageSource::Deltas));
        let text = "data: {\"choices\":[{\"text\":\"x\"}]}\n\n";
        assert_eq!(of(InferenceKind::Completions, text), (0, 1, UsageSource::Deltas));

        let mut whole = Meter::new(Form::Whole, InferenceKind::Embeddings, MAX);
        let front = b"{\"usage\":{\"prompt_tokens\":3},\"data\":[".to_vec();
        whole.take(front.into()).unwrap();
        whole.take(vec![b' '; 3 * EDGE_BYTES].into()).unwrap();
        whole.end().unwrap();
        assert_eq!(whole.count().prompt, 3);
        let mut whole = Meter::new(Form::Whole, InferenceKind::Chat, MAX);
        whole.take(vec![b' '; 3 * EDGE_BYTES].into()).unwrap();
        whole
            .take(Bytes::from_static(b"],\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":5},\"z\":1}"))
            .unwrap();
        whole.end().unwrap();
        assert_eq!((whole.count().prompt, whole.count().completion), (4, 5));
    }

    #[test]
    fn what_no_engine_sends_is_a_fault() {
        let fault = |stream: &'static str| {
            let mut meter = events(InferenceKind::Chat);
            meter.take(stream.into()).and_then(|_| meter.end()).unwrap_err()
        };
        for malformed in ["<html>\n", "data: hello\n\n", "data: {\n", "data\n", "\0\n", "data:[DONE\n"] {
            assert_eq!(fault(malformed), Fault::Malformed, "{malformed:?}");
        }
        assert_eq!(fault("data: {}\n\n"), Fault::Unfinished);
        assert_eq!(fault("data: {\"a\""), Fault::Malformed, "it broke off within a line");
        let mut meter = events(InferenceKind::Chat);
        let piece = Bytes::from(vec![b'x'; 4096]);
        let long = (0..1000).find_map(|_| meter.take(piece.clone()).err());
        assert_eq!(long, Some(Fault::LongLine));
        let mut meter = Meter::new(Form::Whole, InferenceKind::Chat, 10);
        assert_eq!(meter.take(piece), Err(Fault::TooLong(10)));
    }

    #[test]
    fn comments_begin_no_answer_and_responses_end_by_their_own_events() {
        let mut meter = events(InferenceKind::Responses);
        meter.take(": processing\n\nevent: response.created\n".into()).unwrap();
        assert!(!meter.has_begun());
        meter.take("data: {\"type\":\"response.created\"}\n\n".into()).unwrap();
        assert!(meter.has_begun());
        assert_eq!(meter.end(), Err(Fault::Unfinished));
        meter.take("data: {\"text\":\"\\\"response.completed\\\"\"}\n\n".into()).unwrap();
        assert_eq!(meter.end(), Err(Fault::Unfinished), "it is only spoken of");
        meter.take("data: {\"type\":\"response.completed\"}\n\n".into()).unwrap();
        assert!(meter.end().is_ok());
    }

    #[test]
    fn an_engine_says_whether_the_request_keeps_it_from_going_on() {
        use InferenceKind::{Chat, Responses};
        for (kind, event, said) in [
            (Chat, r#"{"error":{"message":"m","type":"server_error","code":500}}"#, EngineError::Own),
            (Chat, r#"{"error":"model runner has gone"}"#, EngineError::Own),
            (
                Chat,
                r#"{"error":{"message":"m","type":"invalid_request_error","code":null}}"#,
                EngineError::Request,
            ),
            (Chat, r#"{"error": {"message":"m","type":"x","param":null,"code":400}}"#, EngineError::Request),
            (
                Responses,
                r#"{"type":"response.failed","response":{"error":{"code":"server_error"}}}"#,
                EngineError::Own,
            ),
            (Responses, r#"{"type":"error","code":"server_error","message":"m"}"#, EngineError::Own),
        ] {
            let mut meter = events(kind);
            meter.take(format!("data: {event}\n\n").into()).unwrap();
            assert_eq!((meter.error(), meter.end()), (Some(said), Ok(Bytes::new())), "{event}");
        }
        let mut meter = events(Responses);
        meter
            .take("data: {\"type\":\"response.completed\",\"response\":{\"error\":null}}\n\n".into())
            .unwrap();
        assert_eq!((meter.error(), meter.end()), (None, Ok(Bytes::new())));
        let mut meter = events(Chat);
        meter.take("data: {\"error\":null,\"choices\":[]}\n\n".into()).unwrap();
        assert_eq!((meter.error(), meter.end()), (None, Err(Fault::Unfinished)), "nothing keeps it");
    }

    #[test]
    fn an_engines_own_error_ends_its_stream() {
        let mut meter = events(InferenceKind::Chat);
        meter.take("data: {\"error\":{\"message\":\"out of memory\"}}\n\n".into()).unwrap();
        assert!(meter.end().is_ok());
        let mut meter = events(InferenceKind::Chat);
        assert!(!meter.take("data: {}\n".into()).unwrap().is_empty() && !meter.at_boundary());
        assert!(meter.end().is_err() && !meter.at_boundary());
    }
}
