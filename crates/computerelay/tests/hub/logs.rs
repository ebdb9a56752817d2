//! What attempts say, read through the relay by who published the task.

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use taskmarket::{Status, TaskId};

use crate::agent::{Agent, Script};
use crate::support::{Relay, Requester, Times, poll, within};

/// Publishes a task and has this host accept it.
async fn taken(relay: &Relay, agent: &Agent) -> TaskId {
    let requester = Requester::new();
    let task_id = relay.publish(&requester, &requester.task()).await;
    let assignment = agent.is_offered(task_id).await;
    relay.reaches(task_id, Status::Accepted, assignment.attempt).await;
    task_id
}

fn path(task_id: TaskId, query: &str) -> String {
    format!("/v1/tasks/{task_id}/logs{query}")
}

async fn refused(relay: &Relay, task_id: TaskId, key: Option<&str>) -> (u16, String, Value) {
    let response = within("an answer", relay.ask(&path(task_id, ""), key).send()).await.unwrap();
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    (status, body["error"]["code"].as_str().unwrap_or_default().to_owned(), body)
}

async fn piece(response: &mut Response) -> Option<String> {
    let piece = within("lines", response.chunk()).await.unwrap()?;
    Some(String::from_utf8(piece.to_vec()).unwrap())
}

#[tokio::test]
async fn logs_come_from_the_host_that_runs_the_task_at_once_or_live() {
    let relay = Relay::start(Times::default()).await;
    let requester = Requester::new();
    let waiting = relay.publish(&requester, &requester.task()).await;
    let (status, code, body) = refused(&relay, waiting, None).await;
    assert_eq!((status, code.as_str()), (409, "conflict"), "{body}");
    assert_eq!(body["error"]["status"], "open");

    let agent = Script::new().connect(&relay.url()).await;
    let assignment = agent.is_offered(waiting).await;
    relay.reaches(waiting, Status::Accepted, 1).await;
    for line in ["zero", "one", "two"] {
        agent.says(line);
    }
    let whole = within("logs", relay.ask(&path(waiting, "?from=1"), None).send()).await.unwrap();
    assert_eq!(whole.status(), StatusCode::OK);
    assert_eq!(whole.headers()["content-type"], "application/x-ndjson");
    assert_eq!(whole.headers()["x-attempt"], "1");
    let text = whole.text().await.unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        lines,
        [
            json!({ "n": 1, "stream": "stdout", "text": "one" }),
            json!({ "n": 2, "stream": "stdout", "text": "two" })
        ]
    );

    let live = relay.ask(&path(waiting, "?from=2&follow=true"), None).send();
    let mut live = within("logs", live).await.unwrap();
    assert!(piece(&mut live).await.unwrap().contains("two"));
    agent.says("three");
    assert!(piece(&mut live).await.unwrap().contains("three"));
    agent.finish(&assignment);
    assert_eq!(piece(&mut live).await, None, "it ends with the attempt");

    let wrong = relay.ask(&path(waiting, "?from=x"), None).send();
    assert_eq!(within("an answer", wrong).await.unwrap().status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn nobody_else_reads_them_and_who_cannot_says_why() {
    let relay = Relay::start(Times::default()).await;
    let agent = Script::new().connect(&relay.url()).await;
    let task_id = taken(&relay, &agent).await;
    let key = json!({ "name": "another's", "scopes": ["tasks:read"] });
    let (_, made) = relay.post("/v1/keys", &key).await;
    let (status, code, body) = refused(&relay, task_id, made["key"].as_str()).await;
    assert_eq!((status, code.as_str()), (403, "forbidden"), "{body}");
    let (status, code, _) = refused(&relay, task_id, Some("no key")).await;
    assert_eq!((status, code.as_str()), (401, "invalid_api_key"));
    let (status, code, _) = refused(&relay, TaskId([7; 32].into()), None).await;
    assert_eq!((status, code.as_str()), (404, "not_found"));

    agent.cut().await;
    relay.lists(|list| list.providers.is_empty()).await;
    let (status, code, body) = refused(&relay, task_id, None).await;
    assert_eq!((status, code.as_str()), (409, "no_session"), "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains("not connected now"), "{body}");
}

#[tokio::test]
async fn a_host_that_has_no_logs_says_so() {
    let relay = Relay::start(Times::default()).await;
    let agent = Script::new().connect(&relay.url()).await;
    let task_id = taken(&relay, &agent).await;
    let key = rpc::link::AttemptKey { task_id, attempt: 1 };
    let script = agent.script.clone().holding(vec![key]);
    agent.cut().await;
    relay.lists(|list| list.providers.is_empty()).await;
    // The same host with an empty memory.
    let _back = script.connect(&relay.url()).await;
    relay.lists(|list| list.providers.len() == 1).await;
    let (status, code, body) = refused(&relay, task_id, None).await;
    assert_eq!((status, code.as_str()), (404, "not_found"), "{body}");
}

#[tokio::test]
async fn only_so_many_read_the_logs_of_a_task_at_once() {
    let relay = Relay::start(Times::default()).await;
    let agent = Script::new().connect(&relay.url()).await;
    let task_id = taken(&relay, &agent).await;
    let follow = async || {
        let request = relay.ask(&path(task_id, "?follow=true"), None).send();
        within("logs", request).await.unwrap()
    };
    let mut readers = Vec::new();
    for _ in 0..8 {
        readers.push(follow().await);
        assert_eq!(readers.last().unwrap().status(), StatusCode::OK);
    }
    assert_eq!(follow().await.status(), StatusCode::TOO_MANY_REQUESTS);
    readers.pop();
    // The relay sees the reader leave when it next has something for it.
    poll("a free seat", async || {
        agent.says("more");
        (follow().await.status() == StatusCode::OK).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_host_says_no_faster_than_is_read() {
    let relay = Relay::start(Times::default()).await;
    let script = Script { babbles: true, ..Script::new() };
    let agent = script.connect(&relay.url()).await;
    let task_id = taken(&relay, &agent).await;
    let request = relay.ask(&path(task_id, "?follow=true"), None).send();
    let mut reader = within("logs", request).await.unwrap();
    assert!(piece(&mut reader).await.is_some());
    // Nobody reads: it comes to a stand once what is on the way is full.
    let last = std::cell::Cell::new(0);
    poll("a stand", async || {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let babbled = agent.state().babbled;
        (last.replace(babbled) == babbled).then_some(())
    })
    .await;
    assert!(agent.state().babbled < 64 << 20, "{} bytes", agent.state().babbled);
    // The host's other work goes on meanwhile, and so do the lines once they are read.
    assert_eq!(relay.task(task_id).await.status, Status::Accepted);
    let stood_at = agent.state().babbled;
    while agent.state().babbled == stood_at {
        assert!(piece(&mut reader).await.is_some());
    }
}
