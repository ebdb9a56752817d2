//! Who may read a task and what belongs to it: the API key that published it, an admin's, and by their signature its requester, the
//! provider that holds it or made its result, and the arbiter once it is disputed. What its hosts write, and why others did not take it, the
//! provider reads not.

use axum::extract::FromRequestParts;
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use rpc::READ_HEADER;
use rpc::error::ErrorCode;
use rpc::tasks::SignedMutation;
use store::{KeyId, Scope, StoredTask};
use taskmarket::{CLOCK_TOLERANCE_SECS, Domain, ReadTask, Signed, State, TaskId, TaskRecord, Timestamp};

use super::App;
use super::events::Whose;
use super::extract::require_scope;
use super::tasks::find;
use crate::error::ApiError;
use crate::keys::Caller;

/// The longest signed request to read, in bytes: it has three fields and a signature.
const MAX_HEADER_BYTES: usize = 1024;

/// Who asks to read a task: by an API key, by a signature, or by both.
pub(super) struct Reader {
    key: Option<Caller>,
    signed: Option<ReadTask>,
}

impl FromRequestParts<App> for Reader {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let signed = signed_reader(&parts.headers, app.market.now())?;
        match require_scope(&parts.extensions, Scope::TasksRead) {
            Ok(key) => Ok(Self { key: Some(key), signed }),
            Err(_) if signed.is_some() => Ok(Self { key: None, signed }),
            Err(refused) => Err(refused),
        }
    }
}

/// Whose signature opens what belongs to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// All parties': the requester's, the provider's, and the arbiter's once it is disputed.
    Parties,
    /// These but the provider's.
    Requester,
}

impl Reader {
    /// The task, if there is one, and whether this reader may see it whole. Strangers with an API key may see a part.
    ///
    /// # Errors
    /// There is no such task; the signature is for another, or of somebody else, and there is no API key.
    pub(super) async fn find(&self, app: &App, id: TaskId, by: By) -> Result<(StoredTask, bool), ApiError> {
        if let Some(signed) = self.signed.as_ref().filter(|signed| signed.task_id != id) {
            let message = format!("the signature is for task {}, but the path names {id}", signed.task_id);
            return Err(ApiError::new(ErrorCode::InvalidField, message).with_param(READ_HEADER));
        }
        let task = find(app, id).await?;
        let by_key = self.key.as_ref().is_some_and(|key| key.may_read(&task.owner));
        let is_whole = by_key || self.signs(&task.record, by);
        if !is_whole && self.key.is_none() {
            return Err(match by {
                By::Parties => stranger(),
                By::Requester => {
                    let message =
                        "of signatures only its requester's, and the arbiter's of a dispute, can read this";
                    ApiError::new(ErrorCode::WrongParty, message).with_param(READ_HEADER)
                }
            });
        }
        Ok((task, is_whole))
    }

    /// Whether this reader's signature is one of those.
    fn signs(&self, record: &TaskRecord, by: By) -> bool {
        self.signed.as_ref().is_some_and(|signed| match by {
            By::Parties => is_party(record, signed),
            By::Requester => is_requesters(record, signed),
        })
    }

    /// Whose reading it counts as.
    pub(super) fn whose(&self) -> Whose {
        match (&self.key, &self.signed) {
            (Some(key), _) => Whose::Key(key.id.clone()),
            (None, signed) => Whose::Signer(signed.as_ref().map(|read| read.reader).unwrap_or_default()),
        }
    }

    /// The API key without which this reader could not see the task whole.
    pub(super) fn key_needed(&self, task: &StoredTask, by: By) -> Option<KeyId> {
        self.key.as_ref().filter(|_| !self.signs(&task.record, by)).map(|key| key.id.clone())
    }

    /// The task, if there is one and this reader may see it whole.
    ///
    /// # Errors
    /// As of [`Self::find`]; 403 where the reader may see a part only.
    pub(super) async fn find_whole(&self, app: &App, id: TaskId, by: By) -> Result<StoredTask, ApiError> {
        match self.find(app, id, by).await? {
            (task, true) => Ok(task),
            (_, false) => Err(ApiError::new(
                ErrorCode::Forbidden,
                "only the API key that published the task, a signature of its parties that opens this, or an admin's key can \
                 read this",
            )),
        }
    }
}

/// Who asks to read, by the signature that a request carries.
///
/// # Errors
/// 400 where it cannot be read, is not of whom it names, or is too old.
pub(super) fn signed_reader(headers: &HeaderMap, now: Timestamp) -> Result<Option<ReadTask>, ApiError> {
    headers.get(READ_HEADER).map(|value| check(value, now)).transpose()
}

fn check(value: &HeaderValue, now: Timestamp) -> Result<ReadTask, ApiError> {
    let refused = |code, message: String| ApiError::new(code, message).with_param(READ_HEADER);
    if value.len() > MAX_HEADER_BYTES {
        let message = format!("{READ_HEADER} has more than {MAX_HEADER_BYTES} bytes");
        return Err(refused(ErrorCode::MalformedRequest, message));
    }
    let signed: SignedMutation<ReadTask> = serde_json::from_slice(value.as_bytes())
        .map_err(|error| refused(ErrorCode::MalformedRequest, format!("{READ_HEADER}: {error}")))?;
    let verified = Signed::from(signed)
        .verify(&Domain::UNSETTLED)
        .map_err(|error| refused(ErrorCode::InvalidSignature, format!("{READ_HEADER}: {error}")))?;
    let read = verified.into_signed().message;
    if now.distance(read.issued_at) > CLOCK_TOLERANCE_SECS {
        let message = format!(
            "{READ_HEADER}: issued_at {} is more than {CLOCK_TOLERANCE_SECS} s from the relay's clock ({now}); sign again",
            read.issued_at
        );
        return Err(refused(ErrorCode::InvalidField, message));
    }
    Ok(read)
}

/// Whether a task is the reader's: its requester's, of the provider that holds it or made its result, or of the arbiter of its dispute.
pub(super) fn is_party(record: &TaskRecord, read: &ReadTask) -> bool {
    let holder = record.lease().map(|lease| lease.provider);
    let prover = record.submission().map(|submission| submission.proof.message.provider);
    let is_providers = record.id == read.task_id && [holder, prover].contains(&Some(read.reader));
    is_providers || is_requesters(record, read)
}

/// Whether the reader is a task's requester, or the arbiter of its dispute.
fn is_requesters(record: &TaskRecord, read: &ReadTask) -> bool {
    let is_disputed = matches!(record.state, State::Disputed { .. } | State::Resolved { .. });
    let is_arbiter = is_disputed && read.reader == record.task.arbiter;
    record.id == read.task_id && (is_arbiter || read.reader == record.task.requester)
}

/// What a signature of somebody else is told.
pub(super) fn stranger() -> ApiError {
    ApiError::new(
        ErrorCode::WrongParty,
        "only its requester and the provider that holds it can read a task by their signature",
    )
    .with_param(READ_HEADER)
}
