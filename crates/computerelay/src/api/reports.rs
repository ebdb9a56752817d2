//! Reports on providers, for anybody to see: when they were here, and what became of what they took.

use std::time::Duration;

use axum::extract::State;
use rpc::error::ErrorCode;
use rpc::relay::{PageQuery, ProviderReport, SessionList, SessionView};
use store::StoredSession;
use taskmarket::{Address, Timestamp};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::extract::Query;
use super::providers::PathAddress;
use super::{App, MAX_PAGE};
use crate::availability::{Carried, Known, WINDOWS_SECS, carried, report};
use crate::error::ApiError;

/// Sessions on a page unless the client says otherwise.
const DEFAULT_PAGE: u32 = 100;
/// The newest sessions of a provider that can be paged through, and that a report counts.
const MAX_SESSIONS: usize = 10_000;
/// The newest attempts of a provider that a report counts.
const MAX_ATTEMPTS: usize = 50_000;
/// Reports made at once: anybody may ask, and each reads much.
static PLACES: Semaphore = Semaphore::const_new(4);
/// How long a request waits for its place.
const PLACE_DEADLINE: Duration = Duration::from_secs(10);

async fn place() -> Result<SemaphorePermit<'static>, ApiError> {
    match tokio::time::timeout(PLACE_DEADLINE, PLACES.acquire()).await {
        Ok(Ok(place)) => Ok(place),
        Ok(Err(_)) | Err(_) => {
            Err(ApiError::new(ErrorCode::Unavailable, "too many reports are asked for at once"))
        }
    }
}

/// `GET /v1/providers/{address}`
pub(super) async fn show(
    State(app): State<App>,
    PathAddress(address): PathAddress,
) -> Result<axum::Json<ProviderReport>, ApiError> {
    let _place = place().await?;
    let store = app.market.store();
    if store.sessions(address, 1).await?.is_empty() {
        return Err(ApiError::not_found(format_args!("provider {address}: it never connected here")));
    }
    let as_of = app.market.now();
    let mut windows = Vec::with_capacity(WINDOWS_SECS.len());
    for secs in WINDOWS_SECS {
        let from = Timestamp::from_unix(as_of.unix().saturating_sub(secs));
        let sessions = store.sessions_since(address, from, MAX_SESSIONS).await?;
        let attempts = store.attempts(address, from, MAX_ATTEMPTS).await?;
        let complete = sessions.len() < MAX_SESSIONS && attempts.len() < MAX_ATTEMPTS;
        let was_here_before = store.sessions(address, sessions.len() + 1).await?.len() > sessions.len();
        windows.push(report(&Known {
            now: as_of,
            secs,
            sessions: &sessions,
            attempts: &attempts,
            was_here_before,
            complete,
        }));
    }
    let providers = app.hub.providers_of(address);
    Ok(axum::Json(ProviderReport { provider: address, providers, as_of, windows }))
}

/// `GET /v1/providers/{address}/sessions`
pub(super) async fn sessions(
    State(app): State<App>,
    PathAddress(address): PathAddress,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<SessionList>, ApiError> {
    let limit = query.limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        let message = format!("limit: 1 to {MAX_PAGE}");
        return Err(ApiError::new(ErrorCode::InvalidField, message).with_param("limit"));
    }
    let limit = limit as usize;
    let _place = place().await?;
    let store = app.market.store();
    // Newer sessions than those of the page tell what became of attempts.
    let known = match &query.cursor {
        None => store.sessions(address, limit + 1).await?,
        Some(_) => store.sessions(address, MAX_SESSIONS).await?,
    };
    let begin = match &query.cursor {
        None => 0,
        Some(cursor) => after(&known, cursor)?,
    };
    let end = known.len().min(begin + limit);
    let carried = match known[begin..end].last() {
        Some(oldest) => carried_since(&app, address, oldest.connected_at, &known).await?,
        None => Default::default(),
    };
    let next_cursor = (end < known.len()).then(|| known[end - 1].session_id.clone());
    let page = known.into_iter().take(end).skip(begin);
    let view = |session: StoredSession| {
        let became = carried.get(&session.session_id).copied().unwrap_or_default();
        session_view(session, became)
    };
    Ok(axum::Json(SessionList { sessions: page.map(view).collect(), next_cursor }))
}

/// Where the page after a session begins.
fn after(known: &[StoredSession], cursor: &str) -> Result<usize, ApiError> {
    let last = known.iter().position(|session| session.session_id == cursor).ok_or_else(|| {
        let why = format!("cursor: not the end of a page of the newest {MAX_SESSIONS} sessions");
        ApiError::new(ErrorCode::MalformedRequest, why).with_param("cursor")
    })?;
    Ok(last + 1)
}

async fn carried_since(
    app: &App,
    provider: Address,
    since: Timestamp,
    sessions: &[StoredSession],
) -> Result<std::collections::HashMap<String, Carried>, ApiError> {
    let attempts = app.market.store().attempts(provider, since, MAX_ATTEMPTS).await?;
    Ok(carried(sessions, &attempts))
}

fn session_view(session: StoredSession, became: Carried) -> SessionView {
    let (disconnected_at, reason) = session.ended.unzip();
    SessionView {
        session_id: session.session_id,
        node_id: session.node_id,
        relay_id: session.relay_id,
        generation: session.generation,
        connected_at: session.connected_at,
        disconnected_at,
        reason,
        resumed_attempts: became.resumed,
        lost_attempts: became.lost,
    }
}
