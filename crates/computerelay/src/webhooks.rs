//! Webhooks: each event of a task is sent, in order, to where its publisher asked for it.
//!
//! How far each webhook has come is the store's to keep; this takes what is due from it and sends it. What a crash interrupts is due
//! again once its lease is over, so that an event may come twice, always with the same id, but is never left out. A delivery that fails
//! is tried again with growing pauses for an hour; then the webhook is dead until its owner replays it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use artifact::GuardedClient;
use hmac::{Hmac, KeyInit, Mac};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use sha2::Sha256;
use store::{Delivery, DeliveryRetry, NewWebhook, StoreError};
use taskmarket::{TaskId, Timestamp};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::error::ApiError;
use crate::market::{Market, event_view};

/// The signature of a delivery: `t=<unix seconds>,v1=<hex HMAC-SHA256 of "t.body">`.
pub(crate) const SIGNATURE_HEADER: &str = "x-zorai-signature";
/// The id of a delivery: the same each time that the same event is sent to the same webhook.
pub(crate) const DELIVERY_HEADER: &str = "x-zorai-delivery";
/// What every webhook secret begins with: it tells people and secret scanners what they look at.
const SECRET_PREFIX: &str = "whsec_";
/// The most webhooks of one task.
pub(crate) const MAX_PER_TASK: usize = 8;
/// The longest callback URL, in bytes.
const MAX_URL_BYTES: usize = 2048;

/// How long one delivery may take, from the connection to the answer's head.
const SEND_DEADLINE: Duration = Duration::from_secs(10);
/// How long a delivery is this relay's, in seconds: the longest wait for a place and one sending fit in it.
const LEASE_SECS: u64 = 60;
/// How long a delivery waits for a place at its host, before it is left for later.
const PLACE_DEADLINE: Duration = Duration::from_secs(40);
/// Deliveries at once to one host.
const PER_HOST: usize = 8;
/// Deliveries that are sent or wait for a place at their host, in all; what is due beyond them waits in the store.
const MAX_UNDER_WAY: usize = 1024;
/// Of those, at most so many for one host; further ones are left for later.
const MAX_WAITING_PER_HOST: usize = 256;
/// Deliveries taken from the store at a time.
const TAKEN_AT_ONCE: usize = 64;
/// The pause after the first failure, in seconds; it doubles with each further one.
const FIRST_PAUSE_SECS: u64 = 2;
/// The longest pause, in seconds.
const MAX_PAUSE_SECS: u64 = 300;
/// How long deliveries of one event may fail before the webhook is dead, in seconds.
const GIVE_UP_SECS: u64 = 3600;
/// The store is asked no more often than this while much happens.
const GAP: Duration = Duration::from_millis(20);
/// How often the store is asked when nothing happens here: another relay may have made something due.
const TICK: Duration = Duration::from_secs(5);

/// Sends what is due to webhooks.
pub(crate) struct Webhooks {
    market: Arc<Market>,
    client: GuardedClient,
    hosts: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Set off when something became due by other ways than a change of a task.
    due: Notify,
}

/// Why a delivery failed, in words that tell its owner no more of the relay's network than it knows.
#[derive(Debug, PartialEq, Eq)]
enum Failed {
    /// Another try may go well.
    Passing(String),
    /// The receiver wants no more.
    Gone,
}

impl Webhooks {
    /// Webhooks of a market. Private addresses are called only where that is allowed.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub(crate) fn new(market: Arc<Market>, allow_private: bool) -> std::io::Result<Arc<Self>> {
        let client = GuardedClient::new(allow_private)?;
        Ok(Arc::new(Self { market, client, hosts: Mutex::default(), due: Notify::new() }))
    }

    /// Checks a callback URL as far as that can be done without calling it.
    ///
    /// # Errors
    /// `invalid_field`, with what is wrong.
    pub(crate) fn check_url(&self, text: &str) -> Result<(), ApiError> {
        let wrong = |why: &dyn std::fmt::Display| {
            ApiError::new(rpc::error::ErrorCode::InvalidField, format!("callback_url: {why}"))
                .with_param("callback_url")
        };
        if text.len() > MAX_URL_BYTES {
            return Err(wrong(&format_args!("at most {MAX_URL_BYTES} bytes")));
        }
        let url = Url::parse(text).map_err(|error| wrong(&error))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong(&"a URL with a user name or a password is not taken"));
        }
        self.client.check(&url).map_err(|refused| wrong(&refused))
    }

    /// Has a task's events sent to a URL, from the first one on, and answers the secret that deliveries are signed with.
    ///
    /// # Errors
    /// The task has too many webhooks, or the store fails.
    pub(crate) async fn add(&self, task_id: TaskId, url: String) -> Result<String, ApiError> {
        let store = self.market.store();
        let known = store.deliveries(task_id).await?;
        let secret_name = secret_name(task_id);
        if !known.iter().any(|known| known.webhook.url == url) {
            if known.len() >= MAX_PER_TASK {
                let why = format!("a task has at most {MAX_PER_TASK} webhooks");
                return Err(ApiError::new(rpc::error::ErrorCode::Conflict, why).with_param("callback_url"));
            }
            let created_at = self.market.now();
            store
                .add_webhook(NewWebhook { task_id, url, secret_name: secret_name.clone(), created_at })
                .await?;
        }
        let secret = store.secret(&secret_name).await?;
        self.wake();
        Ok(secret_text(secret))
    }

    /// Has the store asked for what is due.
    pub(crate) fn wake(&self) {
        self.due.notify_one();
    }

    /// Sends until `stop` is cancelled. What is under way then is broken off, and due again.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.market.subscribe();
        let mut under_way = JoinSet::new();
        loop {
            let pause = self.clone().take(&mut under_way).await;
            let is_full = under_way.len() >= MAX_UNDER_WAY;
            let wait = async {
                tokio::time::sleep(GAP).await;
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    Some(_) = under_way.join_next() => {}
                    () = self.due.notified() => {}
                    change = changes.recv(), if !is_full => {
                        // What was missed is in the store as well.
                        if let Err(RecvError::Closed) = change {
                            tokio::time::sleep(TICK).await;
                        }
                        changes = changes.resubscribe();
                    }
                }
            };
            if stop.run_until_cancelled(wait).await.is_none() {
                break;
            }
            while under_way.try_join_next().is_some() {}
        }
        under_way.shutdown().await;
        drop(changes);
    }

    /// Begins the deliveries that are due, and says how long there is nothing more to do.
    async fn take(self: Arc<Self>, under_way: &mut JoinSet<()>) -> Duration {
        let now = self.market.now();
        match self.market.store().next_delivery().await {
            Ok(Some(due)) if due <= now => {}
            Ok(Some(due)) => return Duration::from_secs(due.since(now)).min(TICK),
            Ok(None) => return TICK,
            Err(error) => {
                tracing::warn!(%error, "due deliveries not read");
                return TICK;
            }
        }
        let room = MAX_UNDER_WAY.saturating_sub(under_way.len()).min(TAKEN_AT_ONCE);
        if room == 0 {
            return TICK;
        }
        match self.market.store().take_deliveries(now, now.plus(LEASE_SECS), room).await {
            Ok(deliveries) => {
                for delivery in deliveries {
                    under_way.spawn(Arc::clone(&self).deliver(delivery));
                }
                Duration::ZERO
            }
            Err(error) => {
                tracing::warn!(%error, "due deliveries not taken");
                TICK
            }
        }
    }

    /// Sends one event, and notes how that went.
    async fn deliver(self: Arc<Self>, delivery: Delivery) {
        let (webhook, seq) = (delivery.webhook.id, delivery.event.seq);
        let task_id = delivery.event.task_id;
        let Some(place) = self.place(&delivery.webhook.webhook.url).await else {
            tracing::debug!(webhook, seq, "left for later: too much is under way to this host");
            return;
        };
        let sent = self.send(&delivery).await;
        drop(place);
        let now = self.market.now();
        let noted = match sent {
            Ok(()) => self.market.store().delivery_done(webhook, seq, now).await,
            Err(failed) => self.note_failure(&delivery, now, failed).await,
        };
        if let Err(error) = noted {
            // Its lease ends, and it is sent again.
            tracing::warn!(%task_id, webhook, seq, %error, "the outcome of a delivery was not stored");
        }
    }

    async fn note_failure(
        &self,
        delivery: &Delivery,
        now: Timestamp,
        failed: Failed,
    ) -> Result<bool, StoreError> {
        let (webhook, seq) = (delivery.webhook.id, delivery.event.seq);
        let since = delivery.webhook.failing_since.unwrap_or(now);
        let (error, is_over) = match failed {
            Failed::Passing(error) => (error, now.since(since) >= GIVE_UP_SECS),
            Failed::Gone => ("answered 410: it wants no more".to_owned(), true),
        };
        tracing::debug!(webhook, seq, tries = delivery.webhook.tries, %error, is_over, "a delivery failed");
        if is_over {
            return self.market.store().delivery_dead(webhook, seq, now, &error).await;
        }
        let next_try = now.plus(pause_secs(delivery.webhook.tries, rand::random()));
        self.market.store().delivery_retry(webhook, seq, DeliveryRetry { at: now, next_try, error }).await
    }

    /// A place among the deliveries to a host, or `None` if there is none for too long.
    async fn place(&self, url: &str) -> Option<OwnedSemaphorePermit> {
        let host = Url::parse(url).ok()?;
        let host = format!("{}:{}", host.host_str()?, host.port_or_known_default()?);
        let places = {
            // Nothing can panic while it is held; if something did, the map is still whole.
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            if hosts.len() >= MAX_UNDER_WAY {
                hosts.retain(|_, places| Arc::strong_count(places) > 1);
            }
            Arc::clone(hosts.entry(host).or_insert_with(|| Arc::new(Semaphore::new(PER_HOST))))
        };
        // One count is the map's, the others are of those who are sending or wait.
        if Arc::strong_count(&places) > MAX_WAITING_PER_HOST {
            return None;
        }
        timeout(PLACE_DEADLINE, places.acquire_owned()).await.ok()?.ok()
    }

    async fn send(&self, delivery: &Delivery) -> Result<(), Failed> {
        let passing = |what: &str| Failed::Passing(what.to_owned());
        let webhook = &delivery.webhook;
        let secret = self.market.store().secret(&webhook.webhook.secret_name).await;
        let secret = secret.map_err(|_| passing("the relay's store did not answer"))?;
        let body = serde_json::to_vec(&event_view(delivery.event.clone()))
            .map_err(|_| passing("the relay could not write the event"))?;
        let signature = sign(&secret_text(secret), self.market.now(), &body);
        let url = Url::parse(&webhook.webhook.url).map_err(|_| passing("its URL cannot be read"))?;
        let request = self
            .client
            .request(Method::POST, &url)
            .map_err(|refused| Failed::Passing(refused.to_string()))?
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(SIGNATURE_HEADER, signature)
            .header(DELIVERY_HEADER, format!("{}-{}", webhook.id, delivery.event.seq))
            .body(body);
        match timeout(SEND_DEADLINE, request.send()).await {
            Ok(Ok(response)) if response.status().is_success() => Ok(()),
            Ok(Ok(response)) if response.status() == StatusCode::GONE => Err(Failed::Gone),
            Ok(Ok(response)) => Err(Failed::Passing(format!("answered {}", response.status().as_u16()))),
            Ok(Err(error)) if GuardedClient::is_refusal(&error) => {
                Err(passing("its host has no public address"))
            }
            Ok(Err(_)) => Err(passing("it could not be reached")),
            Err(_) => Err(Failed::Passing(format!("no answer in {} s", SEND_DEADLINE.as_secs()))),
        }
    }
}

/// The name of the secret that the deliveries of a task are signed with.
fn secret_name(task_id: TaskId) -> String {
    format!("webhook-{task_id}")
}

/// A secret as its owner is told: the text is the HMAC's key.
fn secret_text(secret: [u8; 32]) -> String {
    format!("{SECRET_PREFIX}{}", hex::encode(secret))
}

fn sign(secret: &str, at: Timestamp, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(format!("{}.", at.unix()).as_bytes());
    mac.update(body);
    format!("t={},v1={}", at.unix(), hex::encode(mac.finalize().into_bytes()))
}

/// How long to wait after so many failures before this one: it doubles each time, and is shortened by up to half by chance, so that many
/// webhooks of one host do not return in step.
fn pause_secs(failures_before: u32, chance: u32) -> u64 {
    let longest = FIRST_PAUSE_SECS.saturating_mul(1 << failures_before.min(20)).min(MAX_PAUSE_SECS);
    longest - longest * u64::from(chance) / (2 * u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_differ() {
        for (failures, longest) in [(0, 2), (1, 4), (2, 8), (7, 256), (8, 300), (40, 300), (u32::MAX, 300)] {
            assert_eq!(pause_secs(failures, 0), longest);
            assert_eq!(pause_secs(failures, u32::MAX), longest - longest / 2);
        }
    }

    #[test]
    fn signatures_are_hmac_sha256_over_time_and_body() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac whsec_00
        let signature = sign("whsec_00", Timestamp::from_unix(1_700_000_000), br#"{"a":1}"#);
        let expected = "45cffce3b675935877c716288bfe48276b43036345fecebf62b30649bd0946a7";
        assert_eq!(signature, format!("t=1700000000,v1={expected}"));
    }
}
