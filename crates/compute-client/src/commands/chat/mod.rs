//! `chat`: talks to a model. On a terminal it is a conversation; what comes by a pipe is answered once.

mod conversation;
mod exchange;
mod terminal;

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::time::Duration;

use rpc::inference::{InferenceKind, ModelList, ReceiptView};

use self::conversation::Conversation;
use crate::cli::Global;
use crate::failure::{Context as _, Exit, Failure, Outcome};
use crate::inference::{Answer, Body, Piece, ask, is_too_long};
use crate::plain::Plain;
use crate::relay::Relay;
use crate::ui::{Style, Ui, clean, count, span};

/// The longest text that is taken from a pipe, in bytes: far more than any model's context.
const MAX_STDIN_BYTES: u64 = 16 << 20;
/// How long the relay may take to tell what an answer cost, before the user goes on without.
const RECEIPT_PATIENCE: Duration = Duration::from_secs(3);
/// The most models that an error lists.
const MAX_LISTED: usize = 20;

/// With which model, and how.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    zorai-compute chat                                        (a conversation, where one model is served)\n  \
    echo 'Name three colours' | zorai-compute chat --model tiny\n  \
    zorai-compute chat --model tiny --system 'Answer in one sentence' --temperature 0 < question.txt\n  \
    zorai-compute chat --model tiny --save-exchange DIR       (to check an answer's receipt later: see verify --help)\n\n\
    On a terminal each answer's provider, tokens and cost stand below it; tokens/s of answers with more than ten tokens\n\
    that took 0.2 s at least after the first.\n\n\
    In a conversation: Ctrl-C stops an answer, Ctrl-D ends, /help lists what else there is.\n\
    Providers see what you write: do not send them secrets.")]
pub(crate) struct Args {
    /// The model [default: the only one that is served]
    #[arg(long, short, value_name = "MODEL")]
    model: Option<String>,
    /// How the model is to behave: the conversation's system message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// How much chance there is in the answers: 0 for none, 2 at most [default: the engine's]
    #[arg(long, value_name = "NUMBER", value_parser = parse_temperature, allow_hyphen_values = true)]
    temperature: Option<f64>,
    /// The longest answer, in tokens [default: the engine's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// Write each request and answer to this folder, to the byte, with the provider's receipt
    #[arg(long, value_name = "DIR")]
    save_exchange: Option<PathBuf>,
}

fn parse_temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=2.0).contains(&number) => Ok(number),
        Ok(_) | Err(_) => Err("a number from 0 to 2".to_owned()),
    }
}

/// Talks to a model.
pub(crate) async fn run(global: &Global, args: Args, ui: &Ui) -> Outcome {
    let relay = global.relay(ui)?;
    let is_conversation = std::io::stdin().is_terminal();
    if is_conversation && ui.json {
        return Err(Failure::usage("--json is for one answer, not for a conversation")
            .hint("send the question by a pipe: echo hi | zorai-compute chat --json"));
    }
    let question = if is_conversation { None } else { Some(read_question()?) };
    let model = match args.model {
        Some(model) => model,
        None => only_model(&relay).await?,
    };
    let (temperature, max_tokens) = (args.temperature, args.max_tokens);
    let chat = Chat { relay, model, temperature, max_tokens, save: args.save_exchange, ui: ui.clone() };
    let conversation = Conversation::new(args.system);
    match question {
        None => terminal::converse(chat, conversation).await,
        Some(question) => chat.answer_once(conversation, question).await,
    }
}

/// All of standard input, as one question.
fn read_question() -> Outcome<String> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(MAX_STDIN_BYTES + 1).read_to_end(&mut bytes).or_failed("standard input")?;
    if bytes.len() as u64 > MAX_STDIN_BYTES {
        return Err(Failure::usage(format_args!("standard input has more than {MAX_STDIN_BYTES} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| Failure::usage("standard input is not text in UTF-8"))?;
    let text = text.trim_end();
    if text.is_empty() {
        return Err(Failure::usage("standard input is empty: there is nothing to answer")
            .hint("run it on a terminal for a conversation, or: echo hi | zorai-compute chat"));
    }
    Ok(text.to_owned())
}

/// The models that can be talked to.
async fn chat_models(relay: &Relay) -> Outcome<Vec<String>> {
    let list: ModelList = relay.get("v1/models").await?;
    let chats = list.data.into_iter().filter(|model| model.kinds.contains(&InferenceKind::Chat));
    Ok(chats.map(|model| model.id).collect())
}

/// The model that is meant where none is named.
async fn only_model(relay: &Relay) -> Outcome<String> {
    let mut models = chat_models(relay).await?;
    match models.as_slice() {
        [] => Err(Failure::failed("no provider serves a model that can be talked to just now")
            .hint("providers serve the models of the engines on their hosts: compute-node --engine, --detect-engines or --managed-engine")),
        [_] => Ok(models.remove(0)),
        [first, ..] => {
            let listed: Vec<String> = models.iter().take(MAX_LISTED).map(|model| clean(model)).collect();
            let more = if models.len() > MAX_LISTED { ", …" } else { "" };
            Err(Failure::usage(format_args!("{} models are served: {}{more}", models.len(), listed.join(", ")))
                .hint(format_args!("choose one: --model {}", clean(first))))
        }
    }
}

/// What is the same for all answers.
#[derive(Debug)]
struct Chat {
    relay: Relay,
    model: String,
    temperature: Option<f64>,
    max_tokens: Option<u32>,
    save: Option<PathBuf>,
    ui: Ui,
}

impl Chat {
    /// Answers one question on standard output.
    async fn answer_once(&self, mut conversation: Conversation, question: String) -> Outcome {
        conversation.ask(question);
        let json = self.ui.json;
        let (answer, record) = self.answer(&mut conversation, !json).await?;
        if answer.is_stopped {
            return Err(Failure::new(Exit::Interrupted, "stopped"));
        }
        if json {
            return self.ui.print_json(&summary(&self.model, &answer, record.as_ref()));
        }
        Ok(())
    }

    /// Has the conversation's last message answered, and adds the answer to it. Where the conversation is longer than the model's context,
    /// its beginning is forgotten.
    async fn answer(
        &self,
        conversation: &mut Conversation,
        shown: bool,
    ) -> Outcome<(Answer, Option<ReceiptView>)> {
        loop {
            let messages = conversation.messages();
            let mut body = Body::new(&self.model, &messages);
            (body.temperature, body.max_tokens) = (self.temperature, self.max_tokens);
            let body = body.to_bytes()?;
            let stopped = async {
                // Where Ctrl-C cannot be heard, nothing stops the answer.
                if tokio::signal::ctrl_c().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let mut printer = Printer::new(&self.ui, shown);
            let asked = ask(&self.relay, &body, stopped, |piece| printer.show(piece)).await;
            printer.end()?;
            match asked {
                Ok(answer) => {
                    conversation.answered(&answer.text);
                    let record = self.account(&body, &answer).await?;
                    return Ok((answer, record));
                }
                Err(failure) if is_too_long(&failure) && !printer.has_shown => {
                    let forgotten = conversation.forget();
                    if forgotten == 0 {
                        return Err(failure.hint("the message alone is longer than the model's context"));
                    }
                    self.ui.warn(format_args!(
                        "the conversation is longer than the model's context: its first {forgotten} messages are forgotten"
                    ));
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Saves the exchange if told to, and tells what it took, where somebody looks on.
    async fn account(&self, body: &[u8], answer: &Answer) -> Outcome<Option<ReceiptView>> {
        let is_terminal = std::io::stderr().is_terminal();
        if answer.request_id.is_empty() || !(is_terminal || self.ui.json || self.save.is_some()) {
            return Ok(None);
        }
        let record = self.relay.receipt(&answer.request_id);
        let record = tokio::time::timeout(RECEIPT_PATIENCE, record).await;
        let record = record.ok().and_then(Result::ok);
        if is_terminal {
            self.ui.say(self.ui.paint(Style::Dim, account_line(answer, record.as_ref())));
        }
        if let Some(folder) = &self.save {
            exchange::save(folder, body, answer, record.as_ref(), &self.ui)?;
        }
        Ok(record)
    }
}

/// Who answered, how fast, and for how much, in one line.
fn account_line(answer: &Answer, record: Option<&ReceiptView>) -> String {
    let provider = record.map(|record| record.provider.to_string()).or(answer.provider.clone());
    let tokens = answer.usage.map_or(answer.pieces, |usage| usage.completion_tokens);
    let parts = [
        answer.is_stopped.then(|| "stopped".to_owned()),
        (answer.finish_reason.as_deref() == Some("length"))
            .then(|| "cut off at the longest answer".to_owned()),
        provider.map(|provider| clean(&provider)),
        Some(count(tokens, "token")),
        answer.tokens_per_second().map(|speed| format!("{speed:.1} tokens/s")),
        answer.first.map(|first| format!("first after {}", span(first))),
        record.map(|record| format!("cost {}", record.cost)),
        Some(format!("request {}", clean(&answer.request_id))),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" · ")
}

/// An answer for programs.
fn summary(model: &str, answer: &Answer, record: Option<&ReceiptView>) -> serde_json::Value {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let provider = record.map(|record| record.provider.to_string()).or(answer.provider.clone());
    serde_json::json!({
        "model": model,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "request_id": answer.request_id,
        "provider": provider,
        "usage": answer.usage,
        "first_token_ms": answer.first.map(millis),
        "total_ms": millis(answer.total),
        "tokens_per_second": answer.tokens_per_second(),
        "cost": record.map(|record| record.cost),
    })
}

/// Writes an answer as it comes, as plain text.
struct Printer<'a> {
    ui: &'a Ui,
    shown: bool,
    has_reasoning: bool,
    plain: Plain,
    reasoning: Plain,
    has_shown: bool,
    ends_line: bool,
    spinner: Option<indicatif::ProgressBar>,
}

impl<'a> Printer<'a> {
    fn new(ui: &'a Ui, shown: bool) -> Self {
        let has_reasoning = shown && std::io::stdout().is_terminal();
        let spinner = Some(ui.spinner("waiting"));
        let (plain, reasoning) = (Plain::default(), Plain::default());
        Self { ui, shown, has_reasoning, plain, reasoning, has_shown: false, ends_line: true, spinner }
    }

    fn show(&mut self, piece: Piece<'_>) -> Outcome {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
        self.has_shown = true;
        let text = match piece {
            Piece::Text(words) if self.shown => self.plain.take(words),
            Piece::Reasoning(words) if self.has_reasoning => {
                let words = self.reasoning.take(words);
                self.ui.paint(Style::Dim, words)
            }
            Piece::Text(_) | Piece::Reasoning(_) => return Ok(()),
        };
        if !text.is_empty() {
            self.ends_line = text.ends_with('\n');
            self.ui.write(&text)?;
        }
        Ok(())
    }

    /// Ends the line that the answer ended in.
    fn end(&mut self) -> Outcome {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
        if !std::mem::replace(&mut self.ends_line, true) {
            self.ui.write("\n")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_under_an_answer_says_what_is_known() {
        let mut answer = Answer { request_id: "r-1".to_owned(), pieces: 1, ..Answer::default() };
        assert_eq!(account_line(&answer, None), "1 token · request r-1");
        answer.pieces = 13;
        answer.first = Some(Duration::from_millis(350));
        answer.total = Duration::from_millis(1350);
        answer.provider = Some("0xab".to_owned());
        answer.finish_reason = Some("length".to_owned());
        answer.is_stopped = true;
        assert_eq!(
            account_line(&answer, None),
            "stopped · cut off at the longest answer · 0xab · 13 tokens · 12.0 tokens/s · first after 0.3 s · request r-1"
        );
    }

    #[test]
    fn temperatures_are_numbers_of_a_range() {
        assert_eq!(parse_temperature("0.7"), Ok(0.7));
        for wrong in ["-0.1", "2.1", "warm", "NaN", "inf"] {
            assert!(parse_temperature(wrong).is_err(), "{wrong}");
        }
    }
}
