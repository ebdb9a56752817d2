//! What GPUs this machine has, and how they are doing.
//!
//! NVIDIA's GPUs are found through NVML, whose library is loaded at run time: a machine without it is
//! no error, it has one CPU device. All memory is in MiB.

mod cpu;
mod nvml;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::nvml::Nvml;

/// The devices that tasks can run on: at least one.
#[derive(Clone, Serialize, Deserialize)]
pub struct Inventory {
    /// The GPUs, or the CPU if there are none.
    pub devices: Vec<Device>,
    /// Where the knowledge comes from.
    pub source: Source,
    /// The open library that live figures are asked from.
    #[serde(skip)]
    nvml: Option<Arc<Nvml>>,
}

/// Where an inventory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// NVIDIA's management library told.
    Nvml,
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
    /// Its place in [`Inventory::devices`].
    pub index: u32,
    /// The model's name, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// The GPU's own id (`GPU-…`), the same after restarts.
    pub uuid: Option<String>,
    /// The GPU's memory in MiB; 0 for a CPU.
    pub vram_mb: u64,
    /// The part of it that is free, in MiB.
    pub free_vram_mb: u64,
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

/// How a device is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Health {
    /// Nothing speaks against it.
    Ok,
    /// It works, but results may be slow or wrong.
    Degraded {
        /// Why, for the operator.
        reason: String,
    },
    /// It does not work.
    Failed {
        /// Why, for the operator.
        reason: String,
    },
}

impl Health {
    /// Whether a task may be started there: anything but failed.
    pub fn is_usable(&self) -> bool {
        match self {
            Self::Ok | Self::Degraded { .. } => true,
            Self::Failed { .. } => false,
        }
    }
}

/// Live figures of one device. What the device does not tell is `None`.
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
    /// How it is doing.
    pub health: Health,
}

/// Finds this machine's devices. Takes some milliseconds where the driver is loaded, else up to seconds: it
/// belongs on a thread that may block.
pub fn detect() -> Inventory {
    let nvml = match Nvml::open() {
        Ok(nvml) => nvml,
        Err(error) => {
            tracing::info!(%error, "no NVIDIA GPU is visible; using the CPU");
            return on_cpu();
        }
    };
    let devices = nvml.devices();
    if devices.is_empty() {
        tracing::info!("NVIDIA's driver reports no GPU; using the CPU");
        return on_cpu();
    }
    Inventory { devices, source: Source::Nvml, nvml: Some(Arc::new(nvml)) }
}

impl Inventory {
    /// One GPU as the operator declares it, for machines where it cannot be detected; `vram_mb` in MiB.
    pub fn declared(name: impl Into<String>, vram_mb: u64) -> Self {
        let device = Device {
            kind: DeviceKind::Gpu,
            index: 0,
            name: name.into(),
            uuid: None,
            vram_mb,
            free_vram_mb: vram_mb,
            driver: None,
            cuda: None,
            compute_capability: None,
            health: Health::Ok,
        };
        Self { devices: vec![device], source: Source::Declared, nvml: None }
    }

    /// Live figures, one sample per device in the same order. Without NVML (a CPU, a declared GPU, an inventory that came
    /// from elsewhere) they are those of the inventory. Blocks on the driver, usually for a millisecond.
    pub fn sample(&self) -> Vec<Sample> {
        let live = |device: &Device| match &self.nvml {
            Some(nvml) => nvml.sample(device),
            None => Sample {
                index: device.index,
                free_vram_mb: device.free_vram_mb,
                utilization_percent: None,
                temperature_c: None,
                health: device.health.clone(),
            },
        };
        self.devices.iter().map(live).collect()
    }

    /// The GPUs, without a CPU that stands in.
    pub fn gpus(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter().filter(|d| d.kind == DeviceKind::Gpu)
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

fn on_cpu() -> Inventory {
    Inventory { devices: vec![cpu::device()], source: Source::Cpu, nvml: None }
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
            Source::Nvml => assert!(inventory.gpus().all(|d| d.vram_mb >= d.free_vram_mb)),
            Source::Cpu => {
                assert_eq!((inventory.gpus().count(), inventory.devices[0].vram_mb), (0, 0));
                assert!(!inventory.devices[0].name.is_empty());
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
    }

    #[test]
    fn the_json_is_stable() {
        let mut inventory = Inventory::declared("X", 8);
        inventory.devices[0].health = Health::Degraded { reason: "hot".into() };
        let json = serde_json::to_value(&inventory).unwrap();
        let expected = serde_json::json!({
            "devices": [{
                "kind": "gpu", "index": 0, "name": "X", "uuid": null, "vram_mb": 8, "free_vram_mb": 8, "driver": null,
                "cuda": null, "compute_capability": null, "health": {"status": "degraded", "reason": "hot"}
            }],
            "source": "declared"
        });
        assert_eq!(json, expected);
        let back: Inventory = serde_json::from_value(json).unwrap();
        assert_eq!(back.devices, inventory.devices);
    }
}
