//! The relay as a whole: built from its configuration, run until it is told to end, drained.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use daemon::ListenError;
use store::{Postgres, Sqlite, Store};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{App, Attempts, BodyLimits, ChatTasks, EventStreams, LogReaders, Shared, router};
use crate::artifacts::Artifacts;
use crate::auth::{Access, AttemptTokens, TOKEN_SECRET};
use crate::chain::{self, ChainView, EscrowConfig};
use crate::config::{Args, Config};
use crate::elsewhere;
use crate::gateway::Gateway;
use crate::hub::{Hub, HubConfig};
use crate::idempotency;
use crate::keys::{self, ApiKeys};
use crate::location::{StoreLocation, with_password};
use crate::market::Market;
use crate::metrics::Metrics;
use crate::misuse::Misuse;
use crate::places::Places;
use crate::server::{self, Deadlines, Server};
use crate::tls::Certificate;
use crate::upkeep::{self, Keep};
use crate::webhooks::Webhooks;

/// How long to wait for the relay's id: its last holder may be about to end.
const CLAIM_PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait between two tries.
const CLAIM_PAUSE: Duration = Duration::from_millis(100);
/// How long connections that were dropped may take to notice, before the relay ends without them.
const DROP_DEADLINE: Duration = Duration::from_secs(2);
/// How long streams whose providers were told to leave may take to say so to their clients.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(1);

/// A relay whose store is open and whose addresses are bound, and which serves once it runs.
pub struct Relay {
    listener: TcpListener,
    local_addr: SocketAddr,
    tls: Option<Tls>,
    pub(crate) app: App,
    store: Arc<dyn Store>,
    drain: Duration,
    keep: Keep,
    max_connections: usize,
    peers: Places,
    escrow: Option<EscrowConfig>,
}

struct Tls {
    listener: TcpListener,
    local_addr: SocketAddr,
    acceptor: TlsAcceptor,
    certificate: Arc<Certificate>,
}

/// Runs `compute-relay` with its flags until a signal ends it.
///
/// # Errors
/// [`Misuse`] where the flags are wrong; otherwise the store cannot be opened, an address cannot be bound, or serving failed.
pub async fn serve(args: Args) -> anyhow::Result<()> {
    daemon::init_logging(&args.log).map_err(Misuse::from)?;
    let mut config = Config::from_args(&args)?;
    server::fit_open_files(&mut config);
    if let Some(warning) = unreachable_warning(&config) {
        tracing::warn!("{warning}");
    }
    let shutdown = daemon::Shutdown::install(args.shutdown)?;
    build(config).await?.run(shutdown.token()).await
}

/// Opens the store and binds the addresses; nothing is served yet.
///
/// # Errors
/// [`Misuse`] where the certificate cannot be read, an address is not of this machine, or nobody has an API key; otherwise the store
/// cannot be read, or an address cannot be bound.
pub async fn build(config: Config) -> anyhow::Result<Relay> {
    let tls = match &config.tls {
        Some(tls) => Some(bind_tls(tls).await?),
        None => None,
    };
    let listener = bind(config.listen, "--listen").await?;
    let local_addr = listener.local_addr().context("the listener has no address")?;
    let (market, store) = open(&config).await?;
    claim(&*store, &config.relay_id).await?;
    if config.api_keys.is_empty() && !keys::any_usable(&*store, market.now()).await? {
        return Err(Misuse::because(
            "without an API key nobody could publish tasks here",
            "set ZORAI_AI_API_KEY, or give --api-key-file FILE (`openssl rand -hex 32` makes a good key), or make one with \
             `compute-relay keys create`",
        )
        .into());
    }
    let keys = ApiKeys::new(Arc::clone(&store), &config.api_keys);
    let access = Access::new(keys, market.tokens().clone(), config.anonymous_requests_per_minute);
    let hub = Hub::new(Arc::clone(&market), hub_config(&config, &market));
    let models = Arc::clone(hub.models());
    let gateway = Gateway::new(&config.relay_id, config.gateway.clone(), models, Arc::clone(&store));
    let webhooks = Webhooks::new(Arc::clone(&market), config.allow_private_webhooks)
        .context("webhooks cannot be set up")?;
    let app = App::new(Shared {
        relay_id: config.relay_id,
        access,
        requests: TaskTracker::new(),
        metrics: Metrics::new(market.commits(), gateway.counts()),
        market,
        hub,
        gateway,
        webhooks,
        attempts: Attempts::new(config.max_artifact_bytes),
        logs: LogReaders::default(),
        streams: EventStreams::default(),
        chat_tasks: ChatTasks::default(),
        answers: idempotency::Room::default(),
        limits: BodyLimits {
            max_body_bytes: config.max_body_bytes,
            max_artifact_bytes: config.max_artifact_bytes,
        },
        session_grace: config.session_grace,
        stopping: CancellationToken::new(),
    });
    Ok(Relay {
        listener,
        local_addr,
        tls,
        app,
        store,
        drain: config.drain,
        keep: Keep { sessions: config.keep_sessions, artifacts: config.keep_artifacts },
        max_connections: config.max_connections,
        peers: Places::new(config.max_connections_per_ip),
        escrow: config.escrow,
    })
}

async fn open(config: &Config) -> anyhow::Result<(Arc<Market>, Arc<dyn Store>)> {
    let store = open_store(&config.store).await?;
    let opening = Artifacts::open(
        &config.artifacts,
        Arc::clone(&store),
        config.artifact_quota,
        config.max_artifact_bytes,
    );
    let artifacts =
        opening.await.with_context(|| format!("cannot open the artifacts at {}", config.artifacts))?;
    let tokens = AttemptTokens::new(store.secret(TOKEN_SECRET).await?);
    let chain = config.escrow.as_ref().map(|escrow| ChainView::new(escrow.domain, escrow.confirmations));
    Ok((Market::new(Arc::clone(&store), artifacts, tokens, chain), store))
}

/// Makes sure that no other relay of the store has this id: each would take the other's providers for its own.
async fn claim(store: &dyn Store, relay_id: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + CLAIM_PATIENCE;
    while !store.claim_relay(relay_id).await.context("the relay's id cannot be taken")? {
        if Instant::now() >= deadline {
            return Err(Misuse::because(
                format!("another relay with the id {relay_id:?} runs on this store"),
                "give each relay of a store an id of its own: --relay-id",
            )
            .into());
        }
        sleep(CLAIM_PAUSE).await;
    }
    Ok(())
}

/// Opens a store, and makes it where there is none.
///
/// # Errors
/// It cannot be opened; the message says where it is, without a password.
pub(crate) async fn open_store(location: &StoreLocation) -> anyhow::Result<Arc<dyn Store>> {
    let failed = || format!("cannot open the store {location}");
    Ok(match location {
        StoreLocation::Folder(folder) => Arc::new(Sqlite::open(folder).await.with_context(failed)?),
        StoreLocation::Postgres(url) => {
            let url = with_password(url, std::env::var("PGPASSWORD").ok());
            Arc::new(Postgres::connect(url.expose()).await.with_context(failed)?)
        }
    })
}

/// Binds an address that a flag names.
async fn bind(addr: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    match daemon::bind(addr).await {
        Ok(listener) => Ok(listener),
        Err(ListenError::Bind { addr, source }) if source.kind() == ErrorKind::AddrNotAvailable => {
            let hint = format_args!("{flag} takes an address of this machine, or :PORT for all of them");
            Err(Misuse::new(ListenError::Bind { addr, source }, hint).into())
        }
        Err(error) => Err(error.into()),
    }
}

/// What to tell an operator whose relay other machines reach, but no provider on them.
fn unreachable_warning(config: &Config) -> Option<String> {
    let addresses = std::iter::once(config.listen).chain(config.tls.as_ref().map(|tls| tls.listen));
    let beyond = addresses.map(|addr| addr.ip().to_canonical()).find(|ip| !ip.is_loopback())?;
    config.public_urls.is_empty().then(|| {
        format!(
            "listening on {beyond} without --public-url: providers on other machines are refused, for the URL that they dial \
             must be one of the relay's; give it by --public-url, such as wss://relay.example"
        )
    })
}

async fn bind_tls(config: &crate::config::TlsConfig) -> anyhow::Result<Tls> {
    let certificate = Certificate::read(config).map_err(|error| {
        Misuse::new(
            error,
            "--tls-cert takes the certificate chain and --tls-key its private key, both in PEM",
        )
    })?;
    let acceptor = TlsAcceptor::from(Arc::new(Arc::clone(&certificate).server_config()?));
    let listener = bind(config.listen, "--listen").await?;
    let local_addr = listener.local_addr().context("the TLS listener has no address")?;
    Ok(Tls { listener, local_addr, acceptor, certificate })
}

fn hub_config(config: &Config, market: &Market) -> HubConfig {
    let link = link::Config {
        heartbeat: config.heartbeat,
        timeout: config.heartbeat_timeout,
        ..link::Config::default()
    };
    HubConfig {
        link,
        heartbeat: config.heartbeat,
        heartbeat_timeout: config.heartbeat_timeout,
        grace: config.session_grace,
        alone: config.alone,
        offer_timeout: config.offer_timeout,
        drain: config.drain,
        max_sessions: config.max_sessions,
        challenge_every: config.challenge_gpus,
        ..HubConfig::new(config.relay_id.clone(), config.public_urls.clone(), market.domains().to_vec())
    }
}

impl Relay {
    /// Where HTTP is served.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where HTTPS is served, if it is.
    pub fn tls_addr(&self) -> Option<SocketAddr> {
        self.tls.as_ref().map(|tls| tls.local_addr)
    }

    /// Serves until `shutdown` is cancelled; then accepts nothing more, lets requests finish for a while, and after them closes the
    /// providers' sessions and the store.
    ///
    /// # Errors
    /// The part that looks after providers and time ended by itself, which it must not; or another relay of the store has this one's id.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let stopping = self.app.stopping.clone();
        let server = Server {
            router: router(self.app.clone()),
            tasks: TaskTracker::new(),
            stopping: stopping.clone(),
            dropping: CancellationToken::new(),
            peers: self.peers,
            deadlines: Deadlines::default(),
        };
        tracing::info!(url = %format_args!("http://{}", self.local_addr), relay_id = self.app.relay_id, "serving");
        server.tasks.spawn(server.clone().listen(self.listener, None, self.max_connections));
        if let Some(tls) = self.tls {
            tracing::info!(url = %format_args!("https://{}", tls.local_addr), "serving");
            server.tasks.spawn(reload_on_hangup(tls.certificate, stopping.clone()));
            server.tasks.spawn(server.clone().listen(tls.listener, Some(tls.acceptor), self.max_connections));
        }
        server.tasks.spawn(Arc::clone(&self.app.webhooks).run(stopping.clone()));
        server.tasks.spawn(elsewhere::follow(Arc::clone(&self.app.market), stopping.clone()));
        server.tasks.spawn(upkeep::run(self.app.clone(), self.keep, stopping.clone()));
        if let Some(escrow) = self.escrow {
            let tls =
                daemon::tls::client_config(None).context("the chain's certificates cannot be checked")?;
            let (market, hub) = (Arc::clone(&self.app.market), Arc::clone(&self.app.hub));
            server.tasks.spawn(chain::follow(escrow, Arc::new(tls), market, hub, stopping.clone()));
        }
        // Records are kept until the last request has ended.
        let served = CancellationToken::new();
        let records = tokio::spawn(Arc::clone(&self.app.gateway).run(served.clone()));
        // Providers stay connected while their answers pass.
        let leaving = CancellationToken::new();
        let mut hub = tokio::spawn(Arc::clone(&self.app.hub).run(stopping.clone(), leaving.clone()));
        let mut id_lost = false;
        let ended = tokio::select! {
            () = shutdown.cancelled() => None,
            ended = &mut hub => Some(ended),
            () = self.store.claim_lost() => {
                id_lost = true;
                None
            }
        };
        stopping.cancel();
        server.tasks.close();
        let drained = daemon::drain("connections", self.drain, server.tasks.wait()).await.is_some();
        leaving.cancel();
        if !drained && daemon::drain("cut streams", FAREWELL_DEADLINE, server.tasks.wait()).await.is_none() {
            server.dropping.cancel();
            daemon::drain("dropped connections", DROP_DEADLINE, server.tasks.wait()).await;
        }
        self.app.requests.close();
        daemon::drain("requests of clients that left", DROP_DEADLINE, self.app.requests.wait()).await;
        let result = match ended {
            None => hub.await.context("looking after providers failed"),
            Some(ended) => ended
                .context("looking after providers failed")
                .and_then(|()| anyhow::bail!("looking after providers ended by itself")),
        };
        served.cancel();
        if let Err(error) = records.await {
            tracing::error!(%error, "keeping records of inference failed");
        }
        keys::write_down(&self.app.access.keys).await;
        daemon::drain("broken uploads", DROP_DEADLINE, self.app.market.artifacts().close()).await;
        self.store.close().await;
        anyhow::ensure!(
            !id_lost,
            "another relay of this store runs under the id of this one, {:?}",
            self.app.relay_id
        );
        result
    }
}

/// Reads the certificate again on SIGHUP.
#[cfg(unix)]
async fn reload_on_hangup(certificate: Arc<Certificate>, stopping: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};

    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(error) => return tracing::warn!(%error, "SIGHUP cannot be listened for"),
    };
    while let Some(Some(())) = stopping.run_until_cancelled(hangups.recv()).await {
        match certificate.reload() {
            Ok(()) => tracing::info!("the certificate was read again"),
            Err(error) => {
                tracing::error!(error = %format_args!("{error:#}"), "the old certificate stays in use")
            }
        }
    }
}

#[cfg(not(unix))]
async fn reload_on_hangup(_: Arc<Certificate>, _: CancellationToken) {}

#[cfg(test)]
mod tests;
