//! Relay, node and agent as child processes. Each holds a pipe of ours as standard input and ends when that does, so none outlives
//! this process. Secrets reach them by files that only their owner can read.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use daemon::{Secret, private_file, read_secret_file};
use futures_util::future::select_all;
use rpc::inference::ModelList;
use rpc::relay::{Info, ProviderList};
use tokio::net::TcpStream;
use tokio::process::{ChildStdin, Command};
use tokio::time::{sleep, timeout};

use crate::commands::dev::child::Program;
use crate::commands::dev::money::Money;
use crate::commands::dev::toy;
use crate::failure::{Context as _, Failure, Outcome};
use crate::relay::Relay;
use crate::ui::{Ui, clean};

/// How long a program may take until it serves.
const START: Duration = Duration::from_secs(60);
/// How often it is asked whether it does.
const ASK: Duration = Duration::from_millis(50);
/// How long a program may take to end before it is killed.
const END: Duration = Duration::from_secs(10);
/// How much of a log is shown when its program died.
const LOG_LINES: usize = 15;
/// Ports are taken from here: below those that kernels give to outgoing connections, so that none is taken in between.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// What the relay calls itself.
const RELAY_ID: &str = "dev";
/// The compute node's token, which the node makes and the agent reads.
const TOKEN_FILE: &str = "compute-token";
/// Held by the process whose market is in the folder.
const LOCK_FILE: &str = "lock";
/// The one variable of this family that the children inherit: the others are meant for this program.
const KEPT_VARIABLE: &str = "ZORAI_HOME";

/// A market that is up. Dropping it kills its programs; [`Market::stop`] ends them in order.
pub(crate) struct Market {
    folder: PathBuf,
    relay: Relay,
    api_key: Secret,
    /// Held as long as the market is up, so that no other one is started in the folder.
    _lock: File,
    /// In the order in which they end: the agent first, so that it can give up what it holds.
    children: Vec<Child>,
}

struct Child {
    program: Program,
    process: tokio::process::Child,
    /// Its end is the child's end.
    stdin: Option<ChildStdin>,
    log: PathBuf,
}

impl Market {
    /// Starts the three programs on free loopback ports, to settle tasks where there is a chain, and waits until the agent is connected.
    ///
    /// # Errors
    /// One of them did not come up; the message has the end of its log.
    pub(crate) async fn start(folder: &Path, money: Option<&Money>, ui: &Ui) -> Outcome<Self> {
        prepare(folder)?;
        // Children run in the same folder, but the paths are shown to people who may not.
        let folder = std::fs::canonicalize(folder).or_failed(folder.display())?;
        let lock = lock(&folder)?;
        let api_key = secret(&folder.join("api-key"), "zk-")?;
        let [relay_port, node_port] = free_ports()?;
        let url = format!("http://127.0.0.1:{relay_port}");
        let node_listen = format!("127.0.0.1:{node_port}");
        let relay = Relay::new(&url, Some(api_key.clone()), None, &Ui::new(true, false, false))?;

        let mut relay_child = Child::relay(&folder, relay_port, money)?;
        let mut node_child = Child::node(&folder, &node_listen)?;
        relay_child
            .until_ready(async || match relay.get::<Info>("v1/info").await {
                Ok(_) => Ok(()),
                Err(failure) => Err(failure.message().to_owned()),
            })
            .await?;
        ui.detail(format_args!("the relay is up at {url}"));
        node_child
            .until_ready(async || match TcpStream::connect(&node_listen).await {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("cannot reach the compute node at {node_listen}: {error}")),
            })
            .await?;
        ui.detail("the compute node is up");
        let mut agent_child = Child::agent(&folder, relay_port, &node_listen, money)?;
        let connected = async || match relay.get::<ProviderList>("v1/providers").await {
            Ok(list) if list.providers.is_empty() => Err("it is not connected to the relay".to_owned()),
            Ok(_) => Ok(()),
            Err(failure) => Err(failure.message().to_owned()),
        };
        agent_child.until_ready(connected).await?;
        ui.detail("the agent is connected");
        Ok(Self { folder, relay, api_key, _lock: lock, children: vec![agent_child, node_child, relay_child] })
    }

    /// Waits until the toy model can be asked.
    ///
    /// # Errors
    /// It is not served; the message has the end of the node's log.
    pub(crate) async fn serves_toy(&mut self) -> Outcome {
        let relay = self.relay();
        let served = async || match relay.get::<ModelList>("v1/models").await {
            Ok(list) if list.data.iter().any(|model| model.id == toy::NAME) => Ok(()),
            Ok(_) => Err(format!("nobody serves {}", toy::NAME)),
            Err(failure) => Err(failure.message().to_owned()),
        };
        let node = self.children.iter_mut().find(|child| child.program == Program::Node);
        match node {
            Some(node) => node.until_ready(served).await,
            None => Ok(()),
        }
    }

    /// A client of the relay, with its API key.
    pub(crate) fn relay(&self) -> Relay {
        self.relay.clone()
    }

    /// The relay's URL.
    pub(crate) fn url(&self) -> &str {
        self.relay.url()
    }

    /// The relay's API key.
    pub(crate) fn api_key(&self) -> &Secret {
        &self.api_key
    }

    /// Where everything lies.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Waits until one of the programs ends, which none should.
    pub(crate) async fn died(&mut self) -> Failure {
        let waits = self.children.iter_mut().map(|child| Box::pin(child.process.wait()));
        let (status, index, _) = select_all(waits).await;
        self.children[index].obituary("ended", status)
    }

    /// Ends the programs, in order, and kills those that do not end.
    pub(crate) async fn stop(mut self) {
        for child in &mut self.children {
            drop(child.stdin.take());
            if timeout(END, child.process.wait()).await.is_err() {
                // It may have ended just now; either way it is gone.
                let _ = child.process.kill().await;
            }
        }
    }
}

impl Child {
    fn relay(folder: &Path, port: u16, money: Option<&Money>) -> Outcome<Self> {
        let listen = format!("127.0.0.1:{port}");
        let (store, key) = (folder.join("relay"), folder.join("api-key"));
        let arguments: [&OsStr; 10] = [
            "--listen".as_ref(),
            listen.as_ref(),
            "--relay-id".as_ref(),
            RELAY_ID.as_ref(),
            "--store".as_ref(),
            store.as_ref(),
            "--api-key-file".as_ref(),
            key.as_ref(),
            "--drain-secs".as_ref(),
            "1".as_ref(),
        ];
        let more = money.map(Money::relay_flags).unwrap_or_default();
        Self::start(Program::Relay, folder, &with(&arguments, &more))
    }

    fn node(folder: &Path, listen: &str) -> Outcome<Self> {
        let (data, token) = (folder.join("node"), folder.join(TOKEN_FILE));
        // One thread: a model so small has no work for several.
        let model = format!("{}={},threads=1", toy::NAME, toy::place(folder)?.display());
        let arguments: [&OsStr; 11] = [
            "--listen".as_ref(),
            listen.as_ref(),
            "--data".as_ref(),
            data.as_ref(),
            "--compute-token-file".as_ref(),
            token.as_ref(),
            // Whoever can publish here is a user of this machine.
            "--allow-private-addresses".as_ref(),
            "--grace".as_ref(),
            "1s".as_ref(),
            "--model".as_ref(),
            model.as_ref(),
        ];
        Self::start(Program::Node, folder, &arguments)
    }

    fn agent(folder: &Path, relay_port: u16, node: &str, money: Option<&Money>) -> Outcome<Self> {
        let dial = format!("ws://127.0.0.1:{relay_port}{}", rpc::PROVIDER_CONNECT_PATH);
        let compute = format!("http://{node}");
        let (key, token, data) = (folder.join("provider.key"), folder.join(TOKEN_FILE), folder.join("agent"));
        let arguments: [&OsStr; 14] = [
            "--relay".as_ref(),
            dial.as_ref(),
            "--relay-id".as_ref(),
            RELAY_ID.as_ref(),
            "--provider-key-file".as_ref(),
            key.as_ref(),
            "--compute-url".as_ref(),
            compute.as_ref(),
            "--compute-token-file".as_ref(),
            token.as_ref(),
            "--data".as_ref(),
            data.as_ref(),
            "--drain-secs".as_ref(),
            "1".as_ref(),
        ];
        let more = money.map(Money::agent_flags).unwrap_or_default();
        Self::start(Program::Agent, folder, &with(&arguments, &more))
    }

    fn start(program: Program, folder: &Path, arguments: &[&OsStr]) -> Outcome<Self> {
        let what = format!("cannot start the {}", program.name());
        let log = folder.join(format!("{}.log", program.name()));
        let file = File::options().create(true).append(true).open(&log).or_failed(log.display())?;
        let mut command = Command::new(std::env::current_exe().or_failed(&what)?);
        command
            .arg(program.argument())
            .args(arguments)
            .arg("--exit-with-stdin")
            .stdin(Stdio::piped())
            .stdout(file.try_clone().or_failed(&what)?)
            .stderr(file)
            .kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            let name_text = name.to_string_lossy();
            if (name_text.starts_with("ZORAI_") && name_text != KEPT_VARIABLE)
                || name_text == "PROVIDER_PRIVATE_KEY"
            {
                command.env_remove(&name);
            }
        }
        // Ctrl-C on the terminal is for the parent, which then ends its children in order.
        #[cfg(unix)]
        command.process_group(0);
        let mut process = command.spawn().or_failed(&what)?;
        // Taken out of the handle: waiting on a handle closes the standard input in it.
        let stdin = process.stdin.take();
        Ok(Self { program, process, stdin, log })
    }

    async fn until_ready(&mut self, ready: impl AsyncFn() -> Result<(), String>) -> Outcome {
        let start = Instant::now();
        let mut why = String::new();
        while start.elapsed() < START {
            if let Some(status) = self.process.try_wait().transpose() {
                return Err(self.obituary("ended at its start", status));
            }
            match ready().await {
                Ok(()) => return Ok(()),
                Err(reason) => why = reason,
            }
            sleep(ASK).await;
        }
        Err(self.obituary("did not come up", Err(io::Error::new(io::ErrorKind::TimedOut, why))))
    }

    /// What happened, with the end of the log.
    fn obituary(&self, what: &str, status: io::Result<std::process::ExitStatus>) -> Failure {
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last: String = lines[lines.len().saturating_sub(LOG_LINES)..]
            .iter()
            .map(|line| format!("\n  {}", clean(line)))
            .collect();
        let (name, path) = (self.program.name(), self.log.display());
        Failure::failed(format_args!("the {name} {what} ({status}); the end of {path}:{last}"))
    }
}

/// Makes the market's folder, and the provider's key in it.
pub(super) fn prepare(folder: &Path) -> Outcome {
    std::fs::create_dir_all(folder).or_failed(folder.display())?;
    secret(&folder.join("provider.key"), "").map(drop)
}

fn with<'a>(arguments: &[&'a OsStr], more: &'a [String]) -> Vec<&'a OsStr> {
    arguments.iter().copied().chain(more.iter().map(OsStr::new)).collect()
}

/// Takes the folder for one market.
fn lock(folder: &Path) -> Outcome<File> {
    let path = folder.join(LOCK_FILE);
    let file = File::options().create(true).append(true).open(&path).or_failed(path.display())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let folder = folder.display();
            Err(Failure::failed(format_args!("another `zorai-compute dev` runs in {folder}"))
                .hint("end it, or give --data DIR"))
        }
        Err(TryLockError::Error(error)) => Err(error).or_failed(path.display()),
    }
}

/// A random secret of 64 hex digits after a prefix, kept in a file; what is there already is used again.
fn secret(path: &Path, prefix: &str) -> Outcome<Secret> {
    if !path.exists() {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(Failure::failed)?;
        private_file::create_new(path, format!("{prefix}{}", hex::encode(bytes)).as_bytes())
            .or_failed(path.display())?;
    }
    read_secret_file(path).map_err(Failure::failed)
}

/// Different loopback ports that nothing listens on.
fn free_ports<const N: usize>() -> Outcome<[u16; N]> {
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = free_port()?;
        *port = listener.local_addr()?.port();
        // Held until all are found, so that they differ.
        held.push(listener);
    }
    Ok(ports)
}

fn free_port() -> Outcome<TcpListener> {
    const TRIES: usize = 200;
    for _ in 0..TRIES {
        let random = getrandom::u32().map_err(Failure::failed)?;
        let offset = u16::try_from(random % u32::from(PORTS.end - PORTS.start)).unwrap_or_default();
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", PORTS.start + offset)) {
            return Ok(listener);
        }
    }
    Err(Failure::failed(format_args!("no free port between {} and {}", PORTS.start, PORTS.end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_market_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        let failure = lock(folder.path()).unwrap_err();
        assert!(failure.message().starts_with("another `zorai-compute dev` runs in "), "{failure:?}");
        drop(first);
        lock(folder.path()).unwrap();
    }

    #[test]
    fn ports_differ_and_secrets_stay() {
        let [a, b, c] = free_ports().unwrap();
        assert!(a != b && b != c && a != c);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let first = secret(&path, "zk-").unwrap();
        assert!(first.expose().starts_with("zk-") && first.expose().len() == 67);
        assert!(first.matches(secret(&path, "zk-").unwrap().expose()));
    }
}
