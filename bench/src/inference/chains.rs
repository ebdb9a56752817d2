//! What clients and an engine are joined by: nothing, what people assemble, and the market.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use rcgen::generate_simple_self_signed;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;

use super::load::NAME;
use super::processes::{Process, free_address};
use super::upstream::MODEL;

/// The key of everybody who wants one.
pub(super) const API_KEY: &str = "bench-bench-bench-bench-bench-bench";
/// The provider's key: worthless anywhere else.
const PROVIDER_KEY: &str = "1111111111111111111111111111111111111111111111111111111111111111";
/// The relay's name.
pub(super) const RELAY_ID: &str = "bench";
/// How long a chain may take until a model answers behind it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many requests the engine is said to work on at once: more than there ever are.
const SLOTS: u32 = 1024;
/// Processes of LiteLLM.
const WORKERS: u32 = 4;

/// Something that clients can connect to.
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    pub(super) certificate: Option<PathBuf>,
    pub(super) processes: Vec<Process>,
}

/// A certificate and its key, in files.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) certificate: PathBuf,
    key: PathBuf,
}

impl Identity {
    /// A new one, which vouches for itself.
    pub(super) fn new(folder: &Path) -> anyhow::Result<Self> {
        let made = generate_simple_self_signed([NAME.to_owned()])?;
        let own = Self { certificate: folder.join("certificate.pem"), key: folder.join("key.pem") };
        fs::write(&own.certificate, made.cert.pem())?;
        fs::write(&own.key, made.signing_key.serialize_pem())?;
        Ok(own)
    }
}

/// A TLS client that trusts one certificate.
pub(super) fn trusting(certificate: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(tls.with_root_certificates(roots).with_no_client_auth()))
}

/// The engine alone.
pub(super) fn direct(upstream: SocketAddr) -> Chain {
    Chain { name: "direct", address: upstream, certificate: None, processes: Vec::new() }
}

/// nginx, which ends TLS before `next`.
pub(super) fn nginx(
    program: &Path,
    folder: &Path,
    identity: &Identity,
    next: SocketAddr,
) -> anyhow::Result<Chain> {
    fs::create_dir_all(folder)?;
    let (address, dir) = (free_address()?, folder.display());
    let Identity { certificate, key } = identity;
    let config = folder.join("nginx.conf");
    // As one sets it up for streams: nothing is held back, and connections last.
    fs::write(
        &config,
        format!(
            "daemon off;\nworker_processes auto;\nuser root;\npid {dir}/nginx.pid;\nerror_log {dir}/error.log crit;\n\
             events {{ worker_connections 8192; }}\nhttp {{\n  access_log off;\n  keepalive_requests 1000000000;\n\
             client_max_body_size 64m;\n  client_body_buffer_size 16m;\n  client_body_temp_path {dir}/body;\n\
             proxy_temp_path {dir}/proxy;\n  fastcgi_temp_path {dir}/fastcgi;\n  uwsgi_temp_path {dir}/uwsgi;\n  scgi_temp_path {dir}/scgi;\n\
             upstream next {{ server {next}; keepalive 512; keepalive_requests 1000000000; }}\n  server {{\n    listen {address} ssl;\n\
             ssl_certificate {};\n    ssl_certificate_key {};\n    location / {{\n      proxy_pass http://next;\n\
             proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n      proxy_buffering off;\n\
             proxy_request_buffering off;\n      proxy_buffer_size 16k;\n      proxy_buffers 8 16k;\n    }}\n  }}\n}}\n",
            certificate.display(),
            key.display()
        ),
    )?;
    let mut command = Command::new(program);
    let mut process = Process::start(folder, "nginx", command.arg("-c").arg(&config).arg("-p").arg(folder))?;
    process.listens(address)?;
    let certificate = Some(certificate.clone());
    Ok(Chain { name: "nginx TLS", address, certificate, processes: vec![process] })
}

/// nginx before a rathole tunnel.
pub(super) fn tunnel(
    (nginx_program, program): (&Path, &Path),
    folder: &Path,
    identity: &Identity,
    upstream: SocketAddr,
) -> anyhow::Result<Chain> {
    fs::create_dir_all(folder)?;
    let (control, entrance) = (free_address()?, free_address()?);
    let (server, client) = (folder.join("server.toml"), folder.join("client.toml"));
    // Without `nodelay` its streams stall for 40 ms.
    let service = |side: &str, place: &str, address: SocketAddr| {
        format!(
            "default_token = \"bench\"\n[{side}.services.bench]\n{place} = \"{address}\"\nnodelay = true\n"
        )
    };
    let of_server = service("server", "bind_addr", entrance);
    fs::write(&server, format!("[server]\nbind_addr = \"{control}\"\n{of_server}"))?;
    let of_client = service("client", "local_addr", upstream);
    fs::write(&client, format!("[client]\nremote_addr = \"{control}\"\n{of_client}"))?;
    let mut serving =
        Process::start(folder, "rathole server", Command::new(program).arg("--server").arg(&server))?;
    serving.listens(control)?;
    let dialling =
        Process::start(folder, "rathole client", Command::new(program).arg("--client").arg(&client))?;
    serving.listens(entrance)?;
    let mut chain = nginx(nginx_program, &folder.join("nginx"), identity, entrance)?;
    chain.name = "nginx TLS + rathole";
    chain.processes.extend([serving, dialling]);
    Ok(chain)
}

/// LiteLLM's proxy, without TLS.
pub(super) fn litellm(program: &Path, folder: &Path, upstream: SocketAddr) -> anyhow::Result<Chain> {
    fs::create_dir_all(folder)?;
    let config = folder.join("config.yaml");
    fs::write(
        &config,
        format!(
            "model_list:\n  - model_name: {MODEL}\n    litellm_params:\n      model: openai/{MODEL}\n      \
             api_base: http://{upstream}/v1\n      api_key: none\n"
        ),
    )?;
    let address = free_address()?;
    let mut command = Command::new(program);
    command.arg("--config").arg(&config).args(["--host", "127.0.0.1", "--port", &address.port().to_string()]);
    command.args(["--num_workers", &WORKERS.to_string(), "--telemetry", "False"]);
    // It listens on loopback, knows no secret, and asks nobody for prices.
    command.env("LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY", "true");
    command.env("LITELLM_LOCAL_MODEL_COST_MAP", "True");
    let mut process = Process::start(folder, "litellm", &mut command)?;
    process.listens(address)?;
    Ok(Chain { name: "LiteLLM, 4 workers", address, certificate: None, processes: vec![process] })
}

/// The market's programs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Programs {
    /// The folder of compute-relay, compute-agent and compute-node, built with --release.
    #[arg(long, value_name = "DIR", default_value = "target/release")]
    pub(super) programs: PathBuf,
}

impl Programs {
    /// A relay with TLS that takes as many clients as come.
    pub(super) fn relay(
        &self,
        folder: &Path,
        identity: &Identity,
        more: &[&str],
    ) -> anyhow::Result<(Process, SocketAddr)> {
        fs::create_dir_all(folder)?;
        let (plain, address) = (free_address()?, free_address()?);
        let mut command = Command::new(self.programs.join("compute-relay"));
        command
            .args(["--listen", &plain.to_string(), "--tls-listen", &address.to_string()])
            .args(["--relay-id", RELAY_ID, "--max-connections-per-ip", "0"])
            .args(["--public-url", &format!("wss://{NAME}:{}", address.port())])
            .arg("--tls-cert")
            .arg(&identity.certificate)
            .arg("--tls-key")
            .arg(&identity.key)
            .arg("--store")
            .arg(folder.join("store"))
            .args(more)
            .env("ZORAI_AI_API_KEY", API_KEY);
        let mut relay = Process::start(folder, "compute-relay", &mut command)?;
        relay.listens(address)?;
        Ok((relay, address))
    }

    /// Relay, agent and node.
    pub(super) async fn market(
        &self,
        folder: &Path,
        identity: &Identity,
        upstream: SocketAddr,
    ) -> anyhow::Result<Chain> {
        let (relay, address) = self.relay(folder, identity, &[])?;
        let (at, token) = (free_address()?, folder.join("token"));
        let mut command = Command::new(self.programs.join("compute-node"));
        command
            .args([
                "--listen",
                &at.to_string(),
                "--engine",
                &format!("{MODEL}=http://{upstream},slots={SLOTS}"),
            ])
            .arg("--compute-token-file")
            .arg(&token)
            .arg("--data")
            .arg(folder.join("node"));
        let mut node = Process::start(folder, "compute-node", &mut command)?;
        node.listens(at)?;
        let mut command = Command::new(self.programs.join("compute-agent"));
        command
            .args(["--relay", &format!("wss://{NAME}:{}{}", address.port(), rpc::PROVIDER_CONNECT_PATH)])
            .args(["--relay-id", RELAY_ID, "--compute-url", &format!("http://{at}")])
            .args(["--price", "*=1000000,2000000"])
            .arg("--compute-token-file")
            .arg(&token)
            .arg("--ca-file")
            .arg(&identity.certificate)
            .arg("--data")
            .arg(folder.join("agent"))
            .env("PROVIDER_PRIVATE_KEY", PROVIDER_KEY);
        let agent = Process::start(folder, "compute-agent", &mut command)?;
        let certificate = Some(identity.certificate.clone());
        let processes = vec![relay, agent, node];
        let chain = Chain { name: "this market", address, certificate, processes };
        chain.until("/v1/models", "the model", |models| models["data"][0]["id"] == MODEL).await?;
        Ok(chain)
    }
}

impl Chain {
    /// Waits until `check` says yes to what is answered at `path`.
    pub(super) async fn until(
        &self,
        path: &str,
        what: &str,
        check: impl Fn(&serde_json::Value) -> bool,
    ) -> anyhow::Result<serde_json::Value> {
        let begun = Instant::now();
        loop {
            let answer = self.get(path).await?;
            if check(&answer) {
                return Ok(answer);
            }
            if begun.elapsed() > PATIENCE {
                bail!("{}: {path} never came to {what}: {answer}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks for JSON, over a connection of its own.
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<serde_json::Value> {
        let certificate = self.certificate.as_deref().context("plain chains are asked for nothing")?;
        let tls = tokio_rustls::TlsConnector::from(trusting(certificate)?);
        let socket = TcpStream::connect(self.address).await?;
        let stream = tls.connect(rustls::pki_types::ServerName::try_from(NAME)?, socket).await?;
        let (mut client, connection) = handshake(TokioIo::new(stream)).await?;
        let request = http::Request::get(path)
            .header(http::header::HOST, NAME)
            .header(http::header::AUTHORIZATION, format!("Bearer {API_KEY}"))
            .body(Empty::<bytes::Bytes>::new())?;
        let answered = async {
            let body = client.send_request(request).await?.into_body().collect().await?.to_bytes();
            anyhow::Ok(serde_json::from_slice(&body)?)
        };
        tokio::select! {
            answer = answered => answer,
            ended = connection => bail!("{}: the connection ended: {ended:?}", self.name),
        }
    }
}
