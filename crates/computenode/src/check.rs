//! What this host can do as a compute node, and what to do where it cannot: `compute-node check`.
//!
//! Nothing is changed: no folder is made, and a node that runs goes on.

mod host;

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use futures_util::future::join_all;
use gpu::{DeviceKind, Inventory, Sample};
use serde::{Deserialize, Serialize};

use crate::client::{ask, reachable};
use crate::config::Config;
use crate::disk::Space;
use crate::engines::USUAL_PORTS;
use crate::node;
use crate::runtime::container::{ContainerSettings, EngineName, EngineReport};

/// How OCI runtimes are called that give containers a kernel of their own.
const STRONGER: [&str; 2] = ["runsc", "kata"];

/// How long a neighbour on loopback may take to answer.
const LOOPBACK_PATIENCE: Duration = Duration::from_millis(700);

/// What was found of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at, in a word.
    pub name: String,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub message: String,
    /// What to do about it, where there is something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// The node works, but less well than it could.
    Warn,
    /// The node cannot serve before this is mended.
    Fail,
}

/// All findings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether the host can serve as it is.
    pub can_serve: bool,
    /// What was found, in the order looked at.
    pub findings: Vec<Finding>,
}

impl Finding {
    fn ok(name: &str, message: impl Into<String>) -> Self {
        Self { name: name.to_owned(), status: Status::Ok, message: message.into(), fix: None }
    }

    fn warn(name: &str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: Status::Warn, fix: Some(fix.into()), ..Self::ok(name, message) }
    }

    fn fail(name: &str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: Status::Fail, ..Self::warn(name, message, fix) }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { name, status, message, fix } in &self.findings {
            let status = match status {
                Status::Ok => "ok",
                Status::Warn => "warn",
                Status::Fail => "fail",
            };
            writeln!(f, "{status:<5} {name:<9} {message}")?;
            if let Some(fix) = fix {
                writeln!(f, "{:<15} fix: {fix}", "")?;
            }
        }
        let verdict = if self.can_serve { "This host can serve." } else { "This host cannot serve yet." };
        writeln!(f, "{verdict}")
    }
}

/// Looks at everything that a node with this configuration needs.
pub async fn check(config: &Config) -> Report {
    let mut findings = Vec::new();
    findings.extend(gpus(config).await);
    findings.push(runtimes().await);
    findings.extend(containers(config).await);
    findings.push(host::limits(Path::new("/sys/fs/cgroup")));
    findings.push(host::user_namespaces(Path::new("/proc/sys")));
    findings.push(host::seccomp(Path::new("/proc/sys")));
    findings.push(host::data_folder(&config.data));
    findings.push(disk(config));
    findings.push(token(config));
    findings.push(port(config).await);
    findings.extend(allowed_folders(config));
    findings.push(engines().await);
    findings.push(host::clock());
    let can_serve = findings.iter().all(|finding| finding.status != Status::Fail);
    Report { can_serve, findings }
}

async fn gpus(config: &Config) -> Vec<Finding> {
    let config = config.clone();
    let looked = tokio::task::spawn_blocking(move || {
        let inventory = node::inventory(&config);
        let samples = inventory.sample();
        (inventory, samples)
    });
    match looked.await {
        Ok((inventory, samples)) => gpu_findings(&inventory, &samples),
        Err(error) => vec![Finding::fail(
            "gpu",
            format!("looking for GPUs failed: {error}"),
            "repair or remove the GPU's driver",
        )],
    }
}

fn gpu_findings(inventory: &Inventory, samples: &[Sample]) -> Vec<Finding> {
    let gpus = inventory.devices.iter().zip(samples).filter(|(device, _)| device.kind == DeviceKind::Gpu);
    let mut findings: Vec<Finding> = gpus
        .map(|(device, sample)| {
            let driver =
                device.driver.as_ref().map_or_else(String::new, |driver| format!(", driver {driver}"));
            let (vram, free) = (device.vram_mb, sample.free_vram_mb);
            let told = format!("{}: {}, {vram} MiB, {free} MiB free{driver}", device.index, device.name);
            match sample.health.reason() {
                Some(reason) if !sample.health.is_offerable() => {
                    let fix = "see the driver's log; this GPU is given to no task until it is well";
                    Finding::warn("gpu", format!("{told}: {reason}"), fix)
                }
                _ => Finding::ok("gpu", told),
            }
        })
        .collect();
    if findings.is_empty() {
        let cpu = inventory.devices.first().map_or("unknown", |device| &device.name);
        let fix = "install the GPU's driver, or name the GPU by --gpu-name and --gpu-vram-mb";
        findings.push(Finding::warn("gpu", format!("no GPU is visible; tasks run on the CPU ({cpu})"), fix));
    }
    findings
}

async fn runtimes() -> Finding {
    // The folder of compiled modules is left alone.
    match tokio::task::spawn_blocking(|| node::built_in(None)).await {
        Ok(Ok(runtimes)) => {
            let names: Vec<&str> = runtimes.keys().map(|name| name.as_str()).collect();
            Finding::ok("runtimes", names.join(", "))
        }
        Ok(Err(error)) => Finding::fail("runtimes", error.to_string(), "see what the message names"),
        Err(error) => Finding::fail("runtimes", error.to_string(), "this CPU may be too old"),
    }
}

async fn containers(config: &Config) -> Vec<Finding> {
    let Some(settings) = &config.container else {
        return vec![Finding::ok("container", "turned off by --no-container")];
    };
    match EngineReport::of(settings).await {
        Ok(Some(report)) => vec![engine_finding(&report, settings), sandbox(&report, settings)],
        Ok(None) => {
            let fix = "install podman or docker and let this user use its socket, or say --no-container";
            vec![Finding::warn("container", "no engine answers; no containers are run", fix)]
        }
        Err(error) => {
            let fix = "start the engine, or mend --container-socket and --container-runtime";
            vec![Finding::fail("container", error.to_string(), fix)]
        }
    }
}

/// What stands between a container and the host's kernel, besides the engine's limits.
fn sandbox(report: &EngineReport, settings: &ContainerSettings) -> Finding {
    let users = if report.user_namespace {
        "its users are no users of this host"
    } else {
        "its users are this host's, without rights"
    };
    if let Some(named) = &settings.runtime {
        return Finding::ok("sandbox", format!("containers run by {named}; {users}"));
    }
    let stronger =
        || report.runtimes.iter().filter(|name| STRONGER.iter().any(|known| name.starts_with(known)));
    let told = format!("containers share this host's kernel; {users}");
    match stronger().next() {
        Some(name) => {
            let all: Vec<&str> = stronger().map(String::as_str).collect();
            let first = match report.name {
                EngineName::Docker => String::new(),
                EngineName::Podman => {
                    format!("set runtime = \"{name}\" under [engine] in containers.conf; then ")
                }
            };
            let fix = format!("{first}--container-runtime {name} gives each a kernel of its own");
            Finding::warn("sandbox", format!("{told}; the engine has {}", all.join(", ")), fix)
        }
        None => {
            let fix = "where that is not enough: install gVisor (runsc) or Kata, tell the engine, and name it by --container-runtime";
            Finding::warn("sandbox", format!("{told}; the engine has neither runsc nor kata"), fix)
        }
    }
}

fn engine_finding(report: &EngineReport, settings: &ContainerSettings) -> Finding {
    let EngineReport {
        name, version, socket, rootless, architecture, unenforced, egress_unavailable, ..
    } = report;
    let kind = if *rootless { "rootless " } else { "" };
    let told = format!("{kind}{name} {version} at {}, {architecture}", socket.display());
    let reasons = unenforced.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    match (unenforced.is_empty(), egress_unavailable) {
        (false, _) if settings.allow_unenforced => Finding::warn(
            "container",
            format!("{told}; not enforced, as allowed: {reasons}"),
            "see what it names",
        ),
        (false, _) => {
            let told = format!("{told}; it cannot keep containers in, so none are run: {reasons}");
            let fix = "do what it names, or say --allow-unenforced-limits where all requesters are trusted";
            if settings.socket.is_some() || settings.runtime.is_some() {
                Finding::fail("container", told, fix)
            } else {
                Finding::warn("container", told, fix)
            }
        }
        (true, Some(reason)) if !settings.egress.domains.is_empty() => {
            let fix =
                "give the node that right (packaging/systemd has a drop-in), or leave --allow-egress out";
            Finding::warn("container", format!("{told}; no way out to domains: {reason}"), fix)
        }
        (true, _) => Finding::ok("container", told),
    }
}

fn disk(config: &Config) -> Finding {
    let folder = host::existing(&config.data);
    match Space::of(folder) {
        Ok(space) if space.missing(config.min_free_disk) > 0 => {
            let fix = "free some room, move --data to a larger disk, or lower --min-free-disk";
            Finding::fail("disk", space.too_full(config.min_free_disk), fix)
        }
        Ok(space) => {
            let (free, total) = (space.free >> 20, space.total >> 20);
            let keep = config.min_free_disk.bytes(space.total) >> 20;
            let told = format!("{free} of {total} MiB free; tasks are taken down to {keep} MiB");
            let cache = config.keep_artifacts_bytes.saturating_add(config.keep_results_bytes);
            if space.total < cache {
                let fix = "lower --keep-artifacts-bytes and --keep-results-bytes to what the disk can hold";
                return Finding::warn("disk", format!("{told}; more may be kept than fits"), fix);
            }
            Finding::ok("disk", told)
        }
        Err(error) => Finding::warn(
            "disk",
            format!("{}: its room is not known: {error}", folder.display()),
            "keep an eye on the disk yourself",
        ),
    }
}

fn token(config: &Config) -> Finding {
    let path = &config.token_file;
    match path.try_exists() {
        Ok(false) => Finding::ok("token", format!("{} is made at the first start", path.display())),
        Ok(true) => match daemon::read_secret_file(path) {
            Ok(_) => Finding::ok("token", path.display().to_string()),
            Err(error) => Finding::fail("token", error.to_string(), "remove the file, or give it mode 0600"),
        },
        Err(error) => {
            Finding::fail("token", format!("{}: {error}", path.display()), "check --compute-token-file")
        }
    }
}

async fn port(config: &Config) -> Finding {
    let addr = config.listen;
    if !addr.ip().is_loopback() && !config.allow_remote {
        let fix = "use 127.0.0.1, or --allow-remote on a trusted network";
        return Finding::fail("port", format!("other hosts can reach {addr}"), fix);
    }
    match daemon::bind(addr).await {
        Ok(_) => Finding::ok("port", format!("{addr} is free")),
        Err(_) if is_node(reachable(addr)).await => {
            Finding::ok("port", format!("a compute node runs on {addr}"))
        }
        Err(error) => {
            let first = error.to_string();
            let first = first.lines().next().unwrap_or_default().to_owned();
            Finding::fail("port", first, "stop the other program, or choose another --listen")
        }
    }
}

/// Whether what listens there answers like a compute node: it lets nobody in without a token.
async fn is_node(addr: SocketAddr) -> bool {
    let answer = ask(Method::GET, addr, "/status", None, LOOPBACK_PATIENCE).await;
    answer.is_ok_and(|(status, body)| {
        status == StatusCode::UNAUTHORIZED && body.windows(15).any(|part| part == b"invalid_api_key")
    })
}

fn allowed_folders(config: &Config) -> Vec<Finding> {
    let missing = config.allowed_dirs.iter().filter(|folder| !folder.is_dir());
    missing
        .map(|folder| {
            let told = format!("--allow-dir {} is no folder", folder.display());
            Finding::fail("folders", told, "name a folder that exists, or leave the flag out")
        })
        .collect()
}

async fn engines() -> Finding {
    let found = join_all(USUAL_PORTS.map(async |(name, port)| {
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let (status, body) = ask(Method::GET, addr, "/v1/models", None, LOOPBACK_PATIENCE).await.ok()?;
        let models: serde_json::Value = serde_json::from_slice(&body).ok()?;
        let count = models.get("data")?.as_array()?.len();
        status.is_success().then(|| format!("{addr} ({name}'s usual port): {count} models"))
    }))
    .await;
    let found: Vec<String> = found.into_iter().flatten().collect();
    let told = if found.is_empty() { "none on their usual ports".to_owned() } else { found.join("; ") };
    Finding::ok("engines", told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::container::Unenforced;

    #[test]
    fn gpus_are_listed_and_unwell_ones_are_warned_of() {
        let mut inventory = Inventory::declared("Test GPU", 1000);
        let well = gpu_findings(&inventory, &inventory.sample());
        assert_eq!(well, [Finding::ok("gpu", "0: Test GPU, 1000 MiB, 1000 MiB free")]);
        inventory.devices[0].health = gpu::Health::Degraded { reason: "too hot".to_owned() };
        let hot = gpu_findings(&inventory, &inventory.sample());
        assert_eq!((hot[0].status, hot[0].message.ends_with(": too hot")), (Status::Warn, true));
        inventory.devices[0].kind = DeviceKind::Cpu;
        assert_eq!(gpu_findings(&inventory, &inventory.sample())[0].status, Status::Warn);
    }

    fn report() -> EngineReport {
        EngineReport {
            name: EngineName::Podman,
            version: "5".to_owned(),
            api_version: "1.41".to_owned(),
            socket: "/s".into(),
            cgroup_version: Some(2),
            rootless: true,
            user_namespace: true,
            architecture: "amd64".to_owned(),
            processors: Some(2),
            runtimes: vec!["crun".to_owned()],
            unenforced: Vec::new(),
            egress_unavailable: Some("no right".to_owned()),
        }
    }

    #[test]
    fn an_engine_is_judged_by_what_it_enforces() {
        let mut report = report();
        let mut settings = ContainerSettings::default();
        assert_eq!(
            engine_finding(&report, &settings),
            Finding::ok("container", "rootless Podman 5 at /s, amd64")
        );
        settings.egress.domains.push("example.org".to_owned());
        let finding = engine_finding(&report, &settings);
        assert_eq!((finding.status, finding.message.ends_with(": no right")), (Status::Warn, true));
        report.unenforced.push(Unenforced { limit: "pids", reason: "delegate it".to_owned() });
        let finding = engine_finding(&report, &settings);
        assert_eq!((finding.status, finding.message.ends_with("pids: delegate it")), (Status::Warn, true));
        settings.socket = Some("/s".into());
        assert_eq!(engine_finding(&report, &settings).status, Status::Fail);
        settings.allow_unenforced = true;
        assert_eq!(engine_finding(&report, &settings).status, Status::Warn);
    }

    #[test]
    fn stronger_runtimes_are_named() {
        let settings = ContainerSettings::default();
        let mut report = report();
        let plain = sandbox(&report, &settings);
        assert_eq!((plain.status, plain.message.contains("neither runsc nor kata")), (Status::Warn, true));
        assert!(plain.message.contains("its users are no users of this host"));
        report.runtimes.push("kata-qemu".to_owned());
        report.user_namespace = false;
        let offered = sandbox(&report, &settings).fix.unwrap();
        assert!(offered.contains("containers.conf; then --container-runtime kata-qemu "), "{offered}");
        report.name = EngineName::Docker;
        let offered = sandbox(&report, &settings).fix.unwrap();
        assert!(offered.starts_with("--container-runtime kata-qemu "), "{offered}");
        let named = ContainerSettings { runtime: Some("kata-qemu".to_owned()), ..settings };
        let told = "containers run by kata-qemu; its users are this host's, without rights";
        assert_eq!(sandbox(&report, &named), Finding::ok("sandbox", told));
    }

    #[test]
    fn a_report_reads_well() {
        let findings = vec![Finding::ok("gpu", "a"), Finding::fail("disk", "b", "c")];
        let report = Report { can_serve: false, findings };
        let text =
            "ok    gpu       a\nfail  disk      b\n                fix: c\nThis host cannot serve yet.\n";
        assert_eq!(report.to_string(), text);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["findings"][0], serde_json::json!({"name": "gpu", "status": "ok", "message": "a"}));
    }
}
