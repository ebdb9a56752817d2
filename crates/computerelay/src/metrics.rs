//! What the relay counts, for Prometheus.

use std::time::Duration;

use http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use rpc::relay::{ChainStatus, MarketStats};
use taskmarket::ChainHead;

use crate::gateway::Counts;
use crate::hub::HubTotals;

/// Upper bounds of the request-time buckets, in seconds: from a lookup to a request's deadline.
const SECONDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

/// The relay's metrics.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    seconds: Histogram,
    tasks: Family<Tasks, Gauge>,
    providers: Gauge,
    slots: Gauge,
    slots_busy: Gauge,
    gpus: Gauge,
    waiting: Gauge,
    offers: Gauge,
    held: Gauge,
    chain: Chain,
}

/// The chain that is followed; all zero where none is.
struct Chain {
    head: Gauge,
    final_block: Gauge,
    lag: Gauge,
    well: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: &'static str,
    route: String,
    status: u16,
}

/// Counts committed events by their type. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Commits(Family<Commit, Counter>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Commit {
    event: &'static str,
}

impl Commits {
    /// An event was committed.
    pub(crate) fn count(&self, event: &'static str) {
        self.0.get_or_create(&Commit { event }).inc();
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Tasks {
    status: String,
}

impl Metrics {
    /// All of them at zero, but for the commits, which the market counts, and inference, which the gateway counts.
    pub(crate) fn new(commits: &Commits, inference: &Counts) -> Self {
        let mut registry = Registry::with_prefix("zorai_relay");
        let requests = Family::default();
        registry.register("http_requests", "HTTP requests answered", requests.clone());
        let seconds = Histogram::new(SECONDS);
        registry.register(
            "http_request_seconds",
            "Time until an HTTP answer began, in seconds",
            seconds.clone(),
        );
        registry.register("commits", "Events committed to tasks", commits.0.clone());
        inference.register(&mut registry);
        let tasks = Family::default();
        registry.register("tasks", "Tasks by status", tasks.clone());
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let providers = gauge("sessions", "Hosts connected");
        let slots = gauge("slots", "Tasks that the connected hosts can run at once");
        let slots_busy = gauge("slots_busy", "Tasks that the connected hosts run");
        let gpus = gauge("gpus", "GPUs of the connected hosts");
        let waiting = gauge("tasks_waiting", "Open tasks that wait in memory for a host");
        let offers = gauge("offers", "Offers that hosts have not answered yet");
        let held = gauge("attempts_held", "Attempts that hosts hold");
        let chain = Chain {
            head: gauge("chain_head", "The head of the chain that holds the money, as a block number"),
            final_block: gauge("chain_final", "The last final block whose facts all tasks have"),
            lag: gauge("chain_lag_seconds", "How old that block is"),
            well: gauge("chain_well", "1 while the chain is followed up to its head, else 0"),
        };
        Self {
            registry,
            requests,
            seconds,
            tasks,
            providers,
            slots,
            slots_busy,
            gpus,
            waiting,
            offers,
            held,
            chain,
        }
    }

    /// An HTTP request was answered. `route` is the route's pattern, so that there are few of them.
    pub(crate) fn answered(&self, method: &Method, route: &str, status: StatusCode, after: Duration) {
        let method = known(method);
        let labels = Request { method, route: route.to_owned(), status: status.as_u16() };
        self.requests.get_or_create(&labels).inc();
        self.seconds.observe(after.as_secs_f64());
    }

    /// The metrics in Prometheus' text form, with the market as it is now.
    pub(crate) fn text(
        &self,
        stats: &MarketStats,
        hub: &HubTotals,
        chain: Option<&ChainStatus>,
    ) -> Result<String, std::fmt::Error> {
        if let Some(chain) = chain {
            let number = |head: Option<ChainHead>| head.map_or(0, |head| capped(head.block));
            self.chain.head.set(number(chain.head));
            self.chain.final_block.set(number(chain.final_head));
            self.chain.lag.set(capped(chain.lag_secs.unwrap_or_default()));
            self.chain.well.set(i64::from(chain.error.is_none()));
        }
        for (status, count) in &stats.tasks {
            self.tasks.get_or_create(&Tasks { status: status.clone() }).set(capped(*count));
        }
        self.providers.set(capped(stats.providers_online));
        self.slots.set(capped(stats.slots));
        self.slots_busy.set(capped(stats.slots_busy));
        self.gpus.set(capped(stats.gpus));
        self.waiting.set(capped(hub.waiting));
        self.offers.set(capped(hub.offers));
        self.held.set(capped(hub.held));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn capped(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A client can invent methods, but not labels.
fn known(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}
