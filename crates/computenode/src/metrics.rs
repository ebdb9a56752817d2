//! What the node counts, as Prometheus reads it.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use gpu::{Device, DeviceKind, Sample};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use rpc::tasks::Phase;
use taskmarket::Runtime;

/// The media type of [`Metrics::text`].
pub(crate) const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the buckets of tasks' durations, in seconds: from a cached program to a day's training.
const SECONDS: [f64; 12] =
    [0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 28_800.0, 86_400.0];

/// The node's metrics.
pub(crate) struct Metrics {
    registry: Registry,
    tasks: Family<Task, Counter>,
    seconds: Family<RuntimeLabel, Histogram>,
    busy_seconds: Counter<f64, AtomicU64>,
    result_bytes: Counter,
    pub(crate) refused_busy: Counter,
    pub(crate) unauthorized: Counter,
    slots: Gauge,
    busy: Gauge,
    draining: Gauge,
    cache_bytes: Gauge,
    disk_free: Gauge,
    gpus: GpuGauges,
}

/// The state of a moment, for the gauges. What is not known keeps its last value.
pub(crate) struct Moment<'a> {
    pub(crate) slots: u32,
    pub(crate) busy: u32,
    pub(crate) draining: bool,
    pub(crate) cache_bytes: Option<u64>,
    pub(crate) disk_free: Option<u64>,
    pub(crate) devices: &'a [Device],
    pub(crate) samples: &'a [Sample],
}

struct GpuGauges {
    free_vram: Family<Gpu, Gauge>,
    utilization: Family<Gpu, Gauge>,
    temperature: Family<Gpu, Gauge>,
    offered: Family<Gpu, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Task {
    runtime: &'static str,
    outcome: &'static str,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RuntimeLabel {
    runtime: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Gpu {
    gpu: u32,
    name: String,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("zorai_node");
        let tasks = Family::default();
        registry.register(
            "tasks",
            "Attempts that ended, by runtime, outcome and failure code",
            tasks.clone(),
        );
        let seconds = Family::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> Histogram);
        registry.register("task_seconds", "How long attempts held a slot, in seconds", seconds.clone());
        let busy_seconds = Counter::default();
        registry.register_with_unit(
            "busy",
            "Time that attempts held slots",
            Unit::Seconds,
            busy_seconds.clone(),
        );
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let result_bytes = counter("result_bytes", "Bytes of results made");
        let refused_busy = counter("refused_busy", "Tasks refused for want of a slot");
        let unauthorized = counter("unauthorized", "Requests without the token");
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let slots = gauge("slots", "Tasks that may run at once");
        let busy = gauge("busy_slots", "Tasks that run");
        let draining = gauge("draining", "1 while no tasks are taken on the operator's wish");
        let cache_bytes = gauge("cache_bytes", "Bytes of fetched models and inputs on the disk");
        let disk_free = gauge("disk_free_bytes", "Free bytes on the disk of the data folder");
        let gpus = GpuGauges::register(&mut registry);
        Self {
            registry,
            tasks,
            seconds,
            busy_seconds,
            result_bytes,
            refused_busy,
            unauthorized,
            slots,
            busy,
            draining,
            cache_bytes,
            disk_free,
            gpus,
        }
    }
}

impl Metrics {
    /// An attempt ended after it had held its slot for so long.
    pub(crate) fn ended(
        &self,
        runtime: Runtime,
        phase: Phase,
        code: Option<&str>,
        held: Duration,
        bytes: u64,
    ) {
        let outcome = match phase {
            Phase::Done => "done",
            Phase::Cancelled => "cancelled",
            Phase::Fetching | Phase::Running | Phase::Uploading | Phase::Failed => "failed",
        };
        let runtime = runtime.as_str();
        let labels = Task { runtime, outcome, code: code.unwrap_or_default().to_owned() };
        self.tasks.get_or_create(&labels).inc();
        self.seconds.get_or_create(&RuntimeLabel { runtime }).observe(held.as_secs_f64());
        self.busy_seconds.inc_by(held.as_secs_f64());
        self.result_bytes.inc_by(bytes);
    }

    /// The metrics in Prometheus' text form, with the state of this moment.
    pub(crate) fn text(&self, moment: &Moment<'_>) -> Result<String, fmt::Error> {
        self.slots.set(i64::from(moment.slots));
        self.busy.set(i64::from(moment.busy));
        self.draining.set(i64::from(moment.draining));
        for (gauge, value) in [(&self.cache_bytes, moment.cache_bytes), (&self.disk_free, moment.disk_free)] {
            if let Some(value) = value {
                gauge.set(capped(value));
            }
        }
        for (device, sample) in moment.devices.iter().zip(moment.samples) {
            if device.kind == DeviceKind::Gpu {
                self.gpus.set(device, sample);
            }
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl GpuGauges {
    fn register(registry: &mut Registry) -> Self {
        let mut family = |name: &str, help: &str| {
            let family = Family::default();
            registry.register(name, help, family.clone());
            family
        };
        Self {
            free_vram: family("gpu_free_vram_bytes", "Free memory of a GPU, in bytes"),
            utilization: family("gpu_utilization_percent", "The share of time in which a GPU was at work"),
            temperature: family("gpu_temperature_celsius", "Temperature of a GPU's chip"),
            offered: family("gpu_offered", "1 while a GPU is well enough to be given to tasks"),
        }
    }

    fn set(&self, device: &Device, sample: &Sample) {
        let gpu = Gpu { gpu: device.index, name: device.name.clone() };
        self.free_vram.get_or_create(&gpu).set(capped(sample.free_vram_mb.saturating_mul(1 << 20)));
        self.offered.get_or_create(&gpu).set(i64::from(sample.health.is_offerable()));
        let told =
            [(&self.utilization, sample.utilization_percent), (&self.temperature, sample.temperature_c)];
        for (family, value) in told {
            if let Some(value) = value {
                family.get_or_create(&gpu).set(i64::from(value));
            }
        }
    }
}

fn capped(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use gpu::Inventory;

    use super::*;

    #[test]
    fn each_metric_says_what_it_is() {
        let metrics = Metrics::default();
        metrics.ended(Runtime::Wasm, Phase::Failed, Some("out_of_fuel"), Duration::from_millis(1500), 0);
        metrics.ended(Runtime::Wasm, Phase::Done, None, Duration::from_millis(500), 7);
        let inventory = Inventory::declared("Test GPU", 3);
        let samples = inventory.sample();
        let moment = Moment {
            slots: 2,
            busy: 1,
            draining: false,
            cache_bytes: Some(5),
            disk_free: None,
            devices: &inventory.devices,
            samples: &samples,
        };
        let text = metrics.text(&moment).unwrap();
        for line in [
            "# HELP zorai_node_tasks Attempts that ended, by runtime, outcome and failure code.",
            "# TYPE zorai_node_tasks counter",
            "zorai_node_tasks_total{runtime=\"wasm\",outcome=\"failed\",code=\"out_of_fuel\"} 1",
            "zorai_node_tasks_total{runtime=\"wasm\",outcome=\"done\",code=\"\"} 1",
            "zorai_node_task_seconds_bucket{le=\"0.25\",runtime=\"wasm\"} 0",
            "zorai_node_task_seconds_bucket{le=\"1.0\",runtime=\"wasm\"} 1",
            "zorai_node_busy_seconds_total 2.0",
            "zorai_node_result_bytes_total 7",
            "zorai_node_slots 2",
            "zorai_node_cache_bytes 5",
            "zorai_node_gpu_free_vram_bytes{gpu=\"0\",name=\"Test GPU\"} 3145728",
            "zorai_node_gpu_offered{gpu=\"0\",name=\"Test GPU\"} 1",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is missing in {text}");
        }
        assert!(!text.contains("temperature_celsius{"), "what is not known is not told: {text}");
    }
}
