//! Reading a task by the signature of its requester or of the provider that holds it.

use reqwest::{Method, StatusCode};
use rpc::tasks::SignedMutation;
use serde_json::Value;
use taskmarket::{CLOCK_TOLERANCE_SECS, ComputeProof, ContentHash, Domain, ReadTask, Timestamp};
use wallet::Wallet;

use crate::agent::Agent;
use crate::rig::{Rig, answer, assert_error, now};

/// The header by which a wallet asks to read a task.
fn header(wallet: &Wallet, task: &str, issued_at: Timestamp) -> String {
    let read = ReadTask { task_id: task.parse().unwrap(), reader: wallet.address(), issued_at };
    let signed = wallet.sign(&read, &Domain::UNSETTLED).unwrap();
    serde_json::to_string(&SignedMutation::from(signed)).unwrap()
}

async fn read(rig: &Rig, path: &str, header: &str) -> (StatusCode, Value) {
    answer(rig.bare(Method::GET, path).header("x-zorai-read", header)).await
}

#[tokio::test]
async fn the_parties_of_a_task_read_it_by_their_signatures() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let mut agent = Agent::connect(&rig).await;
    let id = rig.publish_new(&wallet).await;
    let taken = agent.next().await;
    rig.wait_for(&id, "accepted").await;
    let (requester, provider) = (header(&wallet, &id, now()), header(&agent.wallet, &id, now()));
    for party in [&requester, &provider] {
        let (status, view) = read(&rig, &format!("/v1/tasks/{id}"), party).await;
        assert_eq!((status, view["status"].as_str()), (StatusCode::OK, Some("accepted")), "{view}");
        assert!(view.to_string().contains("secret-input"), "all of it: {view}");
    }

    let result = b"the words are counted";
    let digest = artifact::Digest::of(result);
    let hash: ContentHash = digest.to_string().parse().unwrap();
    let put = rig.bare(Method::PUT, &format!("/v1/artifacts/{digest}")).bearer_auth(&taken.attempt_token);
    assert_eq!(put.body(result.to_vec()).send().await.unwrap().status(), StatusCode::CREATED);
    let artifact = format!("/v1/artifacts/{digest}");
    assert_error(&read(&rig, &artifact, &requester).await, 403, "wrong_party");
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
    let (status, view) = rig.mutate(&agent.wallet, &id, "proof", &proof).await;
    assert_eq!(status, StatusCode::OK, "{view}");

    for party in [&requester, &provider] {
        for path in [&format!("/v1/tasks/{id}/result"), &artifact] {
            let got = rig.bare(Method::GET, path).header("x-zorai-read", party).send().await.unwrap();
            assert_eq!(got.status(), StatusCode::OK, "{path}");
            assert_eq!(got.bytes().await.unwrap(), &result[..], "{path}");
        }
        for part in ["events", "evidence"] {
            let (status, told) = read(&rig, &format!("/v1/tasks/{id}/{part}"), party).await;
            assert_eq!(status, StatusCode::OK, "{part}: {told}");
            assert_eq!(told["events"].as_array().unwrap().len(), 3, "{part}: {told}");
        }
        let live = rig.bare(Method::GET, &format!("/v1/tasks/{id}/events"));
        let live =
            live.header("x-zorai-read", party).header("accept", "text/event-stream").send().await.unwrap();
        assert_eq!(live.headers()["content-type"], "text/event-stream");
    }
    let [explain, logs] = ["explain", "logs"].map(|part| format!("/v1/tasks/{id}/{part}"));
    let (status, told) = read(&rig, &explain, &requester).await;
    let summary = told["summary"].as_str().unwrap_or_default();
    assert!(status == StatusCode::OK && summary.starts_with("result submitted by"), "{told}");
    // The logs are asked for at the host, which ran nothing here.
    let (status, told) = read(&rig, &logs, &requester).await;
    assert!(![401, 403].contains(&status.as_u16()), "{told}");
    // What other hosts said is not the provider's to read, nor are the places of those who follow the logs its to take.
    let key = rig.other_key().await;
    for path in [&explain, &logs] {
        assert_error(&read(&rig, path, &provider).await, 403, "wrong_party");
        let with_key = rig.bare(Method::GET, path).bearer_auth(&key).header("x-zorai-read", &provider);
        assert_error(&answer(with_key).await, 403, "forbidden");
    }
    rig.stop().await;
}

#[tokio::test]
async fn other_signatures_read_nothing() {
    let (rig, wallet, stranger) = (Rig::start().await, Wallet::random(), Wallet::random());
    let (id, other) = (rig.publish_new(&wallet).await, rig.publish_new(&wallet).await);
    let own = header(&wallet, &id, now());
    let paths = ["", "/events", "/result", "/evidence", "/explain", "/logs"]
        .map(|part| format!("/v1/tasks/{id}{part}"));
    let old = Timestamp::from_unix(now().unix() - CLOCK_TOLERANCE_SECS - 60);
    let early = now().plus(CLOCK_TOLERANCE_SECS + 60);
    let forged = own.replace(&wallet.address().to_string(), &stranger.address().to_string());
    assert_ne!(forged, own);
    let long = own.replacen('{', &format!("{{{}", " ".repeat(1024)), 1);
    for path in &paths {
        for (header, status, code) in [
            (header(&stranger, &id, now()), 403, "wrong_party"),
            (header(&wallet, &other, now()), 400, "invalid_field"),
            (header(&wallet, &id, old), 400, "invalid_field"),
            (header(&wallet, &id, early), 400, "invalid_field"),
            (forged.clone(), 400, "invalid_signature"),
            ("{}".to_owned(), 400, "malformed_request"),
            (long.clone(), 400, "malformed_request"),
        ] {
            assert_error(&read(&rig, path, &header).await, status, code);
        }
        assert_error(&answer(rig.bare(Method::GET, path)).await, 401, "invalid_api_key");
    }
    // A signature opens reading alone, and nothing of others' tasks; nor does it take from what an API key may see.
    for path in [
        "/v1/tasks".to_owned(),
        format!("/v1/tasks/{id}/webhooks"),
        format!("/v1/events?requester={}", wallet.address()),
    ] {
        assert_error(&read(&rig, &path, &own).await, 401, "invalid_api_key");
    }
    let put = rig.bare(Method::PUT, &format!("/v1/artifacts/{}", artifact::Digest::of(b"x")));
    assert_error(&answer(put.header("x-zorai-read", &own).body("x")).await, 401, "invalid_api_key");
    let key = rig.other_key().await;
    let part = rig.bare(Method::GET, &paths[0]).bearer_auth(&key);
    let (status, view) = answer(part.header("x-zorai-read", header(&stranger, &id, now()))).await;
    assert!(status == StatusCode::OK && !view.to_string().contains("secret-input"), "{view}");
    let whole = rig.bare(Method::GET, &paths[0]).bearer_auth(&key).header("x-zorai-read", &own);
    assert!(answer(whole).await.1.to_string().contains("secret-input"));
    rig.stop().await;
}
