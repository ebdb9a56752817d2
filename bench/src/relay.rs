//! A relay's start, and the memory that it takes, with few tasks stored and with many.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::report::{Cell, Table};
use crate::timing::median;

/// Starts on each store.
const STARTS: usize = 3;
/// How long a relay may take to get ready.
const READY: Duration = Duration::from_secs(60);
/// When memory is measured, after the relay is ready: its first look at the store is over.
const SETTLE: Duration = Duration::from_secs(3);
/// How often an address that is not bound yet is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// A store, and how many tasks it has.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// How the relay names it.
    pub(crate) location: String,
    /// How many tasks.
    pub(crate) tasks: u64,
}

/// A running relay, killed when it is dropped: the store stands that at any moment.
struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures the program on each store of one kind, the stores in turn. The first of them is the one that others' memory is compared to.
pub(crate) fn measure(program: &Path, kind: &str, stores: &[Stored]) -> anyhow::Result<Table> {
    let mut figures: Vec<Vec<(f64, f64)>> = vec![Vec::new(); stores.len()];
    for _ in 0..STARTS {
        for (place, stored) in stores.iter().enumerate() {
            figures[place].push(start(program, &stored.location)?);
        }
    }
    let columns = ["tasks_stored", "ready_ms", "rss_mib", "rss_per_task_bytes"];
    let mut table = Table::new(format!("Relay: start and memory, {kind}"), &columns);
    let mut empty = None;
    for (stored, figures) in stores.iter().zip(figures) {
        let ready = median(figures.iter().map(|(ready, _)| *ready));
        let rss = median(figures.iter().map(|(_, rss)| *rss));
        let more = rss - *empty.get_or_insert(rss);
        table.row([
            Cell::count(stored.tasks),
            Cell::Number(ready, 0),
            Cell::Number(rss / 1024.0, 1),
            Cell::Number(more * 1024.0 / stored.tasks.max(1) as f64, 1),
        ]);
    }
    table.note(format!(
        "Medians of {STARTS} starts in turn, from the process's start to the first 200 of /readyz, the store's files in the page cache; memory {} s \
         later, all tasks open. Goals: under 1,000 ms with 1,000,000 tasks; no memory for a stored task, apart from SQLite's \
         bounded caches.",
        SETTLE.as_secs()
    ));
    Ok(table)
}

/// Starts a relay, and answers the milliseconds until it is ready and then the KiB of memory that it has.
fn start(program: &Path, location: &str) -> anyhow::Result<(f64, f64)> {
    // Free now; nobody else is known to want it.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let began = Instant::now();
    let relay = Command::new(program)
        .args(["--listen", &address.to_string(), "--store"])
        .arg(location)
        .env("ZORAI_AI_API_KEY", "bench-bench-bench-bench-bench-bench")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let mut relay = Relay(relay);
    while !is_ready(address)? {
        if let Some(status) = relay.0.try_wait()? {
            bail!("{} ended with {status} before it was ready", program.display());
        }
        if began.elapsed() > READY {
            bail!("{} is not ready after {} s", program.display(), READY.as_secs());
        }
        std::thread::sleep(RETRY);
    }
    let ready = began.elapsed().as_secs_f64() * 1e3;
    std::thread::sleep(SETTLE);
    Ok((ready, resident_kib(relay.0.id())?))
}

fn is_ready(address: SocketAddr) -> anyhow::Result<bool> {
    let mut stream = match TcpStream::connect(address) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    stream.set_read_timeout(Some(READY))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200"))
}

/// The KiB of memory that a process has.
pub(crate) fn resident_kib(process: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
