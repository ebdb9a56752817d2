//! The way out of containers, on a real engine.

use computenode::runtime::container::EgressPolicy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[expect(clippy::print_stdout, reason = "a check that is skipped says why")]
pub(crate) async fn domains_are_reached_by_the_proxy_only(bench: &Bench) {
    let server = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = server.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = server.accept().await {
            let mut head = vec![0; 4096];
            let _ = stream.read(&mut head).await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
            let _ = stream.write_all(answer).await;
        }
    });
    let egress = EgressPolicy {
        domains: vec!["localhost".to_owned()],
        ports: vec![port],
        allow_private_addresses: true,
        ..EgressPolicy::default()
    };
    let settings = ContainerSettings { egress, ..settings(&bench.engine) };
    let runtime = detect(settings, fetcher(bench.folder.path(), false)).await;
    let job = |script: &str, egress: &str| {
        let params = ContainerParams {
            args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            egress: vec![egress.to_owned()],
            ..ContainerParams::default()
        };
        bench.job_with(params, &bench.image)
    };
    let context = Context::default();
    if let Some(reason) = &runtime.report().egress_unavailable {
        println!("no way out here: {reason}");
        let (job, _folder) = job("true", "localhost");
        let error = run(&runtime, job, &context).await.unwrap_err();
        assert_eq!(error.code, RunCode::EgressUnavailable);
    } else {
        let (get, _folder) =
            job(&format!("wget -q -O - http://localhost:{port}/; ls /sys/class/net"), "localhost");
        assert_eq!(run(&runtime, get, &context).await.unwrap(), b"hellolo\n");
        for (script, what) in [
            (format!("wget -q -O - http://127.0.0.1:{port}/"), "an address that was not granted"),
            (
                format!("unset http_proxy; wget -q -O - http://localhost:{port}/"),
                "the host without the proxy",
            ),
            ("wget -q -O - http://localhost:1/".to_owned(), "a port that was not granted"),
        ] {
            let (get, _folder) = job(&script, "localhost");
            assert_eq!(
                run(&runtime, get, &context).await.expect_err(what).code,
                RunCode::ExitNonzero,
                "{what}"
            );
        }
    }
    let (ungranted, _folder) = job("true", "example.org");
    assert_eq!(run(&runtime, ungranted, &context).await.unwrap_err().code, RunCode::EgressRefused);
    let (asking, _folder) = job("true", "localhost");
    assert_eq!(bench.run(asking).await.unwrap_err().code, RunCode::EgressRefused);
    serving.abort();
}

/// What a TLS client says first, and a server with a certificate that answers it. The handshake ends there: no client waits for more.
async fn tls() -> (Vec<u8>, u16, tokio::task::JoinHandle<()>) {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let private = key.signing_key.serialize_der().try_into().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider));
    let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let server = server.with_single_cert(vec![key.cert.der().clone()], private).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            assert!(acceptor.accept(stream).await.is_err(), "the client never ends its handshake");
        }
    });
    let client = rustls::ClientConfig::builder_with_provider(provider);
    let client = client.with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    (hello, port, serving)
}

#[expect(clippy::print_stdout, reason = "a check that is skipped says why")]
pub(crate) async fn tunnels_lead_to_granted_domains_only(bench: &Bench) {
    let (hello, port, serving) = tls().await;
    let egress = EgressPolicy {
        domains: vec!["localhost".to_owned()],
        ports: vec![port],
        allow_private_addresses: true,
        ..EgressPolicy::default()
    };
    let settings = ContainerSettings { egress, ..settings(&bench.engine) };
    let runtime = detect(settings, fetcher(bench.folder.path(), false)).await;
    if let Some(reason) = &runtime.report().egress_unavailable {
        println!("no way out here: {reason}");
        return;
    }
    let answer = async |to: &str| {
        let script = format!(
            "(printf 'CONNECT {to} HTTP/1.1\\r\\nHost: {to}\\r\\n\\r\\n'; cat /in/input) | nc 127.0.0.1 ${{http_proxy##*:}} || true"
        );
        let params = ContainerParams {
            args: vec!["/bin/sh".to_owned(), "-c".to_owned(), script],
            egress: vec!["localhost".to_owned()],
            ..ContainerParams::default()
        };
        let (job, _folder) = bench.job_with(params, &bench.image);
        std::fs::write(&job.input, &hello).unwrap();
        run(&runtime, job, &Context::default()).await.unwrap()
    };
    let through = answer(&format!("localhost:{port}")).await;
    let head = through.windows(4).position(|part| part == b"\r\n\r\n").expect("an answer") + 4;
    assert!(through.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&through));
    // A handshake record of TLS 1.2 or later, which holds a ServerHello.
    assert_eq!((&through[head..head + 3], through[head + 5]), (&[0x16, 3, 3][..], 2));
    for refused in [format!("example.org:{port}"), format!("127.0.0.1:{port}"), "localhost:1".to_owned()] {
        let answer = answer(&refused).await;
        assert!(answer.starts_with(b"HTTP/1.1 403 "), "{refused}: {}", String::from_utf8_lossy(&answer));
    }
    serving.abort();
}
