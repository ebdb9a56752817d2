//! Handing an attempt's end in: the result's bytes and the proof, or why there is none, until a relay has acknowledged it.

use std::time::Duration;

use reqwest::{Response, StatusCode};
use rpc::error::ErrorCode;
use rpc::node::ComputeOutcome;
use rpc::tasks::{FailureView, SignedMutation};
use taskmarket::{CLOCK_TOLERANCE_SECS, ComputeProof, ContentHash, FailTask, Message, ParseError, Reference};

use crate::agent::now;
use crate::driver::{Driver, Next, failing, failure, gpu_name};
use crate::http_client::Answer;
use crate::journal::Stage;
use crate::node::NodeError;
use crate::relay::{RelayClient, RelayError};

/// A message that waited so long is signed anew, in seconds: relays take no message that is older than five minutes.
const RESIGN_AFTER_SECS: u64 = CLOCK_TOLERANCE_SECS - 60;

/// Why a result did not reach the relay.
enum UploadError {
    /// It may later.
    Later(String, Option<Duration>),
    /// It never will.
    Never(FailureView),
}

impl From<RelayError> for UploadError {
    fn from(error: RelayError) -> Self {
        match error {
            RelayError::Later { why, after } => Self::Later(why, after),
            RelayError::ResultMissing => Self::Later(error.to_string(), None),
            RelayError::Never(answer) => {
                Self::Never(failure("upload_refused", &format!("the relay refuses the result: {answer}")))
            }
        }
    }
}

impl Driver {
    /// Uploads the result and hands the proof in.
    pub(crate) async fn deliver(
        &mut self,
        outcome: ComputeOutcome,
        mut proof: Option<Box<SignedMutation<ComputeProof>>>,
    ) -> Next {
        let mut backoff = self.shared.config.timing.backoff();
        // A proof is signed only once its result is with the relay.
        let mut uploaded = proof.is_some();
        while !self.is_forlorn() {
            let (why, after) = match self.try_deliver(&outcome, &mut proof, &mut uploaded).await {
                Ok(next) => return next,
                Err(later) => later,
            };
            tracing::debug!(attempt = %self.name(), why, "the result is not handed in yet");
            tokio::time::sleep(backoff.next_delay().max(after.unwrap_or_default())).await;
        }
        tracing::warn!(attempt = %self.name(), "nobody took the result in time");
        Next::Forget
    }

    async fn try_deliver(
        &mut self,
        outcome: &ComputeOutcome,
        proof: &mut Option<Box<SignedMutation<ComputeProof>>>,
        uploaded: &mut bool,
    ) -> Result<Next, (String, Option<Duration>)> {
        if !*uploaded {
            match self.bring(outcome, proof.is_some()).await {
                Ok(there) => *uploaded = there,
                Err(UploadError::Later(why, after)) => return Err((why, after)),
                Err(UploadError::Never(failure)) => return Ok(failing(failure)),
            }
        }
        let signed = match proof {
            Some(signed) => signed.clone(),
            None => match self.prove(outcome) {
                Ok(signed) => {
                    let signed = Box::new(signed);
                    *proof = Some(signed.clone());
                    self.entry.stage =
                        Stage::Delivering { outcome: outcome.clone(), proof: Some(signed.clone()) };
                    self.save().await;
                    signed
                }
                Err(why) => return Ok(failing(failure("proof_unsigned", &why))),
            },
        };
        self.ask_payment(&signed).await.map_err(|why| (why, None))?;
        self.place.proven();
        match self.shared.relay.prove(&signed).await {
            Ok(()) => {
                tracing::info!(attempt = %self.name(), "the relay has the proof");
                self.entry.attempt_token.clear();
                Ok(Next::Stage(Stage::Done { outcome: outcome.clone(), at: now() }))
            }
            Err(RelayError::ResultMissing) => {
                *uploaded = false;
                Err((RelayError::ResultMissing.to_string(), None))
            }
            Err(RelayError::Later { why, after }) => Err((why, after)),
            Err(RelayError::Never(answer)) if self.is_early(&answer) => Err((answer.to_string(), None)),
            Err(RelayError::Never(answer)) => {
                tracing::warn!(attempt = %self.name(), %answer, "the relay refuses the proof");
                if self.money().is_some() {
                    // The chain decides; the node keeps the result.
                    return Ok(Next::Stage(Stage::Done { outcome: outcome.clone(), at: now() }));
                }
                // Where the proof itself is at fault the attempt is still ours, and somebody else may do better.
                let is_ours = answer.status == StatusCode::BAD_REQUEST;
                Ok(if is_ours {
                    failing(failure("proof_refused", &answer.to_string()))
                } else {
                    Next::Forget
                })
            }
        }
    }

    /// As [`Self::upload`], while the lease on chain leaves time for it: the chain waits for no relay, and the result is handed in after
    /// the proof where it was not before. Says whether the relay has it.
    async fn bring(&self, outcome: &ComputeOutcome, proven: bool) -> Result<bool, UploadError> {
        let upload = self.upload(outcome);
        let uploaded = match self.pressed_in().await.filter(|_| !proven) {
            Some(left) => tokio::time::timeout(left, upload).await.unwrap_or_else(|_| {
                Err(UploadError::Later("there is no time left to upload the result".to_owned(), None))
            }),
            None => upload.await,
        };
        match uploaded {
            Ok(()) => Ok(true),
            Err(UploadError::Later(why, _)) if !proven && self.pressed_in().await == Some(Duration::ZERO) => {
                tracing::warn!(attempt = %self.name(), why, "proving before the relay has the result");
                Ok(false)
            }
            // What is proven on chain is not given up.
            Err(UploadError::Never(failure)) if proven && self.money().is_some() => {
                Err(UploadError::Later(failure.message, None))
            }
            Err(error) => Err(error),
        }
    }

    /// Sees to it that the relay has the result's bytes. An upload that breaks off goes on at once for as long as it gets further.
    async fn upload(&self, outcome: &ComputeOutcome) -> Result<(), UploadError> {
        let (digest, token) = (&outcome.result_hash, &self.entry.attempt_token);
        let (relay, bytes) = (&self.shared.relay, outcome.result_bytes);
        let Some(mut came) = relay.lacks(digest, token).await? else { return Ok(()) };
        loop {
            // A relay that has other bytes than these is sent all.
            let from = if came < bytes { came } else { 0 };
            let source = self.result(bytes).await?;
            let Err(broken) = relay.store(digest, token, bytes, from, source).await else { return Ok(()) };
            let RelayError::Later { .. } = broken else { return Err(broken.into()) };
            match relay.lacks(digest, token).await {
                Ok(None) => return Ok(()),
                Ok(Some(further)) if further > from => came = further,
                Ok(Some(_)) | Err(_) => return Err(broken.into()),
            }
            tracing::debug!(attempt = %self.name(), came, bytes, "the upload broke off, and goes on");
        }
    }

    /// The result's bytes, from the node.
    async fn result(&self, bytes: u64) -> Result<Response, UploadError> {
        let patience = RelayClient::transfer_patience(bytes);
        let result = self.shared.node.result(&self.entry.key().task_id, patience).await;
        result.map_err(|error| match error {
            NodeError::Unknown => {
                UploadError::Never(failure("result_lost", "the compute node lost the result"))
            }
            NodeError::Token(_) | NodeError::Unreachable(_) | NodeError::Refused(_) => {
                UploadError::Later(error.to_string(), None)
            }
        })
    }

    fn prove(&self, outcome: &ComputeOutcome) -> Result<SignedMutation<ComputeProof>, String> {
        let key = self.entry.key();
        let proof = ComputeProof {
            task_id: key.task_id,
            provider: self.shared.wallet().address(),
            attempt: key.attempt,
            model_hash: outcome.model_hash,
            input_hash: outcome.input_hash,
            result_hash: outcome.result_hash,
            result_cid: artifact(&outcome.result_hash).map_err(|error| error.to_string())?,
            started_at: outcome.started_at,
            finished_at: outcome.finished_at,
            gpu_name: gpu_name(self.shared.config.gpu.name.as_ref(), outcome),
        };
        self.sign(&proof)
    }

    /// Tells the relay that there is no result, and why.
    pub(crate) async fn give_up(&self, failure: FailureView) -> Next {
        tracing::warn!(
            attempt = %self.name(), code = failure.code, message = failure.message, "the attempt is given up"
        );
        self.leave_money(failure.clone()).await;
        let key = self.entry.key();
        let mut message = FailTask {
            task_id: key.task_id,
            provider: self.shared.wallet().address(),
            attempt: key.attempt,
            code: failure.code,
            message: failure.message,
            issued_at: now(),
        };
        let mut backoff = self.shared.config.timing.backoff();
        let mut signed = None;
        while !self.is_forlorn() {
            if signed.is_none() || now().since(message.issued_at) > RESIGN_AFTER_SECS {
                message.issued_at = now();
                signed = match self.sign(&message) {
                    Ok(signed) => Some(signed),
                    Err(error) => {
                        tracing::error!(attempt = %self.name(), error, "its failure cannot be signed");
                        return Next::Forget;
                    }
                };
            }
            let Some(fail) = &signed else { return Next::Forget };
            let (why, after) = match self.shared.relay.fail(fail).await {
                Ok(()) => return Next::Forget,
                Err(RelayError::Never(answer)) if self.is_early(&answer) => (answer.to_string(), None),
                Err(RelayError::Never(answer)) => {
                    tracing::info!(attempt = %self.name(), %answer, "the relay has moved on");
                    return Next::Forget;
                }
                Err(RelayError::Later { why, after }) => (why, after),
                Err(error @ RelayError::ResultMissing) => (error.to_string(), None),
            };
            tracing::debug!(attempt = %self.name(), why, "the failure is not told yet");
            tokio::time::sleep(backoff.next_delay().max(after.unwrap_or_default())).await;
        }
        Next::Forget
    }

    /// Whether the relay may only not have noted yet that the attempt was taken: work that ends at once is handed in before.
    fn is_early(&self, answer: &Answer) -> bool {
        answer.code == ErrorCode::StaleAttempt.as_str()
            && self.begun.elapsed() < self.shared.config.timing.noting
    }

    fn sign<M: Message>(&self, message: &M) -> Result<SignedMutation<M>, String> {
        let signed = self.shared.wallet().sign(message, &self.entry.domain);
        signed.map(SignedMutation::from).map_err(|error| error.to_string())
    }
}

fn artifact(digest: &ContentHash) -> Result<Reference, ParseError> {
    format!("artifact://{digest}").parse()
}
