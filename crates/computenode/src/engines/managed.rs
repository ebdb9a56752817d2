//! Engines that the node starts: watched, started again when they end, and gone when the node ends.
//!
//! Each is the leader of a process group of its own, and it is the group that is ended, so that what an engine starts
//! for itself goes with it. A node that was killed cannot do that: which group it was stands in a file, and the node's
//! next life ends it.

use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Url;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio_util::sync::CancellationToken;

use super::Engine;
use super::config::{EngineTiming, Launch};

/// The longest delay between restarts.
const MAX_RESTART: Duration = Duration::from_secs(60);

/// An engine that ran so long starts again quickly.
const STABLE: Duration = Duration::from_secs(60);

/// The longest line of an engine's output that is logged whole, in bytes; a longer one is logged in parts.
const MAX_LINE_BYTES: u64 = 4096;

/// Runs an engine until `ending`.
pub(super) async fn supervise(
    engine: Arc<Engine>,
    launch: Launch,
    timing: EngineTiming,
    folder: PathBuf,
    ending: CancellationToken,
) {
    let note = folder.join(format!("{}.pid", launch.name));
    end_left_over(&note).await;
    let mut delay = timing.restart;
    while !ending.is_cancelled() {
        let began = Instant::now();
        let ended = match start(&launch, &note).await {
            Ok(started) => run(&engine, started, timing.stop, &ending).await,
            Err(error) => Some(format!("it cannot be started: {error}")),
        };
        engine.ended();
        if let Err(error) = tokio::fs::remove_file(&note).await
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %note.display(), %error, "cannot remove an engine's note");
        }
        let Some(why) = ended else { return };
        if began.elapsed() >= STABLE {
            delay = timing.restart;
        }
        tracing::warn!(
            engine = launch.name,
            why,
            delay_ms = delay.as_millis(),
            "an engine ended; starting it again"
        );
        let _ = ending.run_until_cancelled(tokio::time::sleep(delay)).await;
        delay = (delay * 2).min(MAX_RESTART);
    }
}

/// A process that runs, with its group.
struct Started {
    child: Child,
    group: Group,
    base: Url,
    /// Its end ends the engine inside this program, also where the node has no time to.
    stdin: Option<ChildStdin>,
}

/// A group of processes, killed when this is dropped.
struct Group(Pid);

impl Group {
    /// Whether there was still something to tell.
    fn signal(&self, signal: Signal) -> bool {
        kill_process_group(self.0, signal).is_ok()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

async fn start(launch: &Launch, note: &Path) -> io::Result<Started> {
    let port = launch.port.map_or_else(free_port, Ok)?;
    let line = launch.line(port);
    let (program, arguments) = line.split_first().ok_or_else(|| io::Error::other("the command is empty"))?;
    let mut command = Command::new(program);
    command.args(arguments).process_group(0).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(gpu) = &launch.gpu {
        command.env("CUDA_VISIBLE_DEVICES", gpu);
    }
    if let Some(threads) = launch.threads {
        command.env("RAYON_NUM_THREADS", threads.to_string()).stdin(Stdio::piped());
    }
    let mut child = command.spawn().map_err(|error| io::Error::other(format!("{program}: {error}")))?;
    let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let group = Group(pid.ok_or_else(|| io::Error::other("it ended at once"))?);
    if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
        // They end with the last process that holds the pipes.
        tokio::spawn(log(launch.name.clone(), stdout));
        tokio::spawn(log(launch.name.clone(), stderr));
    }
    if let Some(parent) = note.parent() {
        tokio::fs::create_dir_all(parent).await?;
    }
    let began = began(group.0).unwrap_or_default();
    tokio::fs::write(note, format!("{} {began}", group.0.as_raw_nonzero())).await?;
    tracing::info!(engine = launch.name, program, port, pid = %group.0.as_raw_nonzero(), "an engine starts");
    let base = Url::parse(&format!("http://127.0.0.1:{port}/")).map_err(io::Error::other)?;
    let stdin = child.stdin.take();
    Ok(Started { child, group, base, stdin })
}

/// Waits until it ends, and says why; `None` where the node wants the end.
async fn run(
    engine: &Engine,
    started: Started,
    patience: Duration,
    ending: &CancellationToken,
) -> Option<String> {
    let Started { mut child, group, base, stdin: _held } = started;
    let hangs = engine.began(base, group.0);
    let why = tokio::select! {
        ended = child.wait() => return Some(match ended {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }),
        () = hangs.cancelled() => Some("it does not answer any more".to_owned()),
        () = ending.cancelled() => None,
    };
    group.signal(Signal::TERM);
    if tokio::time::timeout(patience, child.wait()).await.is_err() {
        group.signal(Signal::KILL);
        let _ = tokio::time::timeout(patience, child.wait()).await;
    }
    why
}

/// Ends the group that a former life of the node noted, if it is still the same.
async fn end_left_over(note: &Path) {
    let Ok(text) = tokio::fs::read_to_string(note).await else { return };
    let parts = text.split_once(' ');
    let pid = parts.and_then(|(pid, _)| Pid::from_raw(pid.parse().ok()?));
    if let (Some(pid), Some((_, noted))) = (pid, parts)
        && began(pid).is_some_and(|began| began == noted)
    {
        tracing::warn!(pid = %pid.as_raw_nonzero(), "ending an engine that a former life of the node left");
        drop(Group(pid));
    }
    let _ = tokio::fs::remove_file(note).await;
}

/// When a process began, in ticks since the machine did: with its id, this names it for good. Linux alone tells.
fn began(pid: Pid) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name before it may hold anything, also parentheses. What follows begins with field 3; this is field 22.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19).map(str::to_owned)
}

/// A port that was free a moment ago. An engine that finds it taken ends, and is started at another.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Passes an engine's words on to the node's log.
async fn log(engine: String, output: impl AsyncRead + Unpin) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut output).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let mut text = String::from_utf8_lossy(&line).into_owned();
                text.retain(|c| !c.is_control());
                tracing::info!(engine, "{text}");
            }
        }
    }
}
