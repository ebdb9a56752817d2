//! Which models there are, who may ask them, and what is said of those that there are not.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use rpc::inference::InferenceKind;
use serde_json::json;
use tempfile::TempDir;

use crate::engine::{COMPLETION, Engine, Play, Script, delta, offer};
use crate::passing::ask;
use crate::rig::{Rig, answer, assert_error};

#[tokio::test]
async fn models_are_listed_while_they_are_served() {
    let rig = Rig::start().await;
    let (status, none) = rig.get("/v1/models").await;
    assert_eq!((status, &none), (StatusCode::OK, &json!({ "object": "list", "data": [] })));
    let mut script = Script::new(Play::Json(200, COMPLETION.to_owned()));
    let mut cheap = offer("meta/llama-3");
    cheap.prompt_price = "1".parse().unwrap();
    script.offers = vec![cheap, offer("zorai-demo")];
    let engine = Engine::start(&rig, script.clone()).await;
    script.offers[0] = offer("meta/llama-3");
    let other = Engine::start(&rig, script).await;
    let (_, list) = rig.get("/v1/models").await;
    let ids: Vec<_> =
        list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["meta/llama-3", "zorai-demo"]);
    let (status, model) = rig.get("/v1/models/meta/llama-3").await;
    assert_eq!((status, &model), (StatusCode::OK, &list["data"][0]));
    assert_eq!(
        (&model["hosts"], &model["prompt_price"], &model["context_tokens"]),
        (&json!(2), &json!("1"), &json!(4096))
    );
    assert_eq!(rig.get("/v1/models/meta%2Fllama-3").await.0, StatusCode::OK);
    let missing = rig.get("/v1/models/zorai-dmeo").await;
    assert_error(&missing, 404, "model_not_found");
    assert!(missing.1["error"]["message"].as_str().unwrap().contains("zorai-demo"), "{}", missing.1);

    // A model that a host no longer serves goes at its next word, and all of them with their last host.
    engine.offers.send(vec![]).unwrap();
    other.cut().await;
    let gone = async {
        while rig.get("/v1/models").await.1 != none {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::rig::PATIENCE, gone).await.unwrap();
    let unserved = answer(ask(&rig)).await;
    assert_error(&unserved, 503, "no_provider_available");
    rig.stop().await;
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_with_the_reason() {
    let rig = Rig::start().await;
    let mut script = Script::new(Play::Json(200, COMPLETION.to_owned()));
    script.offers[0].kinds = vec![InferenceKind::Chat];
    let engine = Engine::start(&rig, script).await;
    let post =
        async |path: &str, body: serde_json::Value| answer(rig.request(Method::POST, path).json(&body)).await;
    let chat = "/v1/chat/completions";
    let unknown = post(chat, json!({ "model": "zorai-demp" })).await;
    assert_error(&unknown, 404, "model_not_found");
    assert!(
        unknown.1["error"]["message"].as_str().unwrap().contains("did you mean zorai-demo"),
        "{}",
        unknown.1
    );
    assert_error(&post("/v1/embeddings", json!({ "model": "zorai-demo" })).await, 400, "invalid_field");
    assert_error(&post(chat, json!({ "messages": [] })).await, 400, "invalid_field");
    assert_error(&post(chat, json!({ "model": "zorai-demo", "stream": 1 })).await, 400, "malformed_request");
    for preferences in [
        json!({ "ignore": [engine.provider()] }),
        json!({ "only": ["0x00000000000000000000000000000000000000aa"] }),
        json!({ "order": ["0x00000000000000000000000000000000000000aa"], "allow_fallbacks": false }),
        json!({ "max_price": { "completion": "2999999" } }),
        json!({ "quantizations": ["fp16"] }),
    ] {
        let refused = post(chat, json!({ "model": "zorai-demo", "provider": preferences })).await;
        assert_error(&refused, 503, "no_provider_available");
    }
    for preferences in [
        json!({ "only": [engine.provider()], "order": [engine.provider()], "allow_fallbacks": false }),
        json!({ "max_price": { "prompt": "2000000", "completion": "3000000" }, "quantizations": ["Q4_K_M"] }),
        json!({ "sort": "price" }),
        json!({ "sort": "throughput", "preferred_max_latency": 0.001 }),
        json!({ "sort": "latency" }),
    ] {
        let (status, _) = post(chat, json!({ "model": "zorai-demo", "provider": preferences })).await;
        assert_eq!(status, StatusCode::OK, "{preferences}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn keys_need_the_scope() {
    let rig = Rig::start().await;
    let key = rig.other_key().await;
    for (method, path) in
        [(Method::GET, "/v1/models"), (Method::GET, "/v1/models/m"), (Method::POST, "/v1/embeddings")]
    {
        assert_error(&answer(rig.bare(method.clone(), path)).await, 401, "invalid_api_key");
        assert_error(&answer(rig.bare(method, path).bearer_auth(&key)).await, 403, "forbidden");
    }
    let key = rig.new_key(&["inference"]).await;
    let list = answer(rig.bare(Method::GET, "/v1/models").bearer_auth(&key)).await;
    assert_eq!(list.0, StatusCode::OK);
    rig.stop().await;
}

#[tokio::test]
async fn requests_wait_for_a_slot_as_long_as_they_may() {
    let rig = Rig::start().await;
    let mut script = Script::new(Play::Stall(vec![delta("a")]));
    script.offers[0].slots = 1;
    let mut engine = Engine::start(&rig, script).await;
    let mut first = ask(&rig).send().await.unwrap();
    first.chunk().await.unwrap().unwrap();
    let at_once = answer(ask(&rig).header("x-queue-timeout", "0")).await;
    assert_error(&at_once, 503, "no_provider_available");
    let begun = Instant::now();
    assert_error(&answer(ask(&rig).header("x-queue-timeout", "0.3")).await, 503, "no_provider_available");
    assert!(begun.elapsed() >= Duration::from_millis(300));

    engine.play.send(Play::Json(200, COMPLETION.to_owned())).unwrap();
    let waiting = tokio::spawn(ask(&rig).header("x-queue-timeout", "30").send());
    // The other one waits for much longer than this one may.
    assert_error(&answer(ask(&rig).header("x-queue-timeout", "0.2")).await, 503, "no_provider_available");
    engine.sees().await;
    drop(first);
    let served = waiting.await.unwrap().unwrap();
    assert_eq!(served.status(), StatusCode::OK);
    let queued: u64 = served.headers()["x-zorai-queue-ms"].to_str().unwrap().parse().unwrap();
    assert!(queued < 30_000);
    rig.stop().await;
}

#[tokio::test]
async fn a_host_that_says_it_is_busy_is_waited_for() {
    let rig = Rig::start().await;
    let busy = || Play::Json(429, "{}".to_owned());
    let mut engine = Engine::start(&rig, Script::new(busy())).await;
    let at_once = answer(ask(&rig).header("x-queue-timeout", "0")).await;
    assert_error(&at_once, 503, "no_provider_available");
    assert!(at_once.1["error"]["message"].as_str().unwrap().contains("busy"), "{}", at_once.1);
    engine.sees().await;
    let begun = Instant::now();
    assert_error(&answer(ask(&rig).header("x-queue-timeout", "0.3")).await, 503, "no_provider_available");
    assert!(begun.elapsed() >= Duration::from_millis(300));
    // At the beginning, after 100 ms, after 200 more, at the end, and whenever it says what it serves, which is every 200 ms.
    let mut asked = 0;
    while engine.seen.try_recv().is_ok() {
        asked += 1;
    }
    assert!((2..=8).contains(&asked), "it was asked {asked} times");

    // It waits though nothing was said of waiting, and no breaker opens.
    let waiting = tokio::spawn(ask(&rig).send());
    for _ in 0..3 {
        engine.sees().await;
    }
    engine.play.send(Play::Json(200, COMPLETION.to_owned())).unwrap();
    let served = waiting.await.unwrap().unwrap();
    assert_eq!(served.status(), StatusCode::OK);
    assert_eq!(served.headers()["x-zorai-attempts"], "1", "one host was asked");
    let queued: u64 = served.headers()["x-zorai-queue-ms"].to_str().unwrap().parse().unwrap();
    assert!((200..30_000).contains(&queued), "{queued}");

    // Where another one failed, the busy one is waited for still.
    engine.play.send(busy()).unwrap();
    let mut bad = Engine::start(&rig, Script::new(Play::Json(500, "{}".to_owned()))).await;
    while engine.seen.try_recv().is_ok() {}
    let waiting = tokio::spawn(ask(&rig).send());
    bad.sees().await;
    engine.sees().await;
    engine.play.send(Play::Json(200, COMPLETION.to_owned())).unwrap();
    let served = waiting.await.unwrap().unwrap();
    assert_eq!(
        (served.status(), &served.headers()["x-zorai-attempts"]),
        (StatusCode::OK, &"2".parse().unwrap())
    );
    rig.stop().await;
}

#[tokio::test]
async fn hosts_that_have_the_model_in_memory_come_first() {
    let rig = Rig::start().await;
    let script = |warm, price: &str| {
        let mut script = Script::new(Play::Json(200, COMPLETION.to_owned()));
        script.offers[0].warm = warm;
        script.offers[0].slots = 1;
        script.offers[0].prompt_price = price.parse().unwrap();
        script
    };
    // The cold one is cheaper, which decides between hosts that are as fast.
    let cold = Engine::start(&rig, script(Some(false), "1")).await;
    let told = Engine::start(&rig, script(Some(true), "2")).await;
    let silent = Engine::start(&rig, script(None, "3")).await;
    let mut count = 0;
    let mut served = async |provider: serde_json::Value| {
        count += 1;
        // Each is the beginning of another conversation.
        let messages = json!([{ "role": "user", "content": count.to_string() }]);
        let body = json!({ "model": "zorai-demo", "messages": messages, "provider": provider });
        let response = rig.request(Method::POST, "/v1/chat/completions").json(&body).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let by = response.headers()["x-zorai-provider"].to_str().unwrap().to_owned();
        response.bytes().await.unwrap();
        by
    };
    for _ in 0..20 {
        assert_ne!(served(json!({})).await, cold.provider());
    }
    assert_eq!(served(json!({ "sort": "price" })).await, cold.provider(), "the request says what counts");
    assert_eq!(served(json!({ "order": [cold.provider()] })).await, cold.provider());

    // Where there is no other, it serves.
    for warm in [&told, &silent] {
        warm.offers.send(Vec::new()).unwrap();
    }
    let taken = async { while served(json!({})).await != cold.provider() {} };
    tokio::time::timeout(crate::rig::PATIENCE, taken).await.unwrap();
    rig.stop().await;
}

#[tokio::test]
async fn a_conversation_leaves_a_host_that_unloaded_its_model() {
    let rig = Rig::start().await;
    let script = || Script::new(Play::Json(200, COMPLETION.to_owned()));
    let hosts = [Engine::start(&rig, script()).await, Engine::start(&rig, script()).await];
    let by = async || {
        let response = ask(&rig).send().await.unwrap();
        let by = response.headers()["x-zorai-provider"].to_str().unwrap().to_owned();
        response.bytes().await.unwrap();
        by
    };
    let first = by().await;
    for _ in 0..10 {
        assert_eq!(by().await, first, "it stays");
    }
    let host = hosts.iter().find(|host| host.provider() == first).unwrap();
    let mut offers = host.offers.borrow().clone();
    offers[0].warm = Some(false);
    host.offers.send(offers).unwrap();
    let left = async { while by().await == first {} };
    tokio::time::timeout(crate::rig::PATIENCE, left).await.unwrap();
    rig.stop().await;
}

#[tokio::test]
async fn few_requests_may_wait_at_once() {
    let dir = TempDir::new().unwrap();
    let rig = Rig::start_in(dir, |config| config.gateway.max_queued = 0).await;
    let mut script = Script::new(Play::Stall(vec![delta("a")]));
    script.offers[0].slots = 1;
    let _engine = Engine::start(&rig, script).await;
    let mut first = ask(&rig).send().await.unwrap();
    first.chunk().await.unwrap().unwrap();
    let refused = answer(ask(&rig).header("x-queue-timeout", "30")).await;
    assert_error(&refused, 503, "no_provider_available");
    assert!(
        refused.1["error"]["message"].as_str().unwrap().contains("too many requests wait"),
        "{}",
        refused.1
    );
    rig.stop().await;
}

#[tokio::test]
async fn a_conversation_returns_to_its_host() {
    let rig = Rig::start().await;
    let mut hosts = Vec::new();
    for _ in 0..4 {
        hosts.push(Engine::start(&rig, Script::new(Play::Json(200, COMPLETION.to_owned()))).await);
    }
    let mut turns =
        vec![json!({ "role": "system", "content": "be kind" }), json!({ "role": "user", "content": "hi" })];
    let mut served = std::collections::HashSet::new();
    for _ in 0..8 {
        let body = json!({ "model": "zorai-demo", "messages": turns });
        let response = rig.request(Method::POST, "/v1/chat/completions").json(&body).send().await.unwrap();
        served.insert(response.headers()["x-zorai-provider"].to_str().unwrap().to_owned());
        turns.push(json!({ "role": "user", "content": "and then?" }));
    }
    assert_eq!(served.len(), 1, "{served:?}");
    rig.stop().await;
}

/// Who answered a request that is no part of a conversation.
async fn served_by(rig: &Rig) -> String {
    let body = json!({ "model": "zorai-demo" });
    let response = rig.request(Method::POST, "/v1/chat/completions").json(&body).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    response.headers()["x-zorai-provider"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_better_host_is_the_cheaper_one_unless_it_failed_just_now() {
    let rig = Rig::start().await;
    let script = |price: &str| {
        let mut script = Script::new(Play::Json(200, COMPLETION.to_owned()));
        script.offers[0].prompt_price = price.parse().unwrap();
        script
    };
    let dear = Engine::start(&rig, script("9")).await;
    assert_eq!(served_by(&rig).await, dear.provider());
    // One that joins is asked at once, though nobody knows yet how fast it is.
    let cheap = Engine::start(&rig, script("1")).await;
    assert_eq!(served_by(&rig).await, cheap.provider());
    cheap.play.send(Play::Json(503, "{}".to_owned())).unwrap();
    assert_eq!(served_by(&rig).await, dear.provider());
    cheap.play.send(Play::Json(200, COMPLETION.to_owned())).unwrap();
    assert_eq!(served_by(&rig).await, dear.provider(), "who failed is not the first choice for a while");
    rig.stop().await;
}
