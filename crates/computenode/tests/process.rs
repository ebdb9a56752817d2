//! The program itself: it comes back from `kill -9`, and ends when it is told to.
#![cfg(unix)]

mod support;

use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use support::http::{compute_request, ended, task_id};
use support::process::Process;

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
async fn lines_of_the_log_name_their_task() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Process::start(folder.path(), &[]);
    node.api.json(Method::POST, "/compute", Some(&compute_request(folder.path(), 1, "upper", "x"))).await;
    assert_eq!(ended(&node.api, 1).await["phase"], "done");
    node.signal("TERM");
    let mut log = String::new();
    node.log.read_to_string(&mut log).unwrap();
    let line = log.lines().find(|line| line.contains("task ended")).expect("the end is logged");
    let event: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (&event["span"]["task"], &event["span"]["attempt"]),
        (&json!(task_id(1)), &json!(1)),
        "{event}"
    );
    assert!(node.end().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_does_not_outlive_its_parent() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Process::start(folder.path(), &[]);
    drop(node.child.stdin.take());
    assert!(node.end().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_get_none_of_the_nodes_rights() {
    const NOBODY: u32 = 65_534;
    // As systemd does for AmbientCapabilities: a right that goes on to whatever is executed.
    let command = || {
        let mut command = Command::new("setpriv");
        let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".to_owned()];
        command.args(user).args(["--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service"]);
        command.arg(env!("CARGO_BIN_EXE_compute-node"));
        command
    };
    let tried = command().arg("--version").output();
    if !tried.as_ref().is_ok_and(|tried| tried.status.success()) {
        println!("skipped: rights cannot be handed on here: {tried:?}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let (script, seen) = (folder.path().join("engine"), folder.path().join("seen"));
    let look = "grep CapAmb /proc/self/status > $1.new; mv $1.new $1; exec sleep 600";
    std::fs::write(&script, look).unwrap();
    let engine = format!("look=sh {} {} {{port}}", script.display(), seen.display());
    let flags = ["--no-container", "--engine-command", &engine, "--managed-engine", "m=look,model=/none"];
    let node = Process::start_by(command(), folder.path(), &folder.path().join("token"), &flags);
    let own = std::fs::read_to_string(format!("/proc/{}/status", node.child.id())).unwrap();
    let right =
        |of: &str, set: &str| of.lines().find(|line| line.starts_with(set)).unwrap().ends_with("0400");
    assert!(right(&own, "CapEff:"), "the node has lost its right: {own}");
    let waiting = async {
        while !seen.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("the engine does not start");
    let engines = std::fs::read_to_string(&seen).unwrap();
    assert!(!right(&engines, "CapAmb:"), "the engine has the node's right: {engines}");
    node.signal("TERM");
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
fn the_example_configuration_is_one() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/compute-node.toml");
    let text = std::fs::read_to_string(&example).unwrap();
    // Also what is commented out is a line that works.
    let uncommented = |line: &str| {
        let rest = line.strip_prefix("# ")?;
        rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')).then(|| format!("{rest}\n"))
    };
    let all: String =
        text.lines().map(|line| uncommented(line).unwrap_or_else(|| format!("{line}\n"))).collect();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("all.toml");
    std::fs::write(&config, &all).unwrap();
    let help = Command::new(env!("CARGO_BIN_EXE_compute-node")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let flags = help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--").or(line.trim_start().strip_prefix("-h, --")));
    for flag in flags.filter_map(|rest| rest.split([' ', '=', '[']).next()) {
        let excused = ["config", "help", "version"].contains(&flag);
        assert!(
            excused || all.lines().any(|line| line.starts_with(&format!("{flag} = "))),
            "{flag} has no line in {text}"
        );
    }
    for file in [&example, &config] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_compute-node"));
        // A wrong file is told before anything else; this one gets as far as the token that is not there.
        program.args(["drain", "--config"]).arg(file).args(["--compute-token-file", "/nowhere/token"]);
        let output = program.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("/nowhere/token"), "{text}");
    }
}

#[test]
fn a_wrong_configuration_is_told_by_file_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("node.toml");
    for (text, expected) in [
        ("slots = 0", "node.toml:1: slots: invalid value '0'"),
        ("\nslot = 1", "node.toml:2: slot: there is no such key\nhint: the keys are allow-dir, "),
        ("slots 1", "node.toml:1: "),
    ] {
        std::fs::write(&config, text).unwrap();
        let mut program = Command::new(env!("CARGO_BIN_EXE_compute-node"));
        let output = program.env("ZORAI_NODE_CONFIG", &config).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}: {told}");
        assert!(told.starts_with("error: ") && told.contains(expected), "{text}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_and_variables_win_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("node.toml");
    std::fs::write(&config, "slots = 7\nlisten = \"127.0.0.1:1\"\n").unwrap();
    let node = Process::start(folder.path(), &["--config", config.to_str().unwrap()]);
    let (_, report) = node.api.json(Method::GET, "/status", None).await;
    assert_eq!(report["slots"], 7, "the file's; the address is the flag's");
    node.signal("TERM");
    assert!(node.end().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_drains_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let node = Process::start(folder.path(), &[]);
    let (data, addr) = (folder.path().join("data"), node.api.addr());
    let tell = |action: &str| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_compute-node"));
        let output = program.args([action, "--listen", &addr, "--data"]).arg(&data).output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    assert_eq!(tell("drain").1, "draining: no more tasks are taken; 0 running\n");
    let (_, report) = node.api.json(Method::GET, "/status", None).await;
    assert_eq!(report["draining"], true);
    assert_eq!(tell("resume").1, "taking tasks again; 0 running\n");
    node.signal("TERM");
    assert!(node.end().success());
    let (status, _, told) = tell("drain");
    assert_eq!(status, Some(1));
    assert!(told.contains("no compute node answers on") && told.contains("hint: "), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let check = |flags: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_compute-node"));
        let output = program.args(["check", "--json", "--data"]).arg(&data).args(flags).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["can_serve"], output.status.success(), "{report}");
        let findings = report["findings"].as_array().unwrap().clone();
        let find = move |name: &str| findings.iter().find(|finding| finding["name"] == name).unwrap().clone();
        (output.status.code(), find)
    };
    let (status, find) =
        check(&["--listen", "127.0.0.1:0", "--min-free-disk", "0", "--gpu-name", "G", "--gpu-vram-mb", "8"]);
    assert_eq!(status, Some(0));
    assert_eq!(
        (&find("gpu")["status"], &find("gpu")["message"]),
        (&json!("ok"), &json!("0: G, 8 MiB, 8 MiB free"))
    );
    assert!(find("runtimes")["message"].as_str().unwrap().contains("wasm"));
    for name in ["limits", "data", "disk", "token", "port", "engines", "clock"] {
        assert!(["ok", "warn"].contains(&find(name)["status"].as_str().unwrap()), "{}", find(name));
    }
    assert!(!data.exists(), "a check changes nothing");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_addr = taken.local_addr().unwrap().to_string();
    let (status, find) = check(&["--listen", &taken_addr, "--min-free-disk", "9000000000000000000"]);
    assert_eq!(status, Some(1));
    for name in ["port", "disk"] {
        assert_eq!(find(name)["status"], "fail");
        assert!(find(name)["fix"].as_str().is_some());
    }

    let node = Process::start(folder.path(), &[]);
    let (status, find) = check(&["--listen", &node.api.addr(), "--min-free-disk", "0"]);
    assert_eq!(status, Some(0), "{} {}", find("port"), find("data"));
    assert!(find("port")["message"].as_str().unwrap().starts_with("a compute node runs on"));
    node.signal("TERM");
    assert!(node.end().success());
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
