//! A small market of real processes for whole-system tests: relay, agents and nodes on loopback ports of their own, with folders of
//! their own, all ended with the test.
//!
//! The programs are those that `cargo build --workspace --bins` put beside the tests (`scripts/test` runs it before them).

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

#[cfg(unix)]
pub mod settled;

pub mod endpoint;
pub mod engine;
pub mod gate;
pub mod proxy;

/// How long a test waits for anything before it fails. Generous: machines are shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The API key of every relay here.
pub const API_KEY: &str = "zk-system-tests-0123456789abcdef";

/// The path of one of the project's programs.
///
/// # Panics
/// It was not built.
pub fn program(name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("a test knows its own path");
    let folder = tests.ancestors().nth(2).expect("tests lie in <target>/<profile>/deps");
    let path = folder.join(name);
    assert!(path.is_file(), "{} is missing: run `cargo build --workspace --bins` first", path.display());
    path
}

/// A loopback port that nothing listens on. Taken below the range that the kernel gives to outgoing connections.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = u16::try_from(std::process::id() % 1000).expect("below 1000") * 20;
    loop {
        let port = 10_000 + own + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program with its standard error in a file of `folder`.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(folder: &Path, name: &str, mut command: Command) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file =
            std::fs::OpenOptions::new().create(true).append(true).open(&log).expect("the log can be written");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a file handle"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self { name: name.to_owned(), child, log }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends it a signal by name (`TERM`, `STOP`, `CONT`).
    ///
    /// # Panics
    /// `kill` cannot be run.
    pub fn signal(&self, signal: &str) {
        let done = Command::new("kill").args([&format!("-{signal}"), &self.id().to_string()]).status();
        assert!(done.expect("kill runs").success(), "kill -{signal} {}", self.name);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It does not end in time.
    pub async fn ended(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "{} does not end:\n{}", self.name, self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it in order, so that what it started ends with it.
    ///
    /// # Panics
    /// It does not end in time.
    pub async fn stop(mut self) {
        self.signal("TERM");
        self.ended().await;
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = self.log();
            let start = text.char_indices().rev().nth(6000).map_or(0, |(index, _)| index);
            let mut stderr = std::io::stderr().lock();
            let _ = std::io::Write::write_fmt(
                &mut stderr,
                format_args!("---- {}\n{}\n", self.name, &text[start..]),
            );
        }
        self.kill();
    }
}

/// A market's folder, relay port and client.
#[derive(Debug)]
pub struct Market {
    /// Everything of this market lies here.
    pub folder: tempfile::TempDir,
    /// The relay's port.
    pub port: u16,
    /// Talks HTTP to the relay.
    pub http: reqwest::Client,
}

impl Market {
    /// A folder, a port and a client; no process yet.
    ///
    /// # Panics
    /// No folder can be made.
    pub fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            port: free_port(),
            http: reqwest::Client::builder().timeout(PATIENCE).build().expect("an HTTP client"),
        }
    }

    /// The relay's URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A path in the market's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the relay with the flags of the README, and more, and waits until it answers.
    pub async fn relay(&self, more: &[&str]) -> Process {
        let mut command = Command::new(program("compute-relay"));
        command
            .args(["--listen", &format!("127.0.0.1:{}", self.port), "--relay-id", "hz-1"])
            .args(["--public-url", &format!("ws://127.0.0.1:{}", self.port)])
            .arg("--store")
            .arg(self.path("relay"))
            .args(more)
            .env("ZORAI_AI_API_KEY", API_KEY);
        let mut relay = Process::start(self.folder.path(), "relay", command);
        self.answers(&mut relay, &format!("{}/readyz", self.url())).await;
        relay
    }

    /// Starts a compute node and waits until it listens.
    pub async fn node(&self, name: &str, port: u16, more: &[&str]) -> Process {
        let mut command = Command::new(program("compute-node"));
        command
            .args(["--listen", &format!("127.0.0.1:{port}"), "--allow-private-addresses"])
            .arg("--data")
            .arg(self.path(name))
            .arg("--compute-token-file")
            .arg(self.path(&format!("{name}.token")))
            .args(more);
        let mut node = Process::start(self.folder.path(), name, command);
        self.answers(&mut node, &format!("http://127.0.0.1:{port}/status")).await;
        node
    }

    /// Starts an agent that talks to the relay at `relay_port` (a proxy's, perhaps) and to a node; does not wait.
    pub fn agent(&self, name: &str, key: &str, relay_port: u16, node: (&str, u16), more: &[&str]) -> Process {
        let mut command = Command::new(program("compute-agent"));
        command
            .args([
                "--relay",
                &format!("ws://127.0.0.1:{relay_port}/v1/provider/connect"),
                "--relay-id",
                "hz-1",
            ])
            .args(["--compute-url", &format!("http://127.0.0.1:{}", node.1)])
            .arg("--compute-token-file")
            .arg(self.path(&format!("{}.token", node.0)))
            .arg("--data")
            .arg(self.path(name))
            .args(more)
            .env("PROVIDER_PRIVATE_KEY", key);
        Process::start(self.folder.path(), name, command)
    }

    /// Runs `zorai-compute` against this relay to its end.
    ///
    /// # Panics
    /// It cannot be started or does not end in time.
    pub async fn cli(&self, arguments: &[&str]) -> Output {
        self.cli_with(arguments, b"").await
    }

    /// As [`Self::cli`], with this on its standard input.
    ///
    /// # Panics
    /// As [`Self::cli`].
    pub async fn cli_with(&self, arguments: &[&str], stdin: &[u8]) -> Output {
        use tokio::io::AsyncWriteExt as _;

        let mut command = tokio::process::Command::new(program("zorai-compute"));
        command
            .args(arguments)
            .env("ZORAI_RELAY", self.url())
            .env("ZORAI_AI_API_KEY", API_KEY)
            .env("ZORAI_HOME", self.path("home"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().expect("zorai-compute starts");
        // A command that does not read may be gone already.
        let _ = child.stdin.take().expect("it is piped").write_all(stdin).await;
        tokio::time::timeout(PATIENCE, child.wait_with_output())
            .await
            .unwrap_or_else(|_| panic!("zorai-compute {arguments:?} does not end"))
            .expect("zorai-compute ends")
    }

    /// Asks the relay for JSON with the API key.
    ///
    /// # Panics
    /// No JSON comes.
    pub async fn get(&self, path: &str) -> serde_json::Value {
        let answer = self.http.get(format!("{}{path}", self.url())).bearer_auth(API_KEY).send().await;
        answer.expect("the relay answers").json().await.expect("the answer is JSON")
    }

    /// Waits until `check` says yes to what the relay answers at `path`; connection errors count as no.
    ///
    /// # Panics
    /// It never does.
    pub async fn until(
        &self,
        path: &str,
        what: &str,
        check: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let deadline = Instant::now() + PATIENCE;
        let mut last = serde_json::Value::Null;
        while Instant::now() < deadline {
            let asked = self.http.get(format!("{}{path}", self.url())).bearer_auth(API_KEY).send().await;
            if let Ok(answer) = asked
                && let Ok(value) = answer.json::<serde_json::Value>().await
            {
                if check(&value) {
                    return value;
                }
                last = value;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{path} never came to {what}; last: {last:#}");
    }

    /// Waits until so many hosts are online.
    pub async fn providers(&self, count: usize) -> serde_json::Value {
        self.until("/v1/providers", &format!("{count} providers"), |list| {
            list["providers"].as_array().is_some_and(|providers| providers.len() == count)
        })
        .await
    }

    /// Waits until a task has a status.
    pub async fn status(&self, task: &str, status: &str) -> serde_json::Value {
        self.until(&format!("/v1/tasks/{task}"), status, |view| view["status"] == status).await
    }

    async fn answers(&self, process: &mut Process, url: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.http.get(url).send().await.is_err() {
            if let Ok(Some(status)) = process.child.try_wait() {
                panic!("{} ended at its start ({status}):\n{}", process.name, process.log());
            }
            assert!(Instant::now() < deadline, "{} does not answer at {url}", process.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Default for Market {
    fn default() -> Self {
        Self::new()
    }
}

/// Private keys for tests: worthless anywhere else.
pub const PROVIDER_KEYS: [&str; 2] = [
    "1111111111111111111111111111111111111111111111111111111111111111",
    "2222222222222222222222222222222222222222222222222222222222222222",
];

/// A module that copies its input to its output in upper case.
pub fn upper_case() -> Vec<u8> {
    module(include_str!("../modules/upper.wat"))
}

/// A module that never ends.
pub fn endless() -> Vec<u8> {
    module(include_str!("../modules/endless.wat"))
}

fn module(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("the modules here are right")
}

/// Standard output and standard error of a command, for messages.
pub fn said(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
