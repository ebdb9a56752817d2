//! Which relays of the store live: each says so now and then, and what a silent one left open is ended by the others.

use std::sync::atomic::Ordering;
use std::time::Duration;

use link::close_code;
use taskmarket::Timestamp;
use tokio::time::sleep;

use super::Hub;

/// How often the store is told that this relay lives: so much of a session's time may be lost when the relay is killed.
pub(super) const EVERY: Duration = Duration::from_secs(10);
/// For how long a relay may say nothing before the others take it for dead, and end its sessions. Its machine's clock may be behind theirs
/// by no more than what this leaves.
const SILENT: Duration = Duration::from_secs(60);
/// How long to wait after the store failed.
const RETRY: Duration = Duration::from_secs(1);

/// Ends what a relay that was killed left open in the store, as of when it was last alive: this one's last run, and others that are
/// silent. From here this one lives.
pub(super) async fn start(hub: &Hub) {
    let store = hub.market.store();
    let reason = "the relay stopped without closing it";
    while let Err(error) = store.close_sessions_of(&hub.config.relay_id, hub.market.now(), reason).await {
        tracing::error!(%error, "cannot close the sessions of the last run");
        sleep(RETRY).await;
    }
    say(hub).await;
}

/// Notes that this relay lives, ends the sessions of those that do not, and heeds which others do.
pub(super) async fn say(hub: &Hub) {
    let (store, own, now) = (hub.market.store(), &hub.config.relay_id, hub.market.now());
    if let Err(error) = store.relay_lives(own, now).await {
        return tracing::warn!(%error, "the store cannot be told that this relay lives");
    }
    let before = hub.lived_at.swap(now.unix(), Ordering::Relaxed);
    if before != 0 && now.unix().saturating_sub(before) >= SILENT.as_secs() {
        begin_anew(hub);
    }
    let silent_since = Timestamp::from_unix(now.unix().saturating_sub(SILENT.as_secs()));
    match store.close_sessions_of_silent(silent_since, "the relay fell silent without closing it").await {
        Ok(0) => {}
        Ok(sessions) => tracing::warn!(sessions, "ended sessions of relays that are silent"),
        Err(error) => tracing::warn!(%error, "sessions of silent relays cannot be ended"),
    }
    match store.living_relays(silent_since).await {
        Ok(living) => {
            let are_others = living.iter().any(|relay| relay != own);
            hub.market.set_others(are_others);
            hub.floor().patience.others_live = are_others;
        }
        Err(error) => tracing::warn!(%error, "whether other relays live cannot be read"),
    }
}

/// Has all hosts connect again: this relay could not say that it lives for so long that others have ended its sessions.
fn begin_anew(hub: &Hub) {
    tracing::warn!(
        "this relay was silent for so long that others took it for dead; its hosts are to connect again"
    );
    let mut floor = hub.floor();
    floor.be_patient();
    for node in floor.nodes(..) {
        node.live.link.close(close_code::GOING_AWAY, "the relay was out of reach of its store");
    }
}
