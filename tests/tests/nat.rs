//! A provider behind a real NAT: three network namespaces, the middle one a masquerading router that lets nothing in.
//!
//! Needs root, `ip` and `nft` or `iptables`; elsewhere the test says why it is skipped.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use system_tests::{API_KEY, Market, PROVIDER_KEYS, Process, program, said, upper_case};

/// The relay's address on the "internet".
const RELAY: &str = "10.99.0.1";
/// The provider's address at home.
const PROVIDER: &str = "192.168.77.2";

/// The namespaces `<name>w` (internet), `<name>n` (router) and `<name>l` (home); removed with this.
struct Nat {
    name: String,
}

impl Nat {
    fn new() -> Result<Self, String> {
        let nat = Self { name: format!("z{}", std::process::id()) };
        let (w, n, l) = (nat.wan(), format!("{}n", nat.name), nat.lan());
        for namespace in [&w, &n, &l] {
            ip(&["netns", "add", namespace])?;
            ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        }
        ip(&["link", "add", "w0", "netns", &w, "type", "veth", "peer", "name", "n0", "netns", &n])?;
        ip(&["link", "add", "l0", "netns", &l, "type", "veth", "peer", "name", "n1", "netns", &n])?;
        for (namespace, device, address) in [
            (&w, "w0", format!("{RELAY}/24")),
            (&n, "n0", "10.99.0.2/24".to_owned()),
            (&n, "n1", "192.168.77.1/24".to_owned()),
            (&l, "l0", format!("{PROVIDER}/24")),
        ] {
            ip(&["-n", namespace, "addr", "add", &address, "dev", device])?;
            ip(&["-n", namespace, "link", "set", device, "up"])?;
        }
        ip(&["-n", &l, "route", "add", "default", "via", "192.168.77.1"])?;
        nat.inside(&n, "sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
        let rules = "table ip nat { chain post { type nat hook postrouting priority 100; oifname \"n0\" masquerade; } } \
                     table ip filter { chain forw { type filter hook forward priority 0; policy drop; \
                     ct state established,related accept; iifname \"n1\" accept; } }";
        nat.inside(&n, "nft", &[rules]).or_else(|_| {
            nat.inside(&n, "iptables", &["-t", "nat", "-A", "POSTROUTING", "-o", "n0", "-j", "MASQUERADE"])?;
            nat.inside(&n, "iptables", &["-P", "FORWARD", "DROP"])?;
            nat.inside(&n, "iptables", &["-A", "FORWARD", "-i", "n1", "-j", "ACCEPT"])?;
            let known =
                ["-A", "FORWARD", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"];
            nat.inside(&n, "iptables", &known)
        })?;
        Ok(nat)
    }

    fn wan(&self) -> String {
        format!("{}w", self.name)
    }

    fn lan(&self) -> String {
        format!("{}l", self.name)
    }

    fn inside(&self, namespace: &str, program: &str, arguments: &[&str]) -> Result<(), String> {
        let mut all = vec!["netns", "exec", namespace, program];
        all.extend_from_slice(arguments);
        ip(&all)
    }

    /// A command that will run in a namespace.
    fn command(&self, namespace: &str, name: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program(name));
        command
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        for end in ["w", "n", "l"] {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}{end}", self.name)]).output();
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let out =
        Command::new("ip").args(arguments).output().map_err(|error| format!("ip cannot be run: {error}"))?;
    if out.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&out.stderr).trim()))
}

#[test]
fn a_provider_behind_nat_runs_a_task() {
    let nat = match Nat::new() {
        Ok(nat) => nat,
        Err(why) => {
            println!("skipped: no network namespaces with NAT here ({why})");
            return;
        }
    };
    let market = Market::new();
    let folder = market.folder.path();
    let mut relay = nat.command(&nat.wan(), "compute-relay");
    relay
        .args([
            "--listen",
            &format!("{RELAY}:8787"),
            "--relay-id",
            "hz-1",
            "--public-url",
            &format!("ws://{RELAY}:8787"),
        ])
        .arg("--store")
        .arg(market.path("relay"))
        .env("ZORAI_AI_API_KEY", API_KEY);
    let _relay = Process::start(folder, "relay", relay);
    let mut node = nat.command(&nat.lan(), "compute-node");
    node.args(["--listen", "127.0.0.1:8645"])
        .arg("--data")
        .arg(market.path("node"))
        .arg("--compute-token-file")
        .arg(market.path("node.token"));
    let _node = Process::start(folder, "node", node);
    let mut agent = nat.command(&nat.lan(), "compute-agent");
    agent
        .args(["--relay", &format!("ws://{RELAY}:8787/v1/provider/connect"), "--relay-id", "hz-1"])
        .args(["--compute-url", "http://127.0.0.1:8645"])
        .arg("--compute-token-file")
        .arg(market.path("node.token"))
        .arg("--data")
        .arg(market.path("agent"))
        .env("PROVIDER_PRIVATE_KEY", PROVIDER_KEYS[0]);
    let _agent = Process::start(folder, "agent", agent);

    let client = |arguments: &[&str]| -> Output {
        nat.command(&nat.wan(), "zorai-compute")
            .args(arguments)
            .env("ZORAI_RELAY", format!("http://{RELAY}:8787"))
            .env("ZORAI_AI_API_KEY", API_KEY)
            .env("ZORAI_HOME", market.path("home"))
            .output()
            .unwrap()
    };
    let deadline = Instant::now() + system_tests::PATIENCE;
    loop {
        let out = client(&["providers", "--json"]);
        if out.status.success() && String::from_utf8_lossy(&out.stdout).contains("relay://hz-1/") {
            break;
        }
        assert!(Instant::now() < deadline, "no provider came: {}", said(&out));
        std::thread::sleep(Duration::from_millis(100));
    }
    let reached = nat.inside(&nat.wan(), "ping", &["-c", "1", "-W", "1", PROVIDER]);
    assert!(reached.is_err(), "the provider must not be reachable from outside");

    std::fs::write(market.path("upper.wasm"), upper_case()).unwrap();
    std::fs::write(market.path("input.txt"), "behind nat").unwrap();
    let (model, input) = (market.path("upper.wasm"), market.path("input.txt"));
    let out = client(&[
        "run",
        "--model",
        model.to_str().unwrap(),
        "--input",
        input.to_str().unwrap(),
        "--poll",
        "--output",
        "-",
    ]);
    assert!(out.status.success(), "{}", said(&out));
    assert!(String::from_utf8_lossy(&out.stdout).contains("BEHIND NAT"), "{}", said(&out));
}
