//! Evidence as a relay writes it holds, and carries the provider's word for its session.

use reqwest::{Method, StatusCode};
use rpc::evidence::{Evidence, verify};
use taskmarket::{Status, Word};
use wallet::Wallet;

use crate::agent::{Agent, metadata};
use crate::rig::{Rig, answer, assert_error};
use crate::work::{cancel, prove};

async fn evidence_of(rig: &Rig, id: &str) -> Evidence {
    let (status, value) = rig.get(&format!("/v1/tasks/{id}/evidence")).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    serde_json::from_value(value).unwrap()
}

#[tokio::test]
async fn a_delivered_result_is_proven_by_signatures() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let mut agent = Agent::connect(&rig).await;
    let id = rig.publish_new(&wallet).await;
    let taken = agent.next().await;
    rig.wait_for(&id, "accepted").await;
    prove(&rig, &agent, &taken).await;

    let evidence = evidence_of(&rig, &id).await;
    let report = verify(&evidence).unwrap();
    assert_eq!((report.task_id.to_string(), report.status), (id, Status::Submitted));
    assert_eq!((evidence.relay_id.as_str(), evidence.events.len()), ("test-1", 3));
    let [session] = &evidence.sessions[..] else { panic!("{:?}", evidence.sessions) };
    assert_eq!((&session.session_id, session.provider), (&agent.hello.session_id, agent.wallet.address()));
    let registration = session.registration.as_ref().unwrap();
    assert_eq!(registration.mutation.nonce, agent.hello.nonce);
    assert_eq!(session.metadata, serde_json::to_string(&metadata()).unwrap());
    let by_provider = |text: &str| {
        report.statements.iter().any(|statement| {
            statement.word == Word::Signature
                && statement.signer == Some(agent.wallet.address())
                && statement.text.contains(text)
        })
    };
    assert!(
        by_provider("took attempt 1") && by_provider("delivered result") && by_provider("registered host")
    );
    rig.stop().await;
}

#[tokio::test]
async fn a_task_that_nobody_took_has_no_sessions() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let id = rig.publish_new(&wallet).await;
    cancel(&rig, &wallet, &id).await;
    let evidence = evidence_of(&rig, &id).await;
    assert_eq!(verify(&evidence).unwrap().status, Status::Cancelled);
    assert!(evidence.sessions.is_empty() && evidence.chain.is_empty());
    let stranger = rig.new_key(&["tasks:read"]).await;
    let path = format!("/v1/tasks/{id}/evidence");
    assert_error(&answer(rig.bare(Method::GET, &path).bearer_auth(&stranger)).await, 403, "forbidden");
    assert_error(&answer(rig.bare(Method::GET, &path)).await, 401, "invalid_api_key");
    rig.stop().await;
}
