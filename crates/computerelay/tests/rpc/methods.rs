//! Each method, by the generated client over HTTP and over WebSocket, as it goes well and as it does not; and that REST says the same.

use jsonrpsee::core::client::ClientT;
use reqwest::{Method, StatusCode};
use rpc::market::MarketClient;
use rpc::tasks::{Contract, OpenTasksFilter, TaskView};
use taskmarket::{
    AcceptTask, Address, B256, Bytes32, CancelTask, ComputeProof, ContentHash, Domain, NodeStatus, Status,
    TaskId, UpdateNodeStatus, latest_lease,
};
use wallet::Wallet;

use crate::agent::{self, Agent};
use crate::caller::{assert_refused, http, socket};
use crate::rig::{Rig, now, signed, task};

const NOBODY: TaskId = TaskId(B256::ZERO);

/// Runs a test over both transports, each with a relay of its own.
macro_rules! over_both {
    ($($name:ident)*) => {$(
        mod $name {
            #[tokio::test]
            async fn over_http() {
                let rig = crate::rig::Rig::start().await;
                super::$name(&rig, crate::caller::http(&rig, Some(crate::rig::KEY))).await;
                rig.stop().await;
            }

            #[tokio::test]
            async fn over_a_socket() {
                let rig = crate::rig::Rig::start().await;
                super::$name(&rig, crate::caller::socket(&rig, Some(crate::rig::KEY)).await).await;
                rig.stop().await;
            }
        }
    )*};
}

over_both! {
    tasks_are_published_and_read
    wrong_tasks_are_refused
    open_tasks_are_listed
    providers_accept_and_prove
    hosts_say_what_they_offer
    the_market_in_numbers
}

async fn tasks_are_published_and_read<C: ClientT + Send + Sync>(rig: &Rig, client: C) {
    let wallet = Wallet::random();
    let body = signed(&wallet, &task(&wallet));
    let id = client.publish_task(body.task.clone(), body.signature, None).await.unwrap();
    assert_eq!(id, body.task.id(&Domain::UNSETTLED));
    let zero = Some(Contract(Address::ZERO));
    assert_eq!(client.publish_task(body.task.clone(), body.signature, zero).await.unwrap(), id, "once");

    let view = client.get_task_status(id).await.unwrap();
    assert_eq!((view.task_id, view.status), (id, Status::Open));
    let (_, rest) = rig.get(&format!("/v1/tasks/{id}")).await;
    assert_eq!(serde_json::to_value(&view).unwrap(), rest, "REST says the same");
    assert_refused(client.get_task_status(NOBODY).await, -32004, "not_found", Some("task_id"));
}

async fn wrong_tasks_are_refused<C: ClientT + Send + Sync>(rig: &Rig, client: C) {
    let (wallet, other) = (Wallet::random(), Wallet::random());
    let right = task(&wallet);
    let by_other = other.sign(&task(&other), &Domain::UNSETTLED).unwrap().signature;
    let answer = client.publish_task(right.clone(), by_other, None).await;
    assert_refused(answer, -32602, "invalid_signature", Some("signature"));

    let contract = Some(Contract(Address::repeat_byte(9)));
    let signature = wallet.sign(&right, &Domain::UNSETTLED).unwrap().signature;
    let answer = client.publish_task(right.clone(), signature, contract).await;
    assert_refused(answer, -32602, "unknown_domain", Some("verifying_contract"));

    let mut endless = right;
    endless.config.max_duration = u64::MAX;
    let body = signed(&wallet, &endless);
    let (_, rest) = rig.publish(&body).await;
    let answer = client.publish_task(body.task, body.signature, None).await;
    let data = assert_refused(answer, -32602, "invalid_field", Some("config.max_duration"));
    assert_eq!(rest["error"]["param"].as_str(), data.param.as_deref(), "{rest}");
    let page = client.get_open_tasks(None, None).await.unwrap();
    assert!(page.tasks.is_empty(), "nothing was stored");
}

async fn open_tasks_are_listed<C: ClientT + Send + Sync>(rig: &Rig, client: C) {
    let (one, two) = (Wallet::random(), Wallet::random());
    let first = rig.publish_new(&one).await;
    let second = rig.publish_new(&one).await;
    rig.publish_new(&two).await;
    let cancel = CancelTask { task_id: rig.publish_new(&one).await.parse().unwrap(), issued_at: now() };
    rig.mutate(&one, &cancel.task_id.to_string(), "cancel", &cancel).await;

    assert_eq!(client.get_open_tasks(None, None).await.unwrap().tasks.len(), 3);
    let filter =
        Some(OpenTasksFilter { requester: Some(one.address()), limit: Some(1), ..Default::default() });
    let page = client.get_open_tasks(filter.clone(), None).await.unwrap();
    assert_eq!(page.tasks[0].task_id.to_string(), second);
    let path = format!("/v1/tasks?status=open&requester={}&limit=1", one.address());
    assert_eq!(serde_json::to_value(&page).unwrap(), rig.get(&path).await.1, "REST says the same");
    let page = client.get_open_tasks(filter, page.next_cursor).await.unwrap();
    assert_eq!(page.tasks[0].task_id.to_string(), first);

    let none = Some(OpenTasksFilter { limit: Some(0), ..Default::default() });
    assert_refused(client.get_open_tasks(none, None).await, -32602, "invalid_field", Some("limit"));
    let cursor = Some("nowhere".to_owned());
    assert_refused(client.get_open_tasks(None, cursor).await, -32602, "malformed_request", Some("cursor"));
}

async fn providers_accept_and_prove<C: ClientT + Send + Sync>(rig: &Rig, client: C) {
    let wallet = Wallet::random();
    let id: TaskId = rig.publish_new(&wallet).await.parse().unwrap();
    let stranger = Wallet::random();
    let accept = AcceptTask {
        task_id: id,
        provider: stranger.address(),
        attempt: 1,
        lease_until: latest_lease(&task(&wallet), now()),
    };
    let signature = stranger.sign(&accept, &Domain::UNSETTLED).unwrap().signature;
    let answer = client.accept_task(accept.clone(), signature).await;
    let data = assert_refused(answer, -32009, "no_session", None);
    assert_eq!(data.status, Some(Status::Open));
    let nobody = AcceptTask { task_id: NOBODY, ..accept };
    assert_refused(client.accept_task(nobody, signature).await, -32004, "not_found", Some("task_id"));

    // The agent accepts what is offered over the link; its word may be sent again.
    let mut host = Agent::connect(rig).await;
    let offer = host.next().await;
    rig.wait_for(&id.to_string(), "accepted").await;
    let view = client.get_task_status(id).await.unwrap();
    assert_eq!((view.attempt, view.provider), (1, Some(host.wallet.address())));

    let mut proof = ComputeProof {
        task_id: id,
        provider: host.wallet.address(),
        attempt: offer.attempt,
        model_hash: ContentHash(B256::repeat_byte(1)),
        input_hash: ContentHash(B256::repeat_byte(2)),
        result_hash: ContentHash(B256::repeat_byte(3)),
        result_cid: format!("artifact://{}", ContentHash(B256::repeat_byte(3))).parse().unwrap(),
        started_at: now(),
        finished_at: now(),
        gpu_name: "CPU".to_owned(),
    };
    let signature = host.wallet.sign(&proof, &Domain::UNSETTLED).unwrap().signature;
    let answer = client.submit_proof(proof.clone(), signature).await;
    let data = assert_refused(answer, -32009, "result_missing", Some("result_hash"));
    assert_eq!(data.status, Some(Status::Accepted));

    let digest = rig.store(id.to_string().as_bytes()).await;
    proof.result_hash = digest.to_string().parse().unwrap();
    proof.result_cid = format!("artifact://{digest}").parse().unwrap();
    let signature = host.wallet.sign(&proof, &Domain::UNSETTLED).unwrap().signature;
    let view: TaskView = client.submit_proof(proof.clone(), signature).await.unwrap();
    assert_eq!((view.status, view.proof.unwrap().proof), (Status::Submitted, proof.clone()));
    assert_eq!(client.submit_proof(proof, signature).await.unwrap().status, Status::Submitted, "again");
}

async fn hosts_say_what_they_offer<C: ClientT + Send + Sync>(rig: &Rig, client: C) {
    let host = Agent::connect(rig).await;
    let metadata = serde_json::to_string(&agent::metadata()).unwrap();
    let registration = agent::registration(&host.wallet, rig, &host.hello, &metadata);
    let signature = host.wallet.sign(&registration, &Domain::UNSETTLED).unwrap().signature;
    client.register_node(registration.clone(), metadata.clone(), signature).await.unwrap();
    let answer = client.register_node(registration.clone(), "{}".to_owned(), signature).await;
    assert_refused(answer, -32602, "hash_mismatch", Some("metadata_hash"));
    let stranger = Wallet::random();
    let unknown = agent::registration(&stranger, rig, &host.hello, &metadata);
    let signature = stranger.sign(&unknown, &Domain::UNSETTLED).unwrap().signature;
    assert_refused(client.register_node(unknown, metadata, signature).await, -32009, "no_session", None);

    let node_id = registration.node_id;
    let update =
        |status| UpdateNodeStatus { provider: host.wallet.address(), node_id, status, issued_at: now() };
    let draining = update(NodeStatus::Draining);
    let signature = host.wallet.sign(&draining, &Domain::UNSETTLED).unwrap().signature;
    client.update_node_status(draining, signature).await.unwrap();
    let (_, seen) = rig.get(&format!("/v1/providers/{}", host.wallet.address())).await;
    assert_eq!(seen["providers"][0]["status"], "draining", "{seen}");
    let elsewhere = UpdateNodeStatus { node_id: Bytes32(B256::ZERO), ..update(NodeStatus::Online) };
    let answer = client.update_node_status(elsewhere, signature).await;
    assert_refused(answer, -32602, "invalid_signature", Some("signature"));
}

async fn the_market_in_numbers<C: ClientT + Send + Sync>(rig: &Rig, client: C) {
    rig.publish_new(&Wallet::random()).await;
    let stats = client.get_market_stats().await.unwrap();
    assert_eq!(stats.tasks["open"], 1);
    assert_eq!(serde_json::to_value(&stats).unwrap(), rig.get("/v1/stats").await.1, "REST says the same");
}

#[tokio::test]
async fn keys_are_needed_where_rest_needs_them() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let body = signed(&wallet, &task(&wallet));
    for key in [None, Some("a-wrong-key")] {
        let (by_http, by_socket) = (http(&rig, key), socket(&rig, key).await);
        let answers = [
            by_http.publish_task(body.task.clone(), body.signature, None).await.map(drop),
            by_socket.publish_task(body.task.clone(), body.signature, None).await.map(drop),
            by_http.get_task_status(NOBODY).await.map(drop),
            by_socket.get_task_status(NOBODY).await.map(drop),
            by_http.get_open_tasks(None, None).await.map(drop),
            by_socket.get_open_tasks(None, None).await.map(drop),
        ];
        for answer in answers {
            assert_refused(answer, -32001, "invalid_api_key", Some("authorization"));
        }
        by_http.get_market_stats().await.unwrap();
        by_socket.get_market_stats().await.unwrap();
    }
    rig.stop().await;
}

#[tokio::test]
async fn keys_reach_as_far_as_their_scopes() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let id: TaskId = rig.publish_new(&wallet).await.parse().unwrap();
    let reader = rig.new_key(&["tasks:read"]).await;
    let client = http(&rig, Some(&reader));
    let page = client.get_open_tasks(None, None).await.unwrap();
    let text = serde_json::to_string(&page).unwrap();
    assert!(!text.contains("secret-input"), "others see requirements and money only: {text}");
    assert_eq!(client.get_task_status(id).await.unwrap().signature, None);
    let body = signed(&wallet, &task(&wallet));
    let answer = client.publish_task(body.task, body.signature, None).await;
    assert_refused(answer, -32003, "forbidden", Some("authorization"));
    rig.stop().await;
}

#[tokio::test]
async fn every_call_counts_against_the_keys_limit() {
    let rig = Rig::start().await;
    let body = serde_json::json!({ "name": "slow", "scopes": ["tasks:read"], "requests_per_minute": 3 });
    let key = rig.make_key(&body).await;
    let client = socket(&rig, Some(&key)).await;
    // Opening the connection was the first request.
    for _ in 0..2 {
        client.get_open_tasks(None, None).await.unwrap();
    }
    assert_refused(client.get_open_tasks(None, None).await, -32029, "rate_limited", None);
    rig.stop().await;
}

#[tokio::test]
async fn a_revoked_key_ends_what_its_open_connection_may_do() {
    let rig = Rig::start().await;
    let key = rig.other_key().await;
    let client = socket(&rig, Some(&key)).await;
    client.get_open_tasks(None, None).await.unwrap();
    let (_, keys) = rig.get("/v1/keys").await;
    let id = keys["keys"][0]["id"].as_str().unwrap();
    let revoked = rig.request(Method::DELETE, &format!("/v1/keys/{id}")).send().await.unwrap();
    assert_eq!(revoked.status(), StatusCode::OK);
    let answer = client.get_open_tasks(None, None).await;
    assert_refused(answer, -32001, "invalid_api_key", Some("authorization"));
    client.get_market_stats().await.unwrap();
    rig.stop().await;
}
