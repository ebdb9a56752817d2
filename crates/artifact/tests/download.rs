//! Downloads of single files: every way they fail, and how they are resumed.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use artifact::{Digest, FetchPolicy, Fetcher, Origin, Reference};
use common::{Reply, Server, assert_empty, fetcher, get, ok, policy, redirect, status};
use tokio::net::TcpListener;

#[tokio::test]
async fn a_file_arrives_checked_and_is_not_fetched_twice() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::serving(b"model").await;
    let fetcher = fetcher(dir.path(), policy());
    let seen = Mutex::new(Vec::new());
    let pin = Some(Digest::of(b"model"));
    let reference = server.reference("/m");
    let progress = |done, total| seen.lock().unwrap().push((done, total));
    let file = fetcher.fetch_file(&reference, pin, None, progress).await.unwrap();
    assert_eq!((Some(file.digest), file.size), (pin, 5));
    assert_eq!(std::fs::read(&file.path).unwrap(), b"model");
    assert_eq!(seen.into_inner().unwrap().last(), Some(&(5, Some(5))));

    assert_eq!(fetcher.fetch_file(&reference, pin, None, |_, _| {}).await.unwrap(), file);
    assert_eq!(server.requests().len(), 1);
    assert_eq!(get(&fetcher, &reference).await.unwrap(), file, "unpinned, so asked again");
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn a_fetch_can_be_a_task_of_its_own_and_leaves_nothing_when_aborted() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| Reply::Hang(status("200 OK", "content-length: 10\r\n", b"some"))).await;
    let (fetcher, reference) = (fetcher(dir.path(), policy()), server.reference("/m"));
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let theirs = fetcher.clone();
    let task = tokio::spawn(async move {
        theirs.fetch_file(&reference, None, None, move |done, _| begun.send(done).unwrap()).await
    });
    while begins.recv().await != Some(4) {}
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_empty(&fetcher, dir.path()).await;
}

#[tokio::test]
async fn failures_have_their_codes_and_keep_nothing() {
    let cases: [(&str, &str, usize); 10] = [
        ("404 Not Found", "not_found", 1),
        ("410 Gone", "not_found", 1),
        ("401 Unauthorized", "unauthorized", 1),
        ("403 Forbidden", "unauthorized", 1),
        ("418 I'm a teapot", "unreachable", 1),
        ("204 No Content", "unreachable", 1),
        ("206 Partial Content", "unreachable", 1),
        ("304 Not Modified", "unreachable", 1),
        ("500 Internal Server Error", "unreachable", 3),
        ("503 Service Unavailable", "unreachable", 3),
    ];
    for (line, code, tries) in cases {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(move |_, _| Reply::Close(status(line, "", b""))).await;
        let fetcher = fetcher(dir.path(), policy());
        let error = get(&fetcher, &server.reference("/m?key=hunter2")).await.unwrap_err();
        assert_eq!((error.code(), server.requests().len()), (code, tries), "{line}: {error}");
        let text = format!("{error} {error:?}");
        assert!(text.contains(&server.url("/m")) && !text.contains("hunter2"), "{text}");
        assert_empty(&fetcher, dir.path()).await;
    }
}

#[tokio::test]
async fn wrong_hashes_and_sizes_keep_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let limit = FetchPolicy { max_bytes: 100_000, ..policy() };
    let fetcher = fetcher(dir.path(), limit);
    let server = Server::serving(b"other").await;
    let pin = Some(Digest::of(b"model"));
    let error = fetcher.fetch_file(&server.reference("/"), pin, None, |_, _| {}).await.unwrap_err();
    assert_eq!(error.code(), "bad_reference", "a folder");
    let error = fetcher.fetch_file(&server.reference("/m"), pin, None, |_, _| {}).await.unwrap_err();
    assert_eq!((error.code(), server.requests().len()), ("hash_mismatch", 1));

    for head in ["content-length: 100001\r\n", "", "content-length: 99999999999\r\n", "x: y\r\n"] {
        let server = Server::start(move |_, _| Reply::Endless(status("200 OK", head, b""))).await;
        let error = get(&fetcher, &server.reference("/m")).await.unwrap_err();
        assert_eq!((error.code(), server.requests().len()), ("too_large", 1), "{head}");
    }
    assert_empty(&fetcher, dir.path()).await;
}

#[tokio::test]
async fn broken_downloads_fail_after_all_tries() {
    let dir = tempfile::tempdir().unwrap();
    let fetcher = fetcher(dir.path(), policy());
    for (head, body) in [
        ("content-length: 10\r\n", "short"),
        ("transfer-encoding: chunked\r\n", "5\r\nshort\r\n"),
        ("transfer-encoding: chunked\r\n", "zz\r\n"),
    ] {
        let server = Server::start(move |_, _| Reply::Close(status("200 OK", head, body.as_bytes()))).await;
        let error = get(&fetcher, &server.reference("/m")).await.unwrap_err();
        assert_eq!((error.code(), server.requests().len()), ("truncated", 3), "{head}{body}");
    }
    let server = Server::start(|_, _| Reply::Close(b"garbage\r\n\r\n".to_vec())).await;
    assert_eq!(get(&fetcher, &server.reference("/m")).await.unwrap_err().code(), "unreachable");
    // A port that nobody listens on.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = get(&fetcher, &format!("http://{closed}/m").parse().unwrap()).await.unwrap_err();
    assert_eq!(error.code(), "unreachable");
    assert_empty(&fetcher, dir.path()).await;
}

#[tokio::test]
async fn silence_and_slowness_time_out() {
    let dir = tempfile::tempdir().unwrap();
    let idle = FetchPolicy { idle_timeout: Duration::from_millis(50), max_tries: 2, ..policy() };
    let impatient = fetcher(dir.path(), idle);
    for bytes in [Vec::new(), status("200 OK", "content-length: 10\r\n", b"some")] {
        let server = Server::start(move |_, _| Reply::Hang(bytes.clone())).await;
        let error = get(&impatient, &server.reference("/m")).await.unwrap_err();
        assert_eq!((error.code(), server.requests().len()), ("stalled", 2));
    }
    drop(impatient);
    let whole = FetchPolicy { timeout: Duration::from_millis(50), ..policy() };
    let fetcher = fetcher(dir.path(), whole);
    let server = Server::start(|_, _| Reply::Hang(Vec::new())).await;
    assert_eq!(get(&fetcher, &server.reference("/m")).await.unwrap_err().code(), "timed_out");
    assert_empty(&fetcher, dir.path()).await;
}

#[tokio::test]
async fn a_server_that_recovers_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|n, _| match n {
        0 => Reply::Close(Vec::new()),
        1 => Reply::Close(status("429 Too Many Requests", "retry-after: 0\r\n", b"")),
        _ => Reply::Close(ok("", b"model")),
    })
    .await;
    let file = get(&fetcher(dir.path(), policy()), &server.reference("/m")).await.unwrap();
    assert_eq!((file.digest, server.requests().len()), (Digest::of(b"model"), 3));
}

/// The server sends half of `0123456789`, then answers the second request by `second`.
async fn resumed(headers: &'static str, second: fn() -> Reply) -> (Server, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(move |n, _| match n {
        0 => Reply::Close(status("200 OK", &format!("{headers}content-length: 10\r\n"), b"01234")),
        1 => second(),
        _ => Reply::Close(ok("", b"0123456789")),
    })
    .await;
    let fetcher = fetcher(dir.path(), policy());
    let pin = Some(Digest::of(b"0123456789"));
    let file = fetcher.fetch_file(&server.reference("/m"), pin, None, |_, _| {}).await.unwrap();
    let bytes = std::fs::read(file.path).unwrap();
    (server, bytes)
}

#[tokio::test]
async fn a_broken_download_is_continued_where_it_broke_off() {
    let part = || Reply::Close(status("206 Partial Content", "content-range: bytes 5-9/10\r\n", b"56789"));
    let (server, bytes) = resumed("etag: \"v1\"\r\n", part).await;
    assert_eq!((bytes.as_slice(), server.requests().len()), (b"0123456789".as_slice(), 2));
    let requests = server.requests();
    assert!(!requests[0].contains("range:"), "{}", requests[0]);
    assert!(requests[1].contains("range: bytes=5-\r\n") && requests[1].contains("if-range: \"v1\"\r\n"));
}

#[tokio::test]
async fn a_date_that_is_old_enough_also_tells_versions_apart() {
    let part = || Reply::Close(status("206 Partial Content", "content-range: bytes 5-9/10\r\n", b"56789"));
    let old = "date: Mon, 23 Nov 2026 10:01:00 GMT\r\nlast-modified: Mon, 23 Nov 2026 10:00:00 GMT\r\n";
    let (server, bytes) = resumed(old, part).await;
    assert_eq!(bytes, b"0123456789");
    assert!(server.requests()[1].contains("if-range: mon, 23 nov 2026 10:00:00 gmt\r\n"));
}

#[tokio::test]
async fn compressed_answers_are_refused_before_they_can_swell() {
    let dir = tempfile::tempdir().unwrap();
    let fetcher = fetcher(dir.path(), policy());
    let server = Server::start(|_, _| Reply::Close(ok("content-encoding: gzip\r\n", b"\x1f\x8b..."))).await;
    let error = get(&fetcher, &server.reference("/m")).await.unwrap_err();
    assert_eq!((error.code(), server.requests().len()), ("content_encoded", 1));
    assert!(server.requests()[0].contains("accept-encoding: identity\r\n"));
    assert_empty(&fetcher, dir.path()).await;
    let plain = Server::start(|_, _| Reply::Close(ok("content-encoding: Identity\r\n", b"model"))).await;
    assert_eq!(get(&fetcher, &plain.reference("/m")).await.unwrap().size, 5);
}

#[tokio::test]
async fn what_cannot_be_continued_is_begun_anew() {
    // The file changed, so the server sends all of it.
    let whole = || Reply::Close(ok("", b"0123456789"));
    let (server, bytes) = resumed("etag: \"v1\"\r\n", whole).await;
    assert_eq!((bytes.as_slice(), server.requests().len()), (b"0123456789".as_slice(), 2));
    // The validator is weak, missing or too young to tell versions apart, so no part is asked for.
    let young = "date: Mon, 23 Nov 2026 10:00:59 GMT\r\nlast-modified: Mon, 23 Nov 2026 10:00:00 GMT\r\n";
    for headers in ["etag: W/\"v1\"\r\n", "", young, "last-modified: Mon, 23 Nov 2026 10:00:00 GMT\r\n"] {
        let (server, _) = resumed(headers, whole).await;
        assert!(!server.requests()[1].contains("range:"));
    }
    // The server sends another part, or none: the third request asks for everything.
    let other = || Reply::Close(status("206 Partial Content", "content-range: bytes 4-9/10\r\n", b"456789"));
    let none = || Reply::Close(status("416 Range Not Satisfiable", "", b""));
    for second in [other, none] {
        let (server, bytes) = resumed("etag: \"v1\"\r\n", second).await;
        assert_eq!((bytes.as_slice(), server.requests().len()), (b"0123456789".as_slice(), 3));
        assert!(!server.requests()[2].contains("range:"));
    }
}

#[tokio::test]
async fn redirects_are_followed_without_credentials_and_up_to_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let limit = FetchPolicy { max_redirects: 2, ..policy() };
    let fetcher = fetcher(dir.path(), limit);
    let target = Server::serving(b"model").await;
    let to = target.url("/m").replace("http://", "http://other:secret@");
    let server = Server::start(move |n, _| if n == 0 { redirect("/next") } else { redirect(&to) }).await;
    let start = server.url("/m").replace("http://", "http://user:secret@").parse().unwrap();
    assert_eq!(get(&fetcher, &start).await.unwrap().size, 5);
    assert!(server.requests()[0].contains("authorization: basic"));
    assert!(
        server.requests()[1].starts_with("get /next ") && !server.requests()[1].contains("authorization")
    );
    assert!(!target.requests()[0].contains("authorization"));

    let chain = Server::start(|n, _| redirect(&format!("/{n}"))).await;
    let error = get(&fetcher, &chain.reference("/m")).await.unwrap_err();
    assert_eq!((error.code(), chain.requests().len()), ("redirect_loop", 3));
    let circle = Server::start(|n, _| redirect(["/there", "/m"][n % 2])).await;
    let patient =
        Fetcher::new(FetchPolicy { max_redirects: 50, ..policy() }, fetcher.store().clone()).unwrap();
    let error = get(&patient, &circle.reference("/m")).await.unwrap_err();
    assert_eq!((error.code(), circle.requests().len()), ("redirect_loop", 2));
}

#[tokio::test]
async fn redirects_are_held_to_the_same_rules() {
    let dir = tempfile::tempdir().unwrap();
    let fetcher = fetcher(dir.path(), policy());
    for (to, code) in [
        ("http://169.254.169.254/latest/meta-data/", "forbidden_address"),
        ("https://[fe80::1]/", "forbidden_address"),
        ("http://0.0.0.0/", "forbidden_address"),
        ("http://1.1.1.1/", "not_allowed"),
        ("file:///etc/passwd", "not_allowed"),
        ("ftp://127.0.0.1/", "not_allowed"),
        ("http://", "unreachable"),
    ] {
        let server = Server::start(move |_, _| redirect(to)).await;
        let error = get(&fetcher, &server.reference("/m")).await.unwrap_err();
        assert_eq!((error.code(), server.requests().len()), (code, 1), "{to}: {error}");
    }
}

#[tokio::test]
async fn strangers_cannot_reach_private_hosts_by_default() {
    let dir = tempfile::tempdir().unwrap();
    let fetcher = fetcher(dir.path(), FetchPolicy::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for (host, code) in [
        ("https://localhost", "forbidden_address"),
        ("https://127.0.0.1", "forbidden_address"),
        ("https://[::ffff:127.0.0.1]", "forbidden_address"),
        ("http://127.0.0.1", "forbidden_address"),
        ("http://localhost", "not_allowed"),
        ("http://example.org", "not_allowed"),
    ] {
        let reference: Reference = format!("{host}:{port}/m").parse().unwrap();
        let error = get(&fetcher, &reference).await.unwrap_err();
        assert_eq!(error.code(), code, "{host}: {error}");
    }
    let accepted = tokio::time::timeout(Duration::ZERO, listener.accept()).await;
    assert!(accepted.is_err(), "no connection was made");
}

#[tokio::test]
async fn https_works_with_the_right_authority_only() {
    let dir = tempfile::tempdir().unwrap();
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = tokio_rustls::rustls::pki_types::PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server_tls = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server_tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reference: Reference =
        format!("https://localhost:{}/m", listener.local_addr().unwrap().port()).parse().unwrap();
    tokio::spawn(async move {
        let seen = Mutex::new(Vec::new());
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                common::serve_one(stream, &seen, &|_, _: &str| Reply::Close(ok("", b"model"))).await;
            }
        }
    });

    let strict = fetcher(dir.path(), policy());
    assert_eq!(get(&strict, &reference).await.unwrap_err().code(), "unreachable");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let trusting = Fetcher::with_tls(policy(), strict.store().clone(), &tls).unwrap();
    assert_eq!(get(&trusting, &reference).await.unwrap().digest, Digest::of(b"model"));
    let guarded = Fetcher::with_tls(FetchPolicy::default(), strict.store().clone(), &tls).unwrap();
    assert_eq!(get(&guarded, &reference).await.unwrap_err().code(), "forbidden_address");
}

#[tokio::test]
async fn artifacts_come_from_the_origin_with_its_token() {
    let dir = tempfile::tempdir().unwrap();
    // The origin is the operator's choice: the guard of the default policy does not apply to it.
    let fetcher = fetcher(dir.path(), FetchPolicy::default());
    let digest = Digest::of(b"input");
    let reference = Reference::artifact(digest);
    assert_eq!(get(&fetcher, &reference).await.unwrap_err().code(), "not_allowed", "no origin");

    let server = Server::start(|n, _| match n {
        0 => redirect("/elsewhere"),
        1 => Reply::Close(status("401 Unauthorized", "", b"")),
        2 => Reply::Close(ok("", b"forged")),
        3 => Reply::Close(status("200 OK", "content-length: 5\r\n", b"in")),
        _ => Reply::Close(status("206 Partial Content", "content-range: bytes 2-4/5\r\n", b"put")),
    })
    .await;
    let origin = Origin::new(&server.url("/base"), "hunter2").unwrap();
    for code in ["not_allowed", "unauthorized", "hash_mismatch"] {
        let error = fetcher.fetch_file(&reference, None, Some(&origin), |_, _| {}).await.unwrap_err();
        assert_eq!(error.code(), code);
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
    let other = Some(Digest::of(b"other"));
    let error = fetcher.fetch_file(&reference, other, Some(&origin), |_, _| {}).await.unwrap_err();
    assert_eq!(
        (error.code(), server.requests().len()),
        ("hash_mismatch", 3),
        "the reference says another hash"
    );

    let file = fetcher.fetch_file(&reference, None, Some(&origin), |_, _| {}).await.unwrap();
    assert_eq!((file.digest, file.size), (digest, 5));
    for request in server.requests() {
        assert!(request.starts_with(&format!("get /base/v1/artifacts/{digest} ")), "{request}");
        assert!(request.contains("authorization: bearer hunter2\r\n"), "{request}");
    }
}

#[tokio::test]
async fn what_cannot_be_fetched_says_so_unless_the_content_is_here() {
    let dir = tempfile::tempdir().unwrap();
    let fetcher = fetcher(dir.path(), FetchPolicy { ipfs_gateways: Vec::new(), ..policy() });
    let cid = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi";
    for text in [format!("ipfs://{cid}/m"), format!("oci://image@sha256:{}", Digest::of(b""))] {
        let reference: Reference = text.parse().unwrap();
        let error = get(&fetcher, &reference).await.unwrap_err();
        assert_eq!(error.code(), "unsupported_scheme");
        let error = fetcher.fetch_folder(&reference, None, None, &[], &[], |_, _| {}).await.unwrap_err();
        assert_eq!(error.code(), "unsupported_scheme");
    }
    let (digest, _) = fetcher.store().put_bytes(b"here", None).await.unwrap();
    let reference = format!("ipfs://{cid}").parse().unwrap();
    assert_eq!(fetcher.fetch_file(&reference, Some(digest), None, |_, _| {}).await.unwrap().size, 4);
}
