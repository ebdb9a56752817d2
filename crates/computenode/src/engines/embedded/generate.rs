//! Writing a text on: token by token, on a thread that looks after each whether anybody still waits.

use candle_transformers::generation::{LogitsProcessor, Sampling};
use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;

use super::model::{Model, Session};
use super::request::Work;

/// So many tokens of a prompt are read between two looks at whether anybody still waits.
const PROMPT_STEP: usize = 256;

/// How long a piece of an answer may wait for its reader.
const MAX_STALL: std::time::Duration = std::time::Duration::from_secs(300);

/// What comes of a request, in this order: pieces, then one end.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// A piece of text, which may be empty for the first.
    Text(String),
    /// The answer is whole.
    Done {
        /// Why it ends.
        finish: Finish,
        /// The tokens of the answer, without the one that ended it.
        tokens: usize,
    },
    /// The model failed.
    Failed(String),
}

/// Why an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    /// By itself, or at a text that was to end it.
    Stop,
    /// It has as many tokens as were asked for, or as the context holds.
    Length,
}

impl Finish {
    /// As OpenAI's API names it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Nobody waits any more.
struct Gone;

enum End {
    Gone,
    Failed(String),
}

impl From<Gone> for End {
    fn from(Gone: Gone) -> Self {
        Self::Gone
    }
}

impl From<candle_core::Error> for End {
    fn from(error: candle_core::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Works on a request until its end, or until nobody waits any more. Blocks; must run within a tokio runtime.
pub(super) fn generate(model: &Model, work: &Work, events: &Sender<Event>) {
    let reader = Reader { events, runtime: Handle::current() };
    let end = match write_on(model, work, &reader) {
        Ok(end) => end,
        Err(End::Gone) => return,
        Err(End::Failed(problem)) => Event::Failed(problem),
    };
    // There is nobody to tell that nobody waits.
    let _ = reader.send(end);
}

fn write_on(model: &Model, work: &Work, reader: &Reader<'_>) -> Result<Event, End> {
    let mut session = model.session();
    let mut logits = read_prompt(&mut session, &work.prompt, reader)?;
    let sampling = match (work.temperature, work.top_p) {
        (temperature, _) if temperature <= 0.0 => Sampling::ArgMax,
        (temperature, Some(p)) => Sampling::TopP { p, temperature },
        (temperature, None) => Sampling::All { temperature },
    };
    let mut sampler = LogitsProcessor::from_sampling(work.seed, sampling);
    let mut decoder = model.tokenizer().decode_stream(true);
    let mut stops = Stops::new(&work.stop);
    // The answer has begun: whoever waits for its first byte hears so.
    reader.send(Event::Text(String::new()))?;
    let mut written = 0;
    loop {
        let token = sampler.sample(&logits)?;
        if model.is_end(token) {
            reader.send_text(stops.rest())?;
            return Ok(Event::Done { finish: Finish::Stop, tokens: written });
        }
        written += 1;
        let piece = decoder.step(token).map_err(|error| End::Failed(error.to_string()))?;
        let (text, is_stopped) = stops.pass(&piece.unwrap_or_default());
        reader.send_text(text)?;
        if is_stopped {
            return Ok(Event::Done { finish: Finish::Stop, tokens: written });
        }
        if written == work.max_tokens {
            reader.send_text(stops.rest())?;
            return Ok(Event::Done { finish: Finish::Length, tokens: written });
        }
        logits = session.forward(&[token], work.prompt.len() + written - 1)?;
    }
}

fn read_prompt(
    session: &mut Session<'_>,
    prompt: &[u32],
    reader: &Reader<'_>,
) -> Result<candle_core::Tensor, End> {
    let mut logits = None;
    let mut at = 0;
    for step in prompt.chunks(PROMPT_STEP) {
        reader.check()?;
        logits = Some(session.forward(step, at)?);
        at += step.len();
    }
    logits.ok_or_else(|| End::Failed("the prompt is empty".to_owned()))
}

/// Whoever waits for an answer.
struct Reader<'a> {
    events: &'a Sender<Event>,
    runtime: Handle,
}

impl Reader<'_> {
    fn check(&self) -> Result<(), Gone> {
        if self.events.is_closed() { Err(Gone) } else { Ok(()) }
    }

    fn send_text(&self, text: String) -> Result<(), Gone> {
        if text.is_empty() { self.check() } else { self.send(Event::Text(text)) }
    }

    fn send(&self, event: Event) -> Result<(), Gone> {
        self.runtime.block_on(self.events.send_timeout(event, MAX_STALL)).map_err(|_| Gone)
    }
}

/// Holds back what may be the beginning of a text that ends the answer.
struct Stops<'a> {
    stops: &'a [String],
    held: String,
}

impl<'a> Stops<'a> {
    fn new(stops: &'a [String]) -> Self {
        Self { stops, held: String::new() }
    }

    /// What of the text so far can be passed on, and whether the answer ends there.
    fn pass(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            self.held.truncate(at);
            return (self.rest(), true);
        }
        let begins = |tail: &str| self.stops.iter().any(|stop| stop.starts_with(tail));
        let safe = self.held.char_indices().map(|(at, _)| at).find(|at| begins(&self.held[*at..]));
        let kept = self.held.split_off(safe.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, kept), false)
    }

    /// What is held back.
    fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_end_an_answer_are_never_shown() {
        let stops = ["END".to_owned(), "\n\n".to_owned()];
        let mut passing = Stops::new(&stops);
        let mut shown = String::new();
        for piece in ["a E", "N", "x\n", "y E", "ND", "z"] {
            let (text, is_stopped) = passing.pass(piece);
            shown.push_str(&text);
            if is_stopped {
                break;
            }
        }
        assert_eq!(shown, "a ENx\ny ");
        let mut passing = Stops::new(&stops);
        assert_eq!(passing.pass("ab\n"), ("ab".to_owned(), false));
        assert_eq!(passing.rest(), "\n");
        assert_eq!(Stops::new(&[]).pass("éa"), ("éa".to_owned(), false));
    }
}
