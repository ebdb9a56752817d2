//! A development chain as a child process: anvil, for tests and for a market on one machine.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use alloy_primitives::Address;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use url::Url;

/// How long anvil may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Names the program, where it is not on the path.
pub const PROGRAM_VARIABLE: &str = "ZORAI_ANVIL";

/// The keys of the first accounts of every anvil, rich on that chain and known to everybody: nothing of value may ever be theirs.
pub const KEYS: [&str; 6] = [
    "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
    "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
    "0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
    "0x8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba",
];

/// Why there is no development chain.
#[derive(Debug, thiserror::Error)]
pub enum AnvilError {
    /// There is no such program.
    #[error("anvil is not on the path, nor named by {PROGRAM_VARIABLE}, nor in contracts/node_modules")]
    Missing,
    /// It cannot be started.
    #[error("{} cannot be started: {why}", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// A running chain, which ends when this is dropped.
#[derive(Debug)]
pub struct Anvil {
    url: Url,
    _child: Child,
}

impl Anvil {
    /// Looks for the program: named by `ZORAI_ANVIL`, on the path, or installed for the contract's tests in this folder's or a parent's
    /// `contracts/node_modules`.
    pub fn find() -> Option<PathBuf> {
        if let Some(named) = std::env::var_os(PROGRAM_VARIABLE).filter(|name| !name.is_empty()) {
            let path = PathBuf::from(named);
            return path.is_file().then_some(path);
        }
        let on_path = std::env::var_os("PATH").and_then(|paths| {
            std::env::split_paths(&paths)
                .map(|folder| folder.join(format!("anvil{}", std::env::consts::EXE_SUFFIX)))
                // The npm packages' launchers are scripts that do not pass an end on to their child.
                .find(|path| path.is_file() && !is_script(path))
        });
        on_path.or_else(|| {
            let here = std::env::current_dir().ok()?;
            here.ancestors().map(in_checkout).find(|path| path.is_file())
        })
    }

    /// Starts a chain of its own on a free port of loopback.
    ///
    /// # Errors
    /// There is no program, or it does not come to listen.
    pub async fn start() -> Result<Self, AnvilError> {
        Self::start_with(&[]).await
    }

    /// As [`Anvil::start`], with further arguments, such as `--no-mining` or `--block-time`.
    ///
    /// # Errors
    /// As [`Anvil::start`].
    pub async fn start_with(args: &[&str]) -> Result<Self, AnvilError> {
        let path = Self::find().ok_or(AnvilError::Missing)?;
        let failed = |why: String| AnvilError::Start { path: path.clone(), why };
        let mut child = Command::new(&path)
            .args(["--host", "127.0.0.1", "--port", "0"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let stdout = child.stdout.take().ok_or_else(|| failed("it has no output".to_owned()))?;
        let mut lines = BufReader::new(stdout).lines();
        let listening = async {
            while let Some(line) = lines.next_line().await.map_err(|error| failed(error.to_string()))? {
                if let Some(address) = line.strip_prefix("Listening on ") {
                    return format!("http://{}", address.trim())
                        .parse::<Url>()
                        .map_err(|error| failed(error.to_string()));
                }
            }
            Err(failed("it ended before it listened".to_owned()))
        };
        let url = tokio::time::timeout(START_TIMEOUT, listening)
            .await
            .map_err(|_| failed(format!("it does not listen after {START_TIMEOUT:?}")))??;
        // What it goes on to say is read and dropped, so that it never waits for a reader; ends with the child's output.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { url, _child: child })
    }

    /// Where it listens.
    pub fn url(&self) -> Url {
        self.url.clone()
    }
}

/// The address of an account of [`KEYS`].
pub const ACCOUNTS: [Address; 6] = [
    alloy_primitives::address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266"),
    alloy_primitives::address!("70997970C51812dc3A010C7d01b50e0d17dc79C8"),
    alloy_primitives::address!("3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"),
    alloy_primitives::address!("90F79bf6EB2c4f870365E785982E1f101E93b906"),
    alloy_primitives::address!("15d34AAf54267DB7D7c367839AAf71A00a2C6A65"),
    alloy_primitives::address!("9965507D1a55bcC2695C58ba16FB37d819B0A4dc"),
];

fn in_checkout(root: &Path) -> PathBuf {
    let system = match std::env::consts::OS {
        "macos" => "darwin",
        "windows" => "win32",
        other => other,
    };
    let processor = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    root.join("contracts/node_modules/@foundry-rs")
        .join(format!("anvil-{system}-{processor}/bin/anvil{}", std::env::consts::EXE_SUFFIX))
}

fn is_script(path: &Path) -> bool {
    use std::io::Read as _;
    let mut start = [0; 2];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok_and(|()| &start == b"#!")
}
