//! `logs`: what a task's attempt says, at once or live, attempt after attempt.

use std::time::{Duration, Instant};

use reqwest::Response;
use rpc::node::{LogLine, LogStream};
use taskmarket::{Status, TaskId};
use tokio::time::sleep;

use crate::cli::Global;
use crate::failure::{Exit, Failure, Outcome};
use crate::follow::has_result;
use crate::plain::Plain;
use crate::relay::Relay;
use crate::ui::{Style, Ui, count};

/// The longest line of an answer that is taken, in bytes: hosts cut what a job writes to far less.
const MAX_LINE_BYTES: usize = 1 << 20;
/// The first pause before asking again; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest of these pauses.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// How long the relay may stay out of reach before following is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(300);

/// Whose logs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The task: 0x and 64 hex digits
    #[arg(value_name = "TASK_ID")]
    id: TaskId,
    /// Stay, and show what comes until the task has a result or ends
    #[arg(long, short)]
    follow: bool,
    /// Begin with this line of the attempt that runs, or ran last
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,
}

/// Shows what a task's newest attempt said; with --follow also what it and those after it say from then on.
pub(crate) async fn run(global: &Global, args: &Args, ui: &Ui) -> Outcome {
    let relay = global.reading_relay(ui).await?;
    let mut reader = Reader { ui, attempt: None, next: args.from };
    if !args.follow {
        let response = relay.logs(args.id, args.from, false).await?;
        return match reader.read(response).await? {
            End::Whole => {
                if reader.next == args.from {
                    ui.say(match args.from {
                        0 => "the task has said nothing".to_owned(),
                        from => format!("the task has said nothing from line {from} on"),
                    });
                }
                Ok(())
            }
            End::Broken(why) => {
                Err(Failure::new(Exit::Unreachable, format_args!("the logs broke off: {why}")))
            }
        };
    }
    Box::pin(follow(&relay, args.id, &mut reader)).await
}

async fn follow(relay: &Relay, id: TaskId, reader: &mut Reader<'_>) -> Outcome {
    let (mut pause, mut last_contact, mut told) = (FIRST_PAUSE, Instant::now(), String::new());
    loop {
        let next = reader.next;
        // Looked up first: what an attempt said before it ended is asked for after that.
        let asked = match relay.task(id).await {
            Ok(view) => {
                last_contact = Instant::now();
                // Lines have numbers of their own in each attempt.
                if reader.attempt.is_some_and(|attempt| attempt != view.attempt) {
                    (reader.attempt, reader.next) = (None, 0);
                }
                let read = match relay.logs(id, reader.next, true).await {
                    Ok(response) => reader.read(response).await.map(Some),
                    Err(failure) => Err(failure),
                };
                read.map(|end| (view.status, end)).or_else(|failure| lost(failure, view.status, reader))
            }
            Err(failure) => Err(failure),
        };
        match asked {
            Ok((status, Some(End::Whole))) if is_over(status) => return Ok(()),
            Ok((_, Some(_))) if reader.next != next => pause = FIRST_PAUSE,
            Ok((_, Some(_))) => pause = (pause * 2).min(MAX_PAUSE),
            Ok((status, None)) => {
                if std::mem::replace(&mut told, status.to_string()) != told {
                    reader.ui.say(format_args!("the task is {status}; waiting for what its host says"));
                }
                pause = (pause * 2).min(MAX_PAUSE);
            }
            Err(failure) if failure.exit() != Exit::Unreachable => return Err(failure),
            Err(failure) if last_contact.elapsed() > GIVE_UP_AFTER => return Err(failure),
            Err(_) => pause = (pause * 2).min(MAX_PAUSE),
        }
        sleep(pause).await;
    }
}

/// Whether a refusal means that there are no logs now, but may be later; `Ok(None)` then.
fn lost(failure: Failure, status: Status, reader: &Reader<'_>) -> Outcome<(Status, Option<End>)> {
    match failure.exit() {
        Exit::Failed if !is_over(status) => Ok((status, None)),
        // It ended, and what it said was read before its host went.
        Exit::Failed if reader.attempt.is_some() => Ok((status, Some(End::Whole))),
        Exit::Done
        | Exit::Failed
        | Exit::Usage
        | Exit::NotAuthorised
        | Exit::Unreachable
        | Exit::Unverified
        | Exit::Interrupted => Err(failure),
    }
}

/// Whether nobody works on the task any more.
fn is_over(status: Status) -> bool {
    status.is_final() || has_result(status)
}

/// How an answer ended.
enum End {
    /// Where it was to end.
    Whole,
    /// Elsewhere: the connection broke.
    Broken(String),
}

/// Reads answers, and shows their lines.
struct Reader<'a> {
    ui: &'a Ui,
    /// Whose lines were shown last.
    attempt: Option<u32>,
    /// The number of the next line.
    next: u64,
}

impl Reader<'_> {
    async fn read(&mut self, mut response: Response) -> Outcome<End> {
        let attempt = response.headers().get(rpc::ATTEMPT_HEADER);
        let attempt: Option<u32> = attempt.and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(attempt) = attempt.filter(|attempt| self.attempt != Some(*attempt)) {
            if attempt > 1 {
                self.ui.say(format_args!("attempt {attempt}:"));
            }
            // Another one began since: it was asked for lines that the last one had reached.
            if self.attempt.replace(attempt).is_some() {
                self.next = 0;
                return Ok(End::Broken("another attempt began".to_owned()));
            }
        }
        let mut line = Vec::new();
        loop {
            let piece = match response.chunk().await {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(End::Whole),
                Err(error) => return Ok(End::Broken(crate::relay::causes(&error.without_url()))),
            };
            for part in piece.split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(part);
                if line.len() > MAX_LINE_BYTES {
                    return Err(Failure::failed("the host sends lines that are too long to be any"));
                }
                if line.ends_with(b"\n") {
                    self.show(&line)?;
                    line.clear();
                }
            }
        }
    }

    /// Shows a line; empty ones are signs of life.
    fn show(&mut self, line: &[u8]) -> Outcome {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        let Ok(line) = serde_json::from_slice::<LogLine>(line) else {
            self.ui.detail("a line that is none of a log");
            return Ok(());
        };
        if line.n > self.next {
            let dropped = line.n - self.next;
            let were = if dropped == 1 { "was" } else { "were" };
            self.ui.say(format_args!("({} {were} dropped)", count(dropped, "line")));
        }
        self.next = line.n.saturating_add(1);
        if self.ui.json {
            let json = serde_json::to_string(&line).map_err(Failure::failed)?;
            return self.ui.print(json);
        }
        let text = Plain::default().take(&line.text).replace('\n', " ");
        match line.stream {
            LogStream::Stdout => self.ui.print(text),
            LogStream::Stderr => self.ui.print(self.ui.paint(Style::Dim, text)),
        }
    }
}
