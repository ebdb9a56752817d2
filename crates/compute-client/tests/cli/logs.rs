//! `logs`: what attempts say, one after the other, whatever becomes of the connections.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::{StreamExt as _, stream};
use rpc::error::{ErrorBody, ErrorCode};
use rpc::tasks::TaskView;
use taskmarket::{
    Address, Amount, Bytes32, ContentHash, Domain, Lease, Provider, Runtime, State as TaskState, Task,
    TaskConfig, TaskRecord, Timestamp,
};
use wallet::Wallet;

use crate::support::{API_KEY, cli, code, said, stderr, stdout};

/// What the relay answers to one request for logs.
enum Answer {
    /// These lines of an attempt, whole.
    Lines(u32, &'static str),
    /// These lines, and then the connection breaks.
    Broken(u32, &'static str),
    /// There are none now.
    Refused(ErrorCode),
}

struct Script {
    record: TaskRecord,
    /// Each answer with the status of the task, and its attempt, from when it is asked for.
    answers: Mutex<VecDeque<(bool, u32, Answer)>>,
    asked: Mutex<Vec<String>>,
}

fn record() -> TaskRecord {
    let requester = Wallet::random();
    let at = Timestamp::from_unix(1_700_000_000);
    let task = Task {
        requester: requester.address(),
        model_cid: "https://models.example/m.wasm".parse().unwrap(),
        model_hash: ContentHash::UNPINNED,
        input_cid: "https://models.example/input".parse().unwrap(),
        input_hash: ContentHash::UNPINNED,
        config: TaskConfig {
            runtime: Runtime::Wasm,
            params: "{}".into(),
            gpu_type: String::new(),
            gpu_count: 0,
            min_vram: 0,
            max_duration: 600,
            max_attempts: 3,
        },
        token: Address::ZERO,
        budget: Amount::ZERO,
        provider_stake: Amount::ZERO,
        dispute_bond: Amount::ZERO,
        deadline: at.plus(3600),
        dispute_window: 86_400,
        arbiter_window: 604_800,
        arbiter: Address::ZERO,
        salt: Bytes32::default(),
    };
    let signed = requester.sign(&task, &Domain::UNSETTLED).unwrap();
    taskmarket::publish(at, &signed.verify(&Domain::UNSETTLED).unwrap()).unwrap()
}

async fn view(State(script): State<Arc<Script>>) -> Response {
    let mut record = script.record.clone();
    let (is_over, attempt) = script
        .answers
        .lock()
        .unwrap()
        .front()
        .map_or((true, 1), |(is_over, attempt, _)| (*is_over, *attempt));
    record.attempts = attempt;
    if is_over {
        record.state = TaskState::Cancelled;
    } else if attempt > 0 {
        let provider = Address::repeat_byte(7);
        let lease = Lease { provider, attempt, since: record.created_at, until: record.created_at.plus(600) };
        record.state = TaskState::Accepted { lease };
        record.provider = Some(Provider(provider));
    }
    Json(TaskView::new(&record, true, None)).into_response()
}

async fn logs(
    State(script): State<Arc<Script>>,
    RawQuery(query): RawQuery,
    headers: axum::http::HeaderMap,
) -> Response {
    if !headers.contains_key("authorization") && !headers.contains_key(rpc::READ_HEADER) {
        return (StatusCode::UNAUTHORIZED, Json(ErrorBody::new(ErrorCode::InvalidApiKey, "no key")))
            .into_response();
    }
    script.asked.lock().unwrap().push(query.unwrap());
    let answer = script.answers.lock().unwrap().pop_front();
    let lines = |attempt: u32, body: axum::body::Body| {
        ([("content-type", "application/x-ndjson"), ("x-attempt", &attempt.to_string())], body)
            .into_response()
    };
    match answer.map(|(_, _, answer)| answer) {
        Some(Answer::Lines(attempt, text)) => lines(attempt, text.into()),
        Some(Answer::Broken(attempt, text)) => {
            // What was sent goes out while the next piece is waited for.
            let broken = stream::once(async {
                for _ in 0..64 {
                    tokio::task::yield_now().await;
                }
                Err(std::io::Error::other("broken"))
            });
            lines(attempt, axum::body::Body::from_stream(stream::iter([Ok(text)]).chain(broken)))
        }
        Some(Answer::Refused(code)) => {
            let status = StatusCode::from_u16(code.http_status()).unwrap();
            (status, Json(ErrorBody::new(code, "no host has run it yet"))).into_response()
        }
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Runs `logs` against a relay that answers so, and answers what it was asked for besides.
async fn run(answers: Vec<(bool, u32, Answer)>, more: &[&str]) -> (std::process::Output, Vec<String>) {
    run_as(answers, more, ("ZORAI_AI_API_KEY", API_KEY)).await
}

/// As [`run`], as somebody with this variable.
async fn run_as(
    answers: Vec<(bool, u32, Answer)>,
    more: &[&str],
    identity: (&str, &str),
) -> (std::process::Output, Vec<String>) {
    let script =
        Arc::new(Script { record: record(), answers: Mutex::new(answers.into()), asked: Mutex::default() });
    let router = Router::new()
        .route("/v1/tasks/{id}", get(view))
        .route("/v1/tasks/{id}/logs", get(logs))
        .with_state(Arc::clone(&script));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let home = tempfile::tempdir().unwrap();
    let id = script.record.id.to_string();
    let arguments = [&["logs", &id][..], more].concat();
    let out = cli(home.path(), &arguments, &[("ZORAI_RELAY", &url), identity], b"").await;
    server.abort();
    let asked = script.asked.lock().unwrap().clone();
    (out, asked)
}

#[tokio::test]
async fn the_requesters_key_opens_them_without_an_api_key() {
    let home = tempfile::tempdir().unwrap();
    let key = home.path().join("key");
    std::fs::write(&key, crate::support::REQUESTER_KEY).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let identity = ("ZORAI_KEY_FILE", key.to_str().unwrap());
    let (out, asked) = run_as(vec![(false, 1, Answer::Lines(1, ONE))], &[], identity).await;
    assert_eq!((code(&out), stdout(&out).as_str(), asked.len()), (0, "one\n", 1), "{}", said(&out));
    let (out, asked) = run_as(Vec::new(), &[], ("NOBODY", "")).await;
    assert_eq!((code(&out), asked.len()), (3, 0), "{}", said(&out));
}

const ONE: &str = "{\"n\":0,\"stream\":\"stdout\",\"text\":\"one\"}\n";
const TWO: &str = "\n{\"n\":1,\"stream\":\"stderr\",\"text\":\"two\\u001b[31m\"}\n";

#[tokio::test]
async fn lines_are_shown_and_made_harmless() {
    let (out, asked) = run(vec![(false, 1, Answer::Lines(1, TWO))], &["--from", "1"]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    assert!(stdout(&out).starts_with("two") && !stdout(&out).contains('\u{1b}'), "{}", said(&out));
    assert_eq!(asked, ["from=1&follow=false"]);
    let (out, _) = run(vec![(false, 1, Answer::Lines(1, ONE))], &["--json"]).await;
    assert_eq!(stdout(&out), ONE);
    for (flags, told) in [(&[][..], "the task has said nothing\n"), (&["--from", "7"], "from line 7 on\n")] {
        let (out, _) = run(vec![(false, 1, Answer::Lines(1, ""))], flags).await;
        assert!(code(&out) == 0 && stdout(&out).is_empty() && stderr(&out).ends_with(told), "{}", said(&out));
    }
    let (out, _) = run(vec![(false, 0, Answer::Refused(ErrorCode::Conflict))], &[]).await;
    assert_eq!(code(&out), 1, "{}", said(&out));
    assert!(stderr(&out).contains("no host has run it yet"), "{}", said(&out));
}

#[tokio::test]
async fn lines_are_shown_whole() {
    let text = format!("a\tb {}", "x".repeat(8 << 10));
    let line = serde_json::json!({ "n": 0, "stream": "stdout", "text": text });
    let (out, _) = run(vec![(false, 1, Answer::Lines(1, format!("{line}\n").leak()))], &[]).await;
    assert_eq!(stdout(&out), format!("{text}\n"));
}

#[tokio::test]
async fn following_goes_on_after_a_break_and_with_the_next_attempt() {
    let answers = vec![
        (false, 0, Answer::Refused(ErrorCode::Conflict)),
        (false, 1, Answer::Broken(1, ONE)),
        (false, 1, Answer::Lines(1, TWO)),
        (false, 2, Answer::Lines(2, ONE)),
        (true, 2, Answer::Lines(2, TWO)),
    ];
    let (out, asked) = run(answers, &["--follow"]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    let lines: Vec<String> = stdout(&out).lines().map(|line| line[..3].to_owned()).collect();
    assert_eq!(lines, ["one", "two", "one", "two"], "{}", said(&out));
    assert!(stderr(&out).contains("attempt 2:"), "{}", said(&out));
    let from: Vec<&str> = asked.iter().map(|asked| asked.split_once('&').unwrap().0).collect();
    assert_eq!(from, ["from=0", "from=0", "from=1", "from=0", "from=1"]);
}
