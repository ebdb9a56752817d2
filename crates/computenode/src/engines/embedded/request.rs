//! What a request asks for, in OpenAI's words. Fields that mean something and are not done here are refused, by name;
//! fields that are not known are ignored.

use axum::http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::model::Model;
use super::refusal::Refusal;
use super::template::Turn;

/// The most texts that may end an answer, as OpenAI has it.
const MAX_STOPS: usize = 4;

/// The longest text that may end an answer, in bytes.
const MAX_STOP_BYTES: usize = 1024;

/// The most messages of a conversation.
const MAX_MESSAGES: usize = 4096;

/// The highest temperature, as OpenAI has it.
const MAX_TEMPERATURE: f64 = 2.0;

/// A field, and whether its value asks for something.
type Wish = (&'static str, fn(&Value) -> bool);

/// What asks for something that this engine does not do.
const NOT_DONE: [Wish; 17] = [
    ("n", is_several),
    ("best_of", is_several),
    ("tools", is_filled),
    ("functions", is_filled),
    ("response_format", |value| value["type"] != "text"),
    ("logprobs", |value| *value != Value::Bool(false)),
    ("top_logprobs", is_number),
    ("logit_bias", is_filled),
    ("presence_penalty", is_number),
    ("frequency_penalty", is_number),
    ("echo", |value| *value != Value::Bool(false)),
    ("suffix", is_filled),
    ("modalities", |value| *value != serde_json::json!(["text"])),
    ("audio", is_filled),
    ("prediction", is_filled),
    ("web_search_options", is_filled),
    ("top_k", is_number),
];

/// Which endpoint it came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Completion,
}

/// What is to be written, with everything settled.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) prompt: Vec<u32>,
    pub(super) max_tokens: usize,
    pub(super) temperature: f64,
    pub(super) top_p: Option<f64>,
    pub(super) seed: u64,
    pub(super) stop: Vec<String>,
}

/// A request as it comes.
#[derive(Debug, Deserialize)]
pub(super) struct Body {
    pub(super) model: String,
    #[serde(default)]
    messages: Vec<Message>,
    prompt: Option<Prompt>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    seed: Option<i64>,
    stop: Option<Stop>,
    pub(super) stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    content: Option<Content>,
    tool_calls: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    r#type: String,
    text: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

impl Body {
    /// Reads a body.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let body: Self = parse(bytes)?;
        for (name, asks) in NOT_DONE {
            if body.rest.get(name).is_some_and(|value| !value.is_null() && asks(value)) {
                let message = format!("the embedded engine does not do {name:?}; leave it out");
                let refusal = Refusal::new(StatusCode::BAD_REQUEST, "unsupported_parameter", message);
                return Err(refusal.of(name));
            }
        }
        Ok(body)
    }

    /// Whether a stream is to end with what it used.
    pub(super) fn wants_usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|options| options.include_usage == Some(true))
    }

    /// Settles what is to be written. Takes as long as the prompt's tokens take.
    pub(super) fn work(self, kind: Kind, model: &Model) -> Result<Work, Refusal> {
        let temperature = self.temperature.unwrap_or(1.0);
        if !(0.0..=MAX_TEMPERATURE).contains(&temperature) {
            let message = format!("temperature is a number from 0 to {MAX_TEMPERATURE}");
            return Err(Refusal::malformed(message).of("temperature"));
        }
        if self.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
            return Err(Refusal::malformed("top_p is a number above 0, and 1 at most").of("top_p"));
        }
        let wanted = self.max_completion_tokens.or(self.max_tokens);
        if wanted == Some(0) {
            return Err(Refusal::malformed("an answer has at least one token").of("max_tokens"));
        }
        let stop = stops(self.stop)?;
        let prompt = match kind {
            Kind::Chat => conversation(self.messages, model)?,
            Kind::Completion => text(self.prompt, model)?,
        };
        let (length, context) = (prompt.len(), model.context);
        let room = context.saturating_sub(length);
        if room == 0 {
            let message = format!(
                "the model's context has {context} tokens, and the prompt {length}: there is no room for an answer"
            );
            let refusal = Refusal::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message);
            return Err(refusal.of(match kind {
                Kind::Chat => "messages",
                Kind::Completion => "prompt",
            }));
        }
        let max_tokens =
            wanted.map_or(room, |wanted| usize::try_from(wanted).unwrap_or(usize::MAX).min(room));
        let seed = self.seed.map_or_else(rand::random, i64::cast_unsigned);
        Ok(Work { prompt, max_tokens, temperature, top_p: self.top_p.filter(|p| *p < 1.0), seed, stop })
    }
}

/// JSON, with the field named that is not as it should be.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes)
        .map_err(|error| Refusal::malformed(format!("the request is not understood: {error}")))
}

fn stops(stop: Option<Stop>) -> Result<Vec<String>, Refusal> {
    let stops = match stop {
        None => Vec::new(),
        Some(Stop::One(text)) => vec![text],
        Some(Stop::Several(texts)) => texts,
    };
    let fit = |text: &String| !text.is_empty() && text.len() <= MAX_STOP_BYTES;
    if stops.len() > MAX_STOPS || !stops.iter().all(fit) {
        let message = format!("stop has {MAX_STOPS} texts at most, of 1 to {MAX_STOP_BYTES} bytes");
        return Err(Refusal::malformed(message).of("stop"));
    }
    Ok(stops)
}

fn conversation(messages: Vec<Message>, model: &Model) -> Result<Vec<u32>, Refusal> {
    let wrong = |message: String| Refusal::malformed(message).of("messages");
    if messages.is_empty() || messages.len() > MAX_MESSAGES {
        return Err(wrong(format!("messages has 1 to {MAX_MESSAGES} messages")));
    }
    let Some(template) = model.template() else {
        return Err(wrong("the model has no chat template; use /v1/completions".to_owned()));
    };
    let turns: Vec<Turn> = messages.into_iter().map(turn).collect::<Result<_, _>>()?;
    let text = template.render(&turns).map_err(|problem| {
        wrong(format!("the model's chat template does not take the messages: {problem}"))
    })?;
    model.tokens(&text).map_err(wrong)
}

fn turn(message: Message) -> Result<Turn, Refusal> {
    let not_done = |what: &str| {
        let message = format!("the embedded engine reads text, not {what}");
        Err(Refusal::new(StatusCode::BAD_REQUEST, "unsupported_content", message).of("messages"))
    };
    if message.tool_calls.is_some_and(|calls| is_filled(&calls)) || message.role == "tool" {
        return not_done("calls of tools");
    }
    let content = match message.content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let mut whole = String::new();
            for part in parts {
                match (&*part.r#type, part.text) {
                    ("text", Some(text)) => whole.push_str(&text),
                    (other, _) => return not_done(&format!("parts of the type {other:?}")),
                }
            }
            whole
        }
    };
    // OpenAI's newer name for it, which templates do not know.
    let role = if message.role == "developer" { "system".to_owned() } else { message.role };
    Ok(Turn { role, content })
}

fn text(prompt: Option<Prompt>, model: &Model) -> Result<Vec<u32>, Refusal> {
    let wrong = |message: String| Refusal::malformed(message).of("prompt");
    let tokens = match prompt {
        Some(Prompt::Text(text)) => model.tokens(&text).map_err(wrong)?,
        Some(Prompt::Texts(texts)) => match texts.as_slice() {
            [text] => model.tokens(text).map_err(wrong)?,
            _ => return Err(wrong("the embedded engine takes one prompt a request".to_owned())),
        },
        Some(Prompt::Tokens(tokens)) => tokens,
        None => return Err(wrong("there is no prompt".to_owned())),
    };
    if tokens.is_empty() {
        return Err(wrong("the prompt has no tokens".to_owned()));
    }
    if tokens.iter().any(|token| model.tokenizer().id_to_token(*token).is_none()) {
        return Err(wrong("the prompt has tokens outside the model's vocabulary".to_owned()));
    }
    Ok(tokens)
}

fn is_several(value: &Value) -> bool {
    value != 1
}

fn is_number(value: &Value) -> bool {
    value.as_f64() != Some(0.0)
}

fn is_filled(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}
