//! Listening to an agent's reports, for as long as its session lasts.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use link::close_code;
use rpc::inference::MAX_MODELS;
use rpc::link::Heartbeat;
use taskmarket::ReleaseReason;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::io::StreamReader;

use super::Hub;
use super::node::{Live, Node};

/// The longest report, in bytes: room for the attempts and the models of the largest host.
const MAX_LINE_BYTES: u64 = 512 * 1024;
/// The most models that a host may call loaded.
const MAX_WARM_MODELS: usize = 1024;
/// The most attempts that a host may hold.
const MAX_ATTEMPTS: usize = 2048;
/// As much of what is wrong with a host as is kept, in characters.
const MAX_UNHEALTHY_CHARS: usize = 256;
/// Reports are read no faster than this; an agent that sends more is slowed down by the connection.
const MIN_GAP: Duration = Duration::from_millis(10);
/// As much of reports is read in a second on average, in bytes.
const BYTES_PER_SEC: f64 = 64.0 * 1024.0;
/// How long to wait before asking again for reports that ended.
const REOPEN_DELAY: Duration = Duration::from_millis(250);

/// Why a session is to be closed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) close: u16,
    pub(super) reason: String,
}

impl Fault {
    fn protocol(reason: impl Into<String>) -> Self {
        Self { close: close_code::PROTOCOL_ERROR, reason: reason.into() }
    }
}

/// Listens until the agent falls silent or says what cannot be read.
pub(super) async fn listen(hub: &Hub, live: &Arc<Live>) -> Fault {
    let silence = hub.config.silence();
    let silent = || Fault { close: close_code::TIMED_OUT, reason: format!("no heartbeat for {silence:?}") };
    let mut heard = Instant::now();
    loop {
        // What is needed for a moment only is not kept room for in each session.
        match timeout_at(heard + silence, Box::pin(open(live))).await {
            Err(_) => return silent(),
            Ok(Err(Some(fault))) => return fault,
            Ok(Err(None)) => {}
            Ok(Ok(mut lines)) => loop {
                match timeout_at(heard + silence, next_line(&mut lines)).await {
                    Err(_) => return silent(),
                    Ok(Err(fault)) => return fault,
                    Ok(Ok(None)) => break,
                    Ok(Ok(Some(line))) => match read(&line) {
                        Err(fault) => return fault,
                        Ok(beat) => {
                            heard = Instant::now();
                            Box::pin(take_in(hub, live, &beat)).await;
                            sleep_until(heard + gap(line.len()).min(silence / 2)).await;
                        }
                    },
                }
            },
        }
        if timeout_at(heard + silence, sleep(REOPEN_DELAY)).await.is_err() {
            return silent();
        }
    }
}

/// How long to wait after a report of so many bytes.
fn gap(bytes: usize) -> Duration {
    MIN_GAP.max(Duration::from_secs_f64(bytes as f64 / BYTES_PER_SEC))
}

/// Asks for the reports. `Err(None)` where that may work later, or the session's end will tell.
async fn open(live: &Live) -> Result<impl AsyncBufRead + Unpin + use<>, Option<Fault>> {
    let request = Request::get("/heartbeat")
        .body(Empty::<Bytes>::new())
        .map_err(|error| Some(Fault::protocol(error.to_string())))?;
    let response = live.link.request(request).await.map_err(|error| {
        tracing::debug!(%error, "cannot ask for heartbeats");
        None
    })?;
    if response.status() != StatusCode::OK {
        return Err(Some(Fault::protocol(format!("GET /heartbeat answered {}", response.status().as_u16()))));
    }
    Ok(StreamReader::new(response.into_body().into_data_stream().map_err(io::Error::other)))
}

/// The next line without its end; `None` when there are no more.
async fn next_line(lines: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<Vec<u8>>, Fault> {
    let mut line = Vec::new();
    match lines.take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut line).await {
        Ok(_) if line.len() as u64 > MAX_LINE_BYTES => {
            Err(Fault::protocol(format!("heartbeat of more than {MAX_LINE_BYTES} bytes")))
        }
        Ok(_) if line.pop() == Some(b'\n') => Ok(Some(line)),
        // The stream ended, or broke, within a line or before one.
        Ok(_) => Ok(None),
        Err(error) => {
            tracing::debug!(%error, "heartbeats broke off");
            Ok(None)
        }
    }
}

fn read(line: &[u8]) -> Result<Heartbeat, Fault> {
    let mut beat: Heartbeat = serde_json::from_slice(line)
        .map_err(|error| Fault::protocol(format!("malformed heartbeat: {error}")))?;
    if beat.warm_models.len() > MAX_WARM_MODELS
        || beat.models.len() > MAX_MODELS
        || beat.attempts.len() > MAX_ATTEMPTS
    {
        return Err(Fault::protocol(format!(
            "heartbeat with more than {MAX_WARM_MODELS} models, {MAX_MODELS} served ones or {MAX_ATTEMPTS} attempts"
        )));
    }
    beat.unhealthy =
        beat.unhealthy.map(|why| why.chars().filter(|c| !c.is_control()).take(MAX_UNHEALTHY_CHARS).collect());
    Ok(beat)
}

async fn take_in(hub: &Hub, live: &Live, beat: &Heartbeat) {
    let (heard, is_open) = {
        let mut floor = hub.floor();
        let heard = floor.hear(live, beat, hub.config.settle(), Instant::now());
        let node = floor.node(&live.key).filter(|node| node.live.generation == live.generation);
        (heard, node.map(Node::is_open))
    };
    // A session that was fenced off has no say.
    if let Some(is_open) = is_open {
        let now = hub.market.now();
        hub.models.hear(live.key, live.generation, &live.link, &beat.models, is_open, now);
    }
    if heard.freed {
        hub.wake.notify_one();
    }
    for position in heard.progress {
        let Some(attempt) = beat.attempts.get(position) else { continue };
        if let Err(error) = hub.market.report_progress(attempt.task_id, attempt.progress.clone()).await {
            tracing::warn!(task_id = %attempt.task_id, %error, "progress not reported");
        }
    }
    for (task_id, attempt) in heard.dropped {
        hub.release(task_id, attempt, ReleaseReason::AttemptDropped).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded_and_end_with_the_stream() {
        let mut two: &[u8] = b"one\n\nrest";
        assert_eq!(next_line(&mut two).await, Ok(Some(b"one".to_vec())));
        assert_eq!(next_line(&mut two).await, Ok(Some(Vec::new())));
        assert_eq!(next_line(&mut two).await, Ok(None));

        let endless = vec![b'x'; 3 * 512 * 1024];
        let fault = next_line(&mut &endless[..]).await.unwrap_err();
        assert_eq!(fault.close, close_code::PROTOCOL_ERROR);
    }

    #[test]
    fn large_reports_are_read_less_often() {
        assert_eq!(gap(300), MIN_GAP);
        assert_eq!(gap(512 * 1024), Duration::from_secs(8));
    }

    #[test]
    fn reports_that_cannot_be_are_refused() {
        let good = r#"{"at":"2026-01-31T12:00:00Z","busy":0,"slots":1,"free_vram_mb":[],"warm_models":[],"attempts":[]}"#;
        assert_eq!(read(good.as_bytes()).unwrap().slots, 1);
        let models = format!("{:?}", vec!["11".repeat(32); MAX_WARM_MODELS + 1]);
        for bad in [
            "",
            "{}",
            "\0",
            "[]",
            &good.replace("\"busy\":0", "\"busy\":-1"),
            &good.replace("\"warm_models\":[]", &format!("\"warm_models\":{models}")),
            &"[".repeat(10_000),
        ] {
            assert!(read(bad.as_bytes()).is_err(), "{bad:.80}");
        }
    }
}
