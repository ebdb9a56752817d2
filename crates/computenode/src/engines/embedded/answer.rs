//! Answers in OpenAI's shapes, whole and as server-sent events.

use bytes::Bytes;
use serde_json::{Value, json};

use super::generate::Finish;
use super::request::Kind;

/// What ends a stream that is whole.
pub(super) const DONE: &[u8] = b"data: [DONE]\n\n";

/// What all parts of one answer have in common.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) kind: Kind,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) prompt_tokens: usize,
    /// Whether a stream is to end with what it used.
    pub(super) wants_usage: bool,
}

impl Shape {
    /// An answer that comes at once.
    pub(super) fn whole(&self, text: &str, finish: Finish, tokens: usize) -> Value {
        let finish = finish.as_str();
        let (object, choice) = match self.kind {
            Kind::Chat => (
                "chat.completion",
                json!({
                    "index": 0, "message": { "role": "assistant", "content": text, "refusal": null },
                    "logprobs": null, "finish_reason": finish,
                }),
            ),
            Kind::Completion => (
                "text_completion",
                json!({ "index": 0, "text": text, "logprobs": null, "finish_reason": finish }),
            ),
        };
        let mut answer = self.object(object, &json!([choice]));
        answer["usage"] = self.usage(tokens);
        answer
    }

    /// The first part of a stream, where there is one before any text.
    pub(super) fn begin(&self) -> Option<Bytes> {
        let delta = json!({ "role": "assistant", "content": "" });
        (self.kind == Kind::Chat).then(|| self.part(&self.choice(&delta, None)))
    }

    /// A piece of text.
    pub(super) fn piece(&self, text: &str) -> Bytes {
        self.part(&self.choice(&json!({ "content": text }), None))
    }

    /// The last part, and what was used where that is wanted.
    pub(super) fn end(&self, finish: Finish, tokens: usize) -> Bytes {
        let mut bytes = self.part(&self.choice(&json!({}), Some(finish))).to_vec();
        if self.wants_usage {
            let mut last = self.object(self.part_name(), &json!([]));
            last["usage"] = self.usage(tokens);
            bytes.extend_from_slice(&event(&last));
        }
        bytes.extend_from_slice(DONE);
        bytes.into()
    }

    fn part_name(&self) -> &'static str {
        match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Completion => "text_completion",
        }
    }

    fn part(&self, choice: &Value) -> Bytes {
        let mut part = self.object(self.part_name(), &json!([choice]));
        if self.wants_usage {
            part["usage"] = Value::Null;
        }
        event(&part)
    }

    fn choice(&self, delta: &Value, finish: Option<Finish>) -> Value {
        let finish = finish.map(Finish::as_str);
        match self.kind {
            Kind::Chat => {
                json!({ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish })
            }
            Kind::Completion => {
                let text = delta["content"].as_str().unwrap_or_default();
                json!({ "index": 0, "text": text, "logprobs": null, "finish_reason": finish })
            }
        }
    }

    fn object(&self, name: &str, choices: &Value) -> Value {
        json!({
            "id": self.id, "object": name, "created": self.created, "model": self.model, "choices": choices,
        })
    }

    fn usage(&self, tokens: usize) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens, "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        })
    }
}

/// A server-sent event.
pub(super) fn event(data: &Value) -> Bytes {
    format!("data: {data}\n\n").into()
}
