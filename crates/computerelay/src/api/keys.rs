//! API keys and the use that is made of them, for the relay's operators; and for each key its own use.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use rpc::error::ErrorCode;
use rpc::keys::{CreateKey, CreatedKey, KeyList, KeyView, UsagePage, UsageQuery, UsageView};
use rpc::relay::PageQuery;
use store::{Deadlines, KeyId, Scope, UsageFilter};
use taskmarket::Timestamp;

use super::extract::{Admin, AnyKey, Json, KeyPath, Query};
use super::inference::models_used;
use super::{App, MAX_PAGE};
use crate::error::ApiError;
use crate::idempotency::KeptBody;
use crate::keys::{BadSpec, DAY, KeySpec, view};

/// Rows on a page unless the client says otherwise.
const DEFAULT_PAGE: u32 = 100;
/// Days that usage is listed for unless the client says otherwise.
const DEFAULT_DAYS: u64 = 30;

/// `POST /v1/keys`
pub(super) async fn create(
    State(app): State<App>,
    _: Admin,
    Json(body): Json<CreateKey>,
) -> Result<Response, ApiError> {
    let (secret, key) = spec(body)?.make(app.market.now())?;
    let stored = store::StoredKey { key: key.clone(), revoked_at: None };
    if !app.market.store().add_key(key).await? {
        return Err(ApiError::internal(&"a new API key's id is taken"));
    }
    let mut created = CreatedKey { key: None, view: view(&stored) };
    // What is kept of the answer for its idempotency key does not hold the key.
    let kept = serde_json::to_vec(&created).map_err(|error| ApiError::internal(&error))?;
    created.key = Some(secret.expose().to_owned());
    let location = [(http::header::LOCATION, format!("/v1/keys/{}", stored.key.id))];
    let mut response = (StatusCode::CREATED, location, axum::Json(created)).into_response();
    response.extensions_mut().insert(KeptBody(kept.into()));
    Ok(response)
}

fn spec(body: CreateKey) -> Result<KeySpec, ApiError> {
    let scopes: Result<_, _> = body.scopes.iter().map(|word| word.parse::<Scope>()).collect();
    Ok(KeySpec {
        name: body.name,
        scopes: scopes.map_err(|error| invalid("scopes", &error))?,
        expires_at: body.expires_at,
        requests_per_minute: body.requests_per_minute,
        tokens_per_minute: body.tokens_per_minute,
        deadlines: Deadlines {
            total: body.inference_timeout_secs,
            first_byte: body.first_byte_timeout_secs,
            between_tokens: body.token_timeout_secs,
        },
    })
}

impl From<BadSpec> for ApiError {
    fn from(bad: BadSpec) -> Self {
        Self::new(ErrorCode::InvalidField, bad.to_string()).with_param(bad.field)
    }
}

/// `GET /v1/keys`
pub(super) async fn list(
    State(app): State<App>,
    _: Admin,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<KeyList>, ApiError> {
    let limit = limit(query.limit)?;
    let after = query.cursor.as_deref().map(key_id_of_cursor).transpose()?;
    let keys = app.market.store().keys(after, limit).await?;
    let next_cursor = (keys.len() == limit).then(|| keys.last().map(|last| last.key.id.to_string()));
    Ok(axum::Json(KeyList { keys: keys.iter().map(view).collect(), next_cursor: next_cursor.flatten() }))
}

/// `GET /v1/keys/{id}`
pub(super) async fn show(
    State(app): State<App>,
    _: Admin,
    KeyPath(id): KeyPath,
) -> Result<axum::Json<KeyView>, ApiError> {
    find(&app, &id).await.map(axum::Json)
}

/// `DELETE /v1/keys/{id}`
pub(super) async fn revoke(
    State(app): State<App>,
    _: Admin,
    KeyPath(id): KeyPath,
) -> Result<axum::Json<KeyView>, ApiError> {
    if app.market.store().revoke_key(&id, app.market.now()).await? {
        app.access.keys.forget(&id);
        tracing::info!(key = %id, "an API key was revoked");
    }
    find(&app, &id).await.map(axum::Json)
}

async fn find(app: &App, id: &KeyId) -> Result<KeyView, ApiError> {
    let stored = app.market.store().key(id).await?;
    stored.as_ref().map(view).ok_or_else(|| ApiError::not_found(format_args!("API key {id} in the store")))
}

/// `GET /v1/usage`
pub(super) async fn usage(
    State(app): State<App>,
    AnyKey(caller): AnyKey,
    Query(query): Query<UsageQuery>,
) -> Result<axum::Json<UsagePage>, ApiError> {
    let limit = limit(query.limit)?;
    let today = app.market.now().unix() / DAY;
    let to = query.to.as_deref().map_or(Ok(today), |text| day(text, "to"))?;
    let from =
        query.from.as_deref().map_or(Ok(to.saturating_sub(DEFAULT_DAYS - 1)), |text| day(text, "from"))?;
    let asked = query.key_id.as_deref().map(str::parse::<KeyId>).transpose();
    let asked = asked.map_err(|_| invalid("key_id", &"expected 16 hex digits"))?;
    let owner = match asked {
        Some(asked) if !caller.may_read(&asked) => {
            let message = format!("only an admin's key may see the use of others; this is {}", caller.id);
            return Err(ApiError::new(ErrorCode::Forbidden, message).with_param("key_id"));
        }
        None if !caller.is_admin() => Some(caller.id),
        asked => asked,
    };
    let after = query.cursor.as_deref().map(usage_cursor).transpose()?;
    // What was counted until now is to be seen.
    app.access.keys.write_usage().await?;
    app.gateway.flush().await;
    let rows = app.market.store().usage(UsageFilter { owner: owner.clone(), from, to }, after, limit).await?;
    let mut models = models_used(&app, owner, &rows).await?;
    let view = |row: store::Usage| UsageView {
        day: date(row.day),
        key_id: row.owner.to_string(),
        requests: row.requests,
        models: models.remove(&(row.day, row.owner)).unwrap_or_default(),
    };
    let usage: Vec<_> = rows.into_iter().map(view).collect();
    let last = usage.last().filter(|_| usage.len() == limit);
    let next_cursor = last.map(|last| format!("{}.{}", last.day, last.key_id));
    Ok(axum::Json(UsagePage { usage, next_cursor }))
}

fn limit(asked: Option<u32>) -> Result<usize, ApiError> {
    let limit = asked.unwrap_or(DEFAULT_PAGE);
    if (1..=MAX_PAGE).contains(&limit) {
        return Ok(limit as usize);
    }
    Err(invalid("limit", &format_args!("1 to {MAX_PAGE}")))
}

fn key_id_of_cursor(text: &str) -> Result<KeyId, ApiError> {
    text.parse().map_err(|_| store::StoreError::BadCursor.into())
}

fn usage_cursor(text: &str) -> Result<(u64, KeyId), ApiError> {
    let (date, id) = text.split_once('.').ok_or(store::StoreError::BadCursor)?;
    let day = day(date, "cursor").map_err(|_| store::StoreError::BadCursor)?;
    Ok((day, key_id_of_cursor(id)?))
}

/// A date, as days from 1970-01-01.
fn day(text: &str, field: &'static str) -> Result<u64, ApiError> {
    let midnight = format!("{text}T00:00:00Z").parse::<Timestamp>().ok();
    // Each day has one text only.
    let day = midnight.map(|at| at.unix() / DAY).filter(|day| date(*day) == text);
    day.ok_or_else(|| invalid(field, &"expected a date such as 2026-01-31"))
}

fn date(day: u64) -> String {
    let mut text = Timestamp::from_unix(day.saturating_mul(DAY)).to_string();
    text.truncate("2026-01-31".len());
    text
}

fn invalid(field: &'static str, what: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::InvalidField, format!("{field}: {what}")).with_param(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_one_text_each() {
        assert_eq!(day("1970-01-02", "from").unwrap(), 1);
        assert_eq!(date(20_484), "2026-01-31");
        assert_eq!(day("2026-01-31", "from").unwrap(), 20_484);
        for wrong in
            ["", "2026-02-30", "2026-1-31", "2026-01-31T00:00:00Z", "1969-12-31", "20260131", "+02026-01-31"]
        {
            assert!(day(wrong, "from").is_err(), "{wrong}");
        }
    }
}
