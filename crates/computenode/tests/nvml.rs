//! The program with NVIDIA's management library, of which a stand-in takes the place where there is no GPU: the library is loaded, asked and
//! believed as the real one would be.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use support::process::Process;

/// Longer than it takes until a GPU's trouble is seen.
const PATIENCE: Duration = Duration::from_secs(30);

const A100: &str = "GPU-11111111-1111-1111-1111-111111111111";

/// A node that finds the stand-in in `folder`.
fn node(folder: &Path) -> Command {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nvml/standin.c");
    let library = folder.join("libnvidia-ml.so.1");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut compile = Command::new(compiler);
    compile.args(["-shared", "-fPIC", "-w", "-o"]).args([&library, &source]);
    assert!(compile.status().unwrap().success(), "{compile:?}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_compute-node"));
    command.env("LD_LIBRARY_PATH", folder).env("NVML_STANDIN", folder);
    command
}

#[test]
fn a_check_names_the_gpus_that_nvml_finds() {
    let folder = tempfile::tempdir().unwrap();
    let out = node(folder.path())
        .args(["check", "--json", "--data"])
        .arg(folder.path().join("data"))
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let gpus: Vec<&str> = findings
        .iter()
        .filter(|finding| finding["name"] == "gpu" && finding["status"] == "ok")
        .map(|finding| finding["message"].as_str().unwrap())
        .collect();
    assert_eq!(
        gpus,
        [
            "0: NVIDIA A100-SXM4-80GB, 81920 MiB, 80000 MiB free, driver 580.65.06",
            "1: NVIDIA H100 80GB HBM3 MIG 3g.40gb, 40448 MiB, 40448 MiB free, driver 580.65.06",
            "2: NVIDIA H100 80GB HBM3 MIG 4g.40gb, 40448 MiB, 40000 MiB free, driver 580.65.06",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn gpus_are_reported_and_unwell_ones_are_taken_out_of_the_offer() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("data/compute-token");
    let node = Process::start_by(node(folder.path()), folder.path(), &token, &[]);
    let status = node.api.json(Method::GET, "/status", None).await.1;
    let devices = status["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 3, "{status}");
    assert_eq!(
        devices[0],
        json!({ "kind": "gpu", "name": "NVIDIA A100-SXM4-80GB", "vram_mb": 81_920, "uuid": A100 })
    );
    assert_eq!(
        (&status["free_vram_mb"], &status["gpu_problems"]),
        (&json!([80_000, 40_448, 40_000]), &json!([]))
    );
    // The program with the id 1 is no task's.
    assert_eq!(status["foreign_gpu_use"][0], json!({ "vram_mb": 1920, "utilization_percent": 37 }));

    // The H100's errors are those of its instances, too.
    std::fs::write(folder.path().join("ecc"), "3").unwrap();
    std::fs::write(folder.path().join("xid"), "79").unwrap();
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    let unwell = async {
        loop {
            looks.tick().await;
            let status = node.api.json(Method::GET, "/status", None).await.1;
            let problems = status["gpu_problems"].as_array().unwrap().clone();
            if problems.len() == 3 {
                return problems;
            }
        }
    };
    let problems = tokio::time::timeout(PATIENCE, unwell).await.expect("no GPU is unwell");
    let problems: Vec<&str> = problems.iter().map(|problem| problem.as_str().unwrap()).collect();
    assert!(problems[0].contains("Xid 79"), "{problems:?}");
    assert!(problems[1].contains("3 uncorrected memory errors"), "{problems:?}");
    node.signal("TERM");
    assert!(node.end().success());
}
