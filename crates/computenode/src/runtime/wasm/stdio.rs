//! The standard streams of a program: kept in memory, within bounds.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use crate::runtime::{LogStream, Logs};

/// How much a program may write in one piece, in bytes.
const PIECE_BYTES: usize = 64 << 10;

/// Where a program writes to. Clones share the content.
#[derive(Clone)]
pub(super) struct Pipe(Arc<Mutex<State>>);

struct State {
    content: VecDeque<u8>,
    limit: usize,
    /// Where everything goes, if the pipe keeps the end alone.
    logs: Option<Logs>,
    overflowed: bool,
}

impl Pipe {
    /// Holds up to `limit` bytes; writing more ends the program.
    pub(super) fn bounded(limit: usize) -> Self {
        Self::new(limit, None)
    }

    /// Standard error: passes everything on to `logs`, and holds the last `limit` bytes.
    pub(super) fn tail(limit: usize, logs: Logs) -> Self {
        Self::new(limit, Some(logs))
    }

    fn new(limit: usize, logs: Option<Logs>) -> Self {
        Self(Arc::new(Mutex::new(State { content: VecDeque::new(), limit, logs, overflowed: false })))
    }

    /// Whether more was written than the pipe may hold.
    pub(super) fn overflowed(&self) -> bool {
        self.state().overflowed
    }

    /// What was written; the pipe is empty then.
    pub(super) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.state().content).into()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The content is whole after every statement that changes it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, bytes: &[u8]) -> Result<(), &'static str> {
        let mut state = self.state();
        let over = (state.content.len() + bytes.len()).saturating_sub(state.limit);
        if let Some(logs) = &state.logs {
            logs.write(LogStream::Stderr, bytes);
        } else if over > 0 {
            state.overflowed = true;
            return Err("the output is too large");
        }
        let from_old = over.min(state.content.len());
        state.content.drain(..from_old);
        state.content.extend(&bytes[over - from_old..]);
        Ok(())
    }
}

impl IsTerminal for Pipe {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Pipe {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for Pipe {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.append(&bytes).map_err(StreamError::trap)
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PIECE_BYTES)
    }
}

#[async_trait]
impl Pollable for Pipe {
    async fn ready(&mut self) {}
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.append(bytes).map(|()| bytes.len()).map_err(io::Error::other))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_pipe_refuses_what_is_too_much() {
        let pipe = Pipe::bounded(4);
        pipe.append(b"abcd").unwrap();
        assert!(!pipe.overflowed());
        assert!(pipe.append(b"e").is_err());
        assert!(pipe.overflowed());
        assert_eq!(pipe.take(), b"abcd");
    }

    #[test]
    fn a_tail_keeps_the_end() {
        let logs = Logs::default();
        let pipe = Pipe::tail(4, logs.clone());
        for (written, kept) in [("ab", "ab"), ("cde", "bcde"), ("fghijk", "hijk"), ("", "hijk")] {
            pipe.append(written.as_bytes()).unwrap();
            assert_eq!(pipe.state().content, kept.as_bytes());
        }
        logs.finish();
        assert_eq!(logs.since(0, 9)[0].text, "abcdefghijk");
    }
}
