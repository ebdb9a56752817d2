//! A task's webhooks: how they stand, and sending everything again.

use axum::extract::State;
use rpc::tasks::{WebhookList, WebhookReplay, WebhookState, WebhookView};
use store::StoredWebhook;

use super::App;
use super::extract::{Key, TaskPath};
use super::tasks::find_owned;
use crate::error::ApiError;

/// `GET /v1/tasks/{id}/webhooks`
pub(super) async fn list(
    State(app): State<App>,
    Key(key): Key,
    TaskPath(id): TaskPath,
) -> Result<axum::Json<WebhookList>, ApiError> {
    find_owned(&app, id, &key).await?;
    let webhooks = app.market.store().deliveries(id).await?;
    Ok(axum::Json(WebhookList { webhooks: webhooks.into_iter().map(view).collect() }))
}

/// `POST /v1/tasks/{id}/webhooks/replay`
pub(super) async fn replay(
    State(app): State<App>,
    Key(key): Key,
    TaskPath(id): TaskPath,
) -> Result<axum::Json<WebhookReplay>, ApiError> {
    find_owned(&app, id, &key).await?;
    let webhooks = app.market.store().replay(id, app.market.now()).await?;
    app.webhooks.wake();
    Ok(axum::Json(WebhookReplay { webhooks }))
}

fn view(webhook: StoredWebhook) -> WebhookView {
    let state = match &webhook {
        StoredWebhook { dead_at: Some(_), .. } => WebhookState::Dead,
        StoredWebhook { failing_since: Some(_), .. } => WebhookState::Retrying,
        StoredWebhook { next_try: Some(_), .. } => WebhookState::Sending,
        StoredWebhook { .. } => WebhookState::Idle,
    };
    WebhookView {
        url: webhook.webhook.url,
        state,
        created_at: webhook.webhook.created_at,
        delivered_event_id: webhook.delivered,
        tries: webhook.tries,
        next_try: webhook.next_try,
        failing_since: webhook.failing_since,
        dead_at: webhook.dead_at,
        error: webhook.error,
    }
}
