//! What is counted of inference, for Prometheus. Models are named by providers: so that labels stay few, those that were served first
//! have labels of their own, and all others share one.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use rpc::error::ErrorCode;
use rpc::inference::{InferenceKind, Outcome};

use super::meter::Count;

/// Models with a label of their own at most.
const MAX_MODELS: usize = 100;
/// The label of all others.
const OTHERS: &str = "other";
/// Upper bounds of the buckets of the time to the first byte, in seconds: from a cached prompt to the longest deadline.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0];

/// See the module.
#[derive(Debug)]
pub(crate) struct Counts {
    models: Mutex<HashSet<String>>,
    requests: Family<Served, Counter>,
    tokens: Family<Tokens, Counter>,
    first_byte: Histogram,
    failed: Family<Reason, Counter>,
    refused: Family<Code, Counter>,
    waiting: Gauge,
    under_way: Gauge,
    slots: Gauge,
    breakers: Family<Breakers, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Served {
    model: String,
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Tokens {
    model: String,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Breakers {
    state: &'static str,
}

/// The gateway in numbers, as it is now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct GatewayTotals {
    /// Requests that wait for a host.
    pub(crate) waiting: u64,
    /// Requests that hosts have.
    pub(crate) under_way: u64,
    /// Requests that hosts can have at once.
    pub(crate) slots: u64,
    /// Breakers that are open.
    pub(crate) open: u64,
    /// Breakers that one request tries.
    pub(crate) trying: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            models: Mutex::default(),
            requests: Family::default(),
            tokens: Family::default(),
            first_byte: Histogram::new(SECONDS),
            failed: Family::default(),
            refused: Family::default(),
            waiting: Gauge::default(),
            under_way: Gauge::default(),
            slots: Gauge::default(),
            breakers: Family::default(),
        }
    }
}

impl Counts {
    /// Has all of them shown.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("inference");
        registry.register(
            "requests",
            "Inference requests whose answer began, by how it ended",
            self.requests.clone(),
        );
        registry.register("tokens", "Tokens that passed, by the relay's count", self.tokens.clone());
        registry.register(
            "first_byte_seconds",
            "Time from when a host was asked until its answer began, in seconds",
            self.first_byte.clone(),
        );
        registry.register(
            "failed_attempts",
            "Hosts that failed a request before their answer began",
            self.failed.clone(),
        );
        registry.register("refused", "Inference requests that no host answered", self.refused.clone());
        registry.register("waiting", "Inference requests that wait for a host", self.waiting.clone());
        registry.register("under_way", "Inference requests that hosts have", self.under_way.clone());
        registry.register("slots", "Inference requests that hosts can have at once", self.slots.clone());
        registry.register("breakers", "Circuit breakers that are not closed", self.breakers.clone());
    }

    /// A request's answer began, and ended so.
    pub(super) fn served(
        &self,
        model: &str,
        kind: InferenceKind,
        outcome: Outcome,
        count: Count,
        first_byte: Duration,
    ) {
        let model = self.label(model);
        let labels = Served { model: model.clone(), kind: kind_word(kind), outcome: outcome_word(outcome) };
        self.requests.get_or_create(&labels).inc();
        for (direction, tokens) in [("prompt", count.prompt), ("completion", count.completion)] {
            self.tokens.get_or_create(&Tokens { model: model.clone(), direction }).inc_by(tokens);
        }
        self.first_byte.observe(first_byte.as_secs_f64());
    }

    /// A host failed a request before its answer began.
    pub(super) fn failed(&self, reason: &'static str) {
        self.failed.get_or_create(&Reason { reason }).inc();
    }

    /// A request ended without a host's answer.
    pub(super) fn refused(&self, code: ErrorCode) {
        self.refused.get_or_create(&Code { code: code.as_str() }).inc();
    }

    /// Shows how things are now.
    pub(crate) fn show(&self, totals: &GatewayTotals) {
        let capped = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.waiting.set(capped(totals.waiting));
        self.under_way.set(capped(totals.under_way));
        self.slots.set(capped(totals.slots));
        for (state, count) in [("open", totals.open), ("half_open", totals.trying)] {
            self.breakers.get_or_create(&Breakers { state }).set(capped(count));
        }
    }

    fn label(&self, model: &str) -> String {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if !models.contains(model) {
            if models.len() >= MAX_MODELS {
                return OTHERS.to_owned();
            }
            models.insert(model.to_owned());
        }
        model.to_owned()
    }
}

fn kind_word(kind: InferenceKind) -> &'static str {
    match kind {
        InferenceKind::Chat => "chat",
        InferenceKind::Completions => "completions",
        InferenceKind::Embeddings => "embeddings",
        InferenceKind::Responses => "responses",
    }
}

fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Failed => "failed",
        Outcome::Cancelled => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stay_few() {
        let counts = Counts::default();
        for number in 0..2 * MAX_MODELS {
            counts.label(&number.to_string());
        }
        assert_eq!(counts.label("0"), "0");
        assert_eq!(counts.label(&(2 * MAX_MODELS).to_string()), OTHERS);
        assert!(counts.models.lock().unwrap().len() <= MAX_MODELS);
    }
}
