//! The node's counters, as Prometheus reads them.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the node started.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) done: Counter,
    pub(crate) failed: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) refused_busy: Counter,
    pub(crate) unauthorized: Counter,
    pub(crate) result_bytes: Counter,
    pub(crate) busy_milliseconds: Counter,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Metrics {
    /// The text exposition format, version 0.0.4.
    pub(crate) fn render(&self, slots: u32, busy: u32) -> String {
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(&str, f64)]| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP zorai_node_{name} {help}\n# TYPE zorai_node_{name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(text, "zorai_node_{name}{labels} {value}");
            }
        };
        let count = |counter: &Counter| counter.get() as f64;
        family(
            "tasks_total",
            "counter",
            "Attempts that ended, by how.",
            &[
                ("{outcome=\"done\"}", count(&self.done)),
                ("{outcome=\"failed\"}", count(&self.failed)),
                ("{outcome=\"cancelled\"}", count(&self.cancelled)),
            ],
        );
        family("slots", "gauge", "Tasks that may run at once.", &[("", f64::from(slots))]);
        family("busy_slots", "gauge", "Tasks that run.", &[("", f64::from(busy))]);
        let busy_seconds = count(&self.busy_milliseconds) / 1000.0;
        family("busy_seconds_total", "counter", "Time that tasks held slots.", &[("", busy_seconds)]);
        let refused = count(&self.refused_busy);
        family("refused_busy_total", "counter", "Tasks refused for want of a slot.", &[("", refused)]);
        let unauthorized = count(&self.unauthorized);
        family("unauthorized_total", "counter", "Requests without the token.", &[("", unauthorized)]);
        let bytes = count(&self.result_bytes);
        family("result_bytes_total", "counter", "Bytes of results made.", &[("", bytes)]);
        text
    }
}
