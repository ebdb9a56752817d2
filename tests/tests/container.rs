//! Containers through the whole market: an image and a folder from the requester's disk, a result, logs, and a failure's code.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

#[path = "../../crates/computenode/tests/images/engines.rs"]
#[expect(dead_code, reason = "the tests of the runtime ask engines for more")]
mod engines;
#[path = "../../crates/computenode/tests/images/mod.rs"]
#[expect(dead_code, reason = "the tests of the runtime use more kinds of images")]
mod images;

use system_tests::{Market, PROVIDER_KEYS, free_port, said};

use crate::engines::Engine;

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_from_an_archive_on_a_folder() {
    let Some(engine) = Engine::podman().or_else(Engine::docker) else { return };
    let market = Market::new();
    let node_port = free_port();
    let _node =
        market.node("node", node_port, &["--container-socket", engine.socket.to_str().unwrap()]).await;
    let _relay = market.relay(&[]).await;
    let _agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &[]);
    market.providers(1).await;

    let layer = images::busybox_layer();
    let config = images::config(images::architecture(), &[&layer]);
    let archive = images::docker_archive(&config, &[&layer], "example.org/busybox:1");
    std::fs::write(market.path("image.tar"), archive).unwrap();
    std::fs::create_dir_all(market.path("input/deep")).unwrap();
    std::fs::write(market.path("input/first"), "one folder, ").unwrap();
    std::fs::write(market.path("input/deep/second"), "two files").unwrap();

    let (image, folder, result) = (market.path("image.tar"), market.path("input"), market.path("result"));
    let file = market.path("input/first");
    let run = async |input: &std::path::Path, script: &str, more: &[&str]| {
        let (image, input) = (image.to_str().unwrap(), input.to_str().unwrap());
        let task = ["run", "--runtime", "container", "--model", image, "--input", input];
        let program = ["--arg", "/bin/sh", "--arg", "-c", "--arg", script, "--poll"];
        let out = market.cli(&[&task[..], &program, more].concat()).await;
        let id = said(&out).split_ascii_whitespace().find(|word| word.starts_with("0x")).map(str::to_owned);
        let id = id.unwrap_or_else(|| panic!("no task in: {}", said(&out)));
        (out, id)
    };

    let script = "cat /in/first /in/deep/second > /out/joined; echo joined them >&2";
    let (out, task) = run(&folder, script, &["--output", result.to_str().unwrap()]).await;
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(std::fs::read_to_string(&result).unwrap(), "one folder, two files");
    let logs = market.cli(&["logs", &task]).await;
    assert!(logs.status.success() && said(&logs).contains("joined them"), "{}", said(&logs));

    let script = "cat /in/input; echo it broke >&2; exit 3";
    let (out, task) = run(&file, script, &["--max-attempts", "1"]).await;
    assert!(!out.status.success(), "{}", said(&out));
    let status = market.cli(&["status", &task]).await;
    let told = said(&status);
    assert!(told.contains("exit_nonzero") && told.contains("it broke"), "{told}");

    let foreign = market.path("foreign.tar");
    let config = images::config("s390x", &[&layer]);
    std::fs::write(&foreign, images::docker_archive(&config, &[&layer], "example.org/busybox:1")).unwrap();
    let (foreign, file) = (foreign.to_str().unwrap(), file.to_str().unwrap());
    let run = [
        "run",
        "--runtime",
        "container",
        "--model",
        foreign,
        "--input",
        file,
        "--max-attempts",
        "1",
        "--poll",
    ];
    let out = market.cli(&run).await;
    let (told, code) = (said(&out), "image_without_platform");
    assert_eq!(out.status.code(), Some(1), "{told}");
    let help = rpc::failure::hint(code).unwrap();
    assert!(told.contains(&format!("the task is failed: {code}: ")) && told.contains(help), "{told}");
    let task = told.split_ascii_whitespace().find(|word| word.starts_with("0x") && word.len() == 66).unwrap();
    for command in ["status", "explain"] {
        let told = said(&market.cli(&[command, task]).await);
        assert!(told.contains(code) && told.contains(help), "{command}: {told}");
    }
}
