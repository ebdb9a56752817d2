//! One chat completion: the request's bytes, its text as it comes, and what became of it.

use std::time::{Duration, Instant};

use reqwest::Response;
use reqwest::header::CONTENT_TYPE;
use rpc::REQUEST_ID_HEADER;
use rpc::inference::{EngineUsage, PROVIDER_HEADER};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::{Context as _, Exit, Failure, Outcome};
use crate::refusal::Refusal;
use crate::relay::{Relay, causes};
use crate::sse::Parser;

/// The longest answer that is taken, in bytes as they come.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// What engines call it when a conversation is longer than the model's context.
const TOO_LONG_CODES: [&str; 2] = ["context_length_exceeded", "exceed_context_size_error"];
/// A speed is told of answers with so many tokens after the first at least: what came before says more of the network than of the model.
const MIN_TIMED_TOKENS: u64 = 10;
/// And only if these took so long, in seconds: less is how long a packet takes.
const MIN_TIMED_SECS: f64 = 0.2;
/// Words of engines that have no code for it.
const TOO_LONG_WORDS: [&str; 3] = ["maximum context length", "context window", "context size"];

/// A message of a conversation, as OpenAI's API has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Message {
    /// Whose it is.
    pub(crate) role: Role,
    /// Its text.
    pub(crate) content: String,
}

/// Whose a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// The one who set the conversation up.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

/// The body of a request for a chat completion.
#[derive(Debug, Serialize)]
pub(crate) struct Body<'a> {
    /// The model.
    pub(crate) model: &'a str,
    /// The conversation.
    pub(crate) messages: &'a [&'a Message],
    /// How much chance there is in the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) temperature: Option<f64>,
    /// The longest answer, in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_tokens: Option<u32>,
    stream: bool,
    stream_options: StreamOptions,
}

#[derive(Debug, Serialize)]
struct StreamOptions {
    include_usage: bool,
}

impl<'a> Body<'a> {
    /// A body whose answer comes piece by piece, and ends with what it used.
    pub(crate) fn new(model: &'a str, messages: &'a [&'a Message]) -> Self {
        let stream_options = StreamOptions { include_usage: true };
        Self { model, messages, temperature: None, max_tokens: None, stream: true, stream_options }
    }

    /// Its bytes, which the provider signs the hash of.
    pub(crate) fn to_bytes(&self) -> Outcome<Vec<u8>> {
        serde_json::to_vec(self).map_err(Failure::failed)
    }
}

/// What an answer used, by the engine's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    /// Tokens in.
    pub(crate) prompt_tokens: u64,
    /// Tokens out.
    pub(crate) completion_tokens: u64,
}

impl Usage {
    /// What a `usage` block says, if it says anything.
    pub(crate) fn of(block: EngineUsage) -> Option<Self> {
        let (prompt_tokens, completion_tokens) = block.tokens()?;
        Some(Self { prompt_tokens, completion_tokens })
    }
}

/// A piece of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// Of its text.
    Text(&'a str),
    /// Of what the model says to itself before.
    Reasoning(&'a str),
}

/// What came of a request.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// The relay's id of the request.
    pub(crate) request_id: String,
    /// Who served it, where the relay knew when the answer began.
    pub(crate) provider: Option<String>,
    /// The text, as it came.
    pub(crate) text: String,
    /// Why the model ended, where it said so.
    pub(crate) finish_reason: Option<String>,
    /// What it used, where the engine said so.
    pub(crate) usage: Option<Usage>,
    /// From the request until the first piece of text.
    pub(crate) first: Option<Duration>,
    /// From the request until the end.
    pub(crate) total: Duration,
    /// Pieces of text.
    pub(crate) pieces: u64,
    /// Whether the user stopped it.
    pub(crate) is_stopped: bool,
    /// The answer's body, to the byte.
    pub(crate) bytes: Vec<u8>,
    /// Whether its stream said that it was all.
    pub(crate) is_done: bool,
}

impl Answer {
    /// Tokens a second, from the first piece on, by the engine's count or that of the pieces; of answers that are long enough for it to
    /// mean something: ten tokens and 0.2 s after the first.
    pub(crate) fn tokens_per_second(&self) -> Option<f64> {
        let after_first = (self.total.saturating_sub(self.first?)).as_secs_f64();
        let tokens = self.usage.map_or(self.pieces, |usage| usage.completion_tokens);
        // The first token's time is not among it.
        let timed = tokens.checked_sub(1).filter(|timed| *timed >= MIN_TIMED_TOKENS)?;
        (after_first >= MIN_TIMED_SECS).then(|| timed as f64 / after_first)
    }

    fn take(&mut self, data: &str, since: Instant, show: &mut impl FnMut(Piece<'_>) -> Outcome) -> Outcome {
        if data == "[DONE]" {
            self.is_done = true;
            return Ok(());
        }
        let chunk: Chunk =
            serde_json::from_str(data).or_failed("the answer is not what OpenAI's API answers")?;
        if let Some(refusal) = chunk.error.as_ref().map(Refusal::of_error) {
            return Err(refusal.failure("the answer broke off", Exit::Failed));
        }
        self.usage = chunk.usage.and_then(Usage::of).or(self.usage);
        let Some(choice) = chunk.choices.into_iter().next() else { return Ok(()) };
        self.finish_reason = choice.finish_reason.or(self.finish_reason.take());
        let Some(delta) = choice.delta.or(choice.message) else { return Ok(()) };
        let reasoning = delta.reasoning_content.or(delta.reasoning).unwrap_or_default();
        let text = delta.content.unwrap_or_default();
        for piece in [Piece::Reasoning(&reasoning), Piece::Text(&text)] {
            let (Piece::Text(words) | Piece::Reasoning(words)) = piece;
            if words.is_empty() {
                continue;
            }
            self.first.get_or_insert_with(|| since.elapsed());
            self.pieces += 1;
            show(piece)?;
        }
        self.text.push_str(&text);
        Ok(())
    }
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<EngineUsage>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<Delta>,
    /// Where an engine answers at once.
    #[serde(default)]
    message: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    reasoning: Option<String>,
}

/// Sends a body and shows the answer's pieces as they come, until it ends or `stop` does.
///
/// # Errors
/// The relay or the provider refuses, the answer breaks off, or it is too long.
pub(crate) async fn ask(
    relay: &Relay,
    body: &[u8],
    stop: impl Future<Output = ()>,
    mut show: impl FnMut(Piece<'_>) -> Outcome,
) -> Outcome<Answer> {
    let since = Instant::now();
    let mut answer = Answer::default();
    let mut stop = std::pin::pin!(stop);
    let response = tokio::select! {
        response = relay.chat(body) => Some(response?),
        () = &mut stop => None,
    };
    if let Some(response) = response {
        tokio::select! {
            read = read(response, &mut answer, since, &mut show) => read?,
            () = &mut stop => answer.is_stopped = true,
        }
    } else {
        answer.is_stopped = true;
    }
    answer.total = since.elapsed();
    Ok(answer)
}

async fn read(
    mut response: Response,
    answer: &mut Answer,
    since: Instant,
    show: &mut impl FnMut(Piece<'_>) -> Outcome,
) -> Outcome {
    let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
    answer.request_id = header(REQUEST_ID_HEADER).unwrap_or_default();
    answer.provider = header(PROVIDER_HEADER);
    let is_stream = header(CONTENT_TYPE.as_str()).is_some_and(|form| form.starts_with("text/event-stream"));
    let mut parser = Parser::default();
    let broke_off = |why: String| {
        Failure::new(Exit::Unreachable, format_args!("the answer broke off: {why}")).hint("ask again")
    };
    while let Some(piece) = response.chunk().await.map_err(|error| broke_off(causes(&error.without_url())))? {
        if answer.bytes.len() + piece.len() > MAX_ANSWER_BYTES {
            return Err(Failure::failed(format_args!("the answer is longer than {MAX_ANSWER_BYTES} bytes")));
        }
        answer.bytes.extend_from_slice(&piece);
        if !is_stream {
            continue;
        }
        let events = parser.feed(&piece).map_err(|_| Failure::failed("a piece of the answer is too long"))?;
        for data in events {
            answer.take(&data, since, show)?;
        }
    }
    if !is_stream {
        let whole = String::from_utf8_lossy(&std::mem::take(&mut answer.bytes)).into_owned();
        answer.take(&whole, since, show)?;
        answer.bytes = whole.into_bytes();
    } else if !answer.is_done && answer.finish_reason.is_none() {
        return Err(broke_off("its stream ended before it was done".to_owned()));
    }
    Ok(())
}

/// Whether a request failed because its conversation is longer than the model's context.
pub(crate) fn is_too_long(failure: &Failure) -> bool {
    let by_code = failure.code().is_some_and(|code| TOO_LONG_CODES.contains(&code));
    let words = failure.message().to_ascii_lowercase();
    by_code || (failure.exit() == Exit::Failed && TOO_LONG_WORDS.iter().any(|known| words.contains(known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(events: &[&str]) -> Outcome<(Answer, String)> {
        let (mut answer, mut shown) = (Answer::default(), String::new());
        for event in events {
            answer.take(event, Instant::now(), &mut |piece| {
                match piece {
                    Piece::Text(text) => shown.push_str(text),
                    Piece::Reasoning(text) => shown.push_str(&format!("({text})")),
                }
                Ok(())
            })?;
        }
        Ok((answer, shown))
    }

    #[test]
    fn what_engines_send_is_taken() {
        let (answer, shown) = taken(&[
            r#"{"choices":[{"delta":{"role":"assistant","content":null},"finish_reason":null}],"usage":null}"#,
            r#"{"choices":[{"delta":{"reasoning_content":"hm","reasoning":"hm"}}]}"#,
            r#"{"choices":[{"delta":{"content":"Hel"}}]}"#,
            r#"{"choices":[{"delta":{"content":"lo"}}]}"#,
            r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#,
            "[DONE]",
        ])
        .unwrap();
        assert_eq!((answer.text.as_str(), shown.as_str()), ("Hello", "(hm)Hello"));
        assert_eq!((answer.pieces, answer.finish_reason.as_deref()), (3, Some("stop")));
        assert_eq!(answer.usage, Some(Usage { prompt_tokens: 3, completion_tokens: 4 }));
        assert!(answer.is_done && answer.first.is_some());
        // Some engines name the counts both ways, and some do not know one of them.
        let both = r#"{"choices":[],"usage":{"prompt_tokens":3,"input_tokens":3,"completion_tokens":4,"output_tokens":4}}"#;
        let (answer, _) = taken(&[both, r#"{"choices":[],"usage":{"prompt_tokens":null}}"#]).unwrap();
        assert_eq!(answer.usage, Some(Usage { prompt_tokens: 3, completion_tokens: 4 }));
        let (answer, _) = taken(&[r#"{"choices":[{"message":{"content":"whole"}}]}"#]).unwrap();
        assert_eq!(answer.text, "whole");
    }

    #[test]
    fn errors_within_a_stream_keep_their_code() {
        let failure = taken(&[
            r#"{"error":{"message":"no\u001b[2J room","type":"x","code":"context_length_exceeded"}}"#,
        ])
        .unwrap_err();
        assert_eq!(failure.message(), "the answer broke off: no[2J room (context_length_exceeded)");
        assert!(is_too_long(&failure));
        for words in ["{", "7", r#"{"choices":[{"delta":{"content":7}}]}"#] {
            assert!(!is_too_long(&taken(&[words]).unwrap_err()), "{words}");
        }
    }

    #[test]
    fn speed_is_measured_from_the_first_token_on() {
        let answer = Answer {
            first: Some(Duration::from_secs(3)),
            total: Duration::from_secs(5),
            pieces: 11,
            ..Answer::default()
        };
        assert_eq!(answer.tokens_per_second(), Some(5.0));
        let usage = Some(Usage { prompt_tokens: 1, completion_tokens: 21 });
        let mut answer = Answer { usage, ..answer };
        assert_eq!(answer.tokens_per_second(), Some(10.0));
        // Too short to say how fast the model is: all of it came in one packet, or there is next to nothing.
        answer.total = Duration::from_millis(3199);
        assert_eq!(answer.tokens_per_second(), None);
        answer.total = Duration::from_secs(60);
        answer.usage = Some(Usage { prompt_tokens: 1, completion_tokens: 10 });
        assert_eq!(answer.tokens_per_second(), None);
        assert_eq!(Answer::default().tokens_per_second(), None);
    }
}
