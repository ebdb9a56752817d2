//! The blob store over HTTP, and what an attempt token opens of it.

use std::sync::Arc;

use artifact::{Digest, FolderEntry, FolderManifest};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::{Method, StatusCode};
use sha2::Sha256;
use store::Secrets;
use taskmarket::{Address, FailTask, Task, TaskId};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wallet::Wallet;

use crate::agent::Agent;
use crate::rig::{KEY, PATIENCE, Rig, answer, assert_error, now, signed, task};

#[tokio::test]
async fn a_blob_goes_in_and_out() {
    let rig = Rig::start().await;
    let bytes: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
    let digest = rig.store(&bytes).await;
    let path = format!("/v1/artifacts/{digest}");
    let again = rig.request(Method::PUT, &path).body(bytes.clone()).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::OK, "storing again changes nothing");

    let head = rig.request(Method::HEAD, &path).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], "200000");
    assert_eq!(head.headers()["etag"].to_str().unwrap(), format!("\"{digest}\""));
    let whole = rig.request(Method::GET, &path).send().await.unwrap();
    assert_eq!(whole.headers()["accept-ranges"], "bytes");
    assert_eq!(whole.bytes().await.unwrap(), bytes);

    let part = |range: &str| rig.request(Method::GET, &path).header("range", range).send();
    let middle = part("bytes=1000-1999").await.unwrap();
    assert_eq!(middle.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(middle.headers()["content-range"], "bytes 1000-1999/200000");
    assert_eq!(middle.bytes().await.unwrap(), bytes[1000..2000]);
    assert_eq!(part("bytes=199990-").await.unwrap().bytes().await.unwrap(), bytes[199_990..]);
    let outside = part("bytes=200000-").await.unwrap();
    assert_eq!(outside.headers()["content-range"], "bytes */200000");
    assert_eq!(outside.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_error(
        &answer(rig.request(Method::GET, &path).header("range", "bytes=-0")).await,
        416,
        "range_not_satisfiable",
    );
    let other =
        rig.request(Method::GET, &path).header("range", "bytes=0-1").header("if-range", "\"another\"");
    assert_eq!(other.send().await.unwrap().status(), StatusCode::OK, "another version's range means nothing");
    let known = rig.request(Method::GET, &path).header("if-none-match", format!("\"{digest}\""));
    assert_eq!(known.send().await.unwrap().status(), StatusCode::NOT_MODIFIED);
    rig.stop().await;
}

#[tokio::test]
async fn wrong_and_large_bytes_are_refused_and_not_kept() {
    let rig = Rig::start_in(TempDir::new().unwrap(), |config| config.max_artifact_bytes = 1000).await;
    let announced = Digest::of(b"announced");
    let path = format!("/v1/artifacts/{announced}");
    assert_error(&answer(rig.request(Method::PUT, &path).body("sent")).await, 400, "hash_mismatch");
    let large = vec![7; 1001];
    let path_of_large = format!("/v1/artifacts/{}", Digest::of(&large));
    assert_error(
        &answer(rig.request(Method::PUT, &path_of_large).body(large.clone())).await,
        413,
        "payload_too_large",
    );
    let pieces = large.chunks(100).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect::<Vec<_>>();
    let undeclared = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    assert_error(
        &answer(rig.request(Method::PUT, &path_of_large).body(undeclared)).await,
        413,
        "payload_too_large",
    );
    for path in [path, path_of_large] {
        assert_error(&rig.get(&path).await, 404, "not_found");
    }
    assert_eq!(rig.store(&[7; 1000]).await, Digest::of(&[7; 1000]), "the limit itself fits");
    rig.stop().await;
}

#[tokio::test]
async fn a_key_stores_no_more_than_its_quota() {
    let rig = Rig::start_in(TempDir::new().unwrap(), |config| config.artifact_quota = Some(1000)).await;
    rig.store(&[1; 600]).await;
    let put = |bytes: Vec<u8>| {
        let path = format!("/v1/artifacts/{}", Digest::of(&bytes));
        rig.request(Method::PUT, &path).body(bytes)
    };
    let over = answer(put(vec![2; 401])).await;
    assert_error(&over, 413, "quota_exceeded");
    let pieces: Vec<_> = (0..5).map(|_| Ok::<_, std::io::Error>(vec![2; 100])).collect();
    let undeclared = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let path = format!("/v1/artifacts/{}", Digest::of(&[2; 500]));
    let over = answer(rig.request(Method::PUT, &path).body(undeclared)).await;
    assert_error(&over, 413, "quota_exceeded");
    assert_error(&rig.get(&path).await, 404, "not_found");
    // What is stored already takes no room.
    assert_eq!(put(vec![1; 600]).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(put(vec![3; 400]).send().await.unwrap().status(), StatusCode::CREATED);
    let path = format!("/v1/artifacts/{}", Digest::of(b"4"));
    let other = rig.bare(Method::PUT, &path).bearer_auth(rig.other_key().await).body("4");
    assert_eq!(other.send().await.unwrap().status(), StatusCode::CREATED, "another's quota is its own");
    rig.stop().await;
}

#[tokio::test]
async fn two_relays_can_share_the_artifacts_of_a_folder() {
    let shared = TempDir::new().unwrap();
    let start = async || {
        let folder = shared.path().to_owned();
        Rig::start_in(TempDir::new().unwrap(), |config| config.artifacts = folder.into()).await
    };
    let (first, second) = (start().await, start().await);
    let digest = first.store(b"for both").await;
    // Each has a store of its own here: to the second they are nobody's until somebody stores them there.
    assert_error(&second.get(&format!("/v1/artifacts/{digest}")).await, 404, "not_found");
    second.store(b"for both").await;
    let read = second.request(Method::GET, &format!("/v1/artifacts/{digest}")).send().await.unwrap();
    assert_eq!(read.bytes().await.unwrap(), "for both");
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_client_that_waits_need_not_send_what_is_there() {
    let rig = Rig::start().await;
    let digest = rig.store(b"known bytes").await;
    let mut socket = tokio::net::TcpStream::connect(rig.addr).await.unwrap();
    let head = format!(
        "PUT /v1/artifacts/{digest} HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {KEY}\r\n\
         content-length: 11\r\nexpect: 100-continue\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    tokio::time::timeout(PATIENCE, socket.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    rig.stop().await;
}

#[tokio::test]
async fn an_upload_that_broke_off_goes_on() {
    let rig = Rig::start().await;
    let bytes: Vec<u8> = (0..500_000u32).flat_map(u32::to_le_bytes).collect();
    let path = format!("/v1/artifacts/{}", Digest::of(&bytes));
    let mut socket = tokio::net::TcpStream::connect(rig.addr).await.unwrap();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {KEY}\r\ncontent-length: {}\r\n\r\n",
        bytes.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&bytes[..1_200_000]).await.unwrap();
    drop(socket);
    let came = async |key: &str| {
        let head = rig.bare(Method::HEAD, &path).bearer_auth(key).send().await.unwrap();
        assert_eq!(head.status(), StatusCode::NOT_FOUND);
        head.headers().get("upload-offset").map(|came| came.to_str().unwrap().parse::<usize>().unwrap())
    };
    let kept = async {
        loop {
            if let Some(came) = came(KEY).await {
                return came;
            }
        }
    };
    let kept = tokio::time::timeout(PATIENCE, kept).await.unwrap();
    assert!((1..=1_200_000).contains(&kept), "{kept}");
    let other = rig.other_key().await;
    assert_eq!(came(&other).await, None, "another's upload is its own");

    let rest = |key: &str, from: usize| {
        let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
        let request = rig.bare(Method::PUT, &path).bearer_auth(key).header("content-range", range);
        request.body(bytes[from..].to_vec())
    };
    assert_error(&answer(rest(&other, kept)).await, 416, "range_not_satisfiable");
    assert_error(&answer(rest(KEY, kept - 1)).await, 416, "range_not_satisfiable");
    for wrong in
        ["bytes 5-9/20", "bytes */20", "bytes 9-5/10", "items 0-9/10", "bytes 1-18446744073709551615/0"]
    {
        let request = rig.request(Method::PUT, &path).header("content-range", wrong).body("x");
        assert_error(&answer(request).await, 400, "malformed_request");
    }
    assert_eq!(rest(KEY, kept).send().await.unwrap().status(), StatusCode::CREATED);
    let whole = rig.request(Method::GET, &path).send().await.unwrap();
    assert!(whole.bytes().await.unwrap() == bytes);
    assert_eq!(rest(&other, kept).send().await.unwrap().status(), StatusCode::OK, "it is there");
    rig.stop().await;
}

/// The token of an attempt, made by its published recipe from the relay's secret.
fn token(secret: &[u8; 32], id: TaskId, attempt: u32, provider: Address) -> String {
    let node = [7; 32];
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
    mac.update(id.0.as_slice());
    mac.update(&attempt.to_be_bytes());
    mac.update(provider.as_slice());
    mac.update(&node);
    let mac = hex::encode(mac.finalize().into_bytes());
    format!("zat_{}_{attempt}_{}_{}_{mac}", hex::encode(id.0), hex::encode(provider), hex::encode(node))
}

#[tokio::test]
async fn an_attempt_reads_what_its_task_names_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let before = store::Sqlite::open(dir.path().join("store")).await.unwrap();
    let secret = before.secret("attempt-token").await.unwrap();
    store::Store::close(&before).await;
    drop(before);
    let (rig, wallet) =
        (Rig::start_in(dir, |config| config.max_artifact_bytes = 4096).await, Wallet::random());

    let weights = rig.store(b"weights").await;
    let folder =
        FolderManifest::new(vec![FolderEntry { path: "w.bin".to_owned(), size: 7, digest: weights }])
            .unwrap();
    let folder = rig.store(&folder.to_bytes()).await;
    // The input is named by its pinned hash alone.
    let (input, private) = (rig.store(b"input").await, rig.store(b"private").await);
    let task = Task {
        model_cid: format!("artifact://{folder}/").parse().unwrap(),
        input_hash: input.to_string().parse().unwrap(),
        ..task(&wallet)
    };
    let (status, view) = rig.publish(&signed(&wallet, &task)).await;
    assert_eq!(status, StatusCode::CREATED, "{view}");
    let id: TaskId = view["task_id"].as_str().unwrap().parse().unwrap();
    let holder = Wallet::random();
    let of = |method: Method, digest: Digest, attempt: u32, provider: Address| {
        let token = token(&secret, id, attempt, provider);
        rig.bare(method, &format!("/v1/artifacts/{digest}")).bearer_auth(token)
    };
    let with = |method, digest, attempt| of(method, digest, attempt, holder.address());
    // Nobody was offered it: whoever has a token of it from before waits.
    assert_error(&answer(with(Method::GET, input, 1)).await, 503, "unavailable");
    assert_error(&answer(with(Method::PUT, private, 1).body("private")).await, 503, "unavailable");
    let mut agent = Agent::connect_as(&rig, Arc::new(holder.clone()), Vec::new()).await;
    assert_eq!(agent.next().await.attempt_token, token(&secret, id, 1, holder.address()));
    rig.wait_for(&id.to_string(), "accepted").await;
    // Who was offered it too, or might have been, is not the holder.
    for method in [Method::GET, Method::HEAD, Method::PUT] {
        let other = of(method, input, 1, Address::repeat_byte(5)).body("input").send().await.unwrap();
        assert_eq!(other.status(), StatusCode::FORBIDDEN);
    }
    for named in [folder, weights, input] {
        let response = with(Method::GET, named, 1).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{named}");
        assert_eq!(Digest::of(&response.bytes().await.unwrap()), named);
    }
    assert_error(&answer(with(Method::GET, private, 1)).await, 403, "forbidden");
    assert_error(&answer(with(Method::GET, input, 2)).await, 403, "forbidden");
    let forged = rig.bare(Method::GET, &format!("/v1/artifacts/{input}")).bearer_auth(token(
        &[0; 32],
        id,
        1,
        holder.address(),
    ));
    assert_error(&answer(forged).await, 401, "invalid_api_key");
    let list = rig.bare(Method::GET, "/v1/tasks").bearer_auth(token(&secret, id, 1, holder.address()));
    assert_error(&answer(list).await, 401, "invalid_api_key");

    let head = with(Method::HEAD, private, 1).send().await.unwrap();
    assert_eq!(head.status(), StatusCode::FORBIDDEN, "it may not ask what others stored");
    // Nor learn it by storing: what it did not store itself it has to send.
    let known = with(Method::PUT, private, 1).body("privatE");
    assert_error(&answer(known).await, 400, "hash_mismatch");

    let result = vec![1; 4000];
    let wrong = with(Method::PUT, Digest::of(b"other"), 1).body(result.clone());
    assert_error(&answer(wrong).await, 400, "hash_mismatch");
    // What was refused does not count.
    let put = with(Method::PUT, Digest::of(&result), 1).body(result).send().await.unwrap();
    assert_eq!(put.status(), StatusCode::CREATED);
    let head = with(Method::HEAD, Digest::of(&[1; 4000]), 1).send().await.unwrap();
    assert_eq!(head.status(), StatusCode::OK, "it may ask whether its result is there");
    let more = vec![2; 4000];
    let put = with(Method::PUT, Digest::of(&more), 1).body(more);
    assert_error(&answer(put).await, 413, "payload_too_large");

    let fail = FailTask {
        task_id: id,
        provider: holder.address(),
        attempt: 1,
        code: "bad_input".to_owned(),
        message: "secret words".to_owned(),
        issued_at: now(),
    };
    let (_, shown) = rig.mutate(&holder, &id.to_string(), "fail", &fail).await;
    assert_eq!(shown["failure"]["code"], "bad_input", "{shown}");
    let over = answer(with(Method::GET, input, 1)).await;
    assert_error(&over, 403, "forbidden");
    rig.stop().await;
}
