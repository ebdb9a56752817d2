//! What anybody may see of the relay itself: what it is, the market in numbers, and whether it is well.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use rpc::error::ErrorCode;
use rpc::relay::{Info, MarketStats};

use super::App;
use crate::error::ApiError;
use crate::hub::HubTotals;

/// The media type of Prometheus' text form, as its client library writes it.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `GET /v1/info`
pub(super) async fn info(State(app): State<App>) -> axum::Json<Info> {
    axum::Json(Info {
        relay_id: app.relay_id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now: app.market.now(),
        domains: app.market.domains().iter().map(|domain| (*domain).into()).collect(),
        limits: app.limits_view(),
        runtimes: app.hub.runtimes(),
        providers_online: app.hub.totals().providers_online,
        chain: app.market.chain().map(|chain| chain.status(app.market.now())),
    })
}

/// `GET /v1/stats`
pub(super) async fn stats(State(app): State<App>) -> Result<axum::Json<MarketStats>, ApiError> {
    Ok(axum::Json(market_stats(&app, &app.hub.totals()).await?))
}

/// The market in numbers.
///
/// # Errors
/// The store fails.
pub(super) async fn market_stats(app: &App, hub: &HubTotals) -> Result<MarketStats, ApiError> {
    let counts = app.market.store().counts().await?;
    Ok(MarketStats {
        tasks: counts.into_iter().map(|(status, count)| (status.to_string(), count)).collect(),
        providers_online: hub.providers_online,
        slots: hub.slots,
        slots_busy: hub.slots_busy,
        gpus: hub.gpus,
    })
}

/// `GET /healthz`: the process answers.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: it can serve.
pub(super) async fn readyz(State(app): State<App>) -> Result<&'static str, ApiError> {
    if app.stopping.is_cancelled() {
        return Err(ApiError::new(ErrorCode::Unavailable, "the relay is shutting down"));
    }
    match app.market.store().last_seq().await {
        Ok(_) => Ok("ready\n"),
        Err(error) => {
            tracing::warn!(%error, "not ready");
            Err(ApiError::new(ErrorCode::Unavailable, "the relay's store does not answer"))
        }
    }
}

/// `GET /metrics`
pub(super) async fn metrics(State(app): State<App>) -> Result<Response, ApiError> {
    let hub = app.hub.totals();
    let stats = market_stats(&app, &hub).await?;
    app.gateway.counts().show(&app.gateway.totals());
    let chain = app.market.chain().map(|chain| chain.status(app.market.now()));
    let text = app.metrics.text(&stats, &hub, chain.as_ref()).map_err(|error| ApiError::internal(&error))?;
    Ok(([(CONTENT_TYPE, OPENMETRICS)], text).into_response())
}
