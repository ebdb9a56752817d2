//! The providers: who is online and what they offer, for anybody to see; their connections; and what they sign about their hosts.

use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::response::Response;
use http::request::Parts;
use http::{Request, StatusCode};
use rpc::error::ErrorCode;
use rpc::relay::{PageQuery, ProviderList, RefreshNode};
use rpc::tasks::SignedMutation;
use scheduler::NodeKey;
use taskmarket::{Address, Domain, ParseError, Signed, UpdateNodeStatus, eip55};

use super::extract::{Json, Query, path_part};
use super::{App, MAX_PAGE};
use crate::error::ApiError;

/// Hosts on a page unless the client says otherwise.
const DEFAULT_PAGE: u32 = 100;

/// `GET /v1/providers`
pub(super) async fn list(
    State(app): State<App>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<ProviderList>, ApiError> {
    let limit = query.limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        let message = format!("limit: 1 to {MAX_PAGE}");
        return Err(ApiError::new(ErrorCode::InvalidField, message).with_param("limit"));
    }
    let after = query.cursor.as_deref().map(host_of).transpose()?;
    let limit = limit as usize;
    let mut providers = app.hub.providers(after, limit + 1);
    let has_more = providers.len() > limit;
    providers.truncate(limit);
    let last = providers.last().filter(|_| has_more);
    let next_cursor = last.map(|host| format!("{}-{}", host.provider, host.node_id));
    Ok(axum::Json(ProviderList { providers, next_cursor }))
}

/// The host that a cursor names, the last of its page. It need not be connected any more.
fn host_of(cursor: &str) -> Result<NodeKey, ApiError> {
    let parts = cursor.split_once('-');
    let host = parts.and_then(|(provider, node_id)| {
        Some(NodeKey { provider: eip55::parse(provider).ok()?, node_id: node_id.parse().ok()? })
    });
    host.ok_or_else(|| {
        let why = "cursor: not the end of a page of this listing";
        ApiError::new(ErrorCode::MalformedRequest, why).with_param("cursor")
    })
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
    refresh_node(&app, body).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes a host's word of what it offers now.
///
/// # Errors
/// The signature is wrong, the host has no such session, or its metadata are not in order.
pub(super) async fn refresh_node(app: &App, body: RefreshNode) -> Result<(), ApiError> {
    let signed = Signed { message: body.registration, signature: body.signature };
    app.hub.refresh(&signed.verify(&Domain::UNSETTLED)?, &body.metadata).await
}

/// `POST /v1/providers/{address}/status`
pub(super) async fn set_status(
    State(app): State<App>,
    PathAddress(address): PathAddress,
    Json(body): Json<SignedMutation<UpdateNodeStatus>>,
) -> Result<StatusCode, ApiError> {
    check_same(address, "mutation.provider", body.mutation.provider)?;
    set_node_status(&app, body).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes a provider's word of whether a host takes work.
///
/// # Errors
/// The signature is wrong, or a newer word is known.
pub(super) async fn set_node_status(
    app: &App,
    body: SignedMutation<UpdateNodeStatus>,
) -> Result<(), ApiError> {
    app.hub.set_status(&Signed::from(body).verify(&Domain::UNSETTLED)?).await
}

fn check_same(path: Address, field: &'static str, said: Address) -> Result<(), ApiError> {
    if path == said {
        return Ok(());
    }
    let message = format!("{field} is {said}, but the path names {path}");
    Err(ApiError::new(ErrorCode::InvalidField, message).with_param(field))
}

/// The address in the path.
pub(super) struct PathAddress(pub(super) Address);

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
