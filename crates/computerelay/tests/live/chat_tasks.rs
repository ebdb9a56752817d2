//! Tasks on the chat endpoint: what to sign, and what comes back.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use taskmarket::{Domain, FailTask, Message as _, Task};
use wallet::Wallet;

use crate::agent::Agent;
use crate::rig::{PATIENCE, Rig, answer, assert_error, now};
use crate::work::{cancel, prove};

const CHAT: &str = "/v1/chat/completions";

/// A body that is a task of this wallet, and lacks its signature.
fn body(wallet: &Wallet, more: Value) -> Value {
    let mut body = json!({
        "model": "zorai-demo", "requester": wallet.address(), "budget": "10000000000000000",
        "model_cid": "https://signed.example/program.wasm", "input_cid": "https://signed.example/input.json",
        "config": { "max_duration": 1800, "max_attempts": 1 },
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn post(rig: &Rig, body: &Value) -> (StatusCode, Value) {
    answer(rig.request(Method::POST, CHAT).json(body)).await
}

/// The body with the signature that the relay asks for.
async fn signed(rig: &Rig, wallet: &Wallet, body: &Value) -> (Value, String) {
    let refused = post(rig, body).await;
    assert_error(&refused, 400, "signature_required");
    let task: Task = serde_json::from_value(refused.1["error"]["task"].clone()).unwrap();
    let signature = wallet.sign(&task, &Domain::UNSETTLED).unwrap().signature;
    let mut signed = body.clone();
    signed["signature"] = json!(signature);
    (signed, task.id(&Domain::UNSETTLED).to_string())
}

#[tokio::test]
async fn without_a_signature_it_says_all_that_there_is_to_sign() {
    let rig = Rig::start().await;
    // As the market was first described.
    let asked = json!({
        "model": "zorai-demo", "requester": "0x0000000000000000000000000000000000000001",
        "model_cid": "https://signed.example/model.bin", "input_cid": "https://signed.example/input.json",
        "budget": "10000000000000000", "config": { "gpu_type": "A100", "min_vram": 8192, "max_duration": 1800 },
    });
    let refused = post(&rig, &asked).await;
    assert_error(&refused, 400, "signature_required");
    let error = &refused.1["error"];
    assert_eq!((&error["param"], &error["type"]), (&json!("signature"), &json!("invalid_request_error")));
    let typed = &error["typed_data"];
    assert_eq!(typed["primaryType"], "Task");
    assert_eq!(typed["domain"]["name"], Domain::NAME);
    let fields: Vec<_> = typed["types"]["Task"]
        .as_array()
        .unwrap()
        .iter()
        .map(|field| format!("{} {}", field["type"].as_str().unwrap(), field["name"].as_str().unwrap()))
        .collect();
    assert!(Task::type_string().starts_with(&format!("Task({})", fields.join(","))), "{fields:?}");
    assert_eq!(
        (&typed["message"]["config"]["runtime"], &typed["message"]["config"]["gpuCount"]),
        (&json!("container"), &json!(1))
    );
    assert_eq!(rig.get("/v1/tasks").await.1["tasks"], json!([]), "nothing was published");

    let wallet = Wallet::random();
    for (change, param) in [
        (json!({ "requester": null }), "requester"),
        (json!({ "input_cid": null }), "input_cid"),
        (json!({ "model_cid": "ipfs://bafy" }), "config.runtime"),
        (json!({ "config": { "vram": 1 } }), "config.vram"),
        (json!({ "budget": 7 }), "budget"),
        (json!({ "signature": "0x00" }), "signature"),
        (json!({ "model": "m".repeat(257) }), "model"),
    ] {
        let (status, refused) = post(&rig, &body(&wallet, change)).await;
        assert_eq!((status.as_u16(), &refused["error"]["param"]), (400, &json!(param)), "{refused}");
    }
    let contract = json!({ "verifying_contract": "0x00000000000000000000000000000000000000aa" });
    assert_error(&post(&rig, &body(&wallet, contract)).await, 400, "unknown_domain");
    let (mut forged, _) = signed(&rig, &wallet, &body(&wallet, json!({}))).await;
    forged["budget"] = json!("1");
    assert_error(&post(&rig, &forged).await, 400, "invalid_signature");
    rig.stop().await;
}

#[tokio::test]
async fn a_signed_body_is_answered_with_the_tasks_result() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let mut agent = Agent::connect(&rig).await;
    let (asked, id) = signed(&rig, &wallet, &body(&wallet, json!({ "background": true }))).await;
    let response = rig.request(Method::POST, CHAT).json(&asked).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    assert_eq!(response.headers()["location"], format!("/v1/tasks/{id}").as_str());
    let at_once: Value = response.json().await.unwrap();
    assert_eq!((&at_once["zorai"]["task_id"], &at_once["choices"]), (&json!(id), &json!([])));

    // The same body without `background` waits for the same task.
    let mut waiting = asked.clone();
    waiting["background"] = json!(false);
    let request = tokio::spawn(answer(rig.request(Method::POST, CHAT).json(&waiting)));
    let taken = agent.next().await;
    rig.wait_for(&id, "accepted").await;
    prove(&rig, &agent, &taken).await;
    let (status, told) = request.await.unwrap();
    assert_eq!(status, StatusCode::OK, "{told}");
    let choice = &told["choices"][0];
    assert_eq!((&told["object"], &told["model"]), (&json!("chat.completion"), &json!("zorai-demo")));
    assert_eq!(
        choice["message"],
        json!({ "role": "assistant", "content": "the words are counted", "refusal": null })
    );
    assert_eq!(choice["finish_reason"], "stop");
    let zorai = &told["zorai"];
    assert_eq!((&zorai["task_id"], &zorai["status"]), (&json!(id), &json!("submitted")));
    assert_eq!(zorai["provider"], agent.wallet.address().to_string());
    let hash = zorai["result_hash"].as_str().unwrap();
    assert_eq!(zorai["result_cid"], format!("artifact://{hash}"));
    let result = rig.request(Method::GET, zorai["result_url"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(result.text().await.unwrap(), "the words are counted");

    // And once more, as a stream.
    waiting["stream"] = json!(true);
    let stream = rig.request(Method::POST, CHAT).json(&waiting).send().await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let text = stream.text().await.unwrap();
    let events: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    let [whole, last, "[DONE]"] = events[..] else { panic!("{text}") };
    let (whole, last): (Value, Value) =
        (serde_json::from_str(whole).unwrap(), serde_json::from_str(last).unwrap());
    assert_eq!(whole["choices"][0]["delta"]["content"], "the words are counted");
    assert_eq!(
        (&last["choices"][0]["finish_reason"], &last["zorai"]["result_hash"]),
        (&json!("stop"), &json!(hash))
    );

    // Others may not read what this key published.
    let other = rig.new_key(&["inference", "tasks:write"]).await;
    let theirs = answer(rig.bare(Method::POST, CHAT).bearer_auth(&other).json(&waiting)).await;
    assert_error(&theirs, 403, "forbidden");
    let reader = rig.new_key(&["inference"]).await;
    let theirs = answer(rig.bare(Method::POST, CHAT).bearer_auth(&reader).json(&waiting)).await;
    assert_error(&theirs, 403, "forbidden");
    rig.stop().await;
}

#[tokio::test]
async fn a_body_is_let_go_before_its_task_is_waited_for() {
    let dir = tempfile::TempDir::new().unwrap();
    let rig = Rig::start_in(dir, |config| {
        config.gateway.max_body_bytes = 1 << 20;
        config.gateway.max_bodies_bytes = 1 << 20;
    })
    .await;
    let wallet = Wallet::random();
    let (mut asked, id) =
        signed(&rig, &wallet, &body(&wallet, json!({ "messages": "x".repeat(900_000) }))).await;
    let first = tokio::spawn(answer(rig.request(Method::POST, CHAT).json(&asked)));
    let published = async { while rig.get(&format!("/v1/tasks/{id}")).await.0 != StatusCode::OK {} };
    tokio::time::timeout(PATIENCE, published).await.unwrap();
    // There is room for one such body, and the first one's has none of it any more.
    asked["background"] = json!(true);
    let second = post(&rig, &asked).await;
    assert_eq!(second.0, StatusCode::ACCEPTED, "{}", second.1);
    assert!(!first.is_finished(), "it waits for its task");
    first.abort();
    rig.stop().await;
}

#[tokio::test]
async fn what_becomes_of_the_request_is_nothing_to_the_task() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let (asked, id) = signed(&rig, &wallet, &body(&wallet, json!({}))).await;
    // Its client is in a hurry.
    let hurried = rig.request(Method::POST, CHAT).header("x-zorai-timeout-ms", "50").json(&asked);
    let response = hurried.send().await.unwrap();
    assert_eq!(response.headers()["location"], format!("/v1/tasks/{id}").as_str());
    assert!(!response.headers().contains_key("x-should-retry"), "the same body waits on");
    let late = (response.status(), response.json().await.unwrap());
    assert_error(&late, 504, "deadline_exceeded");
    let error = &late.1["error"];
    assert_eq!((&error["zorai"]["task_id"], &error["status"]), (&json!(id), &json!("open")));
    assert!(error["message"].as_str().unwrap().contains(&id), "{error}");
    // In a stream the same stands in its last event.
    let mut streamed = asked.clone();
    streamed["stream"] = json!(true);
    let hurried = rig.request(Method::POST, CHAT).header("x-zorai-timeout-ms", "50").json(&streamed);
    let text = hurried.send().await.unwrap().text().await.unwrap();
    let event: Value = serde_json::from_str(text.trim().strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(
        (&event["error"]["code"], &event["error"]["zorai"]["task_id"]),
        (&json!("deadline_exceeded"), &json!(id))
    );
    // Its client leaves.
    let gone = rig.request(Method::POST, CHAT).json(&asked).timeout(Duration::from_millis(50)).send().await;
    assert!(gone.unwrap_err().is_timeout());
    assert_eq!(rig.get(&format!("/v1/tasks/{id}")).await.1["status"], "open");

    // The relay ends.
    let waiting = rig.request(Method::POST, CHAT).json(&streamed).send().await.unwrap();
    rig.shutdown.cancel();
    let text = tokio::time::timeout(PATIENCE, waiting.text()).await.unwrap().unwrap();
    let event: Value = serde_json::from_str(text.trim().strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(
        (&event["error"]["code"], &event["error"]["zorai"]["task_id"]),
        (&json!("unavailable"), &json!(id))
    );
    rig.stop().await;
}

#[tokio::test]
async fn tasks_without_a_result_are_errors_that_need_no_retry() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let mut agent = Agent::connect(&rig).await;
    let (asked, id) = signed(&rig, &wallet, &body(&wallet, json!({}))).await;
    let request = tokio::spawn(rig.request(Method::POST, CHAT).json(&asked).send());
    let taken = agent.next().await;
    rig.wait_for(&id, "accepted").await;
    let fail = FailTask {
        task_id: taken.task_id,
        provider: agent.wallet.address(),
        attempt: taken.attempt,
        code: "bad_model".to_owned(),
        message: "no such thing".to_owned(),
        issued_at: now(),
    };
    let (status, _) = rig.mutate(&agent.wallet, &id, "fail", &fail).await;
    assert_eq!(status, StatusCode::OK);
    let response = request.await.unwrap().unwrap();
    assert_eq!(response.headers()["x-should-retry"], "false");
    let failed = (response.status(), response.json().await.unwrap());
    assert_error(&failed, 502, "task_failed");
    let error = &failed.1["error"];
    assert!(error["message"].as_str().unwrap().contains("bad_model: no such thing"), "{error}");
    assert_eq!((&error["status"], &error["zorai"]["task_id"]), (&json!("failed"), &json!(id)));
    drop(agent);

    let salt = json!({ "salt": format!("0x{}", "11".repeat(32)), "config": { "gpu_type": "H100", "runtime": "wasm" } });
    let (asked, id) = signed(&rig, &wallet, &body(&wallet, salt)).await;
    let request = tokio::spawn(answer(rig.request(Method::POST, CHAT).json(&asked)));
    let published = async { while rig.get(&format!("/v1/tasks/{id}")).await.0 != StatusCode::OK {} };
    tokio::time::timeout(PATIENCE, published).await.unwrap();
    cancel(&rig, &wallet, &id).await;
    let cancelled = request.await.unwrap();
    assert_error(&cancelled, 502, "task_failed");
    assert_eq!(cancelled.1["error"]["status"], "cancelled");

    let deadline = json!({ "deadline": now().plus(2), "config": { "gpu_type": "H100", "runtime": "wasm" } });
    let (asked, _) = signed(&rig, &wallet, &body(&wallet, deadline)).await;
    let expired = post(&rig, &asked).await;
    assert_error(&expired, 504, "task_expired");
    rig.stop().await;
}

#[tokio::test]
async fn under_an_idempotency_key_a_task_is_answered_once_too() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let mut agent = Agent::connect(&rig).await;
    let send = |key: &str, body: &Value| {
        let request = rig.request(Method::POST, CHAT).header("idempotency-key", key).json(body);
        async { request.send().await.unwrap() }
    };
    let asked = body(&wallet, json!({ "background": true }));
    // Who signs what the refusal shows may go on with the same key.
    assert_eq!(send("one", &asked).await.status(), StatusCode::BAD_REQUEST);
    let (signed, id) = signed(&rig, &wallet, &asked).await;
    let first = send("one", &signed).await;
    assert_eq!(first.status(), StatusCode::ACCEPTED);
    let first = first.text().await.unwrap();
    let taken = agent.next().await;
    rig.wait_for(&id, "accepted").await;
    let again = send("one", &signed).await;
    assert_eq!(
        (again.status(), &again.headers()["idempotency-replayed"]),
        (StatusCode::ACCEPTED, &"true".parse().unwrap())
    );
    assert_eq!(again.headers()["location"], format!("/v1/tasks/{id}").as_str());
    assert_eq!(again.text().await.unwrap(), first, "as it was then");
    assert_error(
        &answer(rig.request(Method::POST, CHAT).header("idempotency-key", "one").json(&asked)).await,
        422,
        "idempotency_mismatch",
    );

    // A stream that ends without the result is not kept; one with it is.
    let mut streamed = signed.clone();
    streamed["background"] = json!(false);
    streamed["stream"] = json!(true);
    let hurried = rig.request(Method::POST, CHAT).header("x-zorai-timeout-ms", "50");
    let hurried = hurried.header("idempotency-key", "two").json(&streamed).send().await.unwrap();
    assert!(hurried.text().await.unwrap().contains("deadline_exceeded"));
    prove(&rig, &agent, &taken).await;
    let first = send("two", &streamed).await;
    assert!(!first.headers().contains_key("idempotency-replayed"));
    let first = first.text().await.unwrap();
    assert!(first.contains("the words are counted"), "{first}");
    let again = send("two", &streamed).await;
    assert_eq!(again.headers()["idempotency-replayed"], "true");
    assert_eq!(again.headers()["content-type"], "text/event-stream");
    assert_eq!(again.text().await.unwrap(), first);
    rig.stop().await;
}
