//! The program itself: it comes back from `kill -9`, and ends when it is told to.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use support::http::{Api, compute_request, ended, task_id};

struct Process {
    child: Child,
    api: Api,
    /// Keeps the pipe open: a program whose log nobody takes would fail to write it.
    log: BufReader<ChildStderr>,
}

impl Process {
    fn start(folder: &Path, flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_compute-node"))
            .args(["--listen", "127.0.0.1:0", "--log-format", "json", "--exit-with-stdin", "--grace", "0s"])
            .arg("--data")
            .arg(folder.join("data"))
            .arg("--allow-dir")
            .arg(folder)
            .args(flags)
            .env_remove("ZORAI_LOG")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let addr = loop {
            let mut line = String::new();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the node ended at its start");
            let event: serde_json::Value = serde_json::from_str(&line).unwrap();
            if let Some(addr) = event["fields"]["addr"].as_str() {
                break addr.parse().unwrap();
            }
        };
        let token = std::fs::read_to_string(folder.join("data/compute-token")).unwrap();
        Self { child, api: Api::new(addr, token.trim()), log }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn end(mut self) -> ExitStatus {
        let (done, ended) = mpsc::channel();
        std::thread::spawn(move || {
            std::io::copy(&mut self.log, &mut std::io::sink()).unwrap();
            done.send(self.child.wait().unwrap())
        });
        ended.recv_timeout(Duration::from_secs(30)).expect("the node did not end")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let node = Process::start(folder.path(), &["--slots", "2"]);
    node.api.json(Method::POST, "/compute", Some(&compute_request(folder.path(), 1, "upper", "kept"))).await;
    let done = ended(&node.api, 1).await;
    node.api.json(Method::POST, "/compute", Some(&compute_request(folder.path(), 2, "spin", ""))).await;
    node.signal("KILL");
    assert!(!node.end().success());

    let node = Process::start(folder.path(), &[]);
    assert_eq!(ended(&node.api, 1).await, done);
    assert_eq!(node.api.text(&format!("/result/{}", task_id(1))).await, "KEPT");
    let failed = ended(&node.api, 2).await;
    assert_eq!((&failed["phase"], &failed["failure"]["code"]), (&json!("failed"), &json!("node_restarted")));
    node.signal("TERM");
    assert!(node.end().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_running_tasks_after_their_grace() {
    let folder = tempfile::tempdir().unwrap();
    let node = Process::start(folder.path(), &[]);
    node.api.json(Method::POST, "/compute", Some(&compute_request(folder.path(), 1, "spin", ""))).await;
    node.signal("TERM");
    assert!(node.end().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_does_not_outlive_its_parent() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Process::start(folder.path(), &[]);
    drop(node.child.stdin.take());
    assert!(node.end().success());
}

#[test]
fn help_teaches_and_wrong_use_says_so() {
    let program = || Command::new(env!("CARGO_BIN_EXE_compute-node"));
    let help = String::from_utf8(program().arg("--help").output().unwrap().stdout).unwrap();
    for expected in ["127.0.0.1:8645", "ZORAI_NODE_SLOTS", "Examples:", "--compute-token-file"] {
        assert!(help.contains(expected), "{expected} is missing in {help}");
    }
    assert!(!help.contains("exit-with-stdin"));
    assert!(help.contains("compute-token)\" \\\n"), "the example is one command: {help}");
}

#[test]
fn what_keeps_it_from_starting_is_said_in_style() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let data = folder.path().join("data");
    let missing = folder.path().join("missing");
    let cases: [(&[&str], i32, &str); 5] = [
        (&["--listen", "0.0.0.0:0"], 2, "--allow-remote"),
        (&["--listen", &taken], 1, "hint: another program listens there; choose another --listen"),
        (&["--listen", "127.0.0.1:0", "--allow-dir", missing.to_str().unwrap()], 2, "hint: name a folder"),
        (&["--listen", "127.0.0.1:0", "--log-level", "link=loud"], 2, "hint: give a level"),
        (&["--listen", "nowhere"], 2, "hint:"),
    ];
    for (flags, status, hint) in cases {
        let mut program = Command::new(env!("CARGO_BIN_EXE_compute-node"));
        program.arg("--data").arg(&data).args(flags).env("RUST_BACKTRACE", "1").env_remove("ZORAI_LOG");
        let output = program.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{flags:?}: {text}");
        assert!(text.starts_with("error: ") && text.contains(hint), "{flags:?}: {text}");
        assert!(!text.contains("backtrace") && !text.contains("Caused by"), "{flags:?}: {text}");
        assert_eq!(text.matches("os error").count(), usize::from(text.contains("os error")), "{text}");
    }
}
