//! What a job says while it runs: its last lines, for its owner to read and follow.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// How much of a job's lines is kept, in bytes; the oldest go first.
pub const MAX_LOG_BYTES: usize = 1 << 20;

/// The longest line, in bytes; a longer one is cut into several.
pub const MAX_LINE_BYTES: usize = 8 << 10;

/// The lines of one job. Clones share them.
#[derive(Debug, Clone)]
pub struct Logs(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    kept: Mutex<Kept>,
    /// The number of the next line.
    next: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<LogLine>,
    bytes: usize,
    /// A line of each stream whose end has not come yet.
    open: [Vec<u8>; 2],
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Its number among the job's lines, from zero. Numbers that are missing are lines that were dropped.
    pub number: u64,
    /// Where it was written.
    pub stream: LogStream,
    /// Its text without the line's end; what is no UTF-8 is replaced.
    pub text: String,
}

/// Where a job writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Default for Logs {
    fn default() -> Self {
        Self(Arc::new(Shared { kept: Mutex::default(), next: watch::Sender::new(0) }))
    }
}

impl Logs {
    /// Adds what a job wrote, whole lines or parts of them.
    pub fn write(&self, stream: LogStream, bytes: &[u8]) {
        let mut kept = self.kept();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            for part in piece.chunks(MAX_LINE_BYTES) {
                let open = &mut kept.open[stream as usize];
                let room = MAX_LINE_BYTES - open.len();
                let (now, later) = part.split_at(part.len().min(room));
                open.extend_from_slice(now);
                if open.ends_with(b"\n") || open.len() == MAX_LINE_BYTES {
                    self.close_line(&mut kept, stream);
                }
                kept.open[stream as usize].extend_from_slice(later);
                if later.ends_with(b"\n") {
                    self.close_line(&mut kept, stream);
                }
            }
        }
    }

    /// Ends the lines whose end never came: the job is over.
    pub fn finish(&self) {
        let mut kept = self.kept();
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            if !kept.open[stream as usize].is_empty() {
                self.close_line(&mut kept, stream);
            }
        }
    }

    /// The lines from number `from` on that are still kept, at most `max` of them.
    pub fn since(&self, from: u64, max: usize) -> Vec<LogLine> {
        let kept = self.kept();
        let start = kept.lines.partition_point(|line| line.number < from);
        kept.lines.iter().skip(start).take(max).cloned().collect()
    }

    /// Changes with each line, to the number of the next one.
    pub fn next(&self) -> watch::Receiver<u64> {
        self.0.next.subscribe()
    }

    fn close_line(&self, kept: &mut Kept, stream: LogStream) {
        let mut bytes = std::mem::take(&mut kept.open[stream as usize]);
        while bytes.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
            bytes.pop();
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        kept.bytes += text.len();
        let number = *self.0.next.borrow();
        kept.lines.push_back(LogLine { number, stream, text });
        while kept.bytes > MAX_LOG_BYTES || kept.lines.len() > MAX_LOG_BYTES / 16 {
            match kept.lines.pop_front() {
                Some(oldest) => kept.bytes -= oldest.text.len(),
                None => break,
            }
        }
        self.0.next.send_replace(number + 1);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // What a panic elsewhere may leave is at worst a line too many or too few.
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(logs: &Logs) -> Vec<String> {
        logs.since(0, usize::MAX).into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn lines_come_whole_and_each_stream_by_itself() {
        let logs = Logs::default();
        logs.write(LogStream::Stdout, b"one\ntw");
        logs.write(LogStream::Stderr, b"other\r\n");
        logs.write(LogStream::Stdout, b"o\nrest");
        assert_eq!(texts(&logs), ["one", "other", "two"]);
        logs.finish();
        assert_eq!(texts(&logs), ["one", "other", "two", "rest"]);
        assert_eq!(*logs.next().borrow(), 4);
        assert_eq!(logs.since(2, 1)[0].text, "two");
    }

    #[test]
    fn a_flood_keeps_its_end() {
        let logs = Logs::default();
        let long = [b'x'; 3 * MAX_LINE_BYTES + 5];
        logs.write(LogStream::Stdout, &long);
        logs.write(LogStream::Stdout, b"\n");
        let lengths: Vec<_> = texts(&logs).iter().map(String::len).collect();
        assert_eq!(lengths, [MAX_LINE_BYTES, MAX_LINE_BYTES, MAX_LINE_BYTES, 5]);
        for _ in 0..400 {
            logs.write(LogStream::Stderr, &long);
        }
        logs.write(LogStream::Stderr, b"\nlast\n\xff\n");
        let kept = texts(&logs);
        assert!(kept.iter().map(String::len).sum::<usize>() <= MAX_LOG_BYTES);
        assert_eq!(kept[kept.len() - 2..], ["last", "\u{fffd}"]);
    }

    #[test]
    fn many_empty_lines_are_bounded_too() {
        let logs = Logs::default();
        logs.write(LogStream::Stdout, &vec![b'\n'; 1 << 20]);
        assert!(logs.since(0, usize::MAX).len() <= MAX_LOG_BYTES / 16);
    }
}
