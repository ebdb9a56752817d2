//! Tasks that are done, and folders in which relays are killed and started again.

use reqwest::{Method, StatusCode};
use rpc::link::Assignment;
use taskmarket::{CancelTask, ComputeProof, ContentHash};
use wallet::Wallet;

use crate::agent::Agent;
use crate::rig::{Rig, now};

/// Stores a result of this attempt and proves it, which must work.
pub(crate) async fn prove(rig: &Rig, agent: &Agent, taken: &Assignment) {
    let result = b"the words are counted";
    let digest = artifact::Digest::of(result);
    let put = rig.bare(Method::PUT, &format!("/v1/artifacts/{digest}")).bearer_auth(&taken.attempt_token);
    assert!(put.body(result.to_vec()).send().await.unwrap().status().is_success());
    let proof = ComputeProof {
        task_id: taken.task_id,
        provider: agent.wallet.address(),
        attempt: taken.attempt,
        model_hash: ContentHash::UNPINNED,
        input_hash: ContentHash::UNPINNED,
        result_hash: digest.to_string().parse().unwrap(),
        result_cid: format!("artifact://{digest}").parse().unwrap(),
        started_at: now(),
        finished_at: now(),
        gpu_name: "CPU".to_owned(),
    };
    let id = taken.task_id.to_string();
    let (status, view) = rig.mutate(&agent.wallet, &id, "proof", &proof).await;
    assert_eq!((status, view["status"].as_str()), (StatusCode::OK, Some("submitted")), "{view}");
}

/// Withdraws a task, which must work.
pub(crate) async fn cancel(rig: &Rig, wallet: &Wallet, id: &str) {
    let cancel = CancelTask { task_id: id.parse().unwrap(), issued_at: now() };
    let (status, view) = rig.mutate(wallet, id, "cancel", &cancel).await;
    assert_eq!(status, StatusCode::OK, "{view}");
}
