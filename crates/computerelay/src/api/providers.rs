//! The providers: who is online and what they offer, for anybody to see; their connections; and what they sign about their hosts.

use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::response::Response;
use http::request::Parts;
use http::{Request, StatusCode};
use rpc::error::ErrorCode;
use rpc::relay::{ProviderList, RefreshNode};
use rpc::tasks::SignedMutation;
use taskmarket::{Address, Domain, ParseError, Signed, UpdateNodeStatus, eip55};

use super::App;
use super::extract::{Json, path_part};
use crate::error::ApiError;

/// `GET /v1/providers`
pub(super) async fn list(State(app): State<App>) -> axum::Json<ProviderList> {
    axum::Json(ProviderList { providers: app.hub.providers() })
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
