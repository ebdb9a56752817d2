//! The program: started, waited for, and what it said.

use std::path::Path;
use std::process::{Output, Stdio};

use tokio::process::Child;

use crate::support::{API_KEY, PATIENCE, REQUESTER_KEY};

/// Runs the program with nothing of the test's environment but what it is given.
pub(crate) async fn cli(
    home: &Path,
    arguments: &[&str],
    environment: &[(&str, &str)],
    stdin: &[u8],
) -> Output {
    ended(start_program(home, arguments, environment), arguments, stdin).await
}

/// Starts it in the same way.
pub(crate) fn start_program(home: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Child {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_zorai-compute"))
        .args(arguments)
        .env_clear()
        .env("ZORAI_HOME", home.join("home"))
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Waits until the program has ended.
pub(crate) async fn ended(mut child: Child, arguments: &[&str], stdin: &[u8]) -> Output {
    use tokio::io::AsyncWriteExt as _;

    let mut pipe = child.stdin.take().unwrap();
    // A command that does not read may be gone already.
    let _ = pipe.write_all(stdin).await;
    drop(pipe);
    let out = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let out = out.unwrap_or_else(|_| panic!("{arguments:?} does not end")).unwrap();
    for secret in [API_KEY, REQUESTER_KEY] {
        assert!(!said(&out).contains(secret), "a secret was printed:\n{}", said(&out));
    }
    out
}

/// Runs the program with a relay on a terminal of its own, which types what a script says once it has seen what the script waits for.
pub(crate) async fn terminal(
    relay: &str,
    home: &Path,
    arguments: &[&str],
    script: &serde_json::Value,
) -> Output {
    let mut python = tokio::process::Command::new("python3");
    python
        .args(["-I", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/terminal.py"), &script.to_string()])
        .arg(env!("CARGO_BIN_EXE_zorai-compute"))
        .args(arguments)
        .env("ZORAI_HOME", home.join("home"))
        .env("ZORAI_RELAY", relay)
        .env("ZORAI_AI_API_KEY", API_KEY)
        .env("TERM", "xterm")
        .kill_on_drop(true);
    tokio::time::timeout(PATIENCE, python.output()).await.unwrap().unwrap()
}

pub(crate) fn code(out: &Output) -> i32 {
    out.status.code().unwrap()
}

pub(crate) fn stdout(out: &Output) -> String {
    String::from_utf8(out.stdout.clone()).unwrap()
}

pub(crate) fn stderr(out: &Output) -> String {
    String::from_utf8(out.stderr.clone()).unwrap()
}

pub(crate) fn json(out: &Output) -> serde_json::Value {
    serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(out)))
}

pub(crate) fn said(out: &Output) -> String {
    format!(
        "{}\n--- stdout\n{}\n--- stderr\n{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        stderr(out)
    )
}
