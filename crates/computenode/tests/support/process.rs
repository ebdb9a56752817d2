//! The program in a process of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::http::Api;

/// A node that serves.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) api: Api,
    /// Keeps the pipe open: a program whose log nobody takes would fail to write it.
    pub(crate) log: BufReader<ChildStderr>,
}

impl Process {
    /// Starts a node whose data and files of tasks are in `folder`.
    pub(crate) fn start(folder: &Path, flags: &[&str]) -> Self {
        let command = Command::new(env!("CARGO_BIN_EXE_compute-node"));
        Self::start_by(command, folder, &folder.join("data/compute-token"), flags)
    }

    /// As [`Self::start`], by a command that takes the node's arguments, and with the node's token at this place.
    pub(crate) fn start_by(mut command: Command, folder: &Path, token: &Path, flags: &[&str]) -> Self {
        let mut child = command
            .args(["--listen", "127.0.0.1:0", "--log-format", "json", "--exit-with-stdin", "--grace", "0s"])
            .arg("--data")
            .arg(folder.join("data"))
            .arg("--compute-token-file")
            .arg(token)
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
        let token = std::fs::read_to_string(token).unwrap();
        Self { child, api: Api::new(addr, token.trim()), log }
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until it has ended.
    pub(crate) fn end(mut self) -> ExitStatus {
        let (done, ended) = mpsc::channel();
        std::thread::spawn(move || {
            std::io::copy(&mut self.log, &mut std::io::sink()).unwrap();
            done.send(self.child.wait().unwrap())
        });
        ended.recv_timeout(Duration::from_secs(30)).expect("the node did not end")
    }
}
