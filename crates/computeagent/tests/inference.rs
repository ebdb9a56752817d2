//! Requests for inference over the real link, to a fake engine behind a scripted node, and the receipts that follow.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use computeagent::Prices;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use link::{ResponseBody, Session};
use rpc::inference::{InferenceKind, MODEL_HEADER, ModelOffer, RECEIPT_TRAILER};
use rpc::tasks::SignedMutation;
use support::*;
use taskmarket::{Amount, Domain, InferenceReceipt, Signed, U256};

fn offer_of(id: &str) -> ModelOffer {
    ModelOffer {
        id: id.to_owned(),
        engine: "llama.cpp".to_owned(),
        quantization: "q4_k_m".to_owned(),
        context_tokens: None,
        slots: 1,
        busy: 0,
        kinds: InferenceKind::ALL.to_vec(),
        warm: None,
        prompt_price: Amount::ZERO,
        completion_price: Amount::ZERO,
    }
}

async fn ask(session: &Session, path: &str, model: &str, body: &str) -> http::Response<ResponseBody> {
    let request = Request::post(path).header("x-request-id", "req-1").header(MODEL_HEADER, model);
    let request =
        request.header("content-type", "application/json").header("authorization", "Bearer relay's");
    let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
    soon("an answer", session.request(request)).await.unwrap()
}

/// The body and the trailers.
async fn whole(response: http::Response<ResponseBody>) -> (Vec<u8>, Option<HeaderMap>) {
    let collected = soon("the whole answer", response.into_body().collect()).await.unwrap();
    let trailers = collected.trailers().cloned();
    (collected.to_bytes().to_vec(), trailers)
}

fn receipt(trailers: &HeaderMap) -> InferenceReceipt {
    let text = trailers[RECEIPT_TRAILER].to_str().unwrap();
    let signed: SignedMutation<InferenceReceipt> = serde_json::from_str(text).unwrap();
    Signed::from(signed).verify(&Domain::UNSETTLED).expect("the provider signed it").message().clone()
}

async fn start(models: &[&str]) -> (World, Running, Session) {
    let mut world = World::new().await;
    world.node.report.lock().unwrap().models = models.iter().map(|id| offer_of(id)).collect();
    world.config.prices = ["*=3,4".parse().unwrap()].into_iter().collect::<Prices>();
    let agent = world.start();
    let (_, session) = world.connected().await;
    (world, agent, session)
}

#[tokio::test]
async fn an_answer_ends_with_a_receipt_over_its_exact_bytes() {
    let (world, agent, session) = start(&["tiny"]).await;
    let beat = Heartbeats::of(&session).await.until(|beat| !beat.models.is_empty()).await;
    assert_eq!(beat.models[0].prompt_price, Amount(U256::from(3)), "the operator's price");
    assert_eq!(beat.models[0].completion_price, Amount(U256::from(4)));

    for (kind, body, tokens) in [
        (InferenceKind::Chat, r#"{"answer":"json"}"#, (5, 7)),
        (InferenceKind::Completions, r#"{"answer":"sse"}"#, (0, 3)),
        (InferenceKind::Embeddings, r#"{"answer":"large"}"#, (5, 7)),
    ] {
        let response = ask(&session, kind.path(), "tiny", body).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["x-seen-model"], "tiny");
        let (bytes, trailers) = whole(response).await;
        let receipt = receipt(&trailers.expect("trailers"));
        assert_eq!(receipt.request_hash, hash(body.as_bytes()));
        assert_eq!(receipt.response_hash, hash(&bytes));
        assert_eq!((receipt.prompt_tokens, receipt.completion_tokens), tokens, "{body}");
        assert_eq!((receipt.request_id.as_str(), receipt.relay_id.as_str()), ("req-1", "hz-1"));
        assert_eq!((receipt.model.as_str(), receipt.engine.as_str()), ("tiny", "llama.cpp"));
        assert_eq!(receipt.quantization, "q4_k_m");
        assert!(receipt.started_at <= receipt.finished_at);
    }
    drop(world);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn failures_pass_as_they_are_and_have_no_receipt() {
    let (mut world, agent, session) = start(&["modèle"]).await;
    let refused = ask(&session, "/v1/chat/completions", "tiny", r#"{"answer":"busy"}"#).await;
    assert_eq!(
        (refused.status(), &refused.headers()["retry-after"]),
        (StatusCode::TOO_MANY_REQUESTS, &"9".parse().unwrap())
    );
    assert_eq!(whole(refused).await, (b"busy".to_vec(), None));

    let cut = ask(&session, "/v1/chat/completions", "tiny", r#"{"answer":"cut"}"#).await;
    // Whether its head was on its way before the fault showed is a matter of time.
    let failed = cut.status() == StatusCode::SERVICE_UNAVAILABLE;
    assert!(
        failed || soon("the end", cut.into_body().collect()).await.is_err(),
        "a cut answer is no whole one"
    );

    let request = Request::post("/v1/chat/completions").body(Full::new(Bytes::new())).unwrap();
    let nameless = soon("an answer", session.request(request)).await.unwrap();
    assert_eq!(nameless.status(), StatusCode::BAD_REQUEST);

    let odd = ask(&session, "/v1/chat/completions", "modèle", r#"{"answer":"json"}"#).await;
    assert_eq!(receipt(&whole(odd).await.1.unwrap()).model, "modèle");

    world.node_server.take().unwrap().stop().await;
    let away = ask(&session, "/v1/chat/completions", "tiny", "{}").await;
    assert_eq!(away.status(), StatusCode::SERVICE_UNAVAILABLE);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_request_that_is_dropped_is_dropped_at_the_node() {
    let (world, agent, session) = start(&["tiny"]).await;
    let mut open = world.node.open.subscribe();
    let endless = ask(&session, "/v1/chat/completions", "tiny", r#"{"answer":"endless"}"#).await;
    assert_eq!(*open.borrow_and_update(), 1);
    drop(endless);
    let closed = tokio::time::timeout(Duration::from_secs(5), open.wait_for(|open| *open == 0)).await;
    closed.expect("the node never heard of it").unwrap();
    agent.stop().await.unwrap();
}
