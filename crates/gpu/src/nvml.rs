//! NVIDIA's GPUs through NVML. Asking the library ([`Readings::of`]) is kept apart from judging its answers,
//! so that the judging is tested without a GPU.

use std::time::Duration;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{cuda_driver_version_major, cuda_driver_version_minor};

use crate::health::{HOT_C, heat};
use crate::{Device, DeviceKind, GpuProcess, Health, Sample, Vendor};

const MIB: u64 = 1 << 20;
/// `nvmlDeviceGetMigMode` answers 1 for a GPU in MIG mode.
const MIG_ENABLED: u32 = 1;
/// What NVML calls an Xid error whose number it does not know.
const UNKNOWN_XID: u64 = 999;

/// The open library.
pub(crate) struct Nvml(nvml_wrapper::Nvml);

/// Where Xid errors arrive.
pub(crate) struct XidEvents<'a>(EventSet<'a>);

/// An Xid error of one GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct XidError {
    pub(crate) uuid: String,
    pub(crate) xid: u64,
}

/// What the library answers about one GPU or MIG instance. Each question can fail on its own: not every GPU offers
/// all.
#[derive(Clone)]
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
    /// Power drawn and the limit in force, in milliwatts.
    power_mw: Option<u32>,
    power_limit_mw: Option<u32>,
    /// Memory errors since the driver was loaded that could not be corrected.
    uncorrected_errors: Option<u64>,
    throttled: Vec<String>,
    processes: Vec<GpuProcess>,
}

/// What all devices of a host share.
struct Versions {
    driver: Option<String>,
    cuda: Option<String>,
}

impl Nvml {
    /// Loads the library and connects to the driver.
    pub(crate) fn open() -> Result<Self, NvmlError> {
        nvml_wrapper::Nvml::init().map(Self)
    }

    /// All GPUs, those that do not answer included; in place of a GPU in MIG mode its instances.
    pub(crate) fn devices(&self) -> Vec<Device> {
        let count = self.0.device_count().unwrap_or_else(|error| {
            tracing::warn!(%error, "NVIDIA's driver cannot count the GPUs");
            0
        });
        let versions = Versions {
            driver: self.0.sys_driver_version().ok(),
            cuda: self.0.sys_cuda_driver_version().ok().map(cuda_version),
        };
        let found = (0..count).flat_map(|i| match self.0.device_by_index(i) {
            Ok(gpu) => parts(&gpu),
            Err(error) => vec![(Readings::none(&error), None)],
        });
        (0..).zip(found).map(|(i, (readings, parent))| readings.device(i, parent, &versions)).collect()
    }

    /// Live figures of a device that [`Nvml::devices`] listed. GPUs are found by their UUID: after one fell off the
    /// bus, the others move up in the library's count.
    pub(crate) fn sample(&self, device: &Device) -> Sample {
        let readings = match &device.uuid {
            Some(uuid) => self.0.device_by_uuid(uuid.as_str()).map(|gpu| {
                let readings = Readings::of(&gpu);
                match &device.mig_parent {
                    Some(_) => gpu.mig_parent_device().map_or(readings.clone(), |p| readings.within(&p)),
                    None => readings,
                }
            }),
            None => Err(NvmlError::NotFound),
        };
        readings.unwrap_or_else(|error| Readings::none(&error)).sample(device.index)
    }

    /// Listens to those of the GPUs that report Xid errors; `None` if none does.
    #[cfg(target_os = "linux")]
    pub(crate) fn xid_events(&self, uuids: &[String]) -> Option<XidEvents<'_>> {
        let mut uuids: Vec<&String> = uuids.iter().collect();
        // A GPU that refuses takes the whole set with it, so then a new one is made without it.
        while !uuids.is_empty() {
            match self.register(&uuids) {
                Ok(set) => return Some(XidEvents(set)),
                Err((refused, error)) => {
                    tracing::info!(uuid = uuids[refused], %error, "the GPU does not report Xid errors");
                    uuids.remove(refused);
                }
            }
        }
        None
    }

    /// One set for all of them, or which one refused.
    #[cfg(target_os = "linux")]
    fn register(&self, uuids: &[&String]) -> Result<EventSet<'_>, (usize, NvmlError)> {
        use nvml_wrapper::bitmasks::event::EventTypes;

        let mut set = self.0.create_event_set().map_err(|error| (0, error))?;
        for (place, uuid) in uuids.iter().enumerate() {
            let gpu = self.0.device_by_uuid(uuid.as_str()).map_err(|error| (place, error))?;
            let registered = gpu.register_events(EventTypes::CRITICAL_XID_ERROR, set);
            set = registered.map_err(|error| (place, error.error))?;
        }
        Ok(set)
    }

    /// NVML reports Xid errors on Linux alone.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn xid_events(&self, _uuids: &[String]) -> Option<XidEvents<'_>> {
        None
    }
}

impl XidEvents<'_> {
    /// The next error, `None` if there is none within `wait`.
    pub(crate) fn next(&self, wait: Duration) -> Result<Option<XidError>, String> {
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let data = match self.0.wait(wait_ms) {
            Ok(data) => data,
            Err(NvmlError::Timeout) => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let xid = match data.event_data {
            Some(event::XidError::Value(xid)) => xid,
            Some(event::XidError::Unknown) => UNKNOWN_XID,
            None => return Ok(None),
        };
        // A GPU that cannot say who it is fails its next sample.
        let uuid = data.device.uuid().map_err(|error| format!("Xid {xid} of a lost GPU: {error}"))?;
        Ok(Some(XidError { uuid, xid }))
    }
}

/// The GPU, or its MIG instances, each with the UUID of the GPU that it is a part of.
fn parts(gpu: &nvml_wrapper::Device<'_>) -> Vec<(Readings, Option<String>)> {
    if gpu.mig_mode().map_or(true, |mode| mode.current != MIG_ENABLED) {
        return vec![(Readings::of(gpu), None)];
    }
    let uuid = gpu.uuid().ok();
    let places = gpu.mig_device_count().unwrap_or(0);
    let instances = (0..places).filter_map(|i| gpu.mig_device_by_index(i).ok());
    let instances: Vec<_> =
        instances.map(|instance| (Readings::of(&instance).within(gpu), uuid.clone())).collect();
    if instances.is_empty() {
        tracing::warn!(uuid, "a GPU in MIG mode has no instance that tasks could use");
    }
    instances
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
            power_mw: gpu.power_usage().ok(),
            power_limit_mw: gpu.enforced_power_limit().ok(),
            uncorrected_errors: gpu.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).ok(),
            throttled: gpu.current_throttle_reasons().map(throttle_names).unwrap_or_default(),
            processes: processes(
                gpu.running_compute_processes().into_iter().chain(gpu.running_graphics_processes()).flatten(),
            ),
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
            power_mw: None,
            power_limit_mw: None,
            uncorrected_errors: None,
            throttled: Vec::new(),
            processes: Vec::new(),
        }
    }

    /// What an instance shares with the whole GPU: heat and memory errors are known of that alone.
    fn within(self, gpu: &nvml_wrapper::Device<'_>) -> Self {
        self.with_parent(Self::of(gpu))
    }

    fn with_parent(mut self, parent: Self) -> Self {
        self.compute_capability = self.compute_capability.or(parent.compute_capability);
        self.temperature_c = parent.temperature_c;
        self.slowdown_c = parent.slowdown_c;
        self.uncorrected_errors = parent.uncorrected_errors;
        self.throttled = parent.throttled;
        self
    }

    fn device(self, index: u32, mig_parent: Option<String>, versions: &Versions) -> Device {
        Device {
            kind: DeviceKind::Gpu,
            vendor: Some(Vendor::Nvidia),
            index,
            vram_mb: self.memory.as_ref().map_or(0, |(total, _)| total / MIB),
            free_vram_mb: self.free_vram_mb(),
            power_limit_w: self.power_limit_mw.map(|mw| mw / 1000),
            driver: versions.driver.clone(),
            cuda: versions.cuda.clone(),
            compute_capability: self.compute_capability.map(|(major, minor)| format!("{major}.{minor}")),
            health: self.health(),
            name: self.name.unwrap_or_else(|| "NVIDIA GPU".to_owned()),
            uuid: self.uuid,
            mig_parent,
        }
    }

    fn sample(self, index: u32) -> Sample {
        Sample {
            index,
            free_vram_mb: self.free_vram_mb(),
            utilization_percent: self.utilization_percent,
            temperature_c: self.temperature_c,
            power_w: self.power_mw.map(|mw| mw / 1000),
            health: self.health(),
            throttled: self.throttled,
            processes: self.processes,
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
        heat(self.temperature_c, self.slowdown_c.unwrap_or(HOT_C))
    }
}

/// The reasons in lower case, without the one that only says that the GPU has nothing to do.
fn throttle_names(reasons: ThrottleReasons) -> Vec<String> {
    (reasons - ThrottleReasons::GPU_IDLE).iter_names().map(|(name, _)| name.to_lowercase()).collect()
}

/// Each process once, by its id: one that computes and draws is listed twice, with the same memory.
fn processes(listed: impl Iterator<Item = ProcessInfo>) -> Vec<GpuProcess> {
    let mut processes: Vec<GpuProcess> = listed
        .map(|process| GpuProcess {
            pid: process.pid,
            used_mb: match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes / MIB),
                UsedGpuMemory::Unavailable => None,
            },
        })
        .collect();
    processes.sort_by_key(|process| process.pid);
    processes.dedup_by_key(|process| process.pid);
    processes
}

/// `13000` is CUDA 13.0.
fn cuda_version(version: i32) -> String {
    format!("{}.{}", cuda_driver_version_major(version), cuda_driver_version_minor(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSIONS: Versions = Versions { driver: None, cuda: None };

    fn h100() -> Readings {
        Readings {
            name: Some("NVIDIA H100 80GB HBM3".into()),
            uuid: Some("GPU-1".into()),
            memory: Ok((81_559 * MIB, 70_000 * MIB)),
            compute_capability: Some((9, 0)),
            utilization_percent: Some(37),
            temperature_c: Some(41),
            slowdown_c: Some(87),
            power_mw: Some(120_900),
            power_limit_mw: Some(700_000),
            uncorrected_errors: Some(0),
            throttled: vec!["sw_power_cap".into()],
            processes: vec![GpuProcess { pid: 7, used_mb: Some(11_000) }],
        }
    }

    #[test]
    fn readings_become_a_device_and_a_sample() {
        let versions = Versions { driver: Some("580.1".into()), cuda: Some(cuda_version(13_000)) };
        let device = h100().device(1, None, &versions);
        assert_eq!((device.index, device.vram_mb, device.free_vram_mb), (1, 81_559, 70_000));
        assert_eq!(device.name, "NVIDIA H100 80GB HBM3");
        assert_eq!(
            (device.cuda.as_deref(), device.compute_capability.as_deref()),
            (Some("13.0"), Some("9.0"))
        );
        assert_eq!((device.vendor, device.power_limit_w), (Some(Vendor::Nvidia), Some(700)));
        assert_eq!(device.health, Health::Ok);
        let sample = h100().sample(1);
        assert_eq!((sample.index, sample.free_vram_mb), (1, 70_000));
        assert_eq!((sample.utilization_percent, sample.temperature_c), (Some(37), Some(41)));
        assert_eq!((sample.power_w, sample.throttled.as_slice()), (Some(120), &["sw_power_cap".into()][..]));
        assert_eq!(sample.foreign_mb(&device, |pid| pid == 7), 81_559 - 70_000 - 11_000);
    }

    #[test]
    fn a_card_without_the_finer_counters_is_healthy() {
        let mut card = h100();
        card.uncorrected_errors = None;
        card.slowdown_c = None;
        card.utilization_percent = None;
        assert_eq!(card.clone().device(0, None, &VERSIONS).health, Health::Ok);
        assert_eq!(card.sample(0).utilization_percent, None);
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
        let without_threshold = |r: &mut Readings| (r.temperature_c, r.slowdown_c) = (Some(90), None);
        assert!(!health(without_threshold).is_offerable());
        let lost = health(|r| r.memory = Err("lost".into()));
        assert!(!lost.is_usable() && health(|r| r.temperature_c = Some(99)).is_usable());
    }

    #[test]
    fn a_gpu_that_cannot_be_reached_is_listed_as_failed() {
        let device = Readings::none(&NvmlError::GpuLost).device(0, None, &VERSIONS);
        assert_eq!((device.vram_mb, device.uuid.as_deref()), (0, None));
        assert!(matches!(device.health, Health::Failed { .. }));
    }

    #[test]
    fn an_instance_shares_the_whole_gpus_heat_and_memory_errors() {
        let mut instance = h100();
        instance.uuid = Some("MIG-1".into());
        instance.memory = Ok((9_856 * MIB, 9_000 * MIB));
        (instance.temperature_c, instance.uncorrected_errors) = (None, None);
        let mut parent = h100();
        parent.temperature_c = Some(95);
        let device = instance.with_parent(parent).device(2, Some("GPU-1".into()), &VERSIONS);
        assert_eq!((device.uuid.as_deref(), device.mig_parent.as_deref()), (Some("MIG-1"), Some("GPU-1")));
        assert_eq!(device.vram_mb, 9_856);
        assert!(!device.health.is_offerable());
    }

    #[test]
    fn throttle_reasons_have_names_and_idleness_is_none() {
        let reasons =
            ThrottleReasons::GPU_IDLE | ThrottleReasons::SW_POWER_CAP | ThrottleReasons::HW_THERMAL_SLOWDOWN;
        assert_eq!(throttle_names(reasons), ["sw_power_cap", "hw_thermal_slowdown"]);
        assert_eq!(throttle_names(ThrottleReasons::GPU_IDLE), [""; 0]);
    }

    #[test]
    fn a_process_is_listed_once() {
        let process = |pid, used_gpu_memory| ProcessInfo {
            pid,
            used_gpu_memory,
            gpu_instance_id: None,
            compute_instance_id: None,
        };
        let listed = [
            process(9, UsedGpuMemory::Unavailable),
            process(3, UsedGpuMemory::Used(5 * MIB)),
            process(3, UsedGpuMemory::Used(5 * MIB)),
        ];
        let expected = [GpuProcess { pid: 3, used_mb: Some(5) }, GpuProcess { pid: 9, used_mb: None }];
        assert_eq!(processes(listed.into_iter()), expected);
    }
}
