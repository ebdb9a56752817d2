//! A child process ends by a signal, by a second signal, and with its parent's pipe.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use daemon::{Shutdown, ShutdownArgs};

/// Which of the child's ways to behave a re-run of this test binary plays.
const ROLE: &str = "DAEMON_TEST_ROLE";

/// Not a test of its own: what the spawned child does. Without the role it does nothing.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let log_level = "info".to_owned();
    daemon::init_logging(&daemon::LogArgs { log_format: daemon::LogFormat::Text, log_level }).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let shutdown = Shutdown::install(ShutdownArgs { exit_with_stdin: role == "stdin" }).unwrap();
        println!("ready");
        shutdown.token().cancelled().await;
        println!("cancelled");
        if role == "stuck" {
            std::future::pending::<()>().await;
        }
    });
    std::process::exit(7);
}

struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Running {
    fn start(role: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(if role == "deaf" { Stdio::piped() } else { Stdio::inherit() })
            .spawn()
            .unwrap();
        // Nobody reads the log of the role "deaf" from here on.
        drop(child.stderr.take());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut running = Self { child, lines };
        running.wait_for("ready");
        running
    }

    fn wait_for(&mut self, text: &str) {
        assert!(self.lines.by_ref().any(|line| line.unwrap().ends_with(text)), "the child never said {text}");
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn end(mut self) -> ExitStatus {
        let (done, ended) = mpsc::channel();
        std::thread::spawn(move || done.send(self.child.wait().unwrap()));
        ended.recv_timeout(Duration::from_secs(20)).expect("the child did not end")
    }
}

#[test]
fn either_signal_cancels_the_token() {
    for name in ["TERM", "INT"] {
        let mut running = Running::start("plain");
        running.signal(name);
        running.wait_for("cancelled");
        assert_eq!(running.end().code(), Some(7));
    }
}

#[test]
fn signals_are_heard_when_nobody_reads_the_log() {
    let mut running = Running::start("deaf");
    running.signal("TERM");
    running.wait_for("cancelled");
    assert_eq!(running.end().code(), Some(7));
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let mut running = Running::start("stuck");
    running.signal("TERM");
    running.wait_for("cancelled");
    running.signal("TERM");
    assert_eq!(running.end().code(), Some(130));
}

#[test]
fn the_end_of_stdin_cancels_only_where_asked() {
    let mut asked = Running::start("stdin");
    drop(asked.child.stdin.take());
    asked.wait_for("cancelled");
    assert_eq!(asked.end().code(), Some(7));

    let mut not_asked = Running::start("plain");
    drop(not_asked.child.stdin.take());
    not_asked.signal("TERM");
    not_asked.wait_for("cancelled");
    assert_eq!(not_asked.end().code(), Some(7));
}
