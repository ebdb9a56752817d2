//! How many tokens an answer says it took, read while it passes.
//!
//! A stream is read line by line: its last `usage` counts, and where there is none, its deltas are counted, each of
//! which carries at least one token. Other answers say it in `usage`; of a long one the beginning and the end are kept,
//! since it stands in one of them. Nothing here grows with the answer.

use rpc::inference::EngineUsage;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// The longest line of a stream that is read, in bytes. A longer one counts as a delta, unread.
const MAX_LINE_BYTES: usize = 256 << 10;

/// How much of the beginning, and of the end, of an answer that is no stream is kept, in bytes.
const KEPT_BYTES: usize = 64 << 10;

/// What was read so far.
pub(super) struct Usage {
    reader: Reader,
    told: Option<(u64, u64)>,
    deltas: u64,
}

enum Reader {
    Stream { line: Vec<u8>, too_long: bool },
    Whole { head: Vec<u8>, tail: Vec<u8>, cut: bool },
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    usage: Option<EngineUsage>,
    #[serde(default)]
    choices: Vec<Choice>,
    /// Of the responses endpoint: `response.output_text.delta` and others.
    #[serde(rename = "type", default)]
    kind: Option<String>,
    /// Of the responses endpoint, at its end.
    #[serde(default)]
    response: Option<Inner>,
}

#[derive(Deserialize)]
struct Inner {
    #[serde(default)]
    usage: Option<EngineUsage>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    text: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    reasoning: Option<String>,
    #[serde(default)]
    tool_calls: Option<IgnoredAny>,
}

impl Usage {
    /// For an answer that is a stream of events, or is none.
    pub(super) fn new(streams: bool) -> Self {
        let reader = if streams {
            Reader::Stream { line: Vec::new(), too_long: false }
        } else {
            Reader::Whole { head: Vec::new(), tail: Vec::new(), cut: false }
        };
        Self { reader, told: None, deltas: 0 }
    }

    /// Reads what passes.
    pub(super) fn pass(&mut self, chunk: &[u8]) {
        match &mut self.reader {
            Reader::Whole { head, tail, cut } => {
                let room = KEPT_BYTES.saturating_sub(head.len()).min(chunk.len());
                head.extend_from_slice(&chunk[..room]);
                tail.extend_from_slice(&chunk[room..]);
                // Not at every chunk, or each would move what is kept.
                if tail.len() > 2 * KEPT_BYTES {
                    tail.drain(..tail.len() - KEPT_BYTES);
                    *cut = true;
                }
            }
            Reader::Stream { .. } => {
                for part in chunk.split_inclusive(|byte| *byte == b'\n') {
                    self.pass_part(part);
                }
            }
        }
    }

    /// Tokens of the prompt and of the completion.
    pub(super) fn tokens(&mut self) -> (u64, u64) {
        let last = match &mut self.reader {
            Reader::Stream { line, .. } => std::mem::take(line),
            Reader::Whole { head, tail, cut } => {
                let told = if *cut {
                    last_usage(tail).or_else(|| last_usage(head))
                } else {
                    head.append(tail);
                    serde_json::from_slice::<Inner>(head).ok().and_then(|answer| answer.usage)
                };
                self.told = told.and_then(EngineUsage::tokens);
                Vec::new()
            }
        };
        self.event(&last);
        self.told.unwrap_or((0, self.deltas))
    }

    fn pass_part(&mut self, part: &[u8]) {
        let Reader::Stream { line, too_long } = &mut self.reader else { return };
        if line.len() + part.len() > MAX_LINE_BYTES {
            *too_long = true;
        }
        if !*too_long {
            line.extend_from_slice(part);
        }
        if part.last() == Some(&b'\n') {
            let (whole, skipped) = (std::mem::take(line), std::mem::take(too_long));
            if skipped {
                self.deltas += 1;
            } else {
                self.event(&whole);
            }
        }
    }

    fn event(&mut self, line: &[u8]) {
        let Some(data) = line.strip_prefix(b"data:") else { return };
        let Ok(event) = serde_json::from_slice::<Event>(data) else { return };
        let told = event.usage.or_else(|| event.response.and_then(|response| response.usage));
        self.told = told.and_then(EngineUsage::tokens).or(self.told);
        let says = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let counts = |choice: &Choice| {
            says(&choice.text)
                || choice.delta.as_ref().is_some_and(|delta| {
                    says(&delta.content)
                        || says(&delta.reasoning_content)
                        || says(&delta.reasoning)
                        || delta.tool_calls.is_some()
                })
        };
        let of_response = event.kind.is_some_and(|kind| kind.ends_with(".delta"));
        let deltas = event.choices.iter().filter(|choice| counts(choice)).count() + usize::from(of_response);
        self.deltas = self.deltas.saturating_add(deltas as u64);
    }
}

/// The last `usage` of a part of an answer. Inside a text of the answer its quotes would be escaped.
fn last_usage(part: &[u8]) -> Option<EngineUsage> {
    const KEY: &[u8] = b"\"usage\"";
    let place = part.windows(KEY.len()).rposition(|window| window == KEY)?;
    let rest = part[place + KEY.len()..].trim_ascii_start().strip_prefix(b":")?;
    serde_json::Deserializer::from_slice(rest).into_iter().next()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(streams: bool, answer: &str, step: usize) -> (u64, u64) {
        let mut usage = Usage::new(streams);
        answer.as_bytes().chunks(step).for_each(|chunk| usage.pass(chunk));
        usage.tokens()
    }

    #[test]
    fn streams_tell_or_are_counted() {
        let deltas = concat!(
            ": keep-alive\n\n",
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\r\n\r\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\n",
            "data: {\"choices\":[{\"text\":\"b\"}]}\n\n",
            "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{}]}}]}\n\n",
        );
        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":9}}\n\n";
        let response = concat!(
            "event: x\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n",
            "data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":3,\"output_tokens\":1}}}",
        );
        for step in [1, 7, 10_000] {
            assert_eq!(tokens(true, &format!("{deltas}data: [DONE]\n\n"), step), (0, 3));
            assert_eq!(tokens(true, &format!("{deltas}{usage}data: [DONE]\n\n"), step), (7, 9));
            assert_eq!(tokens(true, response, step), (3, 1));
        }
        let long = format!("data: {{\"choices\":[{{\"text\":\"{}\"}}]}}\n\n", "x".repeat(MAX_LINE_BYTES));
        assert_eq!(tokens(true, &format!("{long}{usage}"), 1000), (7, 9));
    }

    #[test]
    fn answers_tell_wherever_it_stands() {
        let usage = r#""usage":{"prompt_tokens":5,"completion_tokens":6,"total_tokens":11}"#;
        assert_eq!(tokens(false, &format!("{{{usage}}}"), 3), (5, 6));
        let decoy = r#""text":"\"usage\": {\"prompt_tokens\":1,\"completion_tokens\":1}""#;
        for size in [10, KEPT_BYTES, 10 * KEPT_BYTES] {
            let padding = format!("\"padding\":\"{}\"", "x".repeat(size));
            assert_eq!(tokens(false, &format!("{{{padding},{usage},{decoy}}}"), 1000), (5, 6), "{size}");
            assert_eq!(tokens(false, &format!("{{{usage},{padding},{decoy}}}"), 1000), (5, 6), "{size}");
        }
        assert_eq!(tokens(false, "not json", 3), (0, 0));
    }

    #[test]
    fn counts_may_go_by_both_names() {
        let both = r#""usage":{"prompt_tokens":5,"input_tokens":5,"completion_tokens":6,"output_tokens":6}"#;
        assert_eq!(tokens(false, &format!("{{{both}}}"), 3), (5, 6));
        assert_eq!(tokens(true, &format!("data: {{{both}}}\n\n"), 3), (5, 6));
        assert_eq!(
            tokens(true, "data: {\"usage\":{\"input_tokens\":null,\"output_tokens\":6}}\n\n", 3),
            (0, 6)
        );
        // What says nothing is no word: the deltas count.
        let delta = "data: {\"choices\":[{\"delta\":{\"reasoning\":\"a\",\"reasoning_content\":\"a\"}}],\"usage\":{}}\n\n";
        assert_eq!(tokens(true, delta, 3), (0, 1));
    }
}
