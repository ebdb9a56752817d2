//! What a container writes to its streams: into the job's logs, and standard output also into a file.

use std::path::PathBuf;

use bollard::container::{AttachContainerResults, LogOutput};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::fs::File;
use tokio::io::{AsyncWriteExt, BufWriter};
use tokio_util::sync::CancellationToken;

use crate::runtime::{LogStream, Logs};

/// What a program may write to its streams besides a result, in bytes.
const CHATTER_BYTES: u64 = 64 << 20;

/// The end of standard error that a failure's message can have, in bytes.
const TAIL_BYTES: usize = 512;

/// What was written.
pub(super) struct Written {
    /// Standard output, up to one byte more than a result may have.
    pub(super) stdout: PathBuf,
    /// All of standard output, in bytes.
    pub(super) stdout_bytes: u64,
    /// The end of standard error.
    pub(super) stderr: Vec<u8>,
    /// Why standard output could not be kept.
    pub(super) error: Option<std::io::Error>,
}

/// Reads the streams to their end.
///
/// Cancels `flooded` once far more was written than any result may have: all of it passes through the engine and this
/// node.
pub(super) async fn read(
    mut attached: AttachContainerResults,
    stdout: PathBuf,
    limit: u64,
    logs: Logs,
    flooded: CancellationToken,
) -> Written {
    let mut written = Written { stdout, stdout_bytes: 0, stderr: Vec::new(), error: None };
    let mut file = match File::create(&written.stdout).await {
        Ok(file) => Some(BufWriter::new(file)),
        Err(error) => {
            written.error = Some(error);
            None
        }
    };
    let most = limit.saturating_add(CHATTER_BYTES);
    let mut total = 0u64;
    while let Some(Ok(output)) = attached.output.next().await {
        let (stream, bytes) = sort(output);
        logs.write(stream, &bytes);
        total = total.saturating_add(bytes.len() as u64);
        if total > most {
            flooded.cancel();
        }
        match stream {
            LogStream::Stderr => {
                written.stderr.extend_from_slice(&bytes);
                let surplus = written.stderr.len().saturating_sub(TAIL_BYTES);
                written.stderr.drain(..surplus);
            }
            LogStream::Stdout => {
                let room = limit.saturating_add(1).saturating_sub(written.stdout_bytes);
                let kept = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
                written.stdout_bytes = written.stdout_bytes.saturating_add(bytes.len() as u64);
                if let Some(open) = &mut file
                    && let Err(error) = open.write_all(&bytes[..kept]).await
                {
                    written.error = Some(error);
                    file = None;
                }
            }
        }
    }
    if let Some(mut file) = file
        && let Err(error) = file.flush().await
    {
        written.error = Some(error);
    }
    written
}

fn sort(output: LogOutput) -> (LogStream, Bytes) {
    match output {
        LogOutput::StdErr { message } => (LogStream::Stderr, message),
        LogOutput::StdOut { message } | LogOutput::StdIn { message } | LogOutput::Console { message } => {
            (LogStream::Stdout, message)
        }
    }
}
