//! Which host serves which model, by the hosts' heartbeats: memory only, filled anew by the sessions there are.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use link::Session;
use rpc::inference::{ModelOffer, ModelView};
use scheduler::NodeKey;
use taskmarket::{Address, Timestamp};
use tokio::sync::Notify;

use super::ask::is_plain_id;
use super::breaker::{Breaker, Failure};
use super::choose::{NoChoice, Want, pick};

/// Models that are known at once. One takes some 300 bytes.
const MAX_MODELS: usize = 65_536;
/// Models on a listing at most.
const MAX_LISTED: usize = 10_000;
/// How long a model that nobody serves any more is known still: until then, it has no provider just now, and is not unknown.
const KNOWN: Duration = Duration::from_secs(600);
/// The longest name of an engine or a quantisation, in bytes.
pub(super) const MAX_WORD_BYTES: usize = 64;
/// Names that are suggested for one that is not known.
const SUGGESTIONS: usize = 3;
/// Names that one that is not known is compared with.
const MAX_COMPARED: usize = 2000;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    hosts: HashMap<NodeKey, Host>,
    models: BTreeMap<Arc<str>, Model>,
    /// What is known of each provider and model, sessions outlasted.
    health: HashMap<(Address, Arc<str>), Arc<Health>>,
}

#[derive(Debug)]
struct Host {
    generation: u64,
    models: Vec<Arc<str>>,
}

#[derive(Debug)]
struct Model {
    since: Timestamp,
    hosts: Vec<Listing>,
    freed: Arc<Notify>,
    /// Since when nobody serves it.
    gone: Option<Instant>,
}

/// A model of a host.
#[derive(Debug, Clone)]
pub(super) struct Listing {
    pub(super) key: NodeKey,
    pub(super) link: Session,
    pub(super) offer: Arc<ModelOffer>,
    pub(super) load: Arc<Load>,
    pub(super) health: Arc<Health>,
    pub(super) is_open: bool,
}

impl Listing {
    /// Whether the host has the model in memory. Where its engine does not tell, it has.
    pub(super) fn is_warm(&self) -> bool {
        self.offer.warm != Some(false)
    }
}

/// What a model of a host has to do, and how fast it lately was.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Requests that this relay has there.
    pub(super) ours: AtomicU32,
    /// Others, when the host last said.
    pub(super) others: AtomicU32,
    pace: Mutex<Pace>,
}

/// Moving averages of the requests that were served.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Pace {
    /// Seconds until the first byte.
    pub(super) first_byte: Option<f64>,
    /// Seconds in all.
    pub(super) total: Option<f64>,
    /// Tokens out in a second.
    pub(super) tokens: Option<f64>,
}

impl Load {
    pub(super) fn pace(&self) -> Pace {
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in how long a request took that was served.
    pub(super) fn served(&self, first_byte: Duration, total: Duration, tokens: u64) {
        let average =
            |old: &mut Option<f64>, new: f64| *old = Some(old.map_or(new, |old| 0.8 * old + 0.2 * new));
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        average(&mut pace.first_byte, first_byte.as_secs_f64());
        average(&mut pace.total, total.as_secs_f64());
        let writing = total.saturating_sub(first_byte).as_secs_f64();
        if tokens > 1 && writing > 0.0 {
            average(&mut pace.tokens, tokens as f64 / writing);
        }
    }
}

/// The breaker of a provider and model.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Breaker>);

impl Health {
    pub(super) fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request that began then failed.
    fn failed(&self, failure: Failure, tries: bool, begun: Instant) {
        self.breaker().failed(failure, tries, begun, Instant::now(), rand::random());
    }
}

/// The directory in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Slots of all models of all hosts.
    pub(super) slots: u64,
    /// Requests that this relay has at hosts that are connected.
    pub(super) under_way: u64,
    /// Breakers that are open.
    pub(super) open: u64,
    /// Breakers that one request tries.
    pub(super) trying: u64,
}

/// A place at a host for one request. However the request ends, it is given up.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) listing: Listing,
    pub(super) begun: Instant,
    freed: Arc<Notify>,
    /// Whether it is the one request by which a breaker tries its host.
    tries: bool,
    is_judged: bool,
    /// Whether the host took the request: where it did not, no place becomes free with this.
    is_taken: bool,
}

impl Lease {
    /// The request's answer began.
    pub(super) fn answered(&self) {
        self.listing.health.breaker().answered(self.tries);
    }

    /// The request was served.
    pub(super) fn succeeded(&mut self) {
        self.is_judged = true;
        self.listing.health.breaker().succeeded(self.tries);
    }

    /// The host has no place for the request, whatever was thought.
    pub(super) fn refused(&mut self) {
        self.is_taken = false;
    }

    /// The host failed the request.
    pub(super) fn failed(&mut self, failure: Failure) {
        self.is_judged = true;
        self.listing.health.failed(failure, self.tries, self.begun);
    }

    /// The host failed the request, or the request the host: its judgement is put off.
    pub(super) fn suspected(&mut self) -> Suspicion {
        self.is_judged = true;
        let Self { listing, begun, tries, .. } = self;
        Suspicion { health: Arc::clone(&listing.health), begun: *begun, tries: *tries, is_judged: false }
    }
}

/// A failure that counts once it is known to be the host's; dropped, it counts for nothing.
#[derive(Debug)]
pub(super) struct Suspicion {
    health: Arc<Health>,
    begun: Instant,
    tries: bool,
    is_judged: bool,
}

impl Suspicion {
    /// Another host served the request.
    pub(super) fn confirmed(mut self) {
        self.is_judged = true;
        self.health.failed(Failure::Plain, self.tries, self.begun);
    }
}

impl Drop for Suspicion {
    fn drop(&mut self) {
        if !self.is_judged {
            self.health.breaker().abandoned(self.tries, Instant::now());
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.listing.load.ours.fetch_sub(1, Ordering::Relaxed);
        if !self.is_judged {
            self.listing.health.breaker().abandoned(self.tries, Instant::now());
        }
        // Those that wait for this host would only be refused as this one was, and wake each other for nothing.
        if self.is_taken {
            self.freed.notify_one();
        }
    }
}

impl Directory {
    /// A host says what it serves. `is_open` is whether it takes work.
    pub(crate) fn hear(
        &self,
        key: NodeKey,
        generation: u64,
        link: &Session,
        offers: &[ModelOffer],
        is_open: bool,
        now: Timestamp,
    ) {
        let mut state = self.lock();
        let before = match state.hosts.get(&key) {
            Some(host) if host.generation > generation => return,
            Some(host) if host.generation < generation => {
                state.remove(key);
                Vec::new()
            }
            Some(host) => host.models.clone(),
            None if offers.is_empty() => return,
            None => Vec::new(),
        };
        let mut models: Vec<Arc<str>> = Vec::with_capacity(offers.len());
        for offer in offers.iter().filter(|offer| is_fit(offer)) {
            if models.iter().any(|model| **model == *offer.id) {
                continue;
            }
            if let Some(name) = state.list(key, link, offer, is_open, now) {
                models.push(name);
            }
        }
        for gone in before.iter().filter(|model| !models.contains(model)) {
            state.strike(key, gone);
        }
        state.hosts.insert(key, Host { generation, models });
    }

    /// A host takes work from now on, or takes none.
    pub(crate) fn set_open(&self, key: NodeKey, is_open: bool) {
        let mut state = self.lock();
        let models = state.hosts.get(&key).map(|host| host.models.clone()).unwrap_or_default();
        for model in models {
            if let Some(model) = state.models.get_mut(&model) {
                model.hosts.iter_mut().filter(|host| host.key == key).for_each(|host| host.is_open = is_open);
                model.freed.notify_waiters();
            }
        }
    }

    /// A session ended.
    pub(crate) fn leave(&self, key: NodeKey, generation: u64) {
        let mut state = self.lock();
        if state.hosts.get(&key).is_some_and(|host| host.generation == generation) {
            state.remove(key);
        }
    }

    /// Takes a place at the host that suits best.
    pub(super) fn choose(&self, model: &str, want: &Want<'_>) -> Result<Lease, NoChoice> {
        let now = Instant::now();
        let state = self.lock();
        let found = state.models.get(model).ok_or(NoChoice::Unknown)?;
        let listing = pick(&found.hosts, want, now)?.clone();
        listing.load.ours.fetch_add(1, Ordering::Relaxed);
        let tries = listing.health.breaker().begin(now);
        let freed = Arc::clone(&found.freed);
        Ok(Lease { listing, begun: now, freed, tries, is_judged: false, is_taken: true })
    }

    /// Told whenever a place of a model may be free.
    pub(super) fn freed(&self, model: &str) -> Option<Arc<Notify>> {
        self.lock().models.get(model).map(|model| Arc::clone(&model.freed))
    }

    /// All of it in numbers.
    pub(super) fn totals(&self) -> Totals {
        let state = self.lock();
        let mut totals = Totals::default();
        for listing in state.models.values().flat_map(|model| &model.hosts) {
            totals.slots += u64::from(listing.offer.slots);
            totals.under_way += u64::from(listing.load.ours.load(Ordering::Relaxed));
        }
        for health in state.health.values() {
            let breaker = health.breaker();
            totals.open += u64::from(breaker.is_open() && !breaker.is_trying());
            totals.trying += u64::from(breaker.is_trying());
        }
        totals
    }

    /// The names that are nearest to one that is not known.
    pub(super) fn nearest(&self, asked: &str) -> Vec<String> {
        let reach = asked.len() / 2 + 2;
        let names: Vec<Arc<str>> = {
            let state = self.lock();
            let served = state.models.iter().filter(|(_, model)| !model.hosts.is_empty());
            let near = served.filter(|(name, _)| name.len().abs_diff(asked.len()) <= reach.max(8));
            near.take(MAX_COMPARED).map(|(name, _)| Arc::clone(name)).collect()
        };
        let asked = asked.to_lowercase();
        let distance = |name: &str| {
            let name = name.to_lowercase();
            let is_part = !asked.is_empty() && (name.contains(&asked) || asked.contains(&name));
            if is_part { 0 } else { strsim::levenshtein(&name, &asked) }
        };
        let mut ranked: Vec<_> = names.iter().map(|name| (distance(name), name.to_string())).collect();
        ranked.retain(|(distance, _)| *distance <= reach);
        ranked.sort();
        ranked.into_iter().take(SUGGESTIONS).map(|(_, name)| name).collect()
    }

    /// The models that hosts serve, by name.
    pub(crate) fn models(&self) -> Vec<ModelView> {
        let state = self.lock();
        state.models.iter().filter_map(|(name, model)| view(name, model)).take(MAX_LISTED).collect()
    }

    /// A model that hosts serve.
    pub(crate) fn model(&self, name: &str) -> Option<ModelView> {
        self.lock().models.get(name).and_then(|model| view(name, model))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Lists a model of a host, or what is new of it. `None` where there is no room for another model.
    fn list(
        &mut self,
        key: NodeKey,
        link: &Session,
        offer: &ModelOffer,
        is_open: bool,
        now: Timestamp,
    ) -> Option<Arc<str>> {
        let name = match self.models.get_key_value(offer.id.as_str()) {
            Some((name, _)) => Arc::clone(name),
            None => {
                if self.models.len() >= MAX_MODELS {
                    self.models.retain(|_, model| !model.hosts.is_empty());
                }
                (self.models.len() < MAX_MODELS).then(|| Arc::from(offer.id.as_str()))?
            }
        };
        let health = self.health(key.provider, &name);
        let fresh = || Model { since: now, hosts: Vec::new(), freed: Arc::default(), gone: None };
        let model = self.models.entry(Arc::clone(&name)).or_insert_with(fresh);
        model.gone = None;
        let place = model.hosts.iter().position(|listing| listing.key == key);
        let place = place.unwrap_or_else(|| {
            let (link, offer) = (link.clone(), Arc::new(offer.clone()));
            model.hosts.push(Listing { key, link, offer, load: Arc::default(), health, is_open });
            model.hosts.len() - 1
        });
        let listing = &mut model.hosts[place];
        listing.is_open = is_open;
        if *listing.offer != *offer {
            listing.offer = Arc::new(offer.clone());
        }
        let ours = listing.load.ours.load(Ordering::Relaxed);
        listing.load.others.store(offer.busy.saturating_sub(ours), Ordering::Relaxed);
        model.freed.notify_one();
        Some(name)
    }

    fn health(&mut self, provider: Address, model: &Arc<str>) -> Arc<Health> {
        if self.health.len() >= MAX_MODELS {
            self.health.retain(|_, health| Arc::strong_count(health) > 1 || !health.breaker().is_clean());
            if self.health.len() >= 2 * MAX_MODELS {
                self.health.retain(|_, health| Arc::strong_count(health) > 1);
            }
        }
        Arc::clone(self.health.entry((provider, Arc::clone(model))).or_default())
    }

    fn strike(&mut self, key: NodeKey, name: &str) {
        if let Some(model) = self.models.get_mut(name) {
            model.hosts.retain(|listing| listing.key != key);
            if model.hosts.is_empty() {
                model.gone = Some(Instant::now());
            }
        }
    }

    fn remove(&mut self, key: NodeKey) {
        for name in self.hosts.remove(&key).map(|host| host.models).unwrap_or_default() {
            self.strike(key, &name);
        }
        let is_known = |model: &Model| model.gone.is_none_or(|since| since.elapsed() < KNOWN);
        if self.models.len() > MAX_MODELS / 2 {
            self.models.retain(|_, model| is_known(model));
        }
    }
}

fn is_fit(offer: &ModelOffer) -> bool {
    let is_word = |word: &str| word.len() <= MAX_WORD_BYTES && !word.chars().any(char::is_control);
    is_plain_id(&offer.id) && is_word(&offer.engine) && is_word(&offer.quantization)
}

fn view(name: &str, model: &Model) -> Option<ModelView> {
    let offers = || model.hosts.iter().map(|listing| &listing.offer);
    let mut kinds: Vec<_> = offers().flat_map(|offer| offer.kinds.iter().copied()).collect();
    kinds.sort();
    kinds.dedup();
    let mut quantizations: Vec<_> = offers().map(|offer| offer.quantization.clone()).collect();
    quantizations.retain(|word| !word.is_empty());
    quantizations.sort();
    quantizations.dedup();
    Some(ModelView {
        id: name.to_owned(),
        object: "model".to_owned(),
        created: model.since.unix(),
        owned_by: "zorai".to_owned(),
        hosts: u32::try_from(model.hosts.len()).unwrap_or(u32::MAX),
        context_tokens: offers().filter_map(|offer| offer.context_tokens).max(),
        kinds,
        quantizations,
        prompt_price: offers().map(|offer| offer.prompt_price).min()?,
        completion_price: offers().map(|offer| offer.completion_price).min()?,
    })
}
