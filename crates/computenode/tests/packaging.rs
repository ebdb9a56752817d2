//! The systemd units: valid to systemd where it is there, and naming only what the programs know.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// What a node that lets containers out needs besides its unit.
const DROP_IN: &str = "zorai-compute-node.service.d/egress.conf";

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging")
}

/// The value of a key, in its last line.
fn value(unit: &str, key: &str) -> String {
    let mut lines = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    lines.next_back().unwrap_or_else(|| panic!("no {key}")).to_owned()
}

#[test]
fn the_units_are_valid_to_systemd() {
    let units = ["zorai-compute-node.service", "zorai-compute-agent.service"];
    // systemd looks for the programs: the units are checked with one that is everywhere.
    let folder = tempfile::tempdir().unwrap();
    for unit in units {
        let text = std::fs::read_to_string(packaging().join("systemd").join(unit)).unwrap();
        let program = value(&text, "ExecStart").split(' ').next().unwrap().to_owned();
        std::fs::write(folder.path().join(unit), text.replace(&program, "/bin/sh")).unwrap();
    }
    std::fs::create_dir(folder.path().join(DROP_IN).parent().unwrap()).unwrap();
    std::fs::copy(packaging().join("systemd").join(DROP_IN), folder.path().join(DROP_IN)).unwrap();
    let mut verify = Command::new("systemd-analyze");
    let verified = verify.arg("verify").args(units.map(|unit| folder.path().join(unit))).output();
    match verified {
        Ok(output) => {
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            let about_ours: Vec<&str> = told.lines().filter(|line| line.contains("zorai-compute-")).collect();
            assert!(about_ours.is_empty(), "{told}");
        }
        Err(error) => eprintln!("skipped: systemd-analyze is not here: {error}"),
    }
}

#[test]
fn the_nodes_unit_names_what_the_node_knows() {
    let unit = std::fs::read_to_string(packaging().join("systemd/zorai-compute-node.service")).unwrap();
    let help = Command::new(env!("CARGO_BIN_EXE_compute-node")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for flag in value(&unit, "ExecStart").split(' ').filter(|word| word.starts_with("--")) {
        assert!(help.contains(&format!("{flag} <")), "{flag} is no flag");
    }
    let stop: u64 = value(&unit, "TimeoutStopSec").trim_end_matches('s').parse().unwrap();
    // The grace, what cancelled tasks, connections and engines get after it, and the threads' last second.
    assert!(stop > 10 + 20 + 5 + 10 + 1, "systemd would kill the node before its tasks have ended");
    for engine in ["docker.service", "podman.socket"] {
        assert!(value(&unit, "After").split(' ').any(|unit| unit == engine), "it starts before {engine}");
    }
    for key in ["NoNewPrivileges", "ProtectHome", "PrivateTmp"] {
        assert_eq!(value(&unit, key), "yes");
    }
    assert_eq!(
        (value(&unit, "ProtectSystem").as_str(), value(&unit, "Restart").as_str()),
        ("strict", "on-failure")
    );
}

#[test]
fn the_nodes_unit_leaves_it_the_gpus() {
    for file in ["zorai-compute-node.service", DROP_IN] {
        let unit = std::fs::read_to_string(packaging().join("systemd").join(file)).unwrap();
        // ProtectClock too: to older systemd it means that the clock's devices are allowed, and then no others are.
        let closing = ["PrivateDevices=", "DevicePolicy=", "DeviceAllow=", "ProtectClock="];
        let found: Vec<&str> =
            unit.lines().filter(|line| closing.iter().any(|key| line.starts_with(key))).collect();
        assert!(found.is_empty(), "{file} takes the devices away: {found:?}");
    }
}

#[test]
fn the_way_out_of_containers_has_the_rights_that_it_needs_and_no_others() {
    let drop_in = std::fs::read_to_string(packaging().join("systemd").join(DROP_IN)).unwrap();
    let rights = "CAP_SYS_ADMIN CAP_SYS_PTRACE";
    for key in ["AmbientCapabilities", "CapabilityBoundingSet"] {
        assert_eq!(value(&drop_in, key), rights);
    }
    assert_eq!(value(&drop_in, "RestrictNamespaces"), "net");
    let unit = std::fs::read_to_string(packaging().join("systemd/zorai-compute-node.service")).unwrap();
    assert_eq!(value(&unit, "CapabilityBoundingSet"), "");
}
