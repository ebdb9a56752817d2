//! The engine inside the node, with the toy model of this repository: as an OpenAI client sees it, against llama.cpp's
//! server, and with files that are none.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use computenode::engines::EnginesConfig;
use computenode::{Config, Node};
use futures_util::StreamExt;
use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use support::engine::real_engine;
use support::http::Api;
use support::node::args;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn toy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/zorai-demo.gguf")
}

fn toy_flag() -> String {
    format!("toy={},threads=1", toy().display())
}

struct Running {
    api: Api,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
    _folder: tempfile::TempDir,
}

impl Running {
    /// A node that offers these models.
    async fn start(flags: &[&str], models: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config: Config = args(folder.path(), flags).into();
        let program = Some(PathBuf::from(env!("CARGO_BIN_EXE_compute-node")));
        let engines = EnginesConfig { program, ..config.engines };
        let node = Node::build(Config { engines, ..config }).await.unwrap();
        let token = std::fs::read_to_string(folder.path().join("data/compute-token")).unwrap();
        let api = Api::new(node.local_addr(), token.trim());
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(node.run(shutdown.clone()));
        let running = Self { api, shutdown, serving, _folder: folder };
        for model in models {
            running.offer(model).await;
        }
        running
    }

    async fn offer(&self, model: &str) -> Value {
        let begun = Instant::now();
        loop {
            let (_, report) = self.api.json(Method::GET, "/status", None).await;
            let offer = report["models"].as_array().unwrap().iter().find(|offer| offer["id"] == model);
            if let Some(offer) = offer {
                return offer.clone();
            }
            assert!(begun.elapsed() < PATIENCE, "{model} is never offered");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ask(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.api.json(Method::POST, path, Some(&body)).await;
        assert_eq!(status, StatusCode::OK, "{body}: {answer}");
        answer
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.serving).await.unwrap().unwrap().unwrap();
    }
}

fn greeting(more: Value) -> Value {
    with(
        json!({ "model": "toy", "messages": [{ "role": "user", "content": "Who are you?" }], "temperature": 0 }),
        more,
    )
}

fn story(more: Value) -> Value {
    with(json!({ "model": "toy", "prompt": "The relay", "temperature": 0 }), more)
}

fn with(mut body: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("{more} is no object") };
    body.as_object_mut().unwrap().extend(more);
    body
}

/// The parts of a stream, which must be whole.
fn parts(stream: &str) -> Vec<Value> {
    let mut events: Vec<&str> = stream.split("\n\n").collect();
    assert_eq!(events.pop(), Some(""), "{stream}");
    assert_eq!(events.pop(), Some("data: [DONE]"), "{stream}");
    events.iter().map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_in_openais_shapes() {
    let node = Running::start(&["--model", &toy_flag()], &["toy"]).await;
    let offer = node.offer("toy").await;
    assert_eq!(
        (
            &offer["engine"],
            &offer["quantization"],
            &offer["context_tokens"],
            &offer["slots"],
            &offer["kinds"]
        ),
        (&json!("embedded"), &json!("q8_0"), &json!(1024), &json!(1), &json!(["chat", "completions"]))
    );

    let whole = node.ask(CHAT, greeting(json!({ "unknown_field": [1], "tools": [], "n": 1 }))).await;
    let (choice, usage) = (&whole["choices"][0], &whole["usage"]);
    let said = choice["message"]["content"].as_str().unwrap();
    assert!(said.contains("zorai-demo, a toy"), "{said}");
    assert_eq!((&whole["object"], &choice["finish_reason"]), (&json!("chat.completion"), &json!("stop")));
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
    assert!(count("completion_tokens") > 10 && count("prompt_tokens") > 10, "{usage}");

    let request = greeting(json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let streamed = node.api.send(Method::POST, CHAT, Some(&request)).await;
    assert_eq!(streamed.headers()["content-type"], "text/event-stream");
    let parts = parts(&streamed.text().await.unwrap());
    let (last, pieces) = parts.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), usage));
    assert!(
        pieces.iter().all(|piece| piece["usage"].is_null() && piece["object"] == "chat.completion.chunk")
    );
    assert_eq!(pieces[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    assert_eq!(pieces.last().unwrap()["choices"][0]["finish_reason"], "stop");
    let text =
        |piece: &Value| piece["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned();
    assert_eq!(pieces.iter().map(text).collect::<String>(), said);

    let in_parts = json!([{ "role": "user", "content": [{ "type": "text", "text": "Who are " }, { "type": "text", "text": "you?" }] }]);
    let same = node.ask(CHAT, greeting(json!({ "messages": in_parts }))).await;
    assert_eq!(same["choices"][0]["message"]["content"], said);

    let short = node.ask(COMPLETIONS, story(json!({ "max_tokens": 7 }))).await;
    let choice = &short["choices"][0];
    assert_eq!((&short["object"], &choice["finish_reason"]), (&json!("text_completion"), &json!("length")));
    assert_eq!(short["usage"]["completion_tokens"], 7);
    let text = choice["text"].as_str().unwrap();
    let (before, stop) = text.split_at(text.len() / 2);
    let stopped = node.ask(COMPLETIONS, story(json!({ "max_tokens": 7, "stop": [stop] }))).await;
    assert_eq!(
        (&stopped["choices"][0]["text"], &stopped["choices"][0]["finish_reason"]),
        (&json!(before), &json!("stop"))
    );

    let by_chance =
        |seed: u64| story(json!({ "max_tokens": 20, "temperature": 1.5, "top_p": 0.9, "seed": seed }));
    let first = node.ask(COMPLETIONS, by_chance(1)).await;
    assert_eq!(first["choices"], node.ask(COMPLETIONS, by_chance(1)).await["choices"]);
    assert_ne!(first["choices"], node.ask(COMPLETIONS, by_chance(2)).await["choices"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_does_not_do_is_refused_by_name() {
    let node = Running::start(&["--model", &toy_flag()], &["toy"]).await;
    for (more, code, param) in [
        (json!({ "n": 2 }), "unsupported_parameter", "n"),
        (json!({ "tools": [{ "type": "function" }] }), "unsupported_parameter", "tools"),
        (json!({ "response_format": { "type": "json_object" } }), "unsupported_parameter", "response_format"),
        (json!({ "logprobs": true }), "unsupported_parameter", "logprobs"),
        (json!({ "temperature": 3 }), "malformed_request", "temperature"),
        (json!({ "stop": ["a", "b", "c", "d", "e"] }), "malformed_request", "stop"),
        (json!({ "messages": [] }), "malformed_request", "messages"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
            "unsupported_content",
            "messages",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": "word ".repeat(2000) }] }),
            "context_length_exceeded",
            "messages",
        ),
    ] {
        let request = greeting(more);
        let (status, answer) = node.api.json(Method::POST, CHAT, Some(&request)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert_eq!(
            (&answer["error"]["code"], &answer["error"]["param"]),
            (&json!(code), &json!(param)),
            "{answer}"
        );
        assert_eq!(answer["error"]["type"], "invalid_request_error");
    }
    let (status, _) =
        node.api.json(Method::POST, COMPLETIONS, Some(&story(json!({ "prompt": [4_000_000] })))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let cut = node.ask(COMPLETIONS, story(json!({ "max_tokens": 1_000_000 }))).await;
    let total = cut["usage"]["total_tokens"].as_u64().unwrap();
    assert!(total <= 1024, "an answer ends with the context: {total}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_slot() {
    let node = Running::start(&["--model", &toy_flag()], &["toy"]).await;
    let endless = story(json!({ "stream": true, "max_tokens": 1000 }));
    let mut leaving = node.api.send(Method::POST, COMPLETIONS, Some(&endless)).await.bytes_stream();
    leaving.next().await.unwrap().unwrap();
    drop(leaving);
    let begun = Instant::now();
    // The node's slot, then the engine's own.
    let short = story(json!({ "max_tokens": 1 }));
    while node.api.send(Method::POST, COMPLETIONS, Some(&short)).await.status() != StatusCode::OK {
        assert!(begun.elapsed() < Duration::from_secs(5), "the slot never became free");
    }
    node.stop().await;
}

/// An engine without a node.
struct Alone {
    child: std::process::Child,
    base: String,
}

impl Alone {
    fn command(model: &Path, port: u16) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_compute-node"));
        command.args([
            "__engine",
            "--exit-with-stdin",
            "--name",
            "toy",
            "--port",
            &port.to_string(),
            "--model",
        ]);
        command.arg(model).env("RAYON_NUM_THREADS", "1").stdin(Stdio::piped());
        command
    }

    async fn start() -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Self::command(&toy(), port).spawn().unwrap();
        let alone = Self { child, base: format!("http://127.0.0.1:{port}") };
        let begun = Instant::now();
        while reqwest::get(format!("{}/health", alone.base)).await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "the engine never came up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        alone
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_queue_is_bounded() {
    let engine = Alone::start().await;
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let asked = join_all((0..24).map(async |_| {
        let body = story(json!({ "max_tokens": 200 }));
        let answer = http.post(format!("{}{COMPLETIONS}", engine.base)).json(&body).send().await.unwrap();
        (answer.status(), answer.headers().contains_key("retry-after"))
    }));
    let answers = asked.await;
    let with = |status: StatusCode| answers.iter().filter(|(given, _)| *given == status).count();
    assert_eq!(with(StatusCode::OK) + with(StatusCode::SERVICE_UNAVAILABLE), 24, "{answers:?}");
    assert!(with(StatusCode::OK) >= 9 && with(StatusCode::SERVICE_UNAVAILABLE) > 0, "{answers:?}");
    assert!(answers.iter().all(|(status, retry)| *retry == (*status != StatusCode::OK)), "{answers:?}");
}

#[test]
fn a_file_that_is_no_model_is_said_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(toy()).unwrap();
    let path = folder.path().join("model.gguf");
    for (content, what) in
        [(&b"no model"[..], "magic"), (&bytes[..bytes.len() / 2], "remaining"), (&bytes[..40], "")]
    {
        std::fs::write(&path, content).unwrap();
        let mut engine = Alone::command(&path, 1).stderr(Stdio::piped()).spawn().unwrap();
        // Its end would end the engine before the file does.
        let stdin = engine.stdin.take();
        let out = engine.wait_with_output().unwrap();
        drop(stdin);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert!(said.contains("model.gguf") && said.contains(what) && !said.contains("panicked"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_what_llama_cpp_says() {
    let Some(engine) = real_engine() else { return };
    let command = format!(
        "llama={} --model {{model}} --alias {{name}} --host 127.0.0.1 --port {{port}} --ctx-size 1024 --parallel 1 --threads 1",
        engine.join("llama-server").display()
    );
    let managed = format!("reference=llama,model={}", toy().display());
    let tiny = format!("tiny={},threads=1", engine.join("tiny.gguf").display());
    let tiny_reference = format!("tiny-reference=llama,model={}", engine.join("tiny.gguf").display());
    let own = toy_flag();
    let flags = ["--engine-command", &*command, "--managed-engine", &*managed, "--model", &*own]
        .into_iter()
        .chain(["--model", &*tiny, "--managed-engine", &*tiny_reference])
        .collect::<Vec<_>>();
    let node = Running::start(&flags, &["toy", "reference", "tiny", "tiny-reference"]).await;
    // What it was taught: where it is undecided, each engine's rounding decides.
    for question in ["Who are you?", "what is a relay?", "how do I become a provider?", "hello"] {
        let messages = json!([{ "role": "user", "content": question }]);
        let ask = async |model: &str| {
            let body = greeting(json!({ "model": model, "messages": messages, "max_tokens": 60 }));
            let answer = node.ask(CHAT, body).await;
            (answer["choices"][0]["message"]["content"].clone(), answer["usage"]["prompt_tokens"].clone())
        };
        assert_eq!(ask("toy").await, ask("reference").await, "{question}");
    }
    for (prompt, models) in
        [("The node is", ["toy", "reference"]), ("the task and the relay", ["tiny", "tiny-reference"])]
    {
        let mut said = Vec::new();
        for model in models {
            let body = story(json!({ "model": model, "prompt": prompt, "max_tokens": 8 }));
            let answer = node.ask(COMPLETIONS, body).await;
            let counts = ["prompt_tokens", "completion_tokens", "total_tokens"];
            let counts = counts.map(|count| answer["usage"][count].clone());
            said.push((answer["choices"][0]["text"].clone(), counts));
        }
        assert_eq!(said[0], said[1], "{prompt}");
    }
    node.stop().await;
}
