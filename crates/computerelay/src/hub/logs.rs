//! Reading what an attempt says, through its host's connection.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use link::ResponseBody;
use rpc::error::ErrorCode;
use scheduler::NodeKey;
use store::StoredTask;
use taskmarket::TaskId;
use tokio::time::timeout;

use super::Hub;
use crate::error::ApiError;

/// How long a host may take until its answer begins.
const PATIENCE: Duration = Duration::from_secs(15);
/// The largest refusal that is read, in bytes.
const MAX_REFUSAL_BYTES: usize = 16 * 1024;

impl Hub {
    /// What the newest attempt at a task said, as its host has it: newline-delimited JSON of [`rpc::node::LogLine`] from line `from` on,
    /// with `follow` until the attempt ends. The host sends at the reader's pace.
    ///
    /// # Errors
    /// 409 where no host ran the task yet, or its host is not connected here; 404 where the host does not know the task any more; 503
    /// where it does not answer.
    pub(crate) async fn logs(
        &self,
        task: &StoredTask,
        from: u64,
        follow: bool,
    ) -> Result<ResponseBody, ApiError> {
        let (record, status) = (&task.record, task.record.status());
        let id = record.id;
        let (Some(provider), Some(node_id)) = (record.provider, task.node) else {
            let why = format!("task {id} is {status}: no host has run it yet");
            return Err(ApiError::new(ErrorCode::Conflict, why).with_status(status));
        };
        let key = NodeKey { provider: provider.0, node_id };
        let live = self.floor().node(&key).map(|node| node.live.clone());
        let Some(live) = live else {
            return Err(self.not_here(key, record.attempts).await.with_status(status));
        };
        let path = format!("/tasks/{id}/logs?from={from}&follow={follow}");
        let request = Request::get(path).body(Empty::<Bytes>::new());
        let request = request.map_err(|error| ApiError::internal(&error))?;
        let unavailable = |why: String| ApiError::new(ErrorCode::Unavailable, why);
        let answer = timeout(PATIENCE, live.link.request(request)).await;
        let response = answer
            .map_err(|_| unavailable(format!("the host of task {id} does not answer")))?
            .map_err(|error| unavailable(format!("the host of task {id} cannot be reached: {error}")))?;
        let (head, body) = response.into_parts();
        match head.status {
            StatusCode::OK => Ok(body),
            StatusCode::NOT_FOUND => {
                let why =
                    format!("the host that ran attempt {} of task {id} has no logs of it", record.attempts);
                Err(ApiError::new(ErrorCode::NotFound, why).with_param("id"))
            }
            other => Err(unavailable(refusal(id, other, body).await)),
        }
    }

    /// Why a host cannot be asked.
    async fn not_here(&self, key: NodeKey, attempt: u32) -> ApiError {
        let newest = self.market.store().newest_session(key.provider, key.node_id).await;
        let elsewhere = newest
            .unwrap_or_default()
            .filter(|session| session.ended.is_none() && session.relay_id != self.config.relay_id)
            .map(|session| format!("connected to relay {}: ask there", session.relay_id));
        let whither = elsewhere.unwrap_or_else(|| "not connected now".to_owned());
        ApiError::new(ErrorCode::NoSession, format!("the host of attempt {attempt} is {whither}"))
    }
}

/// What a host said instead of logs, in one bounded line.
async fn refusal(id: TaskId, status: StatusCode, body: ResponseBody) -> String {
    let read = timeout(PATIENCE, Limited::new(body, MAX_REFUSAL_BYTES).collect()).await;
    let said = match read {
        Ok(Ok(body)) => super::offer::reason(&body.to_bytes()),
        Ok(Err(_)) | Err(_) => "no reason given".to_owned(),
    };
    format!("the host of task {id} answered {}: {said}", status.as_u16())
}
