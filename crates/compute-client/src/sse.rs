//! Server-sent events, read from pieces of a response as they come.
//! The format: <https://html.spec.whatwg.org/multipage/server-sent-events.html>

/// The longest event that is taken, in bytes; the largest message of a history is far smaller.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// Takes a stream apart into the data of its events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    data: String,
}

/// An event is longer than any that a relay sends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

impl Parser {
    /// Takes the next piece and gives the data of each event that it completes. Comments, ids and names are passed over: our data
    /// carries its own id.
    pub(crate) fn feed(&mut self, piece: &[u8]) -> Result<Vec<String>, TooLong> {
        let mut events = Vec::new();
        for byte in piece {
            match byte {
                b'\n' => events.extend(self.end_line()),
                b'\r' => {}
                byte => self.line.push(*byte),
            }
            if self.line.len() + self.data.len() > MAX_EVENT_BYTES {
                return Err(TooLong);
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return Some(std::mem::take(&mut self.data)).filter(|data| !data.is_empty());
        }
        if let Some(text) = String::from_utf8_lossy(&line).strip_prefix("data:") {
            if !self.data.is_empty() {
                self.data.push('\n');
            }
            self.data.push_str(text.strip_prefix(' ').unwrap_or(text));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str =
        ": hello\r\n\r\nid: 7\ndata: {\"a\":1}\n\nevent: x\ndata:one\ndata: two\n\n:\n\ndata: unfinished";

    #[test]
    fn events_come_out_whatever_the_pieces() {
        for size in 1..STREAM.len() {
            let mut parser = Parser::default();
            let events: Vec<String> =
                STREAM.as_bytes().chunks(size).flat_map(|piece| parser.feed(piece).unwrap()).collect();
            assert_eq!(events, ["{\"a\":1}", "one\ntwo"], "in pieces of {size}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        assert_eq!(parser.feed(&vec![b'x'; MAX_EVENT_BYTES + 1]), Err(TooLong));
    }
}
