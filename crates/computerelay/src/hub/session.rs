//! One connection of a host, from its handshake to its end.

use std::sync::Arc;

use link::{Closed, Handshake, Upgrade, close_code};
use rpc::link::{Hello, Welcome};
use scheduler::NodeKey;
use store::{NewSession, SUPERSEDED};
use taskmarket::{Bytes32, NodeStatus, Signed, Timestamp};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use tracing::{Instrument as _, Span, field};

use super::node::{Live, Node};
use super::registration::{self, Admitted, Offered, Refusal};
use super::{Hub, challenge, heartbeat, reconcile};
use crate::places::Place;

/// A connection's place among the handshakes.
pub(super) struct Permit {
    pub(super) _permit: OwnedSemaphorePermit,
    /// Among those of its peer, where the peer is known.
    pub(super) _place: Option<Place>,
}

/// A session as offered.
struct Offer {
    session_id: String,
    nonce: Bytes32,
    at: Timestamp,
}

/// A host that was let in.
struct Guest<'a> {
    seat: Seat<'a>,
    status: NodeStatus,
    admitted: Admitted,
}

/// A session's place on the floor. However the session ends, the place is given up, and no newer session's with it.
struct Seat<'a> {
    hub: &'a Hub,
    key: NodeKey,
    generation: u64,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.hub.models.leave(self.key, self.generation);
        if self.hub.floor().leave(self.key, self.generation, Instant::now()) {
            self.hub.wake.notify_one();
        }
    }
}

/// Serves a connection to its end. `permit` is its place among the handshakes.
pub(super) async fn serve(hub: Arc<Hub>, upgrade: Upgrade, permit: Permit) {
    let offer = Offer {
        session_id: hex::encode(rand::random::<[u8; 16]>()),
        nonce: Bytes32(rand::random::<[u8; 32]>().into()),
        at: hub.market.now(),
    };
    let span = tracing::info_span!(
        "session",
        session_id = %offer.session_id,
        provider = field::Empty,
        node_id = field::Empty,
        generation = field::Empty
    );
    async {
        let stopped = hub.stop.clone();
        let entered = stopped.run_until_cancelled(Box::pin(enter(&hub, upgrade, &offer))).await;
        drop(permit);
        match entered {
            Some(Some((handshake, guest))) => stay(&hub, handshake, guest, offer).await,
            Some(None) => {}
            None => Box::pin(end(&hub, &offer, "the relay stopped")).await,
        }
    }
    .instrument(span)
    .await;
}

/// Greets the host, checks its registration, and opens its session in the store.
async fn enter<'a>(hub: &'a Hub, upgrade: Upgrade, offer: &Offer) -> Option<(Handshake, Guest<'a>)> {
    let failed = |error: &link::HandshakeError| tracing::info!(%error, "handshake failed");
    let hello = Hello {
        relay_id: hub.config.relay_id.clone(),
        session_id: offer.session_id.clone(),
        nonce: offer.nonce,
        domains: hub.config.domains.iter().copied().map(Into::into).collect(),
    };
    let greeted = async {
        let mut handshake = upgrade.complete().await?;
        handshake.send(&json(&hello)).await?;
        let text = handshake.recv().await?;
        Ok((handshake, text))
    };
    // Who takes longer is dropped without a word: it would hold its place for as long as the word takes.
    let (mut handshake, text) = match timeout(hub.config.register_timeout, greeted).await {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(error)) => {
            failed(&error);
            return None;
        }
        Err(_) => {
            tracing::info!("no registration came in time");
            return None;
        }
    };
    let offered = Offered {
        relay_id: &hub.config.relay_id,
        session_id: &offer.session_id,
        nonce: offer.nonce,
        public_urls: &hub.config.public_urls,
    };
    let admitted = match registration::check(&text, &offered, hub.market.now()) {
        Ok(admitted) => admitted,
        Err(refusal) => return refuse(handshake, refusal).await,
    };
    // The store has its own queue; no host waits in it for longer than for a handshake.
    match timeout(hub.config.link.handshake_timeout, open(hub, admitted, offer)).await {
        Ok(Ok((guest, welcome))) => match handshake.send(&json(&welcome)).await {
            Ok(()) => Some((handshake, guest)),
            Err(error) => {
                failed(&error);
                drop(guest);
                end(hub, offer, "handshake not finished").await;
                None
            }
        },
        Ok(Err(refusal)) => {
            end(hub, offer, "refused").await;
            refuse(handshake, refusal).await
        }
        Err(_) => {
            end(hub, offer, "handshake not finished").await;
            refuse(handshake, Refusal::unavailable("the relay is too busy")).await
        }
    }
}

/// Makes the session durable, fences off older ones, and says what the host is to drop.
async fn open<'a>(hub: &'a Hub, admitted: Admitted, offer: &Offer) -> Result<(Guest<'a>, Welcome), Refusal> {
    let broken = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "session not opened");
        Refusal::unavailable("the relay failed")
    };
    let registration = &admitted.register.registration;
    let key = NodeKey { provider: registration.provider, node_id: registration.node_id };
    let store = hub.market.store();
    let signed = Signed { message: registration.clone(), signature: admitted.register.signature };
    let session = NewSession {
        session_id: offer.session_id.clone(),
        provider: key.provider,
        node_id: key.node_id,
        relay_id: hub.config.relay_id.clone(),
        metadata_json: registration::to_keep(&signed, &admitted.register.metadata),
        at: hub.market.now(),
    };
    let generation = store.open_session(session).await.map_err(|error| broken(&error))?;
    let span = Span::current();
    span.record("provider", field::display(key.provider));
    span.record("node_id", field::display(key.node_id));
    span.record("generation", generation);
    let older = hub.floor().fence(key, generation, hub.config.max_sessions, Instant::now())?;
    let seat = Seat { hub, key, generation };
    if let Some(older) = older {
        older.link.close(close_code::SUPERSEDED, "superseded by a newer session of this host");
    }
    let stored = store.node_status(key.provider, key.node_id).await.map_err(|error| broken(&error))?;
    let returned = reconcile::returned(hub, key, &admitted.register, offer.at).await;
    let drop = returned.map_err(|error| broken(&error))?;
    let welcome = Welcome { accepted: true, generation, heartbeat_secs: hub.config.heartbeat_secs(), drop };
    Ok((Guest { seat, status: stored.unwrap_or(NodeStatus::Online), admitted }, welcome))
}

/// Serves a session that was let in, until it ends.
async fn stay(hub: &Hub, handshake: Handshake, guest: Guest<'_>, offer: Offer) {
    let Guest { seat, status, admitted } = guest;
    // The text of the registration is in the store: a session that lasts for weeks need not keep it.
    let Admitted { register, metadata } = admitted;
    let registered_at = register.registration.timestamp;
    drop(register);
    let closed = match Box::pin(handshake.into_client()).await {
        Err(closed) => closed,
        Ok(link) => {
            let live = Arc::new(Live {
                key: seat.key,
                session_id: offer.session_id.clone(),
                nonce: offer.nonce,
                generation: seat.generation,
                connected_at: hub.market.now(),
                link,
            });
            let gpus = challenge::gpus(&metadata);
            let node =
                Node { live: Arc::clone(&live), metadata, registered_at, status, report: None, given: 0 };
            if hub.floor().join(node) {
                tracing::info!("host connected");
                hub.wake.notify_one();
            } else {
                live.link.close(close_code::SUPERSEDED, "superseded by a newer session of this host");
            }
            watch(hub, &live, &gpus).await
        }
    };
    drop(seat);
    tracing::info!(%closed, "host disconnected");
    let reason = match &closed {
        Closed::Local { code: close_code::SUPERSEDED, .. } => SUPERSEDED.to_owned(),
        Closed::Local { reason, .. } => reason.clone(),
        Closed::Peer { .. } | Closed::TimedOut { .. } | Closed::Lost(_) | Closed::Protocol(_) => {
            closed.to_string()
        }
    };
    Box::pin(end(hub, &offer, &reason)).await;
}

/// Listens to the host until its connection ends, and ends it where the host or the relay gives cause.
async fn watch(hub: &Hub, live: &Arc<Live>, gpus: &[u32]) -> Closed {
    tokio::select! {
        closed = live.link.closed() => return closed,
        fault = heartbeat::listen(hub, live) => {
            tracing::warn!(reason = %fault.reason, "session closed for its host's fault");
            live.link.close(fault.close, &fault.reason);
        }
        () = hub.stop.cancelled() => live.link.close(close_code::GOING_AWAY, "the relay is stopping"),
        never = Box::pin(challenge::run(hub, live, gpus)) => match never {},
    }
    live.link.closed().await
}

/// Notes the end of a session in the store.
async fn end(hub: &Hub, offer: &Offer, reason: &str) {
    if let Err(error) = hub.market.store().close_session(&offer.session_id, hub.market.now(), reason).await {
        tracing::warn!(%error, "end of session not stored");
    }
}

async fn refuse<T>(mut handshake: Handshake, refusal: Refusal) -> Option<T> {
    let Refusal { error, close } = refusal;
    let body = rpc::error::ErrorBody::from(error);
    tracing::info!(code = %body.error.code, message = %body.error.message, "registration refused");
    // The close says it again, should the text not arrive.
    if handshake.send(&json(&body)).await.is_ok() {
        handshake.close(close, &body.error.code).await;
    }
    None
}

fn json(message: &impl serde::Serialize) -> String {
    serde_json::to_string(message).expect("handshake messages have string keys and no failing fields")
}
