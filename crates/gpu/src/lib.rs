//! What GPUs this machine has, how they are doing, which task gets which, and what they can do.
//!
//! **Finding them.** [`detect`] asks NVIDIA's management library (NVML), which is loaded at run time, and reads the
//! files of AMD's `amdgpu` driver. A GPU in MIG mode is listed as its instances, each a device with a UUID (`MIG-…`)
//! and memory of its own. A machine without a GPU is no error: it has one CPU device. All memory is in MiB.
//!
//! **Watching them.** [`Inventory::sample`] gives the live figures for a heartbeat. A driver that dies makes its
//! GPUs [`Health::Failed`]; nothing panics. [`Inventory::watch`] listens for Xid errors for as long as its
//! [`Watcher`] lives, and every later sample holds what they say:
//!
//! | sign | health | until |
//! |---|---|---|
//! | Xid error of the hardware ([`xid_verdict`]) | degraded or failed | the node starts again |
//! | uncorrected memory errors since the driver was loaded | degraded | the driver is loaded again |
//! | as hot as the GPU's slowdown threshold, 90 °C if it names none | degraded | it has cooled down |
//! | memory or GPU out of reach | failed | it answers again |
//!
//! Only a GPU that is [`Health::Ok`] is offered to new tasks ([`Health::is_offerable`]).
//!
//! **Sharing them out.** [`Allocator`] gives whole GPUs, or shares of their memory, to tasks and never more than
//! there is. It is a plain data structure: what the samples say is told to it.
//!
//! **Proving them.** [`challenge`] makes a host compute, so that a claimed data-centre GPU can be told from a laptop.

mod allocator;
mod amd;
pub mod challenge;
mod cpu;
mod health;
mod nvml;
mod watch;
mod xid;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

pub use crate::allocator::{AllocateError, Allocator, Allotment, AllottedGpu, Request};
pub use crate::health::Health;
use crate::nvml::Nvml;
pub use crate::watch::Watcher;
pub use crate::xid::xid_verdict;

const SYS: &str = "/sys";

/// The devices that tasks can run on: at least one.
#[derive(Clone, Serialize, Deserialize)]
pub struct Inventory {
    /// The GPUs, or the CPU if there are none.
    pub devices: Vec<Device>,
    /// Where the knowledge comes from.
    pub source: Source,
    /// What live figures are asked from.
    #[serde(skip)]
    live: Live,
}

/// Where an inventory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// NVIDIA's management library told, and AMD's driver of any AMD GPUs beside.
    Nvml,
    /// AMD's driver told; there is no NVIDIA GPU.
    Amdgpu,
    /// No GPU was found; the CPU stands in.
    Cpu,
    /// The operator declared it.
    Declared,
}

/// One device, as it was when the inventory was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Whether it is a GPU.
    pub kind: DeviceKind,
    /// Who made it, where that is known.
    pub vendor: Option<Vendor>,
    /// Its place in [`Inventory::devices`].
    pub index: u32,
    /// The model's name, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// The GPU's own id (`GPU-…`, or `MIG-…` for an instance), the same after restarts.
    pub uuid: Option<String>,
    /// For a MIG instance the UUID of the GPU that it is a part of.
    pub mig_parent: Option<String>,
    /// The GPU's memory in MiB; 0 for a CPU.
    pub vram_mb: u64,
    /// The part of it that is free, in MiB.
    pub free_vram_mb: u64,
    /// The power limit in force, in watts.
    pub power_limit_w: Option<u32>,
    /// The driver's version.
    pub driver: Option<String>,
    /// The newest CUDA version that the driver supports, such as `13.0`.
    pub cuda: Option<String>,
    /// The CUDA compute capability, such as `9.0`.
    pub compute_capability: Option<String>,
    /// Whether tasks can be trusted to it.
    pub health: Health,
}

/// What kind of device it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// A graphics processor.
    Gpu,
    /// The machine's main processor.
    Cpu,
}

/// Who made a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vendor {
    /// NVIDIA.
    Nvidia,
    /// AMD.
    Amd,
}

/// Live figures of one device. What the device does not tell is `None`, or empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The device's place in [`Inventory::devices`].
    pub index: u32,
    /// Free memory in MiB.
    pub free_vram_mb: u64,
    /// The share of the last moments in which the GPU was at work, 0 to 100.
    pub utilization_percent: Option<u32>,
    /// Temperature of the chip in degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Power drawn, in watts.
    pub power_w: Option<u32>,
    /// Why its clocks are held down, such as `sw_power_cap` or `hw_thermal_slowdown`; empty when they are not.
    pub throttled: Vec<String>,
    /// The processes that use it, by process id.
    pub processes: Vec<GpuProcess>,
    /// How it is doing.
    pub health: Health,
}

/// A process that uses a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProcess {
    /// Its id, as the host counts processes.
    pub pid: u32,
    /// The GPU memory that it holds, in MiB; `None` where the driver does not tell.
    pub used_mb: Option<u64>,
}

/// Finds this machine's devices. Takes some milliseconds where the driver is loaded, else up to seconds: it
/// belongs on a thread that may block.
pub fn detect() -> Inventory {
    let sys = Path::new(SYS);
    let nvml = Nvml::open().inspect_err(|error| tracing::debug!(%error, "no NVIDIA driver is in reach")).ok();
    let mut devices = nvml.as_ref().map(Nvml::devices).unwrap_or_default();
    let nvidia = devices.len();
    let mut live = Live { nvml: nvml.map(Arc::new), ..Live::default() };
    for card in amd::cards(sys) {
        let index = devices.len() as u32;
        devices.push(card.device(index, sys));
        live.amd.insert(index, card);
    }
    let source = match (nvidia, devices.len()) {
        (_, 0) => {
            tracing::info!("no GPU is visible; using the CPU");
            devices.push(cpu::device());
            Source::Cpu
        }
        (0, _) => Source::Amdgpu,
        (_, _) => Source::Nvml,
    };
    Inventory { devices, source, live }
}

impl Inventory {
    /// One GPU as the operator declares it, for machines where it cannot be detected; `vram_mb` in MiB.
    pub fn declared(name: impl Into<String>, vram_mb: u64) -> Self {
        let device = Device {
            kind: DeviceKind::Gpu,
            vendor: None,
            index: 0,
            name: name.into(),
            uuid: None,
            mig_parent: None,
            vram_mb,
            free_vram_mb: vram_mb,
            power_limit_w: None,
            driver: None,
            cuda: None,
            compute_capability: None,
            health: Health::Ok,
        };
        Self { devices: vec![device], source: Source::Declared, live: Live::default() }
    }

    /// Live figures, one sample per device in the same order. Of a device that cannot be asked (a CPU, a declared GPU,
    /// an inventory that came from elsewhere) they are those of the inventory. Blocks on the driver, usually for a
    /// few milliseconds.
    pub fn sample(&self) -> Vec<Sample> {
        self.devices.iter().map(|device| self.live.sample(device)).collect()
    }

    /// Listens for the GPUs' Xid errors, on a thread that ends with the returned watcher; later samples, of clones of
    /// this inventory too, hold what they say. `None` where there is nothing to listen to: no NVIDIA GPU, or none
    /// that reports them.
    pub fn watch(&self) -> Option<Watcher> {
        let nvml = self.live.nvml.clone()?;
        let mut uuids: Vec<String> = self
            .devices
            .iter()
            .filter(|device| device.vendor == Some(Vendor::Nvidia))
            .filter_map(|device| device.mig_parent.clone().or_else(|| device.uuid.clone()))
            .collect();
        uuids.sort();
        uuids.dedup();
        Watcher::start(nvml, uuids, Arc::clone(&self.live.verdicts))
    }

    /// The GPUs, without a CPU that stands in.
    pub fn gpus(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter().filter(|d| d.kind == DeviceKind::Gpu)
    }
}

impl Sample {
    /// The memory, in MiB, that is neither free nor held by the processes that `is_ours` names: that of other programs
    /// and what the driver keeps for itself. Memory whose holder the driver does not tell (AMD's tells none) counts as
    /// foreign, so that too little is offered rather than too much.
    pub fn foreign_mb(&self, device: &Device, is_ours: impl Fn(u32) -> bool) -> u64 {
        let ours = self.processes.iter().filter(|process| is_ours(process.pid)).filter_map(|p| p.used_mb);
        let used = device.vram_mb.saturating_sub(self.free_vram_mb);
        ours.fold(used, u64::saturating_sub)
    }
}

impl fmt::Debug for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inventory")
            .field("devices", &self.devices)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// What Xid errors have said, by the GPU's UUID.
type Verdicts = Arc<Mutex<BTreeMap<String, Health>>>;

/// What live figures are asked from.
#[derive(Clone, Default)]
struct Live {
    nvml: Option<Arc<Nvml>>,
    /// By the device's index.
    amd: BTreeMap<u32, amd::Card>,
    verdicts: Verdicts,
}

impl Live {
    fn sample(&self, device: &Device) -> Sample {
        if let Some(card) = self.amd.get(&device.index) {
            return card.sample(device.index);
        }
        match &self.nvml {
            Some(nvml) if device.vendor == Some(Vendor::Nvidia) => {
                let mut sample = nvml.sample(device);
                sample.health = self.verdict(device).worse(sample.health);
                sample
            }
            _ => Sample {
                index: device.index,
                free_vram_mb: device.free_vram_mb,
                utilization_percent: None,
                temperature_c: None,
                power_w: None,
                throttled: Vec::new(),
                processes: Vec::new(),
                health: device.health.clone(),
            },
        }
    }

    fn verdict(&self, device: &Device) -> Health {
        let verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        let uuid = device.mig_parent.as_ref().or(device.uuid.as_ref());
        uuid.and_then(|uuid| verdicts.get(uuid)).cloned().unwrap_or(Health::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_a_device_and_a_sample_for_each() {
        let inventory = detect();
        let sampled: Vec<u32> = inventory.sample().iter().map(|s| s.index).collect();
        let listed: Vec<u32> = inventory.devices.iter().map(|d| d.index).collect();
        assert!(!listed.is_empty());
        assert_eq!(sampled, listed);
        match inventory.source {
            Source::Nvml | Source::Amdgpu => {
                assert!(inventory.gpus().all(|d| d.vram_mb >= d.free_vram_mb));
            }
            Source::Cpu => {
                assert_eq!((inventory.gpus().count(), inventory.devices[0].vram_mb), (0, 0));
                assert!(!inventory.devices[0].name.is_empty());
                assert!(inventory.watch().is_none());
            }
            Source::Declared => panic!("nothing was declared"),
        }
    }

    #[test]
    fn a_declared_gpu_is_what_was_declared() {
        let inventory = Inventory::declared("NVIDIA A100", 40_960);
        let device = &inventory.devices[0];
        assert_eq!((device.kind, device.name.as_str()), (DeviceKind::Gpu, "NVIDIA A100"));
        assert_eq!((device.vram_mb, inventory.sample()[0].free_vram_mb), (40_960, 40_960));
        assert_eq!(inventory.source, Source::Declared);
        assert!(inventory.watch().is_none());
    }

    #[test]
    fn foreign_memory_is_what_is_neither_free_nor_ours() {
        let inventory = Inventory::declared("X", 1000);
        let mut sample = inventory.sample().remove(0);
        sample.free_vram_mb = 300;
        let process = |pid, used_mb| GpuProcess { pid, used_mb };
        sample.processes = vec![process(1, Some(400)), process(2, Some(200)), process(3, None)];
        let foreign = |ours: &[u32]| sample.foreign_mb(&inventory.devices[0], |pid| ours.contains(&pid));
        assert_eq!((foreign(&[]), foreign(&[1]), foreign(&[1, 2]), foreign(&[3])), (700, 300, 100, 700));
    }

    #[test]
    fn a_verdict_reaches_the_gpu_its_instances_and_clones() {
        let mut inventory = Inventory::declared("X", 8);
        inventory.devices[0].uuid = Some("GPU-1".into());
        let mut instance = inventory.devices[0].clone();
        instance.uuid = Some("MIG-1".into());
        instance.mig_parent = Some("GPU-1".into());
        let mut other = inventory.devices[0].clone();
        other.uuid = Some("GPU-2".into());
        let clone = inventory.clone();
        let verdict = xid_verdict(79).unwrap();
        inventory.live.verdicts.lock().unwrap().insert("GPU-1".into(), verdict.clone());
        assert_eq!(clone.live.verdict(&clone.devices[0]), verdict);
        assert_eq!(clone.live.verdict(&instance), verdict);
        assert_eq!(clone.live.verdict(&other), Health::Ok);
    }

    #[test]
    fn the_json_is_stable() {
        let mut inventory = Inventory::declared("X", 8);
        inventory.devices[0].health = Health::Degraded { reason: "hot".into() };
        inventory.devices[0].vendor = Some(Vendor::Amd);
        let json = serde_json::to_value(&inventory).unwrap();
        let expected = serde_json::json!({
            "devices": [{
                "kind": "gpu", "vendor": "amd", "index": 0, "name": "X", "uuid": null, "mig_parent": null, "vram_mb": 8,
                "free_vram_mb": 8, "power_limit_w": null, "driver": null, "cuda": null, "compute_capability": null,
                "health": {"status": "degraded", "reason": "hot"}
            }],
            "source": "declared"
        });
        assert_eq!(json, expected);
        let back: Inventory = serde_json::from_value(json).unwrap();
        assert_eq!(back.devices, inventory.devices);
    }
}
