//! Choosing a host for a request: of those that fit and may be asked, the one that served the conversation before, unless it is busy;
//! else the better of two picked at random, so that not all requests run to the one that looked best a moment ago.

use std::sync::atomic::Ordering;
use std::time::Instant;

use rand::seq::IndexedRandom as _;
use rpc::inference::{InferenceKind, Preferences, Sort};
use scheduler::NodeKey;
use taskmarket::{Amount, Provider};

use super::directory::Listing;

/// How long a request is taken to last while nobody knows, in seconds.
const GUESS: f64 = 1.0;
/// What a recent failure weighs, as a wait in seconds: whoever fails the next request too, costs it some time.
const FAILURE_SECS: f64 = 1.0;
/// What an engine is taken to need to load a model into memory, in seconds.
const LOADING_SECS: f64 = 10.0;

/// What a request wants.
#[derive(Debug)]
pub(super) struct Want<'a> {
    pub(super) kind: InferenceKind,
    pub(super) preferences: &'a Preferences,
    /// Hosts that failed it.
    pub(super) tried: &'a [NodeKey],
    /// Hosts that said a moment ago that they are busy.
    pub(super) full: &'a [NodeKey],
    /// The host that served the conversation before.
    pub(super) favourite: Option<NodeKey>,
}

/// Why there is no host for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoChoice {
    #[error("nobody serves it")]
    Unknown,
    #[error("no host of it is connected just now")]
    Gone,
    #[error("it does not serve this endpoint")]
    WrongKind,
    #[error("the request's preferences exclude every host of it")]
    Excluded,
    #[error("its hosts failed this request, or lately too many others")]
    Failing,
    #[error("its hosts take no work just now")]
    Closed,
    #[error("all its hosts are busy")]
    Busy,
}

impl NoChoice {
    /// How near to being served a request is that is told so.
    pub(super) fn rank(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Gone => 1,
            Self::WrongKind => 2,
            Self::Excluded => 3,
            Self::Failing => 4,
            Self::Closed => 5,
            Self::Busy => 6,
        }
    }
}

/// The host to ask.
pub(super) fn pick<'a>(hosts: &'a [Listing], want: &Want<'_>, now: Instant) -> Result<&'a Listing, NoChoice> {
    let mut nearest = NoChoice::Gone;
    let mut fit: Vec<&Listing> = Vec::with_capacity(hosts.len());
    for listing in hosts {
        match obstacle(listing, want, now) {
            None => fit.push(listing),
            // Of all that is in the way, what is nearest to being served is told.
            Some(obstacle) if obstacle.rank() > nearest.rank() => nearest = obstacle,
            Some(_) => {}
        }
    }
    let Preferences { order, sort, preferred_max_latency, .. } = want.preferences;
    let favourite = |of: &[&'a Listing]| of.iter().copied().find(|one| Some(one.key) == want.favourite);
    // What the request says itself comes before where its conversation was.
    for provider in order {
        let theirs: Vec<_> = fit.iter().filter(|one| one.key.provider == provider.0).copied().collect();
        if let Some(first) = favourite(&theirs).or_else(|| best(theirs.into_iter(), now)) {
            return Ok(first);
        }
    }
    // What a conversation left there is gone where its model is not in memory any more.
    let is_kept = |one: &&Listing| one.is_warm() || !fit.iter().any(is_ready);
    if let Some(favourite) = favourite(&fit).filter(|one| sort.is_none() && is_kept(one)) {
        return Ok(favourite);
    }
    if let Some(most) = preferred_max_latency {
        let is_slow = |one: &&Listing| one.load.pace().first_byte.is_some_and(|secs| secs > *most);
        if fit.iter().any(|one| !is_slow(one)) {
            fit.retain(|one| !is_slow(one));
        }
    }
    if sort.is_none() && fit.iter().any(is_ready) {
        fit.retain(is_ready);
    }
    let chosen = match sort {
        None => best(two(&fit), now),
        Some(Sort::Price) => {
            fit.iter().copied().min_by(|a, b| price(a).cmp(&price(b)).then_with(|| by_wait(a, b, now)))
        }
        Some(Sort::Latency) => fit.iter().copied().min_by(|a, b| {
            let secs = |one: &Listing| one.load.pace().first_byte.unwrap_or_default() + loading(one);
            secs(a).total_cmp(&secs(b))
        }),
        Some(Sort::Throughput) => fit.iter().copied().max_by(|a, b| {
            let tokens = |one: &Listing| one.load.pace().tokens.unwrap_or_default();
            tokens(a).total_cmp(&tokens(b))
        }),
    };
    chosen.ok_or(nearest)
}

/// Two of a list at random.
fn two<'a>(hosts: &[&'a Listing]) -> impl Iterator<Item = &'a Listing> {
    hosts.sample(&mut rand::rng(), 2).copied()
}

fn best<'a>(hosts: impl Iterator<Item = &'a Listing>, now: Instant) -> Option<&'a Listing> {
    hosts.min_by(|a, b| by_wait(a, b, now).then_with(|| price(a).cmp(&price(b))))
}

fn by_wait(a: &Listing, b: &Listing, now: Instant) -> std::cmp::Ordering {
    // A host of which nothing is known yet is as fast as the other, or it would never show what it is.
    let (of_a, of_b) = (a.load.pace().total, b.load.pace().total);
    let guess = of_a.or(of_b).unwrap_or(GUESS);
    wait(a, of_a.unwrap_or(guess), now).total_cmp(&wait(b, of_b.unwrap_or(guess), now))
}

/// How long a request would last there if one takes so many seconds, in tenths of a second: what differs by less, price decides.
fn wait(listing: &Listing, secs: f64, now: Instant) -> f64 {
    let turns = 1.0 + f64::from(before(listing)) / f64::from(listing.offer.slots.max(1));
    let failures = f64::from(listing.health.breaker().recent_failures(now));
    ((turns * secs + failures * FAILURE_SECS + loading(listing)) * 10.0).round()
}

/// The requests that a host has already.
fn before(listing: &Listing) -> u32 {
    let load = &listing.load;
    load.ours.load(Ordering::Relaxed).saturating_add(load.others.load(Ordering::Relaxed))
}

/// Whether a request begins there at once: the model is in memory, and a slot is free.
fn is_ready(listing: &&Listing) -> bool {
    listing.is_warm() && before(listing) < listing.offer.slots
}

/// How long a host is taken to need before it can begin, in seconds.
fn loading(listing: &Listing) -> f64 {
    if listing.is_warm() { 0.0 } else { LOADING_SECS }
}

fn price(listing: &Listing) -> Amount {
    let (prompt, completion) = (listing.offer.prompt_price, listing.offer.completion_price);
    prompt.checked_add(completion).unwrap_or(prompt.max(completion))
}

/// What keeps a request from a host.
fn obstacle(listing: &Listing, want: &Want<'_>, now: Instant) -> Option<NoChoice> {
    let offer = &listing.offer;
    if !offer.kinds.contains(&want.kind) {
        return Some(NoChoice::WrongKind);
    }
    if !suits(listing, want.preferences) {
        return Some(NoChoice::Excluded);
    }
    if want.tried.contains(&listing.key) {
        return Some(NoChoice::Failing);
    }
    if !listing.is_open || offer.slots == 0 || listing.link.is_closed() {
        return Some(NoChoice::Closed);
    }
    if !listing.health.breaker().admits(now) {
        return Some(NoChoice::Failing);
    }
    let is_busy =
        listing.load.ours.load(Ordering::Relaxed) >= offer.slots || want.full.contains(&listing.key);
    is_busy.then_some(NoChoice::Busy)
}

fn suits(listing: &Listing, preferences: &Preferences) -> bool {
    let Preferences { order, only, ignore, allow_fallbacks, max_price, quantizations, .. } = preferences;
    let provider = Provider(listing.key.provider);
    let offer = &listing.offer;
    let is_bound = *allow_fallbacks == Some(false) && !order.is_empty();
    let within = |most: Option<Amount>, asked: Amount| most.is_none_or(|most| asked <= most);
    let quantization = &offer.quantization;
    (only.is_empty() || only.contains(&provider))
        && !ignore.contains(&provider)
        && (!is_bound || order.contains(&provider))
        && (quantizations.is_empty()
            || quantizations.iter().any(|one| one.eq_ignore_ascii_case(quantization)))
        && max_price.as_ref().is_none_or(|most| {
            within(most.prompt, offer.prompt_price) && within(most.completion, offer.completion_price)
        })
}
