//! The providers: who is online and what they offer, for anybody to see; their connections; and what they sign about their hosts.

use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::response::Response;
use http::request::Parts;
use http::{Request, StatusCode};
use rpc::error::ErrorCode;
use rpc::relay::{ProviderList, RefreshNode, SessionList, SessionView};
use rpc::tasks::SignedMutation;
use store::StoredSession;
use taskmarket::{Address, Domain, ParseError, Signed, UpdateNodeStatus, eip55};

use super::App;
use super::extract::{Json, path_part};
use crate::error::ApiError;

/// The most sessions of a provider that are listed.
const MAX_SESSIONS: usize = 100;

/// `GET /v1/providers`
pub(super) async fn list(State(app): State<App>) -> axum::Json<ProviderList> {
    axum::Json(ProviderList { providers: app.hub.providers() })
}

/// `GET /v1/providers/{address}`
pub(super) async fn show(
    State(app): State<App>,
    PathAddress(address): PathAddress,
) -> Result<axum::Json<ProviderList>, ApiError> {
    let mut providers = app.hub.providers();
    providers.retain(|provider| provider.provider == address);
    if providers.is_empty() && app.market.store().sessions(address, 1).await?.is_empty() {
        return Err(ApiError::not_found(format_args!("provider {address}: it never connected here")));
    }
    Ok(axum::Json(ProviderList { providers }))
}

/// `GET /v1/providers/{address}/sessions`
pub(super) async fn sessions(
    State(app): State<App>,
    PathAddress(address): PathAddress,
) -> Result<axum::Json<SessionList>, ApiError> {
    let sessions = app.market.store().sessions(address, MAX_SESSIONS).await?;
    Ok(axum::Json(SessionList { sessions: sessions.into_iter().map(session_view).collect() }))
}

fn session_view(session: StoredSession) -> SessionView {
    let (disconnected_at, reason) = session.ended.unzip();
    SessionView {
        session_id: session.session_id,
        node_id: session.node_id,
        relay_id: session.relay_id,
        generation: session.generation,
        connected_at: session.connected_at,
        disconnected_at,
        reason,
    }
}

/// `GET /v1/provider/connect`
pub(super) async fn connect(State(app): State<App>, request: Request<Body>) -> Response {
    app.hub.connect(request).await
}

/// `POST /v1/providers/{address}/registration`
pub(super) async fn refresh(
    State(app): State<App>,
    PathAddress(address): PathAddress,
    Json(body): Json<RefreshNode>,
) -> Result<StatusCode, ApiError> {
    check_same(address, "registration.provider", body.registration.provider)?;
    let signed = Signed { message: body.registration, signature: body.signature };
    app.hub.refresh(&signed.verify(&Domain::UNSETTLED)?, &body.metadata)?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /v1/providers/{address}/status`
pub(super) async fn set_status(
    State(app): State<App>,
    PathAddress(address): PathAddress,
    Json(body): Json<SignedMutation<UpdateNodeStatus>>,
) -> Result<StatusCode, ApiError> {
    check_same(address, "mutation.provider", body.mutation.provider)?;
    app.hub.set_status(&Signed::from(body).verify(&Domain::UNSETTLED)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn check_same(path: Address, field: &'static str, said: Address) -> Result<(), ApiError> {
    if path == said {
        return Ok(());
    }
    let message = format!("{field} is {said}, but the path names {path}");
    Err(ApiError::new(ErrorCode::InvalidField, message).with_param(field))
}

/// The address in the path.
pub(super) struct PathAddress(Address);

impl FromRequestParts<App> for PathAddress {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        path_part(parts, app, "address").await
    }
}

impl std::str::FromStr for PathAddress {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        eip55::parse(text).map(Self)
    }
}
