//! Which relays of the store live: each says so now and then, and what a silent one left open is ended by the others.

use std::collections::HashSet;
use std::time::Duration;

use link::close_code;
use store::StoreError;
use taskmarket::Timestamp;
use tokio::time::sleep;

use super::Hub;

/// How often the store is told that this relay lives: so much of a session's time may be lost when the relay is killed.
pub(super) const EVERY: Duration = Duration::from_secs(10);
/// For how long a relay may say nothing before the others take it for dead, and end its sessions.
const SILENT: Duration = Duration::from_secs(60);
/// Why they ended.
const FELL_SILENT: &str = "the relay fell silent without closing it";
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
///
/// Who lives is judged by the store's clock. What others ended is the store's to say: a relay takes itself for dead by no clock.
pub(super) async fn say(hub: &Hub) {
    let (store, own) = (hub.market.store(), &hub.config.relay_id);
    let now = match store.relays_clock(hub.market.now()).await {
        Ok(now) => now,
        Err(error) => return tracing::warn!(%error, "the store's clock cannot be read"),
    };
    if let Err(error) = store.relay_lives(own, now).await {
        return tracing::warn!(%error, "the store cannot be told that this relay lives");
    }
    match ended_by_others(hub).await {
        Ok(ended) if ended.is_empty() => {}
        Ok(ended) => begin_anew(hub, &ended),
        Err(error) => tracing::warn!(%error, "whether others ended this relay's sessions cannot be read"),
    }
    // Whoever lives now said so before it committed anything.
    let told = hub.market.last_told();
    let silent_since = Timestamp::from_unix(now.unix().saturating_sub(SILENT.as_secs()));
    match store.close_sessions_of_silent(silent_since, FELL_SILENT).await {
        Ok(0) => {}
        Ok(sessions) => tracing::warn!(sessions, "ended sessions of relays that are silent"),
        Err(error) => tracing::warn!(%error, "sessions of silent relays cannot be ended"),
    }
    match store.living_relays(silent_since).await {
        Ok(living) => {
            let are_others = living.iter().any(|relay| relay != own);
            hub.market.heed_others(are_others, told);
            hub.floor().patience.others_live = are_others;
        }
        Err(error) => tracing::warn!(%error, "whether other relays live cannot be read"),
    }
}

/// The sessions of hosts here that others ended in the store, since they took this relay for dead.
async fn ended_by_others(hub: &Hub) -> Result<HashSet<String>, StoreError> {
    let here: Vec<String> = hub.floor().nodes(..).map(|node| node.live.session_id.clone()).collect();
    if here.is_empty() {
        return Ok(HashSet::new());
    }
    let ended = hub.market.store().sessions_ended_for(here, FELL_SILENT).await?;
    Ok(ended.into_iter().collect())
}

/// Has the hosts of these sessions connect again.
fn begin_anew(hub: &Hub, ended: &HashSet<String>) {
    tracing::warn!(
        sessions = ended.len(),
        "this relay was silent for so long that others took it for dead; its hosts are to connect again"
    );
    let mut floor = hub.floor();
    floor.be_patient();
    for node in floor.nodes(..).filter(|node| ended.contains(&node.live.session_id)) {
        node.live.link.close(close_code::GOING_AWAY, "the relay was out of reach of its store");
    }
}
