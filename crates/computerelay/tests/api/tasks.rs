//! Publishing, listing, reading and changing tasks, as far as it goes well.

use reqwest::{Method, StatusCode};
use rpc::relay::RefreshNode;
use rpc::tasks::SignedMutation;
use taskmarket::{
    Address, ApproveResult, CancelTask, ComputeProof, ContentHash, DisputeTask, Domain, FailTask, NodeStatus,
    UpdateNodeStatus,
};
use wallet::Wallet;

use crate::agent::{self, Agent};
use crate::rig::{Rig, answer, assert_error, now, signed, task};

#[tokio::test]
async fn a_task_is_published_once() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let body = signed(&wallet, &task(&wallet));
    let response = rig.request(Method::POST, "/v1/tasks").json(&body).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    let id = body.task.id(&Domain::UNSETTLED).to_string();
    assert_eq!(response.headers()["location"].to_str().unwrap(), format!("/v1/tasks/{id}"));
    let view: serde_json::Value = response.json().await.unwrap();
    assert_eq!((view["task_id"].as_str(), view["status"].as_str()), (Some(&*id), Some("open")));
    assert_eq!(view["task"]["input_cid"], "https://inputs.example/secret-input.json");

    let (status, again) = rig.publish(&body).await;
    assert_eq!((status, &again["task_id"]), (StatusCode::OK, &view["task_id"]));
    let (_, history) = rig.get(&format!("/v1/tasks/{id}/events")).await;
    assert_eq!(history["events"].as_array().unwrap().len(), 1, "{history}");
    rig.stop().await;
}

#[tokio::test]
async fn info_is_enough_to_sign() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let (status, info) = answer(rig.bare(Method::GET, "/v1/info")).await;
    assert_eq!(status, StatusCode::OK);
    let stated = &info["domains"][0];
    assert_eq!(
        (stated["name"].as_str(), stated["version"].as_str()),
        (Some(Domain::NAME), Some(Domain::VERSION))
    );
    let domain = Domain {
        chain_id: stated["chain_id"].as_u64().unwrap(),
        verifying_contract: stated["verifying_contract"].as_str().unwrap().parse().unwrap(),
    };
    let signed = wallet.sign(&task(&wallet), &domain).unwrap();
    let body = serde_json::json!({ "task": signed.message, "signature": signed.signature });
    let (status, view) = answer(rig.request(Method::POST, "/v1/tasks").json(&body)).await;
    assert_eq!(status, StatusCode::CREATED, "{view}");
    assert_eq!(info["relay_id"], "test-1");
    assert_eq!(info["limits"]["max_body_bytes"], 262_144);
    rig.stop().await;
}

#[tokio::test]
async fn listings_filter_and_go_on_where_they_ended() {
    let (rig, one, two) = (Rig::start().await, Wallet::random(), Wallet::random());
    let mut published = Vec::new();
    for _ in 0..5 {
        published.push(rig.publish_new(&one).await);
    }
    rig.publish_new(&two).await;
    let mut listed = Vec::new();
    let mut path = format!("/v1/tasks?requester={}&limit=2", one.address());
    for _ in 0..3 {
        let (status, page) = rig.get(&path).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        listed.extend(
            page["tasks"].as_array().unwrap().iter().map(|task| task["task_id"].as_str().unwrap().to_owned()),
        );
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/tasks?requester={}&limit=2&cursor={cursor}", one.address());
    }
    listed.reverse();
    assert_eq!(listed, published, "newest first");
    let count =
        async |query: &str| rig.get(&format!("/v1/tasks?{query}")).await.1["tasks"].as_array().unwrap().len();
    assert_eq!(count("").await, 6);
    assert_eq!(count("status=open").await, 6);
    assert_eq!(count("status=cancelled").await, 0);
    assert_eq!(count("gpu_type=A100").await, 0);
    let (_, first) = rig.get(&format!("/v1/tasks/{}", published[0])).await;
    let first = first["created_at"].as_str().unwrap();
    assert_eq!(count(&format!("created_from={first}")).await, 6, "that second included");
    assert_eq!(count(&format!("created_before={first}")).await, 0, "that second left out");
    assert_eq!(count("created_from=2000-01-01T00:00:00Z&created_before=2100-01-01T00:00:00Z").await, 6);
    assert_eq!(count("created_from=2100-01-01T00:00:00Z").await, 0);
    assert_error(&rig.get("/v1/tasks?created_from=yesterday").await, 400, "malformed_request");
    assert_eq!(count(&format!("provider={}", one.address())).await, 0);
    rig.stop().await;
}

#[tokio::test]
async fn strangers_keys_see_requirements_and_money_only() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let id = rig.publish_new(&wallet).await;
    let other_key = rig.other_key().await;
    let other = |path: String| answer(rig.bare(Method::GET, &path).bearer_auth(&other_key));
    for path in [format!("/v1/tasks/{id}"), "/v1/tasks".to_owned()] {
        let (status, view) = other(path).await;
        let text = view.to_string();
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("10000000000000000") && !text.contains("secret-input"), "{text}");
        assert!(!text.contains("params"), "{text}");
    }
    for part in ["events", "result", "explain"] {
        assert_error(&other(format!("/v1/tasks/{id}/{part}")).await, 403, "forbidden");
    }
    rig.stop().await;
}

#[tokio::test]
async fn an_open_task_is_cancelled_once_and_for_all() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let id = rig.publish_new(&wallet).await;
    let cancel = CancelTask { task_id: id.parse().unwrap(), issued_at: now() };
    for _ in 0..2 {
        let (status, view) = rig.mutate(&wallet, &id, "cancel", &cancel).await;
        assert_eq!((status, view["status"].as_str()), (StatusCode::OK, Some("cancelled")), "{view}");
        assert!(!view.to_string().contains("secret-input"), "the signature opens no references: {view}");
    }
    let (_, stats) = rig.get("/v1/stats").await;
    assert_eq!((stats["tasks"]["cancelled"].as_u64(), stats["tasks"]["open"].as_u64()), (Some(1), Some(0)));
    rig.stop().await;
}

#[tokio::test]
async fn of_many_that_ask_at_once_one_is_first() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let body = signed(&wallet, &task(&wallet));
    let published = futures_util::future::join_all((0..16).map(|_| rig.publish(&body))).await;
    let created = published.iter().filter(|(status, _)| *status == StatusCode::CREATED).count();
    assert_eq!(created, 1, "{published:?}");
    let id = published[0].1["task_id"].as_str().unwrap();
    let cancel = CancelTask { task_id: id.parse().unwrap(), issued_at: now() };
    let cancelled = (0..16).map(|_| rig.mutate(&wallet, id, "cancel", &cancel));
    for (status, view) in futures_util::future::join_all(cancelled).await {
        assert_eq!(status, StatusCode::OK, "{view}");
    }
    let (_, history) = rig.get(&format!("/v1/tasks/{id}/events")).await;
    assert_eq!(history["events"].as_array().unwrap().len(), 2, "{history}");
    rig.stop().await;
}

#[tokio::test]
async fn a_task_goes_all_its_way() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let mut agent = Agent::connect(&rig).await;
    let id = rig.publish_new(&wallet).await;
    let taken = agent.next().await;
    assert_eq!((taken.task_id.to_string(), taken.attempt), (id.clone(), 1));
    rig.wait_for(&id, "accepted").await;

    let result = b"the words are counted";
    let digest = artifact::Digest::of(result);
    let hash: ContentHash = digest.to_string().parse().unwrap();
    let proof = ComputeProof {
        task_id: taken.task_id,
        provider: agent.wallet.address(),
        attempt: 1,
        model_hash: ContentHash::UNPINNED,
        input_hash: ContentHash::UNPINNED,
        result_hash: hash,
        result_cid: format!("artifact://{digest}").parse().unwrap(),
        started_at: now(),
        finished_at: now(),
        gpu_name: "CPU".to_owned(),
    };
    let early = rig.mutate(&agent.wallet, &id, "proof", &proof).await;
    assert_error(&early, 409, "result_missing");
    assert_eq!(early.1["error"]["status"], "accepted");

    let put = rig.bare(Method::PUT, &format!("/v1/artifacts/{digest}")).bearer_auth(&taken.attempt_token);
    assert_eq!(put.body(result.to_vec()).send().await.unwrap().status(), StatusCode::CREATED);
    let elsewhere = ComputeProof { result_cid: "https://r.example/r".parse().unwrap(), ..proof.clone() };
    let refused = rig.mutate(&agent.wallet, &id, "proof", &elsewhere).await;
    assert_error(&refused, 400, "invalid_field");
    assert_eq!(refused.1["error"]["param"], "result_cid");

    for _ in 0..2 {
        let (status, view) = rig.mutate(&agent.wallet, &id, "proof", &proof).await;
        assert_eq!((status, view["status"].as_str()), (StatusCode::OK, Some("submitted")), "{view}");
    }
    let with_token = |method: Method, digest: artifact::Digest| {
        rig.bare(method, &format!("/v1/artifacts/{digest}")).bearer_auth(&taken.attempt_token)
    };
    let again = with_token(Method::PUT, digest).body(result.to_vec()).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::OK, "the proven result may be stored again");
    let other = with_token(Method::PUT, artifact::Digest::of(b"x")).body("x");
    assert_error(&answer(other).await, 403, "forbidden");
    assert_error(&answer(with_token(Method::GET, digest)).await, 403, "forbidden");

    let got = rig.request(Method::GET, &format!("/v1/tasks/{id}/result")).send().await.unwrap();
    assert_eq!(got.headers()["x-result-hash"].to_str().unwrap(), digest.to_string());
    assert_eq!(got.bytes().await.unwrap(), &result[..]);

    let approve = ApproveResult {
        task_id: taken.task_id,
        provider: proof.provider,
        attempt: 1,
        result_hash: hash,
        issued_at: now(),
    };
    let (status, view) = rig.mutate(&wallet, &id, "approve", &approve).await;
    assert_eq!((status, view["status"].as_str()), (StatusCode::OK, Some("completed")), "{view}");
    let dispute = DisputeTask {
        task_id: taken.task_id,
        provider: proof.provider,
        attempt: 1,
        result_hash: hash,
        reason: "too late".to_owned(),
        evidence: String::new(),
        issued_at: now(),
    };
    let late = rig.mutate(&wallet, &id, "dispute", &dispute).await;
    assert_error(&late, 409, "conflict");
    assert_eq!(late.1["error"]["status"], "completed");

    let (_, history) = rig.get(&format!("/v1/tasks/{id}/events")).await;
    let kinds: Vec<_> = history["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["event"]["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["published", "accepted", "submitted", "approved"], "{history}");
    rig.stop().await;
}

#[tokio::test]
async fn providers_are_seen_while_they_are_connected() {
    let rig = Rig::start().await;
    let (_, none) = answer(rig.bare(Method::GET, "/v1/providers")).await;
    assert_eq!(none["providers"].as_array().unwrap().len(), 0);
    let agent = Agent::connect(&rig).await;
    let address = agent.wallet.address();
    let path = format!("/v1/providers/{address}");
    let (_, list) = answer(rig.bare(Method::GET, &path)).await;
    let host = &list["providers"][0];
    assert_eq!(host["provider"].as_str(), Some(&*address.to_string()));
    assert_eq!(host["endpoint"].as_str(), Some(&*format!("relay://test-1/{}", agent.hello.session_id)));
    let (_, sessions) = answer(rig.bare(Method::GET, &format!("{path}/sessions"))).await;
    assert_eq!(sessions["sessions"][0]["session_id"].as_str(), Some(&*agent.hello.session_id), "{sessions}");
    let (_, info) = answer(rig.bare(Method::GET, "/v1/info")).await;
    assert_eq!((info["providers_online"].as_u64(), info["runtimes"][0].as_str()), (Some(1), Some("wasm")));
    let stranger = Address::repeat_byte(9);
    assert_error(
        &answer(rig.bare(Method::GET, &format!("/v1/providers/{stranger}"))).await,
        404,
        "not_found",
    );
    rig.stop().await;
}

#[tokio::test]
async fn a_host_says_anew_what_it_offers_and_whether_it_takes_work() {
    let rig = Rig::start().await;
    let agent = Agent::connect(&rig).await;
    let path = format!("/v1/providers/{}", agent.wallet.address());
    let slots =
        async || answer(rig.bare(Method::GET, &path)).await.1["providers"][0]["metadata"]["slots"].as_u64();
    assert_eq!(slots().await, Some(4));

    let metadata = rpc::link::NodeMetadata { slots: 2, ..agent::metadata() };
    let metadata = serde_json::to_string(&metadata).unwrap();
    let message = agent::registration(&agent.wallet, &rig, &agent.hello, &metadata);
    let signed = agent.wallet.sign(&message, &Domain::UNSETTLED).unwrap();
    let body = RefreshNode { registration: signed.message, metadata, signature: signed.signature };
    let (status, error) = answer(rig.bare(Method::POST, &format!("{path}/registration")).json(&body)).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{error}");
    assert_eq!(slots().await, Some(2));

    let node_id = message.node_id;
    let update = UpdateNodeStatus {
        provider: agent.wallet.address(),
        node_id,
        status: NodeStatus::Draining,
        issued_at: now(),
    };
    let body = SignedMutation::from(agent.wallet.sign(&update, &Domain::UNSETTLED).unwrap());
    let (status, error) = answer(rig.bare(Method::POST, &format!("{path}/status")).json(&body)).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{error}");
    let (_, list) = answer(rig.bare(Method::GET, &path)).await;
    assert_eq!(list["providers"][0]["status"], "draining", "{list}");
    let elsewhere = format!("/v1/providers/{}/status", Address::repeat_byte(1));
    assert_error(&answer(rig.bare(Method::POST, &elsewhere).json(&body)).await, 400, "invalid_field");
    rig.stop().await;
}

#[tokio::test]
async fn a_task_is_disputed_once() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let mut agent = Agent::connect(&rig).await;
    let id = rig.publish_new(&wallet).await;
    let taken = agent.next().await;
    rig.wait_for(&id, "accepted").await;
    let digest = artifact::Digest::of(b"wrong");
    let put = rig.bare(Method::PUT, &format!("/v1/artifacts/{digest}")).bearer_auth(&taken.attempt_token);
    assert_eq!(put.body("wrong").send().await.unwrap().status(), StatusCode::CREATED);
    let proof = ComputeProof {
        task_id: taken.task_id,
        provider: agent.wallet.address(),
        attempt: 1,
        model_hash: ContentHash::UNPINNED,
        input_hash: ContentHash::UNPINNED,
        result_hash: digest.to_string().parse().unwrap(),
        result_cid: format!("artifact://{digest}").parse().unwrap(),
        started_at: now(),
        finished_at: now(),
        gpu_name: "CPU".to_owned(),
    };
    assert_eq!(rig.mutate(&agent.wallet, &id, "proof", &proof).await.0, StatusCode::OK);

    let first = DisputeTask {
        task_id: taken.task_id,
        provider: proof.provider,
        attempt: 1,
        result_hash: proof.result_hash,
        reason: "the words are not counted".to_owned(),
        evidence: "ipfs://evidence-of-the-documentation".to_owned(),
        issued_at: now(),
    };
    // Said again, it changes nothing and is acknowledged.
    for _ in 0..2 {
        let (status, view) = rig.mutate(&wallet, &id, "dispute", &first).await;
        assert_eq!((status, view["status"].as_str()), (StatusCode::OK, Some("disputed")), "{view}");
    }
    let second = DisputeTask { reason: "nor are they read".to_owned(), ..first };
    let refused = rig.mutate(&wallet, &id, "dispute", &second).await;
    assert_error(&refused, 409, "conflict");
    assert_eq!(refused.1["error"]["status"], "disputed");
    let (_, history) = rig.get(&format!("/v1/tasks/{id}/events")).await;
    assert_eq!(history["events"].as_array().unwrap().len(), 4, "{history}");
    rig.stop().await;
}

#[tokio::test]
async fn what_a_provider_says_of_a_failure_is_for_those_who_may_read_the_task() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let mut agent = Agent::connect(&rig).await;
    let mut task = task(&wallet);
    task.config.max_attempts = 1;
    let (_, view) = rig.publish(&signed(&wallet, &task)).await;
    let id = view["task_id"].as_str().unwrap().to_owned();
    let taken = agent.next().await;
    rig.wait_for(&id, "accepted").await;
    let fail = FailTask {
        task_id: taken.task_id,
        provider: agent.wallet.address(),
        attempt: 1,
        code: "bad_input".to_owned(),
        message: "line 7 of the hidden input".to_owned(),
        issued_at: now(),
    };
    let (status, told) = rig.mutate(&agent.wallet, &id, "fail", &fail).await;
    assert_eq!((status, told["status"].as_str()), (StatusCode::OK, Some("failed")), "{told}");

    let (one, all) = (format!("/v1/tasks/{id}"), "/v1/tasks".to_owned());
    let other_key = rig.other_key().await;
    let call = serde_json::json!({ "jsonrpc": "2.0", "id": 1, "method": "zor_getTaskStatus", "params": { "task_id": id } });
    let by_rpc = rig.bare(Method::POST, "/rpc").bearer_auth(&other_key).json(&call);
    let mut shown = vec![told, answer(by_rpc).await.1["result"].take()];
    for path in [&one, &all] {
        shown.push(answer(rig.bare(Method::GET, path).bearer_auth(&other_key)).await.1);
    }
    for view in shown {
        let text = view.to_string();
        assert!(text.contains("bad_input") && !text.contains("hidden"), "{text}");
    }
    for path in [&one, &all] {
        let (_, view) = rig.get(path).await;
        assert!(view.to_string().contains("line 7 of the hidden input"), "its own key sees it: {view}");
    }
    rig.stop().await;
}
