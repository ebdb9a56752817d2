//! How the compute node is, asked every few seconds, and what is announced of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rpc::link::{DeviceKind, DeviceView, NodeMetadata};
use rpc::node::NodeReport;
use taskmarket::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, GpuOverride, Policy, Timing};
use crate::node::NodeClient;

/// Models that a heartbeat names at most; a host with more has them all the same.
const MAX_WARM_MODELS: usize = 256;

/// What is known of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Host {
    /// Its last report; `None` while it cannot be reached.
    pub(crate) report: Option<NodeReport>,
    /// Why it cannot be reached.
    pub(crate) problem: Option<String>,
    /// The exact text to register with, once the node was reached and had slots. It stays as it was while the node is away or
    /// drains.
    pub(crate) metadata: Option<Arc<str>>,
    /// Whether the owner uses a GPU, or did a moment ago, more than tasks are to put up with.
    pub(crate) owner_uses_gpu: bool,
}

impl Host {
    /// How many tasks the node and the operator allow at once; zero while the node cannot be reached.
    pub(crate) fn slots(&self, policy: &Policy) -> u32 {
        self.report.as_ref().map_or(0, |report| capped(report, policy))
    }

    /// The runtimes that the node has and the operator offers.
    pub(crate) fn runtimes(&self, policy: &Policy) -> Vec<Runtime> {
        self.report.as_ref().map_or_else(Vec::new, |report| offered(report, policy))
    }

    /// The flag that is given and the one that is missing, where the node sees no GPU and the operator tells only a part of one.
    pub(crate) fn part_of_gpu(&self, gpu: &GpuOverride) -> Option<(&'static str, &'static str)> {
        let report = self.report.as_ref().filter(|report| !has_gpu(&report.devices));
        match (report, &gpu.name, gpu.vram_mb) {
            (Some(_), Some(_), None) => Some(("--gpu-name", "--gpu-vram-mb")),
            (Some(_), None, Some(_)) => Some(("--gpu-vram-mb", "--gpu-name")),
            (Some(_), Some(_), Some(_)) | (Some(_), None, None) | (None, _, _) => None,
        }
    }
}

/// How often a node that is waited for is mentioned again.
const REMIND_EVERY: Duration = Duration::from_secs(60);
/// How long a node may be away before anybody is told: one that was started together with the agent needs a moment.
const START_PATIENCE: Duration = Duration::from_secs(3);

/// When an operator is told that the node is waited for.
#[derive(Debug, Default)]
struct Complaints {
    away_since: Option<Instant>,
    /// What was told last, and when.
    told: Option<(String, Instant)>,
}

impl Complaints {
    /// The node answers.
    fn settle(&mut self) {
        *self = Self::default();
    }

    /// Whether to tell of this problem now.
    fn is_due(&mut self, problem: &str, now: Instant) -> bool {
        let away_since = *self.away_since.get_or_insert(now);
        let is_known = self
            .told
            .as_ref()
            .is_some_and(|(told, at)| told == problem && now.saturating_duration_since(*at) < REMIND_EVERY);
        if is_known || now.saturating_duration_since(away_since) < START_PATIENCE {
            return false;
        }
        self.told = Some((problem.to_owned(), now));
        true
    }
}

/// Asks the node how it is until `closing`, and publishes what changed.
pub(crate) async fn watch_node(
    node: Arc<NodeClient>,
    config: Arc<Config>,
    host: watch::Sender<Host>,
    closing: CancellationToken,
) {
    let Timing { node_poll, retry_base, .. } = config.timing;
    let new_backoff = || link::Backoff::with(retry_base, node_poll, rand::random::<f64>);
    let mut backoff = new_backoff();
    let mut complaints = Complaints::default();
    let mut owner_seen: Option<Instant> = None;
    loop {
        let asked = tokio::select! {
            () = closing.cancelled() => return,
            asked = node.report() => asked,
        };
        let delay = match asked {
            Ok(report) => {
                backoff.reset();
                complaints.settle();
                if config.policy.owner.is_seen_in(&report) {
                    owner_seen = Some(Instant::now());
                }
                let hold = config.timing.owner_hold;
                publish(
                    &host,
                    bounded(report),
                    owner_seen.is_some_and(|seen| seen.elapsed() < hold),
                    &config,
                );
                node_poll
            }
            Err(error) => {
                let problem = error.to_string();
                host.send_if_modified(|host| {
                    let changed = host.problem.as_ref() != Some(&problem) || host.report.is_some();
                    if changed {
                        (host.report, host.problem) = (None, Some(problem.clone()));
                    }
                    changed
                });
                if complaints.is_due(&problem, Instant::now()) {
                    let (url, hint) = (&config.compute_url, error.hint());
                    tracing::warn!(%url, %problem, hint, "waiting for the compute node");
                }
                backoff.next_delay()
            }
        };
        tokio::select! {
            () = closing.cancelled() => return,
            () = tokio::time::sleep(delay) => {}
        }
    }
}

fn publish(host: &watch::Sender<Host>, report: NodeReport, owner_uses_gpu: bool, config: &Config) {
    host.send_if_modified(|host| {
        if host.report.is_none() {
            tracing::info!(
                url = %config.compute_url, version = %report.version, slots = report.slots, "the compute node answers"
            );
            warn_of_invented_gpu(&report, &config.gpu);
        }
        // A node that drains has no slots for a while: that is the heartbeat's news, not another host.
        let metadata =
            if report.slots == 0 { host.metadata.clone() } else { Some(metadata(&report, config)) };
        let next = Host { report: Some(report), problem: None, metadata, owner_uses_gpu };
        let changed = *host != next;
        *host = next;
        changed
    });
}

fn bounded(mut report: NodeReport) -> NodeReport {
    report.warm_models.truncate(MAX_WARM_MODELS);
    report
}

fn metadata(report: &NodeReport, config: &Config) -> Arc<str> {
    let metadata = NodeMetadata {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        node_version: report.version.clone(),
        platform: report.platform.clone(),
        devices: devices(&report.devices, &config.gpu),
        runtimes: offered(report, &config.policy),
        slots: capped(report, &config.policy),
    };
    serde_json::to_string(&metadata).expect("strings, numbers and lists always serialise").into()
}

fn capped(report: &NodeReport, policy: &Policy) -> u32 {
    report.slots.min(policy.slots.unwrap_or(u32::MAX))
}

fn offered(report: &NodeReport, policy: &Policy) -> Vec<Runtime> {
    let allowed = |runtime: &Runtime| policy.runtimes.is_empty() || policy.runtimes.contains(runtime);
    report.runtimes.iter().copied().filter(allowed).collect()
}

/// The devices as the operator wants them announced.
fn devices(reported: &[DeviceView], gpu: &GpuOverride) -> Vec<DeviceView> {
    if let (false, Some(name), Some(vram_mb)) = (has_gpu(reported), &gpu.name, gpu.vram_mb) {
        return vec![DeviceView { kind: DeviceKind::Gpu, name: name.clone(), vram_mb, uuid: None }];
    }
    let mut devices = reported.to_vec();
    for device in devices.iter_mut().filter(|device| device.kind == DeviceKind::Gpu) {
        if let Some(name) = &gpu.name {
            device.name.clone_from(name);
        }
        device.vram_mb = gpu.vram_mb.unwrap_or(device.vram_mb);
    }
    devices
}

fn has_gpu(devices: &[DeviceView]) -> bool {
    devices.iter().any(|device| device.kind == DeviceKind::Gpu)
}

fn warn_of_invented_gpu(report: &NodeReport, gpu: &GpuOverride) {
    if let (false, Some(name), Some(_)) = (has_gpu(&report.devices), &gpu.name, gpu.vram_mb) {
        tracing::warn!(name, "the compute node sees no GPU; one is announced on the operator's word");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(kind: DeviceKind, name: &str, vram_mb: u64) -> DeviceView {
        DeviceView { kind, name: name.to_owned(), vram_mb, uuid: None }
    }

    #[test]
    fn the_operator_may_rename_gpus_and_vouch_for_one() {
        let none = GpuOverride::default();
        let a100 = GpuOverride { name: Some("NVIDIA A100".to_owned()), vram_mb: Some(40_960) };
        let gpus = [device(DeviceKind::Gpu, "X", 1), device(DeviceKind::Gpu, "Y", 2)];
        let cpu = [device(DeviceKind::Cpu, "Z", 0)];
        let renamed = device(DeviceKind::Gpu, "NVIDIA A100", 40_960);
        assert_eq!(devices(&gpus, &none), gpus);
        assert_eq!(devices(&gpus, &a100), [renamed.clone(), renamed.clone()]);
        assert_eq!(devices(&cpu, &none), cpu);
        assert_eq!(devices(&cpu, &a100), [renamed]);
    }

    #[test]
    fn a_node_that_stays_away_is_told_of_again_and_one_that_starts_is_not() {
        let (mut complaints, start) = (Complaints::default(), Instant::now());
        let after = |secs| start + Duration::from_secs(secs);
        assert!(!complaints.is_due("no token", start));
        assert!(!complaints.is_due("refused", after(2)), "it may be starting");
        assert!(complaints.is_due("refused", after(3)));
        assert!(!complaints.is_due("refused", after(62)), "it was told");
        assert!(complaints.is_due("refused", after(63)));
        assert!(complaints.is_due("another", after(64)), "it is news");
        complaints.settle();
        assert!(!complaints.is_due("refused", after(65)), "it may be starting again");
        assert!(complaints.is_due("refused", after(68)));
    }

    #[test]
    fn a_part_of_a_gpu_is_not_announced() {
        let host = |kind| Host {
            report: Some(NodeReport {
                version: String::new(),
                platform: String::new(),
                devices: vec![device(kind, "Z", 1)],
                free_vram_mb: Vec::new(),
                runtimes: Vec::new(),
                slots: 1,
                busy: 0,
                warm_models: Vec::new(),
                models: Vec::new(),
                unhealthy: None,
                draining: false,
                gpu_problems: Vec::new(),
                foreign_gpu_use: Vec::new(),
            }),
            ..Host::default()
        };
        let both = GpuOverride { name: Some("A".to_owned()), vram_mb: Some(5) };
        let name = GpuOverride { vram_mb: None, ..both.clone() };
        let vram = GpuOverride { name: None, ..both.clone() };
        for part in [&name, &vram] {
            let cpu = [device(DeviceKind::Cpu, "Z", 1)];
            assert_eq!(devices(&cpu, part), cpu);
            assert!(host(DeviceKind::Cpu).part_of_gpu(part).is_some());
            assert_eq!(host(DeviceKind::Gpu).part_of_gpu(part), None);
            assert_eq!(Host::default().part_of_gpu(part), None);
        }
        assert_eq!(host(DeviceKind::Cpu).part_of_gpu(&both), None);
        assert_eq!(host(DeviceKind::Cpu).part_of_gpu(&GpuOverride::default()), None);
    }
}
