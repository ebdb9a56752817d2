//! The way out of a container: to domains that the task asks for and the operator grants, and nowhere else.
//!
//! A container without network has a loopback of its own. This node listens there, in the container's network namespace,
//! with a proxy that leads to the granted domains. So there is no interface, no address and no route that could be
//! misused: neither the host's own services nor its networks are within reach. A second container, in which nothing runs but a program
//! that waits, holds the namespace, so that the proxy is there before the task's program starts.
//!
//! To enter a namespace this node needs the right to (`CAP_SYS_ADMIN`), and to look at a process of another user
//! (`CAP_SYS_PTRACE`), which it has to see. A runtime with a network of its own, such as gVisor, does not show that
//! loopback.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, HostConfig};
use bytes::Bytes;
use futures_util::TryStreamExt;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::engine::in_time;
use super::keeper::Container;
use super::{ContainerRuntime, ContainerSettings, internal, name, proxy, spec};
use crate::runtime::{Place, RunCode, RunError, blocking};

/// Where the proxy listens, in the container.
const PROXY_PORT: u16 = 3128;

/// The rights to enter namespaces and to look at others' processes, by their names and numbers.
const RIGHTS: [(&str, u32); 2] = [("CAP_SYS_ADMIN", 21), ("CAP_SYS_PTRACE", 19)];

/// The memory of the container that holds the namespace, in bytes.
const HOLDER_MEMORY: i64 = 16 << 20;

/// Runtimes whose containers use the kernel's own network.
const PLAIN_RUNTIMES: [&str; 4] = ["runc", "crun", "youki", "io.containerd.runc.v2"];

/// What jobs may be let out to.
#[derive(Debug, Clone)]
pub struct EgressPolicy {
    /// Domains, such as `example.org`, or `*.example.org` for all below it. Empty grants nothing.
    pub domains: Vec<String>,
    /// Ports at those domains.
    pub ports: Vec<u16>,
    /// Whether the domains may have addresses in private networks.
    pub allow_private_addresses: bool,
    /// The most bytes that a task may send and receive.
    pub max_bytes: u64,
    /// The most connections that a task may have at once.
    pub max_connections: usize,
}

impl Default for EgressPolicy {
    fn default() -> Self {
        Self {
            domains: Vec::new(),
            ports: vec![80, 443],
            allow_private_addresses: false,
            max_bytes: 4 << 30,
            max_connections: 64,
        }
    }
}

impl EgressPolicy {
    /// Reads a domain for [`Self::domains`].
    ///
    /// # Errors
    /// Says why it is none.
    pub fn parse_domain(text: &str) -> Result<String, String> {
        let wrong = || format!("{text:?} is no domain, such as example.org or *.example.org");
        Domain::parse(text).map(|_| text.to_ascii_lowercase()).ok_or_else(wrong)
    }
}

/// A pattern of domains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Domain {
    /// This one.
    Exactly(String),
    /// All below this one.
    Below(String),
}

/// A way out, open until this is dropped.
pub(super) struct Way {
    /// Holds the network.
    pub(super) container: Container,
    /// What tells programs of the proxy.
    pub(super) environment: Vec<String>,
    _proxy: DropGuard,
}

impl Domain {
    fn parse(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let (below, name) = match lower.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, lower.as_str()),
        };
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        };
        // An address is no domain: what it belongs to is nobody's word.
        let address = name.rsplit('.').next().is_some_and(|last| last.chars().all(|c| c.is_ascii_digit()));
        if name.len() > 253 || address || !name.split('.').all(label) {
            return None;
        }
        let name = name.to_owned();
        Some(if below { Self::Below(name) } else { Self::Exactly(name) })
    }

    /// Whether `host` is meant.
    pub(super) fn admits(&self, host: &str) -> bool {
        match self {
            Self::Exactly(name) => host.eq_ignore_ascii_case(name),
            Self::Below(name) => below(&host.to_ascii_lowercase(), name),
        }
    }

    /// Whether all that `other` means is meant.
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Exactly(host)) => self.admits(host),
            (Self::Below(name), Self::Below(inner)) => inner == name || below(inner, name),
            (Self::Exactly(_), Self::Below(_)) => false,
        }
    }
}

/// The domains that a task asks for, if the policy grants each.
pub(super) fn granted(policy: &EgressPolicy, asked: &[String]) -> Result<Vec<Domain>, RunError> {
    let grants: Vec<Domain> = policy.domains.iter().filter_map(|text| Domain::parse(text)).collect();
    let mut domains = Vec::new();
    for text in asked {
        let domain = Domain::parse(text)
            .ok_or_else(|| RunError::new(RunCode::BadParams, format!("egress: {text:?} is no domain")))?;
        if !grants.iter().any(|grant| grant.covers(&domain)) {
            let reason = format!("egress: this node's policy does not grant {text}");
            return Err(RunError::new(RunCode::EgressRefused, reason));
        }
        domains.push(domain);
    }
    Ok(domains)
}

/// Why no way out can be opened, if none can.
pub(super) fn why_unavailable(settings: &ContainerSettings, rootless: bool) -> Option<String> {
    if holder_program(std::env::consts::ARCH).is_none() {
        return Some(format!("not built for {}", std::env::consts::ARCH));
    }
    if let Some(runtime) = settings.runtime.as_deref()
        && !PLAIN_RUNTIMES.contains(&runtime)
    {
        return Some(format!(
            "the OCI runtime {runtime} has a network of its own, which this node cannot enter"
        ));
    }
    if rootless {
        return Some(
            "a rootless engine's containers cannot be entered; use an engine that runs as root".to_owned(),
        );
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rights = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let rights = rights.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or_default();
    let missing = RIGHTS.iter().find(|(_, number)| rights >> number & 1 == 0);
    missing.map(|(name, _)| format!("this node may not enter a container's network; it needs {name}"))
}

/// Opens a way out to `domains`.
pub(super) async fn open(
    runtime: &ContainerRuntime,
    label: &str,
    place: Place,
    domains: Vec<Domain>,
) -> Result<Way, RunError> {
    let settings = &runtime.settings;
    let image = holder_image(runtime).await?;
    let (uid, gid) = runtime.user;
    let body = ContainerCreateBody {
        hostname: Some("task".to_owned()),
        user: Some(format!("{uid}:{gid}")),
        image: Some(image),
        labels: Some(spec::labels(settings, &runtime.life, label)),
        host_config: Some(HostConfig { pids_limit: Some(1), ..spec::confined(settings, HOLDER_MEMORY, 0) }),
        ..ContainerCreateBody::default()
    };
    // Whatever goes wrong here is not the task's doing: the image is this node's own.
    let failed = |error: Error| internal(format!("cannot hold a network for the task: {error}"));
    let container = runtime.keeper.create(name(label), body, place).await.map_err(failed)?;
    in_time(runtime.docker.start_container(container.name(), None)).await.map_err(failed)?;
    let state = in_time(runtime.docker.inspect_container(container.name(), None)).await;
    let state = state.map_err(failed)?.state;
    let pid = state.and_then(|state| state.pid).filter(|pid| *pid > 0);
    let pid = pid.ok_or_else(|| internal("the engine does not tell a container's process"))?;
    let listener = blocking(move || listen_in(pid)).await?;
    let closed = CancellationToken::new();
    let guard = closed.clone().drop_guard();
    proxy::spawn(listener, proxy::Rules::new(&settings.egress, domains), closed)
        .map_err(|error| internal(format!("cannot start the proxy: {error}")))?;
    let url = format!("http://127.0.0.1:{PROXY_PORT}");
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"];
    let environment = names.map(|name| format!("{name}={url}")).to_vec();
    Ok(Way { container, environment, _proxy: guard })
}

/// Listens on the loopback of the network in which the process `pid` is. Blocks.
fn listen_in(pid: i64) -> Result<TcpListener, RunError> {
    let failed = |error: std::io::Error| {
        RunError::new(
            RunCode::EgressUnavailable,
            format!("this node cannot enter the container's network: {error}"),
        )
    };
    let namespace = File::open(format!("/proc/{pid}/ns/net")).map_err(failed)?;
    // A thread of its own, which ends in that network; no other thread leaves the host's.
    let thread = std::thread::Builder::new().name("container network".to_owned()).spawn(move || {
        let kind = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(kind))?;
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, PROXY_PORT)))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    let ended = thread.map_err(failed)?.join();
    ended.map_err(|_| internal("the thread in the container's network failed"))?.map_err(failed)
}

/// The image of the container that holds a network, loaded if the engine does not have it.
async fn holder_image(runtime: &ContainerRuntime) -> Result<String, RunError> {
    let failed = |error: &dyn std::fmt::Display| {
        internal(format!("cannot load the image that holds a network: {error}"))
    };
    let (archive, id) = holder_archive(&runtime.report.architecture).map_err(|error| failed(&error))?;
    let tag = format!("localhost/zorai-holder:{id}");
    if in_time(runtime.docker.inspect_image(&tag)).await.is_ok() {
        return Ok(tag);
    }
    let body = futures_util::stream::once(async { Ok::<_, std::io::Error>(archive) });
    let options = bollard::query_parameters::ImportImageOptionsBuilder::default().quiet(true).build();
    let loading = runtime.docker.import_image_stream(options, body, None).try_collect::<Vec<_>>();
    in_time(loading).await.map_err(|error| failed(&error))?;
    Ok(tag)
}

/// An image archive with nothing but the program that waits, and the digest of its configuration.
fn holder_archive(architecture: &str) -> std::io::Result<(Bytes, String)> {
    let program = holder_program(std::env::consts::ARCH).unwrap_or_default();
    let layer = archive_of(&[("wait", &program, 0o755)])?;
    let config = serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Entrypoint": ["/wait"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex::encode(Sha256::digest(&layer)))] },
    })
    .to_string();
    let id = hex::encode(Sha256::digest(&config));
    let manifest = serde_json::json!([{
        "Config": "config.json", "RepoTags": [format!("localhost/zorai-holder:{id}")], "Layers": ["0.tar"],
    }])
    .to_string();
    let archive = archive_of(&[
        ("manifest.json", manifest.as_bytes(), 0o644),
        ("config.json", config.as_bytes(), 0o644),
        ("0.tar", &layer, 0o644),
    ])?;
    Ok((archive.into(), id))
}

fn archive_of(files: &[(&str, &[u8], u32)]) -> std::io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        builder.append_data(&mut header, name, *content)?;
    }
    builder.into_inner()
}

/// A program that waits until it is killed: an ELF file with a few instructions.
fn holder_program(architecture: &str) -> Option<Vec<u8>> {
    const LOAD_ADDRESS: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let (machine, code): (u16, &[u8]) = match architecture {
        // mov eax, 34 (pause); syscall; jmp to the beginning
        "x86_64" => (62, &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]),
        // mov x8, 73 (ppoll); mov x0 to x3, 0; svc 0; b to the beginning
        "aarch64" => (
            183,
            &[
                0x28, 0x09, 0x80, 0xd2, 0x00, 0x00, 0x80, 0xd2, 0x01, 0x00, 0x80, 0xd2, 0x02, 0x00, 0x80,
                0xd2, 0x03, 0x00, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4, 0xfa, 0xff, 0xff, 0x17,
            ],
        ),
        _ => return None,
    };
    let size = HEADERS + code.len() as u64;
    let mut file = Vec::new();
    // The ELF header: 64 bits, little-endian, an executable.
    file.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2u16.to_le_bytes());
    file.extend(machine.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend((LOAD_ADDRESS + HEADERS).to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend(0u32.to_le_bytes());
    for field in [64u16, 56, 1, 0, 0, 0] {
        file.extend(field.to_le_bytes());
    }
    // The one segment: the whole file, readable and executable.
    file.extend(1u32.to_le_bytes());
    file.extend(5u32.to_le_bytes());
    for field in [0, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 0x1000] {
        file.extend(field.to_le_bytes());
    }
    file.extend(code);
    Some(file)
}

/// Whether `host` is a name below `name`.
fn below(host: &str, name: &str) -> bool {
    host.strip_suffix(name).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(domains: &[&str]) -> EgressPolicy {
        EgressPolicy { domains: domains.iter().map(|&d| d.to_owned()).collect(), ..EgressPolicy::default() }
    }

    #[test]
    fn only_what_is_granted_is_granted() {
        let code = |grants: &[&str], asked: &str| {
            granted(&policy(grants), &[asked.to_owned()]).map(|domains| domains.len()).map_err(|e| e.code)
        };
        assert_eq!(code(&["example.org"], "Example.ORG"), Ok(1));
        assert_eq!(code(&["*.example.org"], "a.b.example.org"), Ok(1));
        assert_eq!(code(&["*.example.org"], "*.a.example.org"), Ok(1));
        assert_eq!(code(&["*.example.org"], "*.example.org"), Ok(1));
        for (grants, asked) in [
            (&[][..], "example.org"),
            (&["example.org"], "a.example.org"),
            (&["example.org"], "*.example.org"),
            (&["*.example.org"], "example.org"),
            (&["*.example.org"], "badexample.org"),
            (&["*.a.example.org"], "*.example.org"),
        ] {
            assert_eq!(code(grants, asked), Err(RunCode::EgressRefused), "{grants:?} {asked}");
        }
        for asked in ["", "*", "*.*", "127.0.0.1", "a..b", "http://example.org", "example.org:80", "[::1]"] {
            assert_eq!(code(&["*.org"], asked), Err(RunCode::BadParams), "{asked}");
        }
    }

    #[test]
    fn the_program_that_waits_is_whole() {
        for architecture in ["x86_64", "aarch64"] {
            let program = holder_program(architecture).unwrap();
            assert_eq!(program[64 + 32..64 + 40], (program.len() as u64).to_le_bytes(), "{architecture}");
        }
        assert!(holder_program("riscv64").is_none());
    }
}
