//! NVIDIA's GPUs through NVML. Asking the library ([`Readings::of`]) is kept apart from judging its answers,
//! so that the judging is tested without a GPU.

use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{cuda_driver_version_major, cuda_driver_version_minor};

use crate::{Device, DeviceKind, Health, Sample};

const MIB: u64 = 1 << 20;

/// The open library.
pub(crate) struct Nvml(nvml_wrapper::Nvml);

/// What the library answers about one GPU. Each question can fail on its own: not every GPU offers all.
struct Readings {
    /// Total and free memory in bytes; every GPU tells them, so a failure means trouble.
    memory: Result<(u64, u64), String>,
    name: Option<String>,
    uuid: Option<String>,
    compute_capability: Option<(i32, i32)>,
    utilization_percent: Option<u32>,
    temperature_c: Option<u32>,
    /// The temperature at which the GPU slows itself down.
    slowdown_c: Option<u32>,
    /// Memory errors since the driver was loaded that could not be corrected.
    uncorrected_errors: Option<u64>,
}

impl Nvml {
    /// Loads the library and connects to the driver.
    pub(crate) fn open() -> Result<Self, NvmlError> {
        nvml_wrapper::Nvml::init().map(Self)
    }

    /// All GPUs, those that do not answer included.
    pub(crate) fn devices(&self) -> Vec<Device> {
        let count = self.0.device_count().unwrap_or_else(|error| {
            tracing::warn!(%error, "NVIDIA's driver cannot count the GPUs");
            0
        });
        let driver = self.0.sys_driver_version().ok();
        let cuda = self.0.sys_cuda_driver_version().ok().map(cuda_version);
        (0..count).map(|i| self.readings(i).device(i, driver.clone(), cuda.clone())).collect()
    }

    /// Live figures of a device that [`Nvml::devices`] listed.
    pub(crate) fn sample(&self, device: &Device) -> Sample {
        self.readings(device.index).sample(device)
    }

    fn readings(&self, index: u32) -> Readings {
        match self.0.device_by_index(index) {
            Ok(gpu) => Readings::of(&gpu),
            Err(error) => Readings::none(&error),
        }
    }
}

impl Readings {
    fn of(gpu: &nvml_wrapper::Device<'_>) -> Self {
        Self {
            memory: gpu.memory_info().map(|m| (m.total, m.free)).map_err(|e| e.to_string()),
            name: gpu.name().ok(),
            uuid: gpu.uuid().ok(),
            compute_capability: gpu.cuda_compute_capability().ok().map(|c| (c.major, c.minor)),
            utilization_percent: gpu.utilization_rates().ok().map(|u| u.gpu),
            temperature_c: gpu.temperature(TemperatureSensor::Gpu).ok(),
            slowdown_c: gpu.temperature_threshold(TemperatureThreshold::Slowdown).ok(),
            uncorrected_errors: gpu.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).ok(),
        }
    }

    /// The readings of a GPU that cannot be reached at all.
    fn none(error: &NvmlError) -> Self {
        Self {
            memory: Err(error.to_string()),
            name: None,
            uuid: None,
            compute_capability: None,
            utilization_percent: None,
            temperature_c: None,
            slowdown_c: None,
            uncorrected_errors: None,
        }
    }

    fn device(&self, index: u32, driver: Option<String>, cuda: Option<String>) -> Device {
        Device {
            kind: DeviceKind::Gpu,
            index,
            name: self.name.clone().unwrap_or_else(|| "NVIDIA GPU".to_owned()),
            uuid: self.uuid.clone(),
            vram_mb: self.memory.as_ref().map_or(0, |(total, _)| total / MIB),
            free_vram_mb: self.free_vram_mb(),
            driver,
            cuda,
            compute_capability: self.compute_capability.map(|(major, minor)| format!("{major}.{minor}")),
            health: self.health(),
        }
    }

    fn sample(&self, device: &Device) -> Sample {
        // After a GPU fell off the bus, the others move up in the library's count.
        let same = self.uuid.is_none() || device.uuid.is_none() || self.uuid == device.uuid;
        let health = if same {
            self.health()
        } else {
            Health::Failed { reason: "another GPU is in its place; restart to take stock again".to_owned() }
        };
        Sample {
            index: device.index,
            free_vram_mb: if same { self.free_vram_mb() } else { 0 },
            utilization_percent: self.utilization_percent.filter(|_| same),
            temperature_c: self.temperature_c.filter(|_| same),
            health,
        }
    }

    fn free_vram_mb(&self) -> u64 {
        self.memory.as_ref().map_or(0, |(_, free)| free / MIB)
    }

    /// The worst that the readings say. What a GPU does not offer (consumer cards have no error counts) says nothing.
    fn health(&self) -> Health {
        if let Err(error) = &self.memory {
            return Health::Failed { reason: format!("its memory cannot be read: {error}") };
        }
        if let Some(count @ 1..) = self.uncorrected_errors {
            let reason = format!("{count} uncorrected memory errors since the driver was loaded");
            return Health::Degraded { reason };
        }
        match (self.temperature_c, self.slowdown_c) {
            (Some(now), Some(limit)) if now >= limit => {
                Health::Degraded { reason: format!("{now} °C; it slows itself down at {limit} °C") }
            }
            _ => Health::Ok,
        }
    }
}

/// `13000` is CUDA 13.0.
fn cuda_version(version: i32) -> String {
    format!("{}.{}", cuda_driver_version_major(version), cuda_driver_version_minor(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h100() -> Readings {
        Readings {
            name: Some("NVIDIA H100 80GB HBM3".into()),
            uuid: Some("GPU-1".into()),
            memory: Ok((81_559 * MIB, 70_000 * MIB)),
            compute_capability: Some((9, 0)),
            utilization_percent: Some(37),
            temperature_c: Some(41),
            slowdown_c: Some(87),
            uncorrected_errors: Some(0),
        }
    }

    #[test]
    fn readings_become_a_device_and_a_sample() {
        let device = h100().device(1, Some("580.1".into()), Some(cuda_version(13_000)));
        assert_eq!((device.index, device.vram_mb, device.free_vram_mb), (1, 81_559, 70_000));
        assert_eq!(device.name, "NVIDIA H100 80GB HBM3");
        assert_eq!(
            (device.cuda.as_deref(), device.compute_capability.as_deref()),
            (Some("13.0"), Some("9.0"))
        );
        assert_eq!(device.health, Health::Ok);
        let sample = h100().sample(&device);
        assert_eq!((sample.index, sample.free_vram_mb), (1, 70_000));
        assert_eq!((sample.utilization_percent, sample.temperature_c), (Some(37), Some(41)));
    }

    #[test]
    fn a_card_without_the_finer_counters_is_healthy() {
        let mut card = h100();
        card.uncorrected_errors = None;
        card.slowdown_c = None;
        card.utilization_percent = None;
        let device = card.device(0, None, None);
        assert_eq!(device.health, Health::Ok);
        assert_eq!(card.sample(&device).utilization_percent, None);
    }

    #[test]
    fn trouble_shows_in_the_health() {
        let health = |change: fn(&mut Readings)| {
            let mut readings = h100();
            change(&mut readings);
            readings.health()
        };
        assert!(
            matches!(health(|r| r.uncorrected_errors = Some(3)), Health::Degraded { reason } if reason.contains('3'))
        );
        assert!(
            matches!(health(|r| r.temperature_c = Some(87)), Health::Degraded { reason } if reason.contains("87"))
        );
        assert_eq!(health(|r| r.temperature_c = Some(86)), Health::Ok);
        let lost = health(|r| r.memory = Err("lost".into()));
        assert!(!lost.is_usable() && health(|r| r.temperature_c = Some(99)).is_usable());
    }

    #[test]
    fn a_gpu_that_cannot_be_reached_is_listed_as_failed() {
        let device = Readings::none(&NvmlError::GpuLost).device(0, None, None);
        assert_eq!((device.vram_mb, device.uuid.as_deref()), (0, None));
        assert!(matches!(device.health, Health::Failed { .. }));
    }

    #[test]
    fn another_gpu_in_its_place_is_not_taken_for_it() {
        let device = h100().device(0, None, None);
        let mut other = h100();
        other.uuid = Some("GPU-2".into());
        let sample = other.sample(&device);
        assert!(matches!(sample.health, Health::Failed { .. }));
        assert_eq!((sample.free_vram_mb, sample.temperature_c), (0, None));
    }
}
