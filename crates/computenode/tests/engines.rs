//! Engines behind a node: a hostile fake in this process, and a real one that the node starts itself.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use computenode::engines::{EngineTiming, EnginesConfig};
use computenode::{Config, Node};
use futures_util::StreamExt;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use support::engine::{FakeEngine, Keeps, real_engine};
use support::hangs_up::HangsUp;
use support::http::{Api, ended, task_id};
use support::node::args;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);
const FAKE: &str = "fake-q4_0";

struct Running {
    api: Api,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Running {
    /// A node with engines, once it offers `model`.
    async fn start(folder: &Path, flags: &[&str], model: &str) -> Self {
        let running = Self::begin(folder, flags).await;
        running.offers(model, true).await;
        running
    }

    /// A node with engines, whatever it offers.
    async fn begin(folder: &Path, flags: &[&str]) -> Self {
        let config: Config = args(folder, flags).into();
        let timing = EngineTiming {
            probe: Duration::from_millis(100),
            restart: Duration::from_millis(50),
            absence: Duration::from_secs(3),
            ..EngineTiming::default()
        };
        let engines = EnginesConfig { timing, ..config.engines };
        let node = Node::build(Config { engines, ..config }).await.unwrap();
        let token = std::fs::read_to_string(folder.join("data/compute-token")).unwrap();
        let api = Api::new(node.local_addr(), token.trim());
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(node.run(shutdown.clone()));
        Self { api, shutdown, serving }
    }

    /// Waits until the node offers a model, or does not any more.
    async fn offers(&self, model: &str, wanted: bool) -> Value {
        let waiting = async {
            loop {
                let (_, report) = self.api.json(Method::GET, "/status", None).await;
                let offer = report["models"].as_array().unwrap().iter().find(|offer| offer["id"] == model);
                if offer.is_some() == wanted {
                    return offer.cloned().unwrap_or_default();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("{model} offered: {wanted} never came"))
    }

    async fn complete(&self, body: Value) -> Response {
        self.api.send(Method::POST, "/v1/completions", Some(&body)).await
    }

    async fn batch(&self, folder: &Path, attempt: u32, model: &str, input: &str, params: &str) -> Value {
        let path = folder.join("batch.jsonl");
        std::fs::write(&path, input).unwrap();
        let (nobody, nothing) = (format!("0x{}", "00".repeat(20)), "00".repeat(32));
        let request = json!({
            "task_id": task_id(1), "attempt": attempt,
            "task": {
                "requester": nobody, "model_cid": format!("model://{model}"), "model_hash": nothing,
                "input_cid": format!("file://{}", path.display()), "input_hash": nothing,
                "config": {
                    "runtime": "openai", "params": params, "gpu_type": "", "gpu_count": 0, "min_vram": 0,
                    "max_duration": 60, "max_attempts": 3,
                },
                "token": nobody, "budget": "0", "provider_stake": "0", "dispute_bond": "0",
                "deadline": "2100-01-01T00:00:00Z", "dispute_window": 86400, "arbiter_window": 604800,
                "arbiter": nobody, "salt": format!("0x{nothing}"),
            },
            "relay_url": "http://127.0.0.1:1", "attempt_token": "attempt-token",
        });
        let (status, body) = self.api.json(Method::POST, "/compute", Some(&request)).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
        body
    }

    async fn result(&self) -> Vec<Value> {
        let status = ended(&self.api, 1).await;
        assert_eq!(status["phase"], "done", "{status}");
        let text = self.api.text(&format!("/result/{}", task_id(1))).await;
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.serving).await.unwrap().unwrap().unwrap();
    }
}

async fn code(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

fn line(id: usize, body: &Value) -> String {
    format!(
        "{}\n",
        json!({ "custom_id": id.to_string(), "method": "POST", "url": "/v1/completions", "body": body })
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn offers_say_what_is_in_memory_where_engines_tell() {
    for (owner, name) in [("library", "ollama"), ("organization_owner", "lm-studio")] {
        let (folder, fake) = (tempfile::tempdir().unwrap(), FakeEngine::start().await);
        let keeps = |first, second, tells| {
            let models = vec![("first", first), ("second", second)];
            *fake.seen.keeps.lock().unwrap() = Some(Keeps { owner, models, tells });
        };
        keeps(true, false, true);
        let node = Running::start(folder.path(), &["--engine", &fake.flag(2)], "second").await;
        let said = async |first: Value, second: Value| {
            let waiting = async {
                loop {
                    let offers = [node.offers("first", true).await, node.offers("second", true).await];
                    assert_eq!(offers[0]["engine"], name);
                    if (&offers[0]["warm"], &offers[1]["warm"]) == (&first, &second) {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let waited = tokio::time::timeout(PATIENCE, waiting).await;
            waited.unwrap_or_else(|_| panic!("{name}: {first} and {second} never came"));
        };
        said(json!(true), json!(false)).await;
        // What else was learnt is not asked again; this is.
        keeps(false, true, true);
        said(json!(false), json!(true)).await;
        keeps(false, false, false);
        said(Value::Null, Value::Null).await;
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_two_engines_have_is_asked_where_it_is_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (cold, warm) = (FakeEngine::start().await, FakeEngine::start().await);
    for (fake, loaded) in [(&cold, false), (&warm, true)] {
        let models = vec![("both", loaded)];
        *fake.seen.keeps.lock().unwrap() = Some(Keeps { owner: "library", models, tells: true });
    }
    // The cold one has more slots, so that it would be asked first.
    let flags = [format!("a=http://{},slots=4", cold.addr), format!("b=http://{},slots=2", warm.addr)];
    let node = Running::start(folder.path(), &["--engine", &flags[0], "--engine", &flags[1]], "both").await;
    let waiting = async {
        while node.offers("both", true).await["slots"] != 6 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    assert_eq!(node.offers("both", true).await["warm"], true);
    for prompt in ["one", "two"] {
        let answer = node.complete(json!({ "model": "both", "prompt": prompt })).await;
        assert_eq!(answer.status(), StatusCode::OK);
        answer.bytes().await.unwrap();
    }
    assert_eq!((cold.seen.prompts.lock().unwrap().len(), warm.seen.prompts.lock().unwrap().len()), (0, 2));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_pass_to_the_engine_of_their_model() {
    let (folder, fake) = (tempfile::tempdir().unwrap(), FakeEngine::start().await);
    let node = Running::start(folder.path(), &["--engine", &fake.flag(2)], FAKE).await;
    let offer = node.offers(FAKE, true).await;
    assert_eq!(
        (&offer["engine"], &offer["quantization"], &offer["context_tokens"], &offer["slots"]),
        (&json!("fake"), &json!("q4_0"), &json!(4096), &json!(2))
    );
    let (_, models) = node.api.json(Method::GET, "/v1/models", None).await;
    assert_eq!(models["data"][0]["id"], FAKE);

    let request = json!({ "model": FAKE, "prompt": "é", "unknown_field": [1] });
    let answer: Value = node.complete(request.clone()).await.json().await.unwrap();
    assert_eq!(answer["choices"][0]["text"], "you said \"é\"");
    assert_eq!(answer["length"], request.to_string().len(), "the body came as it was");
    assert!(!fake.seen.headers.lock().unwrap().contains_key("authorization"), "the node's token stays here");

    let streamed = node.complete(json!({ "model": FAKE, "behave": "stream" })).await;
    assert_eq!(streamed.headers()["content-type"], "text/event-stream");
    assert_eq!(streamed.text().await.unwrap().matches("data: ").count(), 10);

    let unknown = node.complete(json!({ "model": "gpt-9" })).await;
    assert_eq!(code(unknown).await, (404, "model_not_found".to_owned()));
    let large = node.complete(json!({ "model": FAKE, "prompt": "x".repeat(33 << 20) })).await;
    assert_eq!(code(large).await, (413, "payload_too_large".to_owned()));
    let nameless = node.complete(json!({ "prompt": "a" })).await;
    assert_eq!(code(nameless).await, (400, "malformed_request".to_owned()));
    let mut stranger = node.api.clone();
    stranger.token = Some("wrong".to_owned());
    let refused = stranger.send(Method::POST, "/v1/completions", Some(&json!({ "model": FAKE }))).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_too_long_is_no_failure_of_the_engine() {
    let (folder, fake) = (tempfile::tempdir().unwrap(), FakeEngine::start().await);
    let node = Running::start(folder.path(), &["--engine", &fake.flag(1)], FAKE).await;
    let words = "Requested tokens (20) exceed context window of 8";
    let error = json!({ "error": { "message": words, "type": "internal_server_error", "code": null } });
    let failed = node.complete(json!({ "model": FAKE, "behave": "fail", "error": error })).await;
    assert_eq!(failed.status(), StatusCode::BAD_REQUEST);
    let body: Value = failed.json().await.unwrap();
    let told = json!({
        "message": words, "type": "invalid_request_error", "code": "context_length_exceeded", "param": null,
    });
    assert_eq!(body["error"], told);

    // Any other failure passes as it is.
    let error = json!({ "error": { "message": "out of memory", "odd": [1] } });
    let failed = node.complete(json!({ "model": FAKE, "behave": "fail", "error": error })).await;
    assert_eq!(failed.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(failed.json::<Value>().await.unwrap(), error);
    let answer = node.complete(json!({ "model": FAKE, "prompt": "a" })).await;
    assert_eq!(answer.status(), StatusCode::OK, "the slot is free again");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_bounded_and_a_dropped_request_frees_its_own() {
    let (folder, fake) = (tempfile::tempdir().unwrap(), FakeEngine::start().await);
    let node = Running::start(folder.path(), &["--engine", &fake.flag(1)], FAKE).await;
    for behaviour in ["hang", "endless"] {
        let api = node.api.clone();
        let request = json!({ "model": FAKE, "behave": behaviour });
        let working = tokio::spawn(async move {
            let response = api.send(Method::POST, "/v1/completions", Some(&request)).await;
            // An endless answer is read until this is given up.
            response.bytes_stream().for_each(async |_| {}).await;
        });
        fake.open_is(1).await;
        let busy = node.complete(json!({ "model": FAKE, "prompt": "a" })).await;
        assert_eq!(busy.headers()["retry-after"], "1");
        assert_eq!(code(busy).await, (429, "engine_busy".to_owned()));
        working.abort();
        fake.open_is(0).await;
        let begun = Instant::now();
        while node.complete(json!({ "model": FAKE, "prompt": "a" })).await.status() != StatusCode::OK {
            assert!(begun.elapsed() < PATIENCE, "the slot never became free");
        }
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_answer_is_an_error_and_a_lost_engine_is_told() {
    let (folder, fake) = (tempfile::tempdir().unwrap(), FakeEngine::start().await);
    let node = Running::start(folder.path(), &["--engine", &fake.flag(1)], FAKE).await;
    let short = node.complete(json!({ "model": FAKE, "behave": "short" })).await;
    // Whether its head was on its way before the fault showed is a matter of time.
    let failed = short.status() == StatusCode::BAD_GATEWAY || short.bytes().await.is_err();
    assert!(failed, "a short answer must not pass for a whole one");
    let addr = fake.addr;
    drop(fake);
    node.offers(FAKE, false).await;
    let lost = node.complete(json!({ "model": FAKE, "prompt": "a" })).await;
    assert_eq!(code(lost).await, (502, "engine_unavailable".to_owned()));
    let again = FakeEngine::start_at(addr).await;
    node.offers(FAKE, true).await;
    let answer = node.complete(json!({ "model": FAKE, "prompt": "a" })).await;
    assert_eq!(answer.status(), StatusCode::OK);
    drop(again);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_loads_its_model_is_asked_until_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeEngine::start_as("127.0.0.1:0".parse().unwrap(), Some(0)).await;
    let node = Running::begin(folder.path(), &["--engine", &format!("fake=http://{}", fake.addr)]).await;
    // The third question shows that the first two were no answer.
    let mut asked = fake.seen.asked.subscribe();
    tokio::time::timeout(PATIENCE, asked.wait_for(|asked| *asked >= 3)).await.unwrap().unwrap();
    node.offers(FAKE, false).await;
    *fake.seen.slots.lock().unwrap() = Some(3);
    let offer = node.offers(FAKE, true).await;
    let told = (&offer["engine"], &offer["slots"], &offer["context_tokens"]);
    assert_eq!(told, (&json!("llama.cpp"), &json!(3), &json!(8192)));

    // The next one at its place has slots of its own.
    let addr = fake.addr;
    drop(fake);
    node.offers(FAKE, false).await;
    let _next = FakeEngine::start_as(addr, Some(5)).await;
    assert_eq!(node.offers(FAKE, true).await["slots"], 5);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_line_does_not_hide_an_engine_that_works() {
    let (folder, fake) = (tempfile::tempdir().unwrap(), FakeEngine::start().await);
    let node = Running::start(folder.path(), &["--engine", &fake.flag(2)], FAKE).await;
    let api = node.api.clone();
    let working = tokio::spawn(async move {
        api.send(Method::POST, "/v1/completions", Some(&json!({ "model": FAKE, "behave": "hang" }))).await
    });
    fake.open_is(1).await;
    let lines = [json!({ "behave": "short", "prompt": "s" }), json!({ "prompt": "a" })];
    let input: String = lines.iter().enumerate().map(|(id, body)| line(id, body)).collect();
    node.batch(folder.path(), 1, FAKE, &input, r#"{"concurrency":1}"#).await;
    let result = node.result().await;
    assert_eq!(result[0]["error"]["code"], "engine_failed");
    assert_eq!(result[1]["response"]["status_code"], 200);
    assert!(!working.is_finished(), "all the while it worked");
    working.abort();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_an_engine_closed_costs_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let engine = HangsUp::start().await;
    let node = Running::start(folder.path(), &["--engine", &format!("one={}", engine.url())], FAKE).await;
    let ask = json!({ "model": FAKE, "prompt": "again and again" });
    for _ in 0..5 {
        let answer = node.api.send(Method::POST, "/v1/completions", Some(&ask)).await;
        assert_eq!(answer.status(), StatusCode::OK, "{}", answer.text().await.unwrap());
    }
    assert!(engine.hung_up() > 0, "connections were kept");
    let lines: String = (0..5).map(|id| line(id, &ask)).collect();
    node.batch(folder.path(), 1, FAKE, &lines, r#"{"concurrency":1}"#).await;
    let result = node.result().await;
    assert!(result.iter().all(|line| line["response"]["status_code"] == 200), "{result:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_keeps_its_order_and_a_bad_line_its_error() {
    let (folder, fake) = (tempfile::tempdir().unwrap(), FakeEngine::start().await);
    let node = Running::start(folder.path(), &["--engine", &fake.flag(8)], FAKE).await;
    let mut input: String = (0..50).map(|id| line(id, &json!({ "prompt": id.to_string() }))).collect();
    input.push_str("{not json\n");
    input.push_str(&line(51, &json!({ "behave": "refuse", "prompt": "r" })));
    input.push_str(&line(52, &json!({ "behave": "garbage", "prompt": "g" })));
    input.push_str(&line(53, &json!({ "behave": "short", "prompt": "s" })));
    node.batch(folder.path(), 1, FAKE, &input, r#"{"concurrency":4}"#).await;
    let result = node.result().await;
    assert_eq!(result.len(), 54);
    for (id, line) in result.iter().take(50).enumerate() {
        assert_eq!(line["custom_id"], id.to_string());
        assert_eq!(line["response"]["status_code"], 200);
        assert_eq!(line["response"]["body"]["choices"][0]["text"], format!("you said \"{id}\""));
        assert_eq!(line["error"], Value::Null);
    }
    assert_eq!(
        (&result[50]["error"]["code"], &result[50]["response"]),
        (&json!("invalid_json"), &Value::Null)
    );
    assert_eq!(result[51]["response"]["status_code"], 400);
    assert_eq!(result[52]["error"]["code"], "invalid_response");
    assert_eq!(result[53]["error"]["code"], "engine_failed");
    let told = result[53]["error"]["message"].as_str().unwrap();
    assert!(!told.contains(&fake.addr.to_string()), "a stranger is told where the engine is: {told}");
    let most = *fake.seen.most.lock().unwrap();
    assert!((2..=4).contains(&most), "{most} requests at once");

    for (attempt, model, input, expected) in
        [(2, FAKE, "no jsonl", "bad_input"), (3, "gpt-9", "{\"prompt\":\"a\"}", "model_not_found")]
    {
        node.batch(folder.path(), attempt, model, input, "{}").await;
        assert_eq!(ended(&node.api, 1).await["failure"]["code"], expected);
    }
    drop(fake);
    node.offers(FAKE, false).await;
    node.batch(folder.path(), 4, FAKE, "{\"prompt\":\"a\"}", "{}").await;
    assert_eq!(ended(&node.api, 1).await["failure"]["code"], "engine_unavailable");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_attempt_goes_on_where_the_last_one_ended() {
    let (folder, fake) = (tempfile::tempdir().unwrap(), FakeEngine::start().await);
    let flags = ["--engine", &*fake.flag(1)];
    let lines = |last: Value| {
        let done: String = (0..20).map(|id| line(id, &json!({ "prompt": id.to_string() }))).collect();
        done + &line(20, &last)
    };
    let node = Running::start(folder.path(), &flags, FAKE).await;
    node.batch(folder.path(), 1, FAKE, &lines(json!({ "prompt": "20", "behave": "hang" })), "{}").await;
    let begun = Instant::now();
    while !fake.seen.prompts.lock().unwrap().contains_key("20") {
        assert!(begun.elapsed() < PATIENCE, "the last line never came");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.stop().await;

    let node = Running::start(folder.path(), &flags, FAKE).await;
    assert_eq!(ended(&node.api, 1).await["failure"]["code"], "node_restarted");
    node.batch(folder.path(), 2, FAKE, &lines(json!({ "prompt": "20" })), "{}").await;
    let result = node.result().await;
    assert_eq!(result.len(), 21);
    assert_eq!(result[7]["response"]["body"]["choices"][0]["text"], "you said \"7\"");
    let prompts = fake.seen.prompts.lock().unwrap().clone();
    assert!((0..20).all(|id: u32| prompts[&id.to_string()] == 1), "{prompts:?}");
    assert_eq!(prompts["20"], 2);
    let left = std::fs::read_dir(folder.path().join("data/partial")).unwrap().count();
    assert_eq!(left, 0, "nothing is kept of a task that is done");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_engine_is_started_used_restarted_and_ended() {
    let Some(engine) = real_engine() else { return };
    let folder = tempfile::tempdir().unwrap();
    let command = format!(
        "llama={} --model {{model}} --alias {{name}} --host 127.0.0.1 --port {{port}} --ctx-size 8192 --parallel 1 --threads 1",
        engine.join("llama-server").display()
    );
    let managed = format!("tiny=llama,model={}", engine.join("tiny.gguf").display());
    let flags = ["--engine-command", &*command, "--managed-engine", &*managed];
    let node = Running::start(folder.path(), &flags, "tiny").await;
    let message = json!([{ "role": "user", "content": "the task" }]);
    let chat = |stream: bool, tokens: u32| {
        json!({
            "model": "tiny", "messages": message, "max_tokens": tokens, "stream": stream, "temperature": 0,
            "logit_bias": { "2": -100 },
        })
    };
    let path = "/v1/chat/completions";
    let whole: Value = node.api.send(Method::POST, path, Some(&chat(false, 5))).await.json().await.unwrap();
    assert_eq!(whole["usage"]["completion_tokens"], 5, "{whole}");
    let streamed = node.api.send(Method::POST, path, Some(&chat(true, 5))).await.text().await.unwrap();
    assert!(
        streamed.ends_with("data: [DONE]\n\n") || streamed.ends_with("data: [DONE]\r\n\r\n"),
        "{streamed}"
    );

    // It works on one request at a time: what comes after a cancelled one would wait for all of its 8,000 tokens.
    let long = node.api.send(Method::POST, path, Some(&chat(true, 8000))).await;
    let mut long = long.bytes_stream();
    long.next().await.unwrap().unwrap();
    let busy = node.api.send(Method::POST, path, Some(&chat(false, 1))).await;
    assert_eq!(code(busy).await, (429, "engine_busy".to_owned()));
    drop(long);
    let begun = Instant::now();
    loop {
        let next = node.api.send(Method::POST, path, Some(&chat(false, 1))).await;
        if next.status() == StatusCode::OK {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "the slot never became free: {}", next.text().await.unwrap());
    }
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "the cancelled request went on: {:?}",
        begun.elapsed()
    );

    let input: String = (0..50).map(|id| line(id, &json!({ "prompt": "the", "max_tokens": 2 }))).collect();
    node.batch(folder.path(), 1, "tiny", &input, "{}").await;
    let result = node.result().await;
    assert_eq!(result.len(), 50);
    assert!(
        result.iter().all(|line| line["response"]["body"]["usage"]["prompt_tokens"].is_u64()),
        "{}",
        result[0]
    );

    let note = folder.path().join("data/engines/tiny.pid");
    let pid = || std::fs::read_to_string(&note).ok()?.split_once(' ')?.0.parse::<i32>().ok();
    let first = pid().unwrap();
    let cut = node.api.send(Method::POST, path, Some(&chat(true, 8000))).await;
    let mut cut = cut.bytes_stream();
    cut.next().await.unwrap().unwrap();
    std::process::Command::new("kill").args(["-9", &first.to_string()]).status().unwrap();
    let mut error = None;
    while let Some(chunk) = cut.next().await {
        error = chunk.err();
    }
    assert!(error.is_some(), "a stream that was cut must not end as if it were whole");
    let begun = Instant::now();
    while node.api.send(Method::POST, path, Some(&chat(false, 1))).await.status() != StatusCode::OK {
        assert!(begun.elapsed() < PATIENCE, "the engine never came back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let second = pid().unwrap();
    assert_ne!(first, second);
    node.stop().await;
    assert!(!Path::new(&format!("/proc/{second}")).exists(), "the engine outlives its node");
    assert!(!note.exists());
}
