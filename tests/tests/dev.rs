//! `zorai-compute dev`: the main job in one command.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::{Command, Stdio};

use system_tests::{Process, program, said};

fn weights() -> String {
    std::env::var("ZORAI_TEST_WEIGHTS").unwrap_or_else(|_| {
        concat!(env!("CARGO_MANIFEST_DIR"), "/../target/weights/all-MiniLM-L6-v2").to_owned()
    })
}

#[test]
fn the_demo_embeds_a_real_text_with_the_real_model() {
    let home = tempfile::tempdir().unwrap();
    let out = Command::new(program("zorai-compute"))
        .args(["dev", "--demo", "--weights", &weights()])
        .env("ZORAI_HOME", home.path())
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", said(&out));
    let text = said(&out).to_lowercase();
    for word in ["open", "accepted", "submitted", "task", "provider", "model", "input", "result"] {
        assert!(text.contains(word), "{word} is missing:\n{text}");
    }
    // With a chain it is paid, and each transaction shown; without one it says that no money moves.
    let is_paid = text.contains("paid     transaction 0x") && text.contains("requester had ");
    let is_free = text.contains("settlement is off") && text.contains("completed");
    assert!(is_paid != is_free, "{text}");
}

#[test]
fn the_demo_without_weights_runs_a_wasm_task_and_says_so_first() {
    let home = tempfile::tempdir().unwrap();
    let out = Command::new(program("zorai-compute"))
        .args(["dev", "--demo", "--weights", "none"])
        .env("ZORAI_HOME", home.path())
        .env("ZORAI_ANVIL", home.path().join("none"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", said(&out));
    let talk = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
    let first = talk.lines().find(|line| !line.trim().is_empty()).unwrap().to_lowercase();
    assert!(first.contains("wasm"), "{}", said(&out));
    assert!(talk.contains("settlement is off") && talk.contains("name it in ZORAI_ANVIL"), "{}", said(&out));
}

/// Processes whose environment carries this home folder.
fn alive(home: &std::path::Path) -> Vec<u32> {
    let marker = format!("ZORAI_HOME={}", home.display());
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|id: &u32| {
            std::fs::read(format!("/proc/{id}/environ")).is_ok_and(|environment| {
                environment.split(|byte| *byte == 0).any(|entry| entry == marker.as_bytes())
            })
        })
        .collect()
}

async fn none_left(home: &std::path::Path) {
    let deadline = std::time::Instant::now() + system_tests::PATIENCE;
    while !alive(home).is_empty() {
        assert!(std::time::Instant::now() < deadline, "still there: {:?}", alive(home));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

async fn started(folder: &std::path::Path, home: &std::path::Path) -> Process {
    let mut command = Command::new(program("zorai-compute"));
    command.args(["dev"]).env("ZORAI_HOME", home);
    let process = Process::start(folder, "dev", command);
    let deadline = std::time::Instant::now() + system_tests::PATIENCE;
    while !process.log().contains("zorai-compute run") {
        assert!(std::time::Instant::now() < deadline, "dev never got up:\n{}", process.log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(
        alive(home).len() >= 4,
        "dev, relay, agent and node are processes of their own: {:?}",
        alive(home)
    );
    process
}

#[tokio::test]
async fn dev_stays_up_and_ends_cleanly_on_ctrl_c() {
    let (folder, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut dev = started(folder.path(), home.path()).await;
    dev.signal("INT");
    assert!(dev.ended().await.success(), "{}", dev.log());
    none_left(home.path()).await;
}

#[tokio::test]
async fn killing_dev_leaves_no_process_behind() {
    let (folder, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut dev = started(folder.path(), home.path()).await;
    dev.kill();
    none_left(home.path()).await;
}
