//! What people see: data on standard output, talk on standard error, colour only on a terminal.

use std::fmt;
use std::io::{self, IsTerminal, Read as _, Write};
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::failure::{Exit, Failure, Outcome};

/// How a terminal's progress is redrawn.
const TICK: Duration = Duration::from_millis(120);
/// How often a wait is mentioned where no progress is drawn.
const REMIND_EVERY: Duration = Duration::from_secs(10);
/// As much of a file's beginning tells text from other bytes.
const LOOK_BYTES: u64 = 8 * 1024;

/// Where words go, and how loud they are. Cheap to clone; all clones share the terminal.
#[derive(Debug, Clone)]
pub(crate) struct Ui {
    quiet: bool,
    verbose: bool,
    /// Whether standard output is JSON.
    pub(crate) json: bool,
    colour: bool,
    bars: MultiProgress,
}

/// A manner of writing that only adds to the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Good.
    Good,
    /// Bad.
    Bad,
    /// A remark on what may be wrong.
    Warn,
    /// Beside the point.
    Dim,
    /// The point.
    Bold,
}

impl Ui {
    /// The words of one command.
    pub(crate) fn new(quiet: bool, verbose: bool, json: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let target =
            if terminal && !quiet { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self {
            quiet,
            verbose,
            json,
            colour: terminal && !no_colour,
            bars: MultiProgress::with_draw_target(target),
        }
    }

    /// A line of talk on standard error; `--quiet` silences it.
    pub(crate) fn say(&self, line: impl fmt::Display) {
        if !self.quiet {
            self.line(&line);
        }
    }

    /// A line of talk for those who asked for more.
    pub(crate) fn detail(&self, line: impl fmt::Display) {
        if self.verbose && !self.quiet {
            self.line(&self.paint(Style::Dim, line));
        }
    }

    /// A remark on something that may be wrong.
    pub(crate) fn warn(&self, line: impl fmt::Display) {
        self.say(format_args!("{} {line}", self.paint(Style::Warn, "warning:")));
    }

    /// Why the command failed, and what to do. Said even when quiet.
    pub(crate) fn failure(&self, failure: &Failure) {
        if failure.exit() == Exit::Done {
            return;
        }
        self.line(&format_args!("{} {}", self.paint(Style::Bad, "error:"), failure.message()));
        for hint in failure.hints() {
            self.line(&format_args!("{} {hint}", self.paint(Style::Bold, "hint:")));
        }
    }

    fn line(&self, line: &dyn fmt::Display) {
        // There is nobody to tell where standard error is closed.
        let _ = self.bars.suspend(|| writeln!(io::stderr().lock(), "{line}"));
    }

    /// A line of data on standard output.
    pub(crate) fn print(&self, line: impl fmt::Display) -> Outcome {
        self.bars.suspend(|| {
            let mut out = io::stdout().lock();
            writeln!(out, "{line}")?;
            out.flush()
        })?;
        Ok(())
    }

    /// Words on standard output, as they are.
    pub(crate) fn write(&self, words: &str) -> Outcome {
        self.bars.suspend(|| {
            let mut out = io::stdout().lock();
            out.write_all(words.as_bytes())?;
            out.flush()
        })?;
        Ok(())
    }

    /// A value as JSON on standard output, indented.
    pub(crate) fn print_json(&self, value: &impl Serialize) -> Outcome {
        let text = serde_json::to_string_pretty(value).map_err(Failure::failed)?;
        self.print(text)
    }

    /// Words in colour, where there is any.
    pub(crate) fn paint(&self, style: Style, words: impl fmt::Display) -> String {
        if !self.colour {
            return words.to_string();
        }
        let code = match style {
            Style::Good => "32",
            Style::Bad => "31;1",
            Style::Warn => "33",
            Style::Dim => "2",
            Style::Bold => "1",
        };
        format!("\u{1b}[{code}m{words}\u{1b}[0m")
    }

    /// A bar over so many bytes, shown on a terminal only.
    pub(crate) fn bytes(&self, what: impl fmt::Display, bytes: u64) -> ProgressBar {
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}");
        let bar = ProgressBar::new(bytes).with_message(what.to_string());
        let bar = style.map_or(bar.clone(), |style| bar.with_style(style.progress_chars("=> ")));
        self.bars.add(bar)
    }

    /// A sign of life with a changing message, shown on a terminal only.
    pub(crate) fn spinner(&self, what: impl fmt::Display) -> ProgressBar {
        let bar = self.bars.add(ProgressBar::new_spinner().with_message(what.to_string()));
        bar.enable_steady_tick(TICK);
        bar
    }

    /// Waits for what takes a while: with the time so far on a terminal, elsewhere with a line now and then.
    pub(crate) async fn during<T>(&self, what: impl fmt::Display, work: impl Future<Output = T>) -> T {
        let started = Instant::now();
        let bar = self.spinner(&what);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        if !self.draws() {
            self.say(&what);
        }
        let mut work = pin!(work);
        loop {
            match tokio::time::timeout(REMIND_EVERY, &mut work).await {
                Ok(done) => {
                    bar.finish_and_clear();
                    return done;
                }
                Err(_) if self.draws() => {}
                Err(_) => self.say(format_args!("{what}: {} so far", span(started.elapsed()))),
            }
        }
    }

    /// Whether progress bars are seen, so that plain lines need not tell the same.
    pub(crate) fn draws(&self) -> bool {
        !self.bars.is_hidden()
    }
}

/// Whether standard output is a terminal and this file is nothing to show there.
pub(crate) fn is_unfit_for_stdout(file: &Path) -> Outcome<bool> {
    if !io::stdout().is_terminal() {
        return Ok(false);
    }
    let mut beginning = Vec::new();
    std::fs::File::open(file)?.take(LOOK_BYTES).read_to_end(&mut beginning)?;
    Ok(!is_text(&beginning))
}

/// Why bytes are not written to a terminal, and where to write them.
pub(crate) fn binary(what: impl fmt::Display) -> Failure {
    Failure::usage(format_args!("{what} is binary, and is not written to a terminal"))
        .hint("write it to a file: --output FILE, or > FILE")
}

/// Whether the beginning of something is text without control characters.
fn is_text(beginning: &[u8]) -> bool {
    let text = match std::str::from_utf8(beginning) {
        Ok(text) => Some(text),
        // The end was cut within a character.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&beginning[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    text.is_some_and(|text| !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')))
}

/// Another party's words, safe for a terminal: without control characters, and not too many of them.
pub(crate) fn clean(text: &str) -> String {
    const MAX_CHARS: usize = 500;
    text.chars().filter(|c| !c.is_control()).take(MAX_CHARS).collect()
}

/// So many of something: `1 task`, `2 tasks`.
pub(crate) fn count(number: u64, thing: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{s}")
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A duration for people: `0.4 s`, `42 s`, `3 min`, `5 h`, `2 d`.
pub(crate) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[31m\r\nb"), "a[31mb");
        assert_eq!(clean(&"é".repeat(10_000)).chars().count(), 500);
    }

    #[test]
    fn text_is_told_from_other_bytes() {
        for text in ["", "1300\n", "a\tb\r\n", "é"] {
            assert!(is_text(text.as_bytes()), "{text:?}");
        }
        assert!(is_text(&"é".as_bytes()[..1]), "cut within a character");
        for bytes in [&b"\0asm"[..], b"\x1b[2J", b"\xff\xfe", b"ok\xe9ok"] {
            assert!(!is_text(bytes), "{bytes:?}");
        }
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!([0, 1, 2].map(|number| count(number, "task")), ["0 tasks", "1 task", "2 tasks"]);
    }

    #[test]
    fn spans_are_short() {
        let spans = [0, 9, 10, 119, 120, 7199, 7200, 172_800].map(|secs| span(Duration::from_secs(secs)));
        assert_eq!(spans, ["0.0 s", "9.0 s", "10 s", "119 s", "2 min", "119 min", "2 h", "2 d"]);
    }
}
