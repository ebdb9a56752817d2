//! The OpenAI-compatible engines behind this node: what they serve, how they are, and the way to them.
//!
//! Engines are configured, found on loopback, or started by the node itself (`managed`), among them the one inside this
//! program ([`embedded`]). Each that is idle or away is asked
//! every few seconds what it serves (`probe`); while one works, its answers tell that it lives, and it is left in
//! peace: some engines serve one request at a time, questions included. Requests go through `proxy` or as lines of a
//! batch, each in one of the engine's slots: nothing queues here, and a request that finds no slot is refused.

mod config;
pub mod embedded;
mod lease;
mod managed;
mod overflow;
mod probe;
mod proxy;

pub use config::{
    EngineArgs, EngineCommand, EngineError, EngineSpec, EngineTiming, EnginesConfig, ManagedSpec,
};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use daemon::chain;
use reqwest::{Client, Url};
use rpc::inference::{InferenceKind, MAX_MODELS, ModelOffer};
use rustix::process::{Pid, getpgid};
use taskmarket::Amount;
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::config::Launch;
use self::lease::Http;
pub(crate) use self::lease::{Content, Lease};
use self::probe::{Problem, Served, ServedModel, probe};

/// Where engines usually listen on loopback.
pub(crate) const USUAL_PORTS: [(&str, u16); 5] =
    [("vllm", 8000), ("sglang", 30_000), ("llama.cpp", 8080), ("ollama", 11_434), ("lm-studio", 1234)];

/// How long a connection to an engine may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Probes in a row without an answer after which an engine counts as away. A refused connection counts at once.
const MISSED_PROBES: u32 = 3;

/// How often an engine that is away is looked for.
const ABSENT_PROBE: Duration = Duration::from_secs(1);

/// Probes in a row without an answer after which a managed engine that once answered is killed and started again.
const MISSED_PROBES_TO_RESTART: u32 = 60;

/// The engines of a node. Clones are the same engines.
#[derive(Clone)]
pub struct Engines(Arc<Inner>);

struct Inner {
    http: Http,
    engines: Vec<Arc<Engine>>,
    launches: Vec<(Arc<Engine>, Launch)>,
    timing: EngineTiming,
    /// Where the processes of managed engines are noted, to be found again after a crash.
    folder: PathBuf,
    /// Changes whenever a slot becomes free or an engine comes or goes.
    changed: Arc<watch::Sender<()>>,
    running: TaskTracker,
    ending: CancellationToken,
}

/// One engine.
struct Engine {
    name: String,
    /// Whether the operator wants it: one that was only looked for is no cause to wait.
    expected: bool,
    slots: Option<u32>,
    state: Mutex<State>,
    /// Wakes its probe before its time.
    look: Notify,
    changed: Arc<watch::Sender<()>>,
}

#[derive(Default)]
struct State {
    base: Option<Url>,
    /// What it served when it last answered.
    served: Option<Served>,
    up: bool,
    missed: u32,
    busy: u32,
    /// The process of a managed engine.
    process: Option<Process>,
}

/// A managed engine's process, as its answers tell.
struct Process {
    /// Its group, in which is what it starts for itself.
    group: Pid,
    /// Whether it has answered: until then it loads its model, however long that takes.
    answered: bool,
    /// Tells its supervisor that it answers no more.
    hangs: CancellationToken,
}

/// Why no engine can take a request now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RouteError {
    /// No engine serves the model.
    #[error("no engine of this node serves the model {0:?}")]
    ModelNotFound(String),
    /// The engines that serve it are away.
    #[error("the engine of the model {0:?} is away")]
    Unavailable(String),
    /// Each slot of theirs is in use.
    #[error("all slots of the model {0:?} are in use")]
    Busy(String),
}

impl Engines {
    /// The engines that the configuration names, not asked for anything yet. `folder` is theirs alone.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn new(
        config: &EnginesConfig,
        tls: &rustls::ClientConfig,
        folder: PathBuf,
    ) -> Result<Self, EngineError> {
        let EnginesConfig { args, timing, program } = config;
        let mut launches = args.launches()?;
        launches.extend(args.own_launches(program.as_ref())?);
        let mut tls = tls.clone();
        // HTTP/1.1: a request that is dropped closes its connection, which every engine understands.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let settings = || {
            Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                .http1_only()
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(timing.silence)
                .tcp_nodelay(true)
        };
        let http = Http::new(settings).map_err(|error| EngineError::Client(chain(&error)))?;
        let changed = Arc::new(watch::Sender::new(()));
        let engine = |name: &str, expected, slots, base| {
            Arc::new(Engine {
                name: name.to_owned(),
                expected,
                slots,
                state: Mutex::new(State { base, ..State::default() }),
                look: Notify::new(),
                changed: Arc::clone(&changed),
            })
        };
        let mut engines: Vec<_> = args
            .engine
            .iter()
            .map(|spec| engine(&spec.name, true, spec.slots, Some(spec.url.clone())))
            .collect();
        let managed =
            launches.into_iter().map(|launch| (engine(&launch.name, true, Some(launch.slots), None), launch));
        let launches: Vec<_> = managed.collect();
        engines.extend(launches.iter().map(|(engine, _)| Arc::clone(engine)));
        let usual = USUAL_PORTS.iter().filter(|_| args.detect_engines);
        for (name, port) in usual.filter(|(_, port)| !args.names_loopback(*port)) {
            let url = Url::parse(&format!("http://127.0.0.1:{port}/"));
            engines.push(engine(name, false, None, url.ok()));
        }
        let (running, ending) = (TaskTracker::new(), CancellationToken::new());
        let inner = Inner { http, engines, launches, timing: *timing, folder, changed, running, ending };
        Ok(Self(Arc::new(inner)))
    }

    /// Starts what is to be started, and asks every engine how it is from now on, until [`Self::stop`].
    /// Dropping what this gives ends them too, without waiting.
    #[must_use]
    pub fn start(&self) -> DropGuard {
        let inner = &self.0;
        for engine in &inner.engines {
            inner.running.spawn(watch_engine(Arc::clone(inner), Arc::clone(engine)));
        }
        for (engine, launch) in &inner.launches {
            let folder = inner.folder.clone();
            let supervised = managed::supervise(
                Arc::clone(engine),
                launch.clone(),
                inner.timing,
                folder,
                inner.ending.clone(),
            );
            inner.running.spawn(supervised);
        }
        inner.running.close();
        inner.ending.clone().drop_guard()
    }

    /// Ends what was started, and waits until it is gone.
    pub async fn stop(&self) {
        self.0.ending.cancel();
        let patience = self.0.timing.stop * 2;
        daemon::drain("engines", patience, self.0.running.wait()).await;
    }

    /// What can be asked of this node now. Engines with the same model are one offer with all their slots.
    pub fn offers(&self) -> Vec<ModelOffer> {
        let mut offers: BTreeMap<String, ModelOffer> = BTreeMap::new();
        for engine in &self.0.engines {
            let state = engine.state();
            let Some(served) = state.served.as_ref().filter(|_| state.up) else { continue };
            let slots = engine.slots_of(served);
            for model in &served.models {
                if let Some(offer) = offers.get_mut(&model.id) {
                    offer.slots = offer.slots.saturating_add(slots);
                    offer.busy = offer.busy.saturating_add(state.busy);
                    offer.warm = match (offer.warm, model.warm) {
                        (Some(true), _) | (_, Some(true)) => Some(true),
                        (Some(false), Some(false)) => Some(false),
                        (None, _) | (_, None) => None,
                    };
                } else if offers.len() < MAX_MODELS {
                    offers.insert(model.id.clone(), engine.offer(served, model, slots, state.busy));
                }
            }
        }
        offers.into_values().collect()
    }

    /// Whether a process is an engine that the node started, or one that such an engine started.
    pub(crate) fn have(&self, pid: u32) -> bool {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        pid.is_some_and(|pid| self.0.launches.iter().any(|(engine, _)| engine.has(pid)))
    }

    /// What can be asked of a model.
    pub(crate) fn kinds(&self, model: &str) -> Vec<InferenceKind> {
        let mut offers = self.offers().into_iter();
        offers.find(|offer| offer.id == model).map(|offer| offer.kinds).unwrap_or_default()
    }

    /// A slot for a request to a model, at the engine with the most free ones; of those that have it in memory, if any has one free.
    pub(crate) fn acquire(&self, model: &str) -> Result<Lease, RouteError> {
        let mut best: Option<((bool, u32), &Arc<Engine>)> = None;
        let (mut known, mut up, mut unheard) = (false, false, false);
        for engine in &self.0.engines {
            let state = engine.state();
            let Some(served) = &state.served else {
                unheard |= engine.expected;
                continue;
            };
            let Some(model) = served.models.iter().find(|served| served.id == model) else { continue };
            known = true;
            up |= state.up;
            let free = engine.slots_of(served).saturating_sub(state.busy);
            let rank = (model.warm != Some(false), free);
            if state.up && free > 0 && best.is_none_or(|(most, _)| rank > most) {
                best = Some((rank, engine));
            }
        }
        // Between the look and this, the slot may have gone: then the next best time is the caller's to find.
        let taken = best.and_then(|(_, engine)| Engine::take(engine));
        match taken {
            Some((engine, base)) => Ok(Lease { engine, http: self.0.http.clone(), base }),
            None if up => Err(RouteError::Busy(model.to_owned())),
            None if known || unheard => Err(RouteError::Unavailable(model.to_owned())),
            None => Err(RouteError::ModelNotFound(model.to_owned())),
        }
    }

    /// Hears of every slot that becomes free, and of every engine that comes or goes.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// How long a batch waits for an engine that is away.
    pub(crate) fn absence(&self) -> Duration {
        self.0.timing.absence
    }

    /// `POST` to the four endpoints of inference, and `GET /v1/models`.
    pub(crate) fn router<S: Clone + Send + Sync + 'static>(&self) -> axum::Router<S> {
        proxy::router(self.clone())
    }
}

impl Engine {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots_of(&self, served: &Served) -> u32 {
        self.slots.unwrap_or(served.slots)
    }

    fn take(engine: &Arc<Self>) -> Option<(Arc<Self>, Url)> {
        let mut state = engine.state();
        let free = state.up && state.busy < engine.slots_of(state.served.as_ref()?);
        let base = state.base.clone().filter(|_| free)?;
        state.busy += 1;
        Some((Arc::clone(engine), base))
    }

    fn offer(&self, served: &Served, model: &ServedModel, slots: u32, busy: u32) -> ModelOffer {
        ModelOffer {
            id: model.id.clone(),
            engine: served.kind.name().unwrap_or(&self.name).to_owned(),
            quantization: model.quantization.clone(),
            context_tokens: model.context_tokens,
            slots,
            busy,
            kinds: served.endpoints.clone(),
            warm: model.warm,
            prompt_price: Amount::ZERO,
            completion_price: Amount::ZERO,
        }
    }

    /// A managed engine's process has begun at this place, as the leader of a group. What this gives is cancelled when it hangs.
    fn began(&self, base: Url, group: Pid) -> CancellationToken {
        let hangs = CancellationToken::new();
        self.moved(Some(base), Some(Process { group, answered: false, hangs: hangs.clone() }));
        hangs
    }

    /// Whether a process is this engine, or one that it started, where the node manages it.
    fn has(&self, pid: Pid) -> bool {
        let group = self.state().process.as_ref().map(|process| process.group);
        group.is_some_and(|group| getpgid(Some(pid)) == Ok(group))
    }

    /// A managed engine's process is gone.
    fn ended(&self) {
        self.moved(None, None);
    }

    fn moved(&self, base: Option<Url>, process: Option<Process>) {
        let mut state = self.state();
        (state.base, state.process, state.up, state.missed) = (base, process, false, 0);
        drop(state);
        self.changed.send_replace(());
        self.look.notify_one();
    }

    /// A request could not be brought to it.
    fn lost(&self) {
        self.state().up = false;
        self.changed.send_replace(());
        self.look.notify_one();
    }

    fn answered(&self, base: &Url, answer: Result<Served, Problem>) {
        let mut state = self.state();
        if state.base.as_ref() != Some(base) {
            return;
        }
        match answer {
            Ok(served) => {
                if !state.up {
                    let models: Vec<&str> = served.models.iter().map(|model| &*model.id).collect();
                    tracing::info!(engine = self.name, %base, ?models, "an engine answers");
                }
                (state.served, state.up, state.missed) = (Some(served), true, 0);
                if let Some(process) = &mut state.process {
                    process.answered = true;
                }
            }
            Err(problem) => {
                // One that works may have no time for questions.
                if state.busy == 0 {
                    state.missed = state.missed.saturating_add(1);
                }
                let gone = problem.refused || state.missed >= MISSED_PROBES;
                if state.up && gone {
                    state.up = false;
                    tracing::warn!(engine = self.name, %base, problem = problem.text, "an engine does not answer");
                }
                if state.missed >= MISSED_PROBES_TO_RESTART
                    && let Some(process) = state.process.as_ref().filter(|process| process.answered)
                {
                    process.hangs.cancel();
                }
            }
        }
        drop(state);
        self.changed.send_replace(());
    }
}

/// Asks an engine that is idle or away how it is, until the node ends. One that was away is asked everything anew: it may be another.
async fn watch_engine(inner: Arc<Inner>, engine: Arc<Engine>) {
    let timing = inner.timing;
    let watching = async {
        loop {
            let (base, before) = {
                let state = engine.state();
                let base = state.base.clone().filter(|_| state.busy == 0 || !state.up);
                (base, state.served.clone().filter(|_| state.up))
            };
            if let Some(base) = base {
                let answer = probe(&inner.http.kept, &base, before.as_ref(), timing.probe_deadline).await;
                engine.answered(&base, answer);
            }
            let pause = if engine.state().up { timing.probe } else { timing.probe.min(ABSENT_PROBE) };
            tokio::select! {
                () = engine.look.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    };
    inner.ending.run_until_cancelled(watching).await.unwrap_or(())
}

/// Why a body could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    /// It is larger than so many bytes.
    #[error("an answer of more than {0} bytes")]
    TooLarge(usize),
    /// It did not come to its end.
    #[error("the answer ended early: {0}")]
    Cut(String),
}

/// Reads a body of at most `limit` bytes.
pub(crate) async fn read_body(mut response: reqwest::Response, limit: usize) -> Result<Vec<u8>, BodyError> {
    let mut bytes = Vec::new();
    while let Some(chunk) =
        response.chunk().await.map_err(|error| BodyError::Cut(chain(&error.without_url())))?
    {
        if bytes.len() + chunk.len() > limit {
            return Err(BodyError::TooLarge(limit));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine() -> Engine {
        Engine {
            name: "engine".to_owned(),
            expected: true,
            slots: None,
            state: Mutex::default(),
            look: Notify::new(),
            changed: Arc::new(watch::Sender::new(())),
        }
    }

    fn miss(engine: &Engine, base: &Url, probes: u32) {
        for _ in 0..probes {
            engine.answered(base, Err(Problem { refused: true, status: None, text: "refused".to_owned() }));
        }
    }

    #[test]
    fn an_engine_that_loads_does_not_hang() {
        let engine = engine();
        let base = Url::parse("http://127.0.0.1:1/").unwrap();
        let served =
            || Served { kind: probe::Kind::Other, models: Vec::new(), slots: 1, endpoints: Vec::new() };
        let first = engine.began(base.clone(), getpgid(None).unwrap());
        miss(&engine, &base, 1000);
        assert!(!first.is_cancelled(), "it loads its model");
        engine.answered(&base, Ok(served()));
        miss(&engine, &base, MISSED_PROBES_TO_RESTART - 1);
        assert!(!first.is_cancelled());
        miss(&engine, &base, 1);
        assert!(first.is_cancelled(), "it has answered, and answers no more");

        engine.ended();
        let second = engine.began(base.clone(), getpgid(None).unwrap());
        miss(&engine, &base, 1000);
        assert!(!second.is_cancelled(), "its former process answered, and this one loads its model");
    }
    #[test]
    fn an_engines_processes_are_its_group() {
        use std::os::unix::process::CommandExt as _;
        let engine = engine();
        let start = || std::process::Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let mut children = [start(), start()];
        let [own, other] = [0, 1].map(|index: usize| Pid::from_child(&children[index]));
        let seen = || [engine.has(own), engine.has(other)];
        let before = seen();
        engine.began(Url::parse("http://127.0.0.1:1/").unwrap(), own);
        let running = seen();
        engine.ended();
        let after = seen();
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!((before, running, after), ([false; 2], [true, false], [false; 2]));
    }
}
