//! Evidence of a task, for its publisher to give to others.

use axum::extract::State;
use rpc::evidence::{Evidence, EvidenceEvent, FORMAT, SessionEvidence};
use rpc::relay::RefreshNode;
use rpc::tasks::SignedMutation;
use store::{Store, StoreError, StoredAttempt, StoredEvent, StoredSession};
use taskmarket::{Address, Event, TaskId, Timestamp};

use super::App;
use super::extract::TaskPath;
use super::reader::{By, Reader};
use crate::error::{ApiError, MarketError};

/// Sessions and attempts of one provider that are looked through for those that belong to the task.
const MAX_SEARCHED: usize = 10_000;
/// The most sessions of one provider that are shown.
const MAX_SESSIONS: usize = 100;

/// `GET /v1/tasks/{id}/evidence`
pub(super) async fn evidence(
    State(app): State<App>,
    reader: Reader,
    TaskPath(id): TaskPath,
) -> Result<axum::Json<Evidence>, ApiError> {
    reader.find_whole(&app, id, By::Parties).await?;
    let store = app.market.store();
    // All that follows comes from the history, so that it agrees with it.
    let history = store.history(id).await?;
    let recorded: Vec<_> = history.iter().map(|event| event.recorded.clone()).collect();
    let record = taskmarket::replay(&recorded).map_err(|error| ApiError::internal(&error))?;
    let mut sessions = Vec::new();
    for (provider, since) in holders(&history) {
        sessions.extend(sessions_of(store, id, provider, since).await.map_err(MarketError::from)?);
    }
    let fact = |event: &StoredEvent| match &event.recorded.event {
        Event::Chain(fact) => Some(*fact),
        Event::Published { .. }
        | Event::Accepted(_)
        | Event::AttemptFailed(_)
        | Event::Submitted(_)
        | Event::Approved(_)
        | Event::Disputed(_)
        | Event::Resolved(_)
        | Event::Cancelled(_)
        | Event::LeaseLapsed
        | Event::Expired
        | Event::WindowClosed
        | Event::ArbiterTimedOut
        | Event::Released { .. }
        | Event::Unworkable
        | Event::ChainTime(_) => None,
    };
    let chain = history.iter().filter_map(fact).collect();
    let event = |event: StoredEvent| EvidenceEvent::new(event.recorded, event.status);
    Ok(axum::Json(Evidence {
        format: FORMAT.to_owned(),
        relay_id: app.relay_id.clone(),
        relay_version: env!("CARGO_PKG_VERSION").to_owned(),
        written_at: app.market.now().max(record.updated_at),
        task_id: id,
        domain: record.domain.into(),
        status: record.status(),
        settlement: record.settlement.as_str().to_owned(),
        task: record.task,
        signature: record.signature,
        events: history.into_iter().map(event).collect(),
        sessions,
        chain,
    }))
}

/// Who held the task, each with when first, in that order.
fn holders(history: &[StoredEvent]) -> Vec<(Address, Timestamp)> {
    let mut holders: Vec<(Address, Timestamp)> = Vec::new();
    for event in history {
        let Some(provider) = event.recorded.event.holder() else { continue };
        if !holders.iter().any(|(known, _)| *known == provider) {
            holders.push((provider, event.recorded.at));
        }
    }
    holders
}

/// The sessions of a provider's hosts that overlap with its attempts at a task, oldest first.
async fn sessions_of(
    store: &dyn Store,
    task_id: TaskId,
    provider: Address,
    since: Timestamp,
) -> Result<Vec<SessionEvidence>, StoreError> {
    let mut attempts = store.attempts(provider, since, MAX_SEARCHED).await?;
    attempts.retain(|attempt| attempt.task_id == task_id);
    let mut sessions = store.sessions_since(provider, since, MAX_SEARCHED).await?;
    sessions.retain(|session| attempts.iter().any(|attempt| overlaps(session, attempt)));
    sessions.truncate(MAX_SESSIONS);
    sessions.reverse();
    Ok(sessions.into_iter().map(view).collect())
}

fn overlaps(session: &StoredSession, attempt: &StoredAttempt) -> bool {
    let is_host = attempt.node_id.is_none_or(|node| node == session.node_id);
    let begins_before_its_end = attempt.ended.is_none_or(|(end, _)| session.connected_at <= end);
    let ends_after_its_begin = session.ended.as_ref().is_none_or(|(end, _)| *end >= attempt.accepted_at);
    is_host && begins_before_its_end && ends_after_its_begin
}

fn view(session: StoredSession) -> SessionEvidence {
    let (disconnected_at, reason) = session.ended.unzip();
    // Stores of earlier versions have the metadata alone.
    let (registration, metadata) = match serde_json::from_str::<RefreshNode>(&session.metadata_json) {
        Ok(word) => {
            (Some(SignedMutation { mutation: word.registration, signature: word.signature }), word.metadata)
        }
        Err(_) => (None, session.metadata_json),
    };
    SessionEvidence {
        session_id: session.session_id,
        provider: session.provider,
        node_id: session.node_id,
        relay_id: session.relay_id,
        generation: session.generation,
        connected_at: session.connected_at,
        disconnected_at,
        reason,
        registration,
        metadata,
    }
}
